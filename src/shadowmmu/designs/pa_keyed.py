"""``pa_keyed``: keyed by host physical address. Talked about on the list since 2024, never posted.

Idea: one red-black tree of the VM from the output address and level of a leaf to (shadow MMU, nested
address), leaves of one key in a chain. The key stands in the leaf itself, so what L1 invalidates is taken
off without a second map. A notifier names a canonical range, so L0 first reads in the VMM's page table
which frames are behind it (as ``get_user_mapping_size`` does; the canonical table cannot say, since a page
that only L2 touched has no leaf there). Nodes are allocated before the fill; without memory the access
faults again.
Guarantees: every leaf is in the tree under its own address. Between two notifiers over a page its frame
does not change, so the frame read is the frame mapped: nothing is missed. A range in more than
``MOST_RUNS`` pieces takes the whole VM, counted.
Fails where frames are shared: all the pages that read as the zero page are one key, so taking one away
takes them all; KSM would do the same. It would be unsafe if the host changed the entry before the
notifier.
Bytes a leaf: a node of 56, so 64 in its slab, aliases too.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import entry_size
from shadowmmu.arch.stage2 import OA_BITS
from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.actions import act_on_range, begin_visits, note_visit
from shadowmmu.designs.containers.pool import P_BUMP, node_alloc, node_free, pool_reset
from shadowmmu.designs.containers.rbtree import (
    N_KEY,
    N_SIZE,
    N_VALUE,
    NODE_CLASS,
    NODE_WORDS,
    rb_create,
    rb_erase,
    rb_find,
    rb_insert,
    rb_lower_bound,
    rb_next,
)
from shadowmmu.designs.interface import UNMAP
from shadowmmu.designs.outputs import output_run, output_runs, outputs_overflow
from shadowmmu.designs.sweep import fall_back_to_vm
from shadowmmu.machine.calls import tree_lock, tree_unlock
from shadowmmu.machine.counters import LOOKUPS, NODES_ALLOCATED, NODES_FREED, NODES_VISITED
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import CANONICAL, M_DESIGN, context_regime

M_TREE: Final = M_DESIGN
"""Column of the canonical MMU: the one tree."""
M_ENTRIES: Final = M_DESIGN + 1
"""Column of the canonical MMU: leaves on the record, chained ones included."""
N_MORE: Final = U64(NODE_WORDS)
"""Offset of the next leaf of the same key; 0 in every free node."""

MMU_SHIFT: Final = U64(52)
NESTED: Final = U64((1 << 52) - 1)
ZERO: Final = U64(0)
ONE: Final = U64(1)


@kernel
def pa_init(s: State) -> None:
    """An empty tree, whatever was there before. O(words used before)."""
    s.rmap[: I64(s.rmap[P_BUMP])] = ZERO
    pool_reset(s.rmap)
    s.count[NODES_FREED] += I64(s.mmus[CANONICAL, M_ENTRIES])
    s.mmus[CANONICAL, M_TREE] = rb_create(s.rmap)
    s.mmus[CANONICAL, M_ENTRIES] = ZERO


@inline
def leaf_key(s: State, word: Word, size: Word, level: int) -> Word:
    """The key of the leaf at ``word``: its output address and its level."""
    return (s.mem[word] & OA_BITS & ~(size - ONE)) | U64(level)


@kernel
def pa_record(s: State, mmu: int, nested_ipa: Word, size: Word, level: int, word: Word) -> None:
    """Put a leaf under its output address. O(log entries)."""
    tree = s.mmus[CANONICAL, M_TREE]
    key = leaf_key(s, word, size, level)
    value = (U64(mmu) << MMU_SHIFT) | nested_ipa
    tree_lock(s)
    before = s.count[NODES_VISITED]
    head = rb_find(s.rmap, s.count, tree, key)
    if head == ZERO:
        s.count[NODES_VISITED] = before  # one descent finds the place and fills it
        rb_insert(s.rmap, s.count, tree, key, value, size)
    else:
        node = node_alloc(s.rmap, NODE_CLASS)
        s.count[NODES_ALLOCATED] += 1
        s.rmap[node + N_VALUE] = value
        s.rmap[node + N_SIZE] = size
        s.rmap[node + N_MORE] = s.rmap[head + N_MORE]
        s.rmap[head + N_MORE] = node
    s.mmus[CANONICAL, M_ENTRIES] += ONE
    tree_unlock(s)


@kernel
def remove_head(s: State, head: Word) -> None:
    """Take the first leaf of a key off: the next in the chain takes its place, or the node goes."""
    s.mmus[CANONICAL, M_ENTRIES] -= ONE
    node = s.rmap[head + N_MORE]
    if node == ZERO:
        rb_erase(s.rmap, s.count, s.mmus[CANONICAL, M_TREE], head)
        return
    s.rmap[head + N_VALUE] = s.rmap[node + N_VALUE]
    remove_after(s, head)


@kernel
def remove_after(s: State, before: Word) -> None:
    """Take the leaf that follows ``before`` in its chain off."""
    node = s.rmap[before + N_MORE]
    s.rmap[before + N_MORE] = s.rmap[node + N_MORE]
    s.rmap[node + N_MORE] = ZERO
    node_free(s.rmap, NODE_CLASS, node)
    s.count[NODES_FREED] += 1


@kernel
def pa_unlink(s: State, mmu: int, nested_ipa: Word, word: Word, level: int) -> None:
    """Take the leaf at ``word`` off the record. O(log entries + aliases)."""
    size = entry_size(context_regime(s, mmu), level)
    value = (U64(mmu) << MMU_SHIFT) | nested_ipa
    tree_lock(s)
    node = rb_find(s.rmap, s.count, s.mmus[CANONICAL, M_TREE], leaf_key(s, word, size, level))
    if node != ZERO:
        if s.rmap[node + N_VALUE] == value:
            remove_head(s, node)
        else:
            after = s.rmap[node + N_MORE]
            while after != ZERO and s.rmap[after + N_VALUE] != value:
                s.count[NODES_VISITED] += 1
                node = after
                after = s.rmap[node + N_MORE]
            if after != ZERO:
                s.mmus[CANONICAL, M_ENTRIES] -= ONE
                remove_after(s, node)
    tree_unlock(s)


@kernel
def pa_act(s: State, head: Word, may_block: bool, action: int) -> int:
    """Act on every leaf of one key; an unmap takes them all off the record."""
    changed = 0
    node = head
    while node != ZERO:
        mmu = I64(s.rmap[node + N_VALUE] >> MMU_SHIFT)
        nested_ipa = s.rmap[node + N_VALUE] & NESTED
        note_visit(s, mmu)
        changed += act_on_range(s, mmu, nested_ipa, nested_ipa + s.rmap[node + N_SIZE], may_block, action)
        if action == UNMAP:
            last = s.rmap[head + N_MORE] == ZERO
            remove_head(s, head)
            node = ZERO if last else head
        else:
            node = s.rmap[node + N_MORE]
            s.count[NODES_VISITED] += 1 if node != ZERO else 0
    return changed


@kernel
def pa_apply_run(s: State, start: Word, end: Word, may_block: bool, action: int) -> int:
    """Act on every leaf with an output in [start, end): those that begin there, and blocks around it."""
    tree = s.mmus[CANONICAL, M_TREE]
    s.count[LOOKUPS] += 1
    changed = 0
    for level in range(1, 3):
        size = entry_size(context_regime(s, CANONICAL), level)
        base = start & ~(size - ONE)
        if base != start:
            node = rb_find(s.rmap, s.count, tree, base | U64(level))
            if node != ZERO:
                changed += pa_act(s, node, may_block, action)
    node = rb_lower_bound(s.rmap, s.count, tree, start)
    while node != ZERO and s.rmap[node + N_KEY] < end:
        after = s.rmap[node + N_KEY] + ONE
        changed += pa_act(s, node, may_block, action)
        if action == UNMAP:
            node = rb_lower_bound(s.rmap, s.count, tree, after)
        else:
            node = rb_next(s.rmap, s.count, node)
    return changed


@kernel
def pa_apply(s: State, may_block: bool, action: int) -> int:
    """Act on what leads to the output addresses L0 left. O(runs x log entries + leaves), or the whole VM."""
    if outputs_overflow(s):
        changed = fall_back_to_vm(s, may_block, action)
        if action == UNMAP:
            pa_init(s)
        return changed
    begin_visits(s)
    tree_lock(s)
    changed = 0
    for run in range(output_runs(s)):
        start, end = output_run(s, run)
        changed += pa_apply_run(s, start, end, may_block, action)
    tree_unlock(s)
    return changed


@kernel
def pa_covers(s: State, mmu: int, nested_ipa: Word, size: Word, level: int, word: Word) -> bool:
    """Whether the leaf is in the chain of its own key."""
    before = s.count[NODES_VISITED]
    node = rb_find(s.rmap, s.count, s.mmus[CANONICAL, M_TREE], leaf_key(s, word, size, level))
    s.count[NODES_VISITED] = before
    value = (U64(mmu) << MMU_SHIFT) | nested_ipa
    while node != ZERO and s.rmap[node + N_VALUE] != value:
        node = s.rmap[node + N_MORE]
    return node != ZERO


@inline
def pa_recorded(s: State) -> int:
    """Recorded leaves."""
    return I64(s.mmus[CANONICAL, M_ENTRIES])
