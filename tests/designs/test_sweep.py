"""``sweep``: no record, so everything goes from every valid shadow MMU, in chunks."""

from __future__ import annotations

from design_lab import DATA, NESTED, PAGES_16, cost, count, executor, last_event, run, script

from shadowmmu.compiled import U64
from shadowmmu.designs.dispatch import design_bytes, design_covers, design_recorded
from shadowmmu.designs.reverse_table_check import shadow_leaves

TENANTS = [
    f"s2 new {v}\ncode\nmap {NESTED:#x} {DATA:#x} 16k 3 rw\ntouch w {NESTED:#x} 4096 4" for v in (2, 3)
]
CHUNKS_40_BITS = 1 << (40 - 30)


def test_a_notifier_visits_every_valid_shadow_mmu_and_no_other() -> None:
    text = "vcpus 2\n" + script(PAGES_16, *TENANTS, f"dontneed {DATA + 0x20_0000:#x} 4k")
    made = executor("sweep", text)
    visited, chunks, removed = cost(
        made, last_event(made), "shadow_mmus_visited", "chunks_shadow", "leaves_removed"
    )
    assert visited == 3  # of four: one was never used
    assert chunks == 3 * CHUNKS_40_BITS
    assert removed == 16 + 4 + 4 + 3
    assert shadow_leaves(made.state) == []


def test_what_it_over_unmaps_is_counted_by_byte() -> None:
    made = run("sweep", script(PAGES_16, f"dontneed {DATA:#x} 4k"))
    assert count(made, "over_unmapped_bytes") == 16 * 4096  # fifteen pages of data and one of code


def test_it_keeps_no_record_and_covers_everything() -> None:
    made = run("sweep", script(PAGES_16))
    assert (design_recorded(made.state), design_bytes(made.state)) == (0, 0)
    assert design_covers(made.state, 1, U64(DATA), U64(NESTED), U64(4096), 3, U64(1))
