"""What QEMU said, in the columns of ``shadowmmu.arch.answer``, made from the raw results of the stub."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from shadowmmu.compiled import Counts, Words
from shadowmmu.oracles.qemu.layout import TAG, TAG_CRASHED, TAG_DECLINED, TAG_EL1, TAG_EL2, TAG_OWN

COLUMNS: Final = ("PAR", "ESR", "FAR", "HPFAR", "TARGET_EL", "FAULT", "PA", "STATUS")
PAR, ESR, FAR, HPFAR, TARGET_EL, FAULT, PA, STATUS = range(8)

ANSWERED: Final = 0
DECLINED: Final = 1
"""A store that would make a page dirty, and whose byte cannot be read first to write it back."""
UNREACHABLE: Final = 2
"""The code that makes the access could not be fetched: the query was not reached."""
CRASHED: Final = 3
"""QEMU ended or hung on this query."""
UNEXPECTED: Final = 4
"""An exception that no query should cause; ESR has its syndrome."""
STATUS_NAMES: Final = ("answered", "declined", "unreachable", "crashed", "unexpected")

FIRST_ACCESS: Final = 12
"""Operations before this one are AT instructions."""
FETCHES: Final = (14, 17)
LAST_ACCESS: Final = 22

_INSTRUCTION_ABORTS: Final = (0x20, 0x21)
_DATA_ABORTS: Final = (0x24, 0x25)


def accesses(operations: Words | Counts) -> npt.NDArray[np.bool_]:
    """Which operations are loads, stores, fetches or atomics."""
    return (operations >= FIRST_ACCESS) & (operations <= LAST_ACCESS)


def decode(raw: Words, operations: Words | Counts, stub_el: int) -> Words:
    """Rows of ``COLUMNS`` from the stub's rows of PAR or tag, ESR, FAR, HPFAR.

    PA stays 0: of a real access QEMU does not tell it. An access that went through has TARGET_EL 0.
    """
    out = np.zeros((len(raw), len(COLUMNS)), np.uint64)
    tagged = raw[:, 0] >> np.uint64(48) == TAG
    tag = np.where(tagged, raw[:, 0] & np.uint64(0xFF), np.uint64(0))
    syndrome = (raw[:, 1] >> np.uint64(26) & np.uint64(0x3F)).astype(np.int64)  # ISS2 stands above it
    access = accesses(operations)
    fetch = np.isin(operations, FETCHES)
    instruction = np.isin(syndrome, _INSTRUCTION_ABORTS)
    data = np.isin(syndrome, _DATA_ABORTS)

    out[:, PAR] = np.where(tagged, np.uint64(0), raw[:, 0])
    own = tag == TAG_OWN
    lower = (tag == TAG_EL1) | (tag == TAG_EL2)
    aborted = lower & np.where(fetch, instruction, data)
    taken = own | aborted
    out[own, TARGET_EL] = stub_el
    out[aborted & (tag == TAG_EL1), TARGET_EL] = 1
    out[aborted & (tag == TAG_EL2), TARGET_EL] = 2
    out[taken, ESR] = raw[taken, 1]
    out[taken, FAR] = raw[taken, 2]
    out[aborted & (tag == TAG_EL2), HPFAR] = raw[aborted & (tag == TAG_EL2), 3]

    out[lower & ~fetch & instruction, STATUS] = UNREACHABLE
    out[tag == TAG_DECLINED, STATUS] = DECLINED
    odd = tagged & ~own & ~lower & (tag != TAG_DECLINED) | own & access
    out[odd, STATUS] = UNEXPECTED
    out[odd, ESR] = raw[odd, 1]
    out[tag == TAG_CRASHED, STATUS] = CRASHED
    out[:, FAULT] = fault_word(out)
    return out


def fault_word(out: Words) -> Words:
    """FAULT (kind, level + 1 << 8, stage << 16, s1ptw << 24) as PAR or ESR and TARGET_EL tell it; else 0.

    Fault status 0x2B and 0x29 are level -1 (Arm ARM, ISS encoding of data aborts).
    """
    par, esr = out[:, PAR].astype(np.int64), out[:, ESR].astype(np.int64)
    excepted = out[:, TARGET_EL] != 0
    by_par = ~excepted & (par & 1 == 1)
    status = np.where(excepted, esr & 0x3F, (par >> 1) & 0x3F)
    by_level = np.array([1, 2, 3, 4, 0, 5, 0, 0])[status >> 2 & 7]
    kind = np.where(status < 0x18, by_level, 0)
    level = np.where(status < 0x18, status & 3, 0)
    for code, special in ((0x29, 1), (0x2B, 2), (0x13, 5)):
        kind = np.where(status == code, special, kind)
        level = np.where(status == code, -1, level)
    second = np.where(excepted, out[:, HPFAR] != 0, (par >> 9 & 1 == 1))
    second |= excepted & (out[:, TARGET_EL] == 2)
    walk = np.where(excepted, esr >> 7 & 1, par >> 8 & 1)
    word = kind | (level + 1) << 8 | np.where(second, 2, 1) << 16 | walk << 24
    return np.where((excepted | by_par) & (kind != 0), word, 0).astype(np.uint64)
