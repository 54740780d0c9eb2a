"""Where Linux 7.3.4 does not answer AT as the architecture does: both answers, by rows of ``docs/at.md``."""

from __future__ import annotations

from random import Random

import pytest
from at_lab import DATA, TABLES, Guest, architecture, emulated

from shadowmmu.arch.answer import A_FAULT, A_PAR, A_TARGET
from shadowmmu.arch.fault import EXTERNAL_WALK

TCR = 0x5_8080_3519
SCTLR = 0x30D0_0805
TABLE, PAGE_TYPE, USER, READ_ONLY, ISH, AF = 3, 3, 1 << 6, 1 << 7, 3 << 8, 1 << 10
NS, RES1 = 1 << 9, 1 << 11
BITS = NS | RES1
S2_WB, S2_ALL = 0xF << 2, 3 << 6
LEAF = DATA | PAGE_TYPE | USER | ISH | AF
CANONICAL = 0x4100_0000


def plain(
    leaf: int = LEAF, mair: int = 0xFF, data: int = S2_WB | S2_ALL | ISH | AF, **registers: int
) -> Guest:
    """L2 with 39 bits of VA in three tables; its VA 0 is ``leaf``, whose page has stage-2 bits ``data``."""
    g = Guest(Random(0))
    g.registers = {"ttbr0": TABLES, "ttbr1": TABLES, "tcr": TCR, "sctlr": SCTLR, "mair": mair} | registers
    for page in range(3):
        g.map_page(TABLES + 4096 * page, CANONICAL + 4096 * page, S2_WB | S2_ALL | ISH | AF)
    g.store(TABLES, TABLES + 0x1000 | TABLE)
    g.store(TABLES + 0x1000, TABLES + 0x2000 | TABLE)
    g.store(TABLES + 0x2000, leaf)
    g.map_page(DATA, 0x4110_0000, data)
    return g


def both(
    g: Guest, operation: str, va: int = 0, *, touched: bool = False, pan: bool = False
) -> tuple[int, int]:
    """PAR_EL1 of Linux and of the architecture."""
    (row,) = emulated(g, [(operation, va)], pan, touched)
    return row["par"], int(architecture(g, [(operation, va)], pan)[0][A_PAR])


def attribute(par: int) -> int:
    return par >> 56


def shareability(par: int) -> int:
    return par >> 7 & 3


def test_stage_2_faults_on_a_walk_carry_the_level_of_stage_1() -> None:
    g = plain()
    g.words[CANONICAL] = 0xA000_0000 | TABLE
    assert both(g, "s1e1r") == (0xB0D, 0xB0D)
    g.words[CANONICAL] = 0x8010_0000 | TABLE
    assert both(g, "s1e1r") == (0xB0D, 0xB0F)


def test_an_address_that_is_not_sign_extended_is_an_address_size_fault() -> None:
    assert both(plain(), "s1e1r", 1 << 60) == (0x801, 0x809)
    assert both(plain(tcr=TCR | 1 << 37), "s1e1r", 1 << 60)[0] & 1 == 0


@pytest.mark.parametrize(
    ("registers", "operation", "va"),
    [
        ({}, "s1e1r", 1 << 50),
        ({"tcr": TCR | 1 << 7}, "s1e1r", 0),
        ({"tcr": TCR | 1 << 55}, "s1e0r", 0),
        ({"tcr": TCR & ~63 | 40}, "s1e1r", 0),
    ],
)
def test_an_address_that_is_not_walked_faults_at_the_start_level(
    registers: dict[str, int], operation: str, va: int
) -> None:
    start = 3 - (64 - (registers.get("tcr", TCR) & 63) - 1 - 12) // 9
    assert both(plain(**registers), operation, va) == (0x801 | (4 + start) << 1, 0x809)


@pytest.mark.parametrize(
    ("t0sz", "status"),
    # 64 bits start at level -2, 52 bits at -1. 4 bits: (4 - 1 - 12) / 9 in 64 bits without a sign is
    # 0x1c71c71c71c71c70, 3 less that in 32 bits with one 0x8e38e393, so negative: 0x2c + 0x13 in 6 bits.
    [(0, 0x2C - 2), (12, 0x2C - 1), (60, 0x3F)],
)
def test_start_levels_outside_0_to_3(t0sz: int, status: int) -> None:
    assert both(plain(tcr=TCR & ~63 | t0sz), "s1e1r") == (0x801 | status << 1, 0x809)


def test_a_table_outside_memory_is_reported_instead_of_taken() -> None:
    g = plain()
    g.map_page(TABLES + 0x1000, 0x5000_0000, S2_WB | S2_ALL | ISH | AF)
    answer = architecture(g, [("s1e1r", 0)], False)[0]
    assert (int(answer[A_TARGET]), int(answer[A_FAULT]) & 0xFF) == (2, EXTERNAL_WALK)
    assert both(g, "s1e1r")[0] == 0x801 | (0x14 + 2) << 1


def test_bits_9_and_11_of_a_success() -> None:
    g = plain()
    slow, owed = both(g, "s1e1r")
    assert (slow & BITS, owed & BITS) == (RES1, BITS)
    assert both(g, "s1e1r", touched=True)[0] == owed
    two, owed = both(g, "s12e1r")
    assert (two & BITS, owed & BITS) == (0, BITS)
    assert two | BITS == owed


def test_the_cpu_is_asked_without_pan() -> None:
    assert both(plain(), "s1e1rp", pan=True) == (0x81F, 0x81F)
    fast, owed = both(plain(), "s1e1rp", pan=True, touched=True)
    assert (fast & 1, owed) == (0, 0x81F)


def test_the_walk_ignores_ndirty() -> None:
    indirect = {"tcr2": 2, "pir": 0x5, "pire0": 0}
    linux, owed = both(plain(LEAF & ~USER | READ_ONLY, **indirect), "s1e1w")
    assert (linux & 1, owed) == (0, 0x81F)
    assert both(plain(LEAF & ~USER | READ_ONLY, **indirect), "s1e1w", touched=True)[0] == 0x81F


def test_access_flags_are_set_and_stage_2_has_to_let_them() -> None:
    managed = TCR | 1 << 39
    linux, owed = both(plain(LEAF & ~AF, tcr=managed), "s1e1r")
    assert linux & ~NS == owed & ~NS
    g = plain(LEAF & ~AF, tcr=managed)
    g.map_page(TABLES + 0x2000, CANONICAL + 0x2000, S2_WB | 1 << 6 | ISH | AF)
    linux, owed = both(g, "s1e1r")
    assert (linux, owed & 1) == (0xB1F, 0)


def test_a_contiguous_leaf_passes_more_of_the_address() -> None:
    g = plain(LEAF | 1 << 52)
    g.store(TABLES + 0x2008, LEAF | 1 << 52)  # should lead to DATA + 0x1000
    linux, owed = both(g, "s1e1r", 0x1000)
    assert (linux >> 12 << 12 & 0xFFFF_FFFF, owed >> 12 << 12 & 0xFFFF_FFFF) == (DATA + 0x1000, DATA)


def test_nested_addresses_beyond_l1s_stage_2_walk_as_their_low_bits() -> None:
    linux, owed = both(plain(LEAF | 1 << 39), "s12e1r")
    assert (linux & 0xFFFF_F000, owed) == (0x4110_0000, 0xA09)


@pytest.mark.parametrize("hcr", [1 << 12, 1 << 27])
def test_the_cpu_does_not_see_l1s_dc_and_tge(hcr: int) -> None:
    """With either of them L2's stage 1 is off (E2H is 0): the walk knows, the CPU is not told."""
    g = plain()
    g.virtual = {"HCR_EL2": 1 | hcr}
    linux, owed = both(g, "s1e1r", 0x123)
    assert linux == owed & ~NS
    assert owed & 0xFFFF_FFFF_F000 == 0
    fast, _ = both(g, "s1e1r", 0x123, touched=True)
    assert fast & 0xFFFF_FFFF_F000 == DATA


def test_the_cpu_sees_tcr2_whatever_hcrx_says() -> None:
    g = plain(tcr2=2, pir=0, pire0=0)
    g.virtual = {"HCRX_EL2": 0}
    linux, owed = both(g, "s1e1r")
    assert linux == owed & ~NS
    assert both(g, "s1e1r", touched=True)[0] == 0x81F


def test_protected_walks_are_not_protected() -> None:
    g = plain()
    g.virtual = {"HCR_EL2": 1 << 34 | 1 | 1 << 2}
    g.map_page(TABLES + 0x1000, CANONICAL + 0x1000, S2_ALL | AF)  # Device memory
    linux, owed = both(g, "s1e1r")
    assert (linux & 1, owed) == (0, 0xB1F)


@pytest.mark.parametrize(
    ("first", "memattr", "linux", "owed"),
    [
        (0x77, 0xA, 0x77, 0x33),  # transient Write-Back under Write-Through
        (0x33, 0xF, 0x33, 0x33),
        (0x33, 0xA, 0x33, 0x33),
        (0x77, 0xF, 0x77, 0x77),
        (0x77, 0x5, 0x44, 0x44),
        (0xEE, 0xA, 0xAA, 0xAA),
        (0xF4, 0xF, 0xF4, 0xF4),
        (0xFF, 0x4, 0xFF, 0x4B),  # reserved: Write-Back in Linux, something else here
        (0xFF, 0x8, 0x44, 0xBB),
        (0xFF, 0x2, 0x08, 0x08),
        (0x04, 0x1, 0x04, 0x04),
        (0x04, 0xF, 0x04, 0x04),
    ],
)
def test_attributes_of_both_stages(first: int, memattr: int, linux: int, owed: int) -> None:
    g = plain(mair=first, data=memattr << 2 | S2_ALL | ISH | AF)
    assert tuple(map(attribute, both(g, "s12e1r"))) == (linux, owed)


@pytest.mark.parametrize(
    ("first", "memattr", "linux", "owed"),
    [
        (0xAA, 6, 0xFF, 0xEE),  # forced Write-Back: stage 1's hints are lost in Linux
        (0xFF, 6, 0xFF, 0xFF),
        (0x00, 6, 0xFF, 0xFF),
        (0xAA, 7, 0xAA, 0xAA),
        (0xAA, 4, 0xAA, 0xAA),
        (0xAA, 5, 0x44, 0x44),
        (0x04, 5, 0x04, 0x04),
        (0xAA, 1, 0x04, 0x04),
        (0x00, 1, 0x00, 0x00),
    ],
)
def test_attributes_where_stage_2_wins(first: int, memattr: int, linux: int, owed: int) -> None:
    g = plain(mair=first, data=memattr << 2 | S2_ALL | ISH | AF)
    g.virtual = {"HCR_EL2": 1 << 34 | 1 | 1 << 46}
    assert tuple(map(attribute, both(g, "s12e1r"))) == (linux, owed)


def test_stage_2_without_caching() -> None:
    g = plain()
    g.virtual = {"HCR_EL2": 1 << 34 | 1 | 1 << 32}
    assert tuple(map(attribute, both(g, "s12e1r"))) == (0x44, 0x44)


def test_shareability_of_memory_that_stage_2_makes_cacheable() -> None:
    """Stage 1 is Device, so outer shareable in PAR; stage 2 forces Write-Back."""
    g = plain(LEAF & ~ISH, mair=0, data=6 << 2 | S2_ALL | AF)
    g.virtual = {"HCR_EL2": 1 << 34 | 1 | 1 << 46}
    assert tuple(map(shareability, both(g, "s12e1r"))) == (2, 0)


def test_the_reserved_shareability_means_none() -> None:
    assert tuple(map(shareability, both(plain(LEAF & ~ISH | 1 << 8), "s1e1r"))) == (0, 1)


def test_a_reserved_byte_of_mair_is_reported_as_it_stands() -> None:
    assert tuple(map(attribute, both(plain(mair=0xF0), "s1e1r"))) == (0xF0, 0xFF)


def test_caching_off_makes_memory_non_cacheable() -> None:
    linux, owed = both(plain(sctlr=SCTLR & ~4), "s1e1r")
    assert (attribute(linux), shareability(linux)) == (0x44, 2)
    assert linux == owed & ~NS


@pytest.mark.parametrize("sctlr", [SCTLR & ~1, SCTLR & ~5])
def test_stage_1_off(sctlr: int) -> None:
    linux, owed = both(plain(sctlr=sctlr), "s1e1r", 0x9000_0123)
    assert linux == owed & ~NS
    assert both(plain(sctlr=sctlr), "s1e1r", 1 << 48) == (0x801, 0x801)


def test_a_root_beyond_the_output_size() -> None:
    for touched in (False, True):
        g = plain(ttbr0=1 << 40, tcr=TCR & ~(7 << 32))
        assert both(g, "s1e1r", touched=touched) == (0x801, 0x801)


@pytest.mark.parametrize("leaf", [LEAF | 1 << 40, LEAF & ~2])
def test_leaves_that_fault(leaf: int) -> None:
    linux, owed = both(plain(leaf, tcr=TCR & ~(7 << 32)), "s1e1r")
    assert linux == owed
    assert linux & 1
