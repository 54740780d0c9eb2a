"""A campaign: batches of every recipe against QEMU, what differed, and which cells were reached.

    python -m shadowmmu.oracles.qemu.campaign --queries 1000000 --seed 1

The same seed asks the same questions. Exit code 0: no difference that is not a known deviation, every cell
reached; 5: QEMU and the model differ, the queries saved; 3: no QEMU, or cells left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

import numpy as np

from shadowmmu.arch.answer import ANSWER, answers
from shadowmmu.compiled import Words
from shadowmmu.oracles.qemu.compare import Comparer, Comparison
from shadowmmu.oracles.qemu.coverage import REGIMES, Cell, cells, missing, possible
from shadowmmu.oracles.qemu.deviations import BEFORE_8, FIRST, Version, deviants
from shadowmmu.oracles.qemu.driver import QemuOracle
from shadowmmu.oracles.qemu.generator import Batch, Recipe, random_batch
from shadowmmu.oracles.qemu.install import find_qemu
from shadowmmu.oracles.qemu.layout import TABLES, TABLES_BYTES
from shadowmmu.oracles.variants import Answers

CONTEXTS: Final = 2048
QUERIES: Final = 32
"""Queries under each context of a batch."""
BATCH: Final = CONTEXTS * QUERIES


@dataclass(frozen=True)
class Part:
    """One recipe of a campaign, and its share of the queries."""

    name: str
    recipe: Recipe
    share: float
    since: Version = FIRST
    """Older versions are not asked: before 8.0 AT itself writes access flags and dirty state: the stub,
    which prepares a store with AT, disturbs the tables."""


SHOWN: Final = 12
"""Cells that were not reached, in text."""
PARTS: Final = (
    Part("AT, EL1&0 and both stages", Recipe(), 0.4),
    Part("AT, EL2 and EL2&0", Recipe(el3=True), 0.3),
    Part("loads, stores, fetches, atomics", Recipe(accesses=True), 0.15),
    Part("with hardware updates", Recipe(accesses=True, updates=True), 0.15, BEFORE_8),
)


@dataclass
class Campaign:
    """What came of a campaign."""

    version: tuple[int, int, int]
    parts: dict[str, Comparison] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """Parts that this version is too old for."""
    cells: Counter[Cell] = field(default_factory=Counter)
    saved: list[Path] = field(default_factory=list)

    @property
    def total(self) -> Comparison:
        """All parts together."""
        total = Comparison()
        for comparison in self.parts.values():
            total.add(comparison)
        return total

    @property
    def missing(self) -> list[Cell]:
        """Cells that the architecture has and no query reached."""
        return missing(self.cells, REGIMES)

    @property
    def agrees(self) -> bool:
        """No difference but known deviations."""
        return all(comparison.agrees for comparison in self.parts.values())


def batches(part: Part, oracle: QemuOracle, queries: int, seed: int) -> Iterator[Batch]:
    """Batches of a part, one after another in the oracle's memory, at least ``queries`` in all."""
    recipe = replace(part.recipe, unchecked=oracle.unchecked)
    if oracle.version < (8, 0, 0):
        recipe = replace(recipe, wide=False, indirect=False, newer=False)
    for number in range(-(-queries // BATCH)):
        yield random_batch(
            oracle.memory, recipe, seed=seed * 1_000_003 + number, contexts=CONTEXTS, queries=QUERIES
        )


def run_campaign(
    queries: int,
    seed: int,
    *,
    qemu: Path | None = None,
    model: Answers = answers,
    keep: Path | None = None,
    attribute: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> Campaign:
    """Compare ``model`` with QEMU over ``queries`` queries; mismatches are saved in the folder ``keep``.

    ``attribute``: say of each explained difference which known deviation it is.

    Raises InputError where there is no QEMU.
    """
    program = qemu or find_qemu()
    campaign: Campaign | None = None
    for number, part in enumerate(PARTS):
        with QemuOracle(program, el3=part.recipe.el3) as oracle:
            if campaign is None:
                campaign = Campaign(oracle.version)
            if oracle.version < part.since:
                campaign.left_out.append(part.name)
                continue
            comparer = Comparer(oracle, model, deviants(oracle.version, attribute))
            sum_of_part = Comparison()
            for batch in batches(part, oracle, int(queries * part.share), seed + number):
                found = comparer.compare(batch)
                sum_of_part.add(found)
                campaign.cells += _cells(comparer, batch)
                if found.mismatches and keep is not None:
                    path = (
                        keep
                        / f"mismatch-{part.name.split(',')[0].replace(' ', '-')}-{len(campaign.saved)}.npz"
                    )
                    comparer.save(path, batch, [one.number for one in found.mismatches[:100]])
                    campaign.saved.append(path)
                progress(f"{part.name}: {sum_of_part.queries:,} queries")
            campaign.parts[part.name] = sum_of_part
    assert campaign is not None
    return campaign


def _cells(comparer: Comparer, batch: Batch) -> Counter[Cell]:
    """What the queries of ``batch`` come to, by the tables as they stand; changes nothing."""
    out = np.zeros((len(batch), ANSWER), np.uint64)
    mem, machine = comparer.oracle.memory, comparer.machine
    answers(mem, batch.rows, batch.context_of, batch.operations, batch.va, machine, False, out)
    return cells(batch.rows, batch.context_of, batch.operations, batch.va, out)


class Judge:
    """A judge for ``verify.mutants``: how many of QEMU's answers a model has otherwise.

    QEMU is asked once, one batch of each part at least; tables and answers are kept. A context manager: it
    ends the QEMUs it started. Raises InputError where there is none.
    """

    def __init__(self, queries: int, seed: int, qemu: Path | None = None) -> None:
        program = qemu or find_qemu()
        self._kept: list[tuple[Comparer, Batch, Words, Words, Words]] = []
        self._oracles: list[QemuOracle] = []
        for number, part in enumerate(PARTS):
            oracle = QemuOracle(program, el3=part.recipe.el3)
            self._oracles.append(oracle)
            if oracle.version < part.since:
                continue
            comparer = Comparer(oracle, answers)
            for batch in batches(part, oracle, int(queries * part.share), seed + number):
                answered = comparer.ask(batch)
                self._kept.append(
                    (comparer, batch, answered, comparer.before.copy(), tables_of(oracle).copy())
                )

    def __call__(self, model: Answers) -> int:
        """How many answers, and descriptors left behind, ``model`` has otherwise than QEMU."""
        found = 0
        for comparer, batch, answered, before, after in self._kept:
            comparer.before[:] = before
            tables_of(comparer.oracle)[:] = after if batch.recipe.updates else before
            found += comparer.disagreements(model, batch, answered)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for oracle in self._oracles:
            oracle.close()


def tables_of(oracle: QemuOracle) -> Words:
    """The words of guest memory that hold tables."""
    return oracle.memory[TABLES >> 3 : (TABLES + TABLES_BYTES) >> 3]


def all_cells() -> list[Cell]:
    """Every cell of every regime."""
    return [cell for regime in REGIMES for cell in possible(regime)]


def campaign_lines(campaign: Campaign) -> list[str]:
    """The result of a campaign, to print."""
    lines = [f"QEMU {'.'.join(map(str, campaign.version))}"]
    explained: Counter[str] = Counter()
    for name, part in campaign.parts.items():
        lines.append(
            f"  {name:34} {part.queries:>10,} queries {part.compared:>10,} compared "
            f"{sum(part.explained.values()):>8,} known deviations {len(part.mismatches):>5} mismatches "
            f"{part.updated_words:>7,} descriptors updated, {len(part.memory)} differently"
        )
        explained += part.explained
        lines += [f"    set aside: {reason} {times:,}" for reason, times in part.set_aside.items()]
    lines += [f"  {name:34} not asked of a version this old" for name in campaign.left_out]
    total = campaign.total
    lines.append("  known deviations: " + ", ".join(f"{k} {v:,}" for k, v in explained.most_common()))
    reached = [campaign.cells[cell] for cell in all_cells() if cell in campaign.cells]
    lines.append(
        f"  cells reached: {len(reached)} of {len(all_cells())}, the rarest {min(reached, default=0)} times"
    )
    lines += [f"    not reached: {cell}" for cell in campaign.missing[:SHOWN]]
    if len(campaign.missing) > SHOWN:
        lines.append(f"    and {len(campaign.missing) - SHOWN:,} more (--json has every cell)")
    lines += [f"  {times} x {signature}" for signature, times in total.signatures().most_common(20)]
    lines += [one.describe() for one in total.mismatches[:3]]
    lines += [one.describe() for one in total.memory[:3]]
    return lines


def campaign_json(campaign: Campaign) -> dict[str, object]:
    """The result of a campaign as plain values, every cell with its count."""

    return {
        "qemu": ".".join(map(str, campaign.version)),
        "parts": {
            name: {
                "queries": part.queries,
                "compared": part.compared,
                "set_aside": dict(part.set_aside),
                "known_deviations": dict(part.explained),
                "mismatches": len(part.mismatches),
                "updated_descriptors": part.updated_words,
                "descriptors_that_differ": len(part.memory),
            }
            for name, part in campaign.parts.items()
        },
        "left_out": campaign.left_out,
        "cells": {str(cell): campaign.cells[cell] for cell in all_cells()},
        "signatures": dict(campaign.total.signatures()),
        "saved": [str(path) for path in campaign.saved],
    }
