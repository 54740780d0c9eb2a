"""A mixed trace over the product's pieces, compiled and in C, on one thread and on two.

60 % faults of one 4K page (walk, map, record; nothing to do if the page is there already), 20 % walks, 15
% notifiers of one page, 5 % TLBIs of one page (walk, unlink, clear), over 2^20 canonical pages and four
shadow MMUs; places as in a working set (Zipf over blocks of 64 pages). The C loop (``replay.c``) does the
same on its own copy of the machine, step by step and counter by counter; all arrays are compared
afterwards.

How fast the machine is at the time is told by a plain arithmetic loop; how well two threads run beside each
other likewise, over two machines that share nothing. Medians; one thread in CPU time, two in elapsed time.

Usage: python benchmarks/bench_replay.py [EVENTS]
"""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bare_machine import DATA, PAGE_SHIFT, PROT, bare_machine

from shadowmmu.arch.stage2 import S2AP_R, S2AP_W, VALID, XN
from shadowmmu.compiled import I64, U64, Counts, Word, Words, inline, kernel
from shadowmmu.designs import reverse_entries, reverse_nodes
from shadowmmu.designs.reverse_ahead import reverse_ahead, reverse_near
from shadowmmu.designs.reverse_entries import SIDE_PAGE
from shadowmmu.designs.reverse_leaves import LARGEST
from shadowmmu.designs.reverse_table import reverse_record, reverse_unlink, reverse_unmap
from shadowmmu.machine import counters, frames
from shadowmmu.machine import state as machine_state
from shadowmmu.machine.state import State
from shadowmmu.pgtable import context
from shadowmmu.pgtable.ahead import AHEAD, entry_ahead
from shadowmmu.pgtable.attributes import find_entry, leaf_descriptor
from shadowmmu.pgtable.map import stage2_map
from shadowmmu.pgtable.tlb import flush_range
from shadowmmu.pgtable.unmap import clear_leaf

LAYOUT = """
M_ROOT M_LEAVES M_BROKEN M_STAMP M_GENERATION M_RECORDED R_FREE_TOP R_NEXT_FRAME R_SHADOWS
R_PAGE_SHIFT R_STRIDE R_FWB R_TLBIRANGE R_LOG_TLB R_GHOST_ON M_START RT_TOP_SHIFT RT_TOP_ENTRIES
RT_BLOCKS RT_BROKEN
R_FAIL_ALLOCATION REFS OWNER PARENT BASE KIND_TABLE RT_BUMP RT_ROOT RT_STAMP RT_FREE_LEAF RT_FREE_NODE
RT_FREE_CHAIN RT_FREE_SMALL RT_BYTES RT_GONE RT_CHAINED RT_STALE RT_FLUSH_MMU RT_FLUSH_START
RT_FLUSH_END DESCRIPTORS_READ DESCRIPTORS_WRITTEN TABLES_ALLOCATED TABLES_FREED TLBI_IPA TLBI_STAGE1
TLBI_RANGE TLBI_RANGE_SHADOW DSBS LEAVES_REMOVED LEAVES_MAPPED NODES_ALLOCATED NODES_FREED NODES_VISITED
LOOKUPS MMUS_VISITED
"""
"""What ``replay.c`` is told of the product's arrays."""
REPETITIONS = 5
PAGES = 1 << 20
MMUS = 4
ZERO = U64(0)
ONE = U64(1)
KIND = U64(255)
MMU_SHIFT = U64(8)
PERMISSIONS = U64(int(S2AP_R) | int(S2AP_W) | int(XN))


@inline
def look_ahead(s: State, events: Words, i: int) -> None:
    """Start fetching what later events will meet, as the loop over recorded fills does."""
    if i + 2 * AHEAD >= len(events):
        return
    if I64(events[i + 2 * AHEAD, 0] & KIND) == 2:
        reverse_ahead(s, events[i + 2 * AHEAD, 2])
    near = events[i + AHEAD]
    if I64(near[0] & KIND) == 2:
        reverse_near(s, near[2])
        return
    entry_ahead(s, I64(near[0] >> MMU_SHIFT), near[1])
    if I64(near[0] & KIND) == 0:
        reverse_ahead(s, near[2])


@kernel
def replay(s: State, events: Words, did: Counts, ahead: bool) -> None:
    """Run every event; ``did`` counts faults that mapped, walks that hit, leaves unmapped, TLBIs that hit."""
    for i in range(len(events)):
        if ahead:
            look_ahead(s, events, i)
        kind = I64(events[i, 0] & KIND)
        mmu = I64(events[i, 0] >> MMU_SHIFT)
        if kind == 2:
            did[2] += reverse_unmap(s, events[i, 2], events[i, 2] + (ONE << PAGE_SHIFT), False)
            continue
        word, level = find_entry(s, mmu, events[i, 1])
        there = level == 3 and s.mem[word] & VALID != ZERO
        if kind == 1:
            did[1] += 1 if s.mem[word] & VALID != ZERO else 0
        elif kind == 0:
            if there:
                if s.side[word] >> SIDE_PAGE == events[i, 2] >> PAGE_SHIFT:
                    continue
                reverse_unlink(s, word)
            mapped = stage2_map(s, mmu, events[i, 1], I64(3), DATA + events[i, 2], PROT)
            if mapped != ZERO:
                reverse_record(s, mmu, events[i, 2], I64(3), mapped)
                did[0] += 1
        elif there:
            reverse_unlink(s, word)
            clear_leaf(s, word)
            flush_range(s, mmu, events[i, 1], ONE << PAGE_SHIFT)
            did[3] += 1


@kernel
def descriptor_bits(s: State) -> Word:
    """What a leaf holds beside its address."""
    return leaf_descriptor(s, ZERO, I64(3), PROT)


@kernel
def arithmetic(rounds: int) -> Word:
    """A loop that reads no memory."""
    x = U64(88172645463325252)
    for _ in range(rounds):
        x ^= x << U64(13)
        x ^= x >> U64(7)
        x ^= x << U64(17)
    return x


def trace(number: int, seed: int) -> Words:
    """The events: kind and MMU, nested address, canonical address."""
    rng = np.random.default_rng(seed)
    mmu = rng.integers(1, MMUS + 1, number).astype(np.uint64)
    nested = (rng.zipf(1.2, number) * 64 % PAGES + rng.integers(0, 64, number)) % PAGES
    canonical = (nested.astype(np.uint64) * U64(2654435761) + mmu) % U64(PAGES)
    events = np.empty((number, 3), np.uint64)
    events[:, 0] = rng.choice(4, number, p=(0.6, 0.2, 0.15, 0.05)).astype(np.uint64) | (mmu << MMU_SHIFT)
    events[:, 1] = nested.astype(np.uint64) << PAGE_SHIFT
    events[:, 2] = canonical << PAGE_SHIFT
    return events


def new_machine() -> State:
    """An empty machine with room for the trace."""
    return bare_machine(MMUS * (PAGES // 512 + 8), 16 * PAGES, MMUS)


class CMachine(ctypes.Structure):
    """The arrays, as ``replay.c`` takes them."""

    _fields_ = [
        (name, ctypes.c_void_p) for name in ("mem", "frames", "free", "regs", "mmus", "rmap", "side", "count")
    ]


Loop = Callable[[State, Words, Counts, bool], object]


def build_c(state: State, *, fixed: bool) -> Loop:
    """Compile ``replay.c`` with the layout of the arrays; ``fixed``: granule and switches are constants."""
    values: dict[str, Any] = {}
    for module in (counters, reverse_nodes, reverse_entries, frames, machine_state, context):
        values |= {name: value for name, value in vars(module).items() if name.isupper()}
    given = {name: int(values[name]) for name in LAYOUT.split()}
    given |= {"COLUMNS": context.MMU_COLUMNS, "DATA": int(DATA), "PERMISSIONS": int(PERMISSIONS)}
    given |= {"LEAF_BITS": int(descriptor_bits(state)), "AHEAD": AHEAD, "LARGEST": int(LARGEST)}
    flags = [f"-D{name}={value}{'ULL' if value > 1 << 31 else ''}" for name, value in given.items()]
    if fixed:
        flags.append("-DFIXED")
    target = Path(tempfile.mkdtemp()) / "replay.so"
    source = Path(__file__).with_name("replay.c")
    command = ["gcc", "-O3", "-march=native", "-shared", "-fPIC", *flags, "-o", target, source]
    subprocess.run(command, check=True)
    function = ctypes.CDLL(str(target)).replay

    def run(machine: State, events: Words, did: Counts, ahead: bool) -> None:
        arrays = CMachine(*(getattr(machine, name).ctypes.data for name, _ in CMachine._fields_))
        function(
            ctypes.byref(arrays),
            ctypes.c_void_p(events.ctypes.data),
            ctypes.c_int64(len(events)),
            ctypes.c_void_p(did.ctypes.data),
            ctypes.c_int64(ahead),
        )

    return run


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time of this thread."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def elapsed(runs: list[Callable[[], object]]) -> float:
    """Elapsed time of all, each in a thread of its own."""
    threads = [threading.Thread(target=run) for run in runs]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def same(one: State, other: State) -> None:
    """Assert that two machines are equal, word by word."""
    for name in State._fields:
        left, right = getattr(one, name), getattr(other, name)
        assert np.array_equal(left, right), f"{name} at {np.flatnonzero(left != right)[:4]}"


def one_thread(number: int, loops: dict[str, Loop], ahead: bool) -> None:
    """Compiled against both programs in C, taking turns; the arrays must agree."""
    events = trace(number, 1)
    rounds = 4 * number
    plain: list[float] = []
    took: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(REPETITIONS):
        plain.append(cpu_seconds(lambda: arithmetic(rounds)) / rounds)
        machines = []
        for name, loop in loops.items():
            machine, did = new_machine(), np.zeros(8, np.int64)
            seconds = cpu_seconds(lambda m=machine, d=did, run=loop: run(m, events, d, ahead))
            took[name].append(seconds / number * 1e9)
            machines.append((machine, did.tolist()))
        for machine, counted in machines[1:]:
            assert counted == machines[0][1]
            same(machines[0][0], machine)
    print(
        f"\nlooking {AHEAD} events ahead" if ahead else f"mapped, hit, unmapped, invalidated: {counted[:4]}"
    )
    print(f"  arithmetic {statistics.median(plain) * 1e9:.2f} ns a round")
    mine = took["compiled"]
    for name, theirs in took.items():
        ratio = statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
        median = statistics.median(theirs)
        print(
            f"  {name:24} {median:5.1f} ns an event, {1e3 / median:5.1f} M/s; compiled is {ratio:.2f} as fast"
        )


def two_threads(number: int) -> None:
    """Scaling of the replay beside that of the arithmetic loop."""
    traces = [trace(number, seed) for seed in (1, 2)]
    rounds = 30 * number
    quotients, scalings, plains = [], [], []
    for _ in range(REPETITIONS):

        def job(seed: int) -> Callable[[], object]:
            machine, did = new_machine(), np.zeros(64, np.int64)
            return lambda: replay(machine, traces[seed], did, True)

        plain = 2 * elapsed([lambda: arithmetic(rounds)]) / elapsed([lambda: arithmetic(rounds)] * 2)
        scaling = 2 * elapsed([job(0)]) / elapsed([job(0), job(1)])
        quotients.append(scaling / plain)
        scalings.append(scaling)
        plains.append(plain)
    print(
        f"two threads: replay {statistics.median(scalings):.2f}x,"
        f" arithmetic {statistics.median(plains):.2f}x,"
        f" quotient {statistics.median(quotients):.2f}"
    )


def main() -> None:
    """Print the figures."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 4_000_000
    state = new_machine()
    loops: dict[str, Loop] = {
        "compiled": replay,
        "C": build_c(state, fixed=False),
        "C, all constant": build_c(state, fixed=True),
    }
    replay(state, trace(1000, 0), np.zeros(8, np.int64), True)
    arithmetic(1)
    print(f"{number:,} events, medians of {REPETITIONS}, load {os.getloadavg()[0]:.1f}")
    one_thread(number, loops, False)
    one_thread(number, loops, True)
    two_threads(number)


if __name__ == "__main__":
    main()
