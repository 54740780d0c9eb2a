"""Cost against scale, as SVG: a table of a sweep drawn as one line for each of its columns.

Made like the other plots: offline, by matplotlib, with the page's ink; the lines' own colours are middle
tones that read on light and on dark paper, and each line has a mark of its own besides.
"""

from __future__ import annotations

import io
import math
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from shadowmmu.lab.sweep_metrics import Pivot
from shadowmmu.report.plots import SETTINGS, Plot, for_the_page
from shadowmmu.report.sweep_table import write_axis, write_value

COLOURS: Final = ("#1b7f9c", "#c2571a", "#3f8f3f", "#8a63b8", "#b03a5b", "#8c7a1e")
MARKS: Final = "osD^vPX*<>hd"
DASHES: Final = ("-", "--")
LOG_FROM: Final = 8
"""An axis is logarithmic if its largest value is so many times its smallest."""


def drawable(table: Pivot) -> bool:
    """Whether there is something to draw a line through: two places on a numeric axis."""
    numeric = all(isinstance(value, int | float) for value in table.rows)
    return numeric and len(table.rows) > 1 and any(cell is not None for row in table.cells for cell in row)


def curve(table: Pivot) -> Plot:
    """The table as a plot; the page shows its title above."""
    settings: Any = {**SETTINGS, "svg.hashsalt": table.spec.title}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(9.4, 4.4), layout="constrained")
        axes = figure.subplots()
        for column, name in enumerate(table.columns):
            _line(axes, table, column, write_axis(name))
        _scales(axes, table)
        axes.set_xlabel(table.spec.rows)
        axes.grid(linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(False)
        figure.legend(loc="outside right upper", frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    caption = f"{table.quantity.label}; shorter is better."
    return Plot(table.spec.title, caption, for_the_page(out.getvalue(), table.spec.title))


def _line(axes: Axes, table: Pivot, column: int, label: str) -> None:
    found = [
        (x, row[column]) for x, row in zip(table.rows, table.cells, strict=True) if row[column] is not None
    ]
    axes.plot(
        [float(str(x)) for x, _ in found],
        [float(y or 0) for _, y in found],
        label=label,
        color=COLOURS[column % len(COLOURS)],
        linestyle=DASHES[column // len(COLOURS) % len(DASHES)],
        marker=MARKS[column % len(MARKS)],
        markersize=5,
        linewidth=1.6,
    )


def _scales(axes: Axes, table: Pivot) -> None:
    places = [float(str(x)) for x in table.rows]
    values = [cell for row in table.cells for cell in row if cell is not None]
    if min(places) > 0 and max(places) >= LOG_FROM * min(places):
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(places, [write_axis(x) for x in table.rows], rotation=30 if len(places) > 8 else 0)
    positive = [value for value in values if value > 0]
    if not positive or max(positive) < LOG_FROM * min(positive):
        axes.set_ylim(0, max(values) * 1.1 or 1)
    elif len(positive) == len(values):
        axes.set_yscale("log")
    else:  # a zero has its place below the logarithmic part
        smallest = 10.0 ** math.floor(math.log10(min(positive)))
        axes.set_yscale("symlog", linthresh=smallest, linscale=0.3)
        axes.set_ylim(-smallest / 10, max(values) * 2)
        decades = range(round(math.log10(smallest)), math.ceil(math.log10(max(values))) + 1)
        axes.yaxis.set_major_locator(FixedLocator([0.0, *(10.0**power for power in decades)]))
    quantity = table.quantity
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: write_value(quantity, value)))
    axes.yaxis.set_minor_locator(NullLocator())
