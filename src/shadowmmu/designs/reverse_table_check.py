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
from shadowmmu.designs.reverse_entries import (
    DESCRIPTOR,
    GENERATION,
    GENERATION_SHIFT,
    M_BROKEN,
    M_GENERATION,
    M_RECORDED,
    SIDE_LEVEL,
    SIDE_PAGE,
)
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
    "check_inverse",
    "check_named_leaves",
    "check_reverse_table",
    "is_live",
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
    generation: int = 0


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
    """The live entries, in canonical order. Raises AssertionError where the shape of the record is broken."""
    return sorted(
        entry for entry in _entries(state, walk_radix(state, sized_leaves=True)) if is_live(state, entry)
    )


def _recorded_side(entry: Recorded) -> int:
    page = entry.canonical_ipa >> 12
    return page << int(SIDE_PAGE) | entry.level << int(SIDE_LEVEL) | entry.generation


def is_live(state: State, entry: Recorded) -> bool:
    """Whether the MMU that owns an entry's descriptor has the generation the entry was made in."""
    entries = 1 << (int(state.regs[R_PAGE_SHIFT]) - 3)
    owner = int(state.frames[entry.word // entries, OWNER])
    mmu = owner & int(MMU_MASK)
    shadow = owner & int(KIND_MASK) == int(KIND_TABLE) and mmu != CANONICAL
    return shadow and entry.generation == int(state.mmus[mmu, M_GENERATION])


def check_reverse_table(state: State) -> None:
    """Assert every invariant of the record. O(words of the record + words of the shadow tables).

    Shape: parents right, use counts exact, no empty node below the root, chains of two or more that share
    no node. Content: each descriptor once, with its entry in ``side``, each live entry a leaf of that level
    and (unless its MMU is broken) each leaf a live entry. Accounts: entries of each MMU, stale and chained
    ones, bytes, nodes. Generations: one an MMU, none above the last one given.
    """
    walk = walk_radix(state, sized_leaves=True)
    entries = _entries(state, walk)
    chained = int(state.rmap[rn.RT_CHAINED])
    assert chained == walk.hanging, f"{walk.hanging} chain nodes, miscounted"
    mmus = range(1, shadow_mmus(state) + 1)
    complete = {mmu for mmu in mmus if not state.mmus[mmu, M_BROKEN]}
    check_inverse(state, entries, {entry.word: _recorded_side(entry) for entry in entries}, keeps_old=True)
    live = [entry for entry in entries if is_live(state, entry)]
    check_named_leaves(state, live, complete)
    _check_generations(state, entries, live)
    blocks = sum(entry.level < 3 for entry in entries)
    assert int(state.rmap[rn.RT_BLOCKS]) == blocks, f"{blocks} entries of blocks, miscounted"
    broken = int(state.rmap[rn.RT_BROKEN])
    assert broken == shadow_mmus(state) - len(complete), f"{broken} broken MMUs counted"
    check_accounts(state, walk, rn.CHAIN_WORDS)


def _check_generations(state: State, entries: list[Recorded], live: list[Recorded]) -> None:
    stale = int(state.rmap[rn.RT_STALE])
    assert stale == len(entries) - len(live), f"{len(entries) - len(live)} stale entries, {stale} counted"
    mmus = range(1, shadow_mmus(state) + 1)
    given = [int(state.mmus[mmu, M_GENERATION]) for mmu in mmus]
    assert len(set(given)) == len(given), "two MMUs have one generation"
    last = int(state.rmap[rn.RT_GENERATION])
    assert all(1 < number <= last for number in given), f"generations {given} after {last}"
    assert int(state.mmus[CANONICAL, M_GENERATION]) == 0, "the canonical MMU has a generation"
    for mmu, number in zip(mmus, given, strict=True):
        held = sum(entry.generation == number for entry in entries)
        counted = int(state.mmus[mmu, M_RECORDED])
        assert held == counted, f"shadow MMU {mmu}: {held} entries, {counted} counted"


def check_named_leaves(state: State, live: list[Recorded], complete: set[int]) -> None:
    """Assert that the ``live`` entries are leaves of their level, and all of the MMUs in ``complete``."""
    leaves = {leaf.word: leaf for leaf in shadow_leaves(state)}
    for entry in live:
        leaf = leaves.get(entry.word)
        assert leaf is not None, f"word {entry.word:#x} is recorded and no leaf"
        assert leaf.level == entry.level, f"word {entry.word:#x}: level {leaf.level}, recorded {entry.level}"
    known = {entry.word for entry in live}
    for word, leaf in leaves.items():
        if leaf.mmu in complete:
            assert word in known, f"leaf {leaf.nested_ipa:#x} of shadow MMU {leaf.mmu} is not recorded"


def check_inverse(
    state: State, entries: list[Recorded], inverse: dict[int, int], *, keeps_old: bool = False
) -> None:
    """Assert that no descriptor is named twice, and ``side`` holds ``inverse``.

    ``keeps_old``: of descriptors that are not recorded, ``side`` may say what they were.
    """
    assert len(inverse) == len(entries), "a descriptor is named twice"
    words = inverse if keeps_old else np.flatnonzero(state.side)
    side = {int(word): int(state.side[word]) for word in words}
    assert side == inverse, f"side and record differ at {_difference(side, inverse)}"


def _difference(one: dict[int, int], other: dict[int, int]) -> str:
    return ", ".join(f"{word:#x}" for word, _ in sorted(one.items() ^ other.items())[:3])


def _entries(state: State, walk: RadixWalk) -> list[Recorded]:
    return [
        Recorded(
            head.canonical_ipa,
            head.level,
            head.size,
            entry & int(DESCRIPTOR),
            entry >> int(GENERATION_SHIFT) & int(GENERATION),
        )
        for head in walk.heads
        for entry in _chain(state, walk, head.content)
    ]


def _chain(state: State, walk: RadixWalk, content: int) -> list[int]:
    """The entries a word names."""
    names = []
    while content & int(rn.CHAIN):
        node = content & ~int(rn.CHAIN)
        walk.meet(node, rn.CHAIN_WORDS)
        names.append(int(state.rmap[node]))
        content = int(state.rmap[node + 1])
    return [*names, content] if content else names
