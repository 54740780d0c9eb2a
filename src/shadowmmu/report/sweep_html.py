"""A sweep as one self-contained page: plots, tables, conditions; no script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from shadowmmu.lab.costs import CostModel
from shadowmmu.lab.point import Row
from shadowmmu.lab.sweep_metrics import Pivot
from shadowmmu.report.curves import curve, drawable
from shadowmmu.report.sweep_table import cells_of, write_axis

TEMPLATE: Final = "sweep.html.jinja"


def render_sweep(title: str, rows: Sequence[Row], tables: Sequence[Pivot], costs: CostModel) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("shadowmmu.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    shown = [(table, curve(table).svg if drawable(table) else "", cells_of(table)) for table in tables]
    facts = {
        "points": f"{len(rows):,}",
        "workloads": ", ".join(sorted({row["workload"] for row in rows})),
        "sources": ", ".join(sorted({row["code"] for row in rows})),
        "modelled time": f"{costs.name}, {costs.unit}",
        "counters": "exact, the same on any machine",
    }
    return environment.get_template(TEMPLATE).render(title=title, shown=shown, facts=facts, axis=write_axis)
