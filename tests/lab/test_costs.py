"""The cost model: its prices have sources, and it adds up."""

from __future__ import annotations

from collections import defaultdict

import pytest

from shadowmmu.errors import InputError
from shadowmmu.lab.costs import PRICES, load_cost_model


def test_every_price_says_what_it_is_and_whence() -> None:
    model = load_cost_model()
    assert tuple(model.prices) == PRICES
    for price in model.prices.values():
        assert price.ns > 0
        assert price.per
        assert price.source


def test_the_recorded_notifier_is_priced_as_recorded() -> None:
    # kernel_runs/README: 176 M instructions for a notifier over 524,288 leaves at 48 bits.
    counters: dict[str, int] = defaultdict(int, chunks_shadow=1 << 18, leaves_removed=1 << 19)
    assert load_cost_model().modelled_ns(counters) == pytest.approx(176e6, rel=0.01)


def test_the_recorded_refaults_are_priced_as_recorded() -> None:
    counters: dict[str, int] = defaultdict(int, refaults_caused=524_290)
    assert load_cost_model().modelled_ns(counters) == pytest.approx(3855e6, rel=0.01)


def test_only_invalidations_beyond_the_chunks_cost_extra() -> None:
    model = load_cost_model()
    inside: dict[str, int] = defaultdict(int, chunks_shadow=10, tlbi_range_shadow=10)
    beyond: dict[str, int] = defaultdict(int, chunks_shadow=10, tlbi_range_shadow=12)
    extra = model.modelled_ns(beyond) - model.modelled_ns(inside)
    assert extra == pytest.approx(2 * model.prices["flush"].ns)
    whole: dict[str, int] = defaultdict(int, tlbi_vmid_shadow=3)
    assert model.modelled_ns(whole) == pytest.approx(3 * model.prices["flush"].ns)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(InputError, match="read cost model 'guess'"):
        load_cost_model("guess")
