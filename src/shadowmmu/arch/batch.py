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
from shadowmmu.arch.controls import Stage1, Stage2, stage1_controls, stage2_controls
from shadowmmu.arch.fault import ADDRESS_SIZE, NONE, READ, TRANSLATION, WRITE
from shadowmmu.arch.operation import EL10, Access, access_of
from shadowmmu.arch.regime import beyond_output
from shadowmmu.arch.translate import (
    BIT_55,
    NEXT,
    ONE,
    ZERO,
    Output,
    entry_offset,
    input_address,
    pan_applies,
    stage1_checked,
    stage1_off,
    stage1_refuses,
    stage1_step,
    stage2_output,
    untagged,
)
from shadowmmu.compiled import I64, U64, Word, Words, inline, kernel

FAILED: Final = U64(1 << 63)
BLOCK: Final = 256
"""Walks that descend together."""

STATE: Final = 0
INPUT: Final = 1
TABLE: Final = 2
TABLES: Final = 3
LEAF: Final = 4
SCRATCH: Final = 5
"""Rows of the scratch memory, a column a walk: the leaf's level + 1, or WALKING or DONE; the input address;
the next table, then the output address; the table descriptors' bits; the leaf."""
WALKING: Final = U64(1 << 32)
DONE: Final = U64(2 << 32)
PAGE: Final = U64(12)
IN_PAGE: Final = U64(0xFFF)
"""No granule is smaller than 4K: what lies in one 4K has one leaf."""
NOWHERE: Final = U64((1 << 64) - 1)


@kernel
def stage2_batch(
    mem: Words, row: Words, machine: Implementation, kind: int, intermediate: Words, out: Words
) -> None:
    """Stage 2 alone, for accesses of ``kind`` from EL1 at the IPAs in ``intermediate``. O(n) walks."""
    s2 = stage2_controls(row, machine, EL10)
    for i in range(intermediate.size):
        found = stage2_output(mem, s2, intermediate[i], kind, 1, False, kind == WRITE, False)
        out[i] = word_of(found)


@inline
def word_of(found: Output) -> Word:
    """The word of the result for the outcome of a stage."""
    if found.fault == NONE:
        return found.output
    return FAILED | pack_fault(Failure(found.fault, found.level, found.stage, found.s1ptw, found.ipa))


@inline
def begin(
    s1: Stage1, access: Access, virtual: Words, at: int, count: int, scratch: Words, out: Words
) -> None:
    """Addresses of a block checked and put on their way."""
    lost = beyond_output(s1.regime, s1.root)
    for i in range(count):
        va = untagged(virtual[at + i], s1, access.kind)
        scratch[STATE, i] = DONE
        scratch[TABLES, i] = ZERO
        if stage1_refuses(s1, access, va):
            out[at + i] = FAILED | pack_fault(Failure(TRANSLATION, 0, 1, False, ZERO))
        elif lost:
            out[at + i] = FAILED | pack_fault(Failure(ADDRESS_SIZE, 0, 1, False, ZERO))
        else:
            scratch[STATE, i] = WALKING
            scratch[INPUT, i] = input_address(s1.regime, va)
            scratch[TABLE, i] = s1.root


@inline
def descend(
    mem: Words, s1: Stage1, s2: Stage2, level: int, at: int, count: int, scratch: Words, out: Words
) -> None:
    """One level of stage 1 for every walk of the block that has come so far.

    The walks do not depend on each other, so the processor's misses overlap; and a walk that reads the same
    4K of stage-1 tables as the one before finds it through the same stage-2 leaf.
    """
    states, inputs, reached_tables = scratch[STATE], scratch[INPUT], scratch[TABLE]
    bits, leaves = scratch[TABLES], scratch[LEAF]
    page = NOWHERE
    base = ZERO
    for i in range(count):
        if states[i] == WALKING:
            ia = inputs[i]
            entry = reached_tables[i] + entry_offset(s1.regime, ia, level)
            if entry >> PAGE != page:
                reached = stage2_output(mem, s2, entry, READ, 1, True, False, False)
                if reached.fault != NONE:
                    out[at + i] = word_of(reached)
                    states[i] = DONE
                    continue
                page = entry >> PAGE
                base = reached.output & ~IN_PAGE
            step = stage1_step(mem, s1, base | (entry & IN_PAGE), entry, ia, level, bits[i])
            reached_tables[i] = step.output
            bits[i] = step.tables
            if step.fault == NONE:
                leaves[i] = step.descriptor
                states[i] = U64(level + 1)
            elif step.fault != NEXT:
                out[at + i] = word_of(step)
                states[i] = DONE


@inline
def finish(
    mem: Words,
    s1: Stage1,
    s2: Stage2,
    access: Access,
    held: bool,
    at: int,
    count: int,
    scratch: Words,
    out: Words,
) -> None:
    """The leaves of a block checked, and their addresses through stage 2."""
    for i in range(count):
        state = scratch[STATE, i]
        if state != DONE:
            level = I64(state) - 1
            leaf, address = scratch[LEAF, i], scratch[TABLE, i]
            found = Output(NONE, level, 1, False, ZERO, address, leaf, ZERO, scratch[TABLES, i])
            found = stage1_checked(s1, access, found, held)
            if found.fault == NONE and access.both_stages and s2.enabled:
                writes = access.kind == WRITE
                found = stage2_output(mem, s2, address, access.kind, access.el, False, writes, False)
            out[at + i] = word_of(found)


@inline
def one_half(virtual: Words, at: int, count: int) -> bool:
    """Whether the addresses of a block agree in bit 55."""
    differing = ZERO
    for i in range(count):
        differing |= virtual[at + i] ^ virtual[at]
    return (differing >> BIT_55) & ONE == ZERO


@kernel
def translate_batch(
    mem: Words,
    row: Words,
    machine: Implementation,
    operation: int,
    virtual: Words,
    scratch: Words,
    out: Words,
) -> None:
    """All stages that ``operation`` goes through, for the addresses in ``virtual``. O(n) walks.

    A block of addresses descends level by level, so that the reads of many walks overlap; what ``translate``
    does for each is done in the same order. ``scratch`` is (SCRATCH, BLOCK), its contents do not matter.
    """
    access = access_of(operation, row[c.C_HCR_EL2])
    held = pan_applies(row[c.C_PSTATE] & PSTATE_PAN != ZERO, access, machine)
    s2 = stage2_controls(row, machine, access.regime)
    at = 0
    while at < virtual.size:
        count = min(BLOCK, virtual.size - at)
        if not one_half(virtual, at, count):
            count = 1
        s1 = stage1_controls(row, machine, access.regime, (virtual[at] >> BIT_55) & ONE != ZERO)
        if s1.enabled:
            begin(s1, access, virtual, at, count, scratch, out)
            for level in range(s1.regime.start_level, 4):
                descend(mem, s1, s2, level, at, count, scratch, out)
            finish(mem, s1, s2, access, held, at, count, scratch, out)
        else:
            for i in range(at, at + count):
                found = stage1_off(virtual[i], s1, access.kind, machine.pa_bits)
                if found.fault == NONE and access.both_stages and s2.enabled:
                    writes = access.kind == WRITE
                    found = stage2_output(mem, s2, found.output, access.kind, access.el, False, writes, False)
                out[i] = word_of(found)
        at += count
