"""``check()`` of ``reverse_table``: every invariant of its record, in plain Python on the raw words.

Slow on purpose, for tests, fuzzers and people with a dump: it shares nothing with the kernels but the layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shadowmmu.arch.regime import level_shift
from shadowmmu.arch.stage2 import TABLE_TYPE, VALID
from shadowmmu.designs import reverse_nodes as rn
from shadowmmu.designs.radix_check import RadixWalk, check_accounts, walk_radix
from shadowmmu.designs.reverse_table import M_BROKEN, PRESENT
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
from shadowmmu.pgtable.context import CANONICAL, context_regime, shadow_mmus

__all__ = [
    "Recorded",
    "ShadowLeaf",
    "check_named_leaves",
    "check_reverse_table",
    "recorded_leaves",
    "shadow_leaves",
]


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
    return sorted(_entries(state, walk_radix(state)))


def check_reverse_table(state: State) -> None:
    """Assert every invariant of the record. O(words of the record + words of the shadow tables).

    Shape: parents right, use counts exact, no empty node below the root, chains of two or more that share
    no node. Content: each descriptor once, ``side`` its exact inverse, each entry a live leaf of that level
    and (unless its MMU is broken) each live leaf an entry. Accounts: entries, chained, bytes, nodes.
    """
    walk = walk_radix(state)
    entries = _entries(state, walk)
    chained = int(state.rmap[rn.RT_CHAINED])
    assert chained == walk.hanging, f"{walk.hanging} chain nodes, miscounted"
    complete = {mmu for mmu in range(1, shadow_mmus(state) + 1) if not state.mmus[mmu, M_BROKEN]}
    check_named_leaves(state, entries, complete)
    check_accounts(state, walk, len(entries), rn.CHAIN_WORDS)


def check_named_leaves(state: State, entries: list[Recorded], complete: set[int]) -> None:
    """Assert that entries and live shadow leaves are one to one, and ``side`` the inverse of the entries.

    Of the MMUs in ``complete`` every leaf has its entry.
    """
    named = {entry.word: entry for entry in entries}
    assert len(named) == len(entries), "a descriptor is named twice"
    side = {int(word): int(state.side[word]) for word in np.flatnonzero(state.side)}
    inverse = {entry.word: entry.canonical_ipa | int(PRESENT) for entry in entries}
    assert side == inverse, f"side and record differ at {_difference(side, inverse)}"
    leaves = {leaf.word: leaf for leaf in shadow_leaves(state)}
    for entry in entries:
        leaf = leaves.get(entry.word)
        assert leaf is not None, f"word {entry.word:#x} is recorded and no leaf"
        assert leaf.level == entry.level, f"word {entry.word:#x}: level {leaf.level}, recorded {entry.level}"
    for word, leaf in leaves.items():
        if leaf.mmu in complete:
            assert word in named, f"leaf {leaf.nested_ipa:#x} of shadow MMU {leaf.mmu} is not recorded"


def _difference(one: dict[int, int], other: dict[int, int]) -> str:
    return ", ".join(f"{word:#x}" for word, _ in sorted(one.items() ^ other.items())[:3])


def _entries(state: State, walk: RadixWalk) -> list[Recorded]:
    return [
        Recorded(head.canonical_ipa, head.level, head.size, word)
        for head in walk.heads
        for word in _chain(state, walk, head.content)
    ]


def _chain(state: State, walk: RadixWalk, content: int) -> list[int]:
    """The descriptors a word names."""
    names = []
    while content & int(rn.CHAIN):
        node = content & ~int(rn.CHAIN)
        walk.meet(node, rn.CHAIN_WORDS)
        names.append(int(state.rmap[node]))
        content = int(state.rmap[node + 1])
    return [*names, content] if content else names
