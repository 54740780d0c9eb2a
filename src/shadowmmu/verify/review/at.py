"""The objection about AT: it always completes, and says the same whatever the shadow holds."""

from __future__ import annotations

from dataclasses import replace

from shadowmmu.engine.observe import read_log
from shadowmmu.verify.review.result import Result, holds, refuted
from shadowmmu.verify.review.trial import ORDINARY, prepare, scenario_text

FAULT = 1
PAR_NS = 1 << 9
"""PAR_EL1.NS, which says nothing in Non-secure state (Arm ARM, PAR_EL1): KVM's software walk leaves it 0."""
AS_LINUX = "linux-7.3.4"


def at_completes(design: str, emulation: str = AS_LINUX) -> Result:
    """2: an AT ends in bounded steps with the answer of L1's and L2's tables, full shadow or empty.

    ``emulation`` is one of ``kvm.at.VARIANTS``: the answer belongs to L0 as much as to the design.
    """
    trial = prepare(
        design, scenario_text("02-at"), machine=replace(ORDINARY, logged=True, at=emulation)
    ).run()
    if trial.stuck:
        return refuted(f"an AT does not end: {trial.stuck}")
    answers: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row in read_log(trial.executor.state):
        if row.name == "at" and not row.fields["replayed"]:
            asked = (row.fields["op"], row.fields["va"])
            answers.setdefault(asked, []).append((row.event, row.fields["par"] & ~PAR_NS))
    for got in answers.values():
        for event, par in got:
            if par & FAULT or par != got[0][1]:
                where = trial.executor.scenario.where(event)
                return refuted(f"PAR_EL1 {par:#x} after {where}, {got[0][1]:#x} at first")
    asked_in_all = sum(len(got) for got in answers.values())
    slow, again = trial.count("at_slow"), trial.count("at_replayed")
    return holds(f"{asked_in_all} ATs of {len(answers)} kinds, {slow} walked in software, {again} repeated")
