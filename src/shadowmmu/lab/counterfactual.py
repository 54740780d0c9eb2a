"""``replay``: what every design would have done with a recorded run, fill by fill.

Each recorded fill was a first touch or a refault. A design spares it if its own leaf is still there. Two
rules for L1's invalidations by address: KVM's, which takes up to 1 GiB where the shadow holds no size hint
at the address, and an exact one, which takes the leaves made from the L1 leaf that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from shadowmmu.compiled import Counts
from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.engine.refill import Refilled, refill
from shadowmmu.engine.refill_step import (
    E_CANONICAL,
    E_END,
    E_FLAGS,
    E_KIND,
    E_MMU,
    E_START,
    E_WORD,
    FILL,
    FIRST_TOUCH,
    INVALIDATE_IPA,
    INVALIDATE_RANGE,
    NOTIFY,
    PERMISSION,
    REFAULT_AVOIDABLE,
    REFAULT_GUEST,
    REFAULT_NEEDED,
    REFAULT_UNPLACED,
    RESIZED,
    SPARED,
    STALE,
    UNJOINED,
)
from shadowmmu.lab.compare import design_names
from shadowmmu.lab.costs import load_cost_model
from shadowmmu.lab.measure import named
from shadowmmu.lab.recorded_cost import Fate
from shadowmmu.lab.trace_join import JOINED, JoinedTrace

SCHEMA: Final = "shadowmmu.counterfactual/1"
OUTCOME_NAMES: Final[dict[int, str]] = {
    SPARED: "spared",
    FIRST_TOUCH: "first_touch",
    REFAULT_NEEDED: "refault_needed",
    REFAULT_AVOIDABLE: "refault_avoidable",
    REFAULT_UNPLACED: "refault_unplaced",
    REFAULT_GUEST: "refault_after_l1",
    PERMISSION: "permission",
    RESIZED: "resized",
    STALE: "stale",
    UNJOINED: "unjoined",
}
FATE_OUTCOMES: Final[dict[Fate, tuple[int, ...]]] = {
    Fate.FIRST: (FIRST_TOUCH,),
    Fate.AFTER_NOTIFIER: (REFAULT_NEEDED, REFAULT_AVOIDABLE, REFAULT_UNPLACED),
    Fate.AFTER_GUEST: (REFAULT_GUEST,),
    Fate.REPLACED: (SPARED, PERMISSION, RESIZED, STALE),
}
"""What ``sweep`` may make of a fill that the trace itself shows to be of that sort."""
CAUSE_NAMES: Final = {NOTIFY: "notifier", INVALIDATE_IPA: "tlbi", INVALIDATE_RANGE: "range"}
CONFORMING: Final = "sweep"
"""The design of the recorded kernel."""
SHOWN_DISAGREEMENTS: Final = 10
COUNTED: Final = (
    "chunks_shadow",
    "nodes_visited",
    "fallbacks_mmu",
    "fallbacks_vm",
    "unknown_entries",
    "broken",
)


@dataclass(frozen=True, kw_only=True)
class DesignAnswer:
    """What one design makes of the fills of L2's tables (stage 2 on).

    ``fills`` counts them by outcome, in the order of ``OUTCOME_NAMES``. ``spared_after_notifier``
    and ``spared_after_l1`` split the spared by what the recorded refault was due to. ``counters`` (work) and
    ``modelled_ns`` (the cost model's time of unmaps, record and all refaults) are over all shadow MMUs.
    ``over_unmapped_leaves`` is None where some leaves could not be placed. ``other_spans`` counts
    invalidations that took what the recorded ones did not: with any, spared fills are an upper bound.
    """

    design: str
    claims_safety: bool
    exact: bool
    fills: dict[str, int]
    spared_after_notifier: int
    spared_after_l1: int
    taken_by_notifiers: int
    taken_by_l1: int
    notifiers_that_hit: int
    over_unmapped_leaves: int | None
    other_spans: int
    peak_leaves: int
    record_bytes: int
    counters: dict[str, int]
    modelled_ns: float

    @property
    def remaining(self) -> int:
        """Fills that this design, too, would have had to do (or that nobody knows it would not)."""
        return sum(self.fills.values()) - self.fills["spared"]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Counterfactual:
    """The answer of ``replay``: the trace's own books, how it was joined, and every design's answer.

    ``disagreements`` are the fills where the model of the recorded kernel (``sweep``, KVM's spans) does not
    find what the trace shows: line number, the trace's word, the model's word; the first few.
    ``outcomes`` and ``removed`` have, by (design, exact), the outcome of every event and the leaves of L2's
    tables it took.
    """

    trace: JoinedTrace
    answers: list[DesignAnswer]
    disagreements: list[tuple[int, str, str]]
    disagreeing: int
    compared: int
    """Fills that were compared, those of tables with stage 2 off among them."""
    outcomes: dict[tuple[str, bool], Counts] = field(repr=False, compare=False)
    removed: dict[tuple[str, bool], Counts] = field(repr=False, compare=False)

    @property
    def refaults(self) -> int:
        """Recorded refaults of L2's tables."""
        fates = self.trace.recorded.fates
        return fates[Fate.AFTER_NOTIFIER] + fates[Fate.AFTER_GUEST]

    def stale(self) -> list[DesignAnswer]:
        """Answers of designs that claim safety and kept a leaf which the trace shows to be wrong."""
        return [one for one in self.answers if one.claims_safety and one.fills["stale"]]

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the schema's name first."""
        trace, books = self.trace, self.trace.recorded
        return {
            "schema": SCHEMA,
            "trace": trace.path,
            "ipa_limit_bits": trace.ipa_bits,
            "tables": [
                {"pgt": t.pgt, "vttbrs": list(t.vttbrs), "fills": t.fills, "stage2_on": t.stage2_on}
                for t in trace.tables
            ],
            "canonical_table": trace.canonical,
            "recorded": {
                "fills": trace.fills,
                "first_touches": books.fates[Fate.FIRST],
                "notifiers": books.notifiers,
                "notifiers_that_hit": len(books.sweeps),
                "swept_by_notifiers": books.swept,
                "refaults_after_notifiers": books.fates[Fate.AFTER_NOTIFIER],
                "ranges_of_l1": books.guest_ranges,
                "swept_by_l1": books.guest_swept,
                "refaults_after_l1": books.fates[Fate.AFTER_GUEST],
                "replaced": books.fates[Fate.REPLACED],
            },
            "joined": dict(trace.joins),
            "unresolved": dict(trace.notes),
            "disagreements": {
                "compared": self.compared,
                "count": self.disagreeing,
                "first": [
                    {"line": line, "trace": told, "model": found} for line, told, found in self.disagreements
                ],
            },
            "answers": [one.to_json() for one in self.answers],
        }


def _answer(trace: JoinedTrace, found: Refilled, shown: Counts) -> DesignAnswer:
    """Put what the loop counted into the words of the answer."""
    counters = named(found.counts)
    refaults = counters["refaults_caused"] + counters["refaults_after_guest"]
    priced = {**counters, "refaults_caused": refaults + found.fills[UNJOINED]}
    spared = (found.outcomes == SPARED) & shown
    unplaced = sum(trace.joins.values()) > sum(trace.joins[way] for way in trace.joins if way in JOINED)
    return DesignAnswer(
        design=found.design,
        claims_safety=CATALOGUE[found.design].claims_safety,
        exact=found.exact,
        fills={name: found.fills[number] for number, name in OUTCOME_NAMES.items()},
        spared_after_notifier=int((spared & (trace.fates == Fate.AFTER_NOTIFIER)).sum()),
        spared_after_l1=int((spared & (trace.fates == Fate.AFTER_GUEST)).sum()),
        taken_by_notifiers=found.taken[0],
        taken_by_l1=found.taken[1],
        notifiers_that_hit=found.notifiers_that_hit,
        over_unmapped_leaves=None if unplaced else counters["over_unmapped_leaves"],
        other_spans=found.other_spans,
        peak_leaves=found.peak_leaves,
        record_bytes=found.peak_bytes,
        counters={name: counters[name] for name in COUNTED},
        modelled_ns=load_cost_model().modelled_ns(priced),
    )


def replay_trace(
    trace: JoinedTrace,
    designs: tuple[str, ...] = (),
    rules: tuple[bool, ...] = (False, True),
    progress: Callable[[str], None] = lambda line: None,
) -> Counterfactual:
    """Put the events of ``trace`` through the designs, all by default. Raises InputError for an unknown one.

    ``rules``: False for KVM's span of an invalidation by address, True for the exact one. ``sweep`` under
    KVM's rule is run in any case: it is what the trace itself recorded, so the two must agree.
    """
    names = design_names(designs)
    is_fill = trace.events[:, E_KIND] == FILL
    table = trace.events[:, E_MMU].astype(np.int64)
    shown = is_fill & np.array([False, *trace.shown])[table]
    outcomes: dict[tuple[str, bool], Counts] = {}
    removed: dict[tuple[str, bool], Counts] = {}
    answers = []
    for exact in rules:
        for design in names:
            progress(f"{design}, {'exact' if exact else 'KVM'} invalidations")
            found = refill(design, trace.events, trace.shown, trace.ipa_bits, exact)
            outcomes[design, exact] = found.outcomes
            removed[design, exact] = found.removed
            answers.append(_answer(trace, found, shown))
    model = outcomes.get((CONFORMING, False))
    if model is None:
        model = refill(CONFORMING, trace.events, trace.shown, trace.ipa_bits, False).outcomes
    wrong = _disagreements(trace, model, is_fill)
    return Counterfactual(
        trace=trace,
        answers=answers,
        disagreements=wrong[:SHOWN_DISAGREEMENTS],
        disagreeing=len(wrong),
        compared=int(is_fill.sum()),
        outcomes=outcomes,
        removed=removed,
    )


def _disagreements(trace: JoinedTrace, model: Counts, is_fill: Counts) -> list[tuple[int, str, str]]:
    """Fills that the model of the recorded kernel takes for something else than the trace shows."""
    wrong = []
    for index in np.flatnonzero(is_fill):
        fate, outcome = Fate(int(trace.fates[index])), int(model[index])
        if outcome not in FATE_OUTCOMES[fate]:
            wrong.append((int(trace.line_numbers[index]), fate.name.lower(), OUTCOME_NAMES[outcome]))
    return wrong


def fill_rows(found: Counterfactual) -> Iterator[list[str]]:
    """Every recorded fill as text cells, a heading first: where it is, what it was, what became of it."""
    trace = found.trace
    heading = ["line", "table", "nested_ipa", "size", "pa", "canonical_ipa", "recorded"]
    yield [*heading, *_columns(found)]
    for index in np.flatnonzero(trace.events[:, E_KIND] == FILL):
        event = [int(value) for value in trace.events[index]]
        yield [
            str(trace.line_numbers[index]),
            f"{trace.tables[event[E_MMU] - 1].pgt:#x}",
            f"{event[E_START]:#x}",
            f"{event[E_END] - event[E_START]:#x}",
            f"{event[E_WORD]:#x}",
            f"{event[E_CANONICAL]:#x}" if event[E_FLAGS] else "",
            Fate(int(trace.fates[index])).name.lower(),
            *(OUTCOME_NAMES[int(outcomes[index])] for outcomes in found.outcomes.values()),
        ]


def unmap_rows(found: Counterfactual) -> Iterator[list[str]]:
    """Every unmap as text cells, a heading first: what asked for it, and how many leaves of L2 each took.

    A notifier's range is canonical; L1's is nested, as the recorded kernel took it.
    """
    trace = found.trace
    yield ["line", "cause", "start", "size", *_columns(found)]
    for index in np.flatnonzero(np.isin(trace.events[:, E_KIND], list(CAUSE_NAMES))):
        event = [int(value) for value in trace.events[index]]
        yield [
            str(trace.line_numbers[index]),
            CAUSE_NAMES[event[E_KIND]],
            f"{event[E_START]:#x}",
            f"{event[E_END] - event[E_START]:#x}",
            *(str(removed[index]) for removed in found.removed.values()),
        ]


def _columns(found: Counterfactual) -> list[str]:
    """The headings of the designs, in the order of their answers."""
    return [f"{design}{'/exact' if exact else ''}" for design, exact in found.outcomes]
