"""Notifier storms: many shadow leaves, then host notifiers one at a time, each followed by refaults.

The workload for which reverse maps are asked for: L2s with much memory run, the host takes one page of it,
and what was torn down must be faulted in again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shadowmmu.events import schema
from shadowmmu.events.population import (
    IPAS2E1IS,
    Population,
    Sizes,
    enter,
    fill,
    mapped_page,
    populate,
    revisit,
    scenario_of,
)
from shadowmmu.events.schema import CODE_CANONICAL, CODE_NESTED, EventTable, Scenario
from shadowmmu.events.words import attributes
from shadowmmu.machine.granule import DEFAULT_GRANULE

MOST_VMIDS = 1 << 16
TABLES_OF_A_ROOT = 3
"""Table pages of a root that maps L2's code only: one of each level."""


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """What happens between two times that L2s run, apart from the notifiers themselves.

    ``moves``: that many times L1 swaps the canonical pages of two leaves of an MMU: it unmaps both,
    invalidates both (with level hints), maps them crosswise, and L2 writes both. ``recycles``: that many
    fresh L2s run and take a shadow MMU each, recycled once all are in use. ``writes``: the share of touched
    runs that L2 writes; it reads the others. ``target``: notifiers are for ``mapped`` pages, or for one that
    no L2 maps (``unmapped``). ``burst``: notifiers of one round. ``used``: pages of each block that L2
    accesses whenever it runs, a power of two, evenly spread.
    """

    moves: int = 0
    recycles: int = 0
    writes: float = 1.0
    target: str = "mapped"
    burst: int = 1
    used: int = 1

    def check(self) -> None:
        """Raises ValueError for a value out of range."""
        if self.moves < 0 or self.recycles < 0:
            raise ValueError(f"moves and recycles are {self.moves} and {self.recycles}, expected 0 or more")
        if not 0 <= self.writes <= 1:
            raise ValueError(f"writes is {self.writes}, expected 0 to 1")
        if self.target not in ("mapped", "unmapped"):
            raise ValueError(f"target is {self.target!r}, expected 'mapped' or 'unmapped'")
        if self.burst < 1:
            raise ValueError(f"burst is {self.burst}, expected 1 or more")


QUIET = Rounds()
"""Nothing else: one notifier a round."""


def storm(
    mmus: int = 4,
    leaves: int = 1_000_000,
    leaf_sizes: Mapping[int, float] | None = None,
    cluster: float = 64,
    alias_rate: float = 0.0,
    notifiers: int = 8,
    notifier_bytes: int | None = None,
    refault: str | float = "all",
    seed: int = 1,
    shared: bool = False,
    rounds: Rounds = QUIET,
    granule: str = DEFAULT_GRANULE,
) -> Scenario:
    """A notifier storm over a population (``events.population``); O(leaves / cluster).

    ``granule`` is the page size of the host and of L1's tables. L1 makes one root an MMU (VMIDs from 1), the
    host writes all the data first, blocks lie over an
    area advised for huge pages, and L2 writes every leaf once. Then ``notifiers`` times: DONTNEED of
    ``notifier_bytes`` at a mapped place, the host writes it again, and L2 writes all leaves (``refault``
    ``"all"``) or those of that fraction of the runs in every MMU. ``rounds`` says what else happens.

    The same arguments give the same events. Raises ValueError for arguments out of range and for layouts
    that do not fit the nested IPAs of the default VTCR_EL2 (39 bits; 36 with 16K) or 48 bits of canonical
    IPA.
    """
    sizes = Sizes.of(granule)
    taken = sizes.page if notifier_bytes is None else notifier_bytes
    if notifiers < 0:
        raise ValueError(f"notifiers is {notifiers}, expected 0 or more")
    if taken <= 0 or taken % sizes.page:
        raise ValueError(f"notifier_bytes is {taken}, expected a multiple of {sizes.page}")
    fraction = 1.0 if refault == "all" else refault
    if isinstance(fraction, str) or not 0 <= fraction <= 1:
        raise ValueError(f"refault is {refault!r}, expected 'all' or 0 to 1")
    rounds.check()
    random = np.random.default_rng(seed)
    fresh = rounds.recycles * -(-notifiers // rounds.burst)
    spare = fresh * TABLES_OF_A_ROOT
    shares = sizes.shares() if leaf_sizes is None else leaf_sizes
    population = populate(
        random, mmus, leaves, shares, cluster, alias_rate, shared, spare, sizes=sizes, used=rounds.used
    )
    if mmus + fresh >= MOST_VMIDS:
        raise ValueError(f"recycles makes {fresh} L2s, expected fewer than {MOST_VMIDS - mmus}")
    table = EventTable()
    fill(table, population)
    nobody = population.end
    unmapped = rounds.target == "unmapped"
    if unmapped:
        table.append(schema.HOST_WRITE, nobody, max(sizes.block, taken))
    storms = _Storm(table, random, population, rounds, mmus)
    for k in range(notifiers):
        table.append(schema.MARK, k + 1)
        storms.notify(nobody if unmapped else None, taken)
        if (k + 1) % rounds.burst == 0 or k + 1 == notifiers:
            storms.guests_run(fraction)
    name = f"storm-{mmus}x{leaves // mmus}-seed{seed}"
    labels = ["fill", *(f"notifier {k}" for k in range(notifiers))]
    return scenario_of(name, population, table, labels, max(sizes.block, taken) if unmapped else 0)


@dataclass
class _Storm:
    """One storm being written; ``fresh`` L2s have VMIDs above those of the population."""

    table: EventTable
    random: np.random.Generator
    population: Population
    rounds: Rounds
    fresh: int

    def notify(self, canonical_ipa: int | None, size: int) -> None:
        """The host drops a range, one that holds a randomly drawn mapped page by default, and writes it."""
        if canonical_ipa is None:
            end = self.population.end
            canonical_ipa = mapped_page(self.random, self.population)
            canonical_ipa -= canonical_ipa % size
            canonical_ipa = max(self.population.first, min(canonical_ipa, end - size))
            size = min(size, end - canonical_ipa)
        self.table.append(schema.DONTNEED, canonical_ipa, size)
        self.table.append(schema.HOST_WRITE, canonical_ipa, size)

    def guests_run(self, fraction: float) -> None:
        """L1 moves pages and starts fresh L2s, as asked; then the L2s run."""
        for _ in range(self.rounds.moves):
            self._move()
        for _ in range(self.rounds.recycles):
            self.fresh += 1
            sizes = self.population.sizes
            self.table.append(schema.SET_STAGE2, 0, self.fresh, sizes.vtcr)
            self.table.append(schema.MAP_GUEST, CODE_NESTED, CODE_CANONICAL, sizes.page, 3, attributes("rx"))
            self.table.append(schema.TOUCH, CODE_NESTED, sizes.page, 1, schema.READ, CODE_NESTED)
        revisit(self.table, self.random, self.population, fraction, self.rounds.writes)

    def _move(self) -> None:
        """L1 swaps the canonical pages of two leaves of the same size in one MMU."""
        k = int(self.random.integers(len(self.population.runs)))
        runs = self.population.runs[k][0]
        size, sizes = runs.leaf_size, self.population.sizes
        level = sizes.level(size)
        ends = np.cumsum(runs.count)
        places = []
        for leaf in self.random.integers(int(ends[-1]), size=2).tolist():
            run = int(np.searchsorted(ends, leaf, side="right"))
            offset = (leaf - int(ends[run] - runs.count[run])) * size
            nested_ipa = int(runs.nested_ipa[run]) + offset
            now = self.population.moved.get((k, nested_ipa), int(runs.canonical_ipa[run]) + offset)
            places.append((nested_ipa, now))
        if places[0][0] == places[1][0]:
            return
        enter(self.table, self.population, k)
        for nested_ipa, _ in places:
            self.table.append(schema.UNMAP_GUEST, nested_ipa, size, level)
            self.table.append(schema.TLBI, IPAS2E1IS, nested_ipa >> 12 | sizes.level_hint(size))
        for (nested_ipa, _), (_, canonical_ipa) in zip(places, reversed(places), strict=True):
            self.table.append(schema.MAP_GUEST, nested_ipa, canonical_ipa, size, level, attributes("rw"))
            self.population.moved[k, nested_ipa] = canonical_ipa
        for nested_ipa, _ in places:
            self.table.append(schema.TOUCH, nested_ipa, size, 1, schema.WRITE, CODE_NESTED)
