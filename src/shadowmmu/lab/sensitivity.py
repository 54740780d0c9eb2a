"""How far a conclusion hangs on a price: every named workload, every price off by a factor either way.

The conclusion is a ratio: modelled time under ``sweep`` by that under a design. Where it stays above 1 over
the whole spread, no such error of one price turns it round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from shadowmmu.errors import InputError
from shadowmmu.lab.costs import PRICES, CostModel
from shadowmmu.lab.grid import sweep_points
from shadowmmu.lab.point import WORK, Row, run_point

FACTOR: Final = 4.0
BASELINE: Final = "sweep"
USUAL_DESIGNS: Final = ("spanning", "per_vm_tree", "reverse_table", "leaf_scan")
SMALL: Final[Mapping[str, dict[str, list[Any]]]] = {
    "storm": {"leaves": [2000], "mmus": [2], "leaf": ["4K"]},
    "l2-boot": {},
    "numa-balancing": {"leaves": [2000]},
    "ksm": {"leaves": [2000]},
    "balloon": {"leaves": [2000], "share": [0.03]},
    "live-migration": {"leaves": [2000]},
    "memslot-churn": {"leaves": [2000]},
    "thp-collapse": {"leaves": [2000]},
}
"""The workloads at a size that takes some seconds altogether, under 48 bits."""


@dataclass(frozen=True)
class Swing:
    """The ratio with one price divided and multiplied by the factor."""

    price: str
    low: float
    high: float

    @property
    def span(self) -> float:
        """How much the price moves the ratio."""
        return max(self.low, self.high) / min(self.low, self.high)


@dataclass(frozen=True)
class Tornado:
    """One workload and design: the ratio, and its swings, the largest first."""

    workload: str
    design: str
    ratio: float
    swings: list[Swing]

    @property
    def least(self) -> float:
        """The smallest ratio of all."""
        return min([self.ratio, *(min(s.low, s.high) for s in self.swings)])

    @property
    def most(self) -> float:
        """The largest."""
        return max([self.ratio, *(max(s.low, s.high) for s in self.swings)])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "workload": self.workload,
            "design": self.design,
            "ratio": self.ratio,
            "least": self.least,
            "most": self.most,
            "swings": [vars(swing) for swing in self.swings],
        }


def workload_rows(designs: Iterable[str], workloads: Mapping[str, dict[str, list[Any]]] = SMALL) -> list[Row]:
    """Run the workloads under ``sweep`` and the designs. Raises InputError."""
    names = list(dict.fromkeys([BASELINE, *designs]))
    points = [point for name, axes in workloads.items() for point in sweep_points(name, names, axes)]
    return [run_point(point) for point in points]


def work_in(row: Row) -> dict[str, int]:
    """The priced units of work of a row."""
    return {name: int(row[WORK + name]) for name in PRICES}


def ratio(baseline: Row, row: Row, costs: CostModel) -> float:
    """Modelled time of the baseline by that of the row. Raises InputError where there was no work."""
    mine = costs.price_of(work_in(row))
    if not mine:
        raise InputError(f"{row['workload']} under {row['design']}: no priced work, expected some")
    return costs.price_of(work_in(baseline)) / mine


def tornado(baseline: Row, row: Row, costs: CostModel, factor: float = FACTOR) -> Tornado:
    """Every price off by ``factor`` either way, one at a time."""
    swings = [
        Swing(
            name,
            ratio(baseline, row, costs.scaled(name, 1 / factor)),
            ratio(baseline, row, costs.scaled(name, factor)),
        )
        for name in PRICES
    ]
    swings.sort(key=lambda swing: -swing.span)
    return Tornado(str(row["workload"]), str(row["design"]), ratio(baseline, row, costs), swings)


def tornadoes(rows: Iterable[Row], costs: CostModel, factor: float = FACTOR) -> list[Tornado]:
    """One for each workload and design but the baseline; without priced work there is none."""
    listed = list(rows)
    baselines = {row["workload"]: row for row in listed if row["design"] == BASELINE}
    found = []
    for row in listed:
        baseline = baselines.get(row["workload"])
        if baseline is not None and row is not baseline and any(work_in(row).values()):
            found.append(tornado(baseline, row, costs, factor))
    return found
