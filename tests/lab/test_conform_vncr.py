"""The page of VNCR_EL2, recorded on the real kernel: the comparison sees a change, and what a run shows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from test_conform import Changed

from shadowmmu.formats.answer import read_answer
from shadowmmu.formats.runs import read_runs
from shadowmmu.lab.conform.compare import conform_run
from shadowmmu.lab.conform.rows import Row, kernel_vncr

ROOT = Path(__file__).parents[2]
RUNS = {run.name: run for run in read_runs(ROOT / "tests" / "data" / "vncr_runs")}


def names_after(rows: list[Row], mark: str) -> Counter[str | int]:
    """How often each thing happened after a mark, up to the next."""
    return Counter(row.words[0] for row in rows if row.where == mark)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_the_model_does_with_the_page_what_the_real_kernel_did(name: str) -> None:
    conformity = conform_run(RUNS[name])
    assert conformity.agrees, "\n".join(conformity.differences[0].lines())
    assert conformity.compared["VNCR page"] > 5


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("page-moves", "ipa=0x41003000 hpa", "ipa=0x41004000 hpa"),
        ("page-moves", "writable=1 valid=1", "writable=0 valid=1"),
        ("page-moves", "writable=1 valid=1", "writable=1 valid=0"),
        ("page-moves", "idx=0x20d phys=0x0", "idx=0x20d phys=0x1"),
        ("zero-page", "prot=0xe0000000000783", "prot=0xe8000000000703"),
        ("nowhere", "SYNC: esr_el2 0x96002050", "SYNC: esr_el2 0x9600204f"),
        ("nowhere", "SYNC: esr_el2 0x96002050", "SYNC: esr_el2 0x96000050"),
    ],
)
def test_a_change_of_the_vncr_page_is_seen(name: str, old: str, new: str) -> None:
    conformity = conform_run(Changed(RUNS[name], old, new))
    assert {difference.aspect for difference in conformity.differences} == {"VNCR page"}


def test_without_tge_a_tlbi_of_l1_leaves_the_entry_on_the_real_kernel() -> None:
    answer = read_answer(ROOT / "rig" / "recorded" / "vncr" / "tlbi-without-tge.kernel.txt.xz")
    rows = kernel_vncr(answer)
    for mark in ("tge-0", "tge-0-va"):
        assert names_after(rows, mark) == {"vncr_map": 1, "vncr_unmap": 1}
    assert names_after(rows, "tge-1") == {"vncr_fill": 1, "vncr_map": 1, "vncr_unmap": 1}


def test_an_abort_for_l1_leaves_far_el2_as_it_was_on_the_real_kernel() -> None:
    touches = [step.touch for step in RUNS["nowhere"].answer().steps if step.touch]
    aborts = [touch for touch in touches if touch.esr >> 13 & 1 and touch.esr >> 26 == 0x25]
    assert len(aborts) == 4
    assert all(touch.esr >> 10 & 1 == 0 for touch in aborts)  # FnV: FAR_EL2 is said to be valid
    assert {touch.far for touch in aborts} == {0, 0x9000_0000}
    assert 0x9000_0000 in {touch.va for touch in touches}  # the access whose address it is
