"""Curves and tables of sweeps, from numbers made up for the purpose."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from shadowmmu.lab.costs import load_cost_model
from shadowmmu.lab.grid import TableSpec
from shadowmmu.lab.sweep_metrics import Pivot, quantity_of
from shadowmmu.report.curves import curve, drawable
from shadowmmu.report.sweep_html import render_sweep
from shadowmmu.report.sweep_table import markdown, print_pivots, write_value


def table(cells: list[list[float | None]], value: str = "modelled_per_notifier") -> Pivot:
    spec = TableSpec("Cost of <one> notifier", "leaves", "design", value)
    rows: list[object] = [10**power for power in range(3, 3 + len(cells))]
    columns: list[object] = ["sweep", "spanning", "tree"][: len(cells[0])]
    return Pivot(spec, quantity_of(value), rows, columns, cells, 2, 2)


def ticks(svg: str) -> list[str]:
    """The texts of the drawing."""
    return re.findall(r">([^<>\n]+)</text>", svg)


def test_each_column_has_a_line_with_its_name() -> None:
    texts = ticks(curve(table([[1e9, 9e3], [7e9, 9.5e3]])).svg)
    assert {"sweep", "spanning", "leaves", "1,000", "10,000"} <= set(texts)
    assert "1 s" in texts


def test_costs_are_never_negative_and_zero_has_a_place() -> None:
    texts = ticks(curve(table([[1e9, 0.0], [7e9, 0.0], [2e10, 10.0]])).svg)
    assert "0 ns" in texts
    assert not [text for text in texts if text.startswith(("-", "\N{MINUS SIGN}"))]


def test_equal_costs_are_drawn_from_zero() -> None:
    assert any(text == "0 ns" for text in ticks(curve(table([[5.0, 5.0], [5.0, 6.0]])).svg))


def test_what_is_missing_is_left_out() -> None:
    holes = table([[1e9, None], [2e9, 3e3]])
    assert drawable(holes)
    assert "spanning" in ticks(curve(holes).svg)
    assert not drawable(table([[1e9, 2e9]]))
    assert not drawable(table([[None], [None]]))


def test_the_page_has_curve_table_and_conditions_and_escapes_titles() -> None:
    rows = [{"workload": "storm", "code": "abc"}]
    page = render_sweep("a <sweep>", rows, [table([[1e9, None], [7e9, 9.5e3]])], load_cost_model())
    assert page.count("<svg") == 1
    assert "Cost of &lt;one&gt; notifier" in page
    assert "<one>" not in page
    assert "a &lt;sweep&gt;" in page
    assert "means of 2 runs" in page
    assert '<td class="n">-</td>' in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_same_numbers_give_the_same_drawing() -> None:
    assert curve(table([[1.0], [9.0]])).svg == curve(table([[1.0], [9.0]])).svg


def test_tables_are_printed_and_written_as_markdown() -> None:
    made = table([[1e9, 9e3, None], [7e9, 9.5e3, 8.0]])
    screen = Console(width=100, record=True, file=None, quiet=False)
    with screen.capture() as captured:
        print_pivots([made], screen)
    assert "9.5 us" in captured.get()
    lines = list(markdown(made))
    assert lines[0] == "**Cost of <one> notifier**"
    assert lines[2:] == [
        "| leaves | sweep | spanning | tree |",
        "|---|---:|---:|---:|",
        "| 1,000 | 1 s | 9 us | - |",
        "| 10,000 | 7 s | 9.5 us | 8 ns |",
    ]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("fallback_share", 0.0833, "8.33 %"),
        ("refaults_caused", 1234567.0, "1,234,567"),
        ("refaults_caused", 11.25, "11.2"),
        ("record_bytes", 4096.0, "4K"),
        ("modelled", None, "-"),
    ],
)
def test_values_are_written_in_their_units(key: str, value: float | None, text: str) -> None:
    assert write_value(quantity_of(key), value) == text
