"""One run of the real kernel against the model, in every aspect, and the first difference with both sides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import unified_diff
from typing import Any, Final, Protocol

from shadowmmu.engine.executor import Executor
from shadowmmu.engine.observe import CANONICAL_FILE
from shadowmmu.engine.setup import Machine
from shadowmmu.errors import UndeterminedError
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.formats.answer import Answer, Step
from shadowmmu.lab.agreement import COUNTED, compare_counts, last_histogram, table_lines
from shadowmmu.lab.conform.rows import ASPECTS, INVALIDATIONS, NEEDS_PROBE, Row

SCHEMA: Final = "shadowmmu.conform/1"
CANONICAL_DUMPS: Final = "canonical dumps"
SHADOW_DUMPS: Final = "shadow dumps"
COUNTERS: Final = "counters"
ENDS: Final = "ends"
ASPECT_NAMES: Final = (SHADOW_DUMPS, CANONICAL_DUMPS, *(aspect.name for aspect in ASPECTS), COUNTERS)
CONTEXT: Final = 3
"""Rows that both sides share, shown before the first that differs."""
DIFF_LINES: Final = 16


class Run(Protocol):
    """A run of the real kernel: a recorded one (``formats.runs.KernelRun``) or a live one (``RigRun``)."""

    @property
    def name(self) -> str:
        """How it is called."""

    @property
    def ipa_limit_bits(self) -> int:
        """The host's IPA limit."""

    def scenario_text(self) -> str:
        """The script."""

    def answer(self) -> Answer:
        """What the kernel answered."""


@dataclass(frozen=True)
class Difference:
    """The first place of one aspect where the two sides differ; lines are ready to print."""

    aspect: str
    where: str
    kernel: tuple[str, ...]
    model: tuple[str, ...]
    before: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Where, what was the same before it, and both sides."""
        told = [f"{self.aspect}: {self.where}" if self.where else self.aspect]
        told += [f"    {line}" for line in self.before]
        told += [f"  kernel: {line}" for line in self.kernel or ("(nothing)",)]
        return told + [f"  model:  {line}" for line in self.model or ("(nothing)",)]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "aspect": self.aspect,
            "where": self.where,
            "before": list(self.before),
            "kernel": list(self.kernel),
            "model": list(self.model),
        }


@dataclass(frozen=True)
class Conformity:
    """How one run compares: what was compared (how many of each), and the first difference of each aspect."""

    name: str
    ipa_limit_bits: int
    compared: dict[str, int] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run": self.name,
            "ipa_limit_bits": self.ipa_limit_bits,
            "agrees": self.agrees,
            "compared": dict(self.compared),
            "differences": [difference.to_json() for difference in self.differences],
        }


@dataclass(frozen=True)
class ConformReport:
    """All runs, in their order."""

    runs: tuple[Conformity, ...]
    as_architecture: tuple[str, ...] = ()
    """Differences in which the model did as the architecture asks, not as Linux 7.3.4."""

    @property
    def agrees(self) -> bool:
        """Whether every run agrees."""
        return all(run.agrees for run in self.runs)

    def totals(self) -> dict[str, int]:
        """How much was compared over all runs, by aspect."""
        return {name: sum(run.compared.get(name, 0) for run in self.runs) for name in ASPECT_NAMES}

    def first(self) -> tuple[Conformity, Difference] | None:
        """The first run that differs, and its first difference."""
        for run in self.runs:
            if run.differences:
                return run, run.differences[0]
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the schema's name first."""
        return {
            "schema": SCHEMA,
            "agrees": self.agrees,
            "as_architecture": list(self.as_architecture),
            "compared": self.totals(),
            "runs": [run.to_json() for run in self.runs],
        }


def replay_logged(run: Run, as_architecture: tuple[str, ...] = (), tlb_logged: bool = False) -> Executor:
    """Execute the run's script under ``sweep`` with the log kept, TLB invalidations too if asked.

    Raises ScenarioError for a script of another language, UndeterminedError when an access makes no progress.
    """
    scenario = parse_scenario(run.scenario_text(), run.name)
    machine = Machine(
        ipa_limit_bits=run.ipa_limit_bits,
        granule=scenario.granule,
        logged=True,
        tlb_logged=tlb_logged,
        as_architecture=as_architecture,
    )
    executor = Executor(scenario, "sweep", machine)
    executor.run()
    return executor


def compare_rows(aspect: str, kernel: Sequence[Row], model: Sequence[Row]) -> Difference | None:
    """The first row that differs, with the rows before it; None if there is none. O(rows)."""
    for index in range(max(len(kernel), len(model))):
        theirs = kernel[index] if index < len(kernel) else None
        ours = model[index] if index < len(model) else None
        if theirs is not None and ours is not None and theirs.words == ours.words:
            continue
        shown = ours or theirs
        return Difference(
            aspect=aspect,
            where=f"row {index}, {shown.where if shown else ''}",
            before=tuple(row.text() for row in kernel[max(0, index - CONTEXT) : index]),
            kernel=tuple(row.text() for row in kernel[index : index + CONTEXT]),
            model=tuple(row.text() for row in model[index : index + CONTEXT]),
        )
    return None


def _compare_dumps(executor: Executor, answer: Answer) -> tuple[dict[str, int], list[Difference]]:
    """Every dump of every table, line by line."""
    recorded = [step for step in answer.steps if step.command.split()[:1] == ["dump"]]
    compared = {SHADOW_DUMPS: 0, CANONICAL_DUMPS: 0}
    if len(recorded) != len(executor.dumps):
        sides = (f"{len(recorded)} dumps",), (f"{len(executor.dumps)} dumps",)
        return compared, [Difference(SHADOW_DUMPS, "", *sides)]
    found: dict[str, Difference] = {}
    for step, dump in zip(recorded, executor.dumps, strict=True):
        for table in dump.tables:
            aspect = CANONICAL_DUMPS if table.file == CANONICAL_FILE else SHADOW_DUMPS
            compared[aspect] += 1
            theirs, ours = _kernel_table(step, table.file), table_lines(table)
            if theirs != ours and aspect not in found:
                where = f"{dump.label} {table.file} ({_caused(executor, dump.event)})"
                found[aspect] = _dump_difference(aspect, where, theirs, ours)
    return compared, list(found.values())


def _kernel_table(step: Step, file: str) -> list[str]:
    return list(step.lines_of.get(file, ()))


def _caused(executor: Executor, dump_event: int) -> str:
    """The command before a dump."""
    return executor.scenario.where(dump_event - 1) if dump_event else "at the start"


def _dump_difference(aspect: str, where: str, theirs: list[str], ours: list[str]) -> Difference:
    lines = [line for line in unified_diff(theirs, ours, lineterm="", n=0) if line[:3] not in ("---", "+++")]
    kernel = tuple(line[1:] for line in lines if line.startswith("-"))[:DIFF_LINES]
    model = tuple(line[1:] for line in lines if line.startswith("+"))[:DIFF_LINES]
    return Difference(aspect, where, kernel, model)


def conform_run(run: Run, as_architecture: tuple[str, ...] = ()) -> Conformity:
    """Compare one run in every aspect that it shows. O(events and lines of the run).

    Raises FormatError for an answer that cannot be read, ScenarioError for a script of another language.
    """
    answer = run.answer()
    probes = {event.name for event in answer.events}
    try:
        executor = replay_logged(run, as_architecture, NEEDS_PROBE[INVALIDATIONS] in probes)
    except UndeterminedError as error:
        ends = Difference(ENDS, "", ("the script came to its end",), (str(error),))
        return Conformity(run.name, run.ipa_limit_bits, {}, (ends,))
    compared, differences = _compare_dumps(executor, answer)
    for aspect in ASPECTS:
        if aspect.name in NEEDS_PROBE and NEEDS_PROBE[aspect.name] not in probes:
            continue
        theirs, ours = aspect.kernel(answer), aspect.model(executor)
        compared[aspect.name] = len(theirs)
        if difference := compare_rows(aspect.name, theirs, ours):
            differences.append(difference)
    compared[COUNTERS] = sum(last_histogram(answer, probe) is not None for probe in COUNTED)
    if wrong := compare_counts(executor, answer):
        differences.append(Difference(COUNTERS, "at the end", tuple(wrong), ()))
    return Conformity(run.name, run.ipa_limit_bits, compared, tuple(differences))


def conform(runs: Iterable[Run], as_architecture: tuple[str, ...] = ()) -> ConformReport:
    """Compare runs in turn. Raises as ``conform_run``."""
    return ConformReport(tuple(conform_run(run, as_architecture) for run in runs), as_architecture)
