"""The review as a program: it finds of each version what the mails say of it, and the rest holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from review_page import PAGE, page

from shadowmmu.compiled import INTERPRETED
from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.errors import InputError
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.kvm import shadows
from shadowmmu.report.review_html import render_review
from shadowmmu.verify.review.at import at_completes
from shadowmmu.verify.review.failures import given_away
from shadowmmu.verify.review.interleave import CHOICES, observed
from shadowmmu.verify.review.matrix import Matrix, review
from shadowmmu.verify.review.objections import OBJECTIONS, SAFETY
from shadowmmu.verify.review.result import HOLDS, NOT_APPLICABLE, REFUTED, UNDETERMINED
from shadowmmu.verify.review.trial import scenario_text

FOLDER = Path(__file__).parents[2] / "src" / "shadowmmu" / "data" / "review"

# What the mails and the reading of their patches say (upstream.md 3.1 to 3.5 and 4), not what we found.
SAID = {
    "rbtree_2024": {
        REFUTED: (4, 5, 8, 10, 11, 12, 16, 17, 18, 19, 24, 26, 28, 49),
        HOLDS: (2, 6, 7, 13, 20),
    },
    "maple_2025": {REFUTED: (5, 12, 16, 19, 24, 26), HOLDS: (2, 8, 17, 20, 31, 49)},
    "spanning_v2": {REFUTED: (24,), HOLDS: (5, 10, 16, 17, 20, 21, 22, 23, 28)},
    "spanning": {HOLDS: (5, 10, 16, 17, 20, 21, 22, 23, 24, 28)},
    "sweep": {HOLDS: (5, 10, 13, 16, 19, 20, 26, 40, 49), NOT_APPLICABLE: (17, 24), REFUTED: (29,)},
    "gfn_lists": {HOLDS: (10, 16, 17, 19), REFUTED: (24,)},
    "pte_chains": {HOLDS: (10, 16, 17, 19, 24, 31)},
}


@pytest.fixture(scope="module")
def whole() -> Matrix:
    if INTERPRETED:
        pytest.skip("the whole matrix runs compiled")
    return review()


def test_every_version_fares_as_its_review_said(whole: Matrix) -> None:
    wrong = [
        f"{design} {number}: {whole.result(number, design).verdict}, said to be {verdict}"
        for design, verdicts in SAID.items()
        for verdict, numbers in verdicts.items()
        for number in numbers
        if whole.result(number, design).verdict != verdict
    ]
    assert wrong == []


def test_the_judge_looks_where_the_host_got_in_between_two_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """And finds it, where L0 forgets what is left of the range."""
    told = given_away("reverse_table")
    assert told.verdict == HOLDS
    assert "2 of them between two chunks" in told.detail
    if INTERPRETED:
        monkeypatch.setattr(shadows, "update_unfinished", lambda s, may_block, action: 0)
        told = given_away("reverse_table")
        assert told.verdict == REFUTED
        assert "A1" in told.detail


def test_no_design_that_claims_safety_is_refuted_in_it(whole: Matrix) -> None:
    assert whole.unexpected() == []
    assert whole.designs == list(CATALOGUE)
    assert whole.refuted("reverse_table") == []
    assert [each.number for each in whole.refuted("sweep")] == [29]


def test_nothing_is_left_open(whole: Matrix) -> None:
    assert [cell for cell, result in whole.results.items() if result.verdict == UNDETERMINED] == []


def test_what_is_refuted_has_a_witness(whole: Matrix) -> None:
    for each in whole.objections:
        for design in whole.designs:
            result = whole.result(each.number, design)
            assert bool(result.witness) == (result.verdict == REFUTED)
            if result.detail.startswith("A1:"):
                assert any("nested IPA" in line for line in result.witness)


def test_the_page_is_what_the_program_says(whole: Matrix) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(whole)


def test_the_html_page_has_every_cell(whole: Matrix) -> None:
    text = render_review(whole)
    assert text.count("<details>") == sum(len(whole.refuted(design)) for design in whole.designs)
    assert text.count('<td class="') == len(whole.objections) * len(whole.designs)
    assert "<script" not in text
    assert "http" not in text
    found = json.loads(json.dumps(whole.to_json()))
    assert len(found["objections"]) == len(OBJECTIONS)


def test_the_table_covers_the_review() -> None:
    numbers = [each.number for each in OBJECTIONS]
    assert numbers == sorted(set(numbers))
    assert set(range(1, 34)) <= set(numbers)
    assert all(each.asks and each.source and each.kind for each in OBJECTIONS)
    named = {name for each in OBJECTIONS for name in each.scenarios}
    assert named == {path.stem for path in FOLDER.iterdir()}


def test_every_scenario_can_be_read() -> None:
    for path in FOLDER.iterdir():
        assert len(parse_scenario(scenario_text(path.stem), path.stem).events) > 3


@pytest.mark.parametrize("design", ["rbtree_2024", "maple_2025", "reverse_table"])
def test_a_few_objections_also_interpreted(design: str) -> None:
    matrix = review([design], [5, 8, 12, 20, 31, 49])
    said = SAID.get(design, {HOLDS: (5, 8, 12, 20, 31, 49)})
    for verdict, numbers in said.items():
        for number in set(numbers) & {each.number for each in matrix.objections}:
            assert matrix.result(number, design).verdict == verdict, number


def test_at_without_its_software_walk_is_refuted() -> None:
    result = at_completes("reverse_table", "fast-only")
    assert result.verdict == REFUTED
    assert "PAR_EL1" in result.detail


def test_two_cpus_free_a_node_of_the_rfc_twice_and_no_other() -> None:
    found = observed(("rbtree_2024", "spanning", "gfn_lists"))
    assert "free already" in found["rbtree_2024"]["race"]["broken"]
    for design in ("spanning", "gfn_lists"):
        assert found[design]["race"] == {"schedules": 2**CHOICES, "broken": "", "schedule": ""}
    assert found["spanning"]["guard"] == {"calls": found["spanning"]["guard"]["calls"], "unlocked": []}
    assert found["spanning"]["guard"]["calls"] > 10


def test_an_objection_that_is_not_there_is_bad_input() -> None:
    with pytest.raises(InputError, match="read objection 41, expected one of 1, 2, 3"):
        review(["sweep"], [41])


def test_safety_decides_the_exit_code_and_cost_does_not() -> None:
    matrix = review(["gfn_lists", "rbtree_2024"], [24])
    assert [each.number for each in matrix.refuted("gfn_lists")] == [24]
    assert matrix.unexpected() == []
    assert all(each.kind != SAFETY for each in matrix.objections)
