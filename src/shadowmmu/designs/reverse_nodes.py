"""The radix over canonical IPA: nodes, slots, and the chains that hold aliases of ``reverse_table``.

``gfn_lists`` and ``pte_chains`` keep the heads of their lists in the same radix.

A node at level L stands where the page table has a table of that level: an entry covers what a level L
entry covers. Leaves (level 3) are a word a place; nodes above have a child word and a head word a place,
the head for a shadow *block* of that size. A word is 0, what the design says of one shadow descriptor (an
*entry*), or, with bit 63, the index of a chain of them. All of it lives in ``State.rmap``; word 0 is never a
node.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.regime import Regime, level_shift
from shadowmmu.compiled import I64, U64, Word, apart, inline, kernel
from shadowmmu.machine.counters import NODES_ALLOCATED, NODES_FREED, NODES_VISITED
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import CANONICAL, M_IA_BITS, context_regime

RT_BUMP: Final = 0
RT_ROOT: Final = 1
RT_STAMP: Final = 2
RT_FREE_LEAF: Final = 3
RT_FREE_NODE: Final = 4
RT_FREE_CHAIN: Final = 5
RT_BYTES: Final = 6
RT_ENTRIES: Final = 7
"""``gfn_lists``, ``pte_chains``: entries."""
RT_CHAINED: Final = 8
RT_FLUSH_MMU: Final = 9
RT_FLUSH_START: Final = 10
RT_FLUSH_END: Final = 11
RT_GENERATION: Final = 12
"""``reverse_table``: the last generation given to an MMU."""
RT_STALE: Final = 13
"""``reverse_table``: entries of generations that are over."""
RT_BROKEN: Final = 14
"""``reverse_table``: shadow MMUs whose record is not complete."""
RT_BLOCKS: Final = 15
"""``reverse_table``: entries of leaves larger than a page."""
RT_FREE_SMALL: Final = 16
"""``reverse_table``: free small leaves, one list a size."""
RT_TOP_SHIFT: Final = 21
"""log2 of the pages that an entry of the root covers."""
RT_TOP_ENTRIES: Final = 22
"""Entries of the root."""
RT_GONE: Final = 23
"""``reverse_table``: entries that have gone so far; a difference says how many a step took."""
RT_HEADER: Final = 24

USED: Final = U64(0)
PARENT: Final = U64(1)
NODE_HEADER: Final = U64(2)
CHAIN_WORDS: Final = 2

CHAIN: Final = U64(1 << 63)
ZERO: Final = U64(0)
ONE: Final = U64(1)
WORD_BYTES: Final = U64(8)


@inline
def root_entries(s: State, r: Regime) -> Word:
    """Entries of the root: the canonical start table's, concatenated ones included."""
    return ONE << U64(I64(s.mmus[CANONICAL, M_IA_BITS]) - level_shift(r, r.start_level))


@inline
def node_entries(s: State, r: Regime, level: int) -> Word:
    """Entries of a node at ``level``."""
    return root_entries(s, r) if level == r.start_level else ONE << U64(r.stride)


@inline
def entry_index(r: Regime, level: int, canonical_ipa: Word) -> Word:
    """Which entry of its ``level`` node covers ``canonical_ipa``."""
    index = canonical_ipa >> U64(level_shift(r, level))
    if level > r.start_level:
        index &= (ONE << U64(r.stride)) - ONE
    return index


@inline
def child_slot(node: Word, index: Word) -> Word:
    """Where a node keeps its child; at level 3, where a leaf keeps its descriptor."""
    return node + NODE_HEADER + index


@inline
def record_slot(s: State, r: Regime, node: Word, level: int, index: Word) -> Word:
    """Where the record of a ``level`` leaf stands: the leaf word, or the head of a node above."""
    slot = node + NODE_HEADER + index
    if level < 3:
        slot += node_entries(s, r, level)
    return slot


@apart
def take_node(s: State, words: Word, free_list: int) -> Word:
    """A zeroed run of ``words`` words from its free list or the bump pointer."""
    node = s.rmap[free_list]
    if node != ZERO:
        s.rmap[free_list] = s.rmap[node]
        s.rmap[I64(node) : I64(node + words)] = ZERO
    else:
        node = s.rmap[RT_BUMP]
        s.rmap[RT_BUMP] = node + words
    s.rmap[RT_BYTES] += words * WORD_BYTES
    s.count[NODES_ALLOCATED] += 1
    return node


@inline
def give_node(s: State, node: Word, words: Word, free_list: int) -> None:
    """Put a run of words on its free list."""
    s.rmap[node] = s.rmap[free_list]
    s.rmap[free_list] = node
    s.rmap[RT_BYTES] -= words * WORD_BYTES
    s.count[NODES_FREED] += 1


@inline
def node_words(r: Regime, level: int) -> Word:
    """Words of a node below the root: a leaf has one an entry, others two."""
    entries = ONE << U64(r.stride)
    return NODE_HEADER + (entries if level == 3 else entries + entries)


@kernel
def reverse_init(s: State) -> None:
    """Lay out the header and an empty root."""
    r = context_regime(s, CANONICAL)
    s.rmap[RT_BUMP] = U64(RT_HEADER)
    entries = root_entries(s, r)
    s.rmap[RT_ROOT] = take_node(s, NODE_HEADER + entries + entries, RT_FREE_NODE)
    s.rmap[RT_TOP_ENTRIES] = entries
    s.rmap[RT_TOP_SHIFT] = U64(level_shift(r, r.start_level) - r.page_shift)


@inline
def listed_entries(s: State) -> int:
    """Entries of ``gfn_lists`` and ``pte_chains``."""
    return I64(s.rmap[RT_ENTRIES])


@kernel
def find_node(s: State, r: Regime, canonical_ipa: Word, level: int) -> Word:
    """The node whose entries are ``level`` leaves around ``canonical_ipa``, or 0. O(levels)."""
    node = s.rmap[RT_ROOT]
    at = r.start_level
    while at < level and node != ZERO:
        s.count[NODES_VISITED] += 1
        node = s.rmap[child_slot(node, entry_index(r, at, canonical_ipa))]
        at += 1
    return node


@inline
def make_node(s: State, r: Regime, canonical_ipa: Word, level: int) -> Word:
    """``find_node``, adding what is missing on the way. The caller made sure of the words."""
    node = s.rmap[RT_ROOT]
    at = r.start_level
    while at < level:
        s.count[NODES_VISITED] += 1
        slot = child_slot(node, entry_index(r, at, canonical_ipa))
        child = s.rmap[slot]
        at += 1
        if child == ZERO:
            child = add_node(s, r, node, slot, at)
        node = child
    return node


@apart
def add_node(s: State, r: Regime, parent: Word, slot: Word, level: int) -> Word:
    """Hang an empty ``level`` node under ``slot`` of ``parent``."""
    node = take_node(s, node_words(r, level), RT_FREE_LEAF if level == 3 else RT_FREE_NODE)
    s.rmap[node + PARENT] = parent
    s.rmap[slot] = node
    s.rmap[parent + USED] += ONE
    return node


@inline
def drop_empty_nodes(s: State, r: Regime, node: Word, level: int, canonical_ipa: Word) -> None:
    """Free ``node`` if nothing is left in it, and so on upwards to the root."""
    if s.rmap[node + USED] == ZERO and level > r.start_level:
        free_empty_nodes(s, r, node, level, canonical_ipa)


@apart
def free_empty_nodes(s: State, r: Regime, node: Word, level: int, canonical_ipa: Word) -> None:
    """Free ``node`` and what that leaves empty above."""
    while level > r.start_level and s.rmap[node + USED] == ZERO:
        parent = s.rmap[node + PARENT]
        give_node(s, node, node_words(r, level), RT_FREE_LEAF if level == 3 else RT_FREE_NODE)
        level -= 1
        s.rmap[child_slot(parent, entry_index(r, level, canonical_ipa))] = ZERO
        s.rmap[parent + USED] -= ONE
        node = parent


@inline
def chain_node(s: State, entry: Word, following: Word) -> Word:
    """A new chain node in front of ``following``; the marked word that names it."""
    node = take_node(s, U64(CHAIN_WORDS), RT_FREE_CHAIN)
    s.rmap[node] = entry
    s.rmap[node + ONE] = following
    s.rmap[RT_CHAINED] += ONE
    return node | CHAIN


@inline
def chain_pop(s: State, named: Word) -> tuple[Word, Word]:
    """Free the first node of a chain: its entry, and the word that names the rest."""
    node = named & ~CHAIN
    entry = s.rmap[node]
    following = s.rmap[node + ONE]
    give_node(s, node, U64(CHAIN_WORDS), RT_FREE_CHAIN)
    s.rmap[RT_CHAINED] -= ONE
    return entry, following


@inline
def link_entry(s: State, slot: Word, entry: Word) -> None:
    """Add ``entry`` to what ``slot`` names; a second one makes a chain. O(1). The caller counts."""
    named = s.rmap[slot]
    s.rmap[slot] = entry if named == ZERO else chained(s, named, entry)


@apart
def chained(s: State, named: Word, entry: Word) -> Word:
    """The chain of ``entry`` and what ``named`` names."""
    if named & CHAIN == ZERO:
        named = chain_node(s, named, ZERO)
    return chain_node(s, entry, named)


@inline
def unlink_entry(s: State, slot: Word, entry: Word) -> bool:
    """Take ``entry`` off what ``slot`` names; whether it was there. O(aliases). The caller counts."""
    if s.rmap[slot] == entry:
        s.rmap[slot] = ZERO
        return True
    return unlink_alias(s, slot, entry)


@apart
def unlink_alias(s: State, slot: Word, entry: Word) -> bool:
    """``unlink_entry`` where ``slot`` names a chain, or something else."""
    before = ZERO
    named = s.rmap[slot]
    while named & CHAIN != ZERO and s.rmap[named & ~CHAIN] != entry:
        s.count[NODES_VISITED] += 1
        before = named & ~CHAIN
        named = s.rmap[before + ONE]
    following = ZERO
    if named & CHAIN != ZERO:
        _gone, following = chain_pop(s, named)
    elif named != entry:
        return False
    if before == ZERO:
        s.rmap[slot] = following
    else:
        s.rmap[before + ONE] = following
    return True


class Slot(NamedTuple):
    """A word that names something: its node, its index, and the canonical address it stands for."""

    node: Word
    """0: there is none."""
    at: Word
    canonical_ipa: Word


@kernel
def next_slot(s: State, r: Regime, level: int, start: Word, end: Word) -> Slot:
    """The first record word of ``level`` leaves over part of [start, end) that names something.

    O(levels + words passed). A node that is missing is passed in one step.
    """
    shift = U64(level_shift(r, level))
    ipa = start
    while ipa < end:
        node = s.rmap[RT_ROOT]
        at = r.start_level
        while at < level and node != ZERO:
            s.count[NODES_VISITED] += 1
            node = s.rmap[child_slot(node, entry_index(r, at, ipa))]
            at += 1
        if node == ZERO:
            span = U64(level_shift(r, at - 1))
            ipa = ((ipa >> span) + ONE) << span
            continue
        span = U64(level_shift(r, level - 1)) if level > r.start_level else U64(63)
        after = ((ipa >> span) + ONE) << span
        slot = record_slot(s, r, node, level, entry_index(r, level, ipa))
        while ipa < end and ipa < after:
            s.count[NODES_VISITED] += 1
            if s.rmap[slot] != ZERO:
                return Slot(node, slot, (ipa >> shift) << shift)
            slot += ONE
            ipa = ((ipa >> shift) + ONE) << shift
    return Slot(ZERO, ZERO, end)
