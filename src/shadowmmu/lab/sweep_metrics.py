"""What the tables and curves of a sweep show: each a function of stored rows, priced when they are read.

Prices are not stored: a row has units of work, and a better price changes all tables at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from shadowmmu.errors import InputError
from shadowmmu.lab.costs import PRICES, CostModel, load_cost_model
from shadowmmu.lab.grid import TableSpec
from shadowmmu.lab.point import MACHINE_AXES, PARAMETER, WORK, Row

AXES: Final = ("workload", "design", *(axis.name for axis in MACHINE_AXES))
"""Columns that are asked for, apart from the workload's parameters."""


@dataclass(frozen=True)
class Quantity:
    """One quantity: ``read`` gives None where a row does not have it. Smaller is better."""

    key: str
    label: str
    unit: str
    """``count``, ``ratio``, ``share``, ``bytes`` or ``ns``."""
    read: Callable[[Row], float | None]


def _per(count: str, by: str) -> Callable[[Row], float | None]:
    return lambda row: row[count] / row[by] if row.get(by) and row[count] is not None else None


def _modelled(row: Row, costs: CostModel) -> float:
    return costs.price_of({name: int(row[WORK + name]) for name in PRICES})


def _modelled_per_notifier(row: Row) -> float | None:
    return _modelled(row, load_cost_model()) / row["notifiers"] if row["notifiers"] else None


def _fallback_share(row: Row) -> float | None:
    if not row["notifiers"]:
        return None
    fallbacks = row["fallbacks_mmu"] / row["p_mmus"] + row["fallbacks_vm"]
    return float(fallbacks / row["notifiers"])


_LIST: Final = (
    Quantity(
        "modelled_per_notifier", "modelled time a notifier, refaults included", "ns", _modelled_per_notifier
    ),
    Quantity(
        "modelled",
        "modelled time from the first notifier on",
        "ns",
        lambda r: _modelled(r, load_cost_model()),
    ),
    Quantity(
        "fallback_share", "share of (notifier, MMU) that fell back to a whole MMU", "share", _fallback_share
    ),
    Quantity("refaults_per_notifier", "refaults a notifier", "ratio", _per("refaults_caused", "notifiers")),
    Quantity(
        "avoidable_per_notifier",
        "avoidable refaults a notifier",
        "ratio",
        _per("refaults_avoidable", "notifiers"),
    ),
    Quantity(
        "over_unmapped", "over-unmapped leaves a notifier", "ratio", _per("over_unmapped_leaves", "notifiers")
    ),
    Quantity(
        "chunks_per_notifier", "chunks of shadows a notifier", "ratio", _per(WORK + "chunk", "notifiers")
    ),
    Quantity(
        "nodes_per_notifier",
        "record nodes visited a notifier, refills included",
        "ratio",
        _per(WORK + "node", "notifiers"),
    ),
    Quantity(
        "nodes_per_leaf",
        "record nodes visited a leaf mapped, over the whole run",
        "ratio",
        _per("nodes_visited", "leaves_mapped"),
    ),
    Quantity(
        "nodes_per_recycle", "record nodes visited a recycled MMU", "ratio", _per(WORK + "node", "recycled")
    ),
    Quantity(
        "mmus_per_notifier",
        "shadow MMUs looked into a notifier",
        "ratio",
        _per("shadow_mmus_visited", "notifiers"),
    ),
    Quantity(
        "bytes_per_leaf",
        "bytes of record a leaf, at the most of each",
        "ratio",
        _per("reverse_map_bytes", "peak_leaves"),
    ),
    Quantity("refaults_caused", "refaults caused by notifiers", "count", lambda r: r["refaults_caused"]),
    Quantity("refaults_avoidable", "of these avoidable", "count", lambda r: r["refaults_avoidable"]),
    Quantity(
        "leaves_relaxed",
        "shadow leaves made writable again by a fault",
        "count",
        lambda r: r["leaves_relaxed"],
    ),
    Quantity(
        "lock_held",
        "work units under mmu_lock held for write, over the whole run",
        "count",
        lambda r: r["lock_held"],
    ),
    Quantity(
        "lock_longest",
        "work units of the longest hold of mmu_lock for write",
        "count",
        lambda r: r["lock_longest"],
    ),
    Quantity("tlbis", "TLB invalidations issued by L0, over the whole run", "count", lambda r: r["tlbis"]),
    Quantity("notifiers", "notifier calls", "count", lambda r: r["notifiers"]),
    Quantity("record_bytes", "bytes of record, at the most", "bytes", lambda r: r["reverse_map_bytes"]),
    Quantity(
        "measured_per_notifier",
        "wall time of the model in notifiers, each; this machine",
        "ns",
        _per("measured_notifiers_ns", "notifiers"),
    ),
)

QUANTITIES: Final[dict[str, Quantity]] = {quantity.key: quantity for quantity in _LIST}


def quantity_of(key: str) -> Quantity:
    """The quantity called so. Raises InputError."""
    if key not in QUANTITIES:
        raise InputError(f"read value '{key}', expected one of {', '.join(QUANTITIES)}")
    return QUANTITIES[key]


def column_of(row: Row, name: str) -> str:
    """The column of an axis: a parameter's has a prefix."""
    return name if name in AXES else PARAMETER + name


def selected(rows: Iterable[Row], where: dict[str, object]) -> list[Row]:
    """The rows that have all these values."""
    return [row for row in rows if all(row.get(column_of(row, k)) == v for k, v in where.items())]


def varying(rows: Sequence[Row]) -> list[str]:
    """The axes that have more than one value in the rows, by name; seeds apart, they are averaged."""
    names = [name for name in AXES if name != "seed"]
    names += sorted({c.removeprefix(PARAMETER) for row in rows for c in row if c.startswith(PARAMETER)})
    return [name for name in names if len({row.get(column_of(row, name)) for row in rows}) > 1]


def mean(rows: Sequence[Row], quantity: Quantity) -> float | None:
    """The mean over the rows that have it."""
    values = [value for row in rows if (value := quantity.read(row)) is not None]
    return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Pivot:
    """A table of numbers: ``cells[r][c]`` is the mean of the rows there, None where there are none."""

    spec: TableSpec
    quantity: Quantity
    rows: list[object]
    columns: list[object]
    cells: list[list[float | None]]
    samples: int
    """Rows behind each cell, at most: seeds."""
    fewest: int
    """Rows behind a cell, at least: fewer where a sweep was stopped, or some designs had more seeds."""

    @property
    def basis(self) -> str:
        """What the cells are, for a reader; empty where each is one run."""
        if self.samples == 1:
            return ""
        runs = f"{self.fewest} to {self.samples}" if self.fewest < self.samples else str(self.samples)
        return f"means of {runs} runs"


def pivot(rows: Sequence[Row], spec: TableSpec) -> Pivot:
    """The table that ``spec`` asks for. Raises InputError where no row is of it."""
    quantity = quantity_of(spec.value)
    chosen = selected(rows, dict(spec.where))
    if not chosen:
        raise InputError(f"table '{spec.title}': no stored result, expected some with {spec.where}")
    down = sorted({row.get(column_of(row, spec.rows)) for row in chosen}, key=_order)
    across = list(
        dict.fromkeys(row.get(column_of(row, spec.columns)) for row in sorted(chosen, key=_design_order))
    )
    if spec.columns != "design":
        across = sorted(across, key=_order)
    groups: dict[tuple[object, object], list[Row]] = {}
    for row in chosen:
        place = (row.get(column_of(row, spec.rows)), row.get(column_of(row, spec.columns)))
        groups.setdefault(place, []).append(row)
    cells = [[mean(groups.get((r, c), []), quantity) for c in across] for r in down]
    sizes = [len(group) for group in groups.values()]
    return Pivot(spec, quantity, down, across, cells, max(sizes), min(sizes))


def _order(value: object) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))


def _design_order(row: Row) -> int:
    from shadowmmu.designs.interface import CATALOGUE

    names = list(CATALOGUE)
    return names.index(row["design"]) if row["design"] in names else len(names)
