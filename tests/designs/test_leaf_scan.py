"""``leaf_scan``: no record, every leaf read, those taken whose frame goes."""

from __future__ import annotations

import pytest
from design_lab import (
    BLOCK,
    DATA,
    NESTED,
    PAGES_16,
    cost,
    count,
    executor,
    judged,
    last_event,
    leaf_of,
    script,
)

from shadowmmu.designs.dispatch import design_bytes, design_recorded
from shadowmmu.designs.outputs import MOST_RUNS
from shadowmmu.designs.reverse_table_check import shadow_leaves

DESIGN = "leaf_scan"
SECOND = f"s2 new 2\ncode\nmap {NESTED:#x} {DATA:#x} 16k 3 rw\ntouch w {NESTED:#x} 4096 4"
BLOCK_LEAF = f"map {NESTED:#x} {DATA:#x} 2M 2 rw\ntouch w {NESTED:#x}"


def test_it_takes_what_the_host_takes_from_every_mmu_and_nothing_else() -> None:
    made = executor(DESIGN, script(PAGES_16, SECOND, f"dontneed {DATA + 0x1000:#x} 8k"))
    names = (
        "leaves_removed",
        "over_unmapped_leaves",
        "shadow_mmus_visited",
        "chunks_shadow",
        "tlbi_range_shadow",
    )
    assert cost(made, last_event(made), *names) == [4, 0, 2, 0, 4]
    assert (design_recorded(made.state), design_bytes(made.state)) == (0, 0)


def test_it_reads_every_entry_of_the_tables_each_time() -> None:
    made = executor(DESIGN, script(PAGES_16, f"dontneed {DATA:#x} 4k"))
    (scanned,) = cost(made, last_event(made), "descriptors_scanned")
    tables = 2 + 2 + 2  # concatenated roots, and two of each level below for data and code
    assert tables * 512 <= scanned <= tables * 512 + 16
    nothing = executor(DESIGN, script(PAGES_16, f"dontneed {DATA + 4 * BLOCK:#x} 4k"))
    assert cost(nothing, last_event(nothing), "shadow_mmus_visited", "leaves_removed") == [0, 0]


def test_a_table_that_becomes_empty_goes_while_it_is_read() -> None:
    made, violation = judged(DESIGN, script(PAGES_16, f"dontneed {DATA:#x} 64k"))
    assert violation is None
    assert [leaf.nested_ipa for leaf in shadow_leaves(made.state)] == [0x1_0000]


def test_a_block_goes_with_any_page_in_it() -> None:
    made, violation = judged(DESIGN, script(BLOCK_LEAF, f"punch {DATA + 0x5000:#x} 4k", backing="thp"))
    assert violation is None
    assert leaf_of(made, NESTED) is None


@pytest.mark.parametrize(("pieces", "fallbacks"), [(MOST_RUNS - 1, 0), (MOST_RUNS + 1, 1)])
def test_more_pieces_than_there_is_room_for_are_swept(pieces: int, fallbacks: int) -> None:
    scattered = "\n".join(f"write {DATA + 4 * BLOCK + k * 0x2000:#x} 4k" for k in reversed(range(pieces)))
    made, violation = judged(DESIGN, script(PAGES_16, scattered, f"dontneed {DATA + 4 * BLOCK:#x} 2M"))
    assert violation is None
    assert count(made, "fallbacks_vm") == fallbacks
    assert (leaf_of(made, NESTED) is None) == bool(fallbacks)
