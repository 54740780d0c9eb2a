"""The tables of a sweep: on a terminal, and as Markdown for a page of documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shadowmmu.lab.sweep_metrics import Pivot, Quantity
from shadowmmu.report import quantities

ABREAST: Final = 6
"""Columns beside each other in one block of a table."""


def write_value(quantity: Quantity, value: float | None) -> str:
    """A number as its unit is written; ``-`` for none."""
    if value is None:
        return "-"
    if quantity.unit == "ns":
        return quantities.duration(value)
    if quantity.unit == "bytes":
        return quantities.size(round(value))
    if quantity.unit == "share":
        return f"{100 * value:.3g} %"
    if quantity.unit == "count" and value == int(value):
        return quantities.count(int(value))
    return quantities.ratio(value)


def write_axis(value: object) -> str:
    """A value of an axis."""
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    )


def cells_of(table: Pivot) -> list[list[str]]:
    """The cells as they are written."""
    return [[write_value(table.quantity, value) for value in row] for row in table.cells]


def print_pivots(tables: Sequence[Pivot], screen: Console) -> None:
    """Print the tables, a few columns at a time."""
    for table in tables:
        for start in range(0, len(table.columns), ABREAST):
            screen.print(Text("\n" + table.spec.title + (" (continued)" if start else ""), style="bold"))
            shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
            shown.add_column(table.spec.rows, no_wrap=True)
            for column in table.columns[start : start + ABREAST]:
                shown.add_column(write_axis(column), justify="right", no_wrap=True)
            for name, cells in zip(table.rows, cells_of(table), strict=True):
                shown.add_row(write_axis(name), *cells[start : start + ABREAST])
            screen.print(shown)
        if table.basis:
            screen.print(Text(table.basis, style="dim"))


def markdown(table: Pivot) -> Iterator[str]:
    """The lines of a table: its title, then the table."""
    yield f"**{table.spec.title}**"
    yield ""
    yield "| " + " | ".join([table.spec.rows, *map(write_axis, table.columns)]) + " |"
    yield "|" + "---|" + "---:|" * len(table.columns)
    for name, cells in zip(table.rows, cells_of(table), strict=True):
        yield "| " + " | ".join([write_axis(name), *cells]) + " |"


def to_json(table: Pivot) -> dict[str, object]:
    """Plain values."""
    return {
        "title": table.spec.title,
        "rows": table.spec.rows,
        "columns": table.spec.columns,
        "value": table.spec.value,
        "unit": table.quantity.unit,
        "where": dict(table.spec.where),
        "row_values": list(table.rows),
        "column_values": list(table.columns),
        "cells": table.cells,
        "seeds": table.samples,
        "seeds_at_least": table.fewest,
    }
