"""Grids: which points a sweep has, from a TOML file or from the command line, and which tables it is for.

A grid has one or more sweeps, each the product of its axes over its designs, and tables that are made from
the stored results. The bundled grids (``data/grids``) are those of docs/findings.md.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
AT_LINE: Final = re.compile(r"at line (\d+)")


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
    if isinstance(value, bool) or not isinstance(value, int | float) or isinstance(axis.default, str):
        raise InputError(f"read {axis.name} = {value!r}, expected {wanted.__name__}")
    return axis.read(str(value))


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
    read = {name: axis_values(workload, name, values) for name, values in axes.items()}
    return list(points_of(workload, design_names(tuple(designs)), read, known_judge(judge)))


def known_judge(judge: str) -> str:
    """When to look, as it was read. Raises InputError."""
    if judge not in JUDGES:
        raise InputError(f"read judge '{judge}', expected one of {', '.join(JUDGES)}")
    return judge


def axis_values(workload: Workload, name: str, values: Sequence[Any]) -> list[Value]:
    """The values of an axis, each of its type. Raises InputError."""
    axis = axis_of(workload, name)
    if not values:
        raise InputError(f"read no value for {name}, expected at least one")
    return [typed(axis, value) for value in values]


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
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: {error}, expected a TOML file") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = AT_LINE.search(str(error))
        line = found[1] if found else text.count("\n") + 1
        raise InputError(f"{name}:{line}: {error}, expected a TOML file") from None
    return _grid(table, Places(name, text.splitlines()))


@dataclass
class Places:
    """Where in a grid's file a key of a section stands, for its complaints."""

    name: str
    lines: list[str]
    first: int = 0
    """Index of the header of the section that is read."""
    stop: int = 0

    def enter(self, section: str, number: int) -> None:
        """Go to the ``number``-th ``[[section]]``, from 0."""
        headers = [k for k, line in enumerate(self.lines) if line.lstrip().startswith("[")]
        own = [k for k in headers if re.match(rf"\s*\[\[\s*{section}\s*\]\]", self.lines[k])]
        self.first = own[number] if number < len(own) else 0
        self.stop = min(
            (k for k in headers if k > self.first and "[[" in self.lines[k]), default=len(self.lines)
        )

    @contextmanager
    def about(self, key: str) -> Iterator[None]:
        """What is refused inside is told with the line of ``key``, the section's first if it has none."""
        try:
            yield
        except (InputError, TypeError, AttributeError) as error:
            key_here = re.compile(rf"(^|[\s{{,.\"]){re.escape(key)}\"?\s*=")
            lines = range(self.first, self.stop)
            line = next((k for k in lines if key_here.search(self.lines[k])), self.first)
            raise InputError(f"{self.name}:{line + 1}: {error}") from None


def _grid(table: dict[str, Any], places: Places) -> Grid:
    for key in table:
        places.first, places.stop = 0, len(places.lines)
        with places.about(key):
            _known(key, {"title", "sweep", "table"})
    points: list[Point] = []
    for number, sweep in enumerate(table.get("sweep", [])):
        places.enter("sweep", number)
        points += _sweep(sweep, places)
    if not points:
        raise InputError(f"{places.name}:1: read no [[sweep]], expected at least one")
    tables = []
    for number, one in enumerate(table.get("table", [])):
        places.enter("table", number)
        for key in one:
            with places.about(key):
                _known(key, TABLE_KEYS)
        with places.about("title"):
            tables.append(TableSpec(**one))
    return Grid(str(table.get("title", "")), list(dict.fromkeys(points)), tables)


def _sweep(sweep: dict[str, Any], places: Places) -> Iterator[Point]:
    """The points of one ``[[sweep]]``. Raises InputError with file and line."""
    for key in sweep:
        with places.about(key):
            _known(key, SWEEP_KEYS)
    with places.about("workload"):
        workload = named_workload(str(sweep.get("workload", "storm")))
    with places.about("designs"):
        designs = design_names(tuple(sweep.get("designs", ())))
    with places.about("judge"):
        judge = known_judge(str(sweep.get("judge", "never")))
    axes = {}
    with places.about("axes"):
        given = dict(sweep.get("axes", {}).items())
    for name, values in given.items():
        with places.about(name):
            axes[name] = axis_values(workload, name, values if isinstance(values, list) else [values])
    return points_of(workload, designs, axes, judge)


def _known(key: str, known: set[str]) -> None:
    if key not in known:
        raise InputError(f"read '{key}', expected one of {', '.join(sorted(known))}")
