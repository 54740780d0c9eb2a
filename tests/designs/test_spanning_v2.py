"""``spanning_v2``: the map of ``spanning`` without the direct map, so that TLBIs cost it its precision."""

from __future__ import annotations

from design_lab import BLOCK, DATA, NESTED, PAGE, PAGES_16, count, judged, leaf_of, run, script

from shadowmmu.designs.dispatch import design_bytes, design_recorded
from shadowmmu.designs.spanning import M_DIRECT
from shadowmmu.designs.spanning_check import check_spanning

DESIGN = "spanning_v2"
MOVED = f"unmap {NESTED:#x} 4k 3\ntlbi 0 {7 << 44 | NESTED >> 12:#x}"
ELSEWHERE = f"map {NESTED + BLOCK:#x} {DATA:#x} 4k 3 rw\ntouch w {NESTED + BLOCK:#x}"


def test_it_has_one_tree_and_half_the_entries() -> None:
    made, later = (run(design, script(PAGES_16)) for design in (DESIGN, "spanning"))
    assert not made.state.mmus[:, M_DIRECT].any()
    assert design_recorded(made.state) == design_recorded(later.state)
    assert 0 < int(design_bytes(made.state)) < int(design_bytes(later.state))


def test_a_tlbi_leaves_its_entry() -> None:
    made = run(DESIGN, script(PAGES_16, MOVED))
    assert check_spanning(made.state) == 0
    assert design_recorded(made.state) == 16 + 1
    assert design_recorded(run("spanning", script(PAGES_16, MOVED)).state) == 15 + 1


def test_a_page_that_moves_becomes_unknown_and_costs_the_whole_mmu() -> None:
    text = script(PAGES_16, MOVED, ELSEWHERE, f"dontneed {DATA:#x} 4k")
    made, violation = judged(DESIGN, text)
    assert violation is None
    assert [count(made, name) for name in ("unknown_entries", "fallbacks_mmu")] == [1, 1]
    assert leaf_of(made, NESTED + 5 * PAGE) is None
    later, _ = judged("spanning", text)
    assert [count(later, name) for name in ("unknown_entries", "fallbacks_mmu")] == [0, 0]
    assert leaf_of(later, NESTED + 5 * PAGE) is not None


def test_a_stale_entry_takes_what_its_nested_address_maps_now() -> None:
    moved = f"map {NESTED:#x} {DATA + BLOCK:#x} 4k 3 rw\ntlbi 0 {NESTED >> 12:#x}\ntouch w {NESTED:#x}"
    made, violation = judged(DESIGN, script(PAGES_16, moved, f"dontneed {DATA:#x} 4k"))
    assert violation is None
    assert count(made, "over_unmapped_bytes") == PAGE


def test_a_wiped_mmu_starts_again() -> None:
    tenants = [f"s2 new {v}\ncode\ntouch r 0x10000" for v in (2, 3)]
    made = run(DESIGN, script(PAGES_16, *tenants))
    assert count(made, "wipes") == 1
    assert design_recorded(made.state) == 2
