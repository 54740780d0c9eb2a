"""``replay`` on the recorded traces: the host's books, the model's agreement, and an independent answer."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from naive_replay import naive_spared
from trace_lab import PAGE, TraceText

from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.engine.refill_step import E_KIND, FILL, SPARED
from shadowmmu.errors import InputError, UndeterminedError
from shadowmmu.formats.runs import bundled_runs
from shadowmmu.formats.shadow_trace import bundled_traces, open_shadow_trace
from shadowmmu.lab.counterfactual import Counterfactual, fill_rows, replay_trace
from shadowmmu.lab.recorded_cost import Fate
from shadowmmu.lab.trace_join import AMBIGUOUS, NOT_FOUND, join_trace

# What kernel_runs/linux/count.py printed for the recorded runs, written down with them: first touches,
# notifiers (that hit live leaves), leaves they swept, refaults; then ranges by L1, leaves swept, refaults.
BOOKS = {
    "l2-boot-prefaulted": (5243, 0, 0, 0, 0, 15, 6587, 4899),
    "l2-boot-khugepaged": (5242, 39, 8, 11354, 6372, 15, 4935, 4675),
    "l2-workload-ksm": (10848, 611, 8, 14590, 5335, 15, 6607, 5014),
}


@functools.cache
def replayed(name: str) -> Counterfactual:
    with open_shadow_trace(name) as trace:
        return replay_trace(join_trace(trace))


def test_the_bundled_traces_are_those_with_books() -> None:
    assert sorted(bundled_traces()) == sorted(BOOKS)


@pytest.mark.parametrize("name", BOOKS)
def test_the_recorded_table_comes_out(name: str) -> None:
    books = replayed(name).trace.recorded
    assert (
        books.fates[Fate.FIRST],
        books.notifiers,
        len(books.sweeps),
        books.swept,
        books.fates[Fate.AFTER_NOTIFIER],
        books.guest_ranges,
        books.guest_swept,
        books.fates[Fate.AFTER_GUEST],
    ) == BOOKS[name]


@pytest.mark.parametrize("name", BOOKS)
def test_every_fill_is_joined_and_sweep_is_what_was_recorded(name: str) -> None:
    found = replayed(name)
    assert found.trace.joins[NOT_FOUND] == found.trace.joins[AMBIGUOUS] == 0
    assert (found.disagreeing, found.disagreements) == (0, [])
    first, _notifiers, hit, swept, caused, _ranges, taken, after = BOOKS[name]
    sweep = next(one for one in found.answers if one.design == "sweep" and not one.exact)
    fills = sweep.fills
    assert (fills["spared"], fills["first_touch"], fills["refault_after_l1"]) == (0, first, after)
    assert fills["refault_needed"] + fills["refault_avoidable"] == caused
    assert (sweep.notifiers_that_hit, sweep.taken_by_notifiers, sweep.taken_by_l1) == (hit, swept, taken)


@pytest.mark.parametrize("name", BOOKS)
@pytest.mark.parametrize("exact", [False, True])
def test_an_exact_record_spares_what_dictionaries_say(name: str, exact: bool) -> None:
    found = replayed(name)
    is_fill = found.trace.events[:, E_KIND] == FILL
    spared = np.flatnonzero((found.outcomes["reverse_table", exact] == SPARED) & is_fill)
    assert spared.tolist() == naive_spared(found.trace, exact)


@pytest.mark.parametrize("name", BOOKS)
def test_the_answers_add_up(name: str) -> None:
    found = replayed(name)
    assert {(one.design, one.exact) for one in found.answers} == {
        (design, exact) for design in CATALOGUE for exact in (False, True)
    }
    for one in found.answers:
        assert sum(one.fills.values()) == found.trace.fills
        assert one.spared_after_notifier + one.spared_after_l1 == one.fills["spared"]
        assert one.remaining == found.trace.fills - one.fills["spared"]
        assert one.other_spans == 0
        assert one.fills["stale"] == 0 or not one.claims_safety
        assert one.fills["first_touch"] == BOOKS[name][0]
    assert found.stale() == []


def test_a_precise_design_with_exact_invalidations_spares_nearly_every_repair() -> None:
    for name in BOOKS:
        found = replayed(name)
        best = next(one for one in found.answers if one.design == "reverse_table" and one.exact)
        assert found.refaults - best.fills["spared"] == best.fills["refault_needed"]
        assert best.fills["spared"] > 0.99 * found.refaults


def test_the_recorded_scenarios_agree_with_sweep_too() -> None:
    replayable = 0
    for run in bundled_runs():
        try:
            with open_shadow_trace(str(run.answer_path)) as trace:
                joined = join_trace(trace)
        except (InputError, UndeterminedError):
            continue  # no buffer in it, or no fill
        found = replay_trace(joined, ("sweep",), (False,))
        assert (found.disagreements, found.compared > 0) == ([], True), run.name
        replayable += 1
    assert replayable > 16  # all sixteen single behaviours, and longer runs


def test_json_has_plain_values_only_and_every_count() -> None:
    found = replayed("l2-boot-khugepaged")
    data = json.loads(json.dumps(found.to_json()))
    assert data["schema"] == "shadowmmu.counterfactual/1"
    assert data["recorded"]["refaults_after_notifiers"] == 6372
    assert sum(data["joined"].values()) == data["recorded"]["fills"] == 16289
    assert len(data["answers"]) == len(found.answers)


def test_every_fill_can_be_listed_with_what_became_of_it() -> None:
    found = replayed("l2-boot-prefaulted")
    heading, *rows = fill_rows(found)
    spared = heading.index("reverse_table/exact")
    assert len(rows) == found.compared
    assert sum(row[spared] == "spared" for row in rows) == 4899
    assert {row[heading.index("recorded")] for row in rows} == {"first", "after_guest"}


def test_a_trace_that_lies_disagrees_with_sweep() -> None:
    """A fill with no sweep before it, of an address that has its leaf: only a lost event explains it."""
    text = TraceText().canonical(0x4000_0000, 0x9000_0000).shadow(0x8000_0000, 0x9000_0000)
    text.event("unmap_gfn", "start=0x50000 end=0x50001").event("unmap_gfn_ret")
    found = replay_trace(text.shadow(0x8000_0000, 0x9000_0000).join(), ("reverse_table",))
    assert found.disagreements == [(6, "replaced", "refault_avoidable")]
    assert found.outcomes["reverse_table", False][2] == SPARED


def test_unknown_designs_are_refused() -> None:
    text = TraceText().canonical(0x4000_0000, 0x9000_0000).shadow(0x8000_0000, 0x9000_0000, size=PAGE)
    with pytest.raises(InputError, match="one of sweep"):
        replay_trace(text.join(), ("magic",))
