"""A tiny sweep for the tests of sweeps."""

from __future__ import annotations

from typing import Any

from shadowmmu.lab.grid import sweep_points
from shadowmmu.lab.point import Point, Row

AXES: dict[str, list[Any]] = {
    "mmus": [1],
    "leaves": [40, 80],
    "leaf": ["4K"],
    "notifiers": [2],
    "ipa_bits": [40],
}
DESIGNS = ("sweep", "reverse_table")
MEASURED = ("measured_ns", "measured_notifiers_ns")


def tiny(**axes: list[Any]) -> list[Point]:
    """Two sizes under two designs."""
    return sweep_points("storm", DESIGNS, {**AXES, **axes})


def exact(row: Row) -> Row:
    """What must be the same on every machine."""
    return {name: value for name, value in row.items() if name not in MEASURED}
