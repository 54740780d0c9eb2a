"""Many translations under one row of registers: decoded once, walked many times.

The pieces are those of ``translate``; only the loops are here. A word of a result is an output address, or
has bit 63 set and holds the fault as ``pack_fault`` packs it. Nothing is written to memory.
Source: Arm ARM D8.1-D8.4; pseudocode ``AArch64.FullTranslate``, ``AArch64.S2Translate``.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch import context as c
from shadowmmu.arch.answer import PSTATE_PAN, Failure, pack_fault
from shadowmmu.arch.context import Implementation
from shadowmmu.arch.controls import stage1_controls, stage2_controls
from shadowmmu.arch.fault import NONE, WRITE
from shadowmmu.arch.operation import EL10, access_of
from shadowmmu.arch.translate import BIT_55, ONE, ZERO, pan_applies, stage2_output, translate_decoded
from shadowmmu.compiled import U64, Words, kernel

FAILED: Final = U64(1 << 63)


@kernel
def stage2_batch(
    mem: Words, row: Words, machine: Implementation, kind: int, intermediate: Words, out: Words
) -> None:
    """Stage 2 alone, for accesses of ``kind`` from EL1 at the IPAs in ``intermediate``. O(n) walks."""
    s2 = stage2_controls(row, machine, EL10)
    for i in range(intermediate.size):
        found = stage2_output(mem, s2, intermediate[i], kind, 1, False, kind == WRITE, False)
        if found.fault == NONE:
            out[i] = found.output
        else:
            failure = Failure(found.fault, found.level, found.stage, found.s1ptw, found.ipa)
            out[i] = FAILED | pack_fault(failure)


@kernel
def translate_batch(
    mem: Words, row: Words, machine: Implementation, operation: int, virtual: Words, out: Words
) -> None:
    """All stages that ``operation`` goes through, for the addresses in ``virtual``. O(n) walks."""
    access = access_of(operation, row[c.C_HCR_EL2])
    held = pan_applies(row[c.C_PSTATE] & PSTATE_PAN != ZERO, access, machine)
    s2 = stage2_controls(row, machine, access.regime)
    upper = False
    s1 = stage1_controls(row, machine, access.regime, upper)
    for i in range(virtual.size):
        va = virtual[i]
        if ((va >> BIT_55) & ONE != ZERO) != upper:
            upper = not upper
            s1 = stage1_controls(row, machine, access.regime, upper)
        found = translate_decoded(mem, machine, s1, s2, access, va, held, False)
        if found.fault == NONE:
            out[i] = found.pa
        else:
            failure = Failure(found.fault, found.level, found.stage, found.s1ptw, found.ipa)
            out[i] = FAILED | pack_fault(failure)
