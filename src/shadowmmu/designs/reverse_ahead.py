"""``reverse_table``: a look ahead, for loops that know which pages come next (see ``pgtable/ahead.py``).

What a notifier touches lies behind two misses, one after the other: the record word of its page, and the
shadow descriptors that this word names. So there are two routines, the first to be called twice as far ahead
as the second. A removal over many leaves looks one leaf ahead itself. Nothing is counted and nothing changes.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import U64, Word, inline, kernel, prefetch
from shadowmmu.designs.reverse_entries import DESCRIPTOR
from shadowmmu.designs.reverse_leaves import (
    LINE_WORDS,
    find_leaf,
    is_small,
    leaf_entries,
    leaf_node,
    leaf_slot,
)
from shadowmmu.designs.reverse_nodes import CHAIN
from shadowmmu.machine.state import State

FIRST_LINES: Final = 4
ZERO: Final = U64(0)


@kernel
def reverse_ahead(s: State, canonical_ipa: Word) -> None:
    """Start fetching the record word of a page: a full leaf's, or a free one of a small leaf. O(levels)."""
    leaf = find_leaf(s, canonical_ipa, ZERO)
    if leaf.place == ZERO:
        return
    if is_small(leaf.child):
        prefetch(s.rmap, leaf_node(leaf.child) + leaf_entries(leaf.child))
    else:
        prefetch(s.rmap, leaf_slot(leaf.child, leaf.page))


@kernel
def reverse_near(s: State, canonical_ipa: Word) -> None:
    """Start fetching the shadow descriptor that the word of a page in a full leaf names. O(levels)."""
    leaf = find_leaf(s, canonical_ipa, ZERO)
    if leaf.place == ZERO or is_small(leaf.child):
        return
    named = s.rmap[leaf_slot(leaf.child, leaf.page)]
    if named & CHAIN == ZERO:
        prefetch(s.mem, named & DESCRIPTOR)


@inline
def leaf_near(s: State, child: Word) -> None:
    """Start fetching the first lines of a leaf that may come next; from there the processor goes on itself.

    ``child`` may be any word, the one after the last child of a node too.
    """
    at = leaf_node(child)
    for _ in range(FIRST_LINES):
        prefetch(s.rmap, at)
        at += LINE_WORDS
