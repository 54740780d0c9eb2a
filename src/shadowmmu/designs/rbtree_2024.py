"""``rbtree_2024``: the RFC of March 2024 (G. Kulkarni), kept with its faults. A negative control.

Idea: each shadow MMU has a red-black tree keyed by the *start* of a canonical range, node = (canonical,
nested, size). A fill inserts; an unmap steps through its range a page at a time, looks each address up
by exact match, unmaps what it finds and frees the node.
Guarantees: none.
Fails, as its review said and more: a range that begins inside a block is missed; of two nested addresses
for one canonical page the second is dropped; a TLBI leaves the node, so the next owner of the key is not
recorded; a hit frees the node, so it can serve no update (ageing and write protection take whole MMUs, as
the RFC left them); a failed allocation is ignored; deleting a
memslot shifts the address twice and finds nothing; a private lock for what mmu_lock already guards.
Bytes a leaf: a node of 48, so 64 in its slab.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.containers.pool import pool_reset
from shadowmmu.designs.containers.rbtree import (
    N_KEY,
    N_RIGHT,
    N_SIZE,
    N_VALUE,
    T_ROOT,
    rb_create,
    rb_entries,
    rb_erase,
    rb_find,
    rb_insert,
)
from shadowmmu.designs.interface import CAUSE_MEMSLOT, UNMAP
from shadowmmu.designs.sweep import sweep_apply
from shadowmmu.machine.calls import GFP_KERNEL, allocation_fails, tree_lock, tree_unlock
from shadowmmu.machine.counters import LOOKUPS, MMUS_VISITED, NODES_VISITED
from shadowmmu.machine.state import R_PAGE_SHIFT, State
from shadowmmu.pgtable.context import M_DESIGN, shadow_mmus, shadow_valid
from shadowmmu.pgtable.unmap import unmap_range

M_TREE: Final = M_DESIGN
ZERO: Final = U64(0)
ONE: Final = U64(1)


@kernel
def rbtree_init(s: State) -> None:
    """An empty tree for each shadow MMU."""
    pool_reset(s.rmap)
    for mmu in range(1, shadow_mmus(s) + 1):
        s.mmus[mmu, M_TREE] = rb_create(s.rmap)


@kernel
def rbtree_record(s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word) -> None:
    """``add_shadow_ipa_map_node``: the first node of a key wins; a failed allocation is silent."""
    if allocation_fails(s, GFP_KERNEL):
        return
    tree_lock(s)
    rb_insert(s.rmap, s.count, s.mmus[mmu, M_TREE], canonical_ipa, nested_ipa, size)
    tree_unlock(s)


@inline
def right_spine(s: State, tree: Word) -> int:
    """Nodes on the way to the greatest key: what a lookup of anything greater visits."""
    nodes = 0
    node = s.rmap[tree + T_ROOT]
    while node != ZERO:
        nodes += 1
        node = s.rmap[node + N_RIGHT]
    return nodes


@inline
def greatest_key(s: State, tree: Word) -> Word:
    """The greatest key, 0 for an empty tree. (Counts nothing: not a step of the design.)"""
    node = s.rmap[tree + T_ROOT]
    key = ZERO
    while node != ZERO:
        key = s.rmap[node + N_KEY]
        node = s.rmap[node + N_RIGHT]
    return key


@kernel
def rbtree_unmap_mmu(s: State, mmu: int, start: Word, end: Word, may_block: bool) -> int:
    """``kvm_nested_s2_unmap_range`` for one MMU: O(pages of the range x log entries)."""
    tree = s.mmus[mmu, M_TREE]
    page = ONE << s.regs[R_PAGE_SHIFT]
    removed = 0
    at = start
    while at < end:
        if at > greatest_key(s, tree):  # all that is left misses, each along the right spine
            misses = I64((end - at + page - ONE) >> s.regs[R_PAGE_SHIFT])
            s.count[LOOKUPS] += misses
            s.count[NODES_VISITED] += misses * right_spine(s, tree)
            break
        s.count[LOOKUPS] += 1
        tree_lock(s)
        node = rb_find(s.rmap, s.count, tree, at)
        tree_unlock(s)
        size = page
        if node != ZERO:
            nested_ipa = s.rmap[node + N_VALUE]
            size = s.rmap[node + N_SIZE]
            tree_lock(s)
            rb_erase(s.rmap, s.count, tree, node)
            tree_unlock(s)
            removed += unmap_range(s, mmu, nested_ipa, nested_ipa + size, may_block)
        at += size
    return removed


@kernel
def rbtree_apply(s: State, start: Word, end: Word, may_block: bool, cause: int, action: int) -> int:
    """Step through the range in every valid shadow MMU. A memslot's range arrives shifted once too often."""
    if action != UNMAP:
        return sweep_apply(s, may_block, action)
    if cause == CAUSE_MEMSLOT:
        start <<= s.regs[R_PAGE_SHIFT]
        end <<= s.regs[R_PAGE_SHIFT]
    removed = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        if shadow_valid(s, mmu):
            s.count[MMUS_VISITED] += 1
            removed += rbtree_unmap_mmu(s, mmu, start, end, may_block)
    return removed


@kernel
def rbtree_covers(s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word) -> bool:
    """Whether an unmap of any page of the leaf would find it: only a lone page under its own key is."""
    before = s.count[NODES_VISITED]
    node = rb_find(s.rmap, s.count, s.mmus[mmu, M_TREE], canonical_ipa)
    s.count[NODES_VISITED] = before
    if node == ZERO or s.rmap[node + N_VALUE] != nested_ipa:
        return False
    return size == ONE << s.regs[R_PAGE_SHIFT]


@kernel
def rbtree_recorded(s: State) -> int:
    """Nodes of all trees."""
    recorded = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        recorded += I64(rb_entries(s.rmap, s.mmus[mmu, M_TREE]))
    return recorded
