"""The output addresses behind a range: runs that are joined, and what happens when there are too many."""

from __future__ import annotations

from design_lab import executor, script

from shadowmmu.compiled import U64
from shadowmmu.designs.outputs import (
    MOST_RUNS,
    add_output,
    clear_outputs,
    output_run,
    output_runs,
    outputs_overflow,
)


def test_runs_that_continue_each_other_are_one_and_too_many_are_told() -> None:
    s = executor("pa_keyed", script("nop")).state
    clear_outputs(s)
    for page in (0, 1, 3):
        add_output(s, U64(page << 12), U64(1 << 12))
    runs = [tuple(map(int, output_run(s, run))) for run in range(output_runs(s))]
    assert runs == [(0, 2 << 12), (3 << 12, 4 << 12)]
    for page in range(5, 5 + 2 * MOST_RUNS, 2):
        assert not outputs_overflow(s) or page > 2 * MOST_RUNS - 2
        add_output(s, U64(page << 12), U64(1 << 12))
    assert outputs_overflow(s)
    clear_outputs(s)
    assert output_runs(s) == 0
