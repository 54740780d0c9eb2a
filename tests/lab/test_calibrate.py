"""Prices against the recorded cost runs, and how far a conclusion hangs on one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shadowmmu.compiled import INTERPRETED
from shadowmmu.errors import InputError
from shadowmmu.lab.calibrate import TOLERANCE, Fitted, calibrate, cost_runs
from shadowmmu.lab.costs import PRICES, load_cost_model, work_of
from shadowmmu.lab.point import Row
from shadowmmu.lab.sensitivity import SMALL, ratio, tornado, tornadoes, workload_rows

pytestmark = pytest.mark.skipif(INTERPRETED, reason="full unmaps at 48 bits: a million chunks")


@pytest.fixture(scope="module")
def fits() -> list[Fitted]:
    return calibrate()


def test_the_prices_are_what_the_recorded_runs_say(fits: list[Fitted]) -> None:
    assert [one.name for one in fits] == ["chunk", "leaf", "refault"]
    for one in fits:
        assert abs(one.difference) < TOLERANCE, one
        assert one.agrees
    chunk, leaf, refault = (one.difference for one in fits)
    assert abs(chunk) < 0.001
    assert abs(leaf) < 0.03
    assert abs(refault) < 0.005


@pytest.mark.parametrize("name", ["chunk", "leaf", "refault"])
def test_a_price_that_is_off_is_found(fits: list[Fitted], name: str) -> None:
    model = load_cost_model().scaled(name, 1 + 2 * TOLERANCE)
    found = {one.name: replace(one, model_ns=model.prices[one.name].ns).agrees for one in fits}
    assert [known for known, agrees in found.items() if not agrees] == [name]


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(InputError, match="different amounts of work"):
        calibrate([])
    assert len(cost_runs()) >= 6


def made_up(design: str, **work: int) -> Row:
    row: dict[str, Any] = {"workload": "w", "design": design}
    return row | {"work_" + name: work.get(name, 0) for name in PRICES}


def test_a_ratio_moves_with_the_prices_it_hangs_on() -> None:
    costs = load_cost_model()
    full, precise = made_up("sweep", chunk=100, refault=10), made_up("tree", node=20, refault=1)
    chunk, refault, node = (costs.prices[name].ns for name in ("chunk", "refault", "node"))
    found = tornado(full, precise, costs, 4)
    expected = (100 * chunk + 10 * refault) / (20 * node + refault)
    assert found.ratio == pytest.approx(expected)
    swings = {swing.price: swing for swing in found.swings}
    assert swings["chunk"].high == pytest.approx((400 * chunk + 10 * refault) / (20 * node + refault))
    assert swings["node"].low == pytest.approx((100 * chunk + 10 * refault) / (5 * node + refault))
    assert swings["leaf"].span == swings["scan"].span == 1
    assert [s.span for s in found.swings] == sorted((s.span for s in found.swings), reverse=True)
    assert found.least < found.ratio < found.most


def test_all_prices_off_alike_move_nothing() -> None:
    costs = load_cost_model()
    scaled = costs
    for name in PRICES:
        scaled = scaled.scaled(name, 3)
    full, precise = made_up("sweep", chunk=9, leaf=5, refault=3), made_up("tree", node=7, scan=2, flush=1)
    assert ratio(full, precise, scaled) == pytest.approx(ratio(full, precise, costs))


def test_no_work_is_no_ratio() -> None:
    full, idle = made_up("sweep", chunk=1), made_up("tree")
    assert tornadoes([full, idle], load_cost_model()) == []
    with pytest.raises(InputError, match="no priced work"):
        ratio(full, idle, load_cost_model())


def test_the_work_that_is_priced_is_the_whole_price() -> None:
    counters = dict.fromkeys(
        ["chunks_shadow", "leaves_removed", "refaults_caused", "nodes_visited", "descriptors_scanned"], 3
    )
    counters |= {"tlbi_range_shadow": 4, "tlbi_vmid_shadow": 1}
    costs = load_cost_model()
    assert work_of(counters) == {"chunk": 3, "leaf": 3, "refault": 3, "flush": 2, "node": 3, "scan": 3}
    assert costs.price_of(work_of(counters)) == costs.modelled_ns(counters)


def test_a_notifier_bound_workload_stays_with_the_precise_design() -> None:
    small = {name: {**SMALL[name], "leaves": [400], "ipa_bits": [40]} for name in ("ksm", "balloon")}
    rows = workload_rows(["reverse_table"], small)
    found = tornadoes(rows, load_cost_model())
    assert [(one.workload, one.design) for one in found] == [
        ("ksm", "reverse_table"),
        ("balloon", "reverse_table"),
    ]
    assert all(1 < one.least < one.most for one in found)
