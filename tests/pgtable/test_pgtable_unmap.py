"""Unmapping: chunks, invalidations, what is read, tables freed, blocks that stick out."""

from __future__ import annotations

import pytest
from pgtable_lab import BLOCK, DATA, GIGA, PAGE, SIZE, Lab, Op, lab

from shadowmmu.machine.ghost import BY_GUEST
from shadowmmu.machine.log import RANGE
from shadowmmu.machine.state import R_FREE_TOP, R_LOG_TOP


@pytest.mark.parametrize(("bits", "chunks"), [(40, 1024), (48, 262_144)])
def test_a_sweep_of_an_empty_table_reads_and_invalidates_every_chunk(bits: int, chunks: int) -> None:
    machine = lab((40, bits))
    counted = machine.counts(machine.unmap_range, 1, 0, 1 << bits)
    assert counted == {
        "chunks": chunks,
        "chunks_shadow": chunks,
        "descriptors_read": chunks,
        "tlbi_range": chunks,
        "tlbi_range_shadow": chunks,
        "tlbi_stage1": chunks,
        "dsbs": 3 * chunks,
    }


def test_chunks_of_the_canonical_mmu_are_no_shadow_chunks() -> None:
    machine = lab()
    counted = machine.counts(machine.unmap_range, 0, 0, 4 * GIGA)
    assert (counted["chunks"], counted["tlbi_range"]) == (4, 4)
    assert "chunks_shadow" not in counted
    assert "tlbi_range_shadow" not in counted


@pytest.mark.parametrize(
    ("start", "end", "chunks"),
    [(0, GIGA, 1), (GIGA - PAGE, GIGA + PAGE, 2), (PAGE, GIGA, 1), (0, 3 * GIGA + PAGE, 4), (PAGE, PAGE, 0)],
)
def test_chunks_end_on_multiples_of_the_largest_block(start: int, end: int, chunks: int) -> None:
    machine = lab()
    counted = machine.counts(machine.unmap_range, 1, start, end, True)
    assert counted.get("chunks", 0) == chunks
    assert counted.get("reschedules", 0) == max(0, chunks - 1), "only between chunks"
    assert "reschedules" not in machine.counts(machine.unmap_range, 1, start, end, False)


@pytest.mark.parametrize(
    ("pages", "ranges"),
    [(1, 1), (2_097_151, 1), (2_097_152, 1), (2_097_153, 2), (4 * 2_097_152, 4), (4 * 2_097_152 + 1, 5)],
)
def test_one_range_tlbi_covers_at_most_2097152_pages(pages: int, ranges: int) -> None:
    machine = lab()
    counted = machine.counts(machine.unmap, 1, 0, pages * PAGE)
    assert (counted["tlbi_range"], counted["dsbs"]) == (ranges, 3 * ranges)


def test_without_range_tlbi_the_vmid_is_flushed_for_a_table_and_each_leaf_goes_alone() -> None:
    machine = lab(tlbirange=False)
    for page in range(3):
        machine.map(1, page * PAGE)
    counted = machine.counts(machine.unmap, 1, 0, GIGA)
    assert counted["tlbi_ipa"] == 3 + counted["tables_freed"] == 3 + 3
    assert not {"tlbi_range", "tlbi_vmid"} & set(counted)
    for page in range(3):
        machine.map(1, page * PAGE)
    counted = machine.counts(machine.map, 1, 0, 2)
    assert (counted["tlbi_vmid"], counted["dsbs"]) == (1, 2)


def test_without_fwb_each_leaf_is_flushed_alone() -> None:
    machine = lab(fwb=False)
    for page in range(5):
        machine.map(1, page * PAGE)
    counted = machine.counts(machine.unmap, 1, PAGE, 4 * PAGE)
    assert (counted["tlbi_ipa"], counted["tlbi_stage1"], counted["dsbs"]) == (3, 3, 9)
    assert "tlbi_range" not in counted


@pytest.mark.parametrize(("bits", "levels"), [(40, 3), (48, 4)])
def test_one_page_of_a_full_table_is_found_in_a_walk(bits: int, levels: int) -> None:
    machine = lab((40, bits))
    for page in range(512):
        machine.map(1, page * PAGE)
    counted = machine.counts(machine.unmap, 1, 77 * PAGE, 78 * PAGE)
    assert counted["descriptors_read"] <= levels + 1
    assert counted["descriptors_written"] == 1
    assert "tables_freed" not in counted
    counted = machine.counts(machine.unmap, 1, 0, BLOCK)
    assert counted["descriptors_read"] == levels - 1 + 512, "each entry of the range once"
    assert counted["descriptors_written"] == 511 + levels - 1
    assert counted["tables_freed"] == counted["tlbi_ipa"] == levels - 1
    assert machine.check()[1] == {}


@pytest.mark.parametrize("level", [1, 2])
def test_a_block_that_sticks_out_of_the_range_goes_whole(level: int) -> None:
    machine = lab()
    machine.map(1, 0, level)
    machine.map(1, SIZE[level], level)
    machine.map(1, 2 * SIZE[level], level)
    assert machine.unmap(1, 2 * SIZE[level] - PAGE, 2 * SIZE[level] + PAGE) == 2
    assert list(machine.check()[1]) == [0]


def test_the_last_leaf_frees_every_table_up_to_the_root() -> None:
    machine = lab()
    addresses = [0, PAGE, BLOCK, GIGA, 512 * GIGA, (1 << 48) - PAGE]
    for ipa in addresses:
        machine.map(1, ipa)
    roots = 2 + 1
    assert machine.tables_in_use() == roots + 3 * 3 + 1 + 2
    for ipa in addresses:
        assert machine.unmap(1, ipa, ipa + PAGE) == 1
        machine.check()
    assert machine.tables_in_use() == roots
    assert machine.state.regs[R_FREE_TOP] == 12


def test_freed_tables_are_used_again() -> None:
    machine = lab()
    first = machine.map(1, 0)
    machine.unmap(1, 0, PAGE)
    machine.map(1, 0)
    machine.map(0, GIGA)
    machine.check()
    assert machine.state.regs[R_FREE_TOP] == 0
    assert machine.tables_in_use() == 3 + 3 + 2
    assert first


def test_clearing_by_index_reads_nothing() -> None:
    machine = lab()
    word = machine.map(1, GIGA, 2)
    other = machine.map(1, GIGA + BLOCK + PAGE)
    counted = machine.counts(machine.do, Op.CLEAR_LEAF, 0, other)
    assert counted == {
        "descriptors_written": 2,
        "leaves_removed": 1,
        "tables_freed": 1,
        "tlbi_ipa": 1,
        "tlbi_stage1": 1,
        "dsbs": 3,
    }
    assert machine.do(Op.CLEAR_LEAF, 0, word) == [1, GIGA, BLOCK, 2]
    assert machine.tables_in_use() == 3
    machine.check()


@pytest.mark.parametrize("ipa", [0, 512 * GIGA, 1023 * GIGA])
def test_leaves_in_concatenated_roots(ipa: int) -> None:
    machine = lab((40, 40))
    word = machine.map(1, ipa, 1)
    assert machine.tables_in_use() == 4, "a leaf of the root takes no table"
    assert machine.do(Op.LEAF_AT, 0, word) == [1, ipa, GIGA, 1]
    machine.check()
    assert machine.do(Op.CLEAR_LEAF, 0, word)[1] == ipa
    assert machine.tables_in_use() == 4, "nor does clearing it free one"
    machine.map(1, ipa, 1)
    assert machine.unmap(1, ipa + BLOCK, ipa + BLOCK + PAGE) == 1


def test_a_range_is_logged_once_whatever_its_chunks() -> None:
    machine = lab(logged=True)
    machine.unmap_range(1, GIGA, 4 * GIGA)
    assert machine.state.regs[R_LOG_TOP] == 1
    assert machine.state.log[0, :5].tolist() == [RANGE, 0, GIGA, 3 * GIGA, 1]


def buried(machine: Lab) -> list[int]:
    """The nested addresses whose leaf the judge knows to be dead, all of MMU 1."""
    graves = machine.state.graves[machine.state.graves != 0].tolist()
    assert all(grave >> 48 == 1 and grave & 0xF == BY_GUEST for grave in graves)
    return sorted((grave >> 4 & ~(1 << 44)) * PAGE for grave in graves)


def test_the_judge_hears_of_each_leaf_by_its_first_address_whatever_takes_it() -> None:
    machine = lab()
    for ipa in (0, 2 * GIGA, 4 * GIGA):
        machine.map(1, ipa, 1)
    word = machine.map(1, 6 * GIGA + BLOCK, 2)
    for page in (3, 4):
        machine.map(1, 8 * GIGA + page * PAGE)
    machine.map(0, 10 * GIGA)
    assert buried(machine) == []
    machine.unmap(1, GIGA - PAGE, GIGA)
    machine.map(1, 2 * GIGA + BLOCK + PAGE)
    machine.map(1, 4 * GIGA, 1, pa=DATA)
    machine.do(Op.CLEAR_LEAF, 0, word)
    machine.map(1, 8 * GIGA, 2)
    machine.unmap(0, 10 * GIGA, 11 * GIGA)
    gone = [0, 2 * GIGA, 4 * GIGA, 6 * GIGA + BLOCK, 8 * GIGA + 3 * PAGE, 8 * GIGA + 4 * PAGE]
    assert buried(machine) == gone, "and of none of the canonical MMU"
