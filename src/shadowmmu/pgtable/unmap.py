"""Unmap: clear leaves, free tables that became empty, invalidate.

Mirrors Linux 7.3.4 ``kvm_pgtable_stage2_unmap`` (``stage2_unmap_walker``) and, around it,
``stage2_apply_range``. The walk is depth first and reads each entry of the range once. A block that
sticks out of the range goes whole.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.regime import Regime, entry_size, level_shift, table_address
from shadowmmu.arch.stage2 import TABLE_TYPE, VALID
from shadowmmu.compiled import I64, U64, Word, apart, inline, kernel
from shadowmmu.machine.calls import cond_resched_lock, gap_reached
from shadowmmu.machine.counters import (
    CHUNKS,
    CHUNKS_SHADOW,
    DESCRIPTORS_READ,
    DESCRIPTORS_WRITTEN,
    LEAVES_REMOVED,
)
from shadowmmu.machine.frames import (
    BASE,
    PARENT,
    REFS,
    frame_of,
    give_frame,
    owner_level,
    owner_mmu,
)
from shadowmmu.machine.ghost import ghost_death
from shadowmmu.machine.log import RANGE, observe
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import (
    CANONICAL,
    M_LEAVES,
    context_regime,
    input_size,
    largest_block,
    root_word,
)
from shadowmmu.pgtable.tlb import clean_cache, defers_tlbi, flush_ipa, flush_range, flush_vmid

ZERO: Final = U64(0)
ONE: Final = U64(1)
THREE: Final = U64(3)


class Leaf(NamedTuple):
    """A leaf by where it stands: whose it is, and what input range it covers."""

    mmu: int
    ipa: Word
    size: Word
    level: int


@inline
def leaf_at(s: State, word: Word) -> Leaf:
    """The leaf descriptor ``word`` is, read off the record of its table frame. O(1), no walk."""
    frame = frame_of(s, word)
    mmu = owner_mmu(s, frame)
    level = owner_level(s, frame)
    r = context_regime(s, mmu)
    size = entry_size(r, level)
    index = word - (frame << U64(r.page_shift - 3))
    return Leaf(mmu, s.frames[frame, BASE] + index * size, size, level)


@inline
def drop_entry(s: State, word: Word) -> Word:
    """Zero an entry and take its reference off the table; what references are left."""
    s.mem[word] = ZERO
    s.count[DESCRIPTORS_WRITTEN] += 1
    frame = frame_of(s, word)
    left = s.frames[frame, REFS] - ONE
    s.frames[frame, REFS] = left
    return left


@apart
def free_empty_tables(s: State, word: Word) -> None:
    """Free the table that holds ``word`` if nothing is left in it, and so on upwards."""
    frame = frame_of(s, word)
    while s.frames[frame, REFS] == ONE:
        parent = s.frames[frame, PARENT]
        if parent == ZERO:
            return
        flush_ipa(s, owner_mmu(s, frame), s.frames[frame, BASE])
        give_frame(s, frame)
        drop_entry(s, parent)
        frame = frame_of(s, parent)


@inline
def note_leaf_gone(s: State, mmu: int, ipa: Word, word: Word, size: Word) -> None:
    """Count a cleared leaf; the judge hears of the shadow ones."""
    s.mmus[mmu, M_LEAVES] -= ONE
    if mmu != CANONICAL:
        s.count[LEAVES_REMOVED] += 1
        ghost_death(s, mmu, ipa, word, size)


@inline
def clear_leaf(s: State, word: Word) -> Leaf:
    """Clear the leaf at ``word`` and free the tables it leaves empty, without walking from the root.

    The caller invalidates the TLB. O(levels) when tables are freed, else O(1).
    """
    leaf = leaf_at(s, word)
    note_leaf_gone(s, leaf.mmu, leaf.ipa, word, leaf.size)
    clean_cache(s, leaf.size)
    if drop_entry(s, word) == ONE:
        free_empty_tables(s, word)
    return leaf


@kernel
def stage2_unmap(s: State, mmu: int, start: Word, end: Word) -> int:
    """Unmap [start, end) in one walk and invalidate it; how many leaves went.

    Mirrors ``kvm_pgtable_stage2_unmap``. O(entries of the range at the deepest level present).
    """
    removed = unmap_walk(s, mmu, start, end, not defers_tlbi(s), True, True)
    if defers_tlbi(s):
        flush_range(s, mmu, start, end - start)
    return removed


@kernel
def unmap_walk(
    s: State, mmu: int, start: Word, end: Word, flush_leaves: bool, flush_tables: bool, clean: bool
) -> int:
    """Clear every leaf of [start, end) and free what becomes empty; how many leaves went.

    ``flush_leaves`` and ``flush_tables`` invalidate each leaf, each freed table at once; otherwise the
    caller does it for the range. ``clean``: the leaves' memory leaves the caches too, where that is needed.
    """
    r = context_regime(s, mmu)
    level = r.start_level
    ipa = start
    word = root_word(s, mmu) + (ipa >> U64(level_shift(r, level)))
    removed = 0
    reads = 0
    index_mask = (ONE << U64(r.stride)) - ONE
    while ipa < end:
        descriptor = s.mem[word]
        reads += 1
        if level < 3 and descriptor & TABLE_TYPE == TABLE_TYPE:
            level += 1
            inside = (ipa >> U64(level_shift(r, level))) & index_mask
            word = (table_address(r, descriptor) >> THREE) + inside
            continue
        shift = U64(level_shift(r, level))
        if descriptor & VALID != ZERO:
            size = ONE << shift
            note_leaf_gone(s, mmu, (ipa >> shift) << shift, word, size)
            drop_entry(s, word)
            removed += 1
            if flush_leaves:
                flush_ipa(s, mmu, (ipa >> shift) << shift)
            if clean:
                clean_cache(s, size)
        ipa = ((ipa >> shift) + ONE) << shift
        word, level = leave_tables(s, r, word, level, start, ipa, end, flush_tables)
    s.count[DESCRIPTORS_READ] += reads
    return removed


@inline
def leave_tables(
    s: State, r: Regime, word: Word, level: int, start: Word, ipa: Word, end: Word, flush: bool
) -> tuple[Word, int]:
    """Step to the next entry; on leaving a table (its end, or the range's) free it if it is empty.

    The invalidation of a freed table names the first address of it that the walk came to.
    """
    following = word + ONE
    while level > r.start_level:
        span = ONE << U64(level_shift(r, level - 1))
        if ipa < end and ipa & (span - ONE) != ZERO:
            break
        frame = frame_of(s, word)
        parent = s.frames[frame, PARENT]
        if s.frames[frame, REFS] == ONE:
            if flush:
                base = s.frames[frame, BASE]
                flush_ipa(s, owner_mmu(s, frame), base if base > start else start)
            give_frame(s, frame)
            drop_entry(s, parent)
        word = parent
        following = parent + ONE
        level -= 1
    return following, level


@kernel
def unmap_range(s: State, mmu: int, start: Word, end: Word, may_block: bool) -> int:
    """Unmap [start, end) in chunks of the largest block, giving way between them if allowed.

    Mirrors ``stage2_apply_range``; one walk and one invalidation a chunk, mapped or not.
    """
    return unmap_chunks(s, mmu, start, end, may_block, True)


@kernel
def unmap_all(s: State, mmu: int, may_block: bool) -> int:
    """Unmap a whole context with one VMALLS12E1IS at the end, after walks that invalidate nothing.

    Mirrors ``kvm_stage2_unmap_all`` of a series of September 2026, known by its description only.
    """
    removed = unmap_chunks(s, mmu, ZERO, input_size(s, mmu), may_block, False)
    flush_vmid(s, mmu)
    return removed


@kernel
def unmap_chunks(s: State, mmu: int, start: Word, end: Word, may_block: bool, flush: bool) -> int:
    """The chunks of the two above; ``flush`` invalidates each."""
    observe(s, RANGE, start, end - start, U64(mmu), ZERO, ZERO)
    chunk = largest_block(context_regime(s, mmu))
    removed = 0
    chunks = 0
    ipa = start
    while ipa < end:
        after = (ipa // chunk + ONE) * chunk
        if after > end:
            after = end
        if flush:
            removed += stage2_unmap(s, mmu, ipa, after)
        else:
            removed += unmap_walk(s, mmu, ipa, after, False, False, True)
        chunks += 1
        if may_block and after < end:
            cond_resched_lock(s)
            if gap_reached(s, mmu, after):
                break
        ipa = after
    s.count[CHUNKS] += chunks
    if mmu != CANONICAL:
        s.count[CHUNKS_SHADOW] += chunks
    return I64(removed)
