"""Entries of ``reverse_table``: what they say, the word of ``State.side``, whose they are, how many.

An entry names a shadow descriptor and the life of the shadow MMU it belongs to, its *generation*. A wipe ends
that: the entries are stale then and go one by one. The accounts here (entries of each MMU, stale ones,
broken MMUs) say without a look at the entries what is left. A fill adds to that of its own MMU alone.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, inline
from shadowmmu.designs.reverse_nodes import RT_BROKEN, RT_GENERATION, RT_GONE, RT_STALE
from shadowmmu.machine.frames import frame_of, owner_mmu
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import CANONICAL, M_DESIGN

M_BROKEN: Final = M_DESIGN
M_STAMP: Final = M_DESIGN + 1
M_GENERATION: Final = M_DESIGN + 2
"""Column: the generation of an MMU's entries; 0 of the canonical one, which has none."""
M_RECORDED: Final = M_DESIGN + 3
"""Column: entries of that generation."""

ZERO: Final = U64(0)
ONE: Final = U64(1)

# An entry: index of the shadow descriptor (64 GiB of tables), and the generation of its MMU.
DESCRIPTOR: Final = U64((1 << 33) - 1)
GENERATION_SHIFT: Final = U64(33)
GENERATION: Final = U64((1 << 16) - 1)
# ``State.side``: canonical page number (40 bits), level of the entry, generation of the MMU; never 0. Of a
# descriptor whose entry an unmap took it is old.
SIDE_PAGE: Final = U64(24)
SIDE_LEVEL: Final = U64(16)
LEVEL_MASK: Final = U64(3)
PAGE: Final = U64(12)
OVER: Final = U64(1)
"""The generation of stale entries after a renumbering; no MMU ever has it."""


@inline
def side_word(canonical_ipa: Word, level: int, generation: Word) -> Word:
    """What ``side`` keeps of an entry."""
    return ((canonical_ipa >> PAGE) << SIDE_PAGE) | (U64(level) << SIDE_LEVEL) | generation


@inline
def side_canonical(recorded: Word) -> Word:
    """The canonical address of a word of ``side``."""
    return (recorded >> SIDE_PAGE) << PAGE


@inline
def side_level(recorded: Word) -> int:
    """The level of a word of ``side``."""
    return I64((recorded >> SIDE_LEVEL) & LEVEL_MASK)


@inline
def entry_of(descriptor: Word, generation: Word) -> Word:
    """What the record keeps of a descriptor. It says whose life it belongs to, so that ``side`` need not."""
    return descriptor | (generation << GENERATION_SHIFT)


@inline
def entry_owner(s: State, entry: Word) -> int:
    """The shadow MMU of a live entry; ``CANONICAL`` if it is stale: wiped away, whoever has the frame now."""
    mmu = owner_mmu(s, frame_of(s, entry & DESCRIPTOR))
    return mmu if (entry >> GENERATION_SHIFT) & GENERATION == s.mmus[mmu, M_GENERATION] else CANONICAL


@inline
def next_generation(s: State, mmu: int) -> None:
    """Give an MMU a generation that no entry has."""
    s.rmap[RT_GENERATION] += ONE
    s.mmus[mmu, M_GENERATION] = s.rmap[RT_GENERATION]


@inline
def count_gone(s: State, mmu: int) -> None:
    """Count an entry that goes: a live one of ``mmu``, or with ``CANONICAL`` a stale one."""
    if mmu == CANONICAL:
        s.rmap[RT_STALE] -= ONE
    else:
        s.mmus[mmu, M_RECORDED] -= ONE


@inline
def count_stale(s: State, gone: Word) -> None:
    """Count stale entries that go."""
    s.rmap[RT_GONE] += gone
    s.rmap[RT_STALE] -= gone


@inline
def set_broken(s: State, mmu: int, broken: Word) -> None:
    """Note that the record of an MMU is not complete (1), or is again (0)."""
    s.rmap[RT_BROKEN] = s.rmap[RT_BROKEN] + broken - s.mmus[mmu, M_BROKEN]
    s.mmus[mmu, M_BROKEN] = broken
