"""Every invariant of the radix over canonical IPA, in plain Python on the raw words.

Shared by the checks of the designs that keep words in it: ``reverse_table``, ``gfn_lists``, ``pte_chains``.
Slow on purpose; it shares nothing with the kernels but the layout.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from shadowmmu.arch.regime import Regime, level_shift
from shadowmmu.designs import reverse_leaves as rl
from shadowmmu.designs import reverse_nodes as rn
from shadowmmu.machine.counters import NODES_ALLOCATED, NODES_FREED
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import CANONICAL, context_regime

SMALL_SIZES = range(int(rl.SMALLEST), int(rl.LARGEST) + 1)

__all__ = ["Head", "RadixWalk", "check_accounts", "walk_radix"]


@dataclass(frozen=True, order=True)
class Head:
    """A word of the radix that is not 0: the canonical range it stands for, and what it holds."""

    canonical_ipa: int
    level: int
    size: int
    content: int


@dataclass
class RadixWalk:
    """What a walk of the radix meets, and what hangs off its words as far as ``meet`` was told."""

    heads: list[Head] = field(default_factory=list)
    nodes: int = 0
    words: int = 0
    hanging: int = 0
    sized: bool = False
    """Leaves of ``reverse_leaves``, small or full, counted in the word above; else plain nodes."""
    seen: set[int] = field(default_factory=set)

    def meet(self, node: int, words: int) -> None:
        """A node that hangs off a word: reached once only."""
        assert node not in self.seen, f"chain node {node} is reached twice"
        self.seen.add(node)
        self.hanging += 1
        self.words += words


def walk_radix(state: State, *, keeps_empty_nodes: bool = False, sized_leaves: bool = False) -> RadixWalk:
    """Assert the shape of the radix: parents right, use counts exact, no empty node below the root.

    ``sized_leaves``: those of ``reverse_leaves``, for which the word above has the size and the count.
    """
    walk = RadixWalk(sized=sized_leaves)
    r = context_regime(state, CANONICAL)
    _walk_node(state, walk, r, int(state.rmap[rn.RT_ROOT]), 0, r.start_level, 0, keeps_empty_nodes)
    return walk


def _walk_node(
    state: State, walk: RadixWalk, r: Regime, node: int, parent: int, level: int, base: int, keeps: bool
) -> None:
    words, entries = state.rmap, int(rn.node_entries(state, r, level))
    size = 1 << level_shift(r, level)
    assert node not in walk.seen, f"node {node} is reached twice"
    walk.seen.add(node)
    walk.nodes += 1
    first = node + int(rn.NODE_HEADER)
    width = entries if level == 3 else 2 * entries
    walk.words += int(rn.NODE_HEADER) + width
    used = np.flatnonzero(words[first : first + width]).tolist()
    counted = int(words[node + int(rn.USED)])
    assert counted == len(used), f"node {node}: {len(used)} words used, {counted} counted"
    assert used or not parent or keeps, f"node {node} is empty"
    assert int(words[node + int(rn.PARENT)]) == parent, f"node {node}: parent is not {parent}"
    for index in used:
        content = int(words[first + index])
        canonical_ipa = base + index % entries * size
        if level == 2 and index < entries and walk.sized:
            _walk_leaf(state, walk, r, content, canonical_ipa)
        elif level < 3 and index < entries:
            _walk_node(state, walk, r, content, node, level + 1, canonical_ipa, keeps)
        else:
            walk.heads.append(Head(canonical_ipa, level, size, content))


def _walk_leaf(state: State, walk: RadixWalk, r: Regime, child: int, base: int) -> None:
    node, size = child & int(rl.NODE_INDEX), child >> int(rl.SIZE_SHIFT)
    width = 1 << size if size else 1 << r.stride
    assert not size or int(rl.SMALLEST) <= size <= int(rl.LARGEST), f"node {node} has 2^{size} words"
    assert node not in walk.seen, f"node {node} is reached twice"
    walk.seen.add(node)
    walk.nodes += 1
    walk.words += width
    words = [(at, int(word)) for at, word in enumerate(state.rmap[node : node + width]) if word]
    named = sum(1 if size else _named(state, word) for _, word in words)
    counted = child >> int(rl.COUNT_SHIFT) & int(rl.MOST_ENTRIES)
    assert counted == named, f"node {node}: {named} entries, {counted} counted"
    assert words, f"node {node} is empty"
    page = 1 << level_shift(r, 3)
    for at, word in words:
        index = word >> int(rl.INDEX_SHIFT) if size else at
        assert index < 1 << r.stride, f"node {node}: item {word:#x} is of no page"
        walk.heads.append(Head(base + index * page, 3, page, word & int(rl.ENTRY) if size else word))


def _named(state: State, word: int) -> int:
    """How many entries a word of a full leaf names."""
    number = 0
    while word & int(rn.CHAIN):
        number += 1
        word = int(state.rmap[(word & ~int(rn.CHAIN)) + 1])
    return number + (word != 0)


def check_accounts(state: State, walk: RadixWalk, hanging_words: int) -> None:
    """Assert the sums: bytes, nodes, and that no word is lost between nodes and free lists."""
    regs = state.rmap
    assert int(regs[rn.RT_BYTES]) == 8 * walk.words, f"{8 * walk.words} bytes, miscounted"
    live = int(state.count[NODES_ALLOCATED] - state.count[NODES_FREED])
    held = walk.nodes + walk.hanging
    assert live == held, f"{held} nodes, {live} allocated and not freed"
    r = context_regime(state, CANONICAL)
    idle = {
        rn.RT_FREE_LEAF: 1 << r.stride if walk.sized else int(rn.node_words(r, 3)),
        rn.RT_FREE_NODE: int(rn.node_words(r, 2)),
        rn.RT_FREE_CHAIN: hanging_words,
    }
    idle |= {rn.RT_FREE_SMALL + size - int(rl.SMALLEST): 1 << size for size in SMALL_SIZES}
    words = walk.words
    for head, size in idle.items():
        node = int(regs[head])
        while node:
            assert node not in walk.seen, f"node {node} is in use and on a free list"
            walk.seen.add(node)
            words += size
            node = int(regs[node])
    bump = int(regs[rn.RT_BUMP])
    assert words == bump - rn.RT_HEADER, f"{bump - rn.RT_HEADER - words} words are lost"
