"""``maple``: a maple tree over the whole 64-bit key space, as kernels.

Maps ranges ``[first, last]``, both inclusive, to values that are not 0; 0 is "nothing here". A store
overwrites and trims what it overlaps. Neighbouring ranges with equal values stay apart (so they do in
the kernel); neighbouring gaps are one gap. The tree is the eight words at index ``tree``, its nodes come
from the pool, and one pool may hold many trees: the kernel's ``struct maple_tree`` is embedded in its
owner likewise. Two differences from Linux' ``lib/maple_tree.c`` (geometry as ``maple_node`` says): an
entry for key 0 alone is not kept in the root pointer, and nothing is deferred to an RCU grace period.

``NODES_VISITED`` counts the nodes an operation enters, each once: those of a descent, siblings looked
at, and nodes freed. Nodes it builds count as ``NODES_ALLOCATED``. One operation at a time may run on a
pool, since writers share its scratch words; readers use none.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.compiled import U64, Counts, Word, Words, inline, kernel
from shadowmmu.designs.containers.maple_node import (
    ARANGE_SLOTS,
    END,
    LEAF,
    LEFT,
    MAX_HEIGHT,
    NODE_BYTES,
    NODE_CLASS,
    ONE,
    PATH_NODE,
    PATH_SLOT,
    PATH_TOP,
    PIVOT,
    PIVOTS,
    RIGHT,
    SLOT,
    SLOTS,
    T_ENTRIES,
    T_FANOUT,
    T_HEIGHT,
    T_NODES,
    T_ROOT,
    ZERO,
    filled,
    free_subtree,
    gather,
    give_node,
    least_slots,
    set_item,
    slot_for,
    slot_top,
    slots_used,
    take_node,
)
from shadowmmu.designs.containers.maple_rebuild import find_right_path, free_between, rebuild
from shadowmmu.designs.containers.pool import node_alloc, pool_has
from shadowmmu.machine.counters import NODES_VISITED

__all__ = [
    "ARANGE_SLOTS",
    "END",
    "MAPLE_RESERVE_WORDS",
    "SLOTS",
    "MapleCursor",
    "MapleEntry",
    "maple_bytes",
    "maple_create",
    "maple_destroy",
    "maple_entries",
    "maple_erase",
    "maple_find",
    "maple_height",
    "maple_init",
    "maple_load",
    "maple_next",
    "maple_prev",
    "maple_seek",
    "maple_seek_back",
    "maple_store",
]

HEADER_CLASS: Final = U64(3)
NODE_SHIFT: Final = U64(8)

MAPLE_RESERVE_WORDS: Final = (MAX_HEIGHT + 2) * NODE_BYTES // 8
"""Room (``pool_room``) with which any single operation succeeds, ``maple_create`` included."""


class MapleEntry(NamedTuple):
    """A range and its value. ``value`` 0: no entry; then ``last`` < ``first`` unless documented."""

    first: Word
    """First key of the range."""
    last: Word
    """Last key of the range, inclusive."""
    value: Word
    """What is stored, never 0."""


class MapleCursor(NamedTuple):
    """A place in a tree, and the entry there. It is good until the tree changes (``struct ma_state``)."""

    first: Word
    last: Word
    value: Word
    """0: there is no entry."""
    node: Word
    """The leaf."""
    slot: Word
    low: Word
    """First key of the leaf."""
    top: Word
    """Last key of the leaf."""


class Edit(NamedTuple):
    """What a store does to leaf slots: ``low`` to ``high`` (inclusive) become one to three items."""

    low: Word
    high: Word
    keep_left: bool
    left_value: Word
    left_last: Word
    value: Word
    last: Word
    keep_right: bool
    right_value: Word
    right_last: Word


@inline
def maple_init(words: Words, tree: Word, fanout: Word) -> None:
    """Make the eight words at ``tree`` an empty tree.

    ``fanout`` is the slots of an inner node, ``SLOTS`` (16) or ``ARANGE_SLOTS`` (10: what trees with
    ``MT_FLAGS_ALLOC_RANGE``, such as ``MM_MT_FLAGS``, use). O(1).
    """
    words[tree + T_ROOT] = ZERO
    words[tree + T_HEIGHT] = ZERO
    words[tree + T_ENTRIES] = ZERO
    words[tree + T_FANOUT] = fanout
    words[tree + T_NODES] = ZERO


@kernel
def maple_create(words: Words, fanout: Word) -> Word:
    """An empty tree in eight words of the pool; 0 if there is no room. O(1)."""
    tree = node_alloc(words, HEADER_CLASS)
    if tree != ZERO:
        maple_init(words, tree, fanout)
    return tree


@inline
def maple_entries(words: Words, tree: Word) -> Word:
    """Entries in the tree. O(1)."""
    entries: Word = words[tree + T_ENTRIES]
    return entries


@inline
def maple_height(words: Words, tree: Word) -> Word:
    """Levels of the tree, 0 when it is empty. O(1)."""
    height: Word = words[tree + T_HEIGHT]
    return height


@inline
def maple_bytes(words: Words, tree: Word) -> Word:
    """Bytes of the tree's nodes; the header belongs to its owner. O(1)."""
    size: Word = words[tree + T_NODES] << NODE_SHIFT
    return size


@inline
def descend(words: Words, count: Counts, tree: Word, index: Word) -> MapleCursor:
    """The slot of ``index`` in its leaf, entry or gap; one node a level. The tree is not empty."""
    node = words[tree + T_ROOT]
    low = ZERO
    top = END
    used = slots_used(words, node)
    slot = slot_for(words, node, ZERO, used, index)
    count[NODES_VISITED] += 1
    while words[node] & LEAF == ZERO:
        if slot > ZERO:
            low = words[node + PIVOT + slot - ONE] + ONE
        top = slot_top(words, node, slot, used, top)
        node = words[node + SLOT + slot]
        used = slots_used(words, node)
        slot = slot_for(words, node, ZERO, used, index)
        count[NODES_VISITED] += 1
    return at_slot(words, node, slot, low, top)


@inline
def at_slot(words: Words, node: Word, slot: Word, low: Word, top: Word) -> MapleCursor:
    """What stands in ``slot`` of a leaf that covers [``low``, ``top``]."""
    first = low
    if slot > ZERO:
        first = words[node + PIVOT + slot - ONE] + ONE
    last = slot_top(words, node, slot, slots_used(words, node), top)
    return MapleCursor(first, last, words[node + SLOT + slot], node, slot, low, top)


@inline
def nowhere() -> MapleCursor:
    """No entry."""
    return MapleCursor(END, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO)


@kernel
def maple_seek(words: Words, count: Counts, tree: Word, index: Word, limit: Word) -> MapleCursor:
    """A cursor at the first entry that overlaps ``[index, limit]``; ``value`` 0 if there is none.

    O(log n): enters one node a level, since no leaf but the last ends in a gap.
    """
    if words[tree + T_ROOT] == ZERO:
        return nowhere()
    here = descend(words, count, tree, index)
    if here.value == ZERO and here.slot + ONE < slots_used(words, here.node):
        here = at_slot(words, here.node, here.slot + ONE, here.low, here.top)
    return here if here.value != ZERO and here.first <= limit else nowhere()


@kernel
def maple_next(words: Words, count: Counts, tree: Word, here: MapleCursor, limit: Word) -> MapleCursor:
    """The entry after the cursor's, if it starts at or before ``limit``.

    Mirrors ``mas_next``: enters no node while it stays in its leaf. Into the next leaf it descends from the
    root, where the kernel climbs by parent pointers: O(log n) a leaf.
    """
    if here.value == ZERO or here.last >= limit:
        return nowhere()
    slot = here.slot + ONE
    used = slots_used(words, here.node)
    while slot < used and words[here.node + SLOT + slot] == ZERO:
        slot += ONE
    if slot == used:
        if here.top == END:
            return nowhere()
        return maple_seek(words, count, tree, here.top + ONE, limit)
    after = at_slot(words, here.node, slot, here.low, here.top)
    return after if after.first <= limit else nowhere()


@kernel
def maple_seek_back(words: Words, count: Counts, tree: Word, index: Word, limit: Word) -> MapleCursor:
    """A cursor at the last entry that overlaps ``[limit, index]``; ``value`` 0 if there is none.

    O(log n); a gap at the start of a leaf costs a second descent (``mas_find_rev``).
    """
    if words[tree + T_ROOT] == ZERO:
        return nowhere()
    here = descend(words, count, tree, index)
    if here.value == ZERO:
        if here.slot > ZERO:
            here = at_slot(words, here.node, here.slot - ONE, here.low, here.top)
        elif here.low > ZERO:
            here = descend(words, count, tree, here.low - ONE)
    return here if here.value != ZERO and here.last >= limit else nowhere()


@kernel
def maple_prev(words: Words, count: Counts, tree: Word, here: MapleCursor, limit: Word) -> MapleCursor:
    """The entry before the cursor's, if it ends at or after ``limit``: ``maple_next`` the other way."""
    if here.value == ZERO or here.first <= limit:
        return nowhere()
    slot = here.slot
    while slot > ZERO:
        slot -= ONE
        if words[here.node + SLOT + slot] != ZERO:
            before = at_slot(words, here.node, slot, here.low, here.top)
            return before if before.last >= limit else nowhere()
    if here.low == ZERO:
        return nowhere()
    return maple_seek_back(words, count, tree, here.low - ONE, limit)


@kernel
def maple_find(words: Words, count: Counts, tree: Word, index: Word, limit: Word) -> MapleEntry:
    """First entry that overlaps ``[index, limit]``, whole; ``MapleEntry(END, 0, 0)`` if none. O(log n)."""
    here = maple_seek(words, count, tree, index, limit)
    return MapleEntry(here.first, here.last, here.value)


@kernel
def maple_load(words: Words, count: Counts, tree: Word, index: Word) -> Word:
    """Value at ``index``, 0 if nothing is there. O(log n), one node a level."""
    return maple_find(words, count, tree, index, index).value


@inline
def find_left_path(words: Words, count: Counts, tree: Word, key: Word) -> MapleEntry:
    """Record the path to ``key``; returns the entry or gap it leads to (the tree is not empty)."""
    node = words[tree + T_ROOT]
    height = words[tree + T_HEIGHT]
    first = ZERO
    top = END
    depth = ZERO
    while True:
        count[NODES_VISITED] += 1
        used = slots_used(words, node)
        slot = slot_for(words, node, ZERO, used, key)
        words[LEFT + PATH_NODE + depth] = node
        words[LEFT + PATH_SLOT + depth] = slot
        words[LEFT + PATH_TOP + depth] = top
        if slot > ZERO:
            first = words[node + PIVOT + slot - ONE] + ONE
        top = slot_top(words, node, slot, used, top)
        depth += ONE
        if depth == height:
            return MapleEntry(first, top, words[node + SLOT + slot])
        node = words[node + SLOT + slot]


@inline
def plan_edit(
    words: Words,
    found: MapleEntry,
    left: Word,
    low: Word,
    right: Word,
    high: Word,
    right_top: Word,
    first: Word,
    last: Word,
    value: Word,
) -> Edit:
    """What storing ``value`` does to slot ``low`` of leaf ``left`` up to slot ``high`` of ``right``.

    A gap grows over the gaps beside it, so that there are never two in a row.
    """
    keep_left = bool(found.first < first)
    right_value = words[right + SLOT + high]
    right_last = slot_top(words, right, high, slots_used(words, right), right_top)
    keep_right = bool(last < right_last)
    if value == ZERO:
        if found.value == ZERO:
            keep_left = False
        elif not keep_left and low > ZERO and words[left + SLOT + low - ONE] == ZERO:
            low -= ONE
        if right_value == ZERO:
            keep_right = False
            last = right_last
    left_last = first - ONE if keep_left else ZERO
    return Edit(
        low, high, keep_left, found.value, left_last, value, last, keep_right, right_value, right_last
    )


@inline
def set_leaf_slot(words: Words, leaf: Word, slot: Word, value: Word, last: Word) -> Word:
    """Write one slot of a leaf and its pivot, if the slot has one; returns the slot after it."""
    words[leaf + SLOT + slot] = value
    if slot < PIVOTS:
        words[leaf + PIVOT + slot] = last
    return slot + ONE


@inline
def edit_leaf(words: Words, leaf: Word, used: Word, grown: Word, edit: Edit) -> None:
    """Carry ``edit`` out inside ``leaf``, whose ``used`` slots become ``grown``."""
    source = edit.high + ONE
    kept = used - source
    target = grown - kept
    if target > source:
        slot = kept
        while slot > ZERO:
            slot -= ONE
            words[leaf + SLOT + target + slot] = words[leaf + SLOT + source + slot]
            if slot + ONE < kept:
                words[leaf + PIVOT + target + slot] = words[leaf + PIVOT + source + slot]
    elif target < source:
        slot = ZERO
        while slot < kept:
            words[leaf + SLOT + target + slot] = words[leaf + SLOT + source + slot]
            if slot + ONE < kept:
                words[leaf + PIVOT + target + slot] = words[leaf + PIVOT + source + slot]
            slot += ONE
    slot = edit.low
    if edit.keep_left:
        slot = set_leaf_slot(words, leaf, slot, edit.left_value, edit.left_last)
    slot = set_leaf_slot(words, leaf, slot, edit.value, edit.last)
    if edit.keep_right:
        slot = set_leaf_slot(words, leaf, slot, edit.right_value, edit.right_last)
    words[leaf] = grown | LEAF


@inline
def edit_entries(edit: Edit) -> Word:
    """Entries among the items an edit writes."""
    entries = ZERO
    if edit.keep_left and edit.left_value != ZERO:
        entries += ONE
    if edit.value != ZERO:
        entries += ONE
    if edit.keep_right and edit.right_value != ZERO:
        entries += ONE
    return entries


@inline
def edit_items(edit: Edit) -> Word:
    """Items an edit writes."""
    items = ONE
    if edit.keep_left:
        items += ONE
    if edit.keep_right:
        items += ONE
    return items


@inline
def edit_in_place(words: Words, count: Counts, tree: Word, leaf: Word, grown: Word, edit: Edit) -> None:
    """Carry ``edit`` out in ``leaf``, which can take it; a lone gap is no tree."""
    removed = filled(words, leaf, edit.low, edit.high + ONE)
    words[tree + T_ENTRIES] = words[tree + T_ENTRIES] + edit_entries(edit) - removed
    edit_leaf(words, leaf, slots_used(words, leaf), grown, edit)
    if grown == ONE and edit.value == ZERO:
        give_node(words, count, tree, leaf)
        words[tree + T_ROOT] = ZERO
        words[tree + T_HEIGHT] = ZERO


@kernel
def restructure(words: Words, count: Counts, tree: Word, left: Word, right: Word, edit: Edit) -> None:
    """Carry out an edit that no single leaf can take in place; both paths are recorded."""
    leaf_depth = words[tree + T_HEIGHT] - ONE
    right_used = slots_used(words, right)
    removed = free_between(words, count, tree)
    if left == right:
        removed += filled(words, left, edit.low, edit.high + ONE)
    else:
        removed += filled(words, left, edit.low, slots_used(words, left))
        removed += filled(words, right, ZERO, edit.high + ONE)
    items = gather(words, left, ZERO, edit.low, ZERO, ZERO)
    if edit.keep_left:
        items = set_item(words, items, edit.left_value, edit.left_last)
    items = set_item(words, items, edit.value, edit.last)
    if edit.keep_right:
        items = set_item(words, items, edit.right_value, edit.right_last)
    top = words[RIGHT + PATH_TOP + leaf_depth]
    items = gather(words, right, edit.high + ONE, right_used, top, items)
    words[tree + T_ENTRIES] = words[tree + T_ENTRIES] + edit_entries(edit) - removed
    rebuild(words, count, tree, items)


@kernel
def store_at(
    words: Words, count: Counts, tree: Word, found: MapleEntry, first: Word, last: Word, value: Word
) -> bool:
    """Store where the left path leads; ``found`` is what is there. False, and no change, without room."""
    height = words[tree + T_HEIGHT]
    leaf = words[LEFT + PATH_NODE + height - ONE]
    low = words[LEFT + PATH_SLOT + height - ONE]
    top = words[LEFT + PATH_TOP + height - ONE]
    # A gap is written together with what follows it: it may have to grow over the next gap, and may
    # not end a leaf.
    reach = last + ONE if value == ZERO and last != END else last
    used = slots_used(words, leaf)
    right = leaf
    high = low
    if reach <= top:
        high = slot_for(words, leaf, low, used, reach)
    else:
        find_right_path(words, count, tree, reach)
        right = words[RIGHT + PATH_NODE + height - ONE]
        high = words[RIGHT + PATH_SLOT + height - ONE]
        top = words[RIGHT + PATH_TOP + height - ONE]
    edit = plan_edit(words, found, leaf, low, right, high, top, first, last, value)
    if right == leaf:
        grown = used + edit_items(edit) - (edit.high + ONE - edit.low)
        if grown <= SLOTS and (height == ONE or grown >= least_slots(SLOTS)):
            edit_in_place(words, count, tree, leaf, grown, edit)
            return True
    if not pool_has(words, NODE_CLASS, height + ONE):
        return False
    if right == leaf:
        find_right_path(words, count, tree, reach)
    restructure(words, count, tree, leaf, right, edit)
    return True


@inline
def store_first(words: Words, count: Counts, tree: Word, first: Word, last: Word, value: Word) -> bool:
    """Store into an empty tree: a root leaf with the entry and the gaps around it."""
    if not pool_has(words, NODE_CLASS, ONE):
        return False
    leaf = take_node(words, count, tree)
    slot = ZERO
    if first > ZERO:
        slot = set_leaf_slot(words, leaf, slot, ZERO, first - ONE)
    slot = set_leaf_slot(words, leaf, slot, value, last)
    if last < END:
        slot = set_leaf_slot(words, leaf, slot, ZERO, END)
    words[leaf] = slot | LEAF
    words[tree + T_ROOT] = leaf
    words[tree + T_HEIGHT] = ONE
    words[tree + T_ENTRIES] = ONE
    return True


@kernel
def maple_store(words: Words, count: Counts, tree: Word, first: Word, last: Word, value: Word) -> bool:
    """Map ``[first, last]`` to ``value``; 0 erases the range. Entries it overlaps are trimmed or dropped.

    False, with the tree unchanged, when the pool has no room for the nodes it might take
    (``MAPLE_RESERVE_WORDS`` of room are always enough). ``first`` may not exceed ``last``.
    O(log n + nodes freed).
    """
    if words[tree + T_ROOT] == ZERO:
        if value == ZERO:
            return True
        return store_first(words, count, tree, first, last, value)
    found = find_left_path(words, count, tree, first)
    return store_at(words, count, tree, found, first, last, value)


@kernel
def maple_erase(words: Words, count: Counts, tree: Word, index: Word) -> MapleEntry:
    """Remove the entry that covers ``index``, all of it, and return it.

    ``MapleEntry(END, 0, 0)`` if nothing is there. Without room for the nodes it might take the tree is
    unchanged and the range comes back with value 0. O(log n), in one descent (``mas_erase``).
    """
    if words[tree + T_ROOT] == ZERO:
        return MapleEntry(END, ZERO, ZERO)
    found = find_left_path(words, count, tree, index)
    if found.value == ZERO:
        return MapleEntry(END, ZERO, ZERO)
    if not store_at(words, count, tree, found, found.first, found.last, ZERO):
        return MapleEntry(found.first, found.last, ZERO)
    return found


@kernel
def maple_destroy(words: Words, count: Counts, tree: Word) -> None:
    """Remove every entry and free every node; the tree stays, empty. O(nodes)."""
    if words[tree + T_ROOT] != ZERO:
        free_subtree(words, count, tree, words[tree + T_ROOT])
        words[tree + T_ROOT] = ZERO
    words[tree + T_HEIGHT] = ZERO
    words[tree + T_ENTRIES] = ZERO
