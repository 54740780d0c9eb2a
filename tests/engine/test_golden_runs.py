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
from shadowmmu.machine.counters import (
    CHUNKS,
    CHUNKS_SHADOW,
    MMUS_VALID,
    NOTIFIERS,
    TLBI_RANGE,
    TLBI_RANGE_SHADOW,
)

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
ON_EVERY_RUN = ("sweep", "rbtree_2024", "spanning", "reverse_table")
"""Interpreted at 48 bits a sweep takes seconds; the other designs are compared on cases of 40 bits."""
WITHOUT_SWEEP = ("spanning", "reverse_table")
"""At 16K and 40 bits a sweep has 32 times the chunks."""
DIGESTED = [
    *((run.name, WITHOUT_SWEEP if run.name.startswith("granule/") else ON_EVERY_RUN) for run in RUNS),
    *((f"case/random-{backing}-{seed}", tuple(CATALOGUE)) for backing in ("base", "thp") for seed in (1, 2)),
    ("case/alias-across-vmids", tuple(CATALOGUE)),
]


def replay(run: KernelRun, design: str = "sweep") -> Executor:
    scenario = parse_scenario(run.scenario_text(), run.name)
    executor = Executor(scenario, design, Machine(run.ipa_limit_bits, scenario.granule))
    executor.run()
    return executor


def name_of(run: KernelRun) -> str:
    return run.name


@pytest.mark.parametrize("run", ALL_RUNS, ids=name_of)
def test_sweep_prints_what_the_kernel_printed(run: KernelRun) -> None:
    agreement = compare_with_kernel(replay(run), run.answer())
    assert agreement.agrees, "\n".join(agreement.first_difference)


def test_every_recorded_dump_is_compared() -> None:
    runs = ["random/seed1"] if INTERPRETED else [run.name for run in RUNS]
    for name in runs:
        run = bundled_run(name)
        executor = replay(run)
        tables = sum(len(dump.tables) for dump in executor.dumps)
        assert compare_with_kernel(executor, run.answer()).compared_dumps == tables
        assert tables == sum(len(step.dump_lines) for step in run.answer().steps)


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
    count = replay(run).state.count
    assert int(count[NOTIFIERS]) > int(count[MMUS_VALID]) > 0
    assert count[CHUNKS_SHADOW] == count[MMUS_VALID] << (run.ipa_limit_bits - BITS_PER_CHUNK)
    assert count[TLBI_RANGE_SHADOW] == count[CHUNKS_SHADOW]


def test_the_cost_runs_span_four_ipa_limits() -> None:
    cost = [run for run in [*RUNS, *read_runs(LARGE)] if run.name.startswith("cost/")]
    assert {run.ipa_limit_bits for run in cost} == {40, 44, 48, 52}


@pytest.mark.skipif(INTERPRETED, reason="this is the compiled half: it starts the interpreted one itself")
@pytest.mark.parametrize(("name", "designs"), DIGESTED, ids=[name for name, _designs in DIGESTED])
def test_interpreted_equals_compiled(name: str, designs: tuple[str, ...]) -> None:
    program = Path(__file__).parent / "digests.py"
    done = subprocess.run(
        [sys.executable, str(program), name, *designs],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    interpreted = json.loads(done.stdout)
    for design in designs:
        assert digest(name, design) == interpreted[design], design
