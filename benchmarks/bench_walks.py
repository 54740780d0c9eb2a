"""Compiled batch walks against a C walker with the same parameters and checks, on the same memory.

Ratios within one run are the result: Numba to C, and a nested walk (24 reads, fewer where neighbours share
their way) to a single one (4 reads). Times are the thread's own: other work on the machine disturbs less.
Usage: python benchmarks/bench_walks.py [LEAVES...]
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shadowmmu.arch.batch import BLOCK, SCRATCH, stage2_batch, translate_batch
from shadowmmu.arch.context import EVERYTHING, context
from shadowmmu.arch.controls import stage1_controls, stage2_controls
from shadowmmu.arch.fault import READ
from shadowmmu.arch.operation import AT_S12E1R, EL10
from shadowmmu.arch.registers import HCR_EL2, SCTLR_EL1, TCR_EL1, VTCR_EL2

REPETITIONS = 9
QUERIES = 1 << 20
RUN = 64
"""Consecutive pages of a run in clustered order."""
PAGE = 4096
PER_TABLE = 512
TABLE = 3
LEAF1 = 1 << 10 | 3 << 8 | 1 << 6 | 3  # accessed, inner shareable, EL0 may read and write
LEAF2 = 1 << 10 | 3 << 8 | 3 << 6 | 0xF << 2 | 3  # accessed, inner shareable, readable, writable, Write-Back
DATA = 1 << 40
"""Where the leaves lead; nothing reads there."""


class Tables(NamedTuple):
    """Both stages in one memory."""

    mem: np.ndarray
    row: np.ndarray
    leaves: int


def levels(pages: int) -> list[int]:
    """How many tables each level needs, from level 3 up to the one of level 0."""
    counts = []
    while len(counts) < 4:
        pages = -(-pages // PER_TABLE)
        counts.append(pages)
    return counts


def fill(mem: np.ndarray, frames: np.ndarray, leaves: np.ndarray, addresses: np.ndarray) -> int:
    """Write tables of four levels for pages 0.. into ``frames``; entries name ``addresses`` of the tables.

    Returns the address of the start table.
    """
    entries, at = leaves, 0
    words = mem.reshape(-1, PER_TABLE)
    for count in levels(leaves.size):
        padded = np.zeros(count * PER_TABLE, np.uint64)
        padded[: entries.size] = entries
        words[frames[at : at + count].astype(np.int64)] = padded.reshape(count, PER_TABLE)
        entries = addresses[at : at + count] | np.uint64(TABLE)
        at += count
    return int(addresses[at - 1])


def in_runs(pages: int, rng: np.random.Generator) -> np.ndarray:
    """The numbers 0.. of ``pages`` pages, runs of them in random order."""
    runs = rng.permutation(pages // RUN)
    return (runs[:, None] * RUN + np.arange(RUN)).ravel().astype(np.uint64)


def built(leaves: int, rng: np.random.Generator) -> Tables:
    """Stage 1 over ``leaves`` pages, its tables at IPAs behind them, and stage 2 over it all.

    Stage 1 maps runs of pages to runs: neighbours are neighbours in both spaces.
    """
    first = sum(levels(leaves))
    second = sum(levels(leaves + first))
    mem = np.zeros((first + second) * PER_TABLE, np.uint64)
    frames = rng.permutation(first + second).astype(np.uint64)
    shift = np.uint64(12)
    intermediate = np.arange(leaves, leaves + first, dtype=np.uint64)
    leaf1 = in_runs(leaves, rng) << shift | np.uint64(LEAF1)
    ttbr = fill(mem, frames[:first], leaf1, intermediate << shift)
    data = rng.permutation(leaves).astype(np.uint64) + np.uint64(DATA // PAGE)
    leaf2 = np.concatenate([data, frames[:first]]) << shift | np.uint64(LEAF2)
    vttbr = fill(mem, frames[first:], leaf2, frames[first:] << shift)
    row = context(
        TTBR0_EL1=ttbr,
        TCR_EL1=TCR_EL1.encode(T0SZ=16, T1SZ=16, TG1=2, IPS=5),
        SCTLR_EL1=SCTLR_EL1.encode(M=1, C=1),
        MAIR_EL1=0xFF,
        VTTBR_EL2=vttbr,
        VTCR_EL2=VTCR_EL2.encode(T0SZ=16, SL0=2, PS=5, RES1=1),
        HCR_EL2=HCR_EL2.encode(VM=1),
    )
    return Tables(mem, row, leaves)


class Regime(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("page_shift", "stride", "start_level", "ia_bits", "oa_bits", "wide", "block_level")
    ]


def structure(*names: str) -> type[ctypes.Structure]:
    """A struct of walks.c: all int64, but for ``r`` and ``root``."""
    kinds = {"r": Regime, "root": ctypes.c_uint64}
    fields = [(name, kinds.get(name, ctypes.c_int64)) for name in names]
    return type("Parameters", (ctypes.Structure,), {"_fields_": fields})


STAGE2 = ("enabled", "refused", "r", "root", "ha", "hd", "xnx", "fwb", "ptw", "big_endian")
STAGE1 = (
    "enabled",
    "refused",
    "r",
    "root",
    "has_el0",
    "upper",
    "tbi",
    "tables_count",
    "ha",
    "hd",
    "wxn",
    "epan",
)
Stage2 = structure(*STAGE2)
Stage1 = structure(*STAGE1, "big_endian")
Access = structure("el", "kind", "pan", "both_stages", "pa_bits")


def decoded(kind: type[ctypes.Structure], controls: tuple) -> ctypes.Structure:
    """What ``arch`` decoded from the registers, for C."""
    values = {}
    for name, *_ in kind._fields_:
        value = getattr(controls, "regime" if name == "r" else name)
        values[name] = Regime(*map(int, value)) if name == "r" else int(value)
    return kind(**values)


def library(folder: str) -> ctypes.CDLL:
    """walks.c, compiled."""
    built = Path(folder) / "walks.so"
    source = Path(__file__).with_name("walks.c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(built), str(source)], check=True)
    return ctypes.CDLL(str(built))


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def addresses(tables: Tables, clustered: bool, rng: np.random.Generator) -> np.ndarray:
    """``QUERIES`` addresses inside the tables' range, one by one or in runs."""
    if clustered:
        runs = rng.integers(0, tables.leaves // RUN, QUERIES // RUN)
        pages = (runs[:, None] * RUN + np.arange(RUN)).ravel()
    else:
        pages = rng.integers(0, tables.leaves, QUERIES)
    return (pages.astype(np.uint64) << np.uint64(12)) + np.uint64(8)


def contenders(
    tables: Tables, queries: np.ndarray, c: ctypes.CDLL
) -> dict[str, tuple[Callable[[], None], np.ndarray]]:
    """The four loops of one measurement, each with the array it fills."""
    mem, row, machine = tables.mem, tables.row, EVERYTHING
    outs = {name: np.zeros(queries.size, np.uint64) for name in ("s2 numba", "s2 C", "n numba", "n C")}
    scratch = np.zeros((SCRATCH, BLOCK), np.uint64)
    second = decoded(Stage2, stage2_controls(row, machine, EL10))
    halves = (Stage1 * 2)(
        *(decoded(Stage1, stage1_controls(row, machine, EL10, half)) for half in (False, True))
    )
    access = Access(el=1, kind=READ, pan=0, both_stages=1, pa_bits=machine.pa_bits)
    memory = (pointer(mem), ctypes.c_uint64(mem.size))
    count = ctypes.c_size_t(queries.size)
    ask = (pointer(queries), count)
    by_reference = ctypes.byref

    def c_single() -> None:
        c.stage2_many(*memory, by_reference(second), ctypes.c_int64(READ), *ask, pointer(outs["s2 C"]))

    def c_nested() -> None:
        c.translate_many(
            *memory, halves, by_reference(second), by_reference(access), *ask, pointer(outs["n C"])
        )

    loops = {
        "s2 numba": lambda: stage2_batch(mem, row, machine, READ, queries, outs["s2 numba"]),
        "s2 C": c_single,
        "n numba": lambda: translate_batch(mem, row, machine, AT_S12E1R, queries, scratch, outs["n numba"]),
        "n C": c_nested,
    }
    return {name: (loop, outs[name]) for name, loop in loops.items()}


def measured(loops: dict[str, tuple[Callable[[], None], np.ndarray]]) -> dict[str, float]:
    """Nanoseconds of one walk: medians of ``REPETITIONS``, the contenders taking turns."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    for repetition in range(REPETITIONS + 1):
        for name, (loop, out) in loops.items():
            start = time.thread_time()
            loop()
            if repetition:  # the first is for compiling and for touching memory
                times[name].append((time.thread_time() - start) / out.size)
    for one, other in (("s2 numba", "s2 C"), ("n numba", "n C")):
        assert np.array_equal(loops[one][1], loops[other][1]), f"{one} and {other} differ"
        assert not np.any(loops[one][1] >> np.uint64(63)), f"{one}: faults"
    return {name: statistics.median(values) * 1e9 for name, values in times.items()}


def main() -> None:
    """Print the table."""
    sizes = [int(size) for size in sys.argv[1:]] or [1 << 20, 1 << 24]
    print(f"{QUERIES:,} reads a repetition, medians of {REPETITIONS}; ns a walk")
    heads = ("leaves", "order", "single", "C", "ratio", "nested", "C", "ratio", "nested : single")
    print("{:>10} {:>10} {:>8} {:>8} {:>6} {:>8} {:>8} {:>6} {:>16}".format(*heads))
    with tempfile.TemporaryDirectory() as folder:
        c = library(folder)
        for leaves in sizes:
            rng = np.random.default_rng(7)
            tables = built(leaves, rng)
            for order in ("random", "clustered"):
                queries = addresses(tables, order == "clustered", rng)
                ns = measured(contenders(tables, queries, c))
                single, s_c, nested, n_c = ns.values()
                print(
                    f"{leaves:10,} {order:>10} {single:8.1f} {s_c:8.1f} {single / s_c:6.2f}"
                    f" {nested:8.1f} {n_c:8.1f} {nested / n_c:6.2f} {nested / single:16.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
