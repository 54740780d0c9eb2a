"""Grids: which points a sweep has, from a TOML file or from the command line, and which tables it is for.

A grid has one or more sweeps, each the product of its axes over its designs, and tables that are made from
the stored results. The bundled grids (``data/grids``) are those of docs/findings.md.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import product
from pathlib import Path
from typing import Any, Final

from shadowmmu.errors import InputError
from shadowmmu.events.workloads import Parameter, Value, Workload, named_workload
from shadowmmu.lab.compare import design_names
from shadowmmu.lab.point import MACHINE_AXES, Point

JUDGES: Final = ("never", "notifiers", "always")
SWEEP_KEYS: Final = {"workload", "designs", "axes", "judge"}
TABLE_KEYS: Final = {"title", "rows", "columns", "value", "where"}


@dataclass(frozen=True)
class TableSpec:
    """One table of a grid: a value by two axes, of the results that ``where`` names."""

    title: str
    rows: str
    columns: str
    value: str
    where: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """The points of a sweep, in order, and its tables."""

    title: str
    points: list[Point]
    tables: list[TableSpec] = field(default_factory=list)


def axis_of(workload: Workload, name: str) -> Parameter:
    """The parameter or machine axis called so. Raises InputError."""
    for axis in MACHINE_AXES:
        if axis.name == name:
            return axis
    return workload.parameter(name)


def typed(axis: Parameter, value: Any) -> Value:
    """A value of a TOML file as the axis takes it; texts are read as on the command line. InputError."""
    if isinstance(value, str):
        return axis.read(value)
    wanted = type(axis.default)
    if isinstance(value, bool) or not isinstance(value, int | float) or wanted(value) != value:
        raise InputError(f"read {axis.name} = {value!r}, expected {wanted.__name__}")
    return wanted(value)


def points_of(
    workload: Workload, designs: Sequence[str], axes: Mapping[str, Sequence[Value]], judge: str
) -> Iterator[Point]:
    """The product of the axes; the designs change fastest, so that they share a scenario."""
    own = [axes.get(p.name, (p.default,)) for p in workload.parameters]
    host = [axes.get(p.name, (p.default,)) for p in MACHINE_AXES]
    for machine in product(*host):
        for values in product(*own):
            for design in designs:
                yield Point(
                    workload.name,
                    design,
                    tuple(zip((p.name for p in workload.parameters), values, strict=True)),
                    tuple(zip((p.name for p in MACHINE_AXES), machine, strict=True)),
                    judge,
                )


def sweep_points(
    workload_name: str, designs: Sequence[str], axes: Mapping[str, Sequence[Any]], judge: str = "never"
) -> list[Point]:
    """The points of one sweep. Raises InputError for what is unknown or of another type."""
    workload = named_workload(workload_name)
    if judge not in JUDGES:
        raise InputError(f"read judge '{judge}', expected one of {', '.join(JUDGES)}")
    read = {}
    for name, values in axes.items():
        axis = axis_of(workload, name)
        read[name] = [typed(axis, value) for value in values]
        if not read[name]:
            raise InputError(f"read no value for {name}, expected at least one")
    return list(points_of(workload, design_names(tuple(designs)), read, judge))


def grid_folder() -> Traversable:
    """The folder of the bundled grids."""
    return files("shadowmmu") / "data" / "grids"


def bundled_grids() -> list[str]:
    """Their names."""
    found = (path.name for path in grid_folder().iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def read_grid(name: str) -> Grid:
    """A grid by file name, or a bundled one by its name. Raises InputError."""
    path: Traversable = Path(name)
    if not path.is_file():
        path = grid_folder() / f"{name}.toml"
    if not path.is_file():
        raise InputError(f"read grid '{name}', expected a TOML file or one of {', '.join(bundled_grids())}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{name}: {error}, expected a TOML file") from None
    try:
        return _grid(table)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _grid(table: dict[str, Any]) -> Grid:
    _only(table, {"title", "sweep", "table"})
    points: list[Point] = []
    for sweep in table.get("sweep", []):
        _only(sweep, SWEEP_KEYS)
        axes = {
            name: value if isinstance(value, list) else [value]
            for name, value in sweep.get("axes", {}).items()
        }
        name = str(sweep.get("workload", "storm"))
        points += sweep_points(name, sweep.get("designs", ()), axes, str(sweep.get("judge", "never")))
    if not points:
        raise InputError("read no [[sweep]], expected at least one")
    tables = []
    for one in table.get("table", []):
        _only(one, TABLE_KEYS)
        try:
            tables.append(TableSpec(**one))
        except TypeError as error:
            raise InputError(f"[[table]]: {error}") from None
    return Grid(str(table.get("title", "")), list(dict.fromkeys(points)), tables)


def _only(table: dict[str, Any], known: set[str]) -> None:
    if unknown := set(table) - known:
        raise InputError(f"read '{min(unknown)}', expected one of {', '.join(sorted(known))}")
