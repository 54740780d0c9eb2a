"""The model against the trace of the real kernel, event for event, by the product's own comparison.

``lab.conform.rows`` says what is compared, in which order, and what is left out.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from shadowmmu.compiled import INTERPRETED
from shadowmmu.engine.executor import Executor
from shadowmmu.formats.answer import Answer
from shadowmmu.formats.runs import KernelRun, bundled_runs, read_runs
from shadowmmu.lab.conform.compare import compare_rows, conform_run, replay_logged
from shadowmmu.lab.conform.rows import (
    ASPECTS,
    NEEDS_PROBE,
    Aspect,
    kernel_events,
    kernel_protections,
    kernel_touches,
    model_log,
    model_protections,
)
from shadowmmu.machine.counters import NOTIFIERS

LARGE = Path(__file__).parent.parent / "data" / "kernel_runs"
TRACED = ("scenario/", "random/", "suspicion/", "granule/", "live/", "mm/")
RUNS = {run.name: run for run in [*bundled_runs(), *read_runs(LARGE)] if run.name.startswith(TRACED)}
QUICK = (
    "random/seed1",
    "scenario/09",
    "scenario/12",
    "suspicion/",
    "granule/",
    "live/s",
    "live/m",
    "mm/ksm-pages",
    "mm/p",
)
PROBED = [name for name in RUNS if name.startswith("suspicion/")]
"""Runs whose kernel was asked for its TLB invalidations."""
NAMES = [name for name in RUNS if name.startswith(QUICK)] if INTERPRETED else list(RUNS)


@cache
def replayed(name: str) -> Executor:
    """The run under ``sweep``, its log kept."""
    return replay_logged(RUNS[name], tlb_logged=name in PROBED)


@cache
def recorded(name: str) -> Answer:
    """What the kernel answered."""
    return RUNS[name].answer()


@pytest.mark.parametrize("aspect", ASPECTS, ids=lambda aspect: aspect.name)
@pytest.mark.parametrize("name", NAMES)
def test_the_model_does_what_the_kernel_did_in_the_same_order(name: str, aspect: Aspect) -> None:
    probe = NEEDS_PROBE.get(aspect.name)
    if probe and probe not in {event.name for event in recorded(name).events}:
        return  # the run has no such probe: test_what_the_runs_show counts the others
    difference = compare_rows(aspect.name, aspect.kernel(recorded(name)), aspect.model(replayed(name)))
    assert difference is None, "\n".join(difference.lines())


@pytest.mark.parametrize("name", NAMES)
def test_what_the_runs_show(name: str) -> None:
    assert len(kernel_events(recorded(name))) > 10
    assert kernel_touches(recorded(name))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("live/", "mm/"))])
def test_a_live_run_agrees_in_every_aspect(name: str) -> None:
    conformity = conform_run(RUNS[name])
    assert conformity.agrees, "\n".join(conformity.differences[0].lines())
    assert conformity.compared["counters"] == (2 if name.startswith("live/seed") else 0)


@pytest.mark.parametrize(
    ("name", "ranges"),
    [("suspicion/write-protect-without-shadow-flush", 8), ("live/slot-with-log", 10)],
)
def test_write_protection_covers_what_the_kernels_did(name: str, ranges: int) -> None:
    theirs = [row.words for row in kernel_protections(recorded(name))]
    assert [row.words for row in model_protections(replayed(name))] == theirs
    assert len(theirs) == ranges


@pytest.mark.parametrize("name", NAMES)
def test_no_event_of_the_trace_was_lost(name: str) -> None:
    assert sum(step.trace.lost for step in recorded(name).steps if step.trace) == 0


def test_the_kernel_warned_where_the_model_notes_an_error() -> None:
    name = "suspicion/ipas2-tlbi-beyond-limit"
    noted = [row.fields["ipa"] for row in model_log(replayed(name)) if row.name == "efault"]
    assert noted == [1 << 40, 0xFFFF_C000_0000]
    assert recorded(name).warnings


@pytest.mark.skipif(INTERPRETED, reason="the run is not among the quick ones")
def test_setting_pages_idle_ages_them_in_the_canonical_table_alone() -> None:
    # The kernel aged eight of the sixteen pages (those on its LRU lists, the rest still waited in a batch),
    # and these again whenever the bitmap was read, a word of 64 host frames at a time.
    run = "scenario/14-idle"
    theirs = [e.fields["start"] for e in recorded(run).events if e.name == "age_gfn"]
    ours = [row.fields["start"] for row in model_log(replayed(run)) if row.name == "age_gfn"]
    assert (len(theirs), len(ours)) == (72, 16)
    assert theirs[:8] == ours[:8]
    assert set(theirs) == set(ours[:8])
    assert replayed(run).state.count[NOTIFIERS] == 0


def test_a_run_is_named_once() -> None:
    runs: list[KernelRun] = bundled_runs()
    assert len(RUNS) == 54
    assert len(runs) == 41
