"""Leaves of ``reverse_table``: small while few pages of a block are mapped, a word a page when they are many.

A *full* leaf has a word for each page of the page table that stands there. A *small* one is a bag of items,
each an index and an entry in one word, in no order; an alias is one item more, so it needs no chain. An
*entry* is any number below 2^49 but 0; what it says is the design's affair (``reverse_entries``). A leaf
starts with 8 words (two are its header), is promoted to twice as many when it is full, and at 64 words to a
full one; it stays what it is until it is empty. The word that names a leaf says its size too, so nothing has
to be read to know it.

``NODES_VISITED`` counts eight words (a cache line) of a small leaf as one node, of a full one each word.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.regime import Regime, level_shift
from shadowmmu.compiled import I64, U64, Word, apart, inline, kernel
from shadowmmu.designs.reverse_nodes import (
    CHAIN,
    NODE_HEADER,
    PARENT,
    RT_ENTRIES,
    RT_FREE_LEAF,
    RT_FREE_SMALL,
    RT_ROOT,
    RT_TOP_ENTRIES,
    RT_TOP_SHIFT,
    USED,
    child_slot,
    drop_empty_nodes,
    entry_index,
    find_node,
    give_node,
    link_entry,
    make_node,
    node_words,
    take_node,
    unlink_entry,
)
from shadowmmu.machine.counters import NODES_VISITED
from shadowmmu.machine.state import R_PAGE_SHIFT, R_STRIDE, State

LEAF_LEVEL: Final = 3

# A child word over leaves: index of the node, and from bit 56 the logarithm of its words; 0: a full one.
SIZE_SHIFT: Final = U64(56)
NODE_INDEX: Final = U64((1 << 56) - 1)
SMALLEST: Final = U64(3)
LARGEST: Final = U64(6)
"""64 words: a full leaf of 512 entries is 4.1 KiB, 65 bytes for each of the 63 items that call for it."""

# An item: the index of the page in its leaf, from bit 49, and the entry. 0 is a free place.
INDEX_SHIFT: Final = U64(49)
ENTRY: Final = U64((1 << 49) - 1)

LINE_WORDS: Final = U64(8)
ZERO: Final = U64(0)
ONE: Final = U64(1)


@inline
def is_small(child: Word) -> bool:
    """Whether a child word names a small leaf."""
    return bool(child >> SIZE_SHIFT != ZERO)


@inline
def leaf_node(child: Word) -> Word:
    """The node a child word names."""
    return child & NODE_INDEX


@inline
def small_end(child: Word) -> Word:
    """The word after the last item of a small leaf."""
    return (child & NODE_INDEX) + (ONE << (child >> SIZE_SHIFT))


@inline
def count_small(s: State, child: Word) -> None:
    """Count the cache lines of a small leaf that is looked through."""
    s.count[NODES_VISITED] += I64((ONE << (child >> SIZE_SHIFT)) // LINE_WORDS)


@inline
def small_list(size: Word) -> int:
    """Free list of the small leaves of ``1 << size`` words."""
    return RT_FREE_SMALL + I64(size - SMALLEST)


@inline
def free_leaf(s: State, r: Regime, child: Word) -> None:
    """Give a leaf of either kind back."""
    size = child >> SIZE_SHIFT
    if size != ZERO:
        give_node(s, leaf_node(child), ONE << size, small_list(size))
    else:
        give_node(s, child, node_words(r, LEAF_LEVEL), RT_FREE_LEAF)


@apart
def new_small_leaf(s: State, parent: Word, place: Word, size: Word) -> Word:
    """Hang an empty small leaf of ``1 << size`` words under ``place``; its child word."""
    node = take_node(s, ONE << size, small_list(size))
    s.rmap[node + PARENT] = parent
    child = node | (size << SIZE_SHIFT)
    s.rmap[place] = child
    return child


@inline
def put_item(s: State, child: Word, item: Word) -> None:
    """Put an item into a small leaf that has room: behind the last one, or where one went before."""
    node = leaf_node(child)
    used = s.rmap[node + USED]
    at = node + NODE_HEADER + used
    end = small_end(child)
    while s.rmap[at] != ZERO:
        at += ONE
        if at == end:
            at = node + NODE_HEADER
    s.rmap[at] = item
    s.rmap[node + USED] = used + ONE


@apart
def promote_leaf(s: State, r: Regime, place: Word, child: Word) -> Word:
    """Move a small leaf that has no room into one twice as large, or a full one; its child word."""
    node = leaf_node(child)
    parent = s.rmap[node + PARENT]
    size = child >> SIZE_SHIFT
    at = node + NODE_HEADER
    end = small_end(child)
    if size < LARGEST:
        larger = new_small_leaf(s, parent, place, size + ONE)
        while at < end:
            put_item(s, larger, s.rmap[at])
            at += ONE
    else:
        larger = take_node(s, node_words(r, LEAF_LEVEL), RT_FREE_LEAF)
        s.rmap[larger + PARENT] = parent
        s.rmap[place] = larger
        while at < end:
            item = s.rmap[at]
            link_entry(s, larger, child_slot(larger, item >> INDEX_SHIFT), item & ENTRY)
            s.rmap[RT_ENTRIES] -= ONE  # it moves, it does not join
            at += ONE
    free_leaf(s, r, child)
    return larger


@inline
def leaf_place(s: State, r: Regime, canonical_ipa: Word) -> Word:
    """Where the child word of the leaf over ``canonical_ipa`` stands, or 0. O(levels)."""
    parent = find_node(s, r, canonical_ipa, LEAF_LEVEL - 1)
    if parent == ZERO:
        return ZERO
    s.count[NODES_VISITED] += 1
    return child_slot(parent, entry_index(r, LEAF_LEVEL - 1, canonical_ipa))


class Leaf(NamedTuple):
    """A leaf, and which of its pages was asked for."""

    child: Word
    """0: there is none."""
    page: Word
    """Its index in the leaf."""


@inline
def find_leaf(s: State, canonical_ipa: Word, blocks: Word) -> Leaf:
    """The leaf over a page. O(levels). Unless ``blocks`` is 0, there is none under a recorded block."""
    page = canonical_ipa >> s.regs[R_PAGE_SHIFT]
    stride = s.regs[R_STRIDE]
    shift = s.rmap[RT_TOP_SHIFT]
    child = s.rmap[RT_ROOT]
    index = page >> shift
    heads = s.rmap[RT_TOP_ENTRIES]
    while shift != ZERO:
        place = child_slot(child, index)
        child = s.rmap[place]
        if child == ZERO or (blocks != ZERO and s.rmap[place + heads] != ZERO):
            return Leaf(ZERO, ZERO)
        heads = ONE << stride
        shift -= stride
        index = (page >> shift) & (heads - ONE)
    return Leaf(child, index)


@inline
def leaf_link(s: State, r: Regime, canonical_ipa: Word, entry: Word) -> None:
    """Name ``entry`` under a page, making and promoting leaves as needed. O(levels), amortised."""
    leaf = find_leaf(s, canonical_ipa, ZERO)
    if leaf.child == ZERO:
        make_room(s, r, canonical_ipa, entry)
        return
    if not is_small(leaf.child):
        link_entry(s, leaf.child, child_slot(leaf.child, leaf.page), entry)
    elif s.rmap[leaf_node(leaf.child) + USED] < small_room(leaf.child):
        put_item(s, leaf.child, (leaf.page << INDEX_SHIFT) | entry)
        s.rmap[RT_ENTRIES] += ONE
    else:
        make_room(s, r, canonical_ipa, entry)
        return
    s.count[NODES_VISITED] += LEAF_LEVEL - r.start_level


@inline
def small_room(child: Word) -> Word:
    """How many items fit into a small leaf."""
    return (ONE << (child >> SIZE_SHIFT)) - NODE_HEADER


@apart
def make_room(s: State, r: Regime, canonical_ipa: Word, entry: Word) -> None:
    """``leaf_link`` where a node is missing or has to grow."""
    parent = make_node(s, r, canonical_ipa, LEAF_LEVEL - 1)
    s.count[NODES_VISITED] += 1
    place = child_slot(parent, entry_index(r, LEAF_LEVEL - 1, canonical_ipa))
    child = s.rmap[place]
    if child == ZERO:
        child = new_small_leaf(s, parent, place, SMALLEST)
        s.rmap[parent + USED] += ONE
    else:
        child = promote_leaf(s, r, place, child)
    index = entry_index(r, LEAF_LEVEL, canonical_ipa)
    if is_small(child):
        put_item(s, child, (index << INDEX_SHIFT) | entry)
        s.rmap[RT_ENTRIES] += ONE
    else:
        link_entry(s, child, child_slot(child, index), entry)


@inline
def find_item(s: State, child: Word, item: Word) -> Word:
    """Where ``item`` stands in a small leaf, or 0. O(items)."""
    count_small(s, child)
    at = leaf_node(child) + NODE_HEADER
    end = small_end(child)
    while at < end and s.rmap[at] != item:
        at += ONE
    return at if at < end else ZERO


@inline
def drop_leaf(s: State, r: Regime, place: Word, canonical_ipa: Word) -> None:
    """Free the leaf at ``place`` if nothing is left in it, and what that leaves empty above."""
    child = s.rmap[place]
    if child != ZERO and s.rmap[leaf_node(child) + USED] == ZERO:
        free_empty_leaf(s, r, place, child, canonical_ipa)


@apart
def free_empty_leaf(s: State, r: Regime, place: Word, child: Word, canonical_ipa: Word) -> None:
    """Free a leaf and what that leaves empty above."""
    parent = s.rmap[leaf_node(child) + PARENT]
    free_leaf(s, r, child)
    s.rmap[place] = ZERO
    s.rmap[parent + USED] -= ONE
    drop_empty_nodes(s, r, parent, LEAF_LEVEL - 1, canonical_ipa)


@kernel
def leaf_unlink(s: State, r: Regime, canonical_ipa: Word, entry: Word) -> None:
    """Take ``entry`` off what a page names. O(levels + aliases); nothing happens if it is not there."""
    place = leaf_place(s, r, canonical_ipa)
    if place == ZERO or s.rmap[place] == ZERO:
        return
    child = s.rmap[place]
    index = entry_index(r, LEAF_LEVEL, canonical_ipa)
    if is_small(child):
        at = find_item(s, child, (index << INDEX_SHIFT) | entry)
        if at == ZERO:
            return
        s.rmap[at] = ZERO
        s.rmap[leaf_node(child) + USED] -= ONE
        s.rmap[RT_ENTRIES] -= ONE
    else:
        unlink_entry(s, child, child_slot(child, index), entry)
    drop_leaf(s, r, place, canonical_ipa)


@kernel
def leaf_names(s: State, r: Regime, canonical_ipa: Word, entry: Word) -> bool:
    """Whether a page names ``entry``. O(levels + aliases)."""
    place = leaf_place(s, r, canonical_ipa)
    if place == ZERO or s.rmap[place] == ZERO:
        return False
    child = s.rmap[place]
    index = entry_index(r, LEAF_LEVEL, canonical_ipa)
    if is_small(child):
        return find_item(s, child, (index << INDEX_SHIFT) | entry) != ZERO
    return word_names(s, s.rmap[child_slot(child, index)], entry)


@kernel
def word_names(s: State, named: Word, entry: Word) -> bool:
    """Whether a record word is ``entry``, or a chain with it. O(aliases)."""
    while named & CHAIN != ZERO:
        at = named & ~CHAIN
        if s.rmap[at] == entry:
            return True
        named = s.rmap[at + ONE]
    return named == entry


@apart
def sort_small(s: State, child: Word) -> None:
    """Bring the items of a small leaf into the order of their pages, free places last.

    Under the lock for write only. An insertion sort: linear when they came in order, as they mostly do.
    """
    first = leaf_node(child) + NODE_HEADER
    end = small_end(child)
    sorted_end = first
    at = first
    while at < end:
        item = s.rmap[at]
        if item != ZERO:
            s.rmap[at] = ZERO
            to = sorted_end
            while to > first and s.rmap[to - ONE] > item:
                s.rmap[to] = s.rmap[to - ONE]
                to -= ONE
            s.rmap[to] = item
            sorted_end += ONE
        at += ONE


class LeafPlace(NamedTuple):
    """A leaf and where it hangs."""

    place: Word
    """0: there is none."""
    canonical_ipa: Word
    """First address of the part of the range it covers."""
    last: Word
    """End of that part."""


@kernel
def next_leaf_place(s: State, r: Regime, start: Word, end: Word) -> LeafPlace:
    """The first leaf that covers part of [start, end). O(levels + words passed)."""
    shift = U64(level_shift(r, LEAF_LEVEL - 1))
    ipa = start
    while ipa < end:
        node = s.rmap[RT_ROOT]
        at = r.start_level
        while at < LEAF_LEVEL - 1 and node != ZERO:
            s.count[NODES_VISITED] += 1
            node = s.rmap[child_slot(node, entry_index(r, at, ipa))]
            at += 1
        span = U64(level_shift(r, at - 1)) if at > r.start_level else U64(63)
        beyond = ((ipa >> span) + ONE) << span
        if node == ZERO:
            ipa = beyond
            continue
        place = child_slot(node, entry_index(r, LEAF_LEVEL - 1, ipa))
        while ipa < end and ipa < beyond:
            s.count[NODES_VISITED] += 1
            after = ((ipa >> shift) + ONE) << shift
            if s.rmap[place] != ZERO:
                return LeafPlace(place, ipa, after if after < end else end)
            place += ONE
            ipa = after
    return LeafPlace(ZERO, end, end)
