"""Driving the compiled loop: run, grow what is full, hand observations out.

One Python call runs as many events as it can; it returns for an observation, for room, or at the end.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from shadowmmu.compiled import compilation_finished, compilation_pending
from shadowmmu.engine.observe import DirtyLog, Dump, dirty_pages, dump_tables
from shadowmmu.engine.setup import Machine, build_state
from shadowmmu.engine.step import (
    FINISHED,
    INSIDE,
    NEEDS_FRAMES,
    NEEDS_GRAVES,
    NEEDS_HOST,
    NEEDS_LOG,
    NEEDS_RECORD,
    OBSERVE,
    STOPPED,
    run_events,
)
from shadowmmu.errors import UndeterminedError
from shadowmmu.events.schema import DUMP, GETLOG, Kind, Scenario
from shadowmmu.host.setup import host_grow
from shadowmmu.kvm.dirty import get_dirty_log
from shadowmmu.machine.ghost import grave_rehash
from shadowmmu.machine.state import R_EVENT, R_GHOST_ON, R_LOG_ON, R_LOG_TOP, State, grow

AfterEvent = Callable[["Executor"], None]


@dataclass
class Executor:
    """One machine executing one scenario under one design."""

    scenario: Scenario
    design: str = "sweep"
    machine: Machine = field(default_factory=Machine)
    dumps: list[Dump] = field(default_factory=list, init=False)
    dirty_logs: list[DirtyLog] = field(default_factory=list, init=False)
    seconds: float = field(default=0.0, init=False)
    """Wall time inside compiled code so far."""

    def __post_init__(self) -> None:
        announce_compilation()
        self.state: State = build_state(self.scenario, self.machine, self.design)
        events = self.scenario.events
        self._kinds = events["kind"].astype(np.uint64)
        columns = [events["vcpu"], *(events[name] for name in "abcdef")]
        self._operands = np.stack([column.astype(np.uint64) for column in columns], axis=1)

    @property
    def position(self) -> int:
        """Index of the next event."""
        return int(self.state.regs[R_EVENT])

    def run(
        self,
        stop: int | None = None,
        after_event: AfterEvent | None = None,
        in_gap: AfterEvent | None = None,
    ) -> None:
        """Execute up to event ``stop`` (default: all).

        ``after_event`` is called after every single event, ``in_gap`` where the host took pages in the
        middle of one (``gap``), which is then the next one still. Raises UndeterminedError when an access
        makes no progress, MemoryError when the machine has no room; the state is then that before the step.
        """
        last = len(self._kinds) if stop is None else min(stop, len(self._kinds))
        while self.position < last:
            until = self.position + 1 if after_event else last
            self._advance(until, in_gap)
            if after_event:
                after_event(self)
        if not self.scenario.events.size or last == len(self._kinds):
            compilation_finished()

    def fork(self) -> Executor:
        """A second machine in the same state, without the judge's memory and the log: for timing."""
        twin = copy.copy(self)
        copies = {name: array.copy() for name, array in self.state._asdict().items()}
        nothing = np.zeros(1, np.uint64)
        twin.state = State(**copies)._replace(ghost=nothing, graves=nothing)
        twin.state.regs[R_GHOST_ON] = 0
        twin.state.regs[R_LOG_ON] = 0
        twin.dumps = []
        twin.dirty_logs = []
        twin.seconds = 0.0
        return twin

    def _advance(self, until: int, in_gap: AfterEvent | None) -> None:
        while self.position < until:
            started = time.perf_counter()
            reason = run_events(self.state, self._kinds, self._operands, self.position, until)
            self.seconds += time.perf_counter() - started
            if reason == FINISHED:
                return
            if reason == OBSERVE:
                self._observe(self.position - 1)
            elif reason == INSIDE:
                if in_gap:
                    in_gap(self)
            elif reason == STOPPED:
                raise UndeterminedError(self._no_progress())
            else:
                self._make_room(int(reason))

    def _observe(self, index: int) -> None:
        event = self.scenario.events[index]
        if event["kind"] == DUMP:
            label = self.scenario.labels[int(event["a"])]
            self.dumps.append(Dump(index, label, dump_tables(self.state, bool(event["b"]))))
        elif event["kind"] == GETLOG:
            slot = int(event["a"])
            self.dirty_logs.append(DirtyLog(index, dirty_pages(self.state, slot)))
            self._make_room_to_log((len(self.state.dirty) + 1) * len(self.state.mmus))
            get_dirty_log(self.state, slot)

    def _make_room(self, reason: int) -> None:
        if reason == NEEDS_FRAMES:
            self.state = grow(self.state, "mem")
        elif reason == NEEDS_HOST:
            self.state = host_grow(self.state)
        elif reason == NEEDS_RECORD:
            self.state = grow(self.state, "rmap")
        elif reason == NEEDS_LOG:
            self.state = grow(self.state, "log")
        elif reason == NEEDS_GRAVES:
            larger = np.zeros(len(self.state.graves) * 2, np.uint64)
            grave_rehash(self.state.graves, larger)
            self.state = self.state._replace(graves=larger)
        else:
            bits = self.machine.ipa_limit_bits
            raise MemoryError(f"the modelled host has used every data page a {bits}-bit machine can address")

    def _make_room_to_log(self, rows: int) -> None:
        while self.state.regs[R_LOG_ON] and int(self.state.regs[R_LOG_TOP]) + rows > len(self.state.log):
            self.state = grow(self.state, "log")

    def _no_progress(self) -> str:
        event = self.scenario.events[self.position]
        name = Kind(int(event["kind"])).name
        return f"event {self.position} ({name}, line {event['line']}) makes no progress"


def announce_compilation() -> None:
    """Say once, on a terminal, that the first run compiles."""
    if compilation_pending() and sys.stderr.isatty():
        sys.stderr.write("compiling kernels (first run)\n")
        sys.stderr.flush()
