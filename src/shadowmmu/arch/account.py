"""One translation told in full: every descriptor read, in order, and what came of it.

A debug walk: it reads memory and changes nothing. ``recount`` lists the reads of the walk that
``arch.translate`` does, made of the same pieces; where the two end differently there is a fault in this
room, so the last step always stands beside the outcome.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch import context as c
from shadowmmu.arch.answer import answer
from shadowmmu.arch.context import Implementation
from shadowmmu.arch.controls import Stage1, Stage2, stage1_controls, stage2_controls
from shadowmmu.arch.fault import NONE, READ
from shadowmmu.arch.memory import beyond_memory, read_descriptor
from shadowmmu.arch.operation import access_of
from shadowmmu.arch.regime import Regime, beyond_output, level_shift, output_address, table_address
from shadowmmu.arch.stage1 import Permissions
from shadowmmu.arch.stage2 import TABLE, VALID
from shadowmmu.arch.translate import leaf_permissions, reaches_tables, stage2_output, untagged
from shadowmmu.compiled import U64, Counts, Word, Words, inline, kernel

S_STAGE: Final = 0
S_LEVEL: Final = 1
S_INPUT: Final = 2
S_PLACE: Final = 3
S_PA: Final = 4
S_DESCRIPTOR: Final = 5
S_FOR_WALK: Final = 6
STEP: Final = 8
"""Words of a step: stage; level plus 2; the input address; where the descriptor stands, in the stage's own
output space (an IPA for stage 1) and in physical memory; the descriptor; 1 if read for a stage-1 walk."""

MAX_STEPS: Final = 5 * 6 + 5
"""Five levels of stage 1, each entry behind up to five of stage 2, and five for the output."""

P_PR: Final = 0
"""Permissions of the stage-1 leaf in ``facts``: pr, pw, px, ur, uw, ux, 1 where allowed."""
F_REGIME1: Final = 8
"""Regime of stage 1 in ``facts``: page shift, stride, start level, input, output, format, block level."""
F_REGIME2: Final = 16
F_ENABLED1: Final = 24
F_ENABLED2: Final = 25
F_REGIME: Final = 26
FACTS: Final = 32

ZERO: Final = U64(0)
ONE: Final = U64(1)
THREE: Final = U64(3)
BIT_55: Final = U64(55)
NOWHERE: Final = U64((1 << 64) - 1)


@inline
def put_step(
    steps: Words, n: int, stage: int, level: int, ia: Word, place: Word, pa: Word, read: Word, inner: int
) -> int:
    """Write one step; the number of steps so far."""
    row = steps[n]
    row[S_STAGE] = U64(stage)
    row[S_LEVEL] = U64(level + 2)
    row[S_INPUT] = ia
    row[S_PLACE] = place
    row[S_PA] = pa
    row[S_DESCRIPTOR] = read
    row[S_FOR_WALK] = U64(inner)
    return n + 1


@kernel
def recount_stage2(mem: Words, s2: Stage2, ipa: Word, inner: int, steps: Words, n: int) -> int:
    """List the stage-2 descriptors read for ``ipa``; the number of steps so far."""
    r = s2.regime
    if s2.refused or ipa >> U64(r.ia_bits) != ZERO or beyond_output(r, s2.root):
        return n
    level = r.start_level
    place = s2.root + ((ipa >> U64(level_shift(r, level))) << THREE)
    while not beyond_memory(mem, place >> THREE):
        descriptor = read_descriptor(mem, place >> THREE, s2.big_endian)
        n = put_step(steps, n, 2, level, ipa, place, place, descriptor, inner)
        if descriptor & VALID == ZERO or level == 3 or descriptor & TABLE == ZERO:
            return n
        following = table_address(r, descriptor)
        if beyond_output(r, following):
            return n
        level += 1
        index = (ipa >> U64(level_shift(r, level))) & ((ONE << U64(r.stride)) - ONE)
        place = following + (index << THREE)
    return n


@inline
def put_regime(facts: Counts, at: int, r: Regime) -> None:
    """Write a regime's seven numbers."""
    facts[at] = r.page_shift
    facts[at + 1] = r.stride
    facts[at + 2] = r.start_level
    facts[at + 3] = r.ia_bits
    facts[at + 4] = r.oa_bits
    facts[at + 5] = r.wide
    facts[at + 6] = r.block_level


@inline
def put_permissions(facts: Counts, p: Permissions) -> None:
    """Write what the stage-1 leaf allows."""
    facts[P_PR] = p.pr
    facts[P_PR + 1] = p.pw
    facts[P_PR + 2] = p.px
    facts[P_PR + 3] = p.ur
    facts[P_PR + 4] = p.uw
    facts[P_PR + 5] = p.ux


@kernel
def recount_stage1(
    mem: Words, s1: Stage1, s2: Stage2, va: Word, steps: Words, facts: Counts
) -> tuple[int, Word]:
    """List the descriptors read for ``va``, each behind those of stage 2, and the leaf's permissions.

    Returns the number of steps and where stage 1 sends ``va``; all ones where it ends before a leaf.
    """
    r = s1.regime
    n = 0
    if beyond_output(r, s1.root):
        return n, NOWHERE
    ia = va & ((ONE << U64(r.ia_bits)) - ONE)
    level = r.start_level
    entry = s1.root + ((ia >> U64(level_shift(r, level))) << THREE)
    tables = ZERO
    while True:
        if s2.enabled:
            n = recount_stage2(mem, s2, entry, 1, steps, n)
        at = stage2_output(mem, s2, entry, READ, 1, True, False, False)
        if at.fault != NONE or beyond_memory(mem, at.output >> THREE):
            return n, NOWHERE
        descriptor = read_descriptor(mem, at.output >> THREE, s1.big_endian)
        n = put_step(steps, n, 1, level, va, entry, at.output, descriptor, 0)
        if descriptor & VALID == ZERO:
            return n, NOWHERE
        if level == 3 or descriptor & TABLE == ZERO:
            put_permissions(facts, leaf_permissions(s1, descriptor, tables))
            return n, output_address(r, descriptor, level, ia)
        entry = table_address(r, descriptor)
        if beyond_output(r, entry):
            return n, NOWHERE
        tables |= descriptor
        level += 1
        entry += ((ia >> U64(level_shift(r, level))) & ((ONE << U64(r.stride)) - ONE)) << THREE


@kernel
def recount(
    mem: Words,
    row: Words,
    machine: Implementation,
    operation: int,
    va: Word,
    steps: Words,
    facts: Counts,
    out: Words,
) -> int:
    """Tell one translation: its reads into ``steps`` (MAX_STEPS, STEP), what was decoded into ``facts``
    (FACTS), the answer into ``out`` (as ``arch.answer``). Returns the number of steps. Changes no memory.
    """
    answer(mem, row, machine, operation, va, False, out)
    access = access_of(operation, row[c.C_HCR_EL2])
    s1 = stage1_controls(row, machine, access.regime, (va >> BIT_55) & ONE != ZERO)
    s2 = stage2_controls(row, machine, access.regime)
    put_regime(facts, F_REGIME1, s1.regime)
    put_regime(facts, F_REGIME2, s2.regime)
    facts[F_ENABLED1] = s1.enabled
    facts[F_ENABLED2] = s2.enabled
    facts[F_REGIME] = access.regime
    n = 0
    ipa = va
    if s1.enabled:
        address = untagged(va, s1, access.kind)
        if not reaches_tables(s1, address, access.el):
            return n
        n, ipa = recount_stage1(mem, s1, s2, address, steps, facts)
    if s2.enabled and access.both_stages and ipa != NOWHERE:
        n = recount_stage2(mem, s2, ipa, 0, steps, n)
    return n
