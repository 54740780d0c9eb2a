"""One run under one design: judged, counted, priced, timed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from shadowmmu.compiled import Counts
from shadowmmu.designs.dispatch import design_footprint
from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.events.schema import (
    COLLAPSE,
    DONTNEED,
    HOLD,
    LOG,
    MEMSLOT,
    MMAP,
    MPROTECT,
    MUNMAP,
    PAGEOUT,
    PUNCH,
    RACE,
    SLOT,
    TLBI,
    Scenario,
)
from shadowmmu.lab.costs import CostModel
from shadowmmu.lab.results import Agreement, DesignResult, RunKind, Verdict
from shadowmmu.machine.counters import counter_names
from shadowmmu.machine.state import State, empty_counters
from shadowmmu.pgtable.context import M_LEAVES
from shadowmmu.verify.judge import Judge, judge_points

UNMAPPING = (DONTNEED, MUNMAP, MMAP, COLLAPSE, MPROTECT, PUNCH, PAGEOUT, TLBI, LOG, SLOT, MEMSLOT, HOLD, RACE)
"""Kinds of event that may unmap or write-protect shadow leaves."""

MOST_TIMED = 16_000_000
"""Leaves of a machine that is copied to be timed; above, memory is worth more than a wall time."""


@dataclass
class Peaks:
    """The most seen at any look."""

    leaves: int = 0
    record_bytes: int = 0

    def sample(self, state: State) -> None:
        """Look at the machine now."""
        self.leaves = max(self.leaves, int(state.mmus[1:, M_LEAVES].sum()))
        self.record_bytes = max(self.record_bytes, int(design_footprint(state)))


@dataclass(frozen=True)
class Measured:
    """A judged run: the executor at its end, what the judge found, the peaks, the time.

    ``nanoseconds`` is the wall time of the compiled loop from the first notifier (or invalidation) to the
    end, refaults included, on a copy of the machine without judge, ghost record or log;
    ``notifier_nanoseconds`` is the part of it spent in the events that unmap. Both are 0 where the machine
    has more than ``MOST_TIMED`` leaves: it is not copied.
    """

    executor: Executor
    judge: Judge
    judged: bool
    peaks: Peaks = field(default_factory=Peaks)
    nanoseconds: float = 0.0
    notifier_nanoseconds: float = 0.0
    before: Counts = field(default_factory=empty_counters)
    """The counters when the first notifier (or invalidation) was about to come."""


def first_unmap(scenario: Scenario) -> int:
    """Index of the first event that may unmap something; 0 if there is none, so that all is timed."""
    at = np.flatnonzero(np.isin(scenario.events["kind"], UNMAPPING))
    return int(at[0]) if at.size else 0


def time_rest(executor: Executor) -> tuple[float, float]:
    """Nanoseconds of the compiled loop to the end, and the part of it in events that unmap."""
    kinds = executor.scenario.events["kind"]
    unmapping = 0.0
    for event in np.flatnonzero(np.isin(kinds, UNMAPPING)):
        if event >= executor.position:
            executor.run(int(event))
            before = executor.seconds
            executor.run(int(event) + 1)
            unmapping += executor.seconds - before
    executor.run()
    return executor.seconds * 1e9, unmapping * 1e9


def run_judged(scenario: Scenario, design: str, machine: Machine, mode: str) -> Measured:
    """Execute the whole scenario, looking after the events ``mode`` names; time it from the first unmap."""
    executor = Executor(scenario, design, replace(machine, judged=True))
    judge = Judge()
    peaks = Peaks()
    points = set(judge_points(executor, mode))
    in_gap = judge.look_inside if mode == "always" else None
    start = first_unmap(scenario)
    whole, unmapping = 0.0, 0.0
    before = empty_counters()
    for event in sorted({*points, start}):
        executor.run(event)
        peaks.sample(executor.state)
        if event == start:
            before = executor.state.count.copy()
            if peaks.leaves <= MOST_TIMED:
                whole, unmapping = time_rest(executor.fork())
        executor.run(event + 1, in_gap=in_gap)
        if event in points:
            judge.look(executor, event)
    executor.run()
    peaks.sample(executor.state)
    return Measured(executor, judge, mode != "never", peaks, whole, unmapping, before)


def verdict_of(measured: Measured) -> Verdict:
    """What the judge's findings come to."""
    if not measured.judged:
        return Verdict(False, "not judged", judged=False)
    worst = measured.judge.worst
    if worst is None:
        looks = measured.judge.looks
        return Verdict(True, f"no rule broken in {looks} looks")
    return Verdict(False, f"{worst.summary} (event {worst.event})", worst.lines)


def named(counts: Counts) -> dict[str, int]:
    """Counters by public name."""
    return {name: int(value) for name, value in zip(counter_names(), counts, strict=True)}


def counters_of(measured: Measured) -> dict[str, int]:
    """Every counter of the whole run by public name, and the sums a report wants."""
    values = named(measured.executor.state.count)
    values["tlbis"] = values["tlbi_range"] + values["tlbi_ipa"] + values["tlbi_vmid"]
    values["reverse_map_bytes"] = measured.peaks.record_bytes
    values["notifier_wall_ns"] = round(measured.notifier_nanoseconds)
    return values


def measure(
    measured: Measured, costs: CostModel, *, kind: RunKind, agreement: Agreement | None = None
) -> DesignResult:
    """The result of a judged run: verdict, counters, price, time."""
    executor = measured.executor
    counters = counters_of(measured)
    since = named(executor.state.count - measured.before)
    return DesignResult(
        run=executor.scenario.name,
        kind=kind,
        design=executor.design,
        ipa_limit_bits=executor.machine.ipa_limit_bits,
        shadow_mmus=len(executor.state.mmus) - 1,
        leaves=measured.peaks.leaves,
        verdict=verdict_of(measured),
        counters=counters,
        modelled_ns=costs.modelled_ns(since),
        measured_ns=measured.nanoseconds,
        agreement=agreement,
        claims_safety=CATALOGUE[executor.design].claims_safety,
    )
