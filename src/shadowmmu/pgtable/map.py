"""Map: install one leaf, with break-before-make and the tables on the way to it.

Mirrors Linux 7.3.4 ``kvm_pgtable_stage2_map`` (``stage2_map_walker``): a block replaces the table below
it and frees the subtree; mapping inside a block drops the rest of the block (it is faulted in again when
used); an identical leaf, or one that differs in permissions only, is left alone.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import entry_size, level_shift, table_address
from shadowmmu.arch.stage2 import TABLE_TYPE, VALID
from shadowmmu.compiled import U64, Word, apart, inline, kernel
from shadowmmu.machine.counters import (
    DESCRIPTORS_READ,
    DESCRIPTORS_WRITTEN,
    LEAVES_MAPPED,
)
from shadowmmu.machine.frames import REFS, frame_of, own_table, take_frame
from shadowmmu.machine.log import observe_leaf
from shadowmmu.machine.state import R_PAGE_SHIFT, State
from shadowmmu.pgtable.attributes import leaf_descriptor, same_but_permissions
from shadowmmu.pgtable.context import (
    CANONICAL,
    M_LEAVES,
    context_regime,
    root_word,
)
from shadowmmu.pgtable.tlb import clean_cache, flush_ipa, flush_range
from shadowmmu.pgtable.unmap import drop_entry, note_leaf_gone, unmap_walk

UNCHANGED: Final = U64(0)
"""``stage2_map`` result for -EAGAIN: the same leaf, or other permissions only, is there already."""
ZERO: Final = U64(0)
ONE: Final = U64(1)
THREE: Final = U64(3)
FRAMES_PER_MAP: Final = 4
"""Most table frames one map takes: one a level below the start."""


@apart
def add_table(s: State, mmu: int, word: Word, level: int, ipa: Word) -> Word:
    """Hang a new, empty level ``level`` table under ``word``; its descriptor."""
    frame = take_frame(s)
    r = context_regime(s, mmu)
    base_shift = U64(level_shift(r, level - 1))
    own_table(s, frame, mmu, level, word, (ipa >> base_shift) << base_shift)
    descriptor = (frame << s.regs[R_PAGE_SHIFT]) | TABLE_TYPE
    s.mem[word] = descriptor
    s.frames[frame_of(s, word), REFS] += ONE
    s.count[DESCRIPTORS_WRITTEN] += 1
    return descriptor


@apart
def break_leaf(s: State, mmu: int, ipa: Word, word: Word, size: Word) -> None:
    """Take a valid leaf out before something else takes its place: clear, TLBI."""
    note_leaf_gone(s, mmu, ipa, word, size)
    drop_entry(s, word)
    flush_ipa(s, mmu, ipa)


@apart
def break_table(s: State, mmu: int, word: Word, ipa: Word, level: int) -> None:
    """Take out the table under ``word`` with all its leaves, one range invalidation for the lot."""
    size = entry_size(context_regime(s, mmu), level)
    holder = frame_of(s, word)
    s.frames[holder, REFS] += ONE  # keeps the walk from freeing the table that is about to be used
    unmap_walk(s, mmu, ipa, ipa + size, False, False, False)
    s.frames[holder, REFS] -= ONE
    flush_range(s, mmu, ipa, size)


@kernel
def stage2_map(s: State, mmu: int, ipa: Word, level: int, pa: Word, prot: Word) -> Word:
    """Map the ``level`` entry at ``ipa`` to ``pa``; the word of the leaf, or ``UNCHANGED``.

    ``ipa`` and ``pa`` are aligned to the entry. The caller made sure of ``FRAMES_PER_MAP`` frames. O(levels).
    """
    r = context_regime(s, mmu)
    at = r.start_level
    shift = U64(level_shift(r, at))
    stride = U64(r.stride)
    index_mask = (ONE << stride) - ONE
    word = root_word(s, mmu) + (ipa >> shift)
    while at < level:
        descriptor = s.mem[word]
        s.count[DESCRIPTORS_READ] += 1
        if descriptor & TABLE_TYPE != TABLE_TYPE:
            if descriptor & VALID != ZERO:
                break_leaf(s, mmu, (ipa >> shift) << shift, word, ONE << shift)
            descriptor = add_table(s, mmu, word, at + 1, ipa)
        at += 1
        shift -= stride
        word = (table_address(r, descriptor) >> THREE) + ((ipa >> shift) & index_mask)
    return put_leaf(s, mmu, ipa, level, word, leaf_descriptor(s, pa, level, prot))


@inline
def put_leaf(s: State, mmu: int, ipa: Word, level: int, word: Word, new: Word) -> Word:
    """Write leaf ``new`` at ``word``, breaking what is there. Mirrors ``stage2_map_walker_try_leaf``."""
    old = s.mem[word]
    s.count[DESCRIPTORS_READ] += 1
    if old & VALID != ZERO:
        if level < 3 and old & TABLE_TYPE == TABLE_TYPE:
            break_table(s, mmu, word, ipa, level)
        elif same_but_permissions(old, new):
            return UNCHANGED
        else:
            break_leaf(s, mmu, ipa, word, entry_size(context_regime(s, mmu), level))
    clean_cache(s, entry_size(context_regime(s, mmu), level))
    s.mem[word] = new
    s.frames[frame_of(s, word), REFS] += ONE
    s.mmus[mmu, M_LEAVES] += ONE
    observe_leaf(s, mmu, ipa, level, new)
    s.count[DESCRIPTORS_WRITTEN] += 1
    if mmu != CANONICAL:
        s.count[LEAVES_MAPPED] += 1
    return word
