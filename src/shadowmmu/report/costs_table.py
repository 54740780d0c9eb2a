"""The cost model as text: prices with sources, their fits, and the tornado table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shadowmmu.lab.calibrate import TOLERANCE, Fitted
from shadowmmu.lab.costs import CostModel
from shadowmmu.lab.sensitivity import BASELINE, Tornado
from shadowmmu.report import quantities

SWINGS_SHOWN: Final = 2
"""The prices that move a ratio most: the others are in ``--json``."""


def print_costs(
    model: CostModel, fits: Sequence[Fitted], found: Sequence[Tornado], factor: float, screen: Console
) -> None:
    """Print what there is of each."""
    _prices(model, screen)
    if fits:
        _fits(fits, screen)
    if found:
        _tornadoes(found, factor, screen)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for place, heading in enumerate(headings):
        table.add_column(heading, no_wrap=place == 0, justify="left" if place == 0 else "right")
    return table


def _prices(model: CostModel, screen: Console) -> None:
    screen.print(Text(f"{model.name}: {model.unit}", style="bold"))
    table = _table("price", "ns", "per", "source")
    for name, price in model.prices.items():
        table.add_row(name, f"{price.ns:g}", price.per, price.source)
    for column in table.columns[2:]:
        column.justify = "left"
    screen.print(table)


def _fits(fits: Sequence[Fitted], screen: Console) -> None:
    told = f"\nFitted from the recorded runs of Linux 7.3.4; a price may differ by {100 * TOLERANCE:g} %"
    screen.print(Text(told, style="bold"))
    table = _table("price", "fitted", "model", "differs", "steps", "worst residual", "")
    for one in fits:
        table.add_row(
            one.name,
            f"{one.fitted_ns:,.1f}",
            f"{one.model_ns:g}",
            f"{100 * one.difference:+.2f} %",
            str(one.observations),
            f"{100 * one.worst_residual:.2g} %",
            "agrees" if one.agrees else "DIFFERS",
        )
    screen.print(table)


def _tornadoes(found: Sequence[Tornado], factor: float, screen: Console) -> None:
    told = f"\n{BASELINE} : design, and its spread with one price off by {factor:g} either way"
    screen.print(Text(told, style="bold"))
    table = _table("workload", "design", "ratio", "least", "most", "price that moves it most", "next")
    for one in found:
        swings = [
            f"{swing.price} {quantities.ratio(swing.low)} .. {quantities.ratio(swing.high)}"
            for swing in one.swings[:SWINGS_SHOWN]
        ]
        ratios = [quantities.ratio(value) for value in (one.ratio, one.least, one.most)]
        table.add_row(one.workload, one.design, *ratios, *swings)
    screen.print(table)
    turned = [one for one in found if one.ratio > 1 > one.least or one.ratio < 1 < one.most]
    names = ", ".join(f"{one.workload} under {one.design}" for one in turned)
    screen.print(Text(f"turned round by one price: {names or 'none'}"))
