"""The rows of a replayed trace, each declared once, and the answer in a few sentences.

The text and the page iterate ``ROWS``; what is printed of the trace itself is ``recorded``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shadowmmu.lab.counterfactual import Counterfactual, DesignAnswer
from shadowmmu.lab.recorded_cost import Fate
from shadowmmu.report import quantities

RULES: Final[dict[bool, str]] = {
    False: "L1's invalidations as KVM spans them",
    True: "L1's invalidations exact",
}


@dataclass(frozen=True)
class Row:
    """One row: label, what it means, how it is written. ``always`` keeps it where all values are 0."""

    label: str
    meaning: str
    read: Callable[[DesignAnswer], int | float | None]
    write: Callable[[int | float], str]
    always: bool = True

    def text(self, answer: DesignAnswer) -> str:
        """The value as it is printed; ``-`` where it is not known."""
        value = self.read(answer)
        return "-" if value is None else self.write(value)


def _count(value: int | float) -> str:
    return quantities.count(int(value))


def _bytes(value: int | float) -> str:
    return quantities.size(int(value))


def _fill(label: str, key: str, meaning: str, always: bool = True) -> Row:
    return Row(label, meaning, lambda answer: answer.fills[key], _count, always)


def _work(label: str, key: str, meaning: str) -> Row:
    return Row(label, meaning, lambda answer: answer.counters[key], _count, False)


ROWS: Final[tuple[Row, ...]] = (
    Row("fills that remain", "recorded fills less the spared ones", lambda a: a.remaining, _count),
    _fill("spared", "spared", "recorded fills whose leaf the design still has"),
    Row(
        "  refaults after notifiers",
        "the spared that the recorded host took with a notifier",
        lambda a: a.spared_after_notifier,
        _count,
    ),
    Row(
        "  refaults after L1",
        "the spared that the recorded host took for L1",
        lambda a: a.spared_after_l1,
        _count,
    ),
    _fill("first touches", "first_touch", "fills of an address never filled before"),
    _fill(
        "refaults: page was taken",
        "refault_needed",
        "a notifier cleared the leaf, and its range held the page",
    ),
    _fill(
        "refaults: over-unmapped", "refault_avoidable", "a notifier cleared the leaf for another page's sake"
    ),
    _fill(
        "refaults: notifier, unplaced",
        "refault_unplaced",
        "a notifier cleared the leaf; the page is not known, so nor is whether it had to",
        always=False,
    ),
    _fill(
        "refaults: L1 invalidated",
        "refault_after_l1",
        "an invalidation by L1, or a recycling, cleared the leaf",
    ),
    _fill(
        "permission faults at most", "permission", "the leaf is there with fewer permissions", always=False
    ),
    _fill("resized", "resized", "the design has leaves of other sizes there", always=False),
    _fill(
        "unjoined, maybe spared",
        "unjoined",
        "no canonical address was found: never counted as spared",
        always=False,
    ),
    _fill("STALE", "stale", "the design still has a leaf to another page than L2 got", always=False),
    Row("leaves taken by notifiers", "of L2's tables", lambda a: a.taken_by_notifiers, _count),
    Row("notifiers that took any", "of L2's tables", lambda a: a.notifiers_that_hit, _count),
    Row("leaves taken for L1", "of L2's tables", lambda a: a.taken_by_l1, _count),
    Row(
        "over-unmapped, all MMUs",
        "leaves cleared by a notifier that did not name their page; all shadow MMUs, not L2's alone",
        lambda a: a.over_unmapped_leaves,
        _count,
    ),
    _work("fallbacks to a whole MMU", "fallbacks_mmu", "unmaps where the record could not say"),
    _work("fallbacks to the whole VM", "fallbacks_vm", "unmaps where it could not name the MMU either"),
    _work("entries made UNKNOWN", "unknown_entries", "record entries that lost their nested address"),
    _work("chunks walked", "chunks_shadow", "calls of the unmap walker on shadow tables"),
    _work("record nodes visited", "nodes_visited", "nodes or words of the reverse map read"),
    Row("record bytes", "the largest the record was seen", lambda a: a.record_bytes, _bytes, False),
    Row("most leaves, all MMUs", "at one time, all shadow MMUs", lambda a: a.peak_leaves, _count),
    Row(
        "modelled time",
        "the cost model's time of unmaps, record and every refault; all shadow MMUs",
        lambda a: a.modelled_ns,
        quantities.duration,
    ),
)


def rows_for(answers: list[DesignAnswer]) -> list[Row]:
    """The rows that say something of these answers."""
    return [row for row in ROWS if row.always or any(row.read(answer) for answer in answers)]


def recorded(found: Counterfactual) -> list[tuple[str, str]]:
    """What the trace itself shows, as (heading, value): the host's own facts."""
    books = found.trace.recorded
    return [
        ("first touches", _count(books.fates[Fate.FIRST])),
        ("notifiers (that hit)", f"{_count(books.notifiers)} ({_count(len(books.sweeps))})"),
        ("leaves swept", _count(books.swept)),
        ("refaults", _count(books.fates[Fate.AFTER_NOTIFIER])),
        ("L1 ranges", _count(books.guest_ranges)),
        ("leaves swept", _count(books.guest_swept)),
        ("refaults", _count(books.fates[Fate.AFTER_GUEST])),
    ]


def percent(part: int, whole: int) -> str:
    """A share, with one digit."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def headline(found: Counterfactual) -> list[str]:
    """The answer: what share of the fills were repairs, and what the best safe design spares of them."""
    trace = found.trace
    share = percent(found.refaults, trace.fills)
    told = f"{_count(trace.fills)} shadow fills of L2; {_count(found.refaults)} of them ({share}) repair"
    lines = [f"{told} what a notifier or L1's own invalidation had taken."]
    for exact, rule in RULES.items():
        able = [one for one in found.answers if one.exact == exact and one.claims_safety]
        if able:
            best = max(able, key=lambda one: one.fills["spared"])
            spared = best.fills["spared"]
            equal = [one.design for one in able if one.fills["spared"] == spared]
            verb = "spares" if len(equal) == 1 else "spare"
            share = percent(spared, found.refaults)
            lines.append(f"{rule}: {', '.join(equal)} {verb} {_count(spared)} of these ({share}).")
    return lines


def agreement(found: Counterfactual) -> str:
    """Whether the model of the recorded kernel finds every fill to be what the trace shows."""
    fills = _count(found.compared)
    if not found.disagreeing:
        return f"sweep, the recorded kernel's own way, finds all {fills} fills to be what the trace shows"
    wrong = _count(found.disagreeing)
    return f"sweep takes {wrong} of {fills} fills for something else than the trace shows"


def unresolved(found: Counterfactual) -> list[tuple[str, str]]:
    """How the fills were joined and what was left out, in numbers."""
    rows = [(way, _count(count)) for way, count in found.trace.joins.most_common()]
    rows += [(name, _count(count)) for name, count in found.trace.notes]
    for answer in found.answers:
        if answer.other_spans:
            rule = RULES[answer.exact].lower()
            name = f"{answer.design}, {rule}: took what was not recorded, so its spared are an upper bound"
            rows.append((name, _count(answer.other_spans)))
    return rows
