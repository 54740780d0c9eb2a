"""The AT instruction of stage 1, as the CPU executes it over the machine's memory.

The rules are those of ``arch.translate``; only the memory differs: pages of data have no place in
``State.mem`` (``machine.frames``), so the walk reads its tables with ``read_memory``. Hardware updates are
left out: an AT changes no memory here. Source: Arm ARM C5.4, pseudocode ``AArch64.AT``, ``AArch64.S1Walk``.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.answer import par_of
from shadowmmu.arch.context import Implementation
from shadowmmu.arch.controls import Stage1, Stage2, machine_has_tags, stage1_controls
from shadowmmu.arch.fault import ADDRESS_SIZE, NONE, READ, TRANSLATION
from shadowmmu.arch.memory import swapped
from shadowmmu.arch.operation import Access
from shadowmmu.arch.regime import beyond_output, level_shift, output_address, table_address
from shadowmmu.arch.stage2 import TABLE, VALID, leaf_fault
from shadowmmu.arch.translate import (
    Output,
    pan_applies,
    stage1_account,
    stage1_checked,
    stage1_off,
    stage1_refuses,
    stage2_output,
    untagged,
)
from shadowmmu.compiled import U64, Word, Words, inline, kernel
from shadowmmu.machine.frames import read_memory
from shadowmmu.machine.state import State

ZERO: Final = U64(0)
ONE: Final = U64(1)
THREE: Final = U64(3)
BIT_55: Final = U64(55)


@inline
def fault_of(kind: int, level: int) -> Output:
    """A stage-1 fault that no descriptor caused."""
    return Output(kind, level, 1, False, ZERO, ZERO, ZERO, ZERO, ZERO)


@kernel
def walk_stage1(s: State, s1: Stage1, s2: Stage2, va: Word) -> Output:
    """Walk stage 1 for an address in range, each table through stage 2. Source: ``AArch64.S1Walk``."""
    r = s1.regime
    ia = va & ((ONE << U64(r.ia_bits)) - ONE)
    if beyond_output(r, s1.root):
        return fault_of(ADDRESS_SIZE, 0)
    level = r.start_level
    index_mask = (ONE << U64(r.stride)) - ONE
    entry = s1.root + ((ia >> U64(level_shift(r, level))) << THREE)
    tables = ZERO
    while True:
        at = stage2_output(s.mem, s2, entry, READ, 1, True, False, False)
        if at.fault != NONE:
            return at
        word = at.output >> THREE
        descriptor = read_memory(s, at.output)
        if s1.big_endian:
            descriptor = swapped(descriptor)
        if descriptor & VALID == ZERO:
            return Output(TRANSLATION, level, 1, False, entry, ZERO, descriptor, word, tables)
        if level == 3 or descriptor & TABLE == ZERO:
            fault = leaf_fault(r, descriptor, level, ia)
            output = output_address(r, descriptor, level, ia)
            return Output(fault, level, 1, False, entry, output, descriptor, word, tables)
        following = table_address(r, descriptor)
        if beyond_output(r, following):
            return Output(ADDRESS_SIZE, level, 1, False, entry, ZERO, descriptor, word, tables)
        tables |= descriptor
        level += 1
        entry = following + (((ia >> U64(level_shift(r, level))) & index_mask) << THREE)


@inline
def stage1_result(
    s: State, s1: Stage1, s2: Stage2, access: Access, va: Word, pan: bool, pa_bits: int
) -> Output:
    """Stage 1 of one address. Source: ``AArch64.S1Translate``."""
    if not s1.enabled:
        return stage1_off(va, s1, access.kind, pa_bits)
    address = untagged(va, s1, access.kind)
    if stage1_refuses(s1, access, address):
        return fault_of(TRANSLATION, 0)
    walked = walk_stage1(s, s1, s2, address)
    return walked if walked.fault != NONE else stage1_checked(s1, access, walked, pan)


@kernel
def execute_at(
    s: State, row: Words, cpu: Implementation, s2: Stage2, access: Access, va: Word, pan: bool
) -> Word:
    """PAR_EL1 after AT of stage 1: ``row`` holds the registers of the CPU, ``s2`` the stage 2 loaded.

    ``pan``: PSTATE.PAN. O(levels of stage 1 x levels of stage 2).
    """
    upper = (va >> BIT_55) & ONE != ZERO
    s1 = stage1_controls(row, cpu, access.regime, upper)
    first = stage1_result(s, s1, s2, access, va, pan_applies(pan, access, cpu), cpu.pa_bits)
    return par_of(stage1_account(first, s1, machine_has_tags(cpu)))
