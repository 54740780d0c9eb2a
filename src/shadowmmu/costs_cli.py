"""The verb ``costs``: the prices, where they come from, and what hangs on them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from shadowmmu.lab.calibrate import Fitted
    from shadowmmu.lab.costs import CostModel
    from shadowmmu.lab.sensitivity import Tornado

SCHEMA: Final = "shadowmmu.costs/1"


def _names(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


@click.command("costs")
@click.option("--calibrate", "fit", is_flag=True, help="Fit the prices from the recorded cost runs.")
@click.option("--sensitivity", is_flag=True, help="How each price, off by a factor, moves sweep : design.")
@click.option("--factor", type=click.FloatRange(1, min_open=True), default=4.0, show_default=True)
@click.option(
    "--design",
    "--designs",
    "designs",
    default="",
    callback=_names,
    metavar="NAME|FILE.py[,...]",
    help="With --sensitivity.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def costs(fit: bool, sensitivity: bool, factor: float, designs: tuple[str, ...], as_json: bool) -> None:
    """Show the cost model: each price, its unit and its source.

    Exit code 5 where a price is not what the recorded runs say.
    """
    from shadowmmu.cli import HOLDS, MISMATCH
    from shadowmmu.lab.costs import load_cost_model

    model = load_cost_model()
    fits = _calibrate() if fit else []
    found = _sensitivity(model, designs, factor) if sensitivity else []
    if as_json:
        data: dict[str, Any] = {
            "schema": SCHEMA,
            "name": model.name,
            "unit": model.unit,
            "prices": {name: vars(price) for name, price in model.prices.items()},
        }
        data |= {"calibration": [one.to_json() for one in fits]} if fit else {}
        data |= {"factor": factor, "sensitivity": [one.to_json() for one in found]} if sensitivity else {}
        click.echo(json.dumps(data, indent=1))
    else:
        from shadowmmu.report.costs_table import print_costs
        from shadowmmu.report.table import console

        print_costs(model, fits, found, factor, console())
    sys.exit(HOLDS if all(one.agrees for one in fits) else MISMATCH)


def _calibrate() -> list[Fitted]:
    from shadowmmu.lab.calibrate import calibrate

    return calibrate()


def _sensitivity(model: CostModel, designs: tuple[str, ...], factor: float) -> list[Tornado]:
    from shadowmmu.lab.compare import design_names
    from shadowmmu.lab.sensitivity import USUAL_DESIGNS, tornadoes, workload_rows

    chosen = design_names(designs) if designs else list(USUAL_DESIGNS)
    return tornadoes(workload_rows(chosen), model, factor)
