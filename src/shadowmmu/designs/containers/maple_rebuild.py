"""``maple_rebuild``: level by level up the tree, when an edit does not fit the leaf it falls into.

One procedure does splits, merges and stores that span leaves. Whatever lies strictly between the left
and the right path is freed. Then, from the leaves up, the items kept on the left, the new ones and those
kept on the right are collected in the work area; too few take a neighbouring node in, too many make two
or three nodes; the parents see the nodes built in place of all that went into them. It ends in the first
parent that can hold them, or with a new root.

From Linux' maple tree come the decisions (``mas_spanning_rebalance``, ``mas_split``, ``mas_push_data``,
read in versions up to 6.12): nodes that an edit does not fit are replaced rather than changed; an
overfull node gives to a sibling that has room before it splits, left before right, and fills it to all
slots but one; a leaf never ends in a gap unless it is the last, so a search for the next entry stays in
its leaf and no two gaps are neighbours.
"""

from __future__ import annotations

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
def take_left(words: Words, count: Counts, tree: Word, level: Word, items: Word) -> Word:
    """Take in the node before the left path at ``level``; returns the length of the work area.

    The nodes of the left path that lose their only child on the way up are freed, unless the right path
    needs them. Unchanged if there is no such node.
    """
    depth = level
    while depth > ZERO and words[LEFT + PATH_SLOT + depth - ONE] == ZERO:
        depth -= ONE
    if depth == ZERO:
        return items
    depth -= ONE
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


@inline
def take_right(words: Words, count: Counts, tree: Word, level: Word, items: Word) -> Word:
    """Take in the node after the right path at ``level``: the mirror image of ``take_left``."""
    depth = level
    while depth > ZERO and words[RIGHT + PATH_SLOT + depth - ONE] + ONE == slots_used(
        words, words[RIGHT + PATH_NODE + depth - ONE]
    ):
        depth -= ONE
    if depth == ZERO:
        return items
    depth -= ONE
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


@inline
def room_in_left(words: Words, count: Counts, level: Word, items: Word, most: Word) -> bool:
    """Whether the left sibling, in the same parent, can take so much that two nodes do."""
    if level == ZERO or words[LEFT + PATH_SLOT + level - ONE] == ZERO:
        return False
    parent = words[LEFT + PATH_NODE + level - ONE]
    sibling = words[parent + SLOT + words[LEFT + PATH_SLOT + level - ONE] - ONE]
    if items + slots_used(words, sibling) <= most:
        return True  # ``take_left`` counts the visit
    count[NODES_VISITED] += 1
    return False


@inline
def room_in_right(words: Words, count: Counts, level: Word, items: Word, most: Word) -> bool:
    """Whether the right sibling, in the same parent, can take so much that two nodes do."""
    if level == ZERO:
        return False
    parent = words[RIGHT + PATH_NODE + level - ONE]
    slot = words[RIGHT + PATH_SLOT + level - ONE] + ONE
    if slot >= slots_used(words, parent):
        return False
    if items + slots_used(words, words[parent + SLOT + slot]) <= most:
        return True
    count[NODES_VISITED] += 1
    return False


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
    """Fill the work area with what the parents at ``depth`` keep and the children just built."""
    left = words[LEFT + PATH_NODE + depth]
    right = words[RIGHT + PATH_NODE + depth]
    items = gather(words, left, ZERO, words[LEFT + PATH_SLOT + depth], ZERO, ZERO)
    child = ZERO
    while child < children:
        items = set_item(words, items, words[CHILD + child + child], words[CHILD + child + child + ONE])
        child += ONE
    start = words[RIGHT + PATH_SLOT + depth] + ONE
    return gather(words, right, start, slots_used(words, right), words[RIGHT + PATH_TOP + depth], items)


@inline
def collect_new_root(words: Words, children: Word) -> Word:
    """Fill the work area with the children just built and nothing else."""
    child = ZERO
    while child < children:
        set_item(words, child, words[CHILD + child + child], words[CHILD + child + child + ONE])
        child += ONE
    return children


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
        first = ZERO
        if items < least:
            before = items
            items = take_right(words, count, tree, depth, items)
            if items == before:
                items = take_left(words, count, tree, depth, items)
            if items == before:
                free_paths(words, count, tree, depth + ONE)
                plant_root(words, count, tree, kind, items, height - depth - ONE)
                return
        elif left == right and items > slots:
            most = slots + slots - ONE
            if kind == LEAF:
                most -= ONE
            if words[RIGHT + PATH_TOP + depth] == END:
                most -= ONE
            if room_in_left(words, count, depth, items, most):
                items = take_left(words, count, tree, depth, items)
                first = slots - ONE
            elif room_in_right(words, count, depth, items, most):
                items = take_right(words, count, tree, depth, items)
                first = items - (slots - ONE)
        give_node(words, count, tree, left)
        if right != left:
            give_node(words, count, tree, right)
        children = build_nodes(words, count, tree, kind, items, first, slots)
        kind = ZERO
        if depth > ZERO:
            items = collect_parent(words, depth - ONE, children)
        else:
            items = collect_new_root(words, children)
    plant_root(words, count, tree, kind, items, height)
