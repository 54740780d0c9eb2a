"""``pte_chains``: canonical frame to shadow descriptor, the reverse map of x86's shadow MMU.

Idea: each canonical frame has, for each leaf size, a word: nothing, the index of the one shadow descriptor
that maps it, or a chain of blocks of fourteen. An unmap clears the descriptors its words name, without
walking a shadow table, and invalidates each MMU it touched once, by VMID. What a descriptor was filled for
is kept beside it (x86: ``shadowed_translation``), so every path that frees a table or clears a leaf takes
it off first. The blocks are allocated before the fill; without memory the access faults again.
Guarantees: each live leaf is named once, under its frame and size: nothing is missed and nothing else is
taken. A frame named more than ``RECYCLE`` times loses all its leaves at once, so chains stay short.
Fails if one path forgets its hook: descriptors are pointers into tables, which arm64 frees under RCU.
Fills of one frame need a lock of its word (x86 fills with mmu_lock held for write). x86 allocates the
words with the memslot and looks at every one of a range; here a piece of 4 KiB comes when first used and
stays, and the words of a piece not there are counted as looked at.
Bytes a leaf: a word of 8 per canonical frame, 8 beside the descriptor, and 128 per fourteen aliases.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import Regime, entry_size
from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.actions import begin_visits, clear_leaf_bits, note_visit, visited
from shadowmmu.designs.interface import UNMAP
from shadowmmu.designs.reverse_nodes import (
    CHAIN,
    RT_ENTRIES,
    RT_FREE_CHAIN,
    USED,
    entry_index,
    find_node,
    give_node,
    make_node,
    next_slot,
    record_slot,
    take_node,
)
from shadowmmu.machine.calls import tree_lock, tree_unlock
from shadowmmu.machine.counters import FALLBACK_FRAME, LOOKUPS, NODES_VISITED
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import CANONICAL, context_regime, shadow_mmus
from shadowmmu.pgtable.tlb import flush_vmid
from shadowmmu.pgtable.unmap import clear_leaf

RECYCLE: Final = 1000
"""Most descriptors one frame keeps (x86: ``RMAP_RECYCLE_THRESHOLD``)."""
BLOCK_WORDS: Final = U64(16)
BLOCK_ROOM: Final = U64(14)
B_MORE: Final = U64(0)
B_COUNT: Final = U64(1)
"""Descriptors in this block; those of the blocks behind it from bit 32."""
B_FIRST: Final = U64(2)
TAIL_SHIFT: Final = U64(32)
COUNT: Final = U64((1 << 32) - 1)

PRESENT: Final = U64(1)
PAGE_OFFSET: Final = U64(0xFFF)
ZERO: Final = U64(0)
ONE: Final = U64(1)


@inline
def new_block(s: State, more: Word, behind: Word) -> Word:
    """An empty block in front of ``more``, which holds ``behind`` descriptors in all."""
    block = take_node(s, BLOCK_WORDS, RT_FREE_CHAIN)
    s.rmap[block + B_MORE] = more
    s.rmap[block + B_COUNT] = behind << TAIL_SHIFT
    return block


@inline
def push(s: State, block: Word, descriptor: Word) -> None:
    """Add a descriptor to a block that has room."""
    used = s.rmap[block + B_COUNT] & COUNT
    s.rmap[block + B_FIRST + used] = descriptor
    s.rmap[block + B_COUNT] += ONE


@kernel
def chain_add(s: State, node: Word, slot: Word, descriptor: Word) -> int:
    """Name ``descriptor`` at ``slot``; how many are named there now. O(1)."""
    s.rmap[RT_ENTRIES] += ONE
    named = s.rmap[slot]
    if named == ZERO:
        s.rmap[slot] = descriptor
        s.rmap[node + USED] += ONE
        return 1
    if named & CHAIN == ZERO:
        block = new_block(s, ZERO, ZERO)
        push(s, block, named)
    else:
        block = named & ~CHAIN
        counts = s.rmap[block + B_COUNT]
        if counts & COUNT == BLOCK_ROOM:
            block = new_block(s, block, (counts >> TAIL_SHIFT) + BLOCK_ROOM)
    push(s, block, descriptor)
    s.rmap[slot] = block | CHAIN
    counts = s.rmap[block + B_COUNT]
    return I64((counts >> TAIL_SHIFT) + (counts & COUNT))


@kernel
def chain_take(s: State, node: Word, slot: Word) -> Word:
    """Take the last descriptor of the first block off ``slot``; an empty block is freed. O(1)."""
    named = s.rmap[slot]
    s.rmap[RT_ENTRIES] -= ONE
    rest = ZERO
    descriptor = named
    if named & CHAIN != ZERO:
        block = named & ~CHAIN
        s.rmap[block + B_COUNT] -= ONE
        left = s.rmap[block + B_COUNT] & COUNT
        descriptor = s.rmap[block + B_FIRST + left]
        rest = named
        if left == ZERO:
            more = s.rmap[block + B_MORE]
            rest = more | CHAIN if more != ZERO else ZERO
            give_node(s, block, BLOCK_WORDS, RT_FREE_CHAIN)
    s.rmap[slot] = rest
    if rest == ZERO:
        s.rmap[node + USED] -= ONE
    return descriptor


@kernel
def chain_find(s: State, slot: Word, descriptor: Word) -> Word:
    """The word that names ``descriptor`` at ``slot``, or 0. O(aliases)."""
    named = s.rmap[slot]
    if named & CHAIN == ZERO:
        return slot if named == descriptor else ZERO
    block = named & ~CHAIN
    while block != ZERO:
        s.count[NODES_VISITED] += 1
        last = block + B_FIRST + (s.rmap[block + B_COUNT] & COUNT)
        at = block + B_FIRST
        while at < last:
            if s.rmap[at] == descriptor:
                return at
            at += ONE
        block = s.rmap[block + B_MORE]
    return ZERO


@inline
def clear_slot(s: State, node: Word, slot: Word) -> int:
    """Clear every leaf that ``slot`` names; how many went. The caller invalidates their MMUs."""
    removed = 0
    while s.rmap[slot] != ZERO:
        descriptor = chain_take(s, node, slot)
        s.side[descriptor] = ZERO
        leaf = clear_leaf(s, descriptor)
        note_visit(s, leaf.mmu)
        removed += 1
    return removed


@inline
def flush_visited(s: State) -> None:
    """One invalidation for each MMU that lost a leaf."""
    for mmu in range(1, shadow_mmus(s) + 1):
        if visited(s, mmu):
            flush_vmid(s, mmu)


@kernel
def pte_record(s: State, canonical_ipa: Word, level: int, word: Word) -> None:
    """Name a new leaf under its frame. O(levels). One too many empties the frame."""
    r = context_regime(s, CANONICAL)
    tree_lock(s)
    node = make_node(s, r, canonical_ipa, level)
    slot = record_slot(s, r, node, level, entry_index(r, level, canonical_ipa))
    s.side[word] = canonical_ipa | PRESENT
    if chain_add(s, node, slot, word) > RECYCLE:
        s.count[FALLBACK_FRAME] += 1
        begin_visits(s)
        clear_slot(s, node, slot)
        flush_visited(s)
    tree_unlock(s)


@kernel
def pte_unlink(s: State, word: Word, level: int) -> None:
    """The hook: take descriptor ``word`` off the record before it is cleared. O(levels + aliases)."""
    canonical_ipa = s.side[word] & ~PAGE_OFFSET
    s.side[word] = ZERO
    r = context_regime(s, CANONICAL)
    tree_lock(s)
    node = find_node(s, r, canonical_ipa, level)
    if node != ZERO:
        slot = record_slot(s, r, node, level, entry_index(r, level, canonical_ipa))
        at = chain_find(s, slot, word)
        if at != ZERO:
            # the last one of the first block takes its place
            moved = chain_take(s, node, slot)
            if moved != word:
                s.rmap[at] = moved
    tree_unlock(s)


@kernel
def pte_age_slot(s: State, slot: Word, action: int) -> int:
    """Age or protect every leaf that ``slot`` names; how many changed."""
    named = s.rmap[slot]
    if named & CHAIN == ZERO:
        return clear_leaf_bits(s, named, action)
    changed = 0
    block = named & ~CHAIN
    while block != ZERO:
        s.count[NODES_VISITED] += 1
        at = block + B_FIRST
        last = at + (s.rmap[block + B_COUNT] & COUNT)
        while at < last:
            changed += clear_leaf_bits(s, s.rmap[at], action)
            at += ONE
        block = s.rmap[block + B_MORE]
    return changed


@inline
def words_looked_at(r: Regime, level: int, start: Word, end: Word) -> int:
    """Words of one leaf size over [start, end): all of them, as in an array."""
    size = entry_size(r, level)
    return I64((end - ONE) // size - start // size) + 1


@kernel
def pte_apply(s: State, start: Word, end: Word, action: int) -> int:
    """Act on canonical [start, end). O(words of the range at each size + leaves), one TLBI an MMU."""
    r = context_regime(s, CANONICAL)
    s.count[LOOKUPS] += 1
    begin_visits(s)
    tree_lock(s)
    changed = 0
    for level in range(r.start_level, 4):
        seen = s.count[NODES_VISITED] + words_looked_at(r, level, start, end)
        ipa = start
        while ipa < end:
            slot = next_slot(s, r, level, ipa, end)
            if slot.node == ZERO:
                break
            ipa = slot.canonical_ipa + entry_size(r, level)
            before = s.count[NODES_VISITED]
            if action == UNMAP:
                changed += clear_slot(s, slot.node, slot.at)
            else:
                changed += pte_age_slot(s, slot.at, action)
            seen += s.count[NODES_VISITED] - before
        s.count[NODES_VISITED] = seen
    if action == UNMAP:
        flush_visited(s)
    tree_unlock(s)
    return changed


@kernel
def pte_covers(s: State, canonical_ipa: Word, level: int, word: Word) -> bool:
    """Whether the word of a leaf's frame names its descriptor."""
    before = s.count[NODES_VISITED]
    r = context_regime(s, CANONICAL)
    node = find_node(s, r, canonical_ipa, level)
    found = ZERO
    if node != ZERO:
        found = chain_find(s, record_slot(s, r, node, level, entry_index(r, level, canonical_ipa)), word)
    s.count[NODES_VISITED] = before
    return found != ZERO
