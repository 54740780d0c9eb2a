"""``gfn_lists``: a list per canonical frame. Lim (2017), powerpc ``book3s_hv_nested``, s390 vSIE.

Idea: each canonical frame has a list of (shadow MMU, nested address) of the leaves that start there, one
list for each leaf size, in a radix by canonical IPA (s390; an array of the memslot on powerpc). A fill
adds an entry if it is not there; L1's TLBIs and recycling remove none. An unmap takes the lists over its
range, and looks each entry up in the shadow table: only a leaf that still has the level and the output
address of the entry goes, any other entry is stale and dropped (powerpc compares with the host's frame,
which arm64 has no more by then; so an entry keeps the frame it was filled with). The list node is
allocated before the fill; without memory the access faults again.
Guarantees: every fill is in its list, and lists are only emptied by an unmap that takes what they name:
nothing is missed, for any aliases and sizes. Verifying makes stale entries harmless.
Fails by growing: entries of leaves that L1 took away stay until the host touches the frame, and a frame
mapped at n addresses costs a walk of n at each fill. Each entry of an unmap costs a walk of the shadow
table.
Bytes a leaf: an entry of 24, so 32 in its slab, and a word of 8 per canonical frame.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import Regime, entry_size
from shadowmmu.arch.stage2 import OA_BITS, VALID
from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.actions import act_on_range, begin_visits, note_visit
from shadowmmu.designs.interface import UNMAP
from shadowmmu.designs.reverse_nodes import (
    RT_ENTRIES,
    RT_FREE_CHAIN,
    USED,
    drop_empty_nodes,
    entry_index,
    find_node,
    give_node,
    make_node,
    next_slot,
    record_slot,
    take_node,
)
from shadowmmu.machine.calls import tree_lock, tree_unlock
from shadowmmu.machine.counters import DESCRIPTORS_READ, DESCRIPTORS_SCANNED, LOOKUPS, NODES_VISITED
from shadowmmu.machine.state import State
from shadowmmu.pgtable.attributes import find_entry
from shadowmmu.pgtable.context import CANONICAL, context_regime

ENTRY_WORDS: Final = U64(4)
E_NEXT: Final = U64(0)
E_PLACE: Final = U64(1)
"""Shadow MMU (from bit 52) and nested address."""
E_PA: Final = U64(2)

MMU_SHIFT: Final = U64(52)
NESTED: Final = U64((1 << 52) - 1)
ZERO: Final = U64(0)
ONE: Final = U64(1)


@inline
def place_of(mmu: int, nested_ipa: Word) -> Word:
    """Shadow MMU and nested address in one word; never 0."""
    return (U64(mmu) << MMU_SHIFT) | nested_ipa


@inline
def find_place(s: State, slot: Word, place: Word) -> Word:
    """The entry of ``place`` in the list at ``slot``, or 0. O(list)."""
    entry = s.rmap[slot]
    while entry != ZERO:
        s.count[NODES_VISITED] += 1
        if s.rmap[entry + E_PLACE] == place:
            break
        entry = s.rmap[entry + E_NEXT]
    return entry


@kernel
def gfn_record(
    s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word, level: int, word: Word
) -> None:
    """Put a leaf in the list of its frame, or give its entry the new frame. O(levels + list)."""
    r = context_regime(s, CANONICAL)
    tree_lock(s)
    node = make_node(s, r, canonical_ipa, level)
    slot = record_slot(s, r, node, level, entry_index(r, level, canonical_ipa))
    entry = find_place(s, slot, place_of(mmu, nested_ipa))
    if entry == ZERO:
        entry = take_node(s, ENTRY_WORDS, RT_FREE_CHAIN)
        s.rmap[entry + E_PLACE] = place_of(mmu, nested_ipa)
        s.rmap[entry + E_NEXT] = s.rmap[slot]
        if s.rmap[slot] == ZERO:
            s.rmap[node + USED] += ONE
        s.rmap[slot] = entry
        s.rmap[RT_ENTRIES] += ONE
    s.rmap[entry + E_PA] = s.mem[word] & OA_BITS & ~(size - ONE)
    tree_unlock(s)


@inline
def still_there(s: State, mmu: int, nested_ipa: Word, level: int, size: Word, pa: Word) -> bool:
    """Whether the leaf an entry was made for is in the shadow table. O(levels)."""
    before = s.count[DESCRIPTORS_READ]
    word, found = find_entry(s, mmu, nested_ipa)
    s.count[DESCRIPTORS_SCANNED] += s.count[DESCRIPTORS_READ] - before
    descriptor = s.mem[word]
    return found == level and descriptor & VALID != ZERO and descriptor & OA_BITS & ~(size - ONE) == pa


@kernel
def gfn_apply_list(s: State, r: Regime, slot: Word, level: int, may_block: bool, action: int) -> int:
    """Act on the live entries of one list; an unmap frees the list. O(list x levels)."""
    size = entry_size(r, level)
    changed = 0
    entry = s.rmap[slot]
    while entry != ZERO:
        s.count[NODES_VISITED] += 1
        mmu = I64(s.rmap[entry + E_PLACE] >> MMU_SHIFT)
        nested_ipa = s.rmap[entry + E_PLACE] & NESTED
        note_visit(s, mmu)
        if still_there(s, mmu, nested_ipa, level, size, s.rmap[entry + E_PA]):
            changed += act_on_range(s, mmu, nested_ipa, nested_ipa + size, may_block, action)
        after = s.rmap[entry + E_NEXT]
        if action == UNMAP:
            give_node(s, entry, ENTRY_WORDS, RT_FREE_CHAIN)
            s.rmap[RT_ENTRIES] -= ONE
        entry = after
    if action == UNMAP:
        s.rmap[slot] = ZERO
    return changed


@kernel
def gfn_apply(s: State, start: Word, end: Word, may_block: bool, action: int) -> int:
    """Act on the lists of each size over canonical [start, end). O(words of the range + entries x levels)."""
    r = context_regime(s, CANONICAL)
    s.count[LOOKUPS] += 1
    begin_visits(s)
    tree_lock(s)
    changed = 0
    for level in range(r.start_level, 4):
        ipa = start
        while ipa < end:
            slot = next_slot(s, r, level, ipa, end)
            if slot.node == ZERO:
                break
            ipa = slot.canonical_ipa + entry_size(r, level)
            changed += gfn_apply_list(s, r, slot.at, level, may_block, action)
            if action == UNMAP:
                s.rmap[slot.node + USED] -= ONE
                drop_empty_nodes(s, r, slot.node, level, slot.canonical_ipa)
    tree_unlock(s)
    return changed


@kernel
def gfn_covers(
    s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word, level: int, word: Word
) -> bool:
    """Whether the list of the leaf's frame has its place, with the frame it points to."""
    before = s.count[NODES_VISITED]
    r = context_regime(s, CANONICAL)
    node = find_node(s, r, canonical_ipa, level)
    entry = ZERO
    if node != ZERO:
        slot = record_slot(s, r, node, level, entry_index(r, level, canonical_ipa))
        entry = find_place(s, slot, place_of(mmu, nested_ipa))
    s.count[NODES_VISITED] = before
    return entry != ZERO and s.rmap[entry + E_PA] == s.mem[word] & OA_BITS & ~(size - ONE)
