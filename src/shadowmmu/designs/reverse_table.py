"""``reverse_table``: a page-table-shaped radix over canonical IPA. This project, 2026.

Idea: canonical IPA indexes a radix tree shaped like the page table itself. Where a leaf of that size would
stand, a word holds the *index of the shadow descriptor*: an unmap reads the words above and the subtree
below its range and clears the descriptors they name, without walking any shadow table. Two recorded leaves
are disjoint or nested, because each is aligned in both spaces; so a slot for each size class is exact:
nothing splits, merges or spans. Aliases hang in a chain off the same word. ``side[descriptor]`` remembers
the canonical address, so that a TLBI unlinks exactly.
Guarantees: exact under aliases within and across MMUs and for every mix of sizes. Ageing and write
protection use the same lookup and leave the record as it is.
Fails by memory where a guest is sparse: a page alone in its 2M costs a leaf node of 4 KiB. Wiping an MMU
unlinks its leaves one by one. A failed allocation marks the MMU broken: its next unmap takes it whole,
once, and heals it.
Bytes a leaf: a word of 8 per canonical frame and 8 beside the descriptor; 17.5 measured, fills in order;
16 an alias and 16 more for the first.
Locking, as a kernel would have it (the model runs one CPU at a time and only counts): fills hold mmu_lock
for read and run side by side. They read the words down from the root, and write (a) a child word that was
0, by compare-and-swap of a whole zeroed node, whose loser gives its node back; (b) the record word, by
compare-and-swap from what they read there to their descriptor, or to a chain node in front of it, and
again if they lost; (c) ``side`` of a descriptor, which only the CPU that has just installed that leaf
writes; (d) use counts, by atomic add. No word moves and nothing is rebalanced, so a reader never sees a
half-made tree. A leaf that a fill replaces is unlinked under the same lock: of a chain that needs the word
locked by a bit, and an empty node has to stay until someone holds the lock for write (here it goes at
once). Everything that frees nodes or clears words in passing (unmap, TLBI, wipe) holds mmu_lock for write,
so it excludes fills, and needs no lock of its own. An unmap does not give way in the middle of a range.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import Regime, entry_size, level_shift
from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.actions import act_on_whole_mmu, clear_leaf_bits
from shadowmmu.designs.interface import UNMAP
from shadowmmu.designs.reverse_nodes import (
    CHAIN,
    RT_BYTES,
    RT_ENTRIES,
    RT_FLUSH_END,
    RT_FLUSH_MMU,
    RT_FLUSH_START,
    RT_STAMP,
    USED,
    chain_pop,
    child_slot,
    drop_empty_nodes,
    entry_index,
    find_node,
    link_descriptor,
    make_node,
    next_slot,
    record_slot,
    unlink_descriptor,
)
from shadowmmu.machine.calls import GFP_NOWAIT, allocation_fails
from shadowmmu.machine.counters import (
    BROKEN,
    FALLBACK_MMU,
    LOOKUPS,
    MMUS_VISITED,
    NODES_VISITED,
)
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import (
    CANONICAL,
    M_DESIGN,
    M_LEAVES,
    context_regime,
    input_size,
    shadow_mmus,
    shadow_valid,
)
from shadowmmu.pgtable.iterate import next_leaf
from shadowmmu.pgtable.tlb import defers_tlbi, flush_ipa, flush_range
from shadowmmu.pgtable.unmap import clear_leaf

M_BROKEN: Final = M_DESIGN
M_STAMP: Final = M_DESIGN + 1

ZERO: Final = U64(0)
ONE: Final = U64(1)
PRESENT: Final = U64(1)
PAGE_OFFSET: Final = U64(0xFFF)


@kernel
def reverse_record(s: State, mmu: int, canonical_ipa: Word, level: int, word: Word) -> None:
    """Remember that shadow descriptor ``word`` maps the ``level`` leaf at ``canonical_ipa``.

    O(levels). mmu_lock is held for read: the word is swapped in with one compare-and-swap, and the
    tree is never rebalanced, so fills on other CPUs need no more than that.
    """
    if s.mmus[mmu, M_BROKEN] != ZERO:
        return
    if allocation_fails(s, GFP_NOWAIT):
        s.mmus[mmu, M_BROKEN] = ONE
        s.count[BROKEN] += 1
        return
    r = context_regime(s, CANONICAL)
    node = make_node(s, r, canonical_ipa, level)
    slot = record_slot(s, r, node, level, entry_index(r, level, canonical_ipa))
    link_descriptor(s, node, slot, word)
    s.side[word] = canonical_ipa | PRESENT


@kernel
def reverse_unlink(s: State, word: Word, level: int) -> None:
    """Take shadow descriptor ``word`` off the record, if it is on it. O(levels + aliases)."""
    recorded = s.side[word]
    if recorded == ZERO:
        return
    s.side[word] = ZERO
    canonical_ipa = recorded & ~PAGE_OFFSET
    r = context_regime(s, CANONICAL)
    node = find_node(s, r, canonical_ipa, level)
    if node == ZERO:
        return
    slot = record_slot(s, r, node, level, entry_index(r, level, canonical_ipa))
    unlink_descriptor(s, node, slot, word)
    drop_empty_nodes(s, r, node, level, canonical_ipa)


@kernel
def reverse_forget(s: State, mmu: int, start: Word, end: Word) -> None:
    """Unlink every recorded leaf of nested [start, end), a leaf that sticks out included."""
    ipa = start
    while ipa < end:
        visit = next_leaf(s, mmu, ipa, end)
        if visit.word == ZERO:
            return
        reverse_unlink(s, visit.word, visit.level)
        ipa = visit.after


@kernel
def reverse_forget_mmu(s: State, mmu: int) -> None:
    """Unlink every leaf of a shadow MMU and make it whole again. O(leaves)."""
    if s.mmus[mmu, M_LEAVES] != ZERO:
        reverse_forget(s, mmu, ZERO, input_size(s, mmu))
    s.mmus[mmu, M_BROKEN] = ZERO


@inline
def flush_pending(s: State) -> None:
    """Invalidate the run of nested addresses gathered so far."""
    if s.rmap[RT_FLUSH_END] != ZERO:
        size = s.rmap[RT_FLUSH_END] - s.rmap[RT_FLUSH_START]
        flush_range(s, I64(s.rmap[RT_FLUSH_MMU]), s.rmap[RT_FLUSH_START], size)
        s.rmap[RT_FLUSH_END] = ZERO


@kernel
def clear_descriptor(s: State, descriptor: Word) -> None:
    """Clear one shadow leaf by its descriptor, and gather its invalidation with its neighbours'."""
    s.side[descriptor] = ZERO
    leaf = clear_leaf(s, descriptor)
    if s.mmus[leaf.mmu, M_STAMP] != s.rmap[RT_STAMP]:
        s.mmus[leaf.mmu, M_STAMP] = s.rmap[RT_STAMP]
        s.count[MMUS_VISITED] += 1
    if not defers_tlbi(s):
        flush_ipa(s, leaf.mmu, leaf.ipa)
        return
    mmu = U64(leaf.mmu)
    if s.rmap[RT_FLUSH_END] != leaf.ipa or s.rmap[RT_FLUSH_MMU] != mmu:
        flush_pending(s)
        s.rmap[RT_FLUSH_MMU] = mmu
        s.rmap[RT_FLUSH_START] = leaf.ipa
    s.rmap[RT_FLUSH_END] = leaf.ipa + leaf.size


@kernel
def clear_slot(s: State, node: Word, slot: Word) -> int:
    """Clear every shadow leaf the word at ``slot`` names, and empty it; how many went."""
    named = s.rmap[slot]
    s.rmap[slot] = ZERO
    s.rmap[node + USED] -= ONE
    removed = 0
    while named & CHAIN != ZERO:
        s.count[NODES_VISITED] += 1
        descriptor, named = chain_pop(s, named)
        clear_descriptor(s, descriptor)
        removed += 1
    if named != ZERO:
        clear_descriptor(s, named)
        removed += 1
    s.rmap[RT_ENTRIES] -= U64(removed)
    return removed


@inline
def heal_broken(s: State, may_block: bool) -> int:
    """Unmap whole every MMU whose record is not complete; it is complete (and empty) afterwards."""
    removed = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        if s.mmus[mmu, M_BROKEN] != ZERO and shadow_valid(s, mmu):
            s.count[FALLBACK_MMU] += 1
            s.count[MMUS_VISITED] += 1
            reverse_forget_mmu(s, mmu)
            removed += act_on_whole_mmu(s, mmu, may_block, UNMAP)
    return removed


@inline
def clear_leaf_words(s: State, r: Regime, node: Word, start: Word, last: Word) -> int:
    """Clear what the words of a leaf name for [start, last); how many shadow leaves went."""
    page = U64(r.page_shift)
    slot = child_slot(node, entry_index(r, 3, start))
    stop = slot + ((last - start + (ONE << page) - ONE) >> page)
    removed = 0
    while slot < stop:
        s.count[NODES_VISITED] += 1
        if s.rmap[slot] != ZERO:
            removed += clear_slot(s, node, slot)
        slot += ONE
    return removed


@kernel
def reverse_unmap(s: State, start: Word, end: Word, may_block: bool) -> int:
    """Clear every shadow leaf over canonical [start, end); how many went.

    O(levels + words of the range + leaves cleared), whatever else is mapped.
    """
    s.count[LOOKUPS] += 1
    s.rmap[RT_STAMP] += ONE
    removed = heal_broken(s, may_block)
    r = context_regime(s, CANONICAL)
    ipa = start
    while ipa < end:
        level = r.start_level
        node = find_node(s, r, ipa, level)
        while level < 3:
            s.count[NODES_VISITED] += 1
            index = entry_index(r, level, ipa)
            head = record_slot(s, r, node, level, index)
            if s.rmap[head] != ZERO:
                removed += clear_slot(s, node, head)
            child = s.rmap[child_slot(node, index)]
            if child == ZERO:
                break
            node = child
            level += 1
        covered = level if level < 3 else 2
        shift = U64(level_shift(r, covered))
        after = ((ipa >> shift) + ONE) << shift
        if level == 3:
            removed += clear_leaf_words(s, r, node, ipa, after if after < end else end)
        drop_empty_nodes(s, r, node, level, ipa)
        ipa = after
    flush_pending(s)
    return removed


@kernel
def reverse_update(s: State, start: Word, end: Word, may_block: bool, action: int) -> int:
    """Age or protect every shadow leaf over canonical [start, end); how many changed. The record stays.

    O(levels + words of the range + leaves), with whole MMUs where the record is not complete.
    """
    s.count[LOOKUPS] += 1
    r = context_regime(s, CANONICAL)
    changed = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        if s.mmus[mmu, M_BROKEN] != ZERO and shadow_valid(s, mmu):
            s.count[FALLBACK_MMU] += 1
            changed += act_on_whole_mmu(s, mmu, may_block, action)
    for level in range(r.start_level, 4):
        ipa = start
        while ipa < end:
            slot = next_slot(s, r, level, ipa, end)
            if slot.node == ZERO:
                break
            ipa = slot.canonical_ipa + entry_size(r, level)
            named = s.rmap[slot.at]
            while named & CHAIN != ZERO:
                s.count[NODES_VISITED] += 1
                changed += clear_leaf_bits(s, s.rmap[named & ~CHAIN], action)
                named = s.rmap[(named & ~CHAIN) + ONE]
            if named != ZERO:
                changed += clear_leaf_bits(s, named, action)
    return changed


@kernel
def reverse_covers(s: State, mmu: int, canonical_ipa: Word, level: int, word: Word) -> bool:
    """Whether the slot of a leaf names its shadow descriptor, or its MMU is known to be incomplete."""
    if s.mmus[mmu, M_BROKEN] != ZERO:
        return True
    before = s.count[NODES_VISITED]
    r = context_regime(s, CANONICAL)
    node = find_node(s, r, canonical_ipa, level)
    s.count[NODES_VISITED] = before
    if node == ZERO:
        return False
    named = s.rmap[record_slot(s, r, node, level, entry_index(r, level, canonical_ipa))]
    while named & CHAIN != ZERO:
        at = named & ~CHAIN
        if s.rmap[at] == word:
            return True
        named = s.rmap[at + ONE]
    return named == word


@kernel
def reverse_recorded(s: State) -> int:
    """Recorded leaves."""
    return I64(s.rmap[RT_ENTRIES])


@kernel
def reverse_bytes(s: State) -> int:
    """Bytes of nodes and chains; ``side`` is counted by the caller, a word a descriptor."""
    return I64(s.rmap[RT_BYTES])
