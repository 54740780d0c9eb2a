"""Which cells of the architecture a campaign reached: stage, granule, start level, outcome, level.

A comparison says something only about what was asked. ``possible`` lists the cells by rule, from the geometry
of the architecture; ``Coverage`` counts the ones that queries fell into, so what was not reached is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from shadowmmu.arch import account as acc
from shadowmmu.arch import answer as ans
from shadowmmu.arch.context import Implementation
from shadowmmu.arch.fault import (
    ACCESS_FLAG,
    ADDRESS_SIZE,
    EXTERNAL,
    EXTERNAL_WALK,
    NONE,
    PERMISSION,
    TRANSLATION,
)
from shadowmmu.arch.fault import NAMES as FAULTS
from shadowmmu.compiled import Counts, Words
from shadowmmu.oracles.qemu.generator import Batch

GRANULES: Final = {12: "4K", 14: "16K", 16: "64K"}
STARTS: Final = {
    (1, 12): (-1, 0, 1, 2, 3),
    (1, 14): (0, 1, 2, 3),
    (1, 16): (1, 2, 3),
    (2, 12): (-1, 0, 1, 2, 3),
    (2, 14): (0, 1, 2, 3),
    (2, 16): (1, 2, 3),
}
"""Start levels by stage and granule, with every feature. Source: Arm ARM D8.2."""
FIRST_LEAF: Final = {12: 0, 14: 1, 16: 1}
"""Lowest level of a leaf, with DS and 52 address bits. Source: Arm ARM D8.3.2."""
LEVELS: Final = 8
_LEAF: Final = NONE


class Cell(NamedTuple):
    """One kind of outcome. ``kind`` NONE: a leaf was found at ``level``."""

    stage: int
    page_shift: int
    start_level: int
    kind: int
    level: int

    def __str__(self) -> str:
        what = "leaf" if self.kind == _LEAF else FAULTS[self.kind]
        where = f"stage {self.stage}, {GRANULES[self.page_shift]}, start level {self.start_level}"
        return f"{where}: {what} at level {self.level}"


def possible() -> Iterator[Cell]:
    """Every cell that some table can lead to.

    A level-0 Translation fault also reports what is refused before the walk, a level-0 Address size fault a
    root beyond the output size.
    """
    for (stage, page_shift), starts in STARTS.items():
        for start in starts:
            read = set(range(start, 4))
            leaves = {level for level in read if level >= FIRST_LEAF[page_shift]}
            kinds = (
                (_LEAF, leaves),
                (TRANSLATION, read | {0}),
                (ADDRESS_SIZE, read | {0}),
                (ACCESS_FLAG, leaves),
                (PERMISSION, leaves),
                (EXTERNAL_WALK, read),
            )
            for kind, levels in kinds:
                for level in sorted(levels):
                    yield Cell(stage, page_shift, start, kind, level)


def _legal_start(stage: int, page_shift: Counts, start: Counts) -> npt.NDArray[np.bool_]:
    """Whether a walk may start there; what may not is refused at level 0, whatever it would have been."""
    legal = np.zeros(len(start), np.bool_)
    for (of, granule), starts in STARTS.items():
        if of == stage:
            legal |= (page_shift == granule) & np.isin(start, starts)
    return legal


def _codes(stage: int, page_shift: Counts, start: Counts, kind: Counts, level: Counts) -> Counts:
    granule = (page_shift - 12) >> 1
    code: Counts = (((stage * 4 + granule) * LEVELS + start + 1) * LEVELS + kind) * LEVELS + level + 1
    return code


def _cell(code: int) -> Cell:
    code, level = divmod(code, LEVELS)
    code, kind = divmod(code, LEVELS)
    code, start = divmod(code, LEVELS)
    stage, granule = divmod(code, 4)
    return Cell(stage, 12 + 2 * granule, start - 1, kind, level - 1)


@dataclass
class Coverage:
    """How often each cell was reached, and each regime asked."""

    cells: dict[Cell, int] = field(default_factory=dict)
    regimes: dict[int, int] = field(default_factory=dict)

    def add(self, batch: Batch, machine: Implementation, model: Words) -> None:
        """Count the outcomes of ``batch`` as ``arch.answer.answers`` gave them."""
        shape = np.zeros((len(batch), acc.GEOMETRY), np.int64)
        acc.geometries(batch.rows, batch.context_of, batch.operations, batch.va, machine, shape)
        packed = model[:, ans.A_FAULT].astype(np.int64)
        kind, stage = packed & 0xFF, packed >> 16 & 0xFF
        level = (packed >> 8 & 0xFF) - 1
        kind = np.where(kind == EXTERNAL, NONE, kind)
        levels = model[:, ans.A_LEVELS].astype(np.int64)
        for number, granule, start, leaf in (
            (1, shape[:, acc.G_GRANULE1], shape[:, acc.G_START1], (levels & 0xFF) - 2),
            (2, shape[:, acc.G_GRANULE2], shape[:, acc.G_START2], (levels >> 8 & 0xFF) - 2),
        ):
            both = (batch.operations >= 4) & ((batch.operations < 8) | (batch.operations >= 12))
            legal = _legal_start(number, granule, start)
            found = legal & (kind == NONE)
            if number == 2:
                found &= both
            failed = legal & (kind != NONE) & (stage == number)
            self._count(_codes(number, granule, start, kind * 0, leaf)[found])
            self._count(_codes(number, granule, start, kind, level)[failed])
        for regime, times in enumerate(np.bincount(shape[:, acc.G_REGIME])):
            self.regimes[regime] = self.regimes.get(regime, 0) + int(times)

    def _count(self, codes: Counts) -> None:
        for code, times in zip(*np.unique(codes, return_counts=True), strict=True):
            cell = _cell(int(code))
            self.cells[cell] = self.cells.get(cell, 0) + int(times)

    def missing(self) -> list[Cell]:
        """Possible cells that no query fell into."""
        return [cell for cell in possible() if cell not in self.cells]

    def impossible(self) -> list[Cell]:
        """Cells reached that the rules know nothing of: the rules, or the model, are wrong."""
        known = set(possible())
        return [cell for cell in self.cells if cell not in known]
