"""The model against Linux 7.3.4: every recorded run, line for line; and the two modes against each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from digests import digest

from shadowmmu.compiled import INTERPRETED
from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.formats.runs import KernelRun, bundled_run, bundled_runs, read_runs
from shadowmmu.lab.agreement import compare_with_kernel
from shadowmmu.machine.counters import CHUNKS, CHUNKS_SHADOW, NOTIFIERS, TLBI_RANGE, TLBI_RANGE_SHADOW

LARGE = Path(__file__).parent.parent / "data" / "kernel_runs"
RUNS = bundled_runs()
QUICK = (
    "hello/",
    "random/seed1",
    "scenario/01",
    "scenario/09",
    "scenario/12",
    "suspicion/",
    "cost/base4k-1024-parange2",
)
# The interpreted pass replays a few; that it gives what the compiled code gives is tested on all, below.
ALL_RUNS = [r for r in RUNS if r.name.startswith(QUICK)] if INTERPRETED else [*RUNS, *read_runs(LARGE)]
BITS_PER_CHUNK = 30


def replay(run: KernelRun, design: str = "sweep") -> Executor:
    scenario = parse_scenario(run.scenario_text(), run.name)
    executor = Executor(scenario, design, Machine(ipa_limit_bits=run.ipa_limit_bits))
    executor.run()
    return executor


def name_of(run: KernelRun) -> str:
    return run.name


@pytest.mark.parametrize("run", ALL_RUNS, ids=name_of)
def test_sweep_prints_what_the_kernel_printed(run: KernelRun) -> None:
    agreement = compare_with_kernel(replay(run), run.answer())
    assert agreement.agrees, "\n".join(agreement.first_difference)


def test_every_recorded_dump_is_compared() -> None:
    compared = sum(compare_with_kernel(replay(run), run.answer()).compared_dumps for run in RUNS[:3])
    assert compared == 18 + 15 + 15


def test_one_4k_notifier_costs_what_the_kernel_counted() -> None:
    run = bundled_run("cost/counted-chunks")
    executor = replay(run)
    count = executor.state.count
    assert count[CHUNKS_SHADOW] == 262_144
    assert count[TLBI_RANGE_SHADOW] == 262_144
    assert count[CHUNKS] - count[CHUNKS_SHADOW] == 2
    assert count[TLBI_RANGE] - count[TLBI_RANGE_SHADOW] == 2
    assert compare_with_kernel(executor, run.answer()).agrees


@pytest.mark.parametrize(
    "run",
    [run for run in ALL_RUNS if run.name.startswith("cost/") and "counted" not in run.name],
    ids=name_of,
)
def test_chunks_grow_with_the_ipa_limit_alone(run: KernelRun) -> None:
    # Ten notifiers a cost run: two before L2 first runs, then one valid shadow MMU.
    count = replay(run).state.count
    per_sweep = 1 << (run.ipa_limit_bits - BITS_PER_CHUNK)
    sweeps, rest = divmod(int(count[CHUNKS_SHADOW]), per_sweep)
    assert rest == 0
    assert 0 < sweeps < int(count[NOTIFIERS])
    assert count[TLBI_RANGE_SHADOW] == count[CHUNKS_SHADOW]


@pytest.mark.skipif(INTERPRETED, reason="this is the compiled half: it starts the interpreted one itself")
@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_interpreted_equals_compiled(run: KernelRun) -> None:
    program = Path(__file__).parent / "digests.py"
    done = subprocess.run(
        [sys.executable, str(program), run.name, *CATALOGUE],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    interpreted = json.loads(done.stdout)
    for design in CATALOGUE:
        assert digest(run.name, design) == interpreted[design], design


def test_event_by_event_is_the_same_as_all_at_once() -> None:
    run = bundled_run("random/seed1")
    scenario = parse_scenario(run.scenario_text(), run.name)
    machine = Machine(ipa_limit_bits=run.ipa_limit_bits)
    stepped = Executor(scenario, "reverse_table", machine)
    stepped.run(after_event=lambda executor: None)
    assert stepped.state.count.tolist() == replay(run, "reverse_table").state.count.tolist()


def test_a_machine_that_grows_ends_like_a_large_one() -> None:
    run = bundled_run("cost/base4k-1024-parange2")
    scenario = parse_scenario(run.scenario_text(), run.name)
    ends = []
    for frames in (96, 4096):
        machine = Machine(ipa_limit_bits=run.ipa_limit_bits, frames=frames, logged=True)
        executor = Executor(scenario, "reverse_table", machine)
        executor.run()
        ends.append((executor.state.count.tolist(), executor.state.regs.tolist()))
    assert ends[0] == ends[1]


def test_a_host_without_pages_left_is_an_error_not_an_answer() -> None:
    run = bundled_run("hello/hello")
    executor = Executor(parse_scenario(run.scenario_text(), run.name), "sweep", Machine(ipa_limit_bits=40))
    executor.state.regs[4] = (1 << 28) - (1 << 24) - 100  # R_NEXT_DATA: almost at 2^40
    executor.state = executor.state._replace(content=executor.state.content.repeat(1))
    with pytest.raises(MemoryError, match="every data page"):
        executor.run()
