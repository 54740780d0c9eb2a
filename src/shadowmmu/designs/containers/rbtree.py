"""``rbtree``: a red-black tree of mappings, in the shape of Linux' ``lib/rbtree.c``, as kernels.

A node holds a key (where a mapping starts in the canonical space), a value (where it starts in the
nested space) and a size; 48 bytes, so 64 in a slab. The first word is the parent with the colour folded
in, then right and left child, as in ``struct rb_node``. Nodes never move: a node keeps its index while it
is in the tree, whatever is inserted or erased around it. The tree is the eight words at index ``tree``.

``NODES_VISITED`` counts the nodes an operation enters: those of a descent or a walk, and those it has to
look at for rebalancing (uncle; sibling, its children, and each parent climbed to).
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import U64, Counts, Word, Words, inline, kernel
from shadowmmu.designs.containers.pool import node_alloc, node_free
from shadowmmu.machine.counters import NODES_ALLOCATED, NODES_FREED, NODES_VISITED

__all__ = [
    "EXISTS",
    "INSERTED",
    "NODE_CLASS",
    "NODE_WORDS",
    "NO_MEMORY",
    "N_KEY",
    "N_SIZE",
    "N_VALUE",
    "RB_RESERVE_WORDS",
    "rb_bytes",
    "rb_create",
    "rb_destroy",
    "rb_entries",
    "rb_erase",
    "rb_find",
    "rb_first",
    "rb_init",
    "rb_insert",
    "rb_last",
    "rb_lower_bound",
    "rb_next",
]

ZERO: Final = U64(0)
ONE: Final = U64(1)

NODE_CLASS: Final = U64(3)
BYTES_SHIFT: Final = U64(6)

N_UP: Final = U64(0)
N_RIGHT: Final = U64(1)
N_LEFT: Final = U64(2)
N_KEY: Final = U64(3)
"""Offset of a node's key: ``words[node + N_KEY]``."""
N_VALUE: Final = U64(4)
"""Offset of a node's value."""
N_SIZE: Final = U64(5)
"""Offset of a node's size."""
N_LAST: Final = N_VALUE
"""Offset of an interval's last key (``interval_tree``; a plain tree has its value there)."""
N_END: Final = U64(6)
"""Offset of the greatest last key of a subtree (``interval_tree`` only)."""
NODE_WORDS: Final = 6
"""Words of a node; the rest of its slab object is the owner's, and nothing here touches it."""

BLACK: Final = U64(1)

T_ROOT: Final = U64(0)
T_ENTRIES: Final = U64(1)

INSERTED: Final = 0
"""``rb_insert``: the mapping is in the tree."""
EXISTS: Final = 1
"""``rb_insert``: the key was there already; nothing changed."""
NO_MEMORY: Final = 2
"""``rb_insert``: the pool has no room for a node; nothing changed."""

RB_RESERVE_WORDS: Final = 8
"""Room (``pool_room``) with which any single operation succeeds."""


@inline
def rb_init(words: Words, tree: Word) -> None:
    """Make the eight words at ``tree`` an empty tree. O(1)."""
    words[tree + T_ROOT] = ZERO
    words[tree + T_ENTRIES] = ZERO


@kernel
def rb_create(words: Words) -> Word:
    """An empty tree in eight words of the pool; 0 if there is no room. O(1)."""
    tree = node_alloc(words, NODE_CLASS)
    if tree != ZERO:
        rb_init(words, tree)
    return tree


@inline
def rb_entries(words: Words, tree: Word) -> Word:
    """Nodes in the tree. O(1)."""
    entries: Word = words[tree + T_ENTRIES]
    return entries


@inline
def rb_bytes(words: Words, tree: Word) -> Word:
    """Bytes of the tree's nodes (slab objects of 64); the header belongs to its owner. O(1)."""
    size: Word = words[tree + T_ENTRIES] << BYTES_SHIFT
    return size


@inline
def parent_of(words: Words, node: Word) -> Word:
    """Parent of ``node``, 0 for the root."""
    parent: Word = words[node + N_UP] >> ONE
    return parent


@inline
def is_red(words: Words, node: Word) -> bool:
    """Whether ``node`` is red; no node (0) is black."""
    return bool(node != ZERO and words[node + N_UP] & BLACK == ZERO)


@inline
def set_parent(words: Words, node: Word, parent: Word) -> None:
    """Change the parent of ``node``, not its colour."""
    words[node + N_UP] = (parent << ONE) | (words[node + N_UP] & BLACK)


@inline
def set_black(words: Words, node: Word) -> None:
    """Colour ``node`` black."""
    words[node + N_UP] |= BLACK


@inline
def set_red(words: Words, node: Word) -> None:
    """Colour ``node`` red."""
    words[node + N_UP] = (words[node + N_UP] >> ONE) << ONE


@inline
def copy_colour(words: Words, target: Word, source: Word) -> None:
    """Give ``target`` the colour of ``source``."""
    words[target + N_UP] = ((words[target + N_UP] >> ONE) << ONE) | (words[source + N_UP] & BLACK)


@inline
def replace_child(words: Words, tree: Word, parent: Word, old: Word, new: Word) -> None:
    """Let ``parent`` (0: the tree) point to ``new`` where it pointed to ``old``."""
    if parent == ZERO:
        words[tree + T_ROOT] = new
    elif words[parent + N_LEFT] == old:
        words[parent + N_LEFT] = new
    else:
        words[parent + N_RIGHT] = new


@inline
def refresh_end(words: Words, node: Word) -> None:
    """Set the greatest end below ``node`` from its own and its children's (``interval_tree``)."""
    greatest = words[node + N_LAST]
    left = words[node + N_LEFT]
    right = words[node + N_RIGHT]
    if left != ZERO and words[left + N_END] > greatest:
        greatest = words[left + N_END]
    if right != ZERO and words[right + N_END] > greatest:
        greatest = words[right + N_END]
    words[node + N_END] = greatest


@inline
def rotate(words: Words, tree: Word, node: Word, side: Word, other: Word, augmented: bool) -> None:
    """Move ``node`` down to ``side``; its child on the ``other`` side takes its place.

    The sides are ``N_LEFT`` and ``N_RIGHT``, so one routine serves both mirror images. ``augmented``: keep
    the greatest ends of the two right, as ``rb_augment_rotate`` does.
    """
    child = words[node + other]
    inner = words[child + side]
    parent = parent_of(words, node)
    words[node + other] = inner
    if inner != ZERO:
        set_parent(words, inner, node)
    words[child + side] = node
    set_parent(words, child, parent)
    replace_child(words, tree, parent, node, child)
    set_parent(words, node, child)
    if augmented:
        words[child + N_END] = words[node + N_END]
        refresh_end(words, node)


@kernel
def rb_find(words: Words, count: Counts, tree: Word, key: Word) -> Word:
    """Node whose key is exactly ``key``, 0 if there is none. O(log n)."""
    visited = 0
    node: Word = words[tree + T_ROOT]
    while node != ZERO:
        visited += 1
        here = words[node + N_KEY]
        if here == key:
            break
        node = words[node + N_LEFT] if key < here else words[node + N_RIGHT]
    count[NODES_VISITED] += visited
    return node


@kernel
def rb_lower_bound(words: Words, count: Counts, tree: Word, key: Word) -> Word:
    """Node with the least key that is not below ``key``, 0 if there is none. O(log n)."""
    visited = 0
    best = ZERO
    node = words[tree + T_ROOT]
    while node != ZERO:
        visited += 1
        if words[node + N_KEY] < key:
            node = words[node + N_RIGHT]
        else:
            best = node
            node = words[node + N_LEFT]
    count[NODES_VISITED] += visited
    return best


@inline
def end_of(words: Words, count: Counts, start: Word, side: Word) -> Word:
    """The last node on ``side`` of the subtree at ``start``, which counts as visited; 0 for none."""
    visited = 0
    node = start
    below = start
    while below != ZERO:
        visited += 1
        node = below
        below = words[node + side]
    count[NODES_VISITED] += visited
    return node


@kernel
def rb_first(words: Words, count: Counts, tree: Word) -> Word:
    """Node with the least key, 0 if the tree is empty. O(log n)."""
    return end_of(words, count, words[tree + T_ROOT], N_LEFT)


@kernel
def rb_last(words: Words, count: Counts, tree: Word) -> Word:
    """Node with the greatest key, 0 if the tree is empty. O(log n)."""
    return end_of(words, count, words[tree + T_ROOT], N_RIGHT)


@kernel
def rb_next(words: Words, count: Counts, node: Word) -> Word:
    """Node with the next greater key, 0 after the last. O(log n), O(1) over a whole walk."""
    below: Word = words[node + N_RIGHT]
    if below != ZERO:
        return end_of(words, count, below, N_LEFT)
    visited = 0
    child = node
    parent = parent_of(words, node)
    while parent != ZERO:
        visited += 1
        if words[parent + N_LEFT] == child:
            break
        child = parent
        parent = parent_of(words, child)
    count[NODES_VISITED] += visited
    return parent


@inline
def balance_after_insert(words: Words, count: Counts, tree: Word, new: Word, augmented: bool) -> None:
    """Restore the colours after ``new`` was linked in, red."""
    node = new
    parent = parent_of(words, node)
    while is_red(words, parent):
        grand = parent_of(words, parent)
        side = N_LEFT if words[grand + N_LEFT] == parent else N_RIGHT
        other = N_RIGHT if side == N_LEFT else N_LEFT
        uncle = words[grand + other]
        if uncle != ZERO:
            count[NODES_VISITED] += 1
        if is_red(words, uncle):
            set_black(words, parent)
            set_black(words, uncle)
            set_red(words, grand)
            node = grand
            parent = parent_of(words, node)
            continue
        if words[parent + other] == node:
            rotate(words, tree, parent, side, other, augmented)
            parent = node
        set_black(words, parent)
        set_red(words, grand)
        rotate(words, tree, grand, other, side, augmented)
        break
    set_black(words, words[tree + T_ROOT])


@kernel
def rb_insert(words: Words, count: Counts, tree: Word, key: Word, value: Word, size: Word) -> int:
    """Insert a mapping: ``INSERTED``, ``EXISTS`` (the first one with a key wins) or ``NO_MEMORY``.

    Nothing changes unless it is ``INSERTED``. O(log n).
    """
    visited = 0
    parent = ZERO
    side = N_LEFT
    node = words[tree + T_ROOT]
    while node != ZERO:
        visited += 1
        parent = node
        here = words[node + N_KEY]
        if here == key:
            count[NODES_VISITED] += visited
            return EXISTS
        side = N_LEFT if key < here else N_RIGHT
        node = words[node + side]
    count[NODES_VISITED] += visited
    new = node_alloc(words, NODE_CLASS)
    if new == ZERO:
        return NO_MEMORY
    count[NODES_ALLOCATED] += 1
    words[new + N_UP] = parent << ONE
    words[new + N_RIGHT] = ZERO
    words[new + N_LEFT] = ZERO
    words[new + N_KEY] = key
    words[new + N_VALUE] = value
    words[new + N_SIZE] = size
    words[tree + T_ENTRIES] += ONE
    if parent == ZERO:
        words[tree + T_ROOT] = new
    else:
        words[parent + side] = new
    balance_after_insert(words, count, tree, new, False)
    return INSERTED


@inline
def balance_after_erase(
    words: Words, count: Counts, tree: Word, child: Word, above: Word, augmented: bool
) -> None:
    """Restore the black height of ``child`` (may be 0) of ``above``, which lost a black node."""
    node = child
    parent = above
    while parent != ZERO and not is_red(words, node):
        # A node that lost a black one has a sibling, so 0 never stands on both sides.
        side = N_LEFT if words[parent + N_LEFT] == node else N_RIGHT
        other = N_RIGHT if side == N_LEFT else N_LEFT
        sibling = words[parent + other]
        count[NODES_VISITED] += 1
        if is_red(words, sibling):
            set_black(words, sibling)
            set_red(words, parent)
            rotate(words, tree, parent, side, other, augmented)
            sibling = words[parent + other]
            count[NODES_VISITED] += 1
        far = words[sibling + other]
        near = words[sibling + side]
        count[NODES_VISITED] += (1 if far != ZERO else 0) + (1 if near != ZERO else 0)
        if not is_red(words, far) and not is_red(words, near):
            set_red(words, sibling)
            node = parent
            parent = parent_of(words, node)
            if parent != ZERO:
                count[NODES_VISITED] += 1
            continue
        if not is_red(words, far):
            set_black(words, near)
            set_red(words, sibling)
            rotate(words, tree, sibling, other, side, augmented)
            far = sibling
            sibling = near
        copy_colour(words, sibling, parent)
        set_black(words, parent)
        set_black(words, far)
        rotate(words, tree, parent, side, other, augmented)
        return
    if node != ZERO:
        set_black(words, node)


@inline
def take_place(words: Words, tree: Word, node: Word, heir: Word) -> None:
    """Let ``heir`` stand where ``node`` stands: its parent, colour and children."""
    parent = parent_of(words, node)
    words[heir + N_UP] = words[node + N_UP]
    replace_child(words, tree, parent, node, heir)
    words[heir + N_LEFT] = words[node + N_LEFT]
    set_parent(words, words[heir + N_LEFT], heir)
    words[heir + N_RIGHT] = words[node + N_RIGHT]
    if words[heir + N_RIGHT] != ZERO:
        set_parent(words, words[heir + N_RIGHT], heir)


@inline
def unhook(words: Words, count: Counts, tree: Word, node: Word, augmented: bool) -> None:
    """Take ``node`` out of its tree and rebalance; it is not freed."""
    count[NODES_VISITED] += 1 if parent_of(words, node) == ZERO else 2
    left = words[node + N_LEFT]
    right = words[node + N_RIGHT]
    heir = ZERO
    gone = node
    if left != ZERO and right != ZERO:
        # The next node has no left child: it leaves its own place and takes the node's.
        heir = end_of(words, count, right, N_LEFT)
        gone = heir
        left = ZERO
        right = words[heir + N_RIGHT]
    child = left if left != ZERO else right
    parent = parent_of(words, gone)
    black = not is_red(words, gone)
    replace_child(words, tree, parent, gone, child)
    if child != ZERO:
        count[NODES_VISITED] += 1
        set_parent(words, child, parent)
    if heir != ZERO:
        take_place(words, tree, node, heir)
        if parent == node:
            parent = heir
    if augmented:
        above = parent
        while above != ZERO:
            count[NODES_VISITED] += 1
            refresh_end(words, above)
            above = parent_of(words, above)
    if black:
        balance_after_erase(words, count, tree, child, parent, augmented)


@kernel
def rb_erase(words: Words, count: Counts, tree: Word, node: Word) -> None:
    """Take ``node``, a node of this tree, out and free it. O(log n), O(1) amortised."""
    unhook(words, count, tree, node, False)
    words[tree + T_ENTRIES] -= ONE
    node_free(words, NODE_CLASS, node)
    count[NODES_FREED] += 1


@kernel
def rb_destroy(words: Words, count: Counts, tree: Word) -> None:
    """Free every node; the tree stays, empty. O(n)."""
    pending = words[tree + T_ROOT]
    visited = 0
    # Nodes still to be freed are chained through the word of the parent, which nobody needs any more.
    if pending != ZERO:
        words[pending + N_UP] = ZERO
    while pending != ZERO:
        node = pending
        visited += 1
        pending = words[node + N_UP]
        left = words[node + N_LEFT]
        right = words[node + N_RIGHT]
        if left != ZERO:
            words[left + N_UP] = pending
            pending = left
        if right != ZERO:
            words[right + N_UP] = pending
            pending = right
        node_free(words, NODE_CLASS, node)
    count[NODES_VISITED] += visited
    count[NODES_FREED] += visited
    words[tree + T_ROOT] = ZERO
    words[tree + T_ENTRIES] = ZERO
