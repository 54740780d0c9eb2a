"""One translation told in full: what the registers decode to, what is read, what comes of it.

``arch.trace`` lists the descriptors; here they get the regimes, the permissions and the answer beside them.
A debug walk: it reads memory and changes nothing.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch import context as c
from shadowmmu.arch.answer import answer
from shadowmmu.arch.context import Implementation
from shadowmmu.arch.controls import Stage1, stage1_controls, stage2_controls
from shadowmmu.arch.operation import access_of
from shadowmmu.arch.regime import Regime
from shadowmmu.arch.stage1 import Permissions
from shadowmmu.arch.stage2 import TABLE, VALID
from shadowmmu.arch.trace import T_DESCRIPTOR, T_LEVEL, T_STAGE, trace
from shadowmmu.arch.translate import leaf_permissions
from shadowmmu.compiled import I64, U64, Counts, Word, Words, inline, kernel

P_PR: Final = 0
"""Permissions of the stage-1 leaf in ``facts``: pr, pw, px, ur, uw, ux, 1 where allowed."""
P_KNOWN: Final = 6
"""1 where stage 1 came to a leaf."""
F_REGIME1: Final = 8
"""Regime of stage 1 in ``facts``: page shift, stride, start level, input, output, format, block level."""
F_REGIME2: Final = 16
F_ENABLED1: Final = 24
F_ENABLED2: Final = 25
F_REGIME: Final = 26
FACTS: Final = 32

ZERO: Final = U64(0)
ONE: Final = U64(1)
BIT_55: Final = U64(55)


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
    facts[P_KNOWN] = 1


@inline
def leaf_facts(s1: Stage1, track: Words, count: int, facts: Counts) -> None:
    """The permissions of the stage-1 leaf on the track, if the walk came to one."""
    tables = ZERO
    for i in range(count):
        if track[i, T_STAGE] == ONE:
            descriptor = track[i, T_DESCRIPTOR]
            level = I64(track[i, T_LEVEL]) - 1
            if descriptor & VALID != ZERO:
                if level == 3 or descriptor & TABLE == ZERO:
                    put_permissions(facts, leaf_permissions(s1, descriptor, tables))
                else:
                    tables |= descriptor


@kernel
def recount(
    mem: Words,
    row: Words,
    machine: Implementation,
    operation: int,
    va: Word,
    track: Words,
    facts: Counts,
    out: Words,
) -> int:
    """Tell one translation: its reads into ``track`` (as ``arch.trace``), what was decoded into ``facts``
    (FACTS), the answer into ``out`` (as ``arch.answer``). Returns the number of reads. Changes no memory.
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
    count = trace(mem, row, machine, operation, va, track)
    leaf_facts(s1, track, count, facts)
    return I64(count)
