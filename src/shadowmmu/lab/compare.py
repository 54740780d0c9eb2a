"""``compare``: what a real kernel did, replayed and priced under every design; and a notifier storm."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.resources import files
from typing import Final

import numba
import numpy as np

import shadowmmu
from shadowmmu.compiled import INTERPRETED
from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.designs.own_file import named_design
from shadowmmu.engine.setup import Machine
from shadowmmu.errors import InputError
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.events.schema import Scenario
from shadowmmu.events.storm import storm
from shadowmmu.events.workloads import read_workload
from shadowmmu.formats.answer import Answer
from shadowmmu.formats.runs import KernelRun, bundled_run, bundled_runs
from shadowmmu.lab.agreement import compare_with_kernel
from shadowmmu.lab.costs import load_cost_model
from shadowmmu.lab.measure import measure, run_judged
from shadowmmu.lab.results import CompareOptions, Comparison, DesignResult, RunKind, ScenarioSource
from shadowmmu.machine.granule import DEFAULT_GRANULE

DEFAULT_LEAVES: Final = 1_000_000
DEFAULT_NOTIFIERS: Final = 3
STORM_MMUS: Final = 4
STORM_IPA_BITS: Final = (48, 40)
DEFAULT_IPA_BITS: Final = 48
DEFAULT_SEED: Final = 1
STORM_FRAMES: Final = 8192
IPA_BITS: Final = range(40, 53)
CONFORMING: Final = "sweep"
"""The design that is Linux 7.3.4: only its dumps can agree with the kernel's."""


@dataclass(frozen=True)
class Job:
    """One scenario to be put through every design."""

    scenario: Scenario
    kind: RunKind
    machine: Machine
    mode: str
    kernel_run: KernelRun | None = None


def design_names(wanted: tuple[str, ...]) -> list[str]:
    """The designs asked for, all by default; one may be a Python file. Raises InputError."""
    return [named_design(name) for name in wanted] or list(CATALOGUE)


def bundled_scenarios() -> list[ScenarioSource]:
    """Scenarios that show what no recorded run does; they ship with the package."""
    return _scenarios_of("scenarios")


def difference_scenarios() -> list[ScenarioSource]:
    """One scenario for each difference of Linux 7.3.4 from the architecture (``verify.differences``)."""
    return _scenarios_of("differences")


def _scenarios_of(name: str) -> list[ScenarioSource]:
    folder = files("shadowmmu") / "data" / name
    paths = sorted(folder.iterdir(), key=lambda path: path.name)
    return [
        ScenarioSource(name=f"{name}/" + path.name.removesuffix(".scenario"), text=path.read_text())
        for path in paths
        if path.name.endswith(".scenario")
    ]


def _checked_bits(bits: int | None) -> int | None:
    if bits is not None and bits not in IPA_BITS:
        raise InputError(f"read {bits} IPA bits, expected {IPA_BITS[0]} to {IPA_BITS[-1]}")
    return bits


def kernel_jobs(options: CompareOptions) -> Iterator[Job]:
    """The recorded runs, each at the IPA limit it was recorded with."""
    try:
        runs = [bundled_run(name) for name in options.runs] or bundled_runs()
    except KeyError as error:
        known = ", ".join(run.name for run in bundled_runs())
        raise InputError(f"read kernel run {error}, expected one of {known}") from None
    for run in runs:
        scenario = parse_scenario(run.scenario_text(), run.name)
        machine = Machine(
            run.ipa_limit_bits, granule=scenario.granule, as_architecture=options.as_architecture
        )
        yield Job(scenario, "kernel", machine, options.judge or "always", run)


def machine_of(options: CompareOptions, bits: int, granule: str, frames: int = Machine.frames) -> Machine:
    """The machine that the options ask for."""
    return Machine(
        bits,
        granule,
        options.tlbirange,
        options.fwb,
        frames=frames,
        as_architecture=options.as_architecture,
    )


def scenario_jobs(options: CompareOptions, sources: list[ScenarioSource]) -> Iterator[Job]:
    """Scenarios without a recorded answer."""
    bits = _checked_bits(options.ipa_limit_bits) or DEFAULT_IPA_BITS
    for source in sources:
        scenario = parse_scenario(source.text, source.name, granule=options.granule or DEFAULT_GRANULE)
        machine = machine_of(options, bits, scenario.granule)
        yield Job(scenario, "scenario", machine, options.judge or "always")


def storm_jobs(options: CompareOptions) -> Iterator[Job]:
    """The notifier storm, at 48 and 40 bits unless one limit is asked for."""
    bits = _checked_bits(options.ipa_limit_bits)
    seed = DEFAULT_SEED if options.seed is None else options.seed
    leaves = DEFAULT_LEAVES if options.leaves is None else options.leaves
    notifiers = DEFAULT_NOTIFIERS if options.notifiers is None else options.notifiers
    try:
        granule = options.granule or DEFAULT_GRANULE
        scenario = storm(mmus=STORM_MMUS, leaves=leaves, notifiers=notifiers, seed=seed, granule=granule)
    except ValueError as error:
        raise InputError(f"storm: {error}") from None
    for limit in (bits,) if bits else STORM_IPA_BITS:
        machine = machine_of(options, limit, granule, STORM_FRAMES)
        yield Job(scenario, "storm", machine, options.judge or "notifiers")


def workload_jobs(options: CompareOptions) -> Iterator[Job]:
    """The named workloads asked for. Raises InputError."""
    if options.scenarios or options.runs or options.only:
        raise InputError("read workloads beside other runs, expected one kind")
    if options.leaves is not None or options.notifiers is not None:
        raise InputError("read leaves or notifiers beside a workload, expected NAME:leaves=...,notifiers=...")
    granule = options.granule or DEFAULT_GRANULE
    bits = _checked_bits(options.ipa_limit_bits) or DEFAULT_IPA_BITS
    seed = DEFAULT_SEED if options.seed is None else options.seed
    for text in options.workloads:
        workload, values = read_workload(text)
        machine = machine_of(options, bits, granule, STORM_FRAMES)
        scenario = replace(workload.scenario(values, seed, granule), name=text)
        yield Job(scenario, "storm", machine, options.judge or "notifiers")


def jobs(options: CompareOptions) -> Iterator[Job]:
    """Everything ``options`` asks for, in the order of the report."""
    if options.workloads:
        yield from workload_jobs(options)
        return
    if options.scenarios:
        yield from scenario_jobs(options, list(options.scenarios))
        return
    if options.only != "storm":
        yield from kernel_jobs(options)
        if not options.runs:
            yield from scenario_jobs(replace(options, granule=None), bundled_scenarios())
    if options.only != "kernel" and not options.runs:
        yield from storm_jobs(options)


def run_job(job: Job, design: str, answer: Answer | None) -> DesignResult:
    """One job under one design; ``sweep`` is held against the kernel's answer, if there is one."""
    measured = run_judged(job.scenario, design, job.machine, job.mode)
    agreement = None
    if answer is not None and design == CONFORMING:
        agreement = compare_with_kernel(measured.executor, answer)
    return measure(measured, load_cost_model(), kind=job.kind, agreement=agreement)


def conditions(options: CompareOptions) -> dict[str, str]:
    """Under what the numbers of a comparison hold."""
    costs = load_cost_model()
    storms = (
        f"{options.leaves or DEFAULT_LEAVES:,} leaves in {STORM_MMUS} shadow MMUs, "
        f"{options.notifiers or DEFAULT_NOTIFIERS} notifiers of "
        f"{options.granule or DEFAULT_GRANULE}, all touched again after each"
    )
    return {
        "shadowmmu": shadowmmu.__version__,
        "kernels": "interpreted" if INTERPRETED else f"compiled by numba {numba.__version__}",
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "workload": "; ".join(options.workloads) or f"storm: {storms}",
        "seed": str(DEFAULT_SEED if options.seed is None else options.seed),
        "as the architecture": ", ".join(options.as_architecture) or "nothing; all as Linux 7.3.4",
        "modelled time": f"{costs.name}, {costs.unit}",
        "measured time": "this machine, compiled loop from the first notifier to the end, once",
    }


def compare(options: CompareOptions) -> Comparison:
    """Run every job under every design. Raises InputError before anything runs, where it can."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    clock = time.perf_counter()
    designs = design_names(options.designs)
    results = []
    for job in jobs(options):
        options.progress(f"{job.scenario.name} ({job.machine.ipa_limit_bits} bits)")
        answer = job.kernel_run.answer() if job.kernel_run is not None else None
        results += [run_job(job, design, answer) for design in designs]
    return Comparison(
        conditions=conditions(options),
        results=results,
        started=started,
        elapsed_s=time.perf_counter() - clock,
    )
