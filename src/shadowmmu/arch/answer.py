"""What software sees of a translation: PAR_EL1 of an AT instruction, the exception of an access.

``answers`` does a batch: the same rows of registers, operations and addresses that an oracle executes.
Source: Arm ARM D24.2.133 (PAR_EL1), D24.2.40-41 (ESR_EL1, ESR_EL2), D24.2.57 (HPFAR_EL2), D1.3 (which level
takes an abort); pseudocode ``AArch64.EncodePAR``, ``AArch64.FaultSyndrome``, ``AArch64.DataAbort``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch import context as c
from shadowmmu.arch.context import Implementation
from shadowmmu.arch.fault import (
    EC_DATA_ABORT,
    EC_INSTRUCTION_ABORT,
    ESR_EC_SHIFT,
    ESR_IL,
    ESR_WNR,
    EXECUTE,
    EXTERNAL,
    EXTERNAL_WALK,
    NONE,
    WRITE,
    fault_status,
    faulting_ipa,
)
from shadowmmu.arch.memory import beyond_memory
from shadowmmu.arch.operation import ATOMIC_EL0, ATOMIC_EL1, Access, access_of, load_of
from shadowmmu.arch.registers import ESR_EL2, HCR_EL2, PAR_FAULT, PAR_SUCCESS, PSTATE
from shadowmmu.arch.translate import Account, translate
from shadowmmu.compiled import U64, Counts, Word, Words, inline, kernel

ZERO: Final = U64(0)
ONE: Final = U64(1)
THREE: Final = U64(3)
PAR_F: Final = PAR_FAULT.mask("F")
PAR_FST_SHIFT: Final = PAR_FAULT.lsb("FST")
PAR_PTW: Final = PAR_FAULT.mask("PTW")
PAR_S: Final = PAR_FAULT.mask("S")
PAR_RES1: Final = PAR_FAULT.mask("RES1")
PAR_NS: Final = PAR_SUCCESS.mask("NS")
PAR_SH_SHIFT: Final = PAR_SUCCESS.lsb("SH")
PAR_PA: Final = PAR_SUCCESS.mask("PA")
PAR_ATTR_SHIFT: Final = PAR_SUCCESS.lsb("ATTR")
ESR_S1PTW: Final = ESR_EL2.mask("S1PTW")
ESR_CM: Final = ESR_EL2.mask("CM")
HCR_TGE: Final = HCR_EL2.mask("TGE")
HCR_TEA: Final = HCR_EL2.mask("TEA")
PSTATE_PAN: Final = PSTATE.mask("PAN")

A_PAR: Final = 0
A_ESR: Final = 1
A_FAR: Final = 2
A_HPFAR: Final = 3
A_TARGET: Final = 4
A_FAULT: Final = 5
A_PA: Final = 6
A_LEVELS: Final = 7
ANSWER: Final = 8
"""Words of an answer: PAR_EL1; ESR, FAR, HPFAR and the exception level that takes the exception (0: none);
the fault packed by ``pack_fault``; the output address; leaf levels of stage 1 (low byte) and 2, plus 2."""


class Taken(NamedTuple):
    """An exception: the level that takes it (0: none), ESR, FAR, HPFAR."""

    target: int
    esr: Word
    far: Word
    hpfar: Word


class Failure(NamedTuple):
    """The fault of an account, or of the access that follows a translation."""

    fault: int
    level: int
    stage: int
    s1ptw: bool
    ipa: Word


@inline
def par_of(account: Account) -> Word:
    """PAR_EL1 after an AT instruction in Non-secure state. Source: ``AArch64.EncodePAR``."""
    if account.fault != NONE:
        par = PAR_F | PAR_RES1 | (fault_status(account.fault, account.level) << PAR_FST_SHIFT)
        if account.s1ptw:
            par |= PAR_PTW
        if account.stage == 2:
            par |= PAR_S
        return par
    return (
        (account.pa & PAR_PA)
        | PAR_RES1
        | PAR_NS
        | (U64(account.shareability) << PAR_SH_SHIFT)
        | (U64(account.attribute) << PAR_ATTR_SHIFT)
    )


@inline
def pack_fault(failure: Failure) -> Word:
    """Kind in bits 7:0, level + 1 in 15:8, stage in 23:16, s1ptw in bit 24; 0 for no fault."""
    if failure.fault == NONE:
        return ZERO
    packed = failure.fault | (failure.level + 1) << 8 | failure.stage << 16
    if failure.s1ptw:
        packed |= 1 << 24
    return U64(packed)


@inline
def failure_of(account: Account, access: Access, mem: Words) -> Failure:
    """The fault, if any; an access whose output lies behind the end of memory is aborted from outside."""
    if account.fault == NONE and not access.at and beyond_memory(mem, account.pa >> THREE):
        return Failure(EXTERNAL, 0, 1, False, ZERO)
    return Failure(account.fault, account.level, account.stage, account.s1ptw, account.ipa)


@inline
def is_external(fault: int) -> bool:
    """Whether memory, not the tables, refused."""
    return fault == EXTERNAL or fault == EXTERNAL_WALK


@inline
def target_level(failure: Failure, access: Access, hcr: Word) -> int:
    """The exception level that takes the abort; an AT is taken to run at EL2.

    Source: ``AArch64.DataAbort``, HCR_EL2.{TGE, TEA}.
    """
    if access.at or access.el == 2 or failure.stage == 2 or hcr & HCR_TGE != ZERO:
        return 2
    return 2 if is_external(failure.fault) and hcr & HCR_TEA != ZERO else 1


@inline
def abort_of(failure: Failure, access: Access, va: Word, hcr: Word) -> Taken:
    """The abort an access takes. ESR comes without the instruction's syndrome (ISV and what it validates).

    HPFAR_EL2 is 0 where the fault leaves it unknown. Source: ``AArch64.FaultSyndrome``.
    """
    target = target_level(failure, access, hcr)
    ec = EC_INSTRUCTION_ABORT if access.kind == EXECUTE else EC_DATA_ABORT
    if access.el == target or access.at:
        ec |= ONE
    esr = (ec << ESR_EC_SHIFT) | ESR_IL | fault_status(failure.fault, failure.level)
    if failure.s1ptw:
        esr |= ESR_S1PTW
    if access.at:
        esr |= ESR_CM
    if access.at or access.kind == WRITE:
        esr |= ESR_WNR
    known = failure.stage == 2 and not is_external(failure.fault)
    return Taken(target, esr, va, faulting_ipa(failure.ipa) if known else ZERO)


@inline
def account_of(
    mem: Words, row: Words, machine: Implementation, operation: int, va: Word, update: bool
) -> Account:
    """The account of ``operation``; of an atomic, the store's half. An AT instruction changes no memory."""
    access = access_of(operation, row[c.C_HCR_EL2])
    pan = row[c.C_PSTATE] & PSTATE_PAN != ZERO
    return translate(mem, row, machine, access, va, pan, update and not access.at)


@kernel
def answer(
    mem: Words, row: Words, machine: Implementation, operation: int, va: Word, update: bool, out: Words
) -> None:
    """What software sees of one operation, into the eight words of ``out``.

    An atomic is a load, then a store: what the load may not do is reported as a read.
    """
    if operation == ATOMIC_EL1 or operation == ATOMIC_EL0:
        load = load_of(operation)
        answer_once(mem, row, machine, load, va, update, out)
        if out[A_FAULT] != ZERO:
            return
        answer_once(mem, row, machine, load + 1, va, update, out)
    else:
        answer_once(mem, row, machine, operation, va, update, out)


@kernel
def answer_once(
    mem: Words, row: Words, machine: Implementation, operation: int, va: Word, update: bool, out: Words
) -> None:
    """What software sees of an operation that is one access."""
    hcr = row[c.C_HCR_EL2]
    access = access_of(operation, hcr)
    account = account_of(mem, row, machine, operation, va, update)
    failure = failure_of(account, access, mem)
    taken = Taken(0, ZERO, ZERO, ZERO)
    if failure.fault != NONE and (not access.at or is_external(failure.fault)):
        taken = abort_of(failure, access, va, hcr)
    out[A_PAR] = par_of(account) if access.at and taken.target == 0 else ZERO
    out[A_ESR] = taken.esr
    out[A_FAR] = taken.far
    out[A_HPFAR] = taken.hpfar
    out[A_TARGET] = U64(taken.target)
    out[A_FAULT] = pack_fault(failure)
    out[A_PA] = account.pa
    out[A_LEVELS] = U64((account.level1 + 2) | (account.level2 + 2) << 8)


@kernel
def answers(
    mem: Words,
    contexts: Words,
    context_of: Counts,
    operations: Counts,
    virtual: Words,
    machine: Implementation,
    update: bool,
    out: Words,
) -> None:
    """A batch: query i is ``operations[i]`` on ``virtual[i]`` under row ``context_of[i]``; ``out`` is (n, 8).

    ``update``: accesses set AF and dirty state in ``mem``, in the order of the batch. O(n) walks.
    """
    for i in range(virtual.size):
        answer(mem, contexts[context_of[i]], machine, operations[i], virtual[i], update, out[i])
