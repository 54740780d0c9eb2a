"""Leaves of ``reverse_table``: small while few pages of a block are mapped, a word a page when they are many.

A *full* leaf has a word for each page of the page table that stands there. A *small* one is a bag of items,
each an index and an entry in one word, in no order; an alias is one item more, so it needs no chain. An
*entry* is any number below 2^49 but 0; what it says is the design's affair (``reverse_entries``). A leaf
starts with 8 words, is promoted to twice as many when it is full, and at 64 words to a full one; it stays
what it is until it is empty. It has no header: the word above that names it says its size too, and how many
entries it has, so a fill and a removal meet one line of the leaf and no other.

``NODES_VISITED`` counts eight words (a cache line) of a small leaf as one node, of a full one each word.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.regime import Regime, level_shift
from shadowmmu.compiled import I64, U64, Word, apart, inline, kernel
from shadowmmu.designs.reverse_nodes import (
    CHAIN,
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
    take_node,
    unlink_entry,
)
from shadowmmu.machine.counters import NODES_VISITED
from shadowmmu.machine.state import R_PAGE_SHIFT, R_STRIDE, State

LEAF_LEVEL: Final = 3

# A child word over leaves: index of the node; from bit 36 how many entries it has; from bit 61 the logarithm
# of its words, 0 for a full one.
NODE_INDEX: Final = U64((1 << 36) - 1)
COUNT_SHIFT: Final = U64(36)
ONE_ENTRY: Final = U64(1 << 36)
MOST_ENTRIES: Final = U64((1 << 25) - 1)
SIZE_SHIFT: Final = U64(61)
SIZE_BITS: Final = U64(7 << 61)
SMALLEST: Final = U64(3)
LARGEST: Final = U64(6)
"""64 words, eight cache lines to look through; a full leaf has 63 bytes for each of the 65 that need it."""
MOST_ALIASED: Final = U64((1 << 25) - (1 << 14))
"""A page of a leaf with so many entries gets no more aliases; each of its pages still has room for one."""

# An item: the index of the page in its leaf, from bit 49, and the entry. 0 is a free place.
INDEX_SHIFT: Final = U64(49)
ENTRY: Final = U64((1 << 49) - 1)

MANY: Final = U64((1 << 64) - 1)
"""Of ``lone_word``: there are several."""
LINE_WORDS: Final = U64(8)
SORT_GAP: Final = U64(21)
"""Of the first pass of a Shell sort; then 5 and 1."""
ZERO: Final = U64(0)
ONE: Final = U64(1)
FOUR: Final = U64(4)


@inline
def is_small(child: Word) -> bool:
    """Whether a child word names a small leaf."""
    return bool(child >> SIZE_SHIFT != ZERO)


@inline
def leaf_node(child: Word) -> Word:
    """The node a child word names."""
    return child & NODE_INDEX


@inline
def leaf_entries(child: Word) -> Word:
    """How many entries a leaf has, those of chains included."""
    return (child >> COUNT_SHIFT) & MOST_ENTRIES


@inline
def leaf_slot(child: Word, page: Word) -> Word:
    """Where a full leaf keeps the word of its page ``page``."""
    return (child & NODE_INDEX) + page


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
def full_words(r: Regime) -> Word:
    """Words of a full leaf."""
    return ONE << U64(r.stride)


@inline
def free_leaf(s: State, r: Regime, child: Word) -> None:
    """Give a leaf of either kind back."""
    size = child >> SIZE_SHIFT
    if size != ZERO:
        give_node(s, leaf_node(child), ONE << size, small_list(size))
    else:
        give_node(s, leaf_node(child), full_words(r), RT_FREE_LEAF)


@apart
def new_small_leaf(s: State, size: Word) -> Word:
    """An empty small leaf of ``1 << size`` words; its child word."""
    return take_node(s, ONE << size, small_list(size)) | (size << SIZE_SHIFT)


@inline
def put_item(s: State, child: Word, item: Word) -> None:
    """Put an item into a small leaf that has room: behind the last one, or where one went before."""
    at = leaf_node(child) + leaf_entries(child)
    end = small_end(child)
    while s.rmap[at] != ZERO:
        at += ONE
        if at == end:
            at = leaf_node(child)
    s.rmap[at] = item


@apart
def promote_leaf(s: State, r: Regime, child: Word) -> Word:
    """Move a small leaf that has no room into one twice as large, or a full one; its child word."""
    size = child >> SIZE_SHIFT
    at = leaf_node(child)
    end = small_end(child)
    entries = child & ~(NODE_INDEX | SIZE_BITS)
    if size < LARGEST:
        larger = new_small_leaf(s, size + ONE) | entries
        to = leaf_node(larger)
        while at < end:
            s.rmap[to] = s.rmap[at]
            to += ONE
            at += ONE
    else:
        larger = take_node(s, full_words(r), RT_FREE_LEAF) | entries
        while at < end:
            item = s.rmap[at]
            link_entry(s, leaf_slot(larger, item >> INDEX_SHIFT), item & ENTRY)
            at += ONE
    free_leaf(s, r, child)
    return larger


class Leaf(NamedTuple):
    """A leaf, where it hangs, and which of its pages was asked for."""

    place: Word
    """The word that names the leaf; 0 if there is none."""
    child: Word
    """What it says."""
    page: Word
    """Index of the page in the leaf."""


@inline
def find_leaf(s: State, canonical_ipa: Word, blocks: Word) -> Leaf:
    """The leaf over a page. O(levels). Unless ``blocks`` is 0, there is none under a recorded block."""
    page = canonical_ipa >> s.regs[R_PAGE_SHIFT]
    stride = s.regs[R_STRIDE]
    shift = s.rmap[RT_TOP_SHIFT]
    child = s.rmap[RT_ROOT]
    index = page >> shift
    heads = s.rmap[RT_TOP_ENTRIES]
    place = ZERO
    while shift != ZERO:
        place = child_slot(child, index)
        child = s.rmap[place]
        if child == ZERO or (blocks != ZERO and s.rmap[place + heads] != ZERO):
            return Leaf(ZERO, ZERO, ZERO)
        heads = ONE << stride
        shift -= stride
        index = (page >> shift) & (heads - ONE)
    return Leaf(place, child, index)


@inline
def leaf_link(s: State, r: Regime, canonical_ipa: Word, entry: Word) -> bool:
    """Put ``entry`` under a page, making and promoting leaves as needed. O(levels), amortised.

    False, and nothing done, if the leaf has as many aliases as can be counted.
    """
    leaf = find_leaf(s, canonical_ipa, ZERO)
    if leaf.place == ZERO:
        return link_with_room(s, r, canonical_ipa, entry)
    child = leaf.child
    if not is_small(child):
        slot = leaf_slot(child, leaf.page)
        if s.rmap[slot] != ZERO:
            return link_with_room(s, r, canonical_ipa, entry)
        s.rmap[slot] = entry
    elif leaf_entries(child) < ONE << (child >> SIZE_SHIFT):
        put_item(s, child, (leaf.page << INDEX_SHIFT) | entry)
    else:
        return link_with_room(s, r, canonical_ipa, entry)
    s.rmap[leaf.place] = child + ONE_ENTRY
    s.count[NODES_VISITED] += LEAF_LEVEL - r.start_level
    return True


@apart
def link_with_room(s: State, r: Regime, canonical_ipa: Word, entry: Word) -> bool:
    """``leaf_link`` where a node is missing or has to grow, or a word has a use already."""
    parent = make_node(s, r, canonical_ipa, LEAF_LEVEL - 1)
    s.count[NODES_VISITED] += 1
    place = child_slot(parent, entry_index(r, LEAF_LEVEL - 1, canonical_ipa))
    child = s.rmap[place]
    if child == ZERO:
        child = new_small_leaf(s, SMALLEST)
        s.rmap[parent + USED] += ONE
    elif is_small(child):
        child = promote_leaf(s, r, child)
    elif leaf_entries(child) >= MOST_ALIASED:
        return False
    index = entry_index(r, LEAF_LEVEL, canonical_ipa)
    if is_small(child):
        put_item(s, child, (index << INDEX_SHIFT) | entry)
    else:
        link_entry(s, leaf_slot(child, index), entry)
    s.rmap[place] = child + ONE_ENTRY
    return True


@inline
def find_item(s: State, child: Word, item: Word) -> Word:
    """Where ``item``, of which there is one at most, stands in a small leaf, or 0. O(items)."""
    count_small(s, child)
    found = ZERO
    at = leaf_node(child)
    end = small_end(child)
    while at < end:  # to the end: a loop that cannot stop is done several words at a time
        if s.rmap[at] == item:
            found += at
        at += ONE
    return found


@inline
def lone_word(s: State, leaf: Leaf) -> Word:
    """Where a leaf has the only entry of a page; 0 if it has none, ``MANY`` if more. O(items) if small."""
    if not is_small(leaf.child):
        slot = leaf_slot(leaf.child, leaf.page)
        named = s.rmap[slot]
        if named & CHAIN != ZERO:
            return MANY
        return slot if named != ZERO else ZERO
    items = ZERO
    found = ZERO
    at = leaf_node(leaf.child)
    end = small_end(leaf.child)
    while at < end:
        item = s.rmap[at]
        if item != ZERO and item >> INDEX_SHIFT == leaf.page:
            items += ONE
            found += at
        at += ONE
    return found if items <= ONE else MANY


@inline
def drop_leaf(s: State, r: Regime, parent: Word, place: Word, canonical_ipa: Word) -> None:
    """Free the leaf at ``place`` if nothing is left in it, and what that leaves empty above."""
    child = s.rmap[place]
    if child != ZERO and leaf_entries(child) == ZERO:
        free_empty_leaf(s, r, parent, place, canonical_ipa)


@apart
def free_empty_leaf(s: State, r: Regime, parent: Word, place: Word, canonical_ipa: Word) -> None:
    """Free the empty leaf at ``place``, a word of ``parent``, and what that leaves empty above."""
    free_leaf(s, r, s.rmap[place])
    s.rmap[place] = ZERO
    s.rmap[parent + USED] -= ONE
    drop_empty_nodes(s, r, parent, LEAF_LEVEL - 1, canonical_ipa)


@kernel
def leaf_unlink(s: State, r: Regime, canonical_ipa: Word, entry: Word) -> bool:
    """Take ``entry`` off what a page names; whether it was there. O(levels + aliases)."""
    parent = find_node(s, r, canonical_ipa, LEAF_LEVEL - 1)
    if parent == ZERO:
        return False
    s.count[NODES_VISITED] += 1
    place = child_slot(parent, entry_index(r, LEAF_LEVEL - 1, canonical_ipa))
    child = s.rmap[place]
    if child == ZERO:
        return False
    index = entry_index(r, LEAF_LEVEL, canonical_ipa)
    if is_small(child):
        at = find_item(s, child, (index << INDEX_SHIFT) | entry)
        if at == ZERO:
            return False
        s.rmap[at] = ZERO
    elif not unlink_entry(s, leaf_slot(child, index), entry):
        return False
    s.rmap[place] = child - ONE_ENTRY
    drop_leaf(s, r, parent, place, canonical_ipa)
    return True


@kernel
def leaf_names(s: State, r: Regime, canonical_ipa: Word, entry: Word) -> bool:
    """Whether a page names ``entry``. O(levels + aliases)."""
    leaf = find_leaf(s, canonical_ipa, ZERO)
    if leaf.place == ZERO:
        return False
    s.count[NODES_VISITED] += LEAF_LEVEL - r.start_level
    child = leaf.child
    if is_small(child):
        return find_item(s, child, (leaf.page << INDEX_SHIFT) | entry) != ZERO
    return word_names(s, s.rmap[leaf_slot(child, leaf.page)], entry)


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

    Under the lock for write only. A Shell sort: linear when they came in order, as they mostly do.
    """
    first = leaf_node(child)
    to = first
    at = first
    while at < small_end(child):
        item = s.rmap[at]
        s.rmap[at] = ZERO
        s.rmap[to] = item
        if item != ZERO:
            to += ONE
        at += ONE
    gap = SORT_GAP
    while gap != ZERO:
        sort_strides(s, first, to, gap)
        gap //= FOUR


@inline
def sort_strides(s: State, first: Word, end: Word, gap: Word) -> None:
    """One pass of a Shell sort: an insertion sort of the words that are ``gap`` apart."""
    at = first + gap
    while at < end:
        item = s.rmap[at]
        hole = at
        while hole >= first + gap and s.rmap[hole - gap] > item:
            s.rmap[hole] = s.rmap[hole - gap]
            hole -= gap
        s.rmap[hole] = item
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
