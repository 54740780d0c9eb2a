"""The workload ``l2-boot`` has the shape of the recorded boot, counted again in the trace."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest

from shadowmmu.compiled import INTERPRETED
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.refill_step import E_END, E_KIND, E_MMU, E_START, FILL, INVALIDATE_IPA, NOTIFY
from shadowmmu.engine.setup import Machine
from shadowmmu.events import l2_boot
from shadowmmu.formats.shadow_trace import open_shadow_trace
from shadowmmu.lab.trace_join import JoinedTrace, join_trace
from shadowmmu.machine.counters import (
    FIRST_TOUCHES,
    LEAVES_MAPPED,
    OVER_UNMAPPED_LEAVES,
    REFAULTS_GUEST,
    REFAULTS_NOTIFIER,
)

PAGE = 4096
COLLAPSED = 2 << 20


@pytest.fixture(scope="module")
def boot() -> JoinedTrace:
    with open_shadow_trace("l2-boot-khugepaged") as opened:
        return join_trace(opened)


def fills(trace: JoinedTrace) -> list[int]:
    """Nested addresses of the fills of L2's table, in order."""
    events = trace.events[trace.events[:, E_KIND] == FILL]
    return [int(e[E_START]) for e in events if trace.shown[int(e[E_MMU]) - 1]]


def test_pages_clusters_and_touch_runs(boot: JoinedTrace) -> None:
    first = list(dict.fromkeys(fills(boot)))
    assert len(first) == l2_boot.FIRST_TOUCHES
    places = sorted(first)
    ranges = 1 + sum(b - a != PAGE for a, b in pairwise(places))
    assert len(first) / ranges == pytest.approx(l2_boot.CLUSTER, rel=0.01)
    untouched = (places[-1] - places[0]) // PAGE + 1 - len(first)
    assert 2 * untouched / (ranges - 1) == pytest.approx(l2_boot.GAP, rel=0.02)
    runs = 1 + sum(b - a != PAGE for a, b in pairwise(first))
    assert len(first) / runs == pytest.approx(l2_boot.TOUCH_RUN, rel=0.01)


def test_disturbances(boot: JoinedTrace) -> None:
    """Notifiers of 2M in a row are one disturbance if no fill is between them."""
    seen: set[int] = set()
    again = 0
    found: list[list[int]] = []
    for event in boot.events:
        kind = int(event[E_KIND])
        if kind == FILL and boot.shown[int(event[E_MMU]) - 1]:
            again += int(event[E_START]) in seen
            seen.add(int(event[E_START]))
        elif kind == INVALIDATE_IPA or (kind == NOTIFY and event[E_END] - event[E_START] == COLLAPSED):
            found.append([len(seen), int(kind == NOTIFY), again])
    grouped: list[l2_boot.Disturbance] = []
    for _, group in groupby(found):
        rows = list(group)
        grouped.append(l2_boot.Disturbance(rows[0][0], sum(row[1] for row in rows), rows[0][2]))
    after = [*(later.again for later in grouped[1:]), again]
    refaults = [total - one.again for one, total in zip(grouped, after, strict=True)]
    recorded = [one._replace(again=count) for one, count in zip(grouped, refaults, strict=True)]
    assert tuple(recorded) == l2_boot.DISTURBANCES


@pytest.mark.skipif(INTERPRETED, reason="a whole boot; the figures are the same")
def test_under_sweep_it_costs_what_the_recorded_boot_cost(boot: JoinedTrace) -> None:
    """A model of a distribution, so it comes near; ``first touches`` are exact but for the code page."""
    executor = Executor(l2_boot.l2_boot(leaves=5242, seed=1), "sweep", Machine(ipa_limit_bits=40))
    executor.run()
    count = executor.state.count
    recorded = boot.recorded
    assert count[FIRST_TOUCHES] == l2_boot.FIRST_TOUCHES + 1
    assert count[LEAVES_MAPPED] == pytest.approx(boot.fills, rel=0.05)
    assert count[OVER_UNMAPPED_LEAVES] == pytest.approx(recorded.swept, rel=0.1)
    by_notifier = sum(one.again for one in l2_boot.DISTURBANCES if one.collapses)
    by_guest = sum(one.again for one in l2_boot.DISTURBANCES if not one.collapses)
    assert count[REFAULTS_NOTIFIER] == pytest.approx(by_notifier, rel=0.1)
    assert count[REFAULTS_GUEST] == pytest.approx(by_guest, rel=0.1)
