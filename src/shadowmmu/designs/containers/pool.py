"""``pool``: nodes of fixed sizes inside one growable ``uint64`` array.

The array starts with a header: the bump pointer, a free list and two counts for every size class, and a
scratch area for kernels that need to remember a path (kernels allocate nothing). A node is named by the
index of its first word; the header is in front of them all, so index 0 is never a node and means "none".
Because names are indices they stay valid when the owner moves everything to an array twice the size.

The size class of a node is the base-2 logarithm of its size in words: 3 is a 64-byte slab object, 5 a
256-byte maple node, 9 a 4 KiB page. Mirrors the kernel's slab caches only in that sizes are rounded up
and freed objects are reused last in, first out.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np

from shadowmmu.compiled import I64, U64, Counts, Word, Words, inline, kernel
from shadowmmu.machine.counters import COUNTERS

__all__ = [
    "POOL_HEADER_WORDS",
    "SCRATCH",
    "SCRATCH_WORDS",
    "SIZE_CLASSES",
    "Pool",
    "node_alloc",
    "node_free",
    "pool_check",
    "pool_free_nodes",
    "pool_has",
    "pool_high_water",
    "pool_live",
    "pool_reset",
    "pool_room",
    "pool_used",
]

ZERO: Final = U64(0)
ONE: Final = U64(1)
WORD_SHIFT: Final = U64(3)

SIZE_CLASSES: Final = 13
"""Size classes 0 to 12: nodes of 1 to 4096 words."""

P_BUMP: Final = U64(0)
P_USED: Final = U64(1)
P_HIGH: Final = U64(2)
P_FREE_HEAD: Final = U64(8)
P_FREE_COUNT: Final = U64(24)
P_LIVE: Final = U64(40)

SCRATCH: Final = U64(64)
"""First word of the scratch area. Its content means nothing between two operations."""

SCRATCH_WORDS: Final = 224
"""Words of the scratch area."""

POOL_HEADER_WORDS: Final = 288
"""Words in front of the first node: counts and scratch."""

HEADER_END: Final = U64(POOL_HEADER_WORDS)


@kernel
def pool_reset(words: Words) -> None:
    """Make ``words`` an empty pool: every node is gone. ``words`` holds ``POOL_HEADER_WORDS`` or more."""
    words[:POOL_HEADER_WORDS] = ZERO
    words[P_BUMP] = HEADER_END
    words[P_HIGH] = HEADER_END


@inline
def pool_room(words: Words) -> int:
    """Words never handed out yet: what an operation of any size class can count on. O(1)."""
    return I64(len(words)) - I64(words[P_BUMP])


@inline
def pool_has(words: Words, size_class: Word, nodes: Word) -> bool:
    """Whether ``nodes`` more nodes of ``size_class`` can be had, freed ones included. O(1)."""
    fresh = (U64(len(words)) - words[P_BUMP]) >> size_class
    return bool(fresh + words[P_FREE_COUNT + size_class] >= nodes)


@inline
def node_alloc(words: Words, size_class: Word) -> Word:
    """Index of a node of ``1 << size_class`` words, 0 if there is no room.

    The words of a reused node keep what its former owner left there. O(1).
    """
    node: Word = words[P_FREE_HEAD + size_class]
    size = ONE << size_class
    if node != ZERO:
        words[P_FREE_HEAD + size_class] = words[node]
        words[P_FREE_COUNT + size_class] -= ONE
    else:
        node = words[P_BUMP]
        if U64(len(words)) - node < size:
            return ZERO
        words[P_BUMP] = node + size
        words[P_HIGH] = node + size
    words[P_LIVE + size_class] += ONE
    words[P_USED] += size
    return node


@inline
def node_free(words: Words, size_class: Word, node: Word) -> None:
    """Give ``node`` of ``size_class`` back; it is the next one handed out. O(1).

    The caller owns the node and forgets its index: a second free is not noticed here but by
    ``pool_check``.
    """
    words[node] = words[P_FREE_HEAD + size_class]
    words[P_FREE_HEAD + size_class] = node
    words[P_FREE_COUNT + size_class] += ONE
    words[P_LIVE + size_class] -= ONE
    words[P_USED] -= ONE << size_class


@inline
def pool_live(words: Words, size_class: Word) -> Word:
    """Nodes of ``size_class`` in use. O(1)."""
    live: Word = words[P_LIVE + size_class]
    return live


@inline
def pool_used(words: Words) -> Word:
    """Bytes in use by live nodes of all sizes, the header not counted. O(1)."""
    used: Word = words[P_USED] << WORD_SHIFT
    return used


@inline
def pool_high_water(words: Words) -> Word:
    """Bytes ever handed out, header included: what the pool needed at its largest. O(1)."""
    high: Word = words[P_HIGH] << WORD_SHIFT
    return high


def pool_free_nodes(words: Words) -> dict[int, set[int]]:
    """Indices of the free nodes by size class.

    Raises ``AssertionError`` naming the node when a free list leaves the pool, comes back to a node it
    has seen, or disagrees with its count. O(free nodes).
    """
    free: dict[int, set[int]] = {}
    for size_class in range(SIZE_CLASSES):
        size = 1 << size_class
        seen: set[int] = set()
        node = int(words[int(P_FREE_HEAD) + size_class])
        while node:
            assert POOL_HEADER_WORDS <= node <= int(words[P_BUMP]) - size, (
                f"free node {node} of class {size_class} lies outside the pool"
            )
            assert node not in seen, f"free node {node} of class {size_class} is on its list twice"
            seen.add(node)
            node = int(words[node])
        counted = int(words[int(P_FREE_COUNT) + size_class])
        assert len(seen) == counted, f"class {size_class}: {len(seen)} free nodes, {counted} counted"
        free[size_class] = seen
    return free


def pool_check(words: Words) -> None:
    """Assert that the pool accounts for each of its words. O(free nodes).

    Raises ``AssertionError`` when a free list is damaged, two free nodes overlap, or live nodes, free
    nodes and header do not add up to the bump pointer.
    """
    bump = int(words[P_BUMP])
    assert POOL_HEADER_WORDS <= bump <= len(words), f"bump pointer {bump} outside {len(words)} words"
    assert int(words[P_HIGH]) == bump, "the high-water mark is not the bump pointer"
    free = pool_free_nodes(words)
    spans = sorted((node, node + (1 << size_class)) for size_class in free for node in free[size_class])
    for (before, end), (after, _) in pairwise(spans):
        assert end <= after, f"free nodes {before} and {after} overlap"
    used = sum(int(words[int(P_LIVE) + size_class]) << size_class for size_class in range(SIZE_CLASSES))
    assert used == int(words[P_USED]), f"{used} words in live nodes, {int(words[P_USED])} counted"
    idle = sum(end - node for node, end in spans)
    assert POOL_HEADER_WORDS + used + idle == bump, (
        f"header, {used} live and {idle} free words do not add up to {bump}"
    )


class Pool:
    """Owner of a pool's array and of the counters its kernels write; grows the array by doubling.

    For people who use the containers on their own; the machine has its own owner.

    >>> pool = Pool()
    >>> pool.reserve(10_000)
    >>> len(pool.words) >= 10_000
    True
    """

    words: Words
    """The array; read it anew after ``reserve``, which may replace it."""
    count: Counts
    """Counters, indexed as ``shadowmmu.machine.counters``."""

    def __init__(self, words: int = 1024, limit: int | None = None) -> None:
        """A pool of ``words`` words (header included) that never exceeds ``limit`` words."""
        self.words = np.zeros(max(words, POOL_HEADER_WORDS), dtype=np.uint64)
        self.count = np.zeros(COUNTERS, dtype=np.int64)
        self.limit = limit
        pool_reset(self.words)

    def reserve(self, room: int) -> None:
        """Make sure that ``room`` words are left, unless the limit forbids it. Amortised O(1)."""
        size = len(self.words)
        while size - int(self.words[P_BUMP]) < room:
            size *= 2
        if self.limit is not None:
            size = max(len(self.words), min(size, self.limit))
        if size > len(self.words):
            grown = np.zeros(size, dtype=np.uint64)
            grown[: len(self.words)] = self.words
            self.words = grown

    def check(self) -> None:
        """Assert that every word is accounted for (``pool_check``)."""
        pool_check(self.words)
