"""Stage 2 in whole translations: geometry of 52 bits, permissions, walks through it, hardware updates."""

from __future__ import annotations

import pytest
from arch_book import stage_of
from translation_lab import (
    ALL,
    DATA,
    IPA,
    OPERATIONS,
    PAGE1,
    PAGE2,
    ROOT1,
    ROOT2,
    TABLES1,
    TABLES2,
    VA,
    Machine,
    geometry,
    in_descriptor,
    nested,
    rights,
)

AF, DBM, XN_SHIFT = 1 << 10, 1 << 51, 53
VTCR = 24 | 1 << 6 | 5 << 16
HA, HD, DS, SL2 = 1 << 21, 1 << 22, 1 << 32, 1 << 33
PTW, FWB = 1 << 2, 1 << 46


def start_of(granule: int, sl0: int, ds: int, sl2: int) -> int:
    """VTCR_EL2.SL0 and SL2: the level by encoding."""
    if granule == 12:
        return -1 if ds and sl2 else {0: 2, 1: 1, 2: 0, 3: 3}[sl0]
    return 3 - sl0


def legal(granule: int, txsz: int, sl0: int, ds: int, sl2: int, pa_bits: int, small: bool) -> bool:
    """The manual's table of start levels (VTCR_EL2.SL0) with its notes, and the sizes that fit a level."""
    level = start_of(granule, sl0, ds, sl2)
    needs = {(12, 0): 44, (14, 1): 42, (16, 1): 44}
    if granule == 12 and ds and sl2 and sl0 != 0:
        return False
    if level == -1 and pa_bits < 52:
        return False
    if granule == 14 and level == 0 and not (ds and pa_bits == 52):
        return False
    if (granule == 16 and level == 0) or (granule == 12 and level == 3 and not small):
        return False
    if pa_bits < needs.get((granule, level), 0):
        return False
    most = (47 if granule == 16 else 48) if small else 39
    ia = 64 - txsz
    if txsz > most or ia > pa_bits or (ia > 48 and not (ds or granule == 16)):
        return False
    bits = ia - granule - (3 - level) * (granule - 3)
    return 1 <= bits <= granule - 3 + 4


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("pa_bits", [40, 42, 44, 48, 52])
@pytest.mark.parametrize("ds", [0, 1])
@pytest.mark.parametrize(("granule", "tg0"), [(12, 0), (14, 2), (16, 1)])
def test_every_start_level_and_size(granule: int, tg0: int, ds: int, pa_bits: int, small: bool) -> None:
    features = ALL if small else ALL - {"TTST"}
    wrong = []
    for sl in range(8 if granule == 12 else 4):
        sl0, sl2 = sl & 3, sl >> 2
        for txsz in range(10, 50):
            vtcr = txsz | sl0 << 6 | tg0 << 14 | 6 << 16 | ds << 32 | sl2 << 33
            m = Machine({"VTCR_EL2": vtcr, "VTTBR_EL2": ROOT2, "HCR_EL2": 1}, features, pa_bits)
            m.put(ROOT2, ROOT2 | PAGE2 & ~(3 << 8))  # a table to itself, and a page at last
            found = m.ask("AT S12E1R", 8).fault
            expected = legal(granule, txsz, sl0, ds and granule != 16, sl2, pa_bits, small)
            if found != ("none" if expected else "s2 translation 0"):
                wrong.append((txsz, sl0, sl2, found))
    assert wrong == []


def test_52_bits_of_ipa_in_64k_need_no_large_va() -> None:
    """S2MinTxSZ looks at the size of physical addresses, not at FEAT_LVA."""
    vtcr = 12 | 2 << 6 | 1 << 14 | 6 << 16
    m = Machine({"VTCR_EL2": vtcr, "VTTBR_EL2": ROOT2, "HCR_EL2": 1}, ALL - {"LVA"})
    m.put(ROOT2, ROOT2 | PAGE2)
    assert m.ask("AT S12E1R", 8).fault == "none"


@pytest.mark.parametrize(
    ("granule", "txsz", "sl0", "sl2", "ds"),
    [
        (12, 12, 0, 1, 1),
        (12, 16, 2, 0, 1),
        (14, 12, 3, 0, 1),
        (14, 16, 2, 0, 1),
        (16, 12, 2, 0, 0),
        (12, 21, 1, 0, 0),
    ],
)
def test_addresses_of_52_bits(granule: int, txsz: int, sl0: int, sl2: int, ds: int) -> None:
    ps = 6
    vtcr = txsz | sl0 << 6 | {12: 0, 14: 2, 16: 1}[granule] << 14 | ps << 16 | ds << 32 | sl2 << 33
    stage = stage_of(granule, txsz, ps, bool(ds), start_of(granule, sl0, ds, sl2), ROOT2, 52)
    pa = 0xA_5000_0000_0000 if stage.form != 48 else 0x5000_0000_0000
    leaf = PAGE2 & ~(3 << 8) | in_descriptor(stage.form, pa)
    for ipa in (8, (1 << stage.ia) - 8, 0x5_5555_5555_5558 % (1 << stage.ia)):
        m = Machine({"VTCR_EL2": vtcr, "VTTBR_EL2": ROOT2, "HCR_EL2": 1})
        m.path(stage, ipa, leaf, 3, TABLES2)
        assert m.ask("AT S12E1R", ipa).pa == pa | ipa % (1 << granule)
        if stage.ia < 52:
            assert m.ask("AT S12E1R", ipa | 1 << stage.ia).fault == "s2 translation 0"


@pytest.mark.parametrize("bit", [32, 36, 40, 42, 44])
def test_output_sizes_of_stage_2(bit: int) -> None:
    for ps, size in enumerate((32, 36, 40, 42, 44)):
        m = nested(PAGE2 | 1 << bit, VTCR_EL2=VTCR & ~(7 << 16) | ps << 16)
        expected = "none" if bit < size else "s2 address size 3"
        assert m.ask("AT S12E1R", VA).fault == expected
        block = nested(PAGE2 & ~2 | 1 << bit, 2, VTCR_EL2=VTCR & ~(7 << 16) | ps << 16)
        assert block.ask("AT S12E1R", VA).fault == expected.replace("3", "2")


STAGE1_RIGHTS = "rw- rwx"


@pytest.mark.parametrize("xnx", [True, False])
@pytest.mark.parametrize("xn", range(4))
@pytest.mark.parametrize(("s2ap", "data"), [(0, "--"), (1, "r-"), (2, "-w"), (3, "rw")])
def test_stage_2_permissions(s2ap: int, data: str, xn: int, xnx: bool) -> None:
    """S2AP, and XN[1:0] of FEAT_XNX: 0 all, 1 EL0 alone, 2 none, 3 EL1 alone; without it bit 54 for both."""
    leaf = PAGE2 & ~(3 << 6) | s2ap << 6 | xn << XN_SHIFT | DATA
    executes = {0: "11", 1: "01", 2: "00", 3: "10"}[xn] if xnx else ("00" if xn & 2 else "11")
    el1, el0 = (data + ("x" if bit == "1" else "-") for bit in executes)
    m = nested(leaf, HCR_EL2=1)
    m.features = ALL if xnx else ALL - {"XNX"}
    at = next(name for name in m.words if m.words[name] & ~0xFFF == IPA & ~0xFFF)
    assert rights(m) == f"{el1} --{el0[2]}"  # stage 1 lets EL0 execute only
    m.words[at] |= 1 << 6
    assert rights(m) == f"{el1[:2]}- {el0}"
    found = [m.ask(name, VA).fault for name in ("AT S12E1R", "AT S12E1W", "AT S12E0R", "AT S12E0W")]
    assert found == ["none" if letter != "-" else "s2 permission 3" for letter in data * 2]


@pytest.mark.parametrize(
    ("vtcr", "features", "writable"),
    [(HA | HD, ALL, True), (HA, ALL, False), (HD, ALL, False), (0, ALL, False),
     (HA | HD, ALL - {"HDBS"}, False), (HA | HD, ALL - {"HAF"}, False)],
)  # fmt: skip
def test_dbm_at_stage_2(vtcr: int, features: frozenset[str], writable: bool) -> None:
    m = nested(PAGE2 & ~(2 << 6) | DBM | DATA, VTCR_EL2=VTCR | vtcr)
    m.features = features
    assert rights(m)[:2] == ("rw" if writable else "r-")
    assert m.ask("AT S12E1W", VA).fault == ("none" if writable else "s2 permission 3")


TABLES_BLOCK = PAGE2 & ~2


@pytest.mark.parametrize("memattr", range(16))
@pytest.mark.parametrize("fwb", [0, FWB])
def test_walks_through_device_memory(memattr: int, fwb: int) -> None:
    """HCR_EL2.PTW: a stage-1 walk through what stage 2 makes Device faults."""
    device = memattr & 4 == 0 if fwb else memattr < 4
    block = TABLES_BLOCK & ~(15 << 2) | memattr << 2
    m = nested(tables2=block, HCR_EL2=1 | fwb)
    assert m.ask("AT S1E1R", VA).fault == "none"
    m.registers["HCR_EL2"] |= PTW
    found = m.ask("AT S1E1R", VA)
    assert found.fault == ("s2 ptw permission 1" if device else "none")
    if device:
        assert m.ask("load at EL1", VA).fault == "s2 ptw permission 1"
        m.features = ALL - {"FWB"}
        assert m.ask("AT S1E1R", VA).fault == ("none" if memattr > 3 else "s2 ptw permission 1")


def test_the_end_of_a_walk_may_be_device_memory() -> None:
    assert nested(PAGE2 & ~(15 << 2) | DATA, HCR_EL2=1 | PTW).ask("load at EL1", VA).fault == "none"


@pytest.mark.parametrize("level", range(4))
def test_each_stage_1_descriptor_is_read_through_stage_2(level: int) -> None:
    """Stage 1 stands at IPAs two gigabytes above the memory that stage 2 leads them to."""
    up = 2 << 30
    m = nested()
    m.words = {at: word for at, word in m.words.items() if at < ROOT1}
    leaf = PAGE1 & ~DATA | IPA & ~0xFFF
    m.path(geometry(12, 16, 0, ROOT1 + up), VA, leaf, 3, TABLES1 + up, shift=-up)
    m.registers["TTBR0_EL1"] = ROOT1 + up
    m.words[ROOT2 + 16] = m.words.pop(ROOT2)
    assert m.ask("AT S12E1R", VA).pa == DATA | VA & 0xFFF
    descriptor = sorted(at for at in m.words if at >= ROOT1)[level]
    m.words[descriptor] = 0
    assert m.ask("AT S12E1R", VA).fault == f"translation {level}"


@pytest.mark.parametrize(
    ("leaf", "fault"),
    [(0, "translation"), (1 << 47 | 1, "address size"), (TABLES_BLOCK & ~AF, "access flag"),
     (TABLES_BLOCK & ~(1 << 6), "permission")],
)  # fmt: skip
def test_faults_of_stage_2_on_a_stage_1_walk(leaf: int, fault: str) -> None:
    ps = 4 << 16 if fault == "address size" else 5 << 16
    m = nested(tables2=leaf, VTCR_EL2=VTCR & ~(7 << 16) | ps)
    seen = {name: m.ask(name, VA) for name in ("AT S1E1R", "AT S12E1R", "load at EL1", "store at EL0")}
    assert {one.fault for one in seen.values()} == {f"s2 ptw {fault} 1"}
    entry = 0x30_0000 + 8 * (VA >> 39)
    assert seen["load at EL1"].hpfar == entry >> 12 << 4


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize(("store", "dbm"), [(False, False), (True, False), (True, True), (False, True)])
def test_hardware_updates_of_both_stages(update: bool, store: bool, dbm: bool) -> None:
    """AF by any access, dirty state by a write to a DBM page; a stage-1 walk sets AF at stage 2 too."""
    leaf1 = (PAGE1 & ~DATA | IPA & ~0xFFF) & ~AF | (DBM if dbm else 0) | dbm << 7
    leaf2 = PAGE2 & ~AF & ~(2 << 6 if dbm else 0) | DATA | (DBM if dbm else 0)
    m = nested(leaf2, 3, leaf1, TABLES_BLOCK & ~AF, VTCR_EL2=VTCR | HA | HD)
    m.registers["TCR_EL1"] |= 3 << 39
    before = dict(m.words)
    assert m.ask("AT S12E1W", VA, update).fault == "none"
    assert m.words == before  # an AT changes nothing
    assert m.ask("store at EL1" if store else "load at EL1", VA, update).fault == "none"
    at1, at2 = (next(at for at, word in before.items() if word == leaf) for leaf in (leaf1, leaf2))
    expected = dict(before)
    if update:
        dirty = store and dbm
        expected |= {at1: leaf1 & ~(dirty << 7) | AF, at2: leaf2 | AF | dirty << 7, ROOT2: TABLES_BLOCK}
    assert m.words == expected


def test_access_flags_fault_where_hardware_does_not_set_them() -> None:
    leaf1 = (PAGE1 & ~DATA | IPA & ~0xFFF) & ~AF
    assert nested(leaf1=leaf1).ask("load at EL1", VA).fault == "access flag 3"
    assert nested(PAGE2 & ~AF | DATA).ask("load at EL1", VA).fault == "s2 access flag 3"
    m = nested(PAGE2 & ~AF | DATA, 3, leaf1, VTCR_EL2=VTCR | HA)
    m.registers["TCR_EL1"] |= 1 << 39
    assert m.ask("load at EL1", VA, update=True).fault == "none"
    assert m.ask("AT S12E1R", VA).fault == "none"


@pytest.mark.parametrize("writable", [False, True])
def test_stage_2_may_refuse_the_update_of_a_stage_1_descriptor(writable: bool) -> None:
    block = TABLES_BLOCK & ~(2 << 6) | (2 << 6 if writable else 0)
    leaf1 = (PAGE1 & ~DATA | IPA & ~0xFFF) & ~AF
    m = nested(leaf1=leaf1, tables2=block)
    m.registers["TCR_EL1"] |= 1 << 39
    before = dict(m.words)
    found = m.ask("load at EL1", VA, update=True)
    if writable:
        assert found.fault == "none"
    else:
        assert (found.fault, found.target, m.words) == ("s2 ptw permission 1", 2, before)
        assert m.ask("AT S12E1R", VA, update=True).fault == "none"  # nothing to write


def test_a_fault_at_stage_2_leaves_its_leaf_alone() -> None:
    leaf2 = PAGE2 & ~AF & ~(2 << 6) | DATA
    m = nested(leaf2, VTCR_EL2=VTCR | HA | HD)
    assert m.ask("store at EL1", VA, update=True).fault == "s2 permission 3"
    assert leaf2 in m.words.values()


def in_order(words: dict[int, int], stage1: int, stage2: int) -> dict[int, int]:
    """The words with those of big-endian stages turned round."""
    turned = {}
    for at, word in words.items():
        big = stage1 if at >= ROOT1 else stage2
        turned[at] = int.from_bytes(word.to_bytes(8, "little"), "big" if big else "little")
    return turned


@pytest.mark.parametrize(("stage1", "stage2"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_big_endian_tables(stage1: int, stage2: int) -> None:
    """SCTLR_EL1.EE for stage 1, SCTLR_EL2.EE for stage 2; hardware updates keep the order."""
    leaf1 = (PAGE1 & ~DATA | IPA & ~0xFFF) & ~AF
    m = nested(PAGE2 & ~AF | DATA, 3, leaf1, VTCR_EL2=VTCR | HA)
    m.registers["TCR_EL1"] |= 1 << 39
    m.registers["SCTLR_EL1"] |= stage1 << 25
    m.registers["SCTLR_EL2"] = stage2 << 25
    m.words = in_order(m.words, stage1, stage2)
    assert m.ask("load at EL1", VA, update=True).pa == DATA | VA & 0xFFF
    after = in_order(m.words, stage1, stage2).values()
    assert leaf1 | AF in after
    assert PAGE2 | DATA in after
    m.registers["SCTLR_EL1"] ^= 1 << 25
    assert m.ask("load at EL1", VA).fault.startswith("translation")


@pytest.mark.parametrize(
    ("hcr", "both"),
    [(0, False), (1, True), (1 << 12, True), (1 | 1 << 27 | 1 << 34, False), (1 | 1 << 34, True)],
)
def test_when_there_is_a_stage_2(hcr: int, both: bool) -> None:
    m = Machine({"HCR_EL2": hcr, "VTCR_EL2": VTCR, "VTTBR_EL2": ROOT2})
    expected = "s2 translation 1" if both else "none"
    assert m.ask("AT S12E1R", 0x1000).fault == expected
    assert m.ask("load at EL0", 0x1000).fault == expected
    assert m.ask("AT S1E1R", 0x1000).fault == "none"
    assert m.ask("AT S1E2R", 0x1000).fault == "none"


def test_rights_of_both_stages_are_what_both_grant() -> None:
    assert rights(nested()) == "rwx --x"
    assert rights(nested(), VA, OPERATIONS[:3]) == "rwx "
