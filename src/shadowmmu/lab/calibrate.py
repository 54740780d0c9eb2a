"""Prices fitted from the recorded cost runs: what the real kernel took, against what the model did.

Each recorded run is replayed under ``sweep``, which is the recorded kernel's way, so the model's counters say
how much work each step was; the run's own clock counted instructions (icount). Prices are the slopes of
least-squares lines: of notifiers by chunks and by cleared leaves, of touches by refaults.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.errors import InputError
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.events.schema import DONTNEED, TOUCH
from shadowmmu.formats.answer import Answer
from shadowmmu.formats.runs import KernelRun, bundled_runs
from shadowmmu.lab.costs import CostModel, load_cost_model
from shadowmmu.machine.counters import CHUNKS_SHADOW, LEAVES_REMOVED, REFAULTS_NOTIFIER

GROUP: Final = "cost/base4k-"
TOLERANCE: Final = 0.05
"""How far a price of the model may be from its fit."""


@dataclass(frozen=True)
class Observed:
    """One step of a recorded run: its instructions, and the work that the model did in it."""

    run: str
    kind: int
    ns: int
    chunks: int
    leaves: int
    refaults: int
    accesses: int


@dataclass(frozen=True)
class Fitted:
    """One price: the fit, the model's number, how they differ, and the largest residual of the fit."""

    name: str
    fitted_ns: float
    model_ns: float
    observations: int
    worst_residual: float

    @property
    def difference(self) -> float:
        """Of the model's number from the fit, relative."""
        return self.model_ns / self.fitted_ns - 1

    @property
    def agrees(self) -> bool:
        """Whether it is within ``TOLERANCE``."""
        return abs(self.difference) <= TOLERANCE

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "difference": self.difference, "agrees": self.agrees}


def cost_runs() -> list[KernelRun]:
    """The bundled cost runs over 4K leaves that were made under icount.

    The prices are those of 4K leaves; a 2M leaf, cleared or filled, costs something else.
    """
    return [run for run in bundled_runs() if run.name.startswith(GROUP) and run.icount]


def recorded_times(answer: Answer) -> list[int]:
    """Instructions of each notifier and each touch of a run, in order."""
    times = []
    for step in answer.steps:
        if step.touch is not None:
            times.append(step.touch.ns)
        times += [record.fields["ns"] for record in step.printed("dontneed")]
    return times


def observe_run(run: KernelRun) -> list[Observed]:
    """Every notifier and touch of a run, timed and counted. Raises InputError where they do not pair up."""
    scenario = parse_scenario(run.scenario_text(), run.name)
    executor = Executor(scenario, "sweep", Machine(ipa_limit_bits=run.ipa_limit_bits, judged=True))
    kinds = scenario.events["kind"].tolist()
    timed = [index for index, kind in enumerate(kinds) if kind in (DONTNEED, TOUCH)]
    times = recorded_times(run.answer())
    if len(times) != len(timed):
        raise InputError(f"{run.name}: read {len(times)} times, expected {len(timed)}")
    found = []
    for index, ns in zip(timed, times, strict=True):
        executor.run(index)
        before = executor.state.count.copy()
        executor.run(index + 1)
        work = executor.state.count - before
        found.append(
            Observed(
                run.name,
                kinds[index],
                ns,
                int(work[CHUNKS_SHADOW]),
                int(work[LEAVES_REMOVED]),
                int(work[REFAULTS_NOTIFIER]),
                int(scenario.events[index]["c"]) if kinds[index] == TOUCH else 0,
            )
        )
    return found


def _line(places: list[int], ns: list[int], relative: bool) -> tuple[float, float]:
    """A straight line by least squares, of relative residuals if asked: its slope, the largest residual.

    The residual is relative to the value. Raises InputError where there are fewer than two places.
    """
    if len(set(places)) < 2:
        raise InputError(f"read {len(set(places))} different amounts of work, expected two or more")
    values = np.array(ns, np.float64)
    weights = 1 / values if relative else np.ones(len(ns))
    slope, constant = np.polyfit(np.array(places, np.float64), values, 1, w=weights)
    residuals = (slope * np.array(places) + constant) / values - 1
    return float(slope), float(np.abs(residuals).max())


def _clearing(notifiers: list[Observed]) -> tuple[list[int], list[int]]:
    """Leaves that notifiers cleared, and what these took beyond the same run's walk of empty tables."""
    leaves, ns = [], []
    for one in notifiers:
        walks = [e.ns for e in notifiers if e.run == one.run and e.chunks == one.chunks and not e.leaves]
        if one.leaves and walks:
            leaves.append(one.leaves)
            ns.append(one.ns - min(walks))
    return leaves, ns


def calibrate(runs: Iterable[KernelRun] | None = None, costs: CostModel | None = None) -> list[Fitted]:
    """Fit the prices of a chunk, a leaf and a refault, each with a constant besides.

    A chunk: notifiers that found nothing, under several IPA limits, by relative residuals. A leaf: what
    notifiers took beyond that, by absolute ones, because the constant is large (a thousand leaves' worth)
    and not quite constant. A refault: touches of what a notifier took. Raises InputError for too few runs.
    """
    chosen = list(cost_runs() if runs is None else runs)
    model = load_cost_model() if costs is None else costs
    seen = [one for run in chosen for one in observe_run(run)]
    notifiers = [one for one in seen if one.kind == DONTNEED]
    empty = [one for one in notifiers if not one.leaves]
    touches = [one for one in seen if one.kind == TOUCH and one.refaults >= one.accesses > 0]
    samples = {
        "chunk": ([one.chunks for one in empty], [one.ns for one in empty], True),
        "leaf": (*_clearing(notifiers), False),
        "refault": ([one.refaults for one in touches], [one.ns for one in touches], True),
    }
    fits = []
    for name, (work, ns, relative) in samples.items():
        slope, worst = _line(work, ns, relative)
        fits.append(Fitted(name, slope, model.prices[name].ns, len(ns), worst))
    return fits
