"""The steps of parallel fills: every order keeps the record whole, and each rule is needed."""

from __future__ import annotations

from collections import Counter

import pytest

from shadowmmu.verify.parallel_fills import (
    AS_WRITTEN,
    CASES,
    LARGE_CASES,
    ONE_ENTRY,
    PLACE,
    Case,
    Rules,
    Table,
    check,
    explored,
    found,
    insert,
    unlink,
)
from shadowmmu.verify.schedules import Read, Wait, Words, explore, run_alone


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_no_order_of_steps_breaks_the_record(case: Case) -> None:
    result = explored(case)
    assert not result.broken
    assert result.ends >= 2  # there was something to choose


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE_CASES, ids=lambda case: case.title)
def test_no_order_of_steps_breaks_the_record_in_large_cases(case: Case) -> None:
    assert not explored(case).broken


@pytest.mark.parametrize(
    ("rule", "case", "broken"),
    [
        ("swap_items", CASES[1], "page 0 has lost an entry"),
        ("swap_leaf", CASES[0], "page 0 has lost an entry"),
        ("keep_count", CASES[3], "a count is wrong"),
        ("add_counts", CASES[0], "a count is wrong"),
        ("freeze_free_places", LARGE_CASES[1], "page 3 has lost an entry"),
        ("unlink_above_frozen", CASES[7], "page 0 has one too many"),
        ("lock_chains", CASES[-2], "page 1 has one too many"),
    ],
)
def test_each_rule_is_needed(rule: str, case: Case, broken: str) -> None:
    result = explored(case, AS_WRITTEN._replace(**{rule: False}))
    assert result.broken == broken
    assert len(set(result.schedule)) > 1


def test_every_rule_has_its_case() -> None:
    marks = test_each_rule_is_needed.pytestmark  # type: ignore[attr-defined]
    assert {row[0] for mark in marks for row in mark.args[1]} == set(Rules._fields)


def test_alone_the_record_is_a_multimap() -> None:
    words: Words = {}
    table = Table(words, 0, AS_WRITTEN)
    pairs = [(page, 100 + 8 * times + page) for times in range(3) for page in (0, 1, 3)]
    for page, descriptor in pairs:
        run_alone(words, insert(table, page, descriptor))
    assert not check(words, Counter(pairs))
    assert found(words)[0] == Counter(pairs)
    while pairs:
        run_alone(words, unlink(table, *pairs.pop(len(pairs) // 2)))
        assert not check(words, Counter(pairs))
    assert words[PLACE]  # an empty leaf stays until someone holds the lock for write


def test_the_check_sees_what_is_wrong() -> None:
    words: Words = {}
    run_alone(words, insert(Table(words, 0, AS_WRITTEN), 1, 11))
    assert check(words, Counter({(1, 12): 1})) == "page 1 has lost an entry"
    assert check(words, Counter()) == "page 1 has one too many"
    words[PLACE] += ONE_ENTRY
    assert check(words, Counter({(1, 11): 1})) == "a count is wrong"
    words[PLACE] -= ONE_ENTRY
    Table(words, 1, AS_WRITTEN).take([0, 0])
    assert check(words, Counter({(1, 11): 1})) == "a node is lost"


def test_a_wait_without_end_is_found() -> None:
    def cpu(at: int):  # type: ignore[no-untyped-def]
        yield Read(at)
        yield Wait(at, 0)

    result = explore(lambda: ({}, [cpu(1), cpu(2)]), lambda _words: "")
    assert result.broken == "CPU 0 waits for ever"
    assert sorted(result.schedule) == [0, 1]
