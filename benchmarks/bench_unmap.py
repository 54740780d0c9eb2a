"""What one 4K notifier and one shadow fault cost in the compiled model, design by design.

Ratios within one run are the result; absolute figures belong to the machine they were taken on.
Usage: python benchmarks/bench_unmap.py [LEAVES]
"""

from __future__ import annotations

import statistics
import sys

import numpy as np

from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.events.schema import DONTNEED, EventTable, Scenario

REPETITIONS = 5
PRECISE_NOTIFIERS = 5000
SWEEPS = 4
DATA = 0x5000_0000
NESTED = 0x8000_0000


def filled(leaves: int) -> Scenario:
    """One shadow MMU with ``leaves`` 4K leaves, all touched."""
    size = leaves * 4096
    text = f"""mem {size + (512 << 20)}
start base 0 0
s2 new 1
code
write {DATA:#x} {size}
map {NESTED:#x} {DATA:#x} {size} 3 rw
touch w {NESTED:#x} 4096 {leaves}
"""
    return parse_scenario(text, f"filled-{leaves}")


def with_notifiers(scenario: Scenario, leaves: int, notifiers: int) -> Scenario:
    """The scenario, then ``notifiers`` single pages taken away at random places."""
    table = EventTable()
    table.append_rows(scenario.events)
    pages = np.random.default_rng(3).choice(leaves, notifiers, replace=False).astype(np.uint64)
    table.extend(DONTNEED, a=np.uint64(DATA) + (pages << np.uint64(12)), b=np.uint64(4096))
    return Scenario(
        name=scenario.name,
        memory_bytes=scenario.memory_bytes,
        events=table.finish(),
        lines=scenario.lines,
    )


def measure(leaves: int, design: str, bits: int) -> tuple[float, float]:
    """Nanoseconds of one shadow fault and of one notifier: medians of ``REPETITIONS``."""
    base = filled(leaves)
    notifiers = SWEEPS if design == "sweep" else PRECISE_NOTIFIERS
    scenario = with_notifiers(base, leaves, notifiers)
    faults, unmaps = [], []
    for _ in range(REPETITIONS):
        machine = Machine(ipa_limit_bits=bits, judged=False, frames=leaves // 128 + 4096)
        executor = Executor(scenario, design, machine)
        executor.run(len(base.events) - 1)
        before = executor.seconds
        executor.run(len(base.events))
        faults.append((executor.seconds - before) / leaves)
        before = executor.seconds
        executor.run()
        unmaps.append((executor.seconds - before) / notifiers)
    return statistics.median(faults) * 1e9, statistics.median(unmaps) * 1e9


def main() -> None:
    """Print the table."""
    leaves = int(sys.argv[1]) if len(sys.argv) > 1 else 1 << 20
    print(f"{leaves:,} leaves of 4K in one shadow MMU, random 4K notifiers, no refaults")
    print(f"{'IPA bits':>8}  {'design':14} {'fault ns':>10} {'notifier ns':>14} {'sweep / this':>14}")
    for bits in (48, 40):
        whole = 0.0
        for design in CATALOGUE:
            fault, unmap = measure(leaves, design, bits)
            whole = unmap if design == "sweep" else whole
            print(f"{bits:8}  {design:14} {fault:10.0f} {unmap:14,.0f} {whole / unmap:14,.0f}")


if __name__ == "__main__":
    main()
