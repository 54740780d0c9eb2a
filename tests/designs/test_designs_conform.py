"""Every design through the conformance kit: those that hold, and those refuted as their reviews say."""

from __future__ import annotations

import pytest
from design_lab import DATA, NESTED, PAGES_16, executor, last_event, leaf_of, script

from shadowmmu.compiled import INTERPRETED, U64
from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.pgtable.context import M_PENDING, M_VTTBR
from shadowmmu.verify.conformance import Case, conformance_cases, run_case
from shadowmmu.verify.judge import Judge
from shadowmmu.verify.scaled import granule_cases

CASES = {case.name: case for case in conformance_cases()}
SAFE = [name for name, design in CATALOGUE.items() if design.claims_safety]

REFUTING = (
    "alias-2",
    "alias-5",
    "alias-across-vmids",
    "alias-in-block",
    "alias-in-block-other-vmid",
    "mid-block",
    "tlbi-then-remap",
    "memslot",
    "collapse-joins-pages",
    "zero-page-copied",
    *(f"allocation-failure-{n}" for n in range(1, 8)),
)
REFUTING_MAPLE = ("alias-2", "alias-5", "alias-across-vmids", "alias-in-block", "zero-page-copied")
EXACT = ("reverse_table", "gfn_lists", "pte_chains")


@pytest.mark.parametrize("design", SAFE)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_design_that_claims_safety_holds(design: str, case: Case) -> None:
    result = run_case(design, case)
    assert result.holds, "\n".join(result.lines())
    if design in EXACT and case.exact:
        assert (result.over_unmapped_bytes, result.refaults_avoidable, result.fallbacks) == (0, 0, 0)


@pytest.mark.parametrize(
    ("design", "name"),
    [*(("rbtree_2024", name) for name in REFUTING), *(("maple_2025", name) for name in REFUTING_MAPLE)],
)
def test_a_negative_control_is_refuted_with_its_stale_leaf(design: str, name: str) -> None:
    result = run_case(design, CASES[name])
    assert result.rule == "A1"
    assert result.violation is not None
    text = "\n".join(result.violation.lines)
    for part in ("  event  ", "  leaf   nested_mmu", "filled from canonical IPA", "  L1     ", "  host   "):
        assert part in text


def test_the_negative_controls_are_those_their_reviews_refuted() -> None:
    assert set(CATALOGUE) - set(SAFE) == {"rbtree_2024", "maple_2025"}


@pytest.mark.parametrize("design", SAFE)
def test_a_recycled_mmu_not_yet_wiped_is_unmapped_like_any_other(design: str) -> None:
    """In the engine the wipe follows in the same step; on several CPUs a notifier can come in between."""
    made, judge = executor(design, script(PAGES_16, f"dontneed {DATA:#x} 4k")), Judge()
    event = last_event(made)
    made.run(event)
    made.state.mmus[1, M_PENDING] = 1
    made.state.mmus[1, M_VTTBR] += U64(1 << 48)
    judge.look(made, event - 1)
    made.run(event + 1)
    judge.look(made, event)
    assert (judge.worst, judge.awaiting_tlbi) == (None, 0)
    assert leaf_of(made, NESTED) is None


LARGER = {case.name: case for granule in ("16K", "64K") for case in granule_cases(granule)}
SOME = ("alias-3", "mid-block", "one", "without-range-tlbi", "nested-zero", "allocation-failure-2")
"""Enough to reach every branch that asks for a size; interpreted, a block of 64K pages costs seconds."""
SLOW_CHECKS = ("reverse_table", "pte_chains")
"""Their own checks read whole nodes in Python: they get some of the cases in either mode."""
INTERPRETED_DESIGNS = ("reverse_table", "spanning", "pte_chains", "leaf_scan")


@pytest.mark.parametrize("design", [d for d in SAFE if not INTERPRETED or d in INTERPRETED_DESIGNS])
@pytest.mark.parametrize("granule", ["16K", "64K"])
def test_a_design_that_claims_safety_holds_on_larger_pages(design: str, granule: str) -> None:
    few = INTERPRETED or design in SLOW_CHECKS
    cases = [c for n, c in LARGER.items() if n.endswith(granule) and (not few or n.startswith(SOME))]
    results = [run_case(design, case) for case in cases]
    assert results
    for result in results:
        assert result.holds, "\n".join(result.lines())
        if design in EXACT and result.case.exact:
            assert (result.over_unmapped_bytes, result.refaults_avoidable, result.fallbacks) == (0, 0, 0)


@pytest.mark.parametrize("granule", ["16K", "64K"])
@pytest.mark.parametrize("name", ["alias-2", "mid-block"])
def test_the_negative_control_is_refuted_on_larger_pages(name: str, granule: str) -> None:
    assert run_case("rbtree_2024", LARGER[f"{name}-{granule}"]).rule == "A1"
