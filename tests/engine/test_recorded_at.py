"""AT on the real kernel: every PAR_EL1 that a recorded L1 read, and the model's."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
from kvm_lab import Vm

from shadowmmu.formats.answer import Answer, read_answer

RUNS = sorted((Path(__file__).parent.parent / "data" / "at_runs").glob("*.kernel.txt.xz"))


def script_of(answer: Answer) -> str:
    """The script that the log echoes."""
    return "\n".join(step.command for step in answer.steps) + "\n"


def read_by_l1(answer: Answer) -> list[tuple[str, int]]:
    """Each AT and the PAR_EL1 that followed."""
    found = []
    for step in answer.steps:
        if step.command.startswith("at "):
            (printed,) = step.printed("par")
            found.append((step.command, printed.fields["value"]))
    return found


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name.split(".")[0])
def test_the_model_writes_par_as_the_kernel_does(run: Path) -> None:
    answer = read_answer(run)
    vm = Vm(script_of(answer), ipa_limit_bits=answer.ipa_limit_bits, frames=4096).end()
    theirs = read_by_l1(answer)
    ours = [row["par"] for row in vm.log("at")]
    assert len(ours) == len(theirs) > 8
    wrong = [
        (command, hex(par), hex(own)) for (command, par), own in zip(theirs, ours, strict=True) if par != own
    ]
    assert not wrong, wrong[:5]


def test_the_recordings_reach_both_paths() -> None:
    slow = fast = failed = 0
    for run in RUNS:
        pars = [par for _, par in read_by_l1(read_answer(run))]
        failed += sum(par & 1 for par in pars)
        slow += sum(not par & 1 and par >> 9 & 5 == 4 for par in pars)
        fast += sum(not par & 1 and par >> 9 & 5 == 5 for par in pars)
    assert min(slow, fast, failed) > 100


def test_the_bundled_scenario_is_the_recorded_one() -> None:
    text = files("shadowmmu").joinpath("data/scenarios/at-before-first-touch.scenario").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    recorded = next(run for run in RUNS if "before-first-touch" in run.name)
    assert script_of(read_answer(recorded)).splitlines() == lines
