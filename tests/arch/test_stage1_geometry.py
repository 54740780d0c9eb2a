"""Stage 1: start levels, sizes, 52-bit formats, start tables, the two halves, tags, refused walks."""

from __future__ import annotations

import pytest
from arch_book import stage_of
from translation_lab import ALL, DATA, PAGE1, ROOT1, TABLES1, VA, Machine, el10, in_descriptor

START = {  # TxSZ -> start level: the manual's tables of initial lookup levels (D8.2)
    12: [(12, 15, -1), (16, 24, 0), (25, 33, 1), (34, 42, 2), (43, 48, 3)],
    14: [(12, 16, 0), (17, 27, 1), (28, 38, 2), (39, 48, 3)],
    16: [(12, 21, 1), (22, 34, 2), (35, 47, 3)],
}
CASES = [
    (granule, txsz, level)
    for granule, rows in START.items()
    for first, last, level in rows
    for txsz in range(first, last + 1)
]
TG0, TG1 = {12: 0, 14: 2, 16: 1}, {12: 2, 14: 1, 16: 3}
DS, IPS_52, IPS_48 = 1 << 59, 6 << 32, 5 << 32
TOP = (1 << 64) - 8


def machine(
    granule: int, txsz: int, level: int, ia: int, *, ds: bool = False, upper: bool = False
) -> Machine:
    """A page for ``ia`` through TTBR0 or TTBR1, 52 bits of output with ``ds`` or the 64K granule."""
    ps = 6 if ds or granule == 16 else 5
    tcr = TG0[granule] << 14 | TG1[granule] << 30 | ps << 32 | ds << 59
    tcr |= (39 << 16 | txsz) if not upper else (txsz << 16 | 39)
    m = Machine({"TCR_EL1": tcr, "TTBR0_EL1": ROOT1, "TTBR1_EL1": ROOT1, "SCTLR_EL1": 5, "MAIR_EL1": 0xFF})
    s = stage_of(granule, txsz, ps, ds and granule != 16, level, ROOT1, 52)
    leaf = 1 << 10 | 3 | in_descriptor(s.form, DATA)
    m.path(s, ia % (1 << s.ia), leaf, 3, TABLES1)
    return m


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize(("granule", "txsz", "level"), CASES)
def test_every_size_starts_where_the_manual_says(granule: int, txsz: int, level: int, upper: bool) -> None:
    ia = 64 - txsz
    ds = txsz < 16 and granule != 16
    for va in (0x88, (1 << ia) - 8, 0x5555_5555_5555_5558 % (1 << ia)):
        m = machine(granule, txsz, level, va, ds=ds, upper=upper)
        asked = va | (TOP + 8 - (1 << ia)) if upper else va
        found = m.ask("AT S1E1R", asked)
        assert (found.fault, found.pa, found.level1) == ("none", DATA | va % (1 << granule), 3)
        outside = asked ^ 1 << ia if ia < 55 else asked ^ 1 << 54
        if outside >> 55 & 1 == upper:
            assert m.ask("AT S1E1R", outside).fault == "translation 0"
    root = sorted(m.words)[0]
    m.words[root] = 0
    assert m.ask("AT S1E1R", asked).fault == f"translation {level}"


@pytest.mark.parametrize("ds", [0, DS])
@pytest.mark.parametrize("granule", START)
@pytest.mark.parametrize("features", [ALL, ALL - {"TTST"}, ALL - {"LVA"}, ALL - {"LPA2"}])
def test_sizes_out_of_range_are_refused(granule: int, ds: int, features: frozenset[str]) -> None:
    """S1MinTxSZ, MaxTxSZ: 16..39; to 12 with 52-bit addresses; to 48 (47 for 64K) with FEAT_TTST."""
    wide = "LVA" in features if granule == 16 else bool(ds and "LPA2" in features)
    last = 39 if "TTST" not in features else 47 if granule == 16 else 48
    legal = range(12 if wide else 16, last + 1)
    translated = set()
    for txsz in range(64):
        tcr = txsz | TG0[granule] << 14 | 16 << 16 | 2 << 30 | IPS_48 | ds
        m = Machine({"TCR_EL1": tcr, "TTBR0_EL1": ROOT1, "SCTLR_EL1": 5, "MAIR_EL1": 0xFF}, features)
        m.put(ROOT1, ROOT1 | 1 << 10 | 3)  # a table to itself, and a page at last
        found = m.ask("AT S1E1R", 0)
        assert found.fault in ("none", "translation 0")
        if found.kind == 0:
            translated.add(txsz)
    assert translated == set(legal)


SIZES = {0: 32, 1: 36, 2: 40, 3: 42, 4: 44, 5: 48, 6: 52, 7: 52}


@pytest.mark.parametrize("pa_bits", [32, 36, 40, 42, 44, 48, 52])
@pytest.mark.parametrize("ps", SIZES)
@pytest.mark.parametrize("granule", START)
@pytest.mark.parametrize("ds", [0, DS])
def test_output_sizes_of_stage_1(granule: int, ps: int, pa_bits: int, ds: int) -> None:
    wide = pa_bits == 52 and ps >= 6 if granule == 16 else bool(ds)
    oa = min(SIZES[ps] if wide else min(SIZES[ps], 48), pa_bits)
    form = (52 if granule == 16 else 50) if wide else 48
    start = {12: 1, 14: 2, 16: 2}[granule]
    tcr = 30 | 16 << 16 | TG0[granule] << 14 | 2 << 30 | ps << 32 | ds
    registers = {"TCR_EL1": tcr, "TTBR0_EL1": ROOT1, "SCTLR_EL1": 5, "MAIR_EL1": 0xFF}
    for bit in (31, 35, 39, 41, 43, 47, 49, 51)[: 8 if wide else 6]:
        m = Machine(dict(registers), ALL, pa_bits)
        far = in_descriptor(form, 1 << bit) | 1 << 10 | 3
        m.path(stage_of(granule, 30, ps, form == 50, start, ROOT1, pa_bits), 8, far, 3, TABLES1)
        found = m.ask("AT S1E1R", 8)
        assert (found.fault, found.pa) == (("none", 1 << bit | 8) if bit < oa else ("address size 3", 0))
        m.put(ROOT1, far)  # now a table's address
        expected = f"walk abort {start + 1}" if bit < oa else f"address size {start}"
        assert m.ask("AT S1E1R", 8).fault == expected
        if bit < 48:
            m.registers["TTBR0_EL1"] = 1 << bit
            assert m.ask("AT S1E1R", 8).fault == (f"walk abort {start}" if bit < oa else "address size 0")


@pytest.mark.parametrize(
    ("granule", "ps", "ds", "expected"),
    [
        (12, 6, DS, "walk abort 1"),
        (14, 6, DS, "walk abort 1"),
        (16, 6, 0, "walk abort 2"),
        (12, 5, DS, "address size 0"),
        (12, 6, 0, "translation 1"),
        (16, 5, 0, "translation 2"),
    ],
)
def test_ttbr_bits_5_to_2_are_address_bits_51_to_48(granule: int, ps: int, ds: int, expected: str) -> None:
    tcr = 25 | TG0[granule] << 14 | 16 << 16 | 2 << 30 | ps << 32 | ds
    ttbr = ROOT1 | 0xF << 2 | 0xABCD << 48 | 1  # an ASID and CnP besides
    assert Machine({"TCR_EL1": tcr, "TTBR0_EL1": ttbr, "SCTLR_EL1": 1}).ask("AT S1E1R", 0).fault == expected


@pytest.mark.parametrize(
    ("granule", "txsz", "start", "step"),
    [(12, 32, 1, 32), (12, 33, 1, 16), (12, 16, 0, 4096), (14, 16, 0, 16), (16, 25, 2, 8192)],
)
def test_start_tables_are_aligned_to_their_size(granule: int, txsz: int, start: int, step: int) -> None:
    for low in range(2, min(step, 64), 2):
        m = machine(granule, txsz, start, 0)
        m.registers["TCR_EL1"] = m.registers["TCR_EL1"] & ~(7 << 32) | 5 << 32
        m.registers["TTBR0_EL1"] |= low
        assert m.ask("AT S1E1R", 0).fault == "none"
    m.registers["TTBR0_EL1"] = ROOT1 + step
    assert m.ask("AT S1E1R", 0).fault == f"translation {start}"


@pytest.mark.parametrize(("granule", "txsz", "start"), [(12, 33, 1), (12, 15, -1), (14, 16, 0)])
def test_start_tables_in_52_bits_stand_on_64_bytes(granule: int, txsz: int, start: int) -> None:
    m = machine(granule, txsz, start, 0, ds=True)
    assert m.ask("AT S1E1R", 0).fault == "none"
    m.registers["TTBR0_EL1"] = ROOT1 | 2  # bit 1 is no address bit
    assert m.ask("AT S1E1R", 0).fault == "none"
    m.registers["TTBR0_EL1"] = ROOT1 + 64
    assert m.ask("AT S1E1R", 0).fault == f"translation {start}"


BLOCKS = [  # granule, level, log2 of its size, from when on: D8.2
    (12, 0, 39, "DS"), (12, 1, 30, ""), (12, 2, 21, ""), (14, 1, 36, "DS"), (14, 2, 25, ""),
    (16, 1, 42, "LPA"), (16, 2, 29, ""),
]  # fmt: skip


@pytest.mark.parametrize(("granule", "level", "size", "when"), BLOCKS)
def test_blocks(granule: int, level: int, size: int, when: str) -> None:
    wide = when == "DS"
    ps = 6 if granule == 16 else 5
    base = 1 << 47
    va = 0x7_8765_4321_0FF8 % (1 << 47)
    stage = stage_of(granule, 16, ps, wide, None, ROOT1, 52)
    tcr = 16 | TG0[granule] << 14 | 16 << 16 | 2 << 30 | ps << 32 | wide << 59
    m = Machine({"TCR_EL1": tcr, "TTBR0_EL1": ROOT1, "SCTLR_EL1": 5, "MAIR_EL1": 0xFF})
    m.path(stage, va, base | 1 << 10 | 1, level, TABLES1)
    found = m.ask("AT S1E1R", va)
    assert (found.fault, found.pa, found.level1) == ("none", base | va % (1 << size), level)
    if when == "DS":
        m.registers["TCR_EL1"] &= ~DS
    if when == "LPA":
        m.pa_bits = 48
    assert m.ask("AT S1E1R", va).fault == ("none" if not when else f"translation {level}")


@pytest.mark.parametrize("granule", START)
def test_no_block_at_levels_that_have_none(granule: int) -> None:
    for level in {12: [0], 14: [0, 1], 16: [1]}[granule]:
        stage = stage_of(granule, 16, 5, False, None, ROOT1, 48)
        tcr = 16 | TG0[granule] << 14 | 16 << 16 | 2 << 30 | 5 << 32
        m = Machine({"TCR_EL1": tcr, "TTBR0_EL1": ROOT1, "SCTLR_EL1": 5}, ALL, 48)
        m.path(stage, VA, 1 << 10 | 1, level, TABLES1)
        assert m.ask("AT S1E1R", VA).fault == f"translation {level}"


TBI0, TBID0, EPD0, E0PD0 = 1 << 37, 1 << 51, 1 << 7, 1 << 55
TAGGED = VA | 0x5A << 56


@pytest.mark.parametrize(
    ("bits", "load", "fetch"),
    [(0, "translation 0", "translation 0"), (TBI0, "none", "none"), (TBI0 | TBID0, "none", "translation 0"),
     (TBID0, "translation 0", "translation 0")],
)  # fmt: skip
def test_the_top_byte(bits: int, load: str, fetch: str) -> None:
    m = el10()
    m.registers["TCR_EL1"] |= bits
    names = ["load at EL1", "store at EL1", "AT S1E1R", "fetch at EL1"]
    assert [one.fault for one in m.ask_all([(name, TAGGED) for name in names])] == [load, load, load, fetch]
    assert m.ask("load at EL1", VA).fault == "none"


def test_the_top_byte_of_the_upper_half_is_filled_with_ones() -> None:
    m = machine(12, 25, 1, 0x1238, upper=True)
    upper = TOP + 8 - (1 << 39) | 0x1238
    tagged = upper & ~(0xFF << 56) | 0x5A << 56
    assert m.ask("AT S1E1R", tagged).fault == "translation 0"
    m.registers["TCR_EL1"] |= 1 << 38
    assert m.ask("AT S1E1R", tagged)[:10] == m.ask("AT S1E1R", upper)[:10]
    assert m.ask("AT S1E1R", tagged).fault == "none"


@pytest.mark.parametrize(
    ("bit", "el1", "el0"), [(7, "translation 0", "translation 0"), (55, "none", "translation 0")]
)
def test_halves_that_are_kept_from_walks(bit: int, el1: str, el0: str) -> None:
    m = el10(PAGE1 | 1 << 6)
    assert [m.ask(name, VA).fault for name in ("load at EL1", "load at EL0")] == ["none", "none"]
    m.registers["TCR_EL1"] |= 1 << (bit + 16 if bit == 7 else bit + 1)  # the other half's
    assert [m.ask(name, VA).fault for name in ("load at EL1", "load at EL0")] == ["none", "none"]
    m.registers["TCR_EL1"] |= 1 << bit
    assert [m.ask(name, VA).fault for name in ("load at EL1", "AT S1E1R")] == [el1, el1]
    assert [m.ask(name, VA).fault for name in ("load at EL0", "AT S1E0R", "fetch at EL0")] == [el0] * 3
    if bit == 55:
        m.features = ALL - {"E0PD"}
        assert m.ask("load at EL0", VA).fault == "none"


def test_each_half_has_its_own_table_and_bit_55_chooses() -> None:
    m = el10()
    m.registers["TTBR1_EL1"] = ROOT1
    upper = VA | 0xFFFF << 48
    assert m.ask("AT S1E1R", upper).pa == m.ask("AT S1E1R", VA).pa
    m.registers["TTBR1_EL1"] = ROOT1 + 0x8000
    assert m.ask("AT S1E1R", upper).fault == "translation 0"
    assert m.ask("AT S1E1R", VA ^ 1 << 55).fault == "translation 0"  # neither half


@pytest.mark.parametrize(("tg0", "tg1"), [(3, 0)])
def test_reserved_granules_read_as_64k(tg0: int, tg1: int) -> None:
    for upper in (False, True):
        m = machine(16, 22, 2, 8, upper=upper)
        m.registers["TCR_EL1"] &= ~(3 << 14 | 3 << 30)
        m.registers["TCR_EL1"] |= tg0 << 14 | tg1 << 30
        assert m.ask("AT S1E1R", TOP + 8 - (1 << 42) | 8 if upper else 8).fault == "none"
