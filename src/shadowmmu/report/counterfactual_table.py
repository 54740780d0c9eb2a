"""A replayed trace as text: the host's own books, the join, and a column for each design."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from shadowmmu.lab.counterfactual import Counterfactual, DesignAnswer
from shadowmmu.report.counterfactual_rows import (
    RULES,
    agreement,
    headline,
    recorded,
    rows_for,
    unresolved,
)

ABREAST: Final = 4
"""Designs beside each other in one block."""


def print_counterfactual(found: Counterfactual, screen: Console) -> None:
    """Print everything; only tables are fitted to the width."""
    with screen.capture() as captured:
        for part in _parts(found):
            screen.print(part, soft_wrap=isinstance(part, Text))
    for line in captured.get().splitlines():
        screen.file.write(line.rstrip() + "\n")


def _parts(found: Counterfactual) -> Iterator[RenderableType]:
    yield Text(f"{found.trace.path}, {found.trace.ipa_bits}-bit IPA limit", style="bold")
    yield from map(Text, headline(found))
    yield from _recorded(found)
    for exact, rule in RULES.items():
        answers = [one for one in found.answers if one.exact == exact]
        for start in range(0, len(answers), ABREAST):
            yield Text(f"\n{rule}{' (continued)' if start else ''}", style="bold")
            yield _answers(answers[start : start + ABREAST], answers)
    yield Text("\nThe join, and what was left out", style="bold")
    names = _table()
    names.add_column("", overflow="fold")
    names.add_column("", justify="right", no_wrap=True)
    names.show_header = False
    for name, count in unresolved(found):
        names.add_row(name, count)
    yield names
    yield from _agreement(found)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")


def _recorded(found: Counterfactual) -> Iterator[RenderableType]:
    cells = recorded(found)
    table = _table()
    for name, _value in cells:
        table.add_column(name, justify="right")
    table.add_row(*(value for _name, value in cells))
    yield Text(
        "\nAs recorded: what notifiers took and caused, then what L1's invalidations did", style="bold"
    )
    yield table


def _answers(block: list[DesignAnswer], answers: list[DesignAnswer]) -> Table:
    table = _table()
    table.add_column("", no_wrap=True)
    for one in block:
        name = one.design if one.claims_safety else f"{one.design} (unsafe)"
        table.add_column(name, justify="right", no_wrap=True, min_width=12)
    for row in rows_for(answers):
        style = "bold red" if row.label == "STALE" else ""
        table.add_row(row.label, *(Text(row.text(one), style=style) for one in block))
    return table


def _agreement(found: Counterfactual) -> Iterator[Text]:
    yield Text("\n" + agreement(found), style="bold red" if found.disagreeing else "green")
    for line, told, model in found.disagreements:
        yield Text(f"  line {line}: the trace shows {told}, sweep finds {model}")
