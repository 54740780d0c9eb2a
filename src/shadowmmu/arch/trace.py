"""Every descriptor that a translation reads, in order.

The walks are those of ``translate``; here they leave a track. For people and for explanations: a batch of
translations has no use for it. Source: Arm ARM D8.2 (a walk of stage 1 through stage 2).
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch import context as c
from shadowmmu.arch.context import Implementation
from shadowmmu.arch.controls import Stage1, Stage2, stage1_controls, stage2_controls
from shadowmmu.arch.fault import NONE, READ
from shadowmmu.arch.memory import beyond_memory, read_descriptor
from shadowmmu.arch.operation import Access, access_of
from shadowmmu.arch.regime import beyond_output, level_shift, table_address
from shadowmmu.arch.stage2 import stage2_walk
from shadowmmu.arch.translate import (
    BIT_55,
    NEXT,
    ONE,
    THREE,
    ZERO,
    entry_offset,
    input_address,
    stage1_off,
    stage1_refuses,
    stage1_step,
    stage2_output,
    untagged,
)
from shadowmmu.compiled import U64, Word, Words, inline, kernel

T_STAGE: Final = 0
T_LEVEL: Final = 1
T_PA: Final = 2
T_DESCRIPTOR: Final = 3
T_INPUT: Final = 4
T_PLACE: Final = 5
T_FOR_WALK: Final = 6
TRACK: Final = 7
"""Words of one reading: stage, level + 1, where the descriptor stands in memory, the descriptor, the input
address, where it stands by its own stage's pointers (an IPA at stage 1), 1 if read for a stage-1 walk."""
LONGEST: Final = 32
"""No translation reads more: five levels of stage 1, each through five of stage 2, and five at the end."""


@inline
def note(row: Words, stage: int, level: int, word: Word, descriptor: Word, ia: Word, place: Word) -> None:
    """One reading written down."""
    row[T_STAGE] = U64(stage)
    row[T_LEVEL] = U64(level + 1)
    row[T_PA] = word << THREE
    row[T_DESCRIPTOR] = descriptor
    row[T_INPUT] = ia
    row[T_PLACE] = place
    row[T_FOR_WALK] = ZERO


@inline
def trace_stage2(mem: Words, s2: Stage2, ipa: Word, for_walk: bool, out: Words, count: int) -> int:
    """The readings of stage 2 for one address, from row ``count`` on. Returns the next free row."""
    if not s2.enabled or s2.refused:
        return count
    end = stage2_walk(mem, s2.regime, s2.root, ipa, s2.big_endian)
    if end.fault != NONE and end.word == ZERO:
        return count  # refused before the first reading
    r = s2.regime
    table = s2.root
    for level in range(r.start_level, end.level + 1):
        index = ipa >> U64(level_shift(r, level))
        if level != r.start_level:
            index &= (ONE << U64(r.stride)) - ONE
        word = (table >> THREE) + index
        if beyond_memory(mem, word):
            return count
        descriptor = read_descriptor(mem, word, s2.big_endian)
        note(out[count], 2, level, word, descriptor, ipa, word << THREE)
        out[count, T_FOR_WALK] = ONE if for_walk else ZERO
        count += 1
        table = table_address(r, descriptor)
    return count


@inline
def trace_stage1(
    mem: Words, s1: Stage1, s2: Stage2, access: Access, va: Word, pa_bits: int, out: Words
) -> tuple[int, bool, Word]:
    """The readings of stage 1 and of stage 2 below it; whether it came to an end, and where."""
    if not s1.enabled:
        off = stage1_off(va, s1, access.kind, pa_bits)
        return 0, off.fault == NONE, off.output
    plain = untagged(va, s1, access.kind)
    if stage1_refuses(s1, access, plain) or beyond_output(s1.regime, s1.root):
        return 0, False, ZERO
    ia = input_address(s1.regime, plain)
    level, table, tables, count = s1.regime.start_level, s1.root, ZERO, 0
    while True:
        entry = table + entry_offset(s1.regime, ia, level)
        count = trace_stage2(mem, s2, entry, True, out, count)
        at = stage2_output(mem, s2, entry, READ, 1, True, False, False)
        if at.fault != NONE or beyond_memory(mem, at.output >> THREE):
            return count, False, ZERO
        step = stage1_step(mem, s1, at.output, entry, ia, level, tables)
        note(out[count], 1, level, step.word, step.descriptor, plain, entry)
        count += 1
        if step.fault != NEXT:
            return count, step.fault == NONE, step.output
        table, tables = step.output, step.tables
        level += 1


@kernel
def trace(mem: Words, row: Words, machine: Implementation, operation: int, va: Word, out: Words) -> int:
    """The descriptors that ``operation`` on ``va`` reads, into rows of ``out`` (LONGEST, TRACK); how many.

    Permissions are not looked at, so the readings of stage 2 follow whatever stage 1's leaf allows.
    """
    access = access_of(operation, row[c.C_HCR_EL2])
    s1 = stage1_controls(row, machine, access.regime, (va >> BIT_55) & ONE != ZERO)
    s2 = stage2_controls(row, machine, access.regime)
    count, arrived, output = trace_stage1(mem, s1, s2, access, va, machine.pa_bits, out)
    if arrived and access.both_stages:
        count = trace_stage2(mem, s2, output, False, out, count)
    return count
