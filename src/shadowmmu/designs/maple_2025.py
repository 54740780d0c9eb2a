"""``maple_2025``: the maple-tree series of September and October 2025 (G. Kulkarni, v2). A negative control.

Idea: each shadow MMU has a maple tree from canonical range to an object (nested, size) allocated before
the fill. A fill stores over whatever is there, which the tree overwrites or trims; an unmap walks the
entries over its range, unmaps the nested range of each, erases the entry and frees its object.
Guarantees: a range is found wherever it starts; a failed allocation refuses the fill, so nothing is mapped
unrecorded (v2 returns -ENOMEM to the run loop; here the access faults again: inferred).
Fails, as its review said and more: of two nested addresses for one canonical page the last wins, and the
first is stale for ever; the object of an overwritten entry leaks; a page stored inside a block leaves two
pieces that share one object, and the second is used after it was freed; a TLBI removes nothing, so a stale
entry unmaps whatever its nested address maps later. The series also lost the invalidation of VNCR pages in
the range path, which this model does not have. Write protection and ageing take whole MMUs, as the series
left them.
Bytes a leaf: an object of 24, so 32 in its slab, and a maple entry of 16 to 32.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.containers.maple import (
    maple_create,
    maple_destroy,
    maple_entries,
    maple_erase,
    maple_find,
    maple_next,
    maple_seek,
    maple_store,
)
from shadowmmu.designs.containers.maple_node import ARANGE_SLOTS, END
from shadowmmu.designs.containers.pool import node_alloc, node_free, pool_reset
from shadowmmu.designs.interface import UNMAP
from shadowmmu.designs.sweep import sweep_apply
from shadowmmu.machine.calls import tree_lock, tree_unlock
from shadowmmu.machine.counters import (
    LOOKUPS,
    MMUS_VISITED,
    NODES_ALLOCATED,
    NODES_FREED,
    NODES_VISITED,
)
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import M_DESIGN, shadow_mmus, shadow_valid
from shadowmmu.pgtable.unmap import unmap_range

M_TREE: Final = M_DESIGN

OBJECT_CLASS: Final = U64(2)
O_NESTED: Final = U64(1)
O_SIZE: Final = U64(2)
O_LIVE: Final = U64(3)
"""The model's own mark: a second free would break the pool, where in a kernel it breaks the slab."""

ZERO: Final = U64(0)
ONE: Final = U64(1)


@kernel
def maple_2025_init(s: State) -> None:
    """An empty tree for each shadow MMU."""
    pool_reset(s.rmap)
    for mmu in range(1, shadow_mmus(s) + 1):
        s.mmus[mmu, M_TREE] = maple_create(s.rmap, ARANGE_SLOTS)


@inline
def free_object(s: State, node: Word) -> None:
    """``kfree``, once."""
    if s.rmap[node + O_LIVE] != ZERO:
        s.rmap[node + O_LIVE] = ZERO
        node_free(s.rmap, OBJECT_CLASS, node)
        s.count[NODES_FREED] += 1


@kernel
def maple_2025_record(s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word) -> None:
    """Store the leaf over what is there. O(log entries). The objects of what it overwrites are lost."""
    tree_lock(s)
    node = node_alloc(s.rmap, OBJECT_CLASS)
    if node != ZERO:
        s.count[NODES_ALLOCATED] += 1
        s.rmap[node + O_NESTED] = nested_ipa
        s.rmap[node + O_SIZE] = size
        s.rmap[node + O_LIVE] = ONE
        tree = s.mmus[mmu, M_TREE]
        if not maple_store(s.rmap, s.count, tree, canonical_ipa, canonical_ipa + (size - ONE), node):
            free_object(s, node)
    tree_unlock(s)


@kernel
def maple_2025_forget_mmu(s: State, mmu: int) -> None:
    """Free what the tree still names and empty it; v2 makes it ready for use again. O(entries)."""
    tree = s.mmus[mmu, M_TREE]
    entry = maple_seek(s.rmap, s.count, tree, ZERO, END)
    while entry.value != ZERO:
        free_object(s, entry.value)
        entry = maple_next(s.rmap, s.count, tree, entry, END)
    maple_destroy(s.rmap, s.count, tree)


@kernel
def maple_2025_unmap_mmu(s: State, mmu: int, start: Word, end: Word, may_block: bool) -> int:
    """``mt_find`` over canonical [start, end): unmap, erase, free each. O(hits x log entries)."""
    tree = s.mmus[mmu, M_TREE]
    removed = 0
    entry = maple_find(s.rmap, s.count, tree, start, end - ONE)
    while entry.value != ZERO:
        nested_ipa = s.rmap[entry.value + O_NESTED]
        size = s.rmap[entry.value + O_SIZE]
        removed += unmap_range(s, mmu, nested_ipa, nested_ipa + size, may_block)
        maple_erase(s.rmap, s.count, tree, entry.first)
        free_object(s, entry.value)
        entry = maple_find(s.rmap, s.count, tree, entry.last + ONE, end - ONE)
    return removed


@kernel
def maple_2025_apply(s: State, start: Word, end: Word, may_block: bool, action: int) -> int:
    """Unmap canonical [start, end) from every valid shadow MMU; age and protect whole MMUs."""
    if action != UNMAP:
        return sweep_apply(s, may_block, action)
    removed = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        if shadow_valid(s, mmu):
            s.count[MMUS_VISITED] += 1
            s.count[LOOKUPS] += 1
            tree_lock(s)
            removed += maple_2025_unmap_mmu(s, mmu, start, end, may_block)
            tree_unlock(s)
    return removed


@kernel
def maple_2025_covers(s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word) -> bool:
    """Whether an unmap of any page of the leaf unmaps the leaf: some live object over it has its page."""
    before = s.count[NODES_VISITED]
    covered = ZERO
    while covered < size:
        at = canonical_ipa + covered
        entry = maple_find(s.rmap, s.count, s.mmus[mmu, M_TREE], at, at)
        if entry.value == ZERO or s.rmap[entry.value + O_LIVE] == ZERO:
            break
        first = s.rmap[entry.value + O_NESTED]
        here = nested_ipa + covered
        if here < first or here - first >= s.rmap[entry.value + O_SIZE]:
            break
        covered = entry.last + ONE - canonical_ipa
    s.count[NODES_VISITED] = before
    return bool(covered >= size)


@kernel
def maple_2025_recorded(s: State) -> int:
    """Entries of all trees; pieces of a trimmed one count each."""
    recorded = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        recorded += I64(maple_entries(s.rmap, s.mmus[mmu, M_TREE]))
    return recorded
