"""``maple_rebuild``: level by level up the tree, when an edit does not fit the leaf it falls into.

One procedure does splits, merges and stores that span leaves. Whatever lies strictly between the left
and the right path is freed. Then, from the leaves up, the items kept on the left, the new ones and those
kept on the right are collected in the work area; too few take a neighbouring node in, too many make two
or three nodes; the parents see the nodes built in place of all that went into them. It ends in the first
parent that can hold them, or with a new root.

From Linux' maple tree come the decisions (``mas_spanning_rebalance``, ``mas_split``, ``mas_push_data``;
thresholds checked against public excerpts, 7.3's own file was not read): nodes that an edit does not
fit are replaced rather than changed; an
overfull node gives to a sibling that has room before it splits, left before right, and fills it to all
slots but one; a leaf never ends in a gap unless it is the last, so a search for the next entry stays in
its leaf and no two gaps are neighbours.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import Counts, Word, Words, inline, kernel
from shadowmmu.designs.containers.maple_node import (
    CHILD,
    END,
    ITEM_TOP,
    ITEM_VALUE,
    LEAF,
    LEFT,
    ONE,
    PATH_NODE,
    PATH_SLOT,
    PATH_TOP,
    PIVOT,
    RIGHT,
    SLOT,
    SLOTS,
    T_FANOUT,
    T_HEIGHT,
    T_ROOT,
    TWO,
    ZERO,
    free_children,
    gather,
    give_node,
    least_slots,
    make_space,
    set_item,
    slot_for,
    slot_top,
    slots_used,
    take_node,
    write_node,
)
from shadowmmu.machine.counters import NODES_VISITED

NOBODY: Final = 0
ON_LEFT: Final = 1
ON_RIGHT: Final = 2
"""Where the node that is taken in stands."""


@kernel
def find_right_path(words: Words, count: Counts, tree: Word, key: Word) -> None:
    """Record the path to ``key``, at or after the end of the left path, without entering its nodes again."""
    leaf_depth = words[tree + T_HEIGHT] - ONE
    depth = leaf_depth
    while words[LEFT + PATH_TOP + depth] < key:
        depth -= ONE
    above = ZERO
    while above <= depth:
        words[RIGHT + PATH_NODE + above] = words[LEFT + PATH_NODE + above]
        words[RIGHT + PATH_SLOT + above] = words[LEFT + PATH_SLOT + above]
        words[RIGHT + PATH_TOP + above] = words[LEFT + PATH_TOP + above]
        above += ONE
    node = words[LEFT + PATH_NODE + depth]
    top = words[LEFT + PATH_TOP + depth]
    slot = slot_for(words, node, words[LEFT + PATH_SLOT + depth], slots_used(words, node), key)
    words[RIGHT + PATH_SLOT + depth] = slot
    while depth < leaf_depth:
        top = slot_top(words, node, slot, slots_used(words, node), top)
        node = words[node + SLOT + slot]
        count[NODES_VISITED] += 1
        depth += ONE
        slot = slot_for(words, node, ZERO, slots_used(words, node), key)
        words[RIGHT + PATH_NODE + depth] = node
        words[RIGHT + PATH_SLOT + depth] = slot
        words[RIGHT + PATH_TOP + depth] = top


@kernel
def free_between(words: Words, count: Counts, tree: Word) -> Word:
    """Free every subtree strictly between the two paths; returns how many entries went."""
    entries = ZERO
    depth = ZERO
    while depth + ONE < words[tree + T_HEIGHT]:
        left = words[LEFT + PATH_NODE + depth]
        right = words[RIGHT + PATH_NODE + depth]
        after = words[LEFT + PATH_SLOT + depth] + ONE
        before = words[RIGHT + PATH_SLOT + depth]
        if left == right:
            entries += free_children(words, count, tree, left, after, before)
        else:
            entries += free_children(words, count, tree, left, after, slots_used(words, left))
            entries += free_children(words, count, tree, right, ZERO, before)
        depth += ONE
    return entries


@inline
def left_turn(words: Words, level: Word) -> Word:
    """Depth below the deepest node over ``level`` that has something before the left path; 0 for none."""
    depth = level
    while depth > ZERO and words[LEFT + PATH_SLOT + depth - ONE] == ZERO:
        depth -= ONE
    return depth


@inline
def right_turn(words: Words, level: Word) -> Word:
    """Depth below the deepest node over ``level`` that has something after the right path; 0 for none."""
    depth = level
    while depth > ZERO and words[RIGHT + PATH_SLOT + depth - ONE] + ONE == slots_used(
        words, words[RIGHT + PATH_NODE + depth - ONE]
    ):
        depth -= ONE
    return depth


@kernel
def take_left(words: Words, count: Counts, tree: Word, level: Word, items: Word) -> Word:
    """Take in the node before the left path at ``level``; returns the length of the work area.

    There is one. The nodes of the left path that lose their only child on the way up are freed, unless
    the right path needs them.
    """
    depth = left_turn(words, level) - ONE
    slot = words[LEFT + PATH_SLOT + depth] - ONE
    words[LEFT + PATH_SLOT + depth] = slot
    node = words[LEFT + PATH_NODE + depth]
    top = words[node + PIVOT + slot]
    node = words[node + SLOT + slot]
    depth += ONE
    count[NODES_VISITED] += 1
    while depth < level:
        if words[LEFT + PATH_NODE + depth] != words[RIGHT + PATH_NODE + depth]:
            give_node(words, count, tree, words[LEFT + PATH_NODE + depth])
        slot = slots_used(words, node) - ONE
        words[LEFT + PATH_NODE + depth] = node
        words[LEFT + PATH_SLOT + depth] = slot
        words[LEFT + PATH_TOP + depth] = top
        node = words[node + SLOT + slot]
        depth += ONE
        count[NODES_VISITED] += 1
    used = slots_used(words, node)
    make_space(words, items, used)
    gather(words, node, ZERO, used, top, ZERO)
    give_node(words, count, tree, node)
    return items + used


@kernel
def take_right(words: Words, count: Counts, tree: Word, level: Word, items: Word) -> Word:
    """Take in the node after the right path at ``level``: the mirror image of ``take_left``."""
    depth = right_turn(words, level) - ONE
    slot = words[RIGHT + PATH_SLOT + depth] + ONE
    words[RIGHT + PATH_SLOT + depth] = slot
    node = words[RIGHT + PATH_NODE + depth]
    top = slot_top(words, node, slot, slots_used(words, node), words[RIGHT + PATH_TOP + depth])
    node = words[node + SLOT + slot]
    depth += ONE
    count[NODES_VISITED] += 1
    while depth < level:
        if words[LEFT + PATH_NODE + depth] != words[RIGHT + PATH_NODE + depth]:
            give_node(words, count, tree, words[RIGHT + PATH_NODE + depth])
        words[RIGHT + PATH_NODE + depth] = node
        words[RIGHT + PATH_SLOT + depth] = ZERO
        words[RIGHT + PATH_TOP + depth] = top
        top = slot_top(words, node, ZERO, slots_used(words, node), top)
        node = words[node + SLOT]
        depth += ONE
        count[NODES_VISITED] += 1
    used = slots_used(words, node)
    items = gather(words, node, ZERO, used, top, items)
    give_node(words, count, tree, node)
    return items


@kernel
def helper_side(words: Words, count: Counts, level: Word, items: Word, kind: Word, slots: Word) -> int:
    """Which sibling has room for what an overfull node has too much: ``ON_LEFT``, ``ON_RIGHT``, ``NOBODY``.

    Only children of the same parent are asked. Two nodes must hold it all, with slots to spare; the
    margins are the kernel's. A sibling asked in vain counts as visited.
    """
    if level == ZERO:
        return NOBODY
    most = slots + slots - ONE
    if kind == LEAF:
        most -= ONE
    if words[RIGHT + PATH_TOP + level] == END:
        most -= ONE
    parent = words[LEFT + PATH_NODE + level - ONE]
    slot = words[LEFT + PATH_SLOT + level - ONE]
    if slot > ZERO:
        if items + slots_used(words, words[parent + SLOT + slot - ONE]) <= most:
            return ON_LEFT
        count[NODES_VISITED] += 1
    if slot + ONE < slots_used(words, parent):
        if items + slots_used(words, words[parent + SLOT + slot + ONE]) <= most:
            return ON_RIGHT
        count[NODES_VISITED] += 1
    return NOBODY


@inline
def good_cut(words: Words, start: Word, size: Word, left_over: Word, slots: Word) -> Word:
    """``size``, or one more or less so that a leaf with ``left_over`` items to follow ends in no gap."""
    if words[ITEM_VALUE + start + size - ONE] != ZERO:
        return size
    if size < slots and left_over > least_slots(slots):
        return size + ONE
    return size - ONE


@inline
def build_nodes(
    words: Words, count: Counts, tree: Word, kind: Word, items: Word, first: Word, slots: Word
) -> Word:
    """Make one, two or three nodes of the work area; returns how many, and leaves them in ``CHILD``.

    The first of two gets ``first`` items, or half of them if that is 0.
    """
    nodes = ONE
    if items > slots:
        nodes = TWO
        # A leaf needs one slot of play to keep a gap from its end.
        if items > slots + slots - (ONE if kind == LEAF else ZERO):
            nodes = TWO + ONE
    built = ZERO
    start = ZERO
    while built < nodes:
        remaining = items - start
        parts = nodes - built
        size = remaining
        if parts > ONE:
            size = (remaining + parts - ONE) // parts
            if first != ZERO:
                size = first
            if kind == LEAF:
                size = good_cut(words, start, size, remaining - size, slots)
        node = take_node(words, count, tree)
        write_node(words, node, kind, start, size)
        start += size
        words[CHILD + built + built] = node
        words[CHILD + built + built + ONE] = words[ITEM_TOP + start - ONE]
        built += ONE
    return nodes


@inline
def collect_parent(words: Words, depth: Word, children: Word) -> Word:
    """Fill the work area with the children just built and what their parents, over ``depth``, keep.

    At depth 0 there is no parent: the children alone are what a new root will hold.
    """
    items = ZERO
    if depth > ZERO:
        left = words[LEFT + PATH_NODE + depth - ONE]
        items = gather(words, left, ZERO, words[LEFT + PATH_SLOT + depth - ONE], ZERO, ZERO)
    child = ZERO
    while child < children:
        items = set_item(words, items, words[CHILD + child + child], words[CHILD + child + child + ONE])
        child += ONE
    if depth > ZERO:
        right = words[RIGHT + PATH_NODE + depth - ONE]
        start = words[RIGHT + PATH_SLOT + depth - ONE] + ONE
        top = words[RIGHT + PATH_TOP + depth - ONE]
        items = gather(words, right, start, slots_used(words, right), top, items)
    return items


@inline
def free_paths(words: Words, count: Counts, tree: Word, levels: Word) -> None:
    """Free the nodes of both paths at depths below ``levels``."""
    depth = ZERO
    while depth < levels:
        left = words[LEFT + PATH_NODE + depth]
        right = words[RIGHT + PATH_NODE + depth]
        give_node(words, count, tree, left)
        if right != left:
            give_node(words, count, tree, right)
        depth += ONE


@inline
def plant_root(words: Words, count: Counts, tree: Word, kind: Word, items: Word, below: Word) -> None:
    """Make the work area the root, over ``below`` levels: the only node there is at its level."""
    if items == ONE and kind != LEAF:
        words[tree + T_ROOT] = words[ITEM_VALUE]
        words[tree + T_HEIGHT] = below
    elif items == ONE and words[ITEM_VALUE] == ZERO:
        words[tree + T_ROOT] = ZERO
        words[tree + T_HEIGHT] = ZERO
    else:
        root = take_node(words, count, tree)
        write_node(words, root, kind, ZERO, items)
        words[tree + T_ROOT] = root
        words[tree + T_HEIGHT] = below + ONE


@kernel
def rebuild(words: Words, count: Counts, tree: Word, items: Word) -> None:
    """Put the ``items`` leaf items of the work area in place of the leaves of both paths.

    The caller made sure of one node a level and one more. O(height), besides nodes freed.
    """
    height = words[tree + T_HEIGHT]
    depth = height
    below = height
    kind = LEAF
    while depth > ZERO:
        depth -= ONE
        slots = SLOTS if kind == LEAF else words[tree + T_FANOUT]
        left = words[LEFT + PATH_NODE + depth]
        right = words[RIGHT + PATH_NODE + depth]
        least = least_slots(slots)
        if depth == ZERO and kind != LEAF:
            least = TWO
        if left == right and least <= items <= slots:
            write_node(words, left, kind, ZERO, items)
            return
        side = NOBODY
        if items < least:
            if right_turn(words, depth) > ZERO:
                side = ON_RIGHT
            elif left_turn(words, depth) > ZERO:
                side = ON_LEFT
            else:
                free_paths(words, count, tree, depth + ONE)
                below = height - depth - ONE
                break
        elif left == right:
            side = helper_side(words, count, depth, items, kind, slots)
        crowded = items > slots
        if side == ON_LEFT:
            items = take_left(words, count, tree, depth, items)
        elif side == ON_RIGHT:
            items = take_right(words, count, tree, depth, items)
        first = ZERO
        if crowded and side == ON_LEFT:
            first = slots - ONE
        elif crowded and side == ON_RIGHT:
            first = items - (slots - ONE)
        give_node(words, count, tree, left)
        if right != left:
            give_node(words, count, tree, right)
        children = build_nodes(words, count, tree, kind, items, first, slots)
        items = collect_parent(words, depth, children)
        kind = ZERO
    plant_root(words, count, tree, kind, items, below)
