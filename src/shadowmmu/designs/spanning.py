"""``spanning``: ranges that give up rather than lie. Wei-Lin Chang, v3 of May 2026 (v2: ``spanning_v2``).

Idea: each shadow MMU has a maple tree from canonical range to nested address. A fill that overlaps what
is recorded replaces it all by one spanning range marked UNKNOWN; an unmap that meets UNKNOWN takes the
whole MMU. A second tree, nested to canonical (the direct map), lets a TLBI remove what it invalidates. A
failed store marks the MMU broken: the next unmap takes it whole.
Guarantees: every mapped canonical byte lies in an entry, or the MMU is broken; so nothing is missed.
Fails by degrading: UNKNOWN is absorbing (only a full unmap heals it), so an L1 that maps pages twice gets
``sweep`` plus the cost of two trees. A leaf replaced by another size leaves its entry behind.
Bytes a leaf: two maple entries of 16, so 32 in full leaves; 38 measured, fills in order.
What an identical refill does is inferred, not read in the patches (upstream.md, appendix B3).
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.actions import act_on_range, act_on_whole_mmu
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
from shadowmmu.designs.containers.maple_node import SLOTS
from shadowmmu.designs.containers.pool import pool_reset
from shadowmmu.designs.interface import UNMAP
from shadowmmu.machine.calls import GFP_NOWAIT, allocation_fails, tree_lock, tree_unlock
from shadowmmu.machine.counters import (
    BROKEN,
    FALLBACK_MMU,
    LOOKUPS,
    MMUS_VISITED,
    NODES_VISITED,
    UNKNOWN_ENTRIES,
)
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import M_DESIGN, shadow_mmus, shadow_valid

M_MAP: Final = M_DESIGN
M_DIRECT: Final = M_DESIGN + 1
"""Column: the direct map; 0 in v2, which has none."""
M_BROKEN: Final = M_DESIGN + 2

VALID_ENTRY: Final = U64(1)
UNKNOWN: Final = U64(2)
FLAGS: Final = U64(3)
ZERO: Final = U64(0)
ONE: Final = U64(1)


@kernel
def spanning_init(s: State, with_direct_map: bool) -> None:
    """An empty map, and a direct map if wanted, for each shadow MMU."""
    pool_reset(s.rmap)
    for mmu in range(1, shadow_mmus(s) + 1):
        s.mmus[mmu, M_MAP] = maple_create(s.rmap, SLOTS)
        if with_direct_map:
            s.mmus[mmu, M_DIRECT] = maple_create(s.rmap, SLOTS)


@inline
def give_up(s: State, mmu: int) -> None:
    """The record of this MMU is not complete any more."""
    s.mmus[mmu, M_BROKEN] = ONE
    s.count[BROKEN] += 1


@inline
def store_exact(s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word) -> bool:
    """Record one leaf in each tree there is; False if one has no room."""
    last = size - ONE
    value = nested_ipa | VALID_ENTRY
    if not maple_store(s.rmap, s.count, s.mmus[mmu, M_MAP], canonical_ipa, canonical_ipa + last, value):
        return False
    direct = s.mmus[mmu, M_DIRECT]
    value = canonical_ipa | VALID_ENTRY
    return direct == ZERO or maple_store(s.rmap, s.count, direct, nested_ipa, nested_ipa + last, value)


@kernel
def store_overlapping(s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word) -> bool:
    """Replace all that overlaps by one UNKNOWN range, unless it is the same leaf again."""
    tree = s.mmus[mmu, M_MAP]
    first = canonical_ipa
    last = canonical_ipa + (size - ONE)
    entry = maple_seek(s.rmap, s.count, tree, first, last)
    same = entry.first == first and entry.last == last and entry.value == nested_ipa | VALID_ENTRY
    if same:
        return True
    while entry.value != ZERO:
        if entry.first < first:
            first = entry.first
        if entry.last > last:
            last = entry.last
        entry = maple_next(s.rmap, s.count, tree, entry, canonical_ipa + (size - ONE))
    s.count[UNKNOWN_ENTRIES] += 1
    return maple_store(s.rmap, s.count, tree, first, last, UNKNOWN)


@kernel
def spanning_record(s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word) -> None:
    """A fill: exact if nothing overlaps, else UNKNOWN. O(log entries + entries overlapped)."""
    if s.mmus[mmu, M_BROKEN] != ZERO:
        return
    if allocation_fails(s, GFP_NOWAIT):
        give_up(s, mmu)
        return
    tree_lock(s)
    last = canonical_ipa + (size - ONE)
    entry = maple_find(s.rmap, s.count, s.mmus[mmu, M_MAP], canonical_ipa, last)
    if entry.value == ZERO:
        stored = store_exact(s, mmu, canonical_ipa, nested_ipa, size)
    else:
        stored = store_overlapping(s, mmu, canonical_ipa, nested_ipa, size)
    if not stored:
        give_up(s, mmu)
    tree_unlock(s)


@kernel
def spanning_forget(s: State, mmu: int, start: Word, end: Word) -> None:
    """A TLBI takes nested [start, end): remove what the direct map knows of it; UNKNOWN stays."""
    direct = s.mmus[mmu, M_DIRECT]
    tree_lock(s)
    entry = maple_find(s.rmap, s.count, direct, start, end - ONE)
    while entry.value != ZERO:
        canonical_ipa = entry.value & ~FLAGS
        recorded = maple_find(s.rmap, s.count, s.mmus[mmu, M_MAP], canonical_ipa, canonical_ipa)
        if recorded.value == entry.first | VALID_ENTRY:
            maple_erase(s.rmap, s.count, s.mmus[mmu, M_MAP], canonical_ipa)
        maple_erase(s.rmap, s.count, direct, entry.first)
        entry = maple_find(s.rmap, s.count, direct, start, end - ONE)
    tree_unlock(s)


@kernel
def spanning_forget_mmu(s: State, mmu: int) -> None:
    """Empty each tree; the MMU is whole again. O(nodes)."""
    maple_destroy(s.rmap, s.count, s.mmus[mmu, M_MAP])
    if s.mmus[mmu, M_DIRECT] != ZERO:
        maple_destroy(s.rmap, s.count, s.mmus[mmu, M_DIRECT])
    s.mmus[mmu, M_BROKEN] = ZERO


@kernel
def take_whole(s: State, mmu: int, may_block: bool, action: int) -> int:
    """The fallback: act on the whole MMU; an unmap starts its record again."""
    s.count[FALLBACK_MMU] += 1
    changed = act_on_whole_mmu(s, mmu, may_block, action)
    if action == UNMAP:  # after it: meanwhile another notifier may get the lock
        spanning_forget_mmu(s, mmu)
    return changed


@kernel
def erase_exact(s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word) -> None:
    """Take one exact entry off the map, and its twin off the direct map, if that is still its twin."""
    maple_erase(s.rmap, s.count, s.mmus[mmu, M_MAP], canonical_ipa)
    direct = s.mmus[mmu, M_DIRECT]
    if direct == ZERO:
        return
    known = maple_find(s.rmap, s.count, direct, nested_ipa, nested_ipa)
    if known.value == canonical_ipa | VALID_ENTRY:
        maple_erase(s.rmap, s.count, direct, nested_ipa)


@kernel
def spanning_apply_mmu(s: State, mmu: int, start: Word, end: Word, may_block: bool, action: int) -> int:
    """Act on what one MMU's map has over canonical [start, end). O(hits x log entries), or the whole MMU."""
    if s.mmus[mmu, M_BROKEN] != ZERO:
        return take_whole(s, mmu, may_block, action)
    tree = s.mmus[mmu, M_MAP]
    changed = 0
    entry = maple_find(s.rmap, s.count, tree, start, end - ONE)
    while entry.value != ZERO:
        if entry.value & UNKNOWN != ZERO:
            return changed + take_whole(s, mmu, may_block, action)
        nested_ipa = entry.value & ~FLAGS
        if action == UNMAP:
            erase_exact(s, mmu, entry.first, nested_ipa)
        size = entry.last - entry.first + ONE
        changed += act_on_range(s, mmu, nested_ipa, nested_ipa + size, may_block, action)
        entry = maple_find(s.rmap, s.count, tree, entry.last + ONE, end - ONE)
    return changed


@kernel
def spanning_apply(s: State, start: Word, end: Word, may_block: bool, action: int) -> int:
    """Act on canonical [start, end) in every valid shadow MMU."""
    changed = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        if shadow_valid(s, mmu):
            s.count[MMUS_VISITED] += 1
            s.count[LOOKUPS] += 1
            tree_lock(s)
            changed += spanning_apply_mmu(s, mmu, start, end, may_block, action)
            tree_unlock(s)
    return changed


@kernel
def spanning_covers(s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word) -> bool:
    """Whether an unmap of any page of the leaf finds it: exact entries that agree, UNKNOWN, or broken."""
    if s.mmus[mmu, M_BROKEN] != ZERO:
        return True
    before = s.count[NODES_VISITED]
    covered = ZERO
    while covered < size:
        at = canonical_ipa + covered
        last = canonical_ipa + (size - ONE)
        entry = maple_find(s.rmap, s.count, s.mmus[mmu, M_MAP], at, last)
        if entry.value == ZERO or entry.first > at:
            break
        exact = entry.value & UNKNOWN == ZERO
        if exact and (entry.value & ~FLAGS) + (at - entry.first) != nested_ipa + covered:
            break
        covered = entry.last + ONE - canonical_ipa
    s.count[NODES_VISITED] = before
    return bool(covered >= size)


@kernel
def spanning_recorded(s: State) -> int:
    """Entries of the maps, exact and UNKNOWN."""
    recorded = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        recorded += I64(maple_entries(s.rmap, s.mmus[mmu, M_MAP]))
    return recorded
