"""``per_vm_tree``: one tree for the VM. Oliver Upton's objection to a tree a shadow MMU, March 2024.

Idea: one maple tree of the VM from canonical range to (shadow MMU, nested address), so that a notifier
looks up once, however many MMUs there are. A tree of ranges holds one value a range: what overlaps becomes
UNKNOWN, as in ``spanning``, but with the set of MMUs it may concern; an unmap that meets it takes those
whole. A direct map a shadow MMU, nested to canonical, lets TLBIs and recycling remove what they end. No
code was ever posted.
Guarantees: every mapped canonical byte of an MMU lies in an entry that names the MMU, or the MMU is broken
(a failed store), or the UNKNOWN names "any other" MMU; so nothing is missed.
Fails by degrading sooner than a tree an MMU: one canonical page in *two* MMUs (two L2s, or a second root
of one L2) is an overlap here and none there. The set names MMUs 1 to 60; an UNKNOWN beyond them takes the
whole VM. UNKNOWN outlives TLBIs. Fills of all MMUs meet at one lock.
Bytes a leaf: two maple entries of 16, so 32 in full leaves; 38 measured, fills in order.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.actions import act_on_range, act_on_whole_mmu, begin_visits, note_visit
from shadowmmu.designs.containers.maple import (
    MapleEntry,
    maple_create,
    maple_destroy,
    maple_entries,
    maple_erase,
    maple_find,
    maple_next,
    maple_seek,
    maple_store,
)
from shadowmmu.designs.containers.maple_node import END, SLOTS
from shadowmmu.designs.containers.pool import pool_reset
from shadowmmu.designs.interface import UNMAP
from shadowmmu.designs.sweep import fall_back_to_vm
from shadowmmu.machine.calls import GFP_NOWAIT, allocation_fails, tree_lock, tree_unlock
from shadowmmu.machine.counters import BROKEN, FALLBACK_MMU, LOOKUPS, NODES_VISITED, UNKNOWN_ENTRIES
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import CANONICAL, M_DESIGN, shadow_mmus, shadow_valid

M_MAP: Final = M_DESIGN
"""Column of the canonical MMU: the one map."""
M_DIRECT: Final = M_DESIGN + 1
M_BROKEN: Final = M_DESIGN + 2

VALID_ENTRY: Final = U64(1)
UNKNOWN: Final = U64(2)
TAG_SHIFT: Final = U64(52)
"""An exact value: nested address, VALID_ENTRY, and the MMU from this bit up (11 bits: bit 63 stays free)."""
NESTED: Final = U64((1 << 52) - (1 << 12))
NAMED_MMUS: Final = 60
"""MMUs that an UNKNOWN value can name, at bits 2 to 61."""
OTHERS: Final = U64(1 << 62)
ZERO: Final = U64(0)
ONE: Final = U64(1)


@kernel
def per_vm_init(s: State) -> None:
    """An empty map, and an empty direct map for each shadow MMU."""
    pool_reset(s.rmap)
    s.mmus[CANONICAL, M_MAP] = maple_create(s.rmap, SLOTS)
    for mmu in range(1, shadow_mmus(s) + 1):
        s.mmus[mmu, M_DIRECT] = maple_create(s.rmap, SLOTS)


@inline
def name_of(mmu: int) -> Word:
    """The bit that names an MMU in an UNKNOWN value."""
    return ONE << U64(mmu + 1) if mmu <= NAMED_MMUS else OTHERS


@inline
def exact(mmu: int, nested_ipa: Word) -> Word:
    """The value of a leaf of ``mmu``."""
    return (U64(mmu) << TAG_SHIFT) | nested_ipa | VALID_ENTRY


@inline
def names_in(value: Word) -> Word:
    """The MMUs a value may concern."""
    if value & UNKNOWN != ZERO:
        return value & ~UNKNOWN
    return name_of(I64(value >> TAG_SHIFT))


@kernel
def store_shared(s: State, mmu: int, canonical_ipa: Word, last: Word, value: Word) -> bool:
    """Store a leaf over [canonical_ipa, last]: exact if nothing overlaps, else UNKNOWN over the hull."""
    tree = s.mmus[CANONICAL, M_MAP]
    entry = maple_seek(s.rmap, s.count, tree, canonical_ipa, last)
    if entry.value == value and entry.first == canonical_ipa and entry.last == last:
        return True
    if entry.value == ZERO:
        return maple_store(s.rmap, s.count, tree, canonical_ipa, last, value)
    first = canonical_ipa if canonical_ipa < entry.first else entry.first
    names = name_of(mmu)
    reach = last
    while entry.value != ZERO:
        names |= names_in(entry.value)
        if entry.last > last:
            reach = entry.last
        entry = maple_next(s.rmap, s.count, tree, entry, last)
    s.count[UNKNOWN_ENTRIES] += 1
    return maple_store(s.rmap, s.count, tree, first, reach, names | UNKNOWN)


@kernel
def per_vm_record(s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word) -> None:
    """A fill goes into the map and into the MMU's direct map. O(log entries + entries overlapped)."""
    if s.mmus[mmu, M_BROKEN] != ZERO:
        return
    stored = not allocation_fails(s, GFP_NOWAIT)
    if stored:
        tree_lock(s)
        last = size - ONE
        stored = store_shared(s, mmu, canonical_ipa, canonical_ipa + last, exact(mmu, nested_ipa))
        if stored:
            direct = s.mmus[mmu, M_DIRECT]
            value = canonical_ipa | VALID_ENTRY
            stored = maple_store(s.rmap, s.count, direct, nested_ipa, nested_ipa + last, value)
        tree_unlock(s)
    if not stored:
        s.mmus[mmu, M_BROKEN] = ONE
        s.count[BROKEN] += 1


@inline
def drop_name(s: State, mmu: int, canonical_ipa: Word) -> None:
    """All of ``mmu`` goes: an UNKNOWN entry at ``canonical_ipa`` need not name it any more."""
    tree = s.mmus[CANONICAL, M_MAP]
    found = maple_find(s.rmap, s.count, tree, canonical_ipa, canonical_ipa)
    if found.value & UNKNOWN == ZERO or mmu > NAMED_MMUS:
        return
    names = found.value & ~(UNKNOWN | name_of(mmu))
    value = names | UNKNOWN if names != ZERO else ZERO
    maple_store(s.rmap, s.count, tree, found.first, found.last, value)


@kernel
def take_off(s: State, mmu: int, start: Word, end: Word, whole: bool) -> None:
    """Take nested [start, end) of an MMU off both trees; ``whole``: it is all that the MMU maps.

    O(entries of the range x log entries). UNKNOWN stays, but where the whole MMU goes.
    """
    tree = s.mmus[CANONICAL, M_MAP]
    direct = s.mmus[mmu, M_DIRECT]
    entry = maple_find(s.rmap, s.count, direct, start, end - ONE)
    while entry.value != ZERO:
        canonical_ipa = entry.value & NESTED
        recorded = maple_find(s.rmap, s.count, tree, canonical_ipa, canonical_ipa)
        if recorded.value == exact(mmu, entry.first):
            maple_erase(s.rmap, s.count, tree, canonical_ipa)
        elif whole:
            drop_name(s, mmu, canonical_ipa)
        if not whole:
            maple_erase(s.rmap, s.count, direct, entry.first)
        entry = maple_find(s.rmap, s.count, direct, entry.last + ONE, end - ONE)
    if whole:
        maple_destroy(s.rmap, s.count, direct)
        s.mmus[mmu, M_BROKEN] = ZERO


@kernel
def per_vm_forget(s: State, mmu: int, start: Word, end: Word, whole: bool) -> None:
    """Nested [start, end) of an MMU goes, for another reason than a notifier."""
    tree_lock(s)
    take_off(s, mmu, start, end, whole)
    tree_unlock(s)


@kernel
def per_vm_take_mmu(s: State, mmu: int, may_block: bool, action: int) -> int:
    """The fallback: act on the whole MMU; an unmap takes it off the record."""
    s.count[FALLBACK_MMU] += 1
    note_visit(s, mmu)
    changed = act_on_whole_mmu(s, mmu, may_block, action)
    if action == UNMAP:  # after it: meanwhile another notifier may get the lock
        take_off(s, mmu, ZERO, END, True)
    return changed


@kernel
def per_vm_take_vm(s: State, may_block: bool, action: int) -> int:
    """The last fallback: act on every MMU; an unmap starts the record again."""
    changed = fall_back_to_vm(s, may_block, action)
    if action == UNMAP:
        maple_destroy(s.rmap, s.count, s.mmus[CANONICAL, M_MAP])
        for mmu in range(1, shadow_mmus(s) + 1):
            maple_destroy(s.rmap, s.count, s.mmus[mmu, M_DIRECT])
            s.mmus[mmu, M_BROKEN] = ZERO
    return changed


@kernel
def per_vm_take_named(s: State, unknown: MapleEntry, may_block: bool, action: int) -> int:
    """Act on the MMUs that an UNKNOWN entry names, each whole; an unmap takes the entry off."""
    changed = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        if unknown.value & name_of(mmu) != ZERO and shadow_valid(s, mmu):
            changed += per_vm_take_mmu(s, mmu, may_block, action)
    if action == UNMAP:  # after them: meanwhile another notifier may get the lock
        maple_erase(s.rmap, s.count, s.mmus[CANONICAL, M_MAP], unknown.first)
    return changed


@kernel
def per_vm_apply(s: State, start: Word, end: Word, may_block: bool, action: int) -> int:
    """Act on canonical [start, end) in every MMU, by one lookup. O(hits x log entries), or whole MMUs."""
    tree = s.mmus[CANONICAL, M_MAP]
    s.count[LOOKUPS] += 1
    begin_visits(s)
    tree_lock(s)
    changed = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        if s.mmus[mmu, M_BROKEN] != ZERO and shadow_valid(s, mmu):
            changed += per_vm_take_mmu(s, mmu, may_block, action)
    entry = maple_find(s.rmap, s.count, tree, start, end - ONE)
    while entry.value != ZERO:
        if entry.value & OTHERS != ZERO and entry.value & UNKNOWN != ZERO:
            tree_unlock(s)
            return changed + per_vm_take_vm(s, may_block, action)
        if entry.value & UNKNOWN != ZERO:
            changed += per_vm_take_named(s, entry, may_block, action)
        else:
            changed += per_vm_act(s, entry.first, entry.last, entry.value, may_block, action)
        entry = maple_find(s.rmap, s.count, tree, entry.last + ONE, end - ONE)
    tree_unlock(s)
    return changed


@inline
def per_vm_act(s: State, first: Word, last: Word, value: Word, may_block: bool, action: int) -> int:
    """Act on one exact entry; an unmap takes it off the map."""
    mmu = I64(value >> TAG_SHIFT)
    nested_ipa = value & NESTED
    note_visit(s, mmu)
    if action == UNMAP:
        maple_erase(s.rmap, s.count, s.mmus[CANONICAL, M_MAP], first)
        direct = s.mmus[mmu, M_DIRECT]
        known = maple_find(s.rmap, s.count, direct, nested_ipa, nested_ipa)
        if known.value == first | VALID_ENTRY:
            maple_erase(s.rmap, s.count, direct, nested_ipa)
    size = last - first + ONE
    return act_on_range(s, mmu, nested_ipa, nested_ipa + size, may_block, action)


@kernel
def per_vm_covers(s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word) -> bool:
    """Whether an unmap of any page of the leaf finds it: exact, UNKNOWN that names its MMU, or broken."""
    if s.mmus[mmu, M_BROKEN] != ZERO:
        return True
    before = s.count[NODES_VISITED]
    covered = ZERO
    while covered < size:
        at = canonical_ipa + covered
        entry = maple_find(s.rmap, s.count, s.mmus[CANONICAL, M_MAP], at, at)
        if entry.value == ZERO:
            break
        if entry.value & UNKNOWN != ZERO:
            if entry.value & name_of(mmu) == ZERO:
                break
        elif entry.value != exact(mmu, (entry.value & NESTED)):
            break  # another MMU's
        elif (entry.value & NESTED) + (at - entry.first) != nested_ipa + covered:
            break
        covered = entry.last + ONE - canonical_ipa
    s.count[NODES_VISITED] = before
    return bool(covered >= size)


@kernel
def per_vm_recorded(s: State) -> int:
    """Entries of the map, exact and UNKNOWN."""
    return I64(maple_entries(s.rmap, s.mmus[CANONICAL, M_MAP]))
