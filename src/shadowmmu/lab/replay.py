"""``run``: one scenario under one design, with its dumps, its events and its verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from shadowmmu.designs.own_file import named_design
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.observe import Observed, read_log
from shadowmmu.engine.setup import Machine
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.events.schema import DUMP
from shadowmmu.lab.agreement import dump_lines
from shadowmmu.lab.costs import load_cost_model
from shadowmmu.lab.measure import Measured, measure
from shadowmmu.lab.results import ScenarioSource, Transcript
from shadowmmu.machine.counters import counter_names
from shadowmmu.machine.granule import DEFAULT_GRANULE
from shadowmmu.verify.judge import Judge, judge_points

DEFAULT_IPA_BITS: Final = 48


def event_line(observed: Observed) -> str:
    """One row of the observation log, written as the rig's trace writes it."""
    shown = " ".join(f"{name}={value:#x}" for name, value in observed.fields.items())
    return f"    {observed.name}: {shown}"


def execute(source: ScenarioSource, design: str, machine: Machine, judge_mode: str) -> tuple[Executor, Judge]:
    """Run a scenario to its end, judged; a script may say the size of the machine's pages.

    Raises InputError for an unknown design or a bad script.
    """
    design = named_design(design)
    scenario = parse_scenario(source.text, source.name, granule=machine.granule)
    machine = replace(machine, granule=scenario.granule)
    executor = Executor(scenario, design, machine)
    judge = Judge()
    in_gap = judge.look_inside if judge_mode == "always" else None
    for event in judge_points(executor, judge_mode):
        executor.run(event + 1, in_gap=in_gap)
        judge.look(executor, event)
    executor.run()
    return executor, judge


def story(executor: Executor, show_events: bool) -> list[str]:
    """Every event in order: its line, what it caused (if asked), its dump (if it is one)."""
    observed: dict[int, list[Observed]] = {}
    if show_events:
        for row in read_log(executor.state):
            observed.setdefault(row.event, []).append(row)
    dumps = {dump.event: dump for dump in executor.dumps}
    lines = []
    scenario = executor.scenario
    for index, event in enumerate(scenario.events):
        number = int(event["line"])
        text = scenario.lines[number - 1] if 0 < number <= len(scenario.lines) else scenario.where(index)
        lines.append(f"> {text.strip()}")
        lines += [event_line(row) for row in observed.get(index, [])]
        if int(event["kind"]) == DUMP and index in dumps:
            lines += dump_lines(dumps[index])
    return lines


def run_scenario(
    source: ScenarioSource,
    *,
    design: str = "sweep",
    ipa_limit_bits: int = DEFAULT_IPA_BITS,
    show_events: bool = False,
    judge_mode: str = "always",
    tlbirange: bool = True,
    fwb: bool = True,
    as_architecture: tuple[str, ...] = (),
    granule: str = DEFAULT_GRANULE,
) -> Transcript:
    """Execute ``source`` and tell it: dumps in the kernel's format, events, counters, verdict.

    ``tlbirange`` and ``fwb``: whether the host has FEAT_TLBIRANGE and FEAT_S2FWB; ``as_architecture``: see
    ``kvm.differences``; ``granule``: the host's page size where the script does not say it.
    """
    machine = Machine(
        ipa_limit_bits,
        granule,
        tlbirange,
        fwb,
        logged=show_events,
        as_architecture=as_architecture,
    )
    executor, judge = execute(source, design, machine, judge_mode)
    result = measure(Measured(executor, judge, judge_mode != "never"), load_cost_model(), kind="scenario")
    lines = story(executor, show_events)
    counts = {
        name: int(value) for name, value in zip(counter_names(), executor.state.count, strict=True) if value
    }
    lines += ["", "counters"]
    lines += [f"  {name:24} {value:>16,}" for name, value in counts.items()]
    data: dict[str, Any] = {
        "design": executor.design,
        "ipa_limit_bits": ipa_limit_bits,
        "tlbirange": tlbirange,
        "fwb": fwb,
        "as_architecture": list(as_architecture),
        "granule": executor.machine.granule,
        "counters": counts,
        "dumps": [{"label": dump.label, "lines": dump_lines(dump)} for dump in executor.dumps],
    }
    if show_events:
        data["events"] = [
            {"event": row.event, "name": row.name, **row.fields} for row in read_log(executor.state)
        ]
    without = [name for name, has in (("TLBIRANGE", tlbirange), ("S2FWB", fwb)) if not has]
    pages = f", pages of {executor.machine.granule}" if executor.machine.granule != DEFAULT_GRANULE else ""
    title = f"{source.name} under {executor.design}, {ipa_limit_bits}-bit IPA limit{pages}"
    title += "".join(f", no FEAT_{name}" for name in without)
    if as_architecture:
        title += f", as the architecture asks: {', '.join(as_architecture)}"
    return Transcript(title=title, lines=lines, data=data, verdict=result.verdict)
