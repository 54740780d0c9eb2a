"""The verb ``sweep``: a grid of points over designs, stored point by point, shown as tables and curves."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from shadowmmu.errors import InputError

if TYPE_CHECKING:
    from shadowmmu.lab.grid import Grid, TableSpec
    from shadowmmu.lab.point import Row
    from shadowmmu.lab.sweep import SweepOutcome
    from shadowmmu.lab.sweep_metrics import Pivot

FILE: Final = click.Path(dir_okay=False, path_type=Path)
FOLDER: Final = click.Path(file_okay=False, path_type=Path)
SHORTHANDS: Final = ("leaves", "mmus", "ipa_bits", "granule")
SCHEMA: Final = "shadowmmu.sweep/1"


def _names(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


@click.command("sweep")
@click.option("--grid", "grid_name", metavar="NAME|FILE", help="A bundled grid, or a TOML file.")
@click.option("--workload", metavar="NAME", help="Without a grid: the workload. [default: storm]")
@click.option(
    "--design",
    "--designs",
    "designs",
    default="",
    callback=_names,
    metavar="NAME|FILE.py[,...]",
    help="Without a grid: these only.",
)
@click.option(
    "--axis", "axes", multiple=True, metavar="NAME=V[,V]", help="Without a grid: values of an axis."
)
@click.option("--leaves", metavar="V[,V]", help="Short for --axis leaves=...")
@click.option("--mmus", metavar="V[,V]", help="Short for --axis mmus=...")
@click.option("--ipa-bits", metavar="V[,V]", help="Short for --axis ipa_bits=...")
@click.option("--granule", metavar="V[,V]", help="Short for --axis granule=...")
@click.option("--judge", type=click.Choice(["never", "notifiers", "always"]), help="When to look.")
@click.option(
    "--store", type=FOLDER, default="sweep-store", show_default=True, help="Where results are kept."
)
@click.option("--jobs", type=click.IntRange(1), help="Processes. [default: one a processor]")
@click.option("--scheduler", default="", metavar="ADDRESS", help="A Dask scheduler, instead of processes.")
@click.option("--show", type=FOLDER, metavar="STORE", help="Run nothing: show what is stored here.")
@click.option("--where", multiple=True, metavar="NAME=VALUE", help="Show these points only.")
@click.option("--along", default="", metavar="NAME", help="Show cost along this axis.")
@click.option("--value", "values", multiple=True, metavar="KEY", help="Show this quantity.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown.")
@click.option("--report", type=FILE, help="Write the page with the curves here.")
@click.option("-q", "--quiet", is_flag=True, help="No progress line.")
def sweep(show: Path | None, store: Path, report: Path | None, **asked: Any) -> None:
    """Run a grid of points under the designs, and show cost against scale.

    Results are kept point by point: a point that is stored is not run again, and a sweep that is stopped goes
    on where it was. Counters are exact and the same on every machine; times are modelled from them.
    """
    from shadowmmu.cli import HOLDS, UNDETERMINED
    from shadowmmu.lab.store import Store
    from shadowmmu.report.html import check_writable

    if report is not None:
        check_writable(report)
    grid = _grid(asked, show is not None)
    outcome = None
    if show is None:
        assert grid is not None
        _check_view(grid, asked)
        outcome = _run(grid, Store(store), asked)
        if len(outcome.failed) == outcome.points:
            raise InputError("every point was refused, expected some that machine and workload take")
    rows = _chosen(Store(show or store).rows(), asked["where"], grid)
    tables = _tables(rows, grid, asked)
    _print(rows, tables, outcome, asked)
    if report is not None:
        _write_page(report, grid, rows, tables)
    sys.exit(UNDETERMINED if outcome is not None and outcome.failed else HOLDS)


def _grid(asked: dict[str, Any], showing: bool) -> Grid | None:
    """The grid asked for; none where something stored is shown and no grid is named. Raises InputError."""
    from shadowmmu.events.workloads import named_workload
    from shadowmmu.lab.grid import Grid, axis_of, read_grid, sweep_points

    texts = [*asked["axes"], *(f"{name}={asked[name]}" for name in SHORTHANDS if asked[name])]
    own = texts or asked["workload"] or asked["designs"] or asked["judge"]
    if asked["grid_name"]:
        if own:
            raise InputError("read --grid beside axes, designs or a workload, expected one or the other")
        return read_grid(asked["grid_name"])
    if showing:
        return None
    if not own:
        raise InputError("read neither a grid nor an axis, expected --grid NAME or --leaves 1e3,1e5 ...")
    workload = named_workload(asked["workload"] or "storm")
    axes: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals:
            raise InputError(f"read --axis {text}, expected NAME=V[,V]")
        axis = axis_of(workload, name)
        if name in axes:
            raise InputError(f"read axis {name} twice, expected its values in one list")
        axes[name] = [axis.read(value.strip()) for value in values.split(",")]
    points = sweep_points(workload.name, asked["designs"], axes, asked["judge"] or "never")
    return Grid(f"sweep of {workload.name}", points)


def _check_view(grid: Grid, asked: dict[str, Any]) -> None:
    """Refuse to show a quantity or an axis that there is not, before anything is run. Raises InputError."""
    from shadowmmu.lab.sweep_metrics import AXES, quantity_of

    for key in asked["values"]:
        quantity_of(key)
    known = list(AXES)
    known += sorted({name for point in grid.points for name, _ in point.values}.difference(known))
    for name in (asked["along"], *(text.partition("=")[0] for text in asked["where"])):
        if name and name not in known:
            raise InputError(f"read axis '{name}', expected one of {', '.join(known)}")


def _run(grid: Grid, store: Any, asked: dict[str, Any]) -> SweepOutcome:
    from shadowmmu.cli import end_progress, progress_line
    from shadowmmu.lab.sweep import run_sweep

    try:
        outcome = run_sweep(
            grid.points,
            store,
            jobs=asked["jobs"] or os.cpu_count() or 1,
            scheduler=asked["scheduler"],
            progress=progress_line(asked["quiet"]),
        )
    except KeyboardInterrupt:
        end_progress(asked["quiet"])
        click.echo(f"stopped: {store.folder} has {len(store.keys())} points; run again to go on", err=True)
        raise
    end_progress(asked["quiet"])
    for point, why in outcome.failed:
        click.echo(f"refused: {point.described()}: {why}", err=True)
    return outcome


def _chosen(rows: list[Row], where: tuple[str, ...], grid: Grid | None) -> list[Row]:
    """The rows of the grid, if there is one, with the values of ``--where``. Raises InputError."""
    from shadowmmu.lab.point import code_version
    from shadowmmu.lab.sweep_metrics import column_of

    if grid is not None:
        keys = {point.key(code_version()) for point in grid.points}
        here = [row for row in rows if row["key"] in keys]
        if not here:
            raise InputError("read no result of this grid by this version, expected some: run it first")
        rows = here
    for text in where:
        name, _, value = text.partition("=")
        rows = [row for row in rows if _same(row.get(column_of(row, name)), value)]
    if not rows:
        raise InputError(f"read --where {' '.join(where)}, expected values that some stored point has")
    return rows


def _same(stored: object, text: str) -> bool:
    """Whether a stored value is what the text says; numbers as numbers."""
    try:
        return (isinstance(stored, int | float) and float(text) == stored) or str(stored) == text
    except ValueError:
        return str(stored) == text


def _tables(rows: list[Row], grid: Grid | None, asked: dict[str, Any]) -> list[Pivot]:
    from shadowmmu.lab.sweep_metrics import pivot
    from shadowmmu.lab.sweep_tables import usual_tables

    specs: list[TableSpec] = list(grid.tables) if grid is not None else []
    if not specs or asked["along"] or asked["values"]:
        specs = usual_tables(rows, asked["along"], asked["values"])
    return [pivot(rows, spec) for spec in specs]


def _print(rows: list[Row], tables: list[Pivot], outcome: SweepOutcome | None, asked: dict[str, Any]) -> None:
    from shadowmmu.report.sweep_table import markdown, print_pivots, to_json
    from shadowmmu.report.table import console

    if asked["as_json"]:
        facts = None if outcome is None else outcome.to_json()
        data = {"schema": SCHEMA, "outcome": facts, "tables": [to_json(t) for t in tables], "rows": rows}
        click.echo(json.dumps(data, indent=1))
        return
    if asked["markdown"]:
        click.echo("\n\n".join("\n".join(markdown(table)) for table in tables))
        return
    if outcome is not None:
        told = f"{outcome.points} points: {outcome.stored_before} were stored, {outcome.done} run"
        click.echo(told + (f", {len(outcome.failed)} refused" if outcome.failed else ""))
    print_pivots(tables, console())


def _write_page(report: Path, grid: Grid | None, rows: list[Row], tables: list[Pivot]) -> None:
    from shadowmmu.lab.costs import load_cost_model
    from shadowmmu.report.html import write_text
    from shadowmmu.report.sweep_html import render_sweep

    title = grid.title if grid is not None else "stored points"
    write_text(report, render_sweep(title, rows, tables, load_cost_model()))
