"""``interval_tree``: intervals in a red-black tree that knows the greatest end of each subtree, as kernels.

What Linux has in ``include/linux/interval_tree_generic.h``: nodes in order of their first key, equal ones
allowed, each with the greatest last key at or below it, so that a search for what overlaps a range leaves out
subtrees that end before it. Nodes, colours and rotations are those of ``rbtree``, 64 bytes each; the second
word of a mapping is the last key (inclusive), the third is the owner's value. Nodes never move.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import U64, Counts, Word, Words, inline, kernel
from shadowmmu.designs.containers.pool import node_alloc, node_free
from shadowmmu.designs.containers.rbtree import (
    N_END,
    N_KEY,
    N_LAST,
    N_LEFT,
    N_RIGHT,
    N_SIZE,
    N_UP,
    NODE_CLASS,
    T_ENTRIES,
    T_ROOT,
    balance_after_insert,
    parent_of,
    unhook,
)
from shadowmmu.machine.counters import NODES_ALLOCATED, NODES_FREED, NODES_VISITED

__all__ = ["N_VALUE", "interval_first", "interval_insert", "interval_next", "interval_remove"]

ZERO: Final = U64(0)
ONE: Final = U64(1)

N_VALUE: Final = N_SIZE
"""Offset of an interval's value."""


@kernel
def interval_insert(words: Words, count: Counts, tree: Word, first: Word, last: Word, value: Word) -> Word:
    """Insert [``first``, ``last``], after those that start there already; its node, 0 if there is no room.

    ``last`` may not lie below ``first``. O(log n).
    """
    new = node_alloc(words, NODE_CLASS)
    if new == ZERO:
        return ZERO
    count[NODES_ALLOCATED] += 1
    visited = 0
    parent = ZERO
    side = N_LEFT
    node = words[tree + T_ROOT]
    while node != ZERO:
        visited += 1
        parent = node
        if words[node + N_END] < last:
            words[node + N_END] = last
        side = N_LEFT if first < words[node + N_KEY] else N_RIGHT
        node = words[node + side]
    count[NODES_VISITED] += visited
    words[new + N_UP] = parent << ONE
    words[new + N_RIGHT] = ZERO
    words[new + N_LEFT] = ZERO
    words[new + N_KEY] = first
    words[new + N_LAST] = last
    words[new + N_VALUE] = value
    words[new + N_END] = last
    words[tree + T_ENTRIES] += ONE
    if parent == ZERO:
        words[tree + T_ROOT] = new
    else:
        words[parent + side] = new
    balance_after_insert(words, count, tree, new, True)
    return new


@kernel
def interval_remove(words: Words, count: Counts, tree: Word, node: Word) -> None:
    """Take ``node``, a node of this tree, out and free it. O(log n)."""
    unhook(words, count, tree, node, True)
    words[tree + T_ENTRIES] -= ONE
    node_free(words, NODE_CLASS, node)
    count[NODES_FREED] += 1


@inline
def first_below(words: Words, count: Counts, top: Word, first: Word, last: Word) -> Word:
    """The first interval of the subtree at ``top`` that overlaps [``first``, ``last``], 0 if none does.

    Something in the subtree ends at ``first`` or later (``N_END``), and so in each that is entered.
    """
    node = top
    visited = 0
    found = ZERO
    while True:
        visited += 1
        left = words[node + N_LEFT]
        if left != ZERO and words[left + N_END] >= first:
            node = left  # something there ends late enough; if it starts too late, so does all to its right
            continue
        if words[node + N_KEY] > last:
            break
        if words[node + N_LAST] >= first:
            found = node
            break
        node = words[node + N_RIGHT]  # neither the node nor its left ends late enough: this does
    count[NODES_VISITED] += visited
    return found


@kernel
def interval_first(words: Words, count: Counts, tree: Word, first: Word, last: Word) -> Word:
    """The first node (by first key) that overlaps [``first``, ``last``], 0 if none does. O(log n)."""
    root = words[tree + T_ROOT]
    if root == ZERO or words[root + N_END] < first:
        return ZERO
    return first_below(words, count, root, first, last)


@kernel
def interval_next(words: Words, count: Counts, node: Word, first: Word, last: Word) -> Word:
    """The node after ``node`` that overlaps [``first``, ``last``], 0 after the last. O(log n)."""
    here = node
    visited = 0
    found = ZERO
    while True:
        right = words[here + N_RIGHT]
        if right != ZERO and words[right + N_END] >= first:
            found = first_below(words, count, right, first, last)
            break
        came = here
        here = parent_of(words, here)
        while here != ZERO and words[here + N_RIGHT] == came:
            visited += 1
            came = here
            here = parent_of(words, here)
        if here == ZERO:
            break
        visited += 1
        if words[here + N_KEY] > last:
            break
        if words[here + N_LAST] >= first:
            found = here
            break
    count[NODES_VISITED] += visited
    return found
