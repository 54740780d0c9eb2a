"""What the judge remembers, against dictionaries: births, deaths, and why a leaf came back."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_lab import Op, call, machine

from shadowmmu.machine import counters
from shadowmmu.machine.counters import (
    FIRST_TOUCHES,
    OVER_UNMAPPED_BYTES,
    OVER_UNMAPPED_LEAVES,
    REFAULTS_AVOIDABLE,
    REFAULTS_GUEST,
    REFAULTS_NOTIFIER,
)
from shadowmmu.machine.state import R_GRAVES, State

PAGE = 4096
WATCHED = (
    FIRST_TOUCHES,
    REFAULTS_NOTIFIER,
    REFAULTS_AVOIDABLE,
    REFAULTS_GUEST,
    OVER_UNMAPPED_LEAVES,
    OVER_UNMAPPED_BYTES,
)


def counted(s: State) -> dict[str, int]:
    return {counters.DECLARED[c][0]: int(s.count[c]) for c in WATCHED if s.count[c]}


def live_and_die(
    notifier: tuple[int, int] | None, canonical: int = 0x4020_0000, size: int = PAGE
) -> dict[str, int]:
    """A leaf is filled, cleared for a cause, and filled again."""
    s = machine()
    call(s, Op.BIRTH, 1, 0x8000_0000, 700, canonical, 3)
    assert s.ghost[700] == canonical | 3
    if notifier:
        call(s, Op.GHOST_BEGIN, *notifier)
    call(s, Op.DEATH, 1, 0x8000_0000, 700, size)
    call(s, Op.GHOST_END)
    call(s, Op.BIRTH, 1, 0x8000_0000, 701, canonical, 3)
    assert s.regs[R_GRAVES] == 1
    return counted(s)


def test_a_refault_after_the_guests_own_invalidation() -> None:
    assert live_and_die(None) == {"first_touches": 1, "refaults_after_guest": 1}


def test_a_refault_that_the_notifier_had_to_cause() -> None:
    needed = {"first_touches": 1, "refaults_caused": 1}
    assert live_and_die((0x4020_0000, 0x4020_1000)) == needed
    assert live_and_die((0x4000_0000, 0x8000_0000)) == needed
    assert live_and_die((0x402F_F000, 0x4030_0000), size=2 << 20) == needed, "inside a block"


def test_a_refault_that_a_precise_design_avoids() -> None:
    avoidable = {
        "first_touches": 1,
        "refaults_caused": 1,
        "refaults_avoidable": 1,
        "over_unmapped_leaves": 1,
        "over_unmapped_bytes": PAGE,
    }
    assert live_and_die((0x4020_1000, 0x4020_2000)) == avoidable, "begins where the leaf ends"
    assert live_and_die((0x401F_F000, 0x4020_0000)) == avoidable, "ends where the leaf begins"


def test_a_leaf_that_replaces_a_living_one_is_no_refault() -> None:
    s = machine()
    call(s, Op.BIRTH, 1, PAGE, 700, PAGE, 0)
    call(s, Op.BIRTH, 1, PAGE, 700, 2 * PAGE, 0)
    assert counted(s) == {"first_touches": 1}
    assert s.ghost[700] == 2 * PAGE


def test_a_death_without_a_birth_is_remembered_all_the_same() -> None:
    s = machine()
    call(s, Op.DEATH, 1, PAGE, 700, PAGE)
    call(s, Op.BIRTH, 1, PAGE, 700, PAGE, 0)
    assert counted(s) == {"refaults_after_guest": 1}
    assert s.regs[R_GRAVES] == 1


def test_an_absent_judge_remembers_nothing() -> None:
    s = machine(judged=False)
    call(s, Op.BIRTH, 1, PAGE, 700, PAGE, 0)
    call(s, Op.DEATH, 1, PAGE, 700, PAGE)
    assert counted(s) == {}
    assert not s.graves.any()


MMUS, PAGES = st.sampled_from([1, 2, 0x1FF]), st.sampled_from([0, 1, 2, 0x200, (1 << 36) - 1])
LIVES = st.lists(
    st.tuples(MMUS, PAGES, st.sampled_from(["guest", "needed", "over"]), st.sampled_from([12, 21])),
    max_size=30,
)


@given(lives=LIVES)
def test_causes_against_a_dictionary(lives: list[tuple[int, int, str, int]]) -> None:
    s = machine()
    last: dict[tuple[int, int], str] = {}
    expected: Counter[int] = Counter()
    for number, (mmu, page, cause, shift) in enumerate(lives):
        word, canonical = 512 + number, 0x4000_0000 + (number << 21)
        before = last.get((mmu, page))
        expected[FIRST_TOUCHES] += before is None
        expected[REFAULTS_GUEST] += before == "guest"
        expected[REFAULTS_NOTIFIER] += before in ("needed", "over")
        expected[REFAULTS_AVOIDABLE] += before == "over"
        call(s, Op.BIRTH, mmu, page * PAGE, word, canonical, 2)
        if cause != "guest":
            start = canonical + (1 << shift) if cause == "over" else canonical + (1 << shift) - PAGE
            call(s, Op.GHOST_BEGIN, start, start + PAGE)
        call(s, Op.DEATH, mmu, page * PAGE, word, 1 << shift)
        call(s, Op.GHOST_END)
        expected[OVER_UNMAPPED_LEAVES] += cause == "over"
        expected[OVER_UNMAPPED_BYTES] += (cause == "over") << shift
        last[mmu, page] = cause
    assert {c: int(s.count[c]) for c in WATCHED} == {c: expected[c] for c in WATCHED}
    assert s.regs[R_GRAVES] == np.count_nonzero(s.graves) == len(last)


@settings(max_examples=settings().max_examples // 4)
@given(addresses=st.sets(st.tuples(MMUS, st.integers(0, (1 << 36) - 1)), max_size=31))
def test_a_larger_table_of_graves_forgets_nobody(addresses: set[tuple[int, int]]) -> None:
    s = machine()
    for mmu, page in addresses:
        call(s, Op.BIRTH, mmu, page * PAGE, 600, PAGE, 0)
        call(s, Op.DEATH, mmu, page * PAGE, 600, PAGE)
    call(s, Op.REHASH)  # from ``graves`` into ``rmap``, four times as long
    assert sorted(s.rmap[s.rmap != 0].tolist()) == sorted(s.graves[s.graves != 0].tolist())
    moved = s._replace(graves=s.rmap)
    for mmu, page in addresses:
        call(moved, Op.BIRTH, mmu, page * PAGE, 600, PAGE, 0)
    assert s.count[FIRST_TOUCHES] == s.count[REFAULTS_GUEST] == len(addresses)
