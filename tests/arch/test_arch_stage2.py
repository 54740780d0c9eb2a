"""Stage-2 walks over tables built by hand, the faults they take, and what leaves permit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from arch_lab import ADDRESS, AF, FIRST_BLOCK, GRANULES, TABLE, VALID, Walked, decode, naive_walk, vtcr, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmmu.arch.fault import EXECUTE, READ, WRITE
from shadowmmu.arch.stage2 import STAGE2_LEAF, executable_el0, executable_el1, stage2_permits
from shadowmmu.compiled import U64

ROOT = 0x10_0000
PAGE_TYPE = VALID | TABLE | AF
BLOCK_TYPE = VALID | AF
MEM = np.zeros(1 << 19, np.uint64)
"""4M of physical memory: start tables from 1M up (16 of 64K fit), the others from 2M up, 64K apart."""
CONTIGUOUS = STAGE2_LEAF["Contiguous"].mask


def below(level: int) -> int:
    """Where the tests put their one table of ``level`` (below the start)."""
    return 0x20_0000 + level * 0x1_0000


def build(granule: str, t0sz: int, sl0: int, ipa: int, leaf: int, level: int, ps: int = 5) -> Walked:
    """The walk for ``ipa`` over tables that lead to ``leaf`` at ``level``."""
    found = decode(vtcr(granule, t0sz, sl0, ps), 48, ROOT)
    table, entries = found.base, 1 << found.entries_shift
    MEM[:] = 0
    for at in range(found.start_level, level + 1):
        index = (ipa >> (found.page_shift + found.stride * (3 - at))) % entries
        MEM[table // 8 + index] = leaf if at == level else below(at + 1) | VALID | TABLE
        table, entries = below(at + 1), 1 << found.stride
    return walk(MEM, found, ROOT, ipa)


LEAVES = [
    ("4K", 16, 2, 3, 12),
    ("4K", 16, 2, 2, 21),
    ("4K", 16, 2, 1, 30),
    ("4K", 24, 1, 3, 12),
    ("4K", 24, 1, 2, 21),
    ("4K", 24, 1, 1, 30),
    ("4K", 21, 1, 3, 12),
    ("4K", 32, 0, 3, 12),
    ("4K", 32, 0, 2, 21),
    ("16K", 16, 2, 3, 14),
    ("16K", 24, 1, 2, 25),
    ("16K", 35, 0, 3, 14),
    ("64K", 16, 2, 2, 29),
    ("64K", 24, 1, 3, 16),
    ("64K", 35, 0, 3, 16),
]
"""granule, T0SZ, SL0, level of the leaf, log2 of its size: every start level, concatenated roots too."""


@pytest.mark.parametrize(("granule", "t0sz", "sl0", "level", "size"), LEAVES)
def test_leaves_at_every_level(granule: str, t0sz: int, sl0: int, level: int, size: int) -> None:
    pa = 0x9876_C000_0000 >> size << size
    leaf = pa | (PAGE_TYPE if level == 3 else BLOCK_TYPE)
    top = (1 << (64 - t0sz)) - 1
    for ipa in (0x8, top & ~0x7, top // 3):
        found = build(granule, t0sz, sl0, ipa, leaf, level)
        assert found[:4] == ("none", level, pa | (ipa & ((1 << size) - 1)), leaf)


def test_the_second_of_two_concatenated_tables_is_used() -> None:
    found = build("4K", 24, 1, 0x80_0000_0000, 0x8000_0000 | BLOCK_TYPE, 1)
    assert (found.pa, found.at) == (0x8000_0000, ROOT + 4096)


@pytest.mark.parametrize("level", [2, 3])
def test_the_contiguous_hint_changes_no_address(level: int) -> None:
    leaf = 0x8000_0000 | (PAGE_TYPE if level == 3 else BLOCK_TYPE)
    plain, hinted = (build("4K", 24, 1, 0x123_4568, leaf | hint, level) for hint in (0, CONTIGUOUS))
    assert plain.pa == hinted.pa
    assert hinted.descriptor == plain.descriptor | CONTIGUOUS


@pytest.mark.parametrize("ps", range(6))
def test_address_size_faults(ps: int) -> None:
    oa_bits = [32, 36, 40, 42, 44, 48][ps]
    inside = 1 << (oa_bits - 1)
    assert build("4K", 24, 1, 0, inside | PAGE_TYPE, 3, ps).fault == "none"
    if oa_bits < 48:
        outside = 1 << oa_bits
        assert build("4K", 24, 1, 0, outside | PAGE_TYPE, 3, ps)[:2] == ("address size", 3)
        assert build("4K", 24, 1, 0, outside | BLOCK_TYPE, 1, ps)[:2] == ("address size", 1)
        assert build("4K", 24, 1, 0, outside | VALID | TABLE, 2, ps)[:2] == ("address size", 2)


def test_start_table_beyond_the_output_size() -> None:
    found = decode(vtcr("4K", 24, 1, 0), 48)
    assert walk(MEM, found, 1 << 32, 0)[:2] == ("address size", 0)


@pytest.mark.parametrize(("t0sz", "sl0"), [(24, 1), (16, 2), (32, 0)])
def test_input_beyond_t0sz_is_a_translation_fault_at_level_0(t0sz: int, sl0: int) -> None:
    for ipa in (1 << (64 - t0sz), 1 << 51):
        found = build("4K", t0sz, sl0, ipa, 0x8000_0000 | PAGE_TYPE, 3)
        assert found[:2] == ("translation", 0)


@pytest.mark.parametrize("level", range(4))
def test_invalid_descriptors(level: int) -> None:
    ignored = 0xFFFF_FFFF_FFFF_FFFE
    assert build("4K", 16, 2, 0x1000, ignored, level)[:2] == ("translation", level)


@pytest.mark.parametrize(
    ("granule", "t0sz", "sl0", "level"),
    [
        ("4K", 16, 2, 0),
        ("4K", 16, 2, 3),
        ("16K", 16, 2, 1),
        ("16K", 16, 2, 3),
        ("64K", 16, 2, 1),
        ("64K", 35, 0, 3),
    ],
)
def test_a_block_where_none_may_stand(granule: str, t0sz: int, sl0: int, level: int) -> None:
    found = build(granule, t0sz, sl0, 0x1000, 0x8000_0000 | BLOCK_TYPE, level)
    assert found[:2] == ("translation", level)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_leaf_without_access_flag(level: int) -> None:
    leaf = 0x8000_0000 | (PAGE_TYPE if level == 3 else BLOCK_TYPE)
    assert build("4K", 24, 1, 0x1000, leaf & ~AF, level)[:2] == ("access flag", level)


def test_faults_come_in_the_order_of_the_manual() -> None:
    beyond = 1 << 40
    order = ["translation", "address size", "access flag", "none"]
    leaves = [0, beyond | VALID | TABLE, 0x8000_0000 | VALID | TABLE, 0x8000_0000 | PAGE_TYPE]
    assert [build("4K", 24, 1, 0, leaf, 3, 2).fault for leaf in leaves] == order


def leaf_with(xn: int = 0, r: int = 0, w: int = 0) -> np.uint64:
    return U64(STAGE2_LEAF.encode(VALID=1, PAGE=1, AF=1, XN=xn, S2AP_R=r, S2AP_W=w))


@pytest.mark.parametrize(
    ("xn", "el1", "el0"), [(0, True, True), (1, False, True), (2, False, False), (3, True, False)]
)
def test_execute_never(xn: int, el1: bool, el0: bool) -> None:
    leaf = leaf_with(xn)
    assert (bool(executable_el1(leaf)), bool(executable_el0(leaf))) == (el1, el0)
    assert bool(stage2_permits(leaf, EXECUTE)) == el1


@pytest.mark.parametrize(("r", "w"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_data_access_permissions(r: int, w: int) -> None:
    leaf = leaf_with(2, r, w)
    assert (bool(stage2_permits(leaf, READ)), bool(stage2_permits(leaf, WRITE))) == (bool(r), bool(w))


REGIMES = [(granule, t0sz, sl0) for granule in GRANULES for t0sz in range(16, 40) for sl0 in range(3)]
LEGAL = [found for found in REGIMES if decode(vtcr(*found)).legal]


@st.composite
def walks(draw: st.DrawFn) -> tuple[str, int, int, int, int, dict[int, int]]:
    """A regime, an address, and a path of tables for it that may go wrong anywhere."""
    granule, t0sz, sl0 = draw(st.sampled_from(LEGAL))
    ps = draw(st.sampled_from([0, 1, 2, 5, 5, 5]))
    found = decode(vtcr(granule, t0sz, sl0, ps), 48, ROOT)
    page = 2 ** GRANULES[granule]
    ipa = draw(st.integers(0, 2**found.ia_bits - 1))
    words, table, entries = {}, found.base, 1 << found.entries_shift
    levels = range(found.start_level, 4)
    for level, following in pairwise([*levels, 4]):
        at = table + 8 * (ipa // (page * (page // 8) ** (3 - level)) % entries)
        what = draw(st.sampled_from(["table", "table", "table", "far", "leaf", "anything"]))
        word = draw(st.integers(0, 2**64 - 1))
        if level == 3:
            words[at] = word if what == "anything" else word | VALID | TABLE
        elif what == "table":
            words[at] = word & ~ADDRESS | below(following) | VALID | TABLE
        elif what == "far" and found.oa_bits < 48:
            words[at] = 1 << draw(st.integers(found.oa_bits, 47)) | VALID | TABLE
        else:
            words[at] = word & ~TABLE if what == "leaf" else word & ~VALID
        table, entries = below(following), page // 8
    return granule, t0sz, sl0, ps, ipa, words


@settings(max_examples=5 * settings().max_examples)
@given(case=walks(), nearby=st.integers(0, 63))
def test_walks_agree_with_a_naive_walker(
    case: tuple[str, int, int, int, int, dict[int, int]], nearby: int
) -> None:
    granule, t0sz, sl0, ps, ipa, words = case
    found = decode(vtcr(granule, t0sz, sl0, ps), 48, ROOT)
    MEM[:] = 0
    for at, word in words.items():
        MEM[at // 8] = word
    for query in (ipa, ipa ^ (1 << nearby)):
        expected = naive_walk(
            words, granule, found.start_level, found.ia_bits, found.oa_bits, found.base, query
        )
        assert walk(MEM, found, ROOT, query) == expected


def test_regimes_cover_every_granule_and_start_level() -> None:
    seen = {(granule, decode(vtcr(granule, t0sz, sl0)).start_level) for granule, t0sz, sl0 in LEGAL}
    assert seen == {("4K", 0), ("4K", 1), ("4K", 2), ("16K", 1), ("16K", 2), ("16K", 3)} | {
        ("64K", 1),
        ("64K", 2),
        ("64K", 3),
    }
    assert FIRST_BLOCK.keys() == GRANULES.keys()
