"""What a question to the lab is, and what its answer is: plain frozen records.

The answers are what every report reads: the terminal's tables, ``--json`` and the HTML page. ``to_json``
gives plain values in a fixed order, under a schema name that changes when a field changes its meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

COMPARISON_SCHEMA: Final = "shadowmmu.comparison/1"
TRANSCRIPT_SCHEMA: Final = "shadowmmu.transcript/1"

RunKind: TypeAlias = Literal["kernel", "storm", "scenario"]
Judge: TypeAlias = Literal["always", "dumps", "never"]
Json: TypeAlias = dict[str, Any]


def _silent(line: str) -> None:
    """Progress nobody reads."""


@dataclass(frozen=True, kw_only=True)
class ScenarioSource:
    """A scenario as the user gave it: ``name`` is its file name, or ``<stdin>``."""

    name: str
    text: str


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What ``compare`` was asked. None and empty mean: what the run or the lab takes by itself.

    ``scenarios`` are the user's own; ``runs`` are names of bundled kernel runs; ``workloads`` are written
    ``NAME:key=value,...``; with none of them, all bundled runs and the default storms. ``progress`` gets a
    line now and then, for a person who waits.
    """

    scenarios: tuple[ScenarioSource, ...] = ()
    runs: tuple[str, ...] = ()
    designs: tuple[str, ...] = ()
    ipa_limit_bits: int | None = None
    tlbirange: bool = True
    fwb: bool = True
    granule: str | None = None
    seed: int | None = None
    leaves: int | None = None
    notifiers: int | None = None
    workloads: tuple[str, ...] = ()
    judge: Judge | None = None
    only: Literal["kernel", "storm"] | None = None
    as_architecture: tuple[str, ...] = ()
    progress: Callable[[str], None] = field(default=_silent, compare=False, repr=False)


@dataclass(frozen=True)
class Verdict:
    """Whether the invariants held. ``safe`` False with ``judged`` False means: nobody looked.

    ``witness`` is, for a refuted design, the event, the stale leaf, the chain of addresses behind it
    and the rule it breaks: one line each, ready to print.
    """

    safe: bool
    summary: str
    witness: list[str] = field(default_factory=list)
    judged: bool = True

    def __post_init__(self) -> None:
        if self.safe and not self.judged:
            raise ValueError("a verdict nobody judged cannot be safe")

    @property
    def refuted(self) -> bool:
        """Whether a violation was found."""
        return self.judged and not self.safe

    @property
    def word(self) -> str:
        """``safe``, ``REFUTED`` or ``not judged``."""
        if not self.judged:
            return "not judged"
        return "safe" if self.safe else "REFUTED"

    def to_json(self) -> Json:
        """Plain values."""
        return {
            "safe": self.safe if self.judged else None,
            "summary": self.summary,
            "witness": list(self.witness),
        }


@dataclass(frozen=True)
class Agreement:
    """How the model's dumps and counts compare with what the real kernel answered in the same run."""

    compared_dumps: int
    agrees: bool
    first_difference: list[str] = field(default_factory=list)

    def to_json(self) -> Json:
        """Plain values."""
        return {
            "compared_dumps": self.compared_dumps,
            "agrees": self.agrees,
            "first_difference": list(self.first_difference),
        }


@dataclass(frozen=True, kw_only=True)
class DesignResult:
    """One run under one design.

    ``counters`` has the public names of ``machine.counters`` and what else was measured, among them
    ``tlbis`` (TLB invalidations of any kind by L0) and ``reverse_map_bytes`` (the largest the record
    grew). ``leaves`` is the most shadow leaves at one time, over all shadow MMUs. ``modelled_ns`` is the
    cost model's time of the notifiers and of the refaults they caused, ``measured_ns`` the wall time of
    the compiled run.
    ``claims_safety`` is False for a negative control: refuting it is the expected outcome.
    """

    run: str
    kind: RunKind
    design: str
    ipa_limit_bits: int
    shadow_mmus: int
    leaves: int
    verdict: Verdict
    counters: dict[str, int]
    modelled_ns: float
    measured_ns: float
    agreement: Agreement | None = None
    claims_safety: bool = True

    def to_json(self) -> Json:
        """Plain values; the counters in alphabetical order."""
        return {
            "run": self.run,
            "kind": self.kind,
            "design": self.design,
            "claims_safety": self.claims_safety,
            "ipa_limit_bits": self.ipa_limit_bits,
            "shadow_mmus": self.shadow_mmus,
            "leaves": self.leaves,
            "verdict": self.verdict.to_json(),
            "agreement": None if self.agreement is None else self.agreement.to_json(),
            "counters": {name: int(self.counters[name]) for name in sorted(self.counters)},
            "modelled_ns": float(self.modelled_ns),
            "measured_ns": float(self.measured_ns),
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The answer of ``compare``: every result, in the order of the runs and then of the designs.

    ``conditions`` says under what the numbers hold: versions, machine, seed, cost model. ``started`` is
    an ISO 8601 time.
    """

    conditions: dict[str, str]
    results: list[DesignResult]
    started: str
    elapsed_s: float

    def to_json(self) -> Json:
        """Plain values, with the schema's name first."""
        return {
            "schema": COMPARISON_SCHEMA,
            "started": self.started,
            "elapsed_s": round(float(self.elapsed_s), 3),
            "conditions": dict(self.conditions),
            "results": [result.to_json() for result in self.results],
        }


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """The answer of ``run`` and ``walk``: lines to print, the same as plain values, a verdict if asked."""

    title: str
    lines: list[str]
    data: Json = field(default_factory=dict)
    verdict: Verdict | None = None

    def to_json(self) -> Json:
        """Plain values, with the schema's name first."""
        return {
            "schema": TRANSCRIPT_SCHEMA,
            "title": self.title,
            "verdict": None if self.verdict is None else self.verdict.to_json(),
            **self.data,
        }
