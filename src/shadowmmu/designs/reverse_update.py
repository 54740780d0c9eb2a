"""Ageing and write protection through the record of ``reverse_table``, which stays as it is.

The same walk renumbers the generations when their numbers have run out.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import Regime, entry_size
from shadowmmu.compiled import U64, Word, inline, kernel
from shadowmmu.designs.actions import act_on_whole_mmu, clear_leaf_bits
from shadowmmu.designs.reverse_entries import (
    DESCRIPTOR,
    GENERATION,
    GENERATION_SHIFT,
    M_BROKEN,
    OVER,
    entry_owner,
)
from shadowmmu.designs.reverse_leaves import (
    INDEX_SHIFT,
    LEAF_LEVEL,
    count_small,
    is_small,
    leaf_node,
    leaf_slot,
    next_leaf_place,
    small_end,
)
from shadowmmu.designs.reverse_nodes import CHAIN, entry_index, next_slot
from shadowmmu.machine.counters import FALLBACK_MMU, LOOKUPS, NODES_VISITED
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import CANONICAL, context_regime, shadow_mmus, shadow_valid

ZERO: Final = U64(0)
ONE: Final = U64(1)

RENUMBER: Final = 3
"""An action beside those of the interface: give every entry the new number of its MMU, or ``OVER``."""


@inline
def update_entry(s: State, at: Word, action: int) -> int:
    """Age or protect the leaf of the entry at ``at`` if it lives, or renumber it; 1 if a leaf changed."""
    entry = s.rmap[at]
    descriptor = entry & DESCRIPTOR
    owner = entry_owner(s, entry)
    if action == RENUMBER:
        number = OVER if owner == CANONICAL else OVER + U64(owner)
        s.rmap[at] = (entry & ~(GENERATION << GENERATION_SHIFT)) | (number << GENERATION_SHIFT)
        s.side[descriptor] = (s.side[descriptor] & ~GENERATION) | number
        return 0
    if owner == CANONICAL:
        return 0
    return clear_leaf_bits(s, descriptor, action)


@kernel
def update_slot(s: State, at: Word, action: int) -> int:
    """``update_entry`` for all that the record word at ``at`` names; how many leaves changed."""
    changed = 0
    while s.rmap[at] & CHAIN != ZERO:
        node = s.rmap[at] & ~CHAIN
        s.count[NODES_VISITED] += 1
        changed += update_entry(s, node, action)
        at = node + ONE
    if s.rmap[at] != ZERO:
        changed += update_entry(s, at, action)
    return changed


@kernel
def update_leaf(s: State, r: Regime, child: Word, start: Word, end: Word, action: int) -> int:
    """``update_entry`` for what a leaf names for canonical [start, end); how many leaves changed."""
    first = entry_index(r, LEAF_LEVEL, start)
    last = entry_index(r, LEAF_LEVEL, end - ONE)
    changed = 0
    if is_small(child):
        count_small(s, child)
        at = leaf_node(child)
        stop = small_end(child)
        while at < stop:
            index = s.rmap[at] >> INDEX_SHIFT
            if s.rmap[at] != ZERO and first <= index and index <= last:
                changed += update_entry(s, at, action)
            at += ONE
        return changed
    at = leaf_slot(child, first)
    stop = leaf_slot(child, last)
    while at <= stop:
        s.count[NODES_VISITED] += 1
        changed += update_slot(s, at, action)
        at += ONE
    return changed


@kernel
def update_entries(s: State, start: Word, end: Word, action: int) -> int:
    """``update_entry`` for all over canonical [start, end). O(levels + words of the range + leaves)."""
    r = context_regime(s, CANONICAL)
    changed = 0
    for level in range(r.start_level, LEAF_LEVEL):
        ipa = start
        while ipa < end:
            slot = next_slot(s, r, level, ipa, end)
            if slot.node == ZERO:
                break
            ipa = slot.canonical_ipa + entry_size(r, level)
            changed += update_slot(s, slot.at, action)
    ipa = start
    while ipa < end:
        leaf = next_leaf_place(s, r, ipa, end)
        if leaf.place == ZERO:
            break
        changed += update_leaf(s, r, s.rmap[leaf.place], leaf.canonical_ipa, leaf.last, action)
        ipa = leaf.last
    return changed


@kernel
def reverse_update(s: State, start: Word, end: Word, may_block: bool, action: int) -> int:
    """Age or protect every shadow leaf over canonical [start, end); how many changed. The record stays.

    O(levels + words of the range + leaves), with whole MMUs where the record is not complete.
    """
    s.count[LOOKUPS] += 1
    changed = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        if s.mmus[mmu, M_BROKEN] != ZERO and shadow_valid(s, mmu):
            s.count[FALLBACK_MMU] += 1
            changed += act_on_whole_mmu(s, mmu, may_block, action)
    return changed + update_entries(s, start, end, action)
