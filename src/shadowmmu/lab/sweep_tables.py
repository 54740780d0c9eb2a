"""Which tables a store has when nobody says: cost against the axis that varies most, for each design."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Final

from shadowmmu.errors import InputError
from shadowmmu.lab.grid import TableSpec
from shadowmmu.lab.point import Row
from shadowmmu.lab.sweep_metrics import column_of, mean, quantity_of, selected, varying

USUAL_VALUES: Final = (
    "modelled_per_notifier",
    "refaults_per_notifier",
    "nodes_per_notifier",
    "bytes_per_leaf",
)
WITHOUT_NOTIFIERS: Final = ("modelled", "refaults_caused", "bytes_per_leaf")
MOST_PANELS: Final = 12


def values_of(rows: Sequence[Row], asked: Sequence[str]) -> list[str]:
    """The quantities asked for, else the usual ones that some row has."""
    for key in asked:
        quantity_of(key)
    if asked:
        return list(asked)
    found = [key for key in USUAL_VALUES if mean(rows, quantity_of(key)) is not None]
    return found if USUAL_VALUES[0] in found else list(WITHOUT_NOTIFIERS)


def main_axis(rows: Sequence[Row], asked: str = "") -> str:
    """The axis to draw along: the one asked for, else the numeric one with most values. Raises InputError."""
    if asked:
        if not rows or column_of(rows[0], asked) not in rows[0]:
            raise InputError(f"read axis '{asked}', expected one of {', '.join(varying(rows)) or 'none'}")
        return asked
    counts = {}
    for name in varying(rows):
        seen = {row.get(column_of(row, name)) for row in rows}
        if all(isinstance(value, int | float) for value in seen):
            counts[name] = len(seen)
    return max(counts, key=lambda name: (counts[name], name == "leaves")) if counts else "workload"


def conditions(rows: Sequence[Row], axis: str) -> list[dict[str, Any]]:
    """Every combination of the other axes that vary, in order. Raises InputError if they are too many."""
    others = [name for name in varying(rows) if name not in (axis, "design")]
    seen = [sorted({row.get(column_of(row, name)) for row in rows}, key=str) for name in others]
    found: list[dict[str, Any]] = [dict(zip(others, values, strict=True)) for values in product(*seen)]
    found = [where for where in found if selected(rows, dict(where))]
    if len(found) > MOST_PANELS:
        told = (
            f"{len(found)} combinations of {', '.join(others)}, expected at most {MOST_PANELS}: add --where"
        )
        raise InputError(told)
    return found


def usual_tables(rows: Sequence[Row], asked_axis: str = "", asked: Sequence[str] = ()) -> list[TableSpec]:
    """Tables of the rows: one a quantity and combination of the axes besides."""
    axis = main_axis(rows, asked_axis)
    tables = []
    for where in conditions(rows, axis):
        here = selected(rows, dict(where))
        named = ", ".join(f"{name} {value}" for name, value in where.items())
        for key in values_of(here, asked):
            title = quantity_of(key).label + (f" ({named})" if named else "")
            tables.append(TableSpec(title, axis, "design", key, where))
    return tables
