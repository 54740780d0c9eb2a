"""Running a script under a design, judged after every event, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Final

from shadowmmu.compiled import U64
from shadowmmu.designs.dispatch import design_footprint, design_recorded
from shadowmmu.designs.reverse_table_check import ShadowLeaf, shadow_leaves
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.errors import UndeterminedError
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.machine.counters import counter_names
from shadowmmu.machine.state import R_FAIL_ALLOCATION
from shadowmmu.pgtable.context import M_LEAVES
from shadowmmu.verify.conformance import check_of
from shadowmmu.verify.judge import Judge, Violation
from shadowmmu.verify.review.result import Result, holds, refuted
from shadowmmu.verify.rules import NOT_COVERED

WIDTH: Final = 40
DATA: Final = 0x4100_0000
NESTED: Final = 0x8000_0000
PAGE: Final = 4096
BLOCK: Final = 2 << 20
COUNTER: Final = {name: index for index, name in enumerate(counter_names())}
PAGE_OFFSET: Final = 0xFFF
ORDINARY: Final = Machine(ipa_limit_bits=WIDTH)
Each = Callable[[Executor], None]


def script(*lines: str, backing: str = "base", memory: str = "64M", vcpus: int = 1) -> str:
    """A machine whose data the host has written, L1 with a root of VMID 1, and ``lines``."""
    start = f"mem {memory}\nvcpus {vcpus}\nstart {backing} 0 0\ns2 new 1\ncode\nwrite {DATA:#x} 4M"
    return "\n".join((start, *lines)) + "\n"


def scenario_text(name: str) -> str:
    """A scenario of the package's ``data/review``. Raises FileNotFoundError."""
    return (files("shadowmmu") / "data" / "review" / f"{name}.scenario").read_text(encoding="utf-8")


@dataclass
class Trial:
    """A machine under a design: how far it got, what was found."""

    executor: Executor
    judge: Judge
    broken_check: str = ""
    stuck: str = ""

    def count(self, name: str) -> int:
        """A counter by its public name."""
        return int(self.executor.state.count[COUNTER[name]])

    @property
    def last(self) -> int:
        """Index of the last event."""
        return len(self.executor.scenario.events) - 1

    @property
    def leaves(self) -> int:
        """Valid leaves of all shadow MMUs."""
        return int(self.executor.state.mmus[1:, M_LEAVES].sum())

    @property
    def recorded(self) -> int:
        """Entries on the record."""
        return int(design_recorded(self.executor.state))

    @property
    def violation(self) -> Violation | None:
        """The worst rule broken; a hole in the record counts when a stale leaf comes of it."""
        for rule in sorted(self.judge.found):
            if rule != NOT_COVERED:
                return self.judge.found[rule]
        return None

    def places(self) -> dict[ShadowLeaf, int]:
        """The shadow leaves, each with the canonical address it was filled from."""
        state = self.executor.state
        return {leaf: int(state.ghost[leaf.word]) & ~PAGE_OFFSET for leaf in shadow_leaves(state)}

    def result(self, told: str = "") -> Result:
        """Refuted by what was found, or holds."""
        found = self.violation
        if found is not None:
            return refuted(f"{found.rule}: {found.meaning}", found.lines)
        if self.broken_check:
            return refuted(f"its own check: {self.broken_check}")
        if self.stuck:
            return refuted(self.stuck)
        return holds(told or f"no rule broken in {self.judge.looks} looks")

    def run(self, stop: int | None = None, each: Each | None = None) -> Trial:
        """On to event ``stop``, judged after every one; ``each`` looks too."""
        own_check = check_of(self.executor.design)

        def look(running: Executor) -> None:
            event = running.position - 1
            self.judge.look(running, event)
            if own_check is not None and not self.broken_check:
                try:
                    own_check(running.state)
                except AssertionError as error:
                    self.broken_check = f"{error} (after {running.scenario.where(event)})"
            if each is not None:
                each(running)

        try:
            self.executor.run(stop, after_event=look, in_gap=self.judge.look_inside)
        except UndeterminedError as error:
            self.stuck = str(error)
        return self


def prepare(design: str, text: str, *, fail: int = 0, machine: Machine = ORDINARY) -> Trial:
    """A machine that has not run yet; ``fail``: the allocation of the record that fails, 0 for none."""
    executor = Executor(parse_scenario(text, "review"), design, machine)
    executor.state.regs[R_FAIL_ALLOCATION] = U64(fail)
    return Trial(executor, Judge())


def run(design: str, text: str, *, fail: int = 0, machine: Machine = ORDINARY) -> Trial:
    """The whole script."""
    return prepare(design, text, fail=fail, machine=machine).run()


def precise(machine: Machine = ORDINARY) -> Machine:
    """A machine whose L0 also ages and write-protects through the record."""
    return replace(machine, precise_updates=True)


def worst(results: list[tuple[str, Result]], told: str) -> Result:
    """One result of many tries: the first that is refuted, with how many are; holds if none is."""
    bad = [(name, result) for name, result in results if result.verdict == "refuted"]
    if not bad:
        return holds(f"{told}: {len(results)} of {len(results)}")
    name, first = bad[0]
    return refuted(f"{told}: {len(bad)} of {len(results)} refuted, first {name}", (name, *first.witness))


def keeps_record(design: str) -> bool:
    """Whether a few fills leave anything on the design's record."""
    trial = run(design, script(f"map {NESTED:#x} {DATA:#x} 16k 3 rw\ntouch w {NESTED:#x} 4096 4"))
    state = trial.executor.state
    return int(design_footprint(state)) > 0 or trial.recorded > 0
