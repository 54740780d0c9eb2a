"""VTCR_EL2 decoded: every granule, start level and size; what the architecture lets be walked."""

from __future__ import annotations

import pytest
from arch_lab import GRANULES, OUTPUT, decode, naive_legal, vtcr

from shadowmmu.arch.regime import (
    OA48,
    Regime,
    entry_size,
    first_block_level,
    granule_shift,
    level_shift,
    output_bits,
    stage2_start_level,
)
from shadowmmu.compiled import U64

# Worked by hand: granule, T0SZ, SL0, bits of PA -> start level, log2 of start entries, legal.
GOLDEN = [
    ("4K", 24, 1, 48, 1, 10, True),  # 40 bits: two tables side by side
    ("4K", 21, 1, 48, 1, 13, True),  # 43 bits: sixteen
    ("4K", 20, 1, 48, 1, 14, False),  # 44 bits would take thirty-two
    ("4K", 16, 2, 48, 0, 9, True),  # 48 bits
    ("4K", 24, 0, 48, 2, 19, False),
    ("4K", 32, 0, 48, 2, 11, True),
    ("4K", 32, 1, 48, 1, 2, True),
    ("4K", 33, 1, 48, 1, 1, True),
    ("4K", 34, 1, 48, 1, 0, False),  # one entry is no table
    ("4K", 32, 2, 48, 0, -7, False),
    ("4K", 24, 2, 40, 0, 1, False),  # start level 0 wants more than 42 bits
    ("4K", 22, 2, 42, 0, 3, False),
    ("4K", 20, 2, 44, 0, 5, True),
    ("4K", 16, 3, 48, 3, 36, False),
    ("4K", 23, 1, 40, 1, 11, False),  # input beyond the machine
    ("16K", 24, 1, 48, 2, 15, True),
    ("16K", 23, 1, 48, 2, 16, False),
    ("16K", 16, 2, 48, 1, 12, True),
    ("16K", 24, 2, 40, 1, 4, False),
    ("16K", 22, 2, 42, 1, 6, True),
    ("16K", 32, 0, 48, 3, 18, False),
    ("16K", 35, 0, 48, 3, 15, True),
    ("16K", 16, 3, 48, 0, 1, False),
    ("64K", 24, 1, 48, 2, 11, True),
    ("64K", 16, 2, 48, 1, 6, True),
    ("64K", 22, 2, 42, 1, 0, False),
    ("64K", 20, 2, 44, 1, 2, True),
    ("64K", 35, 0, 48, 3, 13, True),
    ("64K", 30, 0, 48, 3, 18, False),
    ("64K", 16, 3, 48, 0, -7, False),
]


@pytest.mark.parametrize(("granule", "t0sz", "sl0", "pa_bits", "level", "entries", "legal"), GOLDEN)
def test_start_levels_worked_by_hand(
    granule: str, t0sz: int, sl0: int, pa_bits: int, level: int, entries: int, legal: bool
) -> None:
    found = decode(vtcr(granule, t0sz, sl0), pa_bits)
    assert (found.start_level, found.entries_shift, found.legal) == (level, entries, legal)
    assert found.page_shift == GRANULES[granule]
    assert found.stride == found.page_shift - 3
    assert found.ia_bits == 64 - t0sz


@pytest.mark.parametrize("granule", GRANULES)
@pytest.mark.parametrize("pa_bits", [32, 36, 40, 42, 44, 48])
def test_every_vtcr_is_legal_exactly_when_the_manual_says(granule: str, pa_bits: int) -> None:
    wrong = [
        (t0sz, sl0)
        for t0sz in range(12, 44)
        for sl0 in range(4)
        if decode(vtcr(granule, t0sz, sl0), pa_bits).legal != naive_legal(granule, t0sz, sl0, pa_bits)
    ]
    assert wrong == []


@pytest.mark.parametrize(("ps", "bits"), OUTPUT.items())
def test_output_sizes(ps: int, bits: int) -> None:
    assert int(output_bits(U64(ps))) == bits
    assert decode(vtcr("4K", 24, 1, ps), 48).oa_bits == min(bits, 48)
    assert decode(vtcr("4K", 24, 1, ps), 40).oa_bits == min(bits, 40)


def test_reserved_codes() -> None:
    assert int(output_bits(U64(7))) == 52
    assert [int(granule_shift(U64(tg0))) for tg0 in range(4)] == [12, 16, 14, 16]


@pytest.mark.parametrize(
    ("granule", "t0sz", "sl0", "vttbr", "base"),
    [
        (
            "4K",
            24,
            1,
            0x0005_0000_4010_1001,
            0x4010_0000,
        ),  # two tables: 8K aligned; VMID and CnP are not address
        ("4K", 16, 2, 0x4010_1000, 0x4010_1000),
        ("4K", 21, 1, 0x4011_F000, 0x4011_0000),
        ("4K", 32, 1, 0x4010_1FFE, 0x4010_1FE0),  # four entries still take 32 bytes
        ("4K", 33, 1, 0x4010_1FFE, 0x4010_1FF0),  # two take 16
        ("64K", 20, 2, 0xFFFF_FFFF_FFFE, 0xFFFF_FFFF_FFE0),
        ("16K", 24, 1, 0x401F_FFFE, 0x401C_0000),
    ],
)
def test_base_of_the_start_tables(granule: str, t0sz: int, sl0: int, vttbr: int, base: int) -> None:
    assert decode(vtcr(granule, t0sz, sl0), 48, vttbr).base == base


@pytest.mark.parametrize(
    ("page_shift", "sizes", "first"),
    [(12, [39, 30, 21, 12], 1), (14, [47, 36, 25, 14], 2), (16, [55, 42, 29, 16], 2)],
)
def test_what_an_entry_covers(page_shift: int, sizes: list[int], first: int) -> None:
    r = Regime(page_shift, page_shift - 3, 0, 48, 48, OA48, first)
    assert [int(level_shift(r, level)) for level in range(4)] == sizes
    assert [int(entry_size(r, level)) for level in range(4)] == [1 << size for size in sizes]
    assert int(first_block_level(page_shift, OA48, 48)) == first


@pytest.mark.parametrize(
    ("page_shift", "ia_bits", "level"),
    [
        (12, 25, 2), (12, 32, 2), (12, 34, 2), (12, 35, 1),
        (12, 40, 1), (12, 43, 1), (12, 44, 0), (12, 48, 0),
        (14, 40, 2), (14, 41, 1), (14, 48, 1),
        (16, 40, 2), (16, 46, 2), (16, 47, 1), (16, 48, 1),
    ],
)  # fmt: skip
def test_linux_picks_the_fewest_levels(page_shift: int, ia_bits: int, level: int) -> None:
    assert int(stage2_start_level(page_shift, ia_bits)) == level
