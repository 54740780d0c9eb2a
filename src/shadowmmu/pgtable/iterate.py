"""Visit the leaves of a range, one at a time, without changing anything."""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.regime import level_shift, table_address
from shadowmmu.arch.stage2 import TABLE_TYPE, VALID
from shadowmmu.compiled import U64, Word, inline, kernel
from shadowmmu.machine.counters import DESCRIPTORS_READ
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import context_regime, root_word

ZERO: Final = U64(0)
ONE: Final = U64(1)
THREE: Final = U64(3)


class Visit(NamedTuple):
    """A leaf on the way: ``word`` 0 when there is none left. ``after`` is where to go on."""

    word: Word
    ipa: Word
    level: int
    after: Word


@inline
def next_leaf(s: State, mmu: int, start: Word, end: Word) -> Visit:
    """The first valid leaf that covers part of [start, end). O(entries skipped + levels)."""
    r = context_regime(s, mmu)
    stride = U64(r.stride)
    index_mask = (ONE << stride) - ONE
    ipa = start
    while ipa < end:
        level = r.start_level
        shift = U64(level_shift(r, level))
        word = root_word(s, mmu) + (ipa >> shift)
        descriptor = s.mem[word]
        reads = 1
        while level < 3 and descriptor & TABLE_TYPE == TABLE_TYPE:
            level += 1
            shift -= stride
            word = (table_address(r, descriptor) >> THREE) + ((ipa >> shift) & index_mask)
            descriptor = s.mem[word]
            reads += 1
        base = (ipa >> shift) << shift
        size = ONE << shift
        while descriptor & VALID == ZERO and (word & index_mask) != index_mask and base + size < end:
            word += ONE
            base += size
            descriptor = s.mem[word]
            reads += 1
            if level < 3 and descriptor & TABLE_TYPE == TABLE_TYPE:
                break
        s.count[DESCRIPTORS_READ] += reads
        if descriptor & VALID != ZERO and (level == 3 or descriptor & TABLE_TYPE != TABLE_TYPE):
            return Visit(word, base, level, base + size)
        ipa = base if descriptor & VALID != ZERO else base + size
    return Visit(ZERO, end, 0, end)


@kernel
def first_leaf(s: State, mmu: int, start: Word, end: Word) -> Visit:
    """``next_leaf`` for callers outside kernels."""
    return next_leaf(s, mmu, start, end)
