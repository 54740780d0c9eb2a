"""One point of a sweep: a workload, a design, a machine; its key, and running it.

A point is plain values, so that it goes to a worker process or a cluster as it is. Its result is one flat
row: what was asked, every counter of the run (exact, the same on any machine), the priced units of work from
the first notifier on, and the wall times of this machine apart from these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final, TypeAlias

import shadowmmu
from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.engine.setup import Machine
from shadowmmu.errors import InputError
from shadowmmu.events.schema import Scenario
from shadowmmu.events.workloads import Parameter, Value, named_workload
from shadowmmu.lab.costs import PRICES, work_of
from shadowmmu.lab.measure import counters_of, named, run_judged, verdict_of
from shadowmmu.machine.granule import DEFAULT_GRANULE, GRANULES, page_bytes
from shadowmmu.pgtable.context import M_LEAVES

Row: TypeAlias = dict[str, Any]

CODE_ROOMS: Final = (
    "arch",
    "machine",
    "pgtable",
    "host",
    "kvm",
    "designs",
    "guest",
    "events",
    "engine",
    "verify",
)
"""What decides the counters of a run; a change there makes stored points another version's."""

MACHINE_AXES: Final = (
    Parameter("ipa_bits", 48, "IPA limit of the host, 40 to 52"),
    Parameter("granule", DEFAULT_GRANULE, "page size of the host, and of L1's tables: 4K, 16K or 64K"),
    Parameter("tlbirange", 1, "0: no FEAT_TLBIRANGE"),
    Parameter("fwb", 1, "0: no FEAT_S2FWB"),
    Parameter("precise_updates", 0, "1: L0 ages and write-protects through the design's record"),
    Parameter("seed", 1, "seed of the workload"),
)
IPA_BITS: Final = range(40, 53)
FRAMES: Final = 8192
"""Table frames to start with, of 4K; as many bytes whatever the granule."""
PARAMETER: Final = "p_"
"""What columns of the workload's own parameters begin with: some are called as counters are."""
WORK: Final = "work_"
"""What columns of the priced units of work begin with."""


@dataclass(frozen=True)
class Point:
    """One run. ``values`` has every parameter of the workload, ``machine`` every axis of the machine."""

    workload: str
    design: str
    values: tuple[tuple[str, Value], ...]
    machine: tuple[tuple[str, Value], ...]
    judge: str = "never"

    def key(self, code: str) -> str:
        """What names the point's result: what was asked, and the version of what answers."""
        asked = [code, self.workload, self.design, self.values, self.machine, self.judge]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]

    def described(self) -> str:
        """For a person: workload, design and what differs from the defaults."""
        parameters = {p.name: p.default for p in (*named_workload(self.workload).parameters, *MACHINE_AXES)}
        differing = [f"{k}={v}" for k, v in (*self.values, *self.machine) if parameters.get(k) != v]
        return f"{self.workload}:{','.join(differing)} under {self.design}"


@cache
def code_version() -> str:
    """Hash of the sources that decide the counters: not of the interpreter, not of the machine."""
    digest = hashlib.sha256()
    package = Path(shadowmmu.__file__).parent
    for room in CODE_ROOMS:
        for path in sorted((package / room).rglob("*.py")):
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def machine_of(axes: Mapping[str, Value]) -> Machine:
    """The machine of a point. Raises InputError for one that cannot be modelled."""
    granule = str(axes["granule"])
    if granule not in GRANULES:
        raise InputError(f"read granule {granule}, expected one of {', '.join(GRANULES)}")
    for name in ("tlbirange", "fwb", "precise_updates"):
        if axes[name] not in (0, 1):
            raise InputError(f"read {name} {axes[name]}, expected 0 or 1")
    if int(axes["seed"]) < 0:
        raise InputError(f"read seed {axes['seed']}, expected 0 or more")
    bits = int(axes["ipa_bits"])
    if bits not in IPA_BITS:
        raise InputError(f"read {bits} IPA bits, expected {IPA_BITS[0]} to {IPA_BITS[-1]}")
    return Machine(
        ipa_limit_bits=bits,
        granule=granule,
        tlbirange=bool(axes["tlbirange"]),
        fwb=bool(axes["fwb"]),
        precise_updates=bool(axes["precise_updates"]),
        frames=FRAMES * page_bytes(DEFAULT_GRANULE) // page_bytes(granule),
    )


@lru_cache(maxsize=1)
def _scenario(workload: str, values: tuple[tuple[str, Value], ...], seed: int, granule: str) -> Scenario:
    """The events; kept, because the designs of a point follow each other."""
    return named_workload(workload).scenario(dict(values), seed, granule)


def run_point(point: Point) -> Row:
    """Run one point. Raises InputError where the machine or the workload refuses it, MemoryError."""
    axes = dict(point.machine)
    machine = machine_of(axes)
    if point.design not in CATALOGUE:
        raise InputError(f"read design '{point.design}', expected one of {', '.join(CATALOGUE)}")
    scenario = _scenario(point.workload, point.values, int(axes["seed"]), machine.granule)
    measured = run_judged(scenario, point.design, machine, point.judge)
    verdict = verdict_of(measured)
    state = measured.executor.state
    work = work_of(named(state.count - measured.before))
    counters = counters_of(measured)
    wall = counters.pop("notifier_wall_ns")
    return {
        "key": point.key(code_version()),
        "code": code_version(),
        "shadowmmu": shadowmmu.__version__,
        "workload": point.workload,
        "design": point.design,
        **axes,
        **{PARAMETER + name: value for name, value in point.values},
        "judge": point.judge,
        "verdict": verdict.word,
        "verdict_says": verdict.summary,
        "shadow_mmus": len(state.mmus) - 1,
        "peak_leaves": measured.peaks.leaves,
        "leaves_at_end": int(state.mmus[1:, M_LEAVES].sum()),
        **counters,
        **{WORK + name: work[name] for name in PRICES},
        "measured_ns": float(measured.nanoseconds) or None,
        "measured_notifiers_ns": float(wall) or None,
    }
