"""What the machine's memory alone costs at the places that ``bench_reverse.py`` meets: no walk, no record.

*Words*: a page's record word and its word of ``side`` are stored to, pages in random order, as many words as
that many leaves have at half density; with and without fetching those that come later. *Neighbours*: the same
where eight stores in turn fall into the same 4 KiB of each array, on lines of their own, so that they miss
the caches as before but share a translation. *Leaves*: as much of a record as one removal of 1G reads and
clears, 512 leaves of 4 KiB with every other run of 64 words in use, side by side and in scattered places.

Usage: python benchmarks/bench_memory.py [LEAVES...]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from shadowmmu.compiled import U64, Words, kernel, prefetch
from shadowmmu.pgtable.ahead import AHEAD

ZERO = U64(0)
ONE = U64(1)
LEAF = 512
LINE = 8
GROUP = 8
REPETITIONS = 5


@kernel
def store_words(record: Words, side: Words, places: Words, beside: Words, ahead: int) -> None:
    """Store to a word of each array for each page."""
    for i in range(len(places)):
        if ahead != 0 and i + ahead < len(places):
            prefetch(record, places[i + ahead])
            prefetch(side, beside[i + ahead])
        record[places[i]] = beside[i]
        side[beside[i]] = places[i]


@kernel
def clear_leaves(record: Words, leaves: Words) -> int:
    """Clear what is in use of each leaf; how many words were."""
    gone = 0
    for i in range(len(leaves)):
        at = leaves[i]
        end = at + U64(LEAF)
        while at < end:
            if record[at] != ZERO:
                record[at] = ZERO
                gone += 1
            at += ONE
    return gone


def median_ns(run: Callable[[], object], operations: int) -> float:
    """Nanoseconds of CPU time an operation, the median of some runs."""
    took = []
    for _ in range(REPETITIONS):
        start = time.thread_time()
        run()
        took.append((time.thread_time() - start) / operations * 1e9)
    return statistics.median(took)


def stores(title: str, places: Words, beside: Words, leaves: int) -> None:
    """Stores to two words a page, one by one and looking ahead."""
    record, side = np.empty(2 * leaves, np.uint64), np.empty(leaves, np.uint64)
    record.fill(0)
    side.fill(0)
    store_words(record, side, places[:8], beside[:8], 0)
    found = [
        median_ns(lambda a=ahead: store_words(record, side, places, beside, a), len(places))
        for ahead in (0, AHEAD)
    ]
    print(f"{leaves:,} leaves, {title}: {found[0]:.1f} ns, {found[1]:.1f} ns looking ahead", flush=True)


def words(leaves: int) -> None:
    """Stores at random, each alone in its 4 KiB and eight together."""
    rng = np.random.default_rng(1)
    stores(
        "two words a page",
        (rng.permutation(leaves) * 2).astype(np.uint64),
        rng.permutation(leaves).astype(np.uint64),
        leaves,
    )
    lines = np.arange(leaves) * 5 % (LEAF // LINE) * LINE
    record_leaf, side_leaf = (
        np.repeat(rng.integers(0, words // LEAF, leaves // GROUP), GROUP) * LEAF
        for words in (2 * leaves, leaves)
    )
    stores(
        "eight neighbours in turn",
        (record_leaf + lines).astype(np.uint64),
        (side_leaf + lines).astype(np.uint64),
        leaves,
    )


def clearing(leaves: int) -> None:
    """Removals of 1G, the leaves side by side and scattered."""
    number = 2 * leaves // LEAF
    record = np.empty(number * LEAF, np.uint64)
    in_use = np.arange(len(record)) // 64 % 2 == 0
    for title, order in (
        ("side by side", np.arange(number)),
        ("scattered", np.random.default_rng(2).permutation(number)),
    ):
        record[:] = in_use
        starts = (order * LEAF).astype(np.uint64)
        took = []
        for first in range(0, min(number, 16 * LEAF), LEAF):
            start = time.thread_time()
            assert clear_leaves(record, starts[first : first + LEAF]) == LEAF * LEAF // 2
            took.append((time.thread_time() - start) * 1e6)
        print(f"{leaves:,} leaves: 1G of them cleared, {title}: {statistics.median(took):.0f} us", flush=True)


def main() -> None:
    """Print the figures."""
    sizes = [int(text) for text in sys.argv[1:]] or [1 << 20, 1 << 24, 1 << 26]
    clear_leaves(np.zeros(LEAF, np.uint64), np.zeros(1, np.uint64))
    for leaves in sizes:
        words(leaves)
    clearing(1 << 24)


if __name__ == "__main__":
    main()
