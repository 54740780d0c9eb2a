"""The conformance kit: any design is put through the same cases, and the judge looks after every event.

``run_conformance("my_design").lines()`` is the whole use of it. A design that claims safety must hold in
every case; one that is wrong on purpose shows here which cases refute it. Cases are scenarios
(``verify.cases``), so each can be written out, shortened by hand, and run on the real kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from shadowmmu.compiled import U64
from shadowmmu.designs.list_checks import check_gfn_lists, check_pa_keyed, check_pte_chains
from shadowmmu.designs.own_file import MODULES, named_design
from shadowmmu.designs.reverse_table_check import check_reverse_table
from shadowmmu.designs.spanning_check import check_spanning
from shadowmmu.designs.tree_checks import check_maple_2025, check_per_vm_tree
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.errors import UndeterminedError
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.machine.counters import (
    FALLBACK_MMU,
    FALLBACK_VM,
    OVER_UNMAPPED_BYTES,
    REFAULTS_AVOIDABLE,
)
from shadowmmu.machine.state import R_FAIL_ALLOCATION, State
from shadowmmu.verify.cases import Case, conformance_cases
from shadowmmu.verify.judge import Judge, Violation

__all__ = ["Case", "CaseResult", "ConformanceReport", "conformance_cases", "run_case", "run_conformance"]

OWN_CHECKS: Final[dict[str, Callable[[State], object]]] = {
    "reverse_table": check_reverse_table,
    "spanning": check_spanning,
    "maple_2025": check_maple_2025,
    "spanning_v2": check_spanning,
    "gfn_lists": check_gfn_lists,
    "pte_chains": check_pte_chains,
    "pa_keyed": check_pa_keyed,
    "per_vm_tree": check_per_vm_tree,
}
"""``check()`` of the designs that have one: every invariant of the record itself, after every event."""


def check_of(design: str) -> Callable[[State], object] | None:
    """The design's ``check()``, its file's if it came from one; None if it has none."""
    if design in MODULES:
        return getattr(MODULES[design], "check", None)
    return OWN_CHECKS.get(design)


@dataclass(frozen=True)
class CaseResult:
    """How a design came through one case: it holds, or the rule it broke (the worst one, with its leaf)."""

    case: Case
    violation: Violation | None
    broken_check: str
    """What the design's own ``check()`` said first, with the event; empty if it holds or has none."""
    looks: int
    over_unmapped_bytes: int
    refaults_avoidable: int
    fallbacks: int

    @property
    def holds(self) -> bool:
        """No rule broken, and the record keeps its own invariants."""
        return self.violation is None and not self.broken_check

    @property
    def rule(self) -> str:
        """The rule broken (``A1``...), ``check`` for the design's own, empty if all hold."""
        if self.violation is not None:
            return self.violation.rule
        return "check" if self.broken_check else ""

    def lines(self) -> list[str]:
        """One line if it holds, else what was found, ready to print."""
        over = f", {self.over_unmapped_bytes} bytes over-unmapped" if self.over_unmapped_bytes else ""
        if self.holds:
            return [f"{self.case.name}: holds ({self.looks} looks{over})"]
        found = [f"{self.case.name}: {self.case.shows}"]
        if self.violation is not None:
            found += [f"  {line}" for line in self.violation.lines]
        if self.broken_check:
            found.append(f"  its own check: {self.broken_check}")
        return found


@dataclass(frozen=True)
class ConformanceReport:
    """A design and all its results, in the order of the cases."""

    design: str
    results: list[CaseResult]

    @property
    def holds(self) -> bool:
        """Whether it came through every case."""
        return all(result.holds for result in self.results)

    @property
    def refuted_by(self) -> dict[str, str]:
        """Names of the cases that refute it, each with the rule broken."""
        return {result.case.name: result.rule for result in self.results if not result.holds}

    def result(self, name: str) -> CaseResult:
        """The result of one case. Raises KeyError."""
        for result in self.results:
            if result.case.name == name:
                return result
        raise KeyError(name)

    def to_json(self) -> dict[str, object]:
        """The whole report as plain values."""
        cases = [
            {
                "case": result.case.name,
                "holds": result.holds,
                "rule": result.rule,
                "witness": [] if result.holds else result.lines(),
                "over_unmapped_bytes": result.over_unmapped_bytes,
            }
            for result in self.results
        ]
        return {"design": self.design, "holds": self.holds, "cases": cases}

    def lines(self) -> list[str]:
        """The whole report as text."""
        broken = len(self.refuted_by)
        verdict = f"holds in {len(self.results)} cases" if not broken else f"refuted by {broken} cases"
        told = [f"{self.design}: {verdict} of {len(self.results)}" if broken else f"{self.design}: {verdict}"]
        return told + [f"  {line}" for result in self.results for line in result.lines()]


def run_case(design: str, case: Case, judge: Judge | None = None) -> CaseResult:
    """One case under one design, judged after every event; O(events x leaves).

    An access that makes no progress is reported as a broken check (A14), not raised. Raises KeyError for a
    design that is not in the catalogue, ScenarioError for a script that cannot be read.
    """
    scenario = parse_scenario(case.script, case.name)
    machine = Machine(ipa_limit_bits=case.ipa_limit_bits, granule=scenario.granule, tlbirange=case.tlbirange)
    executor = Executor(scenario, design, machine)
    executor.state.regs[R_FAIL_ALLOCATION] = U64(case.fail_allocation)
    judge = judge if judge is not None else Judge()
    own_check = check_of(design)
    broken: list[str] = []

    def after_event(running: Executor) -> None:
        event = running.position - 1
        judge.look(running, event)
        if own_check is not None and not broken:
            try:
                own_check(running.state)
            except AssertionError as error:
                broken.append(f"{error} (after {scenario.where(event)})")

    try:
        executor.run(after_event=after_event, in_gap=judge.look_inside)
    except UndeterminedError as error:
        broken.append(f"A14: {error}")
    count = executor.state.count
    return CaseResult(
        case=case,
        violation=judge.worst,
        broken_check=broken[0] if broken else "",
        looks=judge.looks,
        over_unmapped_bytes=int(count[OVER_UNMAPPED_BYTES]),
        refaults_avoidable=int(count[REFAULTS_AVOIDABLE]),
        fallbacks=int(count[FALLBACK_MMU] + count[FALLBACK_VM]),
    )


def run_conformance(design: str, cases: Iterable[Case] | None = None) -> ConformanceReport:
    """Put ``design`` (a name of the catalogue, or a Python file) through the kit, or the cases given.

    Raises InputError for a design that is not in the catalogue, or a file that is none.
    """
    design = named_design(design)
    chosen = conformance_cases() if cases is None else cases
    return ConformanceReport(design, [run_case(design, case) for case in chosen])
