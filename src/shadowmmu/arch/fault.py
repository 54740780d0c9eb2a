"""Faults of a translation: kinds, fault status codes, and the syndrome of the abort they cause.

Source: Arm ARM D8.15 (kinds and priorities), D24.2.41 (ESR_ELx.ISS for aborts), table of FSC values.
Kernels carry a fault as two integers, kind and level; ``Fault`` is the frozen record of the surface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shadowmmu.arch.registers import ESR_EL2, HPFAR_EL2
from shadowmmu.compiled import I64, U64, Word, inline

NONE: Final = 0
ADDRESS_SIZE: Final = 1
TRANSLATION: Final = 2
ACCESS_FLAG: Final = 3
PERMISSION: Final = 4
EXTERNAL_WALK: Final = 5
EXTERNAL: Final = 6

NAMES: Final = {
    NONE: "none",
    ADDRESS_SIZE: "address size",
    TRANSLATION: "translation",
    ACCESS_FLAG: "access flag",
    PERMISSION: "permission",
    EXTERNAL_WALK: "synchronous external abort on a table walk",
    EXTERNAL: "synchronous external abort",
}

READ: Final = 0
WRITE: Final = 1
EXECUTE: Final = 2

ESR_FSC: Final = ESR_EL2.mask("FSC")
ESR_WNR: Final = ESR_EL2.mask("WnR")
ESR_EC_SHIFT: Final = ESR_EL2.lsb("EC")
EC_INSTRUCTION_ABORT: Final = U64(0x20)
EC_DATA_ABORT: Final = U64(0x24)
EC_INSTRUCTION_CURRENT: Final = U64(0x21)
EC_DATA_CURRENT: Final = U64(0x25)
ESR_IL: Final = ESR_EL2.mask("IL")
# The access the laboratory's L2 makes: a 64-bit load or store whose syndrome is valid.
ISS_ACCESS: Final = U64(ESR_EL2.encode(ISV=1, SAS=3, SF=1))
SRT_SHIFT: Final = ESR_EL2.lsb("SRT")
FIPA_SHIFT: Final = HPFAR_EL2.lsb("FIPA")
PAGE: Final = U64(12)


@dataclass(frozen=True)
class Fault:
    """One fault: what kind, at which level of the walk."""

    kind: int
    level: int

    @property
    def fsc(self) -> int:
        """Fault status code as ESR_ELx.ISS and PAR_EL1 carry it."""
        return int(fault_status(self.kind, self.level))

    def __str__(self) -> str:
        return f"{NAMES[self.kind]} fault, level {self.level} (FSC {self.fsc:#04x})"


@inline
def fault_status(kind: int, level: int) -> Word:
    """The fault status code of ``kind`` at ``level`` -1..3; 0 for NONE. Source: Arm ARM, ISS encoding, DFSC.

    Level -1 has codes of its own: address size 0x29, translation 0x2B, walk abort 0x13.
    """
    if kind == NONE:
        return U64(0)
    if kind == EXTERNAL:
        return U64(0x10)
    if kind == EXTERNAL_WALK:
        return U64(0x14 + level)
    if level < 0:
        return U64(0x29) if kind == ADDRESS_SIZE else U64(0x2B)
    return U64((kind - 1) * 4 + level)


@inline
def fault_kind(fsc: Word) -> int:
    """The kind of a fault status code; NONE for codes this laboratory does not produce."""
    code = I64(fsc)
    if code < 0x10:
        return (code >> 2) + 1
    if 0x13 <= code < 0x18:
        return EXTERNAL_WALK
    if code == 0x10:
        return EXTERNAL
    if code == 0x29:
        return ADDRESS_SIZE
    if code == 0x2B:
        return TRANSLATION
    return NONE


@inline
def abort_syndrome(access: int, register: int, fsc: Word) -> Word:
    """ESR_EL2 of a lower-EL abort: a 64-bit load or store of ``register``, or an instruction fetch."""
    if access == EXECUTE:
        return (EC_INSTRUCTION_ABORT << ESR_EC_SHIFT) | ESR_IL | fsc
    esr = (EC_DATA_ABORT << ESR_EC_SHIFT) | ESR_IL | ISS_ACCESS | (U64(register) << SRT_SHIFT) | fsc
    if access == WRITE:
        esr |= ESR_WNR
    return esr


@inline
def faulting_ipa(ipa: Word) -> Word:
    """HPFAR_EL2.FIPA in place for the page of ``ipa``."""
    return (ipa >> PAGE) << FIPA_SHIFT
