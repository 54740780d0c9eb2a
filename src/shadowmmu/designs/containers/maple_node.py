"""``maple_node``: what a maple node looks like, and the work area in which nodes are rebuilt.

A node is 256 bytes: a word about itself, 15 inclusive upper bounds (pivots), 16 slots. The bound of the
last slot in use is not stored: it is the bound of the node in its parent. Slots of a leaf hold values
(0 is a gap, and gaps take a slot), slots of an inner node hold node indices. Geometry and the least
occupancy are those of Linux' ``maple_range_64``, and of ``maple_arange_64`` for inner nodes with ten
slots (``include/linux/maple_tree.h``, ``mt_min_slots``: the *index* of the last slot in use may not be
less than 6, respectively 4, hence 7 and 5 slots). Where the kernel keeps a parent pointer we keep the
count of slots: writers remember their path instead of climbing, so moving a child needs no write to it.

The work area (the scratch words of the pool) holds two paths from the root, *left* to the entry at the
start of what is written and *right* to the entry at its end, and one list of items (value, upper bound)
that will become the nodes of one level.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Counts, Word, Words, inline, kernel
from shadowmmu.designs.containers.pool import SCRATCH, node_alloc, node_free
from shadowmmu.machine.counters import NODES_ALLOCATED, NODES_FREED, NODES_VISITED

ZERO: Final = U64(0)
ONE: Final = U64(1)
TWO: Final = U64(2)
END: Final = U64(0xFFFF_FFFF_FFFF_FFFF)

NODE_CLASS: Final = U64(5)
NODE_BYTES: Final = 256
SLOTS: Final = U64(16)
PIVOTS: Final = U64(15)
ARANGE_SLOTS: Final = U64(10)

# The word a node keeps about itself: slots in use, whether it is a leaf, and, while a subtree is being
# freed, the next node to free.
USED_MASK: Final = U64(0xFF)
LEAF: Final = U64(1 << 8)
NEXT_SHIFT: Final = U64(16)
SELF_MASK: Final = U64(0xFFFF)
PIVOT: Final = U64(1)
SLOT: Final = U64(16)

# Tree header: eight words.
T_ROOT: Final = U64(0)
T_HEIGHT: Final = U64(1)
T_ENTRIES: Final = U64(2)
T_FANOUT: Final = U64(3)
T_NODES: Final = U64(4)

MAX_HEIGHT: Final = 20
"""Levels a tree can reach: 5 ** 19 leaves are more than any memory holds."""

LEFT: Final = SCRATCH
RIGHT: Final = U64(int(SCRATCH) + 3 * MAX_HEIGHT)
PATH_NODE: Final = U64(0)
PATH_SLOT: Final = U64(MAX_HEIGHT)
PATH_TOP: Final = U64(2 * MAX_HEIGHT)
ITEM_VALUE: Final = U64(int(SCRATCH) + 6 * MAX_HEIGHT)
ITEMS: Final = 40
"""Items of the work area; 33 is the most a rebuilt level can have (15 kept, 3 new, 15 kept)."""
ITEM_TOP: Final = U64(int(ITEM_VALUE) + ITEMS)
CHILD: Final = U64(int(ITEM_TOP) + ITEMS)
"""Up to three nodes just built and their upper bounds, on their way into the parent."""


@inline
def slots_used(words: Words, node: Word) -> Word:
    """Slots of ``node`` in use."""
    used: Word = words[node] & USED_MASK
    return used


@inline
def slot_top(words: Words, node: Word, slot: Word, used: Word, top: Word) -> Word:
    """Inclusive upper bound of ``slot``, where ``top`` is that of the node."""
    bound = top
    if slot + ONE < used:
        bound = words[node + PIVOT + slot]
    return bound


@inline
def slot_for(words: Words, node: Word, start: Word, used: Word, key: Word) -> Word:
    """First slot from ``start`` on whose range ends at or after ``key``."""
    slot = start
    while slot + ONE < used and words[node + PIVOT + slot] < key:
        slot += ONE
    return slot


@inline
def least_slots(slots: Word) -> Word:
    """Fewest slots a node of ``slots`` slots may use, unless it is the root."""
    return U64(7) if slots == SLOTS else U64(5)


@inline
def take_node(words: Words, count: Counts, tree: Word) -> Word:
    """A node for ``tree``; the operation made sure beforehand that there is one."""
    count[NODES_ALLOCATED] += 1
    words[tree + T_NODES] += ONE
    return node_alloc(words, NODE_CLASS)


@inline
def give_node(words: Words, count: Counts, tree: Word, node: Word) -> None:
    """Free one node of ``tree``."""
    count[NODES_FREED] += 1
    words[tree + T_NODES] -= ONE
    node_free(words, NODE_CLASS, node)


@inline
def set_item(words: Words, at: Word, value: Word, top: Word) -> Word:
    """Put an item into the work area; returns the place after it."""
    words[ITEM_VALUE + at] = value
    words[ITEM_TOP + at] = top
    return at + ONE


@inline
def gather(words: Words, node: Word, start: Word, end: Word, top: Word, at: Word) -> Word:
    """Append slots ``start`` to ``end`` (exclusive) of ``node`` to the work area; returns its length."""
    used = slots_used(words, node)
    slot = start
    while slot < end:
        words[ITEM_VALUE + at] = words[node + SLOT + slot]
        words[ITEM_TOP + at] = slot_top(words, node, slot, used, top)
        at += ONE
        slot += ONE
    return at


@inline
def make_space(words: Words, items: Word, space: Word) -> None:
    """Shift all ``items`` of the work area up by ``space`` places."""
    at = items
    while at > ZERO:
        at -= ONE
        words[ITEM_VALUE + at + space] = words[ITEM_VALUE + at]
        words[ITEM_TOP + at + space] = words[ITEM_TOP + at]


@inline
def write_node(words: Words, node: Word, kind: Word, start: Word, used: Word) -> None:
    """Make ``node`` (``kind`` is ``LEAF`` or 0) from ``used`` items from ``start`` on."""
    words[node] = used | kind
    slot = ZERO
    while slot < used:
        words[node + SLOT + slot] = words[ITEM_VALUE + start + slot]
        slot += ONE
    slot = ZERO
    while slot + ONE < used:
        words[node + PIVOT + slot] = words[ITEM_TOP + start + slot]
        slot += ONE


@inline
def filled(words: Words, node: Word, start: Word, end: Word) -> Word:
    """How many of the slots ``start`` to ``end`` (exclusive) are not gaps."""
    entries = ZERO
    slot = start
    while slot < end:
        if words[node + SLOT + slot] != ZERO:
            entries += ONE
        slot += ONE
    return entries


@kernel
def free_subtree(words: Words, count: Counts, tree: Word, top: Word) -> Word:
    """Free ``top`` and all below it; returns how many entries went. O(nodes freed).

    Without recursion: nodes still to be freed are chained through the word each keeps about itself.
    """
    entries = ZERO
    visited = 0
    pending = top
    words[top] &= SELF_MASK
    while pending != ZERO:
        node = pending
        pending = words[node] >> NEXT_SHIFT
        used = slots_used(words, node)
        visited += 1
        if words[node] & LEAF != ZERO:
            entries += filled(words, node, ZERO, used)
        else:
            slot = ZERO
            while slot < used:
                child = words[node + SLOT + slot]
                words[child] = (words[child] & SELF_MASK) | (pending << NEXT_SHIFT)
                pending = child
                slot += ONE
        give_node(words, count, tree, node)
    count[NODES_VISITED] += I64(visited)
    return entries


@inline
def free_children(words: Words, count: Counts, tree: Word, node: Word, start: Word, end: Word) -> Word:
    """Free the subtrees in slots ``start`` to ``end`` (exclusive); returns how many entries went."""
    entries = ZERO
    slot = start
    while slot < end:
        entries += free_subtree(words, count, tree, words[node + SLOT + slot])
        slot += ONE
    return entries
