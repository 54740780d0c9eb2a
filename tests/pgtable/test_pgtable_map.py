"""Mapping: encodings, break-before-make, what is left alone, what it reads."""

from __future__ import annotations

import pytest
from pgtable_lab import BLOCK, DATA, GIGA, PAGE, PX, RW, RWX, RX, SIZE, UX, Op, R, lab

PA = 0x8000_0000
TAG = 55


@pytest.mark.parametrize(
    ("level", "prot", "fwb", "descriptor"),
    [
        (3, RWX | 3 << TAG, True, 0x0180_0000_8000_07DB),
        (2, RWX | 2 << TAG, True, 0x0100_0000_8000_07D9),
        (3, RWX, False, 0x0000_0000_8000_07FF),
        (3, RW | 3 << TAG, True, 0x01C0_0000_8000_07DB),
        (3, RX, False, 0x0000_0000_8000_077F),
        (3, R | PX, True, 0x0060_0000_8000_075B),
        (3, R | UX, True, 0x0020_0000_8000_075B),
        (1, RWX, True, 0x0000_0000_8000_07D9),
    ],
)
def test_encodings_seen_in_linux(level: int, prot: int, fwb: bool, descriptor: int) -> None:
    machine = lab(fwb=fwb)
    word = machine.map(1, 0x4000_0000, level, PA, prot)
    assert machine.entry(1, 0x4000_0000) == (word, level, descriptor)


@pytest.mark.parametrize(("bits", "levels"), [(32, 2), (40, 3), (43, 3), (44, 4), (48, 4)])
def test_a_page_takes_one_table_a_level(bits: int, levels: int) -> None:
    machine = lab((40, bits))
    counted = machine.counts(machine.map, 1, (1 << bits) - PAGE)
    assert counted == {
        "descriptors_read": levels,
        "descriptors_written": levels,
        "tables_allocated": levels - 1,
        "leaves_mapped": 1,
    }
    assert machine.counts(machine.map, 1, (1 << bits) - 2 * PAGE) == {
        "descriptors_read": levels,
        "descriptors_written": 1,
        "leaves_mapped": 1,
    }
    machine.check()


def test_canonical_leaves_are_not_counted_as_shadow_leaves() -> None:
    machine = lab()
    assert "leaves_mapped" not in machine.counts(machine.map, 0, 0)
    assert "leaves_removed" not in machine.counts(machine.unmap, 0, 0, PAGE)


@pytest.mark.parametrize("prot", [RWX, RX, R, RW, R | UX])
def test_other_permissions_alone_leave_the_leaf_as_it_is(prot: int) -> None:
    machine = lab()
    machine.map(1, PAGE, prot=RX)
    before = machine.entry(1, PAGE)
    assert machine.counts(machine.map, 1, PAGE, prot=prot) == {"descriptors_read": 4}
    assert machine.map(1, PAGE, prot=prot) == 0
    assert machine.entry(1, PAGE) == before


def test_another_guest_level_breaks_the_leaf() -> None:
    machine = lab()
    machine.map(1, PAGE, prot=RWX | 2 << TAG)
    counted = machine.counts(machine.map, 1, PAGE, prot=RWX | 3 << TAG)
    assert counted["tlbi_ipa"] == 1
    assert machine.entry(1, PAGE)[2] >> TAG == 3


def test_breaking_a_leaf_takes_one_tlbi_by_ipa() -> None:
    machine = lab()
    machine.map(1, PAGE)
    counted = machine.counts(machine.map, 1, PAGE, pa=DATA)
    assert counted == {
        "descriptors_read": 4,
        "descriptors_written": 2,
        "leaves_removed": 1,
        "leaves_mapped": 1,
        "tlbi_ipa": 1,
        "tlbi_stage1": 1,
        "dsbs": 3,
    }
    machine.check()


@pytest.mark.parametrize(("level", "inner"), [(2, 3), (1, 3), (1, 2)])
def test_a_page_inside_a_block_drops_the_rest_of_it(level: int, inner: int) -> None:
    machine = lab()
    machine.map(1, 0, level, DATA)
    inside = SIZE[level] - SIZE[inner]
    counted = machine.counts(machine.map, 1, inside, inner)
    assert (counted["tlbi_ipa"], counted["tables_allocated"]) == (1, inner - level)
    assert "tlbi_range" not in counted
    assert list(machine.check()[1]) == [inside]


@pytest.mark.parametrize("tlbirange", [True, False])
def test_a_block_over_a_table_frees_it_with_one_invalidation(tlbirange: bool) -> None:
    machine = lab(tlbirange=tlbirange)
    for page in range(4):
        machine.map(1, page * PAGE)
        machine.map(1, 5 * BLOCK + page * PAGE)
    counted = machine.counts(machine.map, 1, 0, 1)
    assert (counted["leaves_removed"], counted["tables_freed"]) == (8, 3)
    assert counted["tlbi_range" if tlbirange else "tlbi_vmid"] == 1
    assert "tlbi_ipa" not in counted
    assert list(machine.check()[1]) == [0]
    assert machine.entry(1, GIGA - PAGE)[1] == 1


def test_a_block_beside_a_table_leaves_it_alone() -> None:
    machine = lab()
    machine.map(1, PAGE)
    counted = machine.counts(machine.map, 1, BLOCK, 2)
    assert not {name for name in counted if name.startswith("tlbi")}
    assert list(machine.check()[1]) == [PAGE, BLOCK]


def test_mmus_do_not_see_each_other() -> None:
    machine = lab((40, 40, 48))
    for mmu in range(3):
        machine.map(mmu, 7 * PAGE, pa=DATA + mmu * PAGE)
    machine.unmap(1, 0, GIGA)
    assert [list(leaves) for leaves in machine.check().values()] == [[7 * PAGE], [], [7 * PAGE]]


@pytest.mark.parametrize(("page_shift", "block_shift"), [(14, 25), (16, 29)])
def test_other_granules(page_shift: int, block_shift: int) -> None:
    machine = lab((40, 48), page_shift=page_shift, frames=64)
    page, block = 1 << page_shift, 1 << block_shift
    machine.map(1, block, 2, 1 << 36)
    machine.map(1, 3 * block - page)
    machine.map(0, page)
    found = machine.check()
    assert list(found[1]) == [block, 3 * block - page]
    assert machine.do(Op.CONTEXT, 1)[1] == block
    assert machine.unmap_range(1, block + page, 3 * block) == 2
    assert machine.check()[1] == {}
