"""Ageing and write protection through each design's record, which Linux 7.3.4 does not do.

With ``Machine.precise_updates`` L0 asks the design; without, it ages no shadow and write-protects them all.
"""

from __future__ import annotations

import pytest
from design_lab import BLOCK, DATA, NESTED, PAGE, count, executor, last_event, leaf_of, script

from shadowmmu.arch.stage2 import AF, S2AP_W
from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.designs.reverse_table_check import shadow_leaves
from shadowmmu.engine.executor import Executor
from shadowmmu.verify.conformance import OWN_CHECKS
from shadowmmu.verify.judge import Judge

PAGES = f"map {NESTED:#x} {DATA:#x} 32k 3 rw\ntouch w {NESTED:#x} 4096 8"
ALIASES = [
    f"map {NESTED + k * BLOCK:#x} {DATA + 0x2000:#x} 4k 3 rw\ntouch w {NESTED + k * BLOCK:#x}" for k in (2, 3)
]
OTHER = f"s2 new 2\ncode\nmap {NESTED:#x} {DATA:#x} 16k 3 rw\ntouch w {NESTED:#x} 4096 4"
BACK = "s2 0x40100000 1\ntouch r 0x10000"
PRECISE = ("reverse_table", "gfn_lists", "pte_chains", "pa_keyed", "leaf_scan")
PAGE_OFFSET = 0xFFF


def without(made: Executor, bits: int) -> dict[tuple[int, int], int]:
    """(MMU, nested IPA) of the leaves that lack ``bits``, each with its canonical address."""
    s = made.state
    return {
        (leaf.mmu, leaf.nested_ipa): int(s.ghost[leaf.word]) & ~PAGE_OFFSET
        for leaf in shadow_leaves(s)
        if not int(s.mem[leaf.word]) & bits
    }


def overlapping(made: Executor, start: int, end: int) -> set[tuple[int, int]]:
    """(MMU, nested IPA) of the leaves over canonical [start, end)."""
    s = made.state
    bases = {leaf: int(s.ghost[leaf.word]) & ~PAGE_OFFSET for leaf in shadow_leaves(s)}
    return {(leaf.mmu, leaf.nested_ipa) for leaf, at in bases.items() if at < end and start < at + leaf.size}


@pytest.mark.parametrize("design", CATALOGUE)
@pytest.mark.parametrize("backing", ["base", "thp"])
def test_ageing_reaches_every_leaf_of_the_range_and_keeps_the_record(design: str, backing: str) -> None:
    block = [f"map {NESTED + 4 * BLOCK:#x} {DATA:#x} 2M 2 rw\ntouch w {NESTED + 4 * BLOCK:#x}"]
    more = block if backing == "thp" else []
    start, pages = (DATA, 512) if backing == "thp" else (DATA + 0x2000, 2)
    text = script(PAGES, *ALIASES, *more, OTHER, f"poke {start:#x} 1\nidle {start:#x} {pages}",
                  f"dontneed {DATA + 0x2000:#x} 8k", backing=backing)  # fmt: skip
    made = executor(design, text, precise_updates=True)
    made.run(last_event(made))
    aged, wanted = without(made, int(AF)), overlapping(made, start, start + pages * PAGE)
    assert wanted
    assert wanted <= set(aged)
    if design in PRECISE:
        assert set(aged) == wanted
    made.run()
    if CATALOGUE[design].claims_safety:
        assert overlapping(made, DATA + 0x2000, DATA + 0x4000) == set()


@pytest.mark.parametrize("design", CATALOGUE)
def test_what_was_aged_is_young_again_when_used(design: str) -> None:
    text = script(PAGES, f"poke {DATA:#x} 1\nidle {DATA:#x} 8", f"touch r {NESTED:#x} 4096 8")
    made = executor(design, text, precise_updates=True)
    made.run(last_event(made))
    assert len(without(made, int(AF))) >= 8
    made.run()
    assert {ipa for _mmu, ipa in without(made, int(AF))} <= {0x1_0000}
    assert count(made, "refaults_caused") == 0


@pytest.mark.parametrize("design", CATALOGUE)
def test_no_write_is_lost_to_the_dirty_log(design: str) -> None:
    """A13: a leaf that may be written while the log is on has its page in the bitmap."""
    steps = ["log 1", f"touch w {NESTED + PAGE:#x} 4096 2", "getlog", f"touch w {NESTED + PAGE:#x}", BACK,
             f"touch w {NESTED + 2 * BLOCK:#x}", "getlog", "nop"]  # fmt: skip
    made, judge = executor(design, script(PAGES, *ALIASES, OTHER, *steps), precise_updates=True), Judge()
    own = OWN_CHECKS.get(design, lambda state: None)
    logging = [False]

    def look(running: Executor) -> None:
        judge.look(running, running.position - 1)
        own(running.state)
        line = running.scenario.where(running.position - 1)
        logging[0] |= "log 1" in line
        if logging[0]:
            dirty = running.state.dirty
            for canonical_ipa in writable(running):
                page = canonical_ipa - 0x4000_0000 >> 12
                assert int(dirty[page >> 6]) >> (page & 63) & 1, f"{line}: {canonical_ipa:#x}"

    made.run(after_event=look)
    assert logging[0]
    assert judge.worst is None or not CATALOGUE[design].claims_safety


def writable(made: Executor) -> list[int]:
    """Canonical addresses of the shadow leaves that may be written."""
    s = made.state
    leaves = [leaf for leaf in shadow_leaves(s) if int(s.mem[leaf.word]) & int(S2AP_W)]
    return [int(s.ghost[leaf.word]) & ~PAGE_OFFSET for leaf in leaves]


@pytest.mark.parametrize("design", ["spanning", "spanning_v2", "per_vm_tree", "reverse_table"])
def test_an_incomplete_record_ages_the_whole_mmu_and_stays_incomplete(design: str) -> None:
    text = script(PAGES, f"poke {DATA:#x} 1\nidle {DATA:#x} 1")
    made = executor(design, text, fail=3, precise_updates=True)
    made.run()
    assert len(without(made, int(AF))) == 8 + 1
    assert [count(made, name) for name in ("broken", "fallbacks_mmu", "leaves_removed")] == [1, 1, 0]
    assert leaf_of(made, NESTED) is not None


@pytest.mark.parametrize("design", ["sweep", "reverse_table"])
def test_as_linux_does_no_shadow_is_aged(design: str) -> None:
    made = executor(design, script(PAGES, f"poke {DATA:#x} 1\nidle {DATA:#x} 8"))
    made.run()
    assert without(made, int(AF)) == {}
