"""The metrics of a report, each declared once: label, how to read it from a result, how to write it.

Tables, plots and the page's glossary all iterate ``METRICS``; nothing else knows a counter by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from shadowmmu.lab.results import Agreement, Comparison, DesignResult, Verdict
from shadowmmu.report import quantities

Number: TypeAlias = int | float


@dataclass(frozen=True)
class Metric:
    """One row of a table. ``read`` gives None where a result does not have it; smaller is better."""

    key: str
    label: str
    meaning: str
    read: Callable[[DesignResult], Number | None]
    write: Callable[[Number], str]

    def text(self, result: DesignResult) -> str:
        """The value as it is printed; ``-`` where there is none."""
        value = self.read(result)
        return "-" if value is None else self.write(value)


def _counter(key: str, label: str, meaning: str, write: Callable[[int], str] = quantities.count) -> Metric:
    return Metric(
        key, label, meaning, lambda result: result.counters.get(key), lambda value: write(int(value))
    )


def _modelled_per_notifier(result: DesignResult) -> float | None:
    notifiers = result.counters.get("notifiers", 0)
    return result.modelled_ns / notifiers if notifiers else None


def _bytes_per_mapping(result: DesignResult) -> float | None:
    held = result.counters.get("reverse_map_bytes")
    return held / result.leaves if held is not None and result.leaves else None


METRICS: Final[tuple[Metric, ...]] = (
    _counter("notifiers", "notifier calls", "calls of the host's memory manager that reached the VM"),
    _counter(
        "over_unmapped_bytes",
        "over-unmapped bytes",
        "what leaves torn down outside the notified range covered",
        quantities.size,
    ),
    _counter("refaults_caused", "refaults caused", "shadow faults where a notifier had cleared the leaf"),
    _counter(
        "refaults_avoidable", "of these avoidable", "the same where the leaf lay outside the notified range"
    ),
    _counter(
        "shadow_mmus_visited", "shadow MMUs visited", "MMUs a notifier looked into, summed over notifiers"
    ),
    _counter("chunks", "chunks", "calls of the unmap walker, one for each chunk of the largest block size"),
    _counter("descriptors_read", "descriptors read", "stage-2 descriptors L0 read in its own tables"),
    _counter("tlbis", "TLBIs", "TLB invalidations of any kind issued by L0"),
    _counter(
        "nodes_visited", "tree nodes visited", "nodes (or words of a flat record) read in the reverse map"
    ),
    _counter("reverse_map_bytes", "reverse map bytes", "the largest the record grew", quantities.size),
    Metric(
        "bytes_per_mapping",
        "bytes per mapping",
        "reverse map bytes divided by the most shadow leaves at one time",
        _bytes_per_mapping,
        quantities.ratio,
    ),
    Metric(
        "modelled_per_notifier",
        "modelled per notifier",
        "modelled time divided by notifier calls",
        _modelled_per_notifier,
        quantities.duration,
    ),
    Metric(
        "modelled_ns",
        "modelled time",
        "the cost model's time from the first notifier on: unmaps, record keeping, refaults",
        lambda result: result.modelled_ns,
        quantities.duration,
    ),
    _counter(
        "notifier_wall_ns",
        "measured in notifiers",
        "wall time of the compiled model inside the events that unmap; not a kernel's time",
        quantities.duration,
    ),
    Metric(
        "measured_ns",
        "measured time",
        "the same from the first of them to the end of the run, refaults included",
        lambda result: result.measured_ns,
        quantities.duration,
    ),
)

BY_KEY: Final[dict[str, Metric]] = {metric.key: metric for metric in METRICS}


@dataclass(frozen=True)
class Group:
    """Results that stand in one table: one for each design, in order, under one condition."""

    title: str
    results: list[DesignResult]
    refuted: dict[str, int]
    runs: int

    def verdict(self, result: DesignResult) -> str:
        """The verdict of a design over the runs of the group."""
        if self.runs == 1 or not result.verdict.refuted:
            return result.verdict.word
        return f"{result.verdict.word} in {self.refuted[result.design]} of {self.runs}"


def designs(comparison: Comparison) -> list[str]:
    """The designs compared, in order."""
    return list(dict.fromkeys(result.design for result in comparison.results))


def by_run(results: Sequence[DesignResult]) -> list[list[DesignResult]]:
    """The results of each run (a name under one IPA limit), in order."""
    runs: dict[tuple[str, int], list[DesignResult]] = {}
    for result in results:
        runs.setdefault((result.run, result.ipa_limit_bits), []).append(result)
    return list(runs.values())


def agreement(results: Sequence[DesignResult]) -> Agreement | None:
    """How a run compares with the real kernel: its first disagreement, if there is one."""
    compared = [result.agreement for result in results if result.agreement is not None]
    return min(compared, key=lambda one: one.agrees, default=None)


def of_kind(comparison: Comparison, kind: str) -> list[DesignResult]:
    """The results of kernel runs, storms or scenarios."""
    return [result for result in comparison.results if result.kind == kind]


def total(results: Sequence[DesignResult], run: str) -> DesignResult:
    """One design's results as one: counters and times summed, sizes and leaves at their largest."""
    first = results[0]
    names = dict.fromkeys(name for result in results for name in result.counters)
    counters = {name: sum(result.counters.get(name, 0) for result in results) for name in names}
    if "reverse_map_bytes" in counters:
        counters["reverse_map_bytes"] = max(result.counters.get("reverse_map_bytes", 0) for result in results)
    return replace(
        first,
        run=run,
        shadow_mmus=max(result.shadow_mmus for result in results),
        leaves=max(result.leaves for result in results),
        verdict=_joint([result.verdict for result in results]),
        counters=counters,
        modelled_ns=sum(result.modelled_ns for result in results),
        measured_ns=sum(result.measured_ns for result in results),
        agreement=None,
    )


def _joint(verdicts: Sequence[Verdict]) -> Verdict:
    """Refuted if one is, else not judged if one is not, else safe."""
    return min(verdicts, key=lambda verdict: (not verdict.refuted, verdict.safe))


def together(title: str, results: Sequence[DesignResult]) -> Group:
    """The runs of a kind summed for each design."""
    each: dict[str, list[DesignResult]] = {}
    for result in results:
        each.setdefault(result.design, []).append(result)
    refuted = {name: sum(one.verdict.refuted for one in mine) for name, mine in each.items()}
    summed = [total(mine, title) for mine in each.values()]
    return Group(title, summed, refuted, len(by_run(results)))


def storms(comparison: Comparison) -> list[Group]:
    """One group for each storm and IPA limit."""
    groups = []
    for results in by_run(of_kind(comparison, "storm")):
        first = results[0]
        title = (
            f"{first.run}: {first.ipa_limit_bits}-bit IPA, "
            f"{quantities.count(first.shadow_mmus)} shadow MMUs, {quantities.count(first.leaves)} leaves"
        )
        groups.append(Group(title, results, {one.design: int(one.verdict.refuted) for one in results}, 1))
    return groups


def refuted(comparison: Comparison) -> dict[str, list[DesignResult]]:
    """The refuted designs, each with the runs that refute it."""
    found: dict[str, list[DesignResult]] = {}
    for result in comparison.results:
        if result.verdict.refuted:
            found.setdefault(result.design, []).append(result)
    # A leaf that is stale convinces more than a record that would miss it.
    return {name: sorted(runs, key=_only_latent) for name, runs in found.items()}


def _only_latent(result: DesignResult) -> bool:
    return result.verdict.summary.startswith("A3")


def headline(comparison: Comparison) -> list[str]:
    """The answer in a few sentences."""
    lines = []
    compared = [one for one in map(agreement, by_run(comparison.results)) if one is not None]
    if compared:
        agreeing = sum(one.agrees for one in compared)
        lines.append(f"{agreeing} of {len(compared)} kernel runs agree with Linux 7.3.4, dump by dump.")
    against = refuted(comparison)
    names = designs(comparison)
    unjudged = {one.design for one in comparison.results if not one.verdict.judged} - set(against)
    safe = [name for name in names if name not in against and name not in unjudged]
    if safe:
        lines.append(f"No stale translation found: {', '.join(safe)}.")
    if against:
        lines.append(f"Refuted: {', '.join(f'{name} ({len(runs)} runs)' for name, runs in against.items())}.")
    if unjudged:
        lines.append(f"Not judged in every run: {', '.join(name for name in names if name in unjudged)}.")
    return lines
