"""``check()`` of ``reverse_table``: every invariant of its record, in plain Python on the raw words.

Slow on purpose, for tests, fuzzers and people with a dump: it shares nothing with the kernels but the layout.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from shadowmmu.arch.regime import Regime, level_shift
from shadowmmu.arch.stage2 import TABLE_TYPE, VALID
from shadowmmu.designs import reverse_nodes as rn
from shadowmmu.designs.reverse_table import M_BROKEN, PRESENT
from shadowmmu.machine.counters import NODES_ALLOCATED, NODES_FREED
from shadowmmu.machine.frames import (
    BASE,
    KIND_MASK,
    KIND_TABLE,
    LEVEL_MASK,
    LEVEL_SHIFT,
    MMU_MASK,
    OWNER,
)
from shadowmmu.machine.state import R_NEXT_FRAME, R_PAGE_SHIFT, State
from shadowmmu.pgtable.context import CANONICAL, context_regime

__all__ = ["Recorded", "ShadowLeaf", "check_reverse_table", "recorded_leaves", "shadow_leaves"]


@dataclass(frozen=True, order=True)
class ShadowLeaf:
    """A valid leaf of a shadow MMU, found by reading every table frame."""

    mmu: int
    nested_ipa: int
    level: int
    size: int
    word: int


@dataclass(frozen=True, order=True)
class Recorded:
    """One entry of the record: the descriptor it names and the canonical range it stands at."""

    canonical_ipa: int
    level: int
    size: int
    word: int


@dataclass
class _Walk:
    """What a walk of the radix meets."""

    entries: list[Recorded] = field(default_factory=list)
    nodes: int = 0
    chained: int = 0
    words: int = 0
    seen: set[int] = field(default_factory=set)


def shadow_leaves(state: State) -> list[ShadowLeaf]:
    """Every valid leaf of every shadow MMU, in order; O(words of the shadow tables)."""
    shift = int(state.regs[R_PAGE_SHIFT])
    entries = 1 << (shift - 3)
    found = []
    for frame in range(1, int(state.regs[R_NEXT_FRAME])):
        owner = int(state.frames[frame, OWNER])
        mmu = owner & int(MMU_MASK)
        if owner & int(KIND_MASK) != int(KIND_TABLE) or mmu == CANONICAL:
            continue
        level = (owner & int(LEVEL_MASK)) >> int(LEVEL_SHIFT)
        size = 1 << level_shift(context_regime(state, mmu), level)
        words = state.mem[frame * entries : (frame + 1) * entries]
        leaf = words & VALID != 0
        if level < 3:
            leaf &= words & TABLE_TYPE != TABLE_TYPE
        base = int(state.frames[frame, BASE])
        found += [
            ShadowLeaf(mmu, base + index * size, level, size, frame * entries + index)
            for index in np.flatnonzero(leaf).tolist()
        ]
    return sorted(found)


def recorded_leaves(state: State) -> list[Recorded]:
    """What the record holds, in canonical order. Raises AssertionError where its shape is broken."""
    return sorted(_walk(state).entries)


def check_reverse_table(state: State) -> None:
    """Assert every invariant of the record. O(words of the record + words of the shadow tables).

    Shape: parents right, use counts exact, no empty node below the root, chains of two or more that share
    no node. Content: each descriptor once, ``side`` its exact inverse, each entry a live leaf of that level
    and (unless its MMU is broken) each live leaf an entry. Accounts: entries, chained, bytes, nodes.
    """
    walk = _walk(state)
    named = {entry.word: entry for entry in walk.entries}
    assert len(named) == len(walk.entries), "a descriptor is named twice"
    side = {int(word): int(state.side[word]) for word in np.flatnonzero(state.side)}
    inverse = {entry.word: entry.canonical_ipa | int(PRESENT) for entry in walk.entries}
    assert side == inverse, f"side and record differ at {_difference(side, inverse)}"
    leaves = {leaf.word: leaf for leaf in shadow_leaves(state)}
    for entry in walk.entries:
        leaf = leaves.get(entry.word)
        assert leaf is not None, f"word {entry.word:#x} is recorded and no leaf"
        assert leaf.level == entry.level, f"word {entry.word:#x}: level {leaf.level}, recorded {entry.level}"
    for word, leaf in leaves.items():
        if not state.mmus[leaf.mmu, M_BROKEN]:
            assert word in named, f"leaf {leaf.nested_ipa:#x} of shadow MMU {leaf.mmu} is not recorded"
    _check_accounts(state, walk)


def _difference(one: dict[int, int], other: dict[int, int]) -> str:
    return ", ".join(f"{word:#x}" for word, _ in sorted(one.items() ^ other.items())[:3])


def _check_accounts(state: State, walk: _Walk) -> None:
    regs = state.rmap
    assert int(regs[rn.RT_ENTRIES]) == len(walk.entries), f"{len(walk.entries)} entries, miscounted"
    assert int(regs[rn.RT_CHAINED]) == walk.chained, f"{walk.chained} chain nodes, miscounted"
    assert int(regs[rn.RT_BYTES]) == 8 * walk.words, f"{8 * walk.words} bytes, miscounted"
    live = int(state.count[NODES_ALLOCATED] - state.count[NODES_FREED])
    held = walk.nodes + walk.chained
    assert live == held, f"{held} nodes, {live} allocated and not freed"
    r = context_regime(state, CANONICAL)
    idle = {
        rn.RT_FREE_LEAF: int(rn.node_words(r, 3)),
        rn.RT_FREE_NODE: int(rn.node_words(r, 2)),
        rn.RT_FREE_CHAIN: rn.CHAIN_WORDS,
    }
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


def _walk(state: State) -> _Walk:
    walk = _Walk()
    r = context_regime(state, CANONICAL)
    _walk_node(state, walk, r, int(state.rmap[rn.RT_ROOT]), 0, r.start_level, 0)
    return walk


def _walk_node(state: State, walk: _Walk, r: Regime, node: int, parent: int, level: int, base: int) -> None:
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
    assert used or not parent, f"node {node} is empty"
    assert int(words[node + int(rn.PARENT)]) == parent, f"node {node}: parent is not {parent}"
    for index in used:
        content = int(words[first + index])
        canonical_ipa = base + index % entries * size
        if level < 3 and index < entries:
            _walk_node(state, walk, r, content, node, level + 1, canonical_ipa)
        else:
            names = _chain(state, walk, content)
            walk.entries += [Recorded(canonical_ipa, level, size, word) for word in names]


def _chain(state: State, walk: _Walk, content: int) -> list[int]:
    """The descriptors a word names."""
    names = []
    while content & int(rn.CHAIN):
        node = content & ~int(rn.CHAIN)
        assert node not in walk.seen, f"chain node {node} is reached twice"
        walk.seen.add(node)
        walk.chained += 1
        walk.words += rn.CHAIN_WORDS
        names.append(int(state.rmap[node]))
        content = int(state.rmap[node + 1])
    return [*names, content] if content else names
