"""A Linux L2 boots in a Linux L1: the shape of a recorded boot, at any size and from any seed.

What was recorded (``data/traces/l2-boot-khugepaged``: Linux 7.3.4 as L0, 512M L1, 128M L2, khugepaged at
work) stands here as numbers; a test counts them again in the trace. First touches come in short runs out of
address order, L1 invalidates single pages without a level hint, khugepaged's notifiers come in groups, and
after each disturbance L2 touches again a share of what it had.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from shadowmmu.events import schema
from shadowmmu.events.host_passes import at_least
from shadowmmu.events.population import (
    BLOCK,
    IPAS2E1IS,
    PAGE,
    Chosen,
    Population,
    Runs,
    fill,
    map_runs,
    populate,
    scenario_of,
    touch,
)
from shadowmmu.events.schema import EventTable, Scenario
from shadowmmu.machine.granule import DEFAULT_GRANULE


class Disturbance(NamedTuple):
    """One of the things that take leaves away, and what L2 does after it; numbers as recorded."""

    first_touches: int
    """Pages that L2 had touched by then."""
    collapses: int
    """Notifiers of 2M in a row; 0: L1 invalidates one page instead."""
    again: int
    """Refaults before the next disturbance."""


FIRST_TOUCHES: Final = 5242
CLUSTER: Final = 55.8
"""Mean pages of a contiguous nested range that was ever touched."""
GAP: Final = 586
"""Twice the mean of the pages between two such ranges."""
TOUCH_RUN: Final = 1.92
"""Mean consecutive pages touched in ascending order for the first time."""
DISTURBANCES: Final = tuple(
    Disturbance(*numbers)
    for numbers in (
        *((2788, 1, 878), (2924, 0, 355), (2930, 0, 155), (2932, 0, 381), (2937, 0, 380), (2940, 0, 155)),
        *((2942, 0, 450), (2947, 0, 380), (2949, 0, 66), (2951, 0, 357), (2953, 0, 256), (2955, 0, 190)),
        *((2957, 0, 269), (2959, 0, 154), (2961, 0, 328), (2969, 0, 416), (2978, 2, 671), (3811, 2, 482)),
        *((4730, 2, 1873), (5185, 1, 1310), (5241, 2, 411), (5241, 2, 1130), (5242, 12, 0)),
    )
)


def l2_boot(*, leaves: int, seed: int, granule: str = DEFAULT_GRANULE) -> Scenario:
    """One L2 boots and touches ``leaves`` pages; the recorded number is ``FIRST_TOUCHES``.

    The disturbances are as many as recorded, whatever the size. Raises ValueError for too few leaves, and for
    a granule other than the recording's.
    """
    at_least("leaves", leaves, 100)
    if granule != DEFAULT_GRANULE:
        raise ValueError(f"granule is {granule}, expected {DEFAULT_GRANULE}, as recorded")
    random = np.random.default_rng(seed)
    population = populate(random, 1, leaves, {PAGE: 1}, CLUSTER, gap=GAP)
    table = EventTable()
    (runs,) = population.runs[0]
    pieces = _pieces(random, runs)
    fill_without_touch(table, population)
    table.append(schema.HUGEPAGE, population.first, population.end - population.first)
    order = random.permutation(len(pieces.count))
    collapsing = iter(_blocks(random, population))
    done = 0
    for disturbance in DISTURBANCES:
        upto = round(disturbance.first_touches / FIRST_TOUCHES * len(order))
        touch(table, pieces, _only(pieces, order[done:upto]))
        done = upto
        for _ in range(disturbance.collapses):
            table.append(schema.COLLAPSE, next(collapsing), BLOCK)
        if not disturbance.collapses:
            _invalidate_one(table, random, runs)
        share = disturbance.again / disturbance.first_touches
        touch(table, pieces, _only(pieces, order[:done][random.random(done) < share]))
    return scenario_of(f"l2-boot-{leaves}", population, table, ["boot"])


def fill_without_touch(table: EventTable, population: Population) -> None:
    """The host writes the data and L1 maps it; L2 has touched nothing yet."""
    whole = EventTable()
    fill(whole, population)
    events = whole.finish()
    table.append_rows(events[events["kind"] != schema.TOUCH])


def _pieces(random: np.random.Generator, runs: Runs) -> Runs:
    """The runs cut into what is touched at a time: geometric lengths."""
    nested, canonical, count = [], [], []
    for first, behind, length in zip(runs.nested_ipa, runs.canonical_ipa, runs.count, strict=True):
        at = 0
        while at < int(length):
            step = min(int(random.geometric(1 / TOUCH_RUN)), int(length) - at)
            nested.append(int(first) + at * PAGE)
            canonical.append(int(behind) + at * PAGE)
            count.append(step)
            at += step
    return Runs(PAGE, np.array(nested, np.uint64), np.array(canonical, np.uint64), np.array(count, np.uint64))


def _blocks(random: np.random.Generator, population: Population) -> list[int]:
    """The 2M pieces that khugepaged collapses, in its order; a small memory has fewer, and comes round."""
    wanted = sum(disturbance.collapses for disturbance in DISTURBANCES)
    blocks = np.arange(population.first, population.end, BLOCK)
    return [int(block) for block in np.resize(random.permutation(blocks), wanted)]


def _only(pieces: Runs, chosen: npt.NDArray[np.int64]) -> Chosen:
    """A mask of the chosen pieces."""
    mask = np.zeros(len(pieces.count), np.bool_)
    mask[chosen] = True
    return mask


def _invalidate_one(table: EventTable, random: np.random.Generator, runs: Runs) -> None:
    """L1 unmaps a page of a run, invalidates it without a hint, and maps the run again."""
    run = int(random.integers(len(runs.count)))
    table.append(schema.UNMAP_GUEST, int(runs.nested_ipa[run]), PAGE, 3)
    table.append(schema.TLBI, IPAS2E1IS, int(runs.nested_ipa[run]) >> 12)
    map_runs(table, runs, _only(runs, np.array([run])))
