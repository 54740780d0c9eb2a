"""``checks``: every invariant of the containers, asserted in plain Python.

They read the raw words, so a design under test, the fuzzer or a person with a dump can call them on any
array. Slow on purpose: nothing is shared with the kernels but the layout.
"""

from __future__ import annotations

import math

from shadowmmu.compiled import Word, Words
from shadowmmu.designs.containers import maple_node as m
from shadowmmu.designs.containers import rbtree as rb
from shadowmmu.designs.containers.pool import POOL_HEADER_WORDS, pool_check, pool_free_nodes

__all__ = ["interval_check", "maple_check", "maple_nodes", "maple_ranges", "rb_check", "rb_nodes"]

KEYS = 1 << 64


def maple_nodes(words: Words, tree: Word | int) -> list[tuple[int, int, int, int]]:
    """Nodes of a maple tree in key order, a parent before its children: (node, depth, first, last).

    Raises ``AssertionError`` naming the node for a pointer that leaves the pool or meets a node again.
    O(n).
    """
    root = int(words[int(tree) + int(m.T_ROOT)])
    found: list[tuple[int, int, int, int]] = []
    seen: set[int] = set()
    stack = [(root, 0, 0, KEYS - 1)] if root else []
    while stack:
        node, depth, first, last = stack.pop()
        assert POOL_HEADER_WORDS <= node <= len(words) - 32, f"node {node} lies outside the pool"
        assert node not in seen, f"node {node} is reached twice"
        seen.add(node)
        found.append((node, depth, first, last))
        if int(words[node]) & int(m.LEAF):
            continue
        assert depth < m.MAX_HEIGHT, f"node {node}: deeper than {m.MAX_HEIGHT} levels"
        children = [(slot, depth + 1, a, b) for a, b, slot in _slots(words, node, first, last)]
        stack.extend(reversed(children))
    return found


def _slots(words: Words, node: int, first: int, last: int) -> list[tuple[int, int, int]]:
    """(first, last, content) of each slot in use, with the pivots checked."""
    used = int(words[node]) & int(m.USED_MASK)
    slots: list[tuple[int, int, int]] = []
    for slot in range(used):
        top = last if slot == used - 1 else int(words[node + int(m.PIVOT) + slot])
        assert first <= top <= last, f"node {node}: slot {slot} covers [{first:#x}, {top:#x}]"
        slots.append((first, top, int(words[node + int(m.SLOT) + slot])))
        first = top + 1
    return slots


def maple_ranges(words: Words, tree: Word | int) -> list[tuple[int, int, int]]:
    """The entries of a maple tree in order: (first, last, value). Raises ``AssertionError``. O(n)."""
    return [
        (start, end, value)
        for node, _depth, first, last in maple_nodes(words, tree)
        if int(words[node]) & int(m.LEAF)
        for start, end, value in _slots(words, node, first, last)
        if value
    ]


def maple_check(words: Words, tree: Word | int) -> None:
    """Assert every invariant of a maple tree and of the pool it lives in. O(n).

    Bounds sorted and inside the parent's, all leaves at the height of the tree, occupancy, no two gaps
    in a row, no leaf but the last that ends in a gap, entries and nodes counted, no node both free and
    in use. Raises ``AssertionError`` with a message that names the node.
    """
    pool_check(words)
    base = int(tree)
    height = int(words[base + int(m.T_HEIGHT)])
    fanout = int(words[base + int(m.T_FANOUT)])
    assert fanout in (int(m.SLOTS), int(m.ARANGE_SLOTS)), f"tree {base}: fan-out {fanout}"
    nodes = maple_nodes(words, base)
    assert bool(nodes) == (height > 0), f"tree {base}: height {height} with {len(nodes)} nodes"
    entries = 0
    gap = False
    for node, depth, first, last in nodes:
        leaf = bool(int(words[node]) & int(m.LEAF))
        assert leaf == (depth == height - 1), f"node {node}: leaf {leaf} at depth {depth} of {height}"
        assert int(words[node]) >> int(m.NEXT_SHIFT) == 0, f"node {node}: still chained for freeing"
        slots = _slots(words, node, first, last)
        capacity = int(m.SLOTS) if leaf else fanout
        least = 7 if capacity == int(m.SLOTS) else 5
        if depth == 0:
            least = 1 if leaf else 2
        assert least <= len(slots) <= capacity, f"node {node}: {len(slots)} slots, not {least} to {capacity}"
        if not leaf:
            continue
        for start, end, value in slots:
            assert not (gap and value == 0), f"node {node}: second gap in a row at [{start:#x}, {end:#x}]"
            gap = value == 0
            entries += not gap
        assert not gap or last == KEYS - 1, f"node {node}: ends in a gap and is not the last leaf"
    assert not (height == 1 and entries == 0), f"tree {base}: a root without entries"
    assert entries == int(words[base + int(m.T_ENTRIES)]), f"tree {base}: {entries} entries, miscounted"
    assert len(nodes) == int(words[base + int(m.T_NODES)]), f"tree {base}: {len(nodes)} nodes, miscounted"
    idle = pool_free_nodes(words)[int(m.NODE_CLASS)]
    for node, *_ in nodes:
        assert node not in idle, f"node {node} is in the tree and on the free list"


def rb_nodes(words: Words, tree: Word | int) -> list[int]:
    """Nodes of a red-black tree in key order.

    Raises ``AssertionError`` naming the node for a pointer that leaves the pool or meets a node again.
    O(n).
    """
    order: list[int] = []
    seen: set[int] = set()
    stack: list[int] = []
    node = int(words[int(tree) + int(rb.T_ROOT)])
    while stack or node:
        while node:
            assert POOL_HEADER_WORDS <= node <= len(words) - 8, f"node {node} lies outside the pool"
            assert node not in seen, f"node {node} is reached twice"
            seen.add(node)
            stack.append(node)
            node = int(words[node + int(rb.N_LEFT)])
        node = stack.pop()
        order.append(node)
        node = int(words[node + int(rb.N_RIGHT)])
    return order


def rb_check(words: Words, tree: Word | int, *, unique: bool = True) -> None:
    """Assert every invariant of a red-black tree and of the pool it lives in. O(n).

    Keys ascending (strictly, if they are ``unique``), parents right, root black, no red node with a red
    child, one black height, height at most 2 log2(n + 1), nodes counted, none of them free. Raises
    ``AssertionError`` with a message that names the node.
    """
    pool_check(words)
    base = int(tree)
    order = rb_nodes(words, base)
    keys = [int(words[node + int(rb.N_KEY)]) for node in order]
    for position in range(1, len(order)):
        least = keys[position - 1] + unique
        assert least <= keys[position], f"node {order[position]}: key out of order"
    counted = int(words[base + int(rb.T_ENTRIES)])
    assert len(order) == counted, f"tree {base}: {len(order)} nodes, {counted} counted"
    idle = pool_free_nodes(words)[int(rb.NODE_CLASS)]
    for node in order:
        assert node not in idle, f"node {node} is in the tree and on the free list"
    heights: set[int] = set()
    root = int(words[base + int(rb.T_ROOT)])
    stack = [(root, 0, 0, 1, False)]
    limit = 2 * math.log2(len(order) + 1)
    while stack:
        node, parent, black, depth, red_above = stack.pop()
        if not node:
            heights.add(black)
            assert len(heights) == 1, f"below node {parent}: black height {black}, elsewhere {heights}"
            continue
        up = int(words[node])
        red = not up & int(rb.BLACK)
        assert up >> 1 == parent, f"node {node}: parent {up >> 1}, reached from {parent}"
        assert not (red and (red_above or not parent)), f"node {node}: red below red, or a red root"
        assert depth <= limit, f"node {node}: depth {depth} in a tree of {len(order)}"
        children = (int(words[node + int(side)]) for side in (rb.N_LEFT, rb.N_RIGHT))
        stack.extend((child, node, black + (not red), depth + 1, red) for child in children)


def interval_check(words: Words, tree: Word | int) -> None:
    """Assert every invariant of an interval tree: those of a red-black one, ends, and greatest ends. O(n)."""
    rb_check(words, tree, unique=False)
    for node in rb_nodes(words, tree):
        last = int(words[node + int(rb.N_LAST)])
        assert int(words[node + int(rb.N_KEY)]) <= last, f"node {node} ends before it starts"
        children = (int(words[node + int(side)]) for side in (rb.N_LEFT, rb.N_RIGHT))
        greatest = max([last, *(int(words[child + int(rb.N_END)]) for child in children if child)])
        told = int(words[node + int(rb.N_END)])
        assert told == greatest, f"node {node}: greatest end {told:#x}, not {greatest:#x}"
