"""Memory attributes in PAR_EL1: every pair of both stages, with and without FWB; caching off; sharing."""

from __future__ import annotations

from itertools import product

import pytest
from arch_book import both_stages
from translation_lab import ALL, DATA, IPA, PAGE1, PAGE2, VA, Machine, nested

DEVICES = {0x00: "nGnRnE", 0x04: "nGnRE", 0x08: "nGRE", 0x0C: "GRE"}
NORMAL = [0x44, 0xBB, 0xFF, 0x4F, 0xF4, 0x77, 0x33, 0xAA, 0xEE, 0xCC, 0x88, 0x1D, 0x48]
ATTRIBUTES = [*DEVICES, *NORMAL]
FWB, CD, DC = 1 << 46, 1 << 32, 1 << 12
DS = 1 << 32

WITHOUT_FWB = {  # stage 1, MemAttr -> both: the manual's tables of D8.6.5, worked by hand
    (0xFF, 0b1111): 0xFF, (0xFF, 0b1010): 0xBB, (0xFF, 0b0101): 0x44, (0xFF, 0b1101): 0xF4,
    (0xFF, 0b0111): 0x4F, (0xFF, 0b1110): 0xFB, (0xBB, 0b1111): 0xBB, (0xBB, 0b1010): 0xBB,
    (0xBB, 0b0101): 0x44, (0x44, 0b1111): 0x44, (0x44, 0b1010): 0x44, (0xEE, 0b1010): 0xAA,
    (0x77, 0b1010): 0x33, (0x33, 0b1111): 0x33, (0x4F, 0b1011): 0x4F, (0xFF, 0b0000): 0x00,
    (0xFF, 0b0001): 0x04, (0x44, 0b0010): 0x08, (0xBB, 0b0011): 0x0C, (0x00, 0b1111): 0x00,
    (0x04, 0b1111): 0x04, (0x08, 0b0101): 0x08, (0x0C, 0b1010): 0x0C, (0x0C, 0b0001): 0x04,
    (0x04, 0b0011): 0x04, (0x08, 0b0000): 0x00,
}  # fmt: skip
WITH_FWB = {  # stage 1, MemAttr[2:0] -> both: D8.6.6
    (0xFF, 0b110): 0xFF, (0x44, 0b110): 0xFF, (0x00, 0b110): 0xFF, (0xBB, 0b110): 0xFF, (0xAA, 0b110): 0xEE,
    (0x33, 0b110): 0x77, (0x4F, 0b110): 0xFF, (0xFF, 0b101): 0x44, (0xBB, 0b101): 0x44, (0x08, 0b101): 0x08,
    (0xFF, 0b111): 0xFF, (0xBB, 0b111): 0xBB, (0x44, 0b111): 0x44, (0x04, 0b111): 0x04, (0xFF, 0b000): 0x00,
    (0xFF, 0b001): 0x04, (0x44, 0b010): 0x08, (0xBB, 0b011): 0x0C, (0x0C, 0b001): 0x04, (0x00, 0b011): 0x00,
}  # fmt: skip


def attributes(
    first: int, memattr: int, sh1: int = 3, sh2: int = 3, features: frozenset[str] = ALL, **r: int
) -> tuple[int, int]:
    """Attribute and shareability of AT S12E1R."""
    leaf1 = PAGE1 & ~DATA & ~(3 << 8) | IPA & ~0xFFF | sh1 << 8 | 3 << 2
    leaf2 = PAGE2 & ~(15 << 2) & ~(3 << 8) | memattr << 2 | sh2 << 8 | DATA
    m = nested(leaf2, 3, leaf1, MAIR_EL1=first << 24, **r)
    m.features = features
    par = m.ask("AT S12E1R", VA).par
    return par >> 56, par >> 7 & 3


@pytest.mark.parametrize(("pair", "expected"), WITHOUT_FWB.items())
def test_both_stages_by_the_table(pair: tuple[int, int], expected: int) -> None:
    assert attributes(*pair)[0] == expected
    assert both_stages(*pair, False) == expected


@pytest.mark.parametrize(("pair", "expected"), WITH_FWB.items())
@pytest.mark.parametrize("bit_3", [0, 8])
def test_both_stages_with_fwb_by_the_table(pair: tuple[int, int], bit_3: int, expected: int) -> None:
    first, memattr = pair
    assert attributes(first, memattr | bit_3, HCR_EL2=1 | FWB)[0] == expected
    assert both_stages(first, memattr, True) == expected


@pytest.mark.parametrize("fwb", [False, True])
def test_every_combination_of_both_stages(fwb: bool) -> None:
    wrong = []
    for first, memattr in product(ATTRIBUTES, range(16)):
        if memattr > 3 and not fwb and (memattr & 3 == 0):
            continue  # reserved
        found = attributes(first, memattr, HCR_EL2=1 | fwb * FWB)[0]
        if found != both_stages(first, memattr, fwb):
            wrong.append((hex(first), memattr, hex(found)))
    assert wrong == []


def test_fwb_is_a_feature() -> None:
    assert attributes(0x44, 0b0110, features=ALL - {"FWB"}, HCR_EL2=1 | FWB)[0] == 0x44


@pytest.mark.parametrize(("first", "second"), list(product([0, 2, 3], repeat=2)))
def test_shareability_of_both_stages(first: int, second: int) -> None:
    """Outer if either is, else inner if either is; Device and Non-cacheable memory is Outer Shareable."""
    expected = 2 if 2 in (first, second) else 3 if 3 in (first, second) else 0
    assert attributes(0xFF, 15, first, second) == (0xFF, expected)
    assert attributes(0x44, 15, first, second) == (0x44, 2)
    assert attributes(0x04, 15, first, second) == (0x04, 2)
    assert attributes(0xFF, 5, first, second) == (0x44, 2)


@pytest.mark.parametrize("sh", [0, 2, 3])
def test_with_ds_shareability_is_the_registers(sh: int) -> None:
    m = nested(PAGE2 & ~(3 << 8) | DATA, 3, PAGE1 & ~DATA & ~(3 << 8) | IPA & ~0xFFF, PAGE2 & ~2 & ~(3 << 8))
    m.registers["TCR_EL1"] |= 1 << 59 | sh << 12
    found = m.ask_all([("AT S1E1R", VA), ("AT S12E1R", VA)])
    assert [one.par >> 7 & 3 for one in found] == [sh, sh]
    m.registers["TCR_EL1"] &= ~(3 << 12)
    m.registers["VTCR_EL2"] |= DS | sh << 12
    assert m.ask("AT S12E1R", VA).par >> 7 & 3 == sh


@pytest.mark.parametrize("first", ATTRIBUTES)
def test_caching_turned_off(first: int) -> None:
    """SCTLR_ELx.C for stage 1, HCR_EL2.CD for both: Normal memory becomes Non-cacheable, Device stays."""
    off = first if first < 16 else 0x44
    assert attributes(first, 15, SCTLR_EL1=1)[0] == off
    assert attributes(first, 15, HCR_EL2=1 | CD)[0] == off
    assert attributes(first, 6, HCR_EL2=1 | CD | FWB)[0] == 0x44


@pytest.mark.parametrize("index", range(8))
def test_the_index_chooses_a_byte_of_mair(index: int) -> None:
    m = nested(leaf1=PAGE1 & ~DATA | IPA & ~0xFFF | index << 2, MAIR_EL1=0xFF_BB_44_0C_08_04_00_77)
    expected = [0x77, 0x00, 0x04, 0x08, 0x0C, 0x44, 0xBB, 0xFF][index]
    assert m.ask("AT S1E1R", VA).par >> 56 == expected


@pytest.mark.parametrize(("hcr", "attribute", "sh"), [(0, 0, 2), (DC, 0xFF, 0)])
def test_stage_1_off_is_device_memory_or_default_cacheable(hcr: int, attribute: int, sh: int) -> None:
    m = nested(HCR_EL2=hcr, SCTLR_EL1=hcr and 5)
    par = m.ask("AT S1E1R", IPA).par
    assert (par >> 56, par >> 7 & 3, par & 0xF_FFFF_FFFF_F000) == (attribute, sh, IPA & ~0xFFF)
    both = m.ask("AT S12E1R", IPA)
    assert both.pa == (DATA if hcr else IPA & ~0xFFF) | IPA & 0xFFF


TAGGED = ALL | {"MTE2"}


@pytest.mark.parametrize(
    ("memattr", "fwb", "expected"),
    [(15, 0, 0xF0), (10, 0, 0xBB), (5, 0, 0x44), (14, 0, 0xFB), (0, 0, 0), (6, FWB, 0xF0), (7, FWB, 0xF0),
     (5, FWB, 0x44)],
)  # fmt: skip
def test_memory_stays_tagged_while_it_is_write_back(memattr: int, fwb: int, expected: int) -> None:
    """S2MemTagType: tagged memory is Write-Back with every allocation hint, or it is not tagged."""
    assert attributes(0xF0, memattr, features=TAGGED, HCR_EL2=1 | fwb)[0] == expected
    untagged = 0xFF if expected == 0xF0 else expected
    assert attributes(0xF0, memattr, HCR_EL2=1 | fwb)[0] == untagged


def test_el2_has_its_own_mair_and_cache_bit() -> None:
    m = Machine({"SCTLR_EL2": 0})
    assert m.ask("AT S1E2R", 0x1000).par == 0x1000 | 1 << 11 | 1 << 9 | 2 << 7
