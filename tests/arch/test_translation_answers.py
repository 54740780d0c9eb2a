"""PAR_EL1, the syndrome, who takes an exception; AT forms; the order of faults; no memory there."""

from __future__ import annotations

import pytest
from translation_lab import (
    ALL,
    DATA,
    END,
    IPA,
    PAGE1,
    PAGE2,
    ROOT1,
    ROOT2,
    TABLES1,
    TABLES2,
    VA,
    Machine,
    el10,
    geometry,
    nested,
)

from shadowmmu.arch.operation import NAMES

AF = 1 << 10
TGE, TEA, E2H, VM = 1 << 27, 1 << 37, 1 << 34, 1
RES1 = 1 << 11
AT = [name for name in NAMES if name.startswith("AT ")]
FSC = {"address size": 0x00, "translation": 0x04, "access flag": 0x08, "permission": 0x0C, "walk abort": 0x14}


def broken(kind: str, level: int) -> Machine:
    """Stage 1 with a fault of ``kind`` at ``level``."""
    leaf = {"address size": 1 << 44 | AF | 3, "translation": PAGE1 & ~1, "access flag": PAGE1 & ~AF,
            "permission": PAGE1, "walk abort": END | 3}[kind]  # fmt: skip
    if kind in ("access flag", "permission") and level < 3:
        leaf &= ~2
    if kind == "walk abort":
        level -= 1
    m = el10(leaf, level)
    m.registers["TCR_EL1"] = m.registers["TCR_EL1"] & ~(7 << 32) | 4 << 32
    return m


@pytest.mark.parametrize(
    ("kind", "level"),
    [(kind, level) for kind in FSC for level in range(4)
     if level > 0 or kind not in ("walk abort", "access flag", "permission")],
)  # fmt: skip
def test_stage_1_faults_in_par_and_syndrome(kind: str, level: int) -> None:
    m = broken(kind, level)
    code = FSC[kind] + level
    at = m.ask("AT S1E0W", VA)
    assert at.fault == f"{kind} {level}"
    if kind == "walk abort":  # an AT takes that as an exception, and there is no PAR
        assert (at.par, at.target, at.esr) == (0, 2, 0x25 << 26 | 1 << 25 | 1 << 8 | 1 << 6 | code)
    else:
        assert (at.par, at.target, at.esr) == (1 | code << 1 | RES1, 0, 0)
    store, fetch = m.ask("store at EL0", VA), m.ask("fetch at EL0", VA)
    assert (store.esr, store.far, store.hpfar, store.target) == (
        0x24 << 26 | 1 << 25 | 1 << 6 | code,
        VA,
        0,
        1,
    )
    if kind != "permission":
        assert fetch.esr == 0x20 << 26 | 1 << 25 | code
        assert m.ask("fetch at EL1", VA).esr == 0x21 << 26 | 1 << 25 | code
        assert m.ask("load at EL1", VA).esr == 0x25 << 26 | 1 << 25 | code


@pytest.mark.parametrize("level", range(4))
def test_walk_aborts_at_each_level_of_stage_1(level: int) -> None:
    m = el10()
    if level == 0:
        m.registers["TTBR0_EL1"] = END
    else:
        at = sorted(m.words)[level - 1]
        m.words[at] = END + (level << 16) | 3
    assert m.ask("load at EL1", VA).fault == f"walk abort {level}"
    assert m.ask("load at EL1", VA).target == 1
    m.registers["HCR_EL2"] = TEA
    assert m.ask("load at EL1", VA).target == 2


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("on_walk", [False, True])
def test_walk_aborts_at_each_level_of_stage_2(level: int, on_walk: bool) -> None:
    m = nested()
    if on_walk:
        m.words[ROOT2] = TABLES2 + 0x5_0000 | 3
        m.put(TABLES2 + 0x5_0000 + 8, TABLES2 + 0x6_0000 | 3)
        m.put(TABLES2 + 0x6_0000, PAGE2)
    if level == 1:
        m.registers["VTTBR_EL2"] = END
    elif on_walk:
        # ROOT1 is 3M: the second entry of level 2, the 0x100th of level 3.
        m.words[ROOT2 if level == 2 else TABLES2 + 0x5_0000 + 8] = END | 3
    else:
        m.words[ROOT2 + 8 if level == 2 else TABLES2 + 8 * (IPA >> 21 & 511)] = END | 3
    found = m.ask("load at EL1", VA)
    on_walk = on_walk or level == 1
    assert found.fault == f"s2 {'ptw ' if on_walk else ''}walk abort {level}"
    assert (found.target, found.hpfar) == (2, 0)
    assert found.esr == 0x24 << 26 | 1 << 25 | on_walk << 7 | 0x14 + level


def test_level_minus_1_has_codes_of_its_own() -> None:
    m = Machine({"TCR_EL1": 12 | 16 << 16 | 2 << 30 | 6 << 32 | 1 << 59, "TTBR0_EL1": ROOT1, "SCTLR_EL1": 1})
    assert m.ask("AT S1E1R", 0).par == 1 | 0x2B << 1 | RES1
    m.put(ROOT1, 3 | 3 << 8)
    m.registers["TCR_EL1"] ^= 6 << 32 | 5 << 32
    m.registers["TCR_EL1"] = m.registers["TCR_EL1"] & ~(7 << 32) | 4 << 32
    assert m.ask("AT S1E1R", 0).par == 1 | 0x29 << 1 | RES1
    m.registers["TTBR0_EL1"] = END
    assert m.ask("load at EL1", 0).esr & 0x3F == 0x13


SECOND = {
    "translation": 0,
    "address size": PAGE2 | 1 << 44,
    "access flag": PAGE2 & ~AF,
    "permission": PAGE2 & ~(3 << 6),
}


@pytest.mark.parametrize("kind", SECOND)
def test_stage_2_faults_in_par_and_syndrome(kind: str) -> None:
    m = nested(SECOND[kind], VTCR_EL2=24 | 1 << 6 | 4 << 16)
    code = FSC[kind] + 3
    at = m.ask("AT S12E1W", VA)
    assert (at.fault, at.par) == (f"s2 {kind} 3", 1 | code << 1 | 1 << 9 | RES1)
    load = m.ask("load at EL1", VA)
    assert (load.esr, load.far, load.target) == (0x24 << 26 | 1 << 25 | code, VA, 2)
    assert load.hpfar == IPA >> 12 << 4
    m.words[ROOT2] = SECOND[kind] & ~2
    walked = m.ask("load at EL1", VA)
    code = FSC[kind] + 1
    assert walked.esr == 0x24 << 26 | 1 << 25 | 1 << 7 | code
    assert walked.hpfar == ROOT1 + 8 * (VA >> 39) >> 12 << 4
    assert m.ask("AT S1E1R", VA).par == 1 | code << 1 | 1 << 8 | 1 << 9 | RES1


def test_par_of_a_translation() -> None:
    m = nested(MAIR_EL1=0xBB)
    assert m.ask("AT S12E1R", VA).par == 0xBB << 56 | DATA | RES1 | 1 << 9 | 3 << 7
    assert m.ask("AT S1E1R", VA).par == 0xBB << 56 | IPA & ~0xFFF | RES1 | 1 << 9 | 3 << 7


def test_faults_come_in_the_order_of_the_walk() -> None:
    """Everything is wrong; repaired one by one, the next fault in order shows."""
    m = nested(PAGE2 & ~(3 << 6) & ~AF | 1 << 44, VTCR_EL2=24 | 1 << 6 | 4 << 16)
    leaf = PAGE1 & ~DATA & ~AF | 1 << 45 | 2 << 6
    m.path(geometry(12, 16, 0, ROOT1), VA, leaf & ~1, 3, TABLES1)
    m.registers["TCR_EL1"] = m.registers["TCR_EL1"] & ~(7 << 32) | 4 << 32 | 1 << 7
    m.registers["SCTLR_EL1"] = 4
    at1 = max(at for at in m.words if at >= TABLES1)
    at2 = TABLES2 + 0x1_0000 + 8 * (IPA >> 12 & 511)
    seen = [m.ask("store at EL1", VA | 1 << 50).fault]
    m.registers["SCTLR_EL1"] = 5
    seen.append(m.ask("store at EL1", VA).fault)
    m.registers["TCR_EL1"] &= ~(1 << 7)
    right1 = IPA & ~0xFFF
    for word in (leaf & ~1, leaf, leaf & 0xFFF | right1, leaf & 0xFFF | right1 | AF, PAGE1 & 0xFFF | right1):
        m.words[at1] = word
        seen.append(m.ask("store at EL1", VA).fault)
    for word in (PAGE2 & ~(3 << 6) & ~AF | DATA, PAGE2 & ~(3 << 6) | DATA, PAGE2 | DATA):
        m.words[at2] = word
        seen.append(m.ask("store at EL1", VA).fault)
    assert seen == [
        "s2 translation 0", "translation 0", "translation 3", "address size 3", "access flag 3",
        "permission 3", "s2 address size 3", "s2 access flag 3", "s2 permission 3", "none",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("hcr", "name", "stage1", "target"),
    [
        (0, "load at EL0", True, 1), (0, "load at EL1", True, 1), (0, "load at EL2", True, 2),
        (TGE, "load at EL0", True, 2), (TGE | E2H, "load at EL0", True, 2), (E2H, "load at EL2", True, 2),
        (TEA, "load at EL1", True, 1), (VM, "load at EL1", False, 2), (VM, "load at EL0", False, 2),
    ],
)  # fmt: skip
def test_who_takes_an_abort(hcr: int, name: str, stage1: bool, target: int) -> None:
    """HCR_EL2.TGE sends EL0's to EL2, stage 2 is EL2's; the class says whether the level changed."""
    m = el10(0) if stage1 else nested(0, leaf1=PAGE1 & ~DATA | IPA & ~0xFFF | 1 << 6)
    m.registers |= {"HCR_EL2": hcr, "SCTLR_EL2": 1, "TCR_EL2": 16 | 16 << 16 | 5 << (32 if hcr & E2H else 16),
                    "TTBR0_EL2": ROOT1}  # fmt: skip
    if hcr == TGE:
        m.registers["TCR_EL1"] |= 1 << 7
        found = m.ask("load at EL0", 1 << 52)  # stage 1 is off: only the size of the address can fault
        assert found.fault == "address size 0"
    else:
        found = m.ask(name, VA)
    assert found.target == target
    same = name.endswith(str(target))
    assert found.esr >> 26 == 0x24 + same


@pytest.mark.parametrize(("hcr", "target"), [(0, 1), (TEA, 2), (TGE, 2), (E2H | TGE, 2)])
def test_an_access_to_no_memory_is_an_external_abort(hcr: int, target: int) -> None:
    m = Machine({"HCR_EL2": hcr})
    found = m.ask("load at EL0", END)
    assert (found.fault, found.target, found.esr & 0x3F, found.pa) == ("abort 0", target, 0x10, END)
    assert m.ask("load at EL0", END - 8).fault == "none"
    assert m.ask("AT S1E1R", END).fault == "none"


def regimes() -> Machine:
    """Four outputs, by who translates: EL1&0 alone 1, both stages 2, EL2 or EL2&0 3."""
    m = nested()
    m.path(geometry(12, 16, 0, ROOT1 + 0x8000), VA, PAGE1 + 0x1_0000, 3, TABLES1 + 0x8_0000)
    m.registers |= {"SCTLR_EL2": 5, "MAIR_EL2": 0xFF, "TTBR0_EL2": ROOT1 + 0x8000}
    return m


EL10, BOTH, OF_EL2 = IPA & ~0xFFF | VA & 0xFFF, DATA | VA & 0xFFF, DATA + 0x1_0000 | VA & 0xFFF


@pytest.mark.parametrize(
    ("hcr", "below", "twelve"),
    [(VM, EL10, BOTH), (VM | E2H, EL10, BOTH), (0, EL10, EL10), (VM | E2H | TGE, OF_EL2, OF_EL2)],
)
def test_the_forms_of_at_by_regime(hcr: int, below: int, twelve: int) -> None:
    """HCR_EL2.{E2H, TGE} = {1, 1} turns the E1 and E0 forms to EL2&0, and S12 into S1."""
    m = regimes()
    for at, word in m.words.items():
        if word & 0xFFF == PAGE1 & 0xFFF:
            m.words[at] = word | 1 << 6
    m.registers |= {"HCR_EL2": hcr, "TCR_EL2": 16 | 16 << 16 | 5 << (32 if hcr & E2H else 16)}
    expected = {name: OF_EL2 if "E2" in name else twelve if "S12" in name else below for name in AT}
    found = {name: m.ask(name, VA).pa for name in AT}
    assert found == expected


@pytest.mark.parametrize(
    ("ap", "allowed"),
    [(0, "S1E1R S1E1W S1E1A S1E1RP S1E1WP"), (1, "S1E1R S1E1W S1E0R S1E0W S1E1A"), (2, "S1E1R S1E1A S1E1RP"),
     (3, "S1E1R S1E0R S1E1A")],
)  # fmt: skip
def test_what_the_forms_of_at_check(ap: int, allowed: str) -> None:
    """P: with PSTATE.PAN; A: no permissions at all (FEAT_ATS1A); the plain ones without PAN."""
    m = el10(PAGE1 | ap << 6, PSTATE=1 << 22)
    names = [name for name in AT if name.startswith("AT S1E") and "E2" not in name]
    assert {name[3:] for name in names if m.ask(name, VA).kind == 0} == set(allowed.split())
    unreachable = el10(PAGE1 & ~AF)
    assert unreachable.ask("AT S1E1A", VA).fault == "access flag 3"


def test_an_at_of_el2_without_e2h_has_one_range() -> None:
    m = regimes()
    m.registers |= {"HCR_EL2": 0, "TCR_EL2": 16 | 5 << 16}
    upper = VA | 0xFFFF << 48
    assert m.ask("AT S1E2R", upper).fault == "translation 0"
    m.registers |= {"HCR_EL2": E2H, "TCR_EL2": 16 | 16 << 16 | 2 << 30 | 5 << 32, "TTBR1_EL2": ROOT1 + 0x8000}
    assert m.ask("AT S1E2R", upper).pa == OF_EL2


@pytest.mark.parametrize(("bit", "fault"), [(0, "none"), (1 << 20, "none")])
def test_tags_at_el2(bit: int, fault: str) -> None:
    m = regimes()
    m.registers |= {"HCR_EL2": 0, "TCR_EL2": 16 | 5 << 16 | bit}
    assert m.ask("AT S1E2R", VA).fault == fault
    assert m.ask("AT S1E2R", VA | 0xA5 << 56).fault == ("none" if bit else "translation 0")


@pytest.mark.parametrize(("el", "stage1", "s2ap", "expected"), [
    (1, 0, 3, "none"), (1, 2, 3, "permission 3 write"), (0, 0, 3, "permission 3 read"),
    (0, 3, 3, "permission 3 write"),
    (0, 1, 3, "none"), (1, 0, 1, "s2 permission 3 write"), (1, 0, 2, "s2 permission 3 read"),
    (1, 2, 1, "permission 3 write"),
])  # fmt: skip
def test_an_atomic_is_a_load_and_then_a_store(el: int, stage1: int, s2ap: int, expected: str) -> None:
    m = nested(PAGE2 & ~(3 << 6) | s2ap << 6 | DATA, 3, PAGE1 & ~DATA | IPA & ~0xFFF | stage1 << 6)
    found = m.ask(f"atomic at EL{el}", VA)
    what = " write" if found.esr >> 6 & 1 else " read"
    assert found.fault + (what if found.kind else "") == expected


def test_an_atomic_makes_a_page_dirty() -> None:
    leaf = PAGE1 & ~AF | 1 << 51 | 2 << 6
    m = el10(leaf)
    m.registers["TCR_EL1"] |= 3 << 39
    assert m.ask("atomic at EL1", VA, update=True).fault == "none"
    assert PAGE1 | 1 << 51 in m.words.values()


def test_stage_1_off_lets_an_address_pass_that_the_machine_has() -> None:
    m = Machine({}, ALL, 48)
    assert m.ask("AT S1E1R", 0xFFFF_FFFF_FFFF).pa == 0xFFFF_FFFF_FFFF
    assert m.ask("AT S1E1R", 1 << 48).par == 1 | RES1
    m.registers["TCR_EL1"] = 1 << 37
    assert m.ask("load at EL1", 0x5A << 56 | 0x1000).pa == 0x1000


def test_answers_do_not_depend_on_their_neighbours() -> None:
    m = nested()
    queries = [(name, VA + 8 * i) for i, name in enumerate(NAMES)]
    assert m.ask_all(queries) == [m.ask(*query) for query in queries]
