"""One precise 4K unmap against ``sweep`` at 48 bits: descriptors, TLBIs, modelled and measured time.

LEAVES 4K leaves spread over MMUS shadow MMUs of one VM; the host takes one page. ``sweep`` unmaps every MMU
whole (once: it leaves nothing behind, and each of its leaves has to be faulted in again); ``reverse_table``
clears the one leaf; its figures are means over many pages. Modelled time is that of the cost file,
with the refaults and without; measured time is thread CPU time of the compiled model.

Usage: python benchmarks/bench_sweep.py [LEAVES] [MMUS]
"""

from __future__ import annotations

import os
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
from bare_machine import bare_machine, map_pages, record_pages, unmap_pages

from shadowmmu.compiled import I64, U64, kernel
from shadowmmu.designs.interface import UNMAP
from shadowmmu.designs.sweep import sweep_apply
from shadowmmu.lab import costs
from shadowmmu.machine.counters import counter_names
from shadowmmu.machine.state import State

SINGLES = 20_000
PRICES = Path(costs.__file__).with_name("linux-7.3.4-icount.toml")
SHOWN = (
    "descriptors_read",
    "descriptors_written",
    "chunks_shadow",
    "tlbi_range_shadow",
    "leaves_removed",
    "nodes_visited",
)


@kernel
def sweep_all(s: State) -> int:
    """What Linux 7.3.4 does at a notifier."""
    return sweep_apply(s, True, I64(UNMAP))


def report(name: str, before: list[int], state: State, seconds: float, times: int) -> dict[str, float]:
    """Print what was counted and timed for each of ``times`` notifiers."""
    names = counter_names()
    cost = {what: (int(state.count[names.index(what)]) - before[names.index(what)]) / times for what in SHOWN}
    price = {what: entry["ns"] for what, entry in tomllib.loads(PRICES.read_text())["price"].items()}
    cost["modelled ns"] = cost["leaves_removed"] * price["leaf"] + cost["nodes_visited"] * price["node"]
    # A chunk is priced with its TLBI; an invalidation outside of one by itself.
    cost["modelled ns"] += cost["chunks_shadow"] * price["chunk"]
    cost["modelled ns"] += (cost["tlbi_range_shadow"] - cost["chunks_shadow"]) * price["flush"]
    cost["with refaults"] = cost["modelled ns"] + (cost["leaves_removed"] - 1) * price["refault"]
    cost["measured ns"] = seconds / times * 1e9
    print(f"{name:14} " + "  ".join(f"{what} {value:,.1f}" for what, value in cost.items()), flush=True)
    return cost


def main() -> None:
    """Fill, unmap single pages, sweep."""
    leaves = int(sys.argv[1]) if len(sys.argv) > 1 else 1 << 20
    mmus = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    for number in (1 << 12, leaves):  # the first compiles
        each = number // mmus
        state = bare_machine(number // 512 + 64 * mmus, 5 * number // 4 + (1 << 20), mmus, bits=48)
        words = np.zeros(each, np.uint64)
        nested = np.arange(each, dtype=np.uint64)
        for mmu in range(1, mmus + 1):
            map_pages(state, mmu, nested, words)
            record_pages(state, mmu, nested + U64((mmu - 1) * each), words, 0)
        singles = np.random.default_rng(3).choice(number, min(SINGLES, number // 8), replace=False)
        before = state.count.tolist()
        start = time.thread_time()
        removed = unmap_pages(state, singles.astype(np.uint64), 1, 0)
        seconds = time.thread_time() - start
        assert removed == len(singles)
        if number == leaves:
            print(f"{number:,} leaves, {mmus} shadow MMUs, 48 bits, load {os.getloadavg()[0]:.1f}")
            precise = report("reverse_table", before, state, seconds, len(singles))
        before = state.count.tolist()
        start = time.thread_time()
        sweep_all(state)
        seconds = time.thread_time() - start
    whole = report("sweep", before, state, seconds, 1)
    print("sweep : precise  " + "  ".join(f"{w} {whole[w] / precise[w]:,.0f}" for w in whole if precise[w]))
    print(f"refaults: sweep {whole['leaves_removed'] - 1:,.0f}, reverse_table 0")


if __name__ == "__main__":
    main()
