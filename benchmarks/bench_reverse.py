"""``reverse_table`` against maple trees on the same keys: insert, removal of 4K, 2M and 1G, bytes a mapping.

The peers are the kernel's own maple tree (``--peer PATH``, the program that ``maple_peer.c`` makes with a
kernel tree; README.md says how) and the maple tree of ``designs/containers``. Keys are pages in runs of
consecutive ones (geometric, mean 64) with as long holes, so half of the pages are mapped; inserted in
random order, or run by run with the runs in random order. Times are thread CPU time, the three take turns,
medians are shown.

``reverse_table`` is measured twice at removal: ``erase`` is what the trees do too, finding the entries and
dropping them (they are made stale first, so that the product's own unmap drops them and clears nothing);
``unmap`` is a whole notifier, which also clears the shadow descriptors and frees tables. ``unlink`` takes
one leaf off by its descriptor. ``in order``: notifiers of neighbouring pages one after the other, as a scan
for KSM or NUMA balancing sends them. ``in turn``: each notifier waits for the one before. ``ahead``: the loop
knows the pages that come next, and has their words fetched meanwhile, as that over recorded fills does; it
finds the word of a page without a miss, which a tree does not, so the trees have no such row and are
compared as they are. ``both ways``: a second tree leads from a descriptor back to its page, as ``side`` does
in ``reverse_table``, and what goes from one tree goes from the other; one tree alone does half of that work.

Usage: python benchmarks/bench_reverse.py [--peer PATH] [--repeat N] [--order random,runs] [LEAVES...]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bare_machine import bare_machine, map_pages, record_pages, unlink_words, unmap_in_turn, unmap_pages

from shadowmmu.arch.stage2 import VALID
from shadowmmu.compiled import U64, Counts, Word, Words, kernel
from shadowmmu.designs.containers.maple import (
    maple_bytes,
    maple_create,
    maple_erase,
    maple_find,
    maple_store,
)
from shadowmmu.designs.containers.pool import pool_reset
from shadowmmu.designs.reverse_nodes import RT_BUMP, RT_BYTES, RT_GONE
from shadowmmu.designs.reverse_table import reverse_forget_mmu
from shadowmmu.machine.counters import COUNTERS
from shadowmmu.machine.state import State
from shadowmmu.pgtable.ahead import AHEAD

ONE = U64(1)
ZERO = U64(0)
SINGLES = 600_000
MIDDLES = 200
GIGA = 1 << 18
SWEPT = 3
"""Which gigabyte the notifiers in order go over."""
Figures = dict[str, float]


class Keys:
    """What every structure is given: pages in the order of insertion, and what is removed."""

    def __init__(self, leaves: int, order: str, sparse: bool = False) -> None:
        """``leaves`` pages at half density; ``sparse``: one in each 2M instead."""
        rng = np.random.default_rng(7)
        if sparse:
            pages = np.arange(leaves) * 512 + rng.integers(0, 512, leaves)
            self.inserted = rng.permutation(pages).astype(np.uint64)
            self.singles = self.swept = self.middles = self.bigs = self.inserted[:0]
            self.nested = np.argsort(np.argsort(self.inserted)).astype(np.uint64)
            return
        runs = leaves // 48 + 64
        length, hole = rng.geometric(1 / 64, runs), rng.geometric(1 / 64, runs)
        runs = int(np.searchsorted(np.cumsum(length), leaves)) + 1
        length, hole = length[:runs], hole[:runs]
        length[-1] -= length.sum() - leaves
        starts = np.cumsum(length + hole) - length
        if order == "random":
            shuffled = np.arange(runs)
        else:
            shuffled = rng.permutation(runs)
        length, starts = length[shuffled], starts[shuffled]
        inside = np.arange(leaves) - np.repeat(np.cumsum(length) - length, length)
        pages = np.repeat(starts, length) + inside
        ranks = np.repeat(np.cumsum(length) - length, length) + inside
        if order == "random":
            mixed = rng.permutation(leaves)
            pages, ranks = pages[mixed], ranks[mixed]
        self.inserted, self.nested = pages.astype(np.uint64), ranks.astype(np.uint64)
        self.singles = rng.choice(self.inserted, min(SINGLES, leaves // 8), replace=False)
        swept = self.inserted[self.inserted // U64(GIGA) == SWEPT]
        self.swept = np.setdiff1d(swept, self.singles)
        blocks = np.unique(rng.choice(self.inserted, 2 * MIDDLES) >> U64(9))[:MIDDLES]
        self.middles = rng.permutation(blocks << U64(9))
        self.bigs = np.array([GIGA] if pages.max() >= 2 * GIGA else [], np.uint64)

    def write(self, path: Path) -> None:
        """The file ``maple_peer`` reads."""
        steps = (self.singles, self.swept, self.middles, self.bigs)
        parts = (self.inserted, self.nested, *steps)
        head = [len(part) for part in (self.inserted, *steps)]
        with path.open("wb") as file:
            np.array(head, np.uint64).tofile(file)
            for part in parts:
                part.tofile(file)


def timed(run: Callable[[], object], operations: int) -> tuple[float, object]:
    """Nanoseconds of CPU time an operation, and what it returned."""
    start = time.thread_time()
    result = run()
    return (time.thread_time() - start) / max(operations, 1) * 1e9, result


def filled(keys: Keys, found: Figures, ahead: int) -> tuple[State, Words]:
    """A machine that maps nested page n to the n-th canonical page, and the words of its leaves."""
    leaves = len(keys.inserted)
    span = int(keys.inserted.max()) + 1
    # While it fills in random order, a block of 512 pages has had small leaves of 120 words together.
    room = span + span // 4 + (1 << 20)
    state = bare_machine(leaves // 512 + leaves // (1 << 18) + 64, room, 1)
    words = np.zeros(leaves, np.uint64)
    map_pages(state, 1, keys.nested, words)
    found["insert ahead" if ahead else "insert"], _ = timed(
        lambda: record_pages(state, 1, keys.inserted, words, ahead), leaves
    )
    assert int(state.rmap[RT_BUMP]) <= room
    return state, words


def steps(keys: Keys) -> list[tuple[str, Words, int, int]]:
    """Removals in turn: name, where each starts, its pages, and how far ahead the loop looks."""
    third = len(keys.singles) // 3
    removals = [
        ("4k", keys.singles[:third], 1, 0),
        ("4k ahead", keys.singles[third : 2 * third], 1, AHEAD),
        ("4k in order", keys.swept[: len(keys.swept) // 2], 1, 0),
        ("4k in order ahead", keys.swept[len(keys.swept) // 2 :], 1, AHEAD),
        ("2m", keys.middles, 512, 0),
        ("1g", keys.bigs, GIGA, 0),
    ]
    return [removal for removal in removals if len(removal[1])]


def measure_reverse(keys: Keys) -> Figures:
    """The product's reverse table on the product's tables; the nested pages are dense."""
    leaves = len(keys.inserted)
    found: Figures = {}
    state, _ = filled(keys, found, 0)
    found["bytes"] = int(state.rmap[RT_BYTES]) / leaves
    found["bytes with side"] = found["bytes"] + 8
    reverse_forget_mmu(state, 1)
    for name, starts, pages, ahead in steps(keys):
        gone = int(state.rmap[RT_GONE])
        found[f"erase_{name}"], _ = timed(
            lambda s=starts, p=pages, a=ahead: unmap_pages(state, s, p, a), len(starts)
        )
        found[f"erase_{name}_met"] = float(int(state.rmap[RT_GONE]) - gone)
    del state
    state, words = filled(keys, found, AHEAD)
    last = keys.singles[len(keys.singles) // 3 * 2 :]
    found["unmap_4k in turn"], removed = timed(lambda: unmap_in_turn(state, last), len(last))
    assert removed == len(last)
    for name, starts, pages, ahead in steps(keys):
        found[f"unmap_{name}"], removed = timed(
            lambda s=starts, p=pages, a=ahead: unmap_pages(state, s, p, a), len(starts)
        )
        assert pages > 1 or removed == found[f"erase_{name}_met"]
    live = words[state.mem[words] & VALID != 0][-SINGLES:]
    found["unlink"], _ = timed(lambda: unlink_words(state, live), len(live))
    return found


@kernel
def maple_insert_all(words: Words, count: Counts, tree: Word, back: Word, keys: Words, values: Words) -> int:
    """Store the value of each page and, unless ``back`` is 0, the page of each value; how many failed."""
    failed = 0
    for i in range(len(keys)):
        if not maple_store(words, count, tree, keys[i], keys[i], values[i] + ONE):
            failed += 1
        if back != ZERO and not maple_store(words, count, back, values[i], values[i], keys[i] + ONE):
            failed += 1
    return failed


@kernel
def maple_erase_all(words: Words, count: Counts, tree: Word, back: Word, keys: Words) -> int:
    """Erase each page, and its value from ``back``; how many were there."""
    met = 0
    for i in range(len(keys)):
        value = maple_erase(words, count, tree, keys[i]).value
        if value != ZERO:
            met += 1
            if back != ZERO:
                maple_erase(words, count, back, value - ONE)
    return met


@kernel
def maple_take_all(words: Words, count: Counts, tree: Word, back: Word, starts: Words, pages: int) -> int:
    """Look at every entry of each range, then erase the range; how many there were."""
    met = 0
    for i in range(len(starts)):
        last = starts[i] + U64(pages) - ONE
        entry = maple_find(words, count, tree, starts[i], last)
        while entry.value != ZERO:
            met += 1
            if back != ZERO:
                maple_erase(words, count, back, entry.value - ONE)
            entry = maple_find(words, count, tree, entry.last + ONE, last)
        maple_store(words, count, tree, starts[i], last, ZERO)
    return met


def measure_maple(keys: Keys, both: bool) -> Figures:
    """Our maple tree, compiled; ``both``: with a second one that leads back."""
    leaves = len(keys.inserted)
    words = np.empty(leaves * (16 if both else 8) + (1 << 20), np.uint64)
    words.fill(0)
    pool_reset(words)
    count = np.zeros(COUNTERS, np.int64)
    tree = U64(maple_create(words, U64(16)))
    back = U64(maple_create(words, U64(16))) if both else ZERO
    found: Figures = {}
    found["insert"], failed = timed(
        lambda: maple_insert_all(words, count, tree, back, keys.inserted, keys.nested), leaves
    )
    assert failed == 0
    found["bytes"] = (int(maple_bytes(words, tree)) + both * int(maple_bytes(words, back))) / leaves
    for name, starts in (("4k", keys.singles), ("4k in order", keys.swept)):
        found[f"erase_{name}"], met = timed(
            lambda s=starts: maple_erase_all(words, count, tree, back, s), len(starts)
        )
        found[f"erase_{name}_met"] = float(str(met))
    for name, starts, pages in (("2m", keys.middles, 512), ("1g", keys.bigs, GIGA)):
        found[f"erase_{name}"], met = timed(
            lambda s=starts, p=pages: maple_take_all(words, count, tree, back, s, p), len(starts)
        )
        found[f"erase_{name}_met"] = float(str(met))
    return found


def measure_peer(peer: str, path: Path, both: bool) -> Figures:
    """The kernel's maple tree in a process of its own; ``both``: with a second one that leads back."""
    command = [peer, str(path), *(["both"] if both else [])]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in answer.splitlines())}


def compare(leaves: int, order: str, peer: str | None, repeat: int, sparse: bool = False) -> None:
    """Print medians, and how many times dearer the trees are."""
    keys = Keys(leaves, order, sparse)
    measures: dict[str, Callable[[], Figures]] = {"reverse_table": lambda: measure_reverse(keys)}
    if leaves <= 1 << 24:
        measures["our maple"] = lambda: measure_maple(keys, False)
        measures["ours both ways"] = lambda: measure_maple(keys, True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys"
        if peer:
            keys.write(path)
            measures["C maple"] = lambda: measure_peer(peer, path, False)
            measures["C both ways"] = lambda: measure_peer(peer, path, True)
        runs: dict[str, list[Figures]] = {name: [] for name in measures}
        for _ in range(repeat):
            for name, measure in measures.items():
                runs[name].append(measure())
    medians = {
        name: {what: statistics.median(run[what] for run in found) for what in found[0]}
        for name, found in runs.items()
    }
    ours = medians["reverse_table"]
    kind = "one page a 2M" if sparse else f"half density, {order} order"
    print(f"\n{leaves:,} leaves, {kind}, medians of {repeat}, load {os.getloadavg()[0]:.1f}")
    for what in ours:
        plain = what.removesuffix(" ahead")  # the trees do not look ahead
        cells = [f"reverse_table {ours[what]:,.1f}"]
        for name, found in medians.items():
            if name != "reverse_table" and plain in found and ours[what] and "met" not in what:
                cells.append(f"{name} {found[plain]:,.1f} x{found[plain] / ours[what]:.2f}")
        print(f"  {what:16} " + "  ".join(cells), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("leaves", nargs="*", type=int, default=[1 << 20, 1 << 24])
    parser.add_argument("--peer")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--order", default="random,runs")
    arguments = parser.parse_args()
    compare(1 << 12, "random", None, 1)  # compiles
    for leaves in arguments.leaves:
        for order in arguments.order.split(","):
            compare(leaves, order, arguments.peer, arguments.repeat)
    compare(1 << 18, "random", arguments.peer, 1, sparse=True)


if __name__ == "__main__":
    main()
