"""Fault status codes and syndromes, against the Arm ARM's table and values a real kernel recorded."""

from __future__ import annotations

import pytest

from shadowmmu.arch import fault
from shadowmmu.arch.fault import (
    EXECUTE,
    READ,
    WRITE,
    Fault,
    abort_syndrome,
    fault_kind,
    fault_status,
    faulting_ipa,
)
from shadowmmu.arch.registers import ESR_EL2, HPFAR_EL2
from shadowmmu.compiled import U64

FIRST_CODE = {
    fault.ADDRESS_SIZE: 0x00,
    fault.TRANSLATION: 0x04,
    fault.ACCESS_FLAG: 0x08,
    fault.PERMISSION: 0x0C,
    fault.EXTERNAL_WALK: 0x14,
}


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("kind", FIRST_CODE)
def test_status_code_of_each_kind_and_level(kind: int, level: int) -> None:
    code = FIRST_CODE[kind] + level
    assert int(fault_status(kind, level)) == code
    assert int(fault_kind(U64(code))) == kind
    assert Fault(kind, level).fsc == code


@pytest.mark.parametrize("code", [0x11, 0x12, 0x18, 0x21, 0x28, 0x2A, 0x30, 0x35, 0x3F])
def test_other_status_codes_are_no_kind_of_ours(code: int) -> None:
    assert int(fault_kind(U64(code))) == fault.NONE


LEVEL_MINUS_1 = {fault.ADDRESS_SIZE: 0x29, fault.TRANSLATION: 0x2B, fault.EXTERNAL_WALK: 0x13}


@pytest.mark.parametrize("kind", LEVEL_MINUS_1)
def test_status_codes_of_level_minus_1_have_their_own_places(kind: int) -> None:
    assert int(fault_status(kind, -1)) == LEVEL_MINUS_1[kind]
    assert int(fault_kind(U64(LEVEL_MINUS_1[kind]))) == kind


def test_an_external_abort_of_the_access_itself_has_no_level() -> None:
    assert int(fault_status(fault.EXTERNAL, 0)) == 0x10
    assert int(fault_kind(U64(0x10))) == fault.EXTERNAL
    assert int(fault_status(fault.NONE, 2)) == 0


def test_status_codes_are_distinct() -> None:
    codes = {Fault(kind, level).fsc for kind in FIRST_CODE for level in range(4)}
    codes |= {Fault(kind, -1).fsc for kind in LEVEL_MINUS_1}
    assert len(codes) == 23


def test_a_fault_reads_like_the_manual() -> None:
    assert str(Fault(fault.TRANSLATION, 3)) == "translation fault, level 3 (FSC 0x07)"
    assert (
        str(Fault(fault.EXTERNAL_WALK, 0))
        == "synchronous external abort on a table walk fault, level 0 (FSC 0x14)"
    )


@pytest.mark.parametrize(
    ("access", "register", "kind", "level", "esr"),
    [
        (READ, 5, fault.TRANSLATION, 0, 0x93C5_8004),
        (READ, 5, fault.TRANSLATION, 2, 0x93C5_8006),
        (READ, 5, fault.TRANSLATION, 3, 0x93C5_8007),
        (WRITE, 4, fault.PERMISSION, 3, 0x93C4_804F),
        (EXECUTE, 0, fault.PERMISSION, 3, 0x8200_000F),
        (EXECUTE, 7, fault.PERMISSION, 3, 0x8200_000F),
    ],
)
def test_syndromes_recorded_from_linux(access: int, register: int, kind: int, level: int, esr: int) -> None:
    assert int(abort_syndrome(access, register, fault_status(kind, level) * U64(1))) == esr


def test_a_store_differs_from_a_load_in_wnr_alone() -> None:
    load, store = (int(abort_syndrome(access, 9, U64(0x0F))) for access in (READ, WRITE))
    assert load ^ store == ESR_EL2["WnR"].mask
    assert ESR_EL2.decode(load)["SRT"] == 9


@pytest.mark.parametrize("ipa", [0x9000_0000, 0x9000_0FFF])
def test_hpfar_of_a_recorded_fault(ipa: int) -> None:
    recorded = 0x8000_0000_0090_0000
    assert int(faulting_ipa(U64(ipa))) == recorded & ~HPFAR_EL2["NS"].mask


def test_hpfar_holds_any_ipa_of_52_bits() -> None:
    assert HPFAR_EL2["FIPA"].get(int(faulting_ipa(U64((1 << 52) - 1)))) == (1 << 40) - 1
