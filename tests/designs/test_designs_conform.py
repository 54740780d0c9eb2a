"""Every design through the conformance kit: three that hold, one that is refuted as its review says."""

from __future__ import annotations

import pytest

from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.verify.conformance import Case, conformance_cases, run_case

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


@pytest.mark.parametrize("design", SAFE)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_design_that_claims_safety_holds(design: str, case: Case) -> None:
    result = run_case(design, case)
    assert result.holds, "\n".join(result.lines())
    if design == "reverse_table" and case.exact:
        assert (result.over_unmapped_bytes, result.refaults_avoidable, result.fallbacks) == (0, 0, 0)


@pytest.mark.parametrize("name", REFUTING)
def test_the_negative_control_is_refuted_with_its_stale_leaf(name: str) -> None:
    result = run_case("rbtree_2024", CASES[name])
    assert result.rule == "A1"
    assert result.violation is not None
    text = "\n".join(result.violation.lines)
    for part in ("  event  ", "  leaf   nested_mmu", "filled from canonical IPA", "  L1     ", "  host   "):
        assert part in text


def test_what_claims_safety_is_three_designs_of_four() -> None:
    assert SAFE == ["sweep", "spanning", "reverse_table"]
