"""Who lives in the machine before anything happens: L2s with their leaves, laid out as guests' memory is.

Mappings come in runs of consecutive leaves; every MMU has its own nested layout, with gaps and in another
order than the canonical one. Every workload starts from such a population and disturbs it in its own way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shadowmmu.events import schema
from shadowmmu.events.schema import (
    CANONICAL_RAM,
    CODE_CANONICAL,
    CODE_NESTED,
    EventTable,
    Scenario,
)
from shadowmmu.events.words import attributes

PAGE = 1 << 12
BLOCK = 1 << 21
REGION = 1 << 30
LEVEL = {PAGE: 3, BLOCK: 2}
"""Guest stage-2 level by leaf size."""

DEFAULT_SIZES: Mapping[int, float] = {PAGE: 0.98, BLOCK: 0.02}

TABLE_POOL = 0x4010_0000
"""Canonical IPA from which L1 of the rig takes its table pages, one after the other (``POOL_PA``)."""

LOWEST_DATA = 0x4100_0000
NESTED_FIRST = 0x4000_0000
NESTED_BITS = 39
"""Nested IPA bits under the default VTCR_EL2."""

CANONICAL_BITS = 48

USUAL_GAP = 8

MOST_MMUS = 1024
"""Shadow MMUs of a VM at most: two for each of 512 vCPUs (``KVM_MAX_VCPUS`` with a GICv3)."""

IPAS2E1IS = 0
"""The first form of ``schema.TLBI``."""

TTL_SHIFT = 44

Column = npt.NDArray[np.uint64]
Chosen = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Runs:
    """Runs of consecutive leaves of one size in one MMU; ``count`` in leaves, one element a run.

    ``canonical_ipa`` is relative to the start of the data until the scenario is laid out.
    """

    leaf_size: int
    nested_ipa: Column
    canonical_ipa: Column
    count: Column

    @property
    def bytes(self) -> Column:
        """Length of each run in bytes."""
        return self.count * np.uint64(self.leaf_size)


@dataclass(frozen=True)
class Population:
    """Everything placed: the runs of each MMU by leaf size, the roots, the data areas by leaf size.

    ``moved`` remembers the leaves that L1 has moved since: (MMU, nested IPA) to canonical IPA.
    """

    runs: list[list[Runs]]
    roots: list[int]
    areas: dict[int, tuple[int, int]]
    moved: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """Canonical IPA of the first byte of data."""
        return min(first for first, _ in self.areas.values())

    @property
    def end(self) -> int:
        """Canonical IPA above the data, a multiple of 2 MiB."""
        end = max(stop for _, stop in self.areas.values())
        return end + -end % BLOCK


def populate(
    random: np.random.Generator,
    mmus: int,
    leaves: int,
    leaf_sizes: Mapping[int, float],
    cluster: float,
    alias_rate: float = 0.0,
    shared: bool = False,
    spare_tables: int = 0,
    gap: int = USUAL_GAP,
) -> Population:
    """``leaves`` leaves over ``mmus`` MMUs; O(leaves / cluster).

    ``leaf_sizes`` weighs the leaf sizes (4096 and 2 MiB) by number of leaves; ``cluster`` is the mean length
    of a run of leaves (geometric); ``alias_rate`` is the chance that a run starts at a canonical place where
    another run of the same MMU starts too; with ``shared`` all MMUs map the same canonical memory, as many
    leaves each. Between two runs are 1 to ``gap`` leaves of nothing. ``spare_tables`` pages are left to L1
    for roots it makes later. Raises ValueError for arguments out of range, and where 39 bits of nested IPA
    are not enough.
    """
    if not 1 <= mmus <= MOST_MMUS:
        raise ValueError(f"mmus is {mmus}, expected 1 to {MOST_MMUS}")
    if leaves < mmus:
        raise ValueError(f"leaves is {leaves}, expected at least one an MMU")
    weights = list(leaf_sizes.values())
    if not set(leaf_sizes) <= set(LEVEL) or not weights or min(weights) < 0 or not 0 < sum(weights) < np.inf:
        raise ValueError(f"leaf_sizes is {dict(leaf_sizes)}, expected weights for 4096 and 2097152")
    if not cluster >= 1:
        raise ValueError(f"cluster is {cluster}, expected at least 1")
    if not 0 <= alias_rate < 1:
        raise ValueError(f"alias_rate is {alias_rate}, expected 0 to below 1")
    if shared:
        drawn = [_draw_mmu(random, leaves // mmus, leaf_sizes, cluster, alias_rate, gap)] * mmus
    else:
        counts = [leaves // mmus + (k < leaves % mmus) for k in range(mmus)]
        drawn = [_draw_mmu(random, count, leaf_sizes, cluster, alias_rate, gap) for count in counts]
    return _laid_out(drawn, shared, spare_tables)


def _draw_mmu(
    random: np.random.Generator,
    leaves: int,
    leaf_sizes: Mapping[int, float],
    cluster: float,
    alias_rate: float,
    gap: int,
) -> list[Runs]:
    """The runs of one MMU, canonical places relative to each size's area. Pages first, then blocks."""
    blocks = round(leaves * leaf_sizes.get(BLOCK, 0.0) / sum(leaf_sizes.values()))
    nested_ipa = NESTED_FIRST
    drawn = []
    for leaf_size, count in ((PAGE, leaves - blocks), (BLOCK, blocks)):
        if not count:
            continue
        nested_ipa += -nested_ipa % leaf_size
        runs = _draw_runs(random, leaf_size, count, cluster, alias_rate, nested_ipa, gap)
        nested_ipa = int((runs.nested_ipa + runs.bytes).max())
        drawn.append(runs)
    if nested_ipa > 1 << NESTED_BITS:
        raise ValueError(f"an MMU needs nested IPAs up to {nested_ipa:#x}, above {NESTED_BITS} bits")
    return drawn


def _draw_runs(
    random: np.random.Generator,
    leaf_size: int,
    leaves: int,
    cluster: float,
    alias_rate: float,
    nested_first: int,
    gap: int,
) -> Runs:
    count = _run_lengths(random, leaves, cluster)
    alias = random.random(len(count)) < alias_rate
    alias[0] = False
    own = np.flatnonzero(~alias)
    canonical = np.zeros(len(count), np.uint64)
    canonical[own] = _spaced(random, count[own], gap)
    canonical[alias] = canonical[random.choice(own, int(alias.sum()))]
    order = random.permutation(len(count))
    nested = np.zeros(len(count), np.uint64)
    nested[order] = _spaced(random, count[order], gap)
    size = np.uint64(leaf_size)
    return Runs(leaf_size, nested * size + np.uint64(nested_first), canonical * size, count)


def _run_lengths(random: np.random.Generator, leaves: int, cluster: float) -> Column:
    """Geometric lengths with mean ``cluster`` that add up to ``leaves``; the last is cut to fit."""
    lengths = np.zeros(0, np.uint64)
    while lengths.sum() < leaves:
        batch = random.geometric(1 / cluster, int(leaves / cluster) + 16)
        lengths = np.concatenate((lengths, np.minimum(batch, leaves).astype(np.uint64)))
    ends = np.cumsum(lengths)
    last = int(np.searchsorted(ends, leaves))
    lengths = lengths[: last + 1].copy()
    lengths[last] -= ends[last] - np.uint64(leaves)
    return lengths


def _spaced(random: np.random.Generator, count: Column, gap: int) -> Column:
    """Starts of runs of ``count`` leaves placed in order, each after 1 to ``gap`` leaves of nothing."""
    gaps = random.integers(1, gap + 1, len(count)).astype(np.uint64)
    starts: Column = np.cumsum(count + gaps) - count
    return starts


def _tables(runs: list[Runs]) -> int:
    """Table pages that L1 takes for one MMU: the root, level 2 by 1 GiB, level 3 by 2 MiB of pages."""
    code = np.array([CODE_NESTED], np.uint64)
    regions, blocks = [code // np.uint64(REGION)], [code // np.uint64(BLOCK)]
    for r in runs:
        regions.append(_touched(r, REGION))
        if r.leaf_size == PAGE:
            blocks.append(_touched(r, BLOCK))
    return 1 + sum(len(np.unique(np.concatenate(parts))) for parts in (regions, blocks))


def _touched(runs: Runs, unit: int) -> Column:
    """Numbers of the ``unit``-sized pieces of nested space that the runs lie in."""
    first = runs.nested_ipa // np.uint64(unit)
    last = (runs.nested_ipa + runs.bytes - np.uint64(1)) // np.uint64(unit)
    pieces = (last - first).astype(np.int64) + 1
    before = np.repeat(np.cumsum(pieces) - pieces, pieces)
    return np.repeat(first, pieces) + (np.arange(len(before)) - before).astype(np.uint64)


def _laid_out(drawn: list[list[Runs]], shared: bool, spare_tables: int) -> Population:
    """Place tables, then the data of each leaf size, MMU after MMU, in canonical memory."""
    roots = []
    tables = 0
    for runs in drawn:
        roots.append(TABLE_POOL + tables * PAGE)
        tables += _tables(runs)
    at = LOWEST_DATA + (tables + spare_tables) * PAGE
    areas: dict[int, tuple[int, int]] = {}
    placed: list[list[Runs]] = [[] for _ in drawn]
    for leaf_size in (PAGE, BLOCK):
        at += -at % BLOCK
        first = stop = at
        for k, runs in enumerate(drawn):
            for r in runs:
                if r.leaf_size == leaf_size:
                    canonical_ipa = r.canonical_ipa + np.uint64(first if shared else stop)
                    placed[k].append(Runs(leaf_size, r.nested_ipa, canonical_ipa, r.count))
                    stop = int((canonical_ipa + r.bytes).max())
        if stop > first:
            areas[leaf_size] = (first, stop)
        at = stop
    return Population(placed, roots, areas)


def fill(table: EventTable, population: Population) -> None:
    """The host writes the data, L1 maps it, L2 touches all of it once, MMU after MMU. Takes label 0."""
    for leaf_size, (first, stop) in population.areas.items():
        if leaf_size == BLOCK:
            table.append(schema.HUGEPAGE, first, stop - first)
        table.append(schema.HOST_WRITE, first, stop - first)
    table.append(schema.MARK, 0)
    for k, runs in enumerate(population.runs):
        table.append(schema.SET_STAGE2, 0, k + 1, schema.DEFAULT_VTCR)
        table.append(schema.MAP_GUEST, CODE_NESTED, CODE_CANONICAL, PAGE, 3, attributes("rx"))
        for r in runs:
            everything = np.ones(len(r.count), np.bool_)
            map_runs(table, r, everything)
        for r in runs:
            touch(table, r, np.ones(len(r.count), np.bool_))


def enter(table: EventTable, population: Population, k: int) -> None:
    """L1 switches to the L2 of MMU ``k``."""
    table.append(schema.SET_STAGE2, population.roots[k], k + 1, schema.DEFAULT_VTCR)


def map_runs(table: EventTable, runs: Runs, chosen: Chosen) -> None:
    """L1 maps the chosen runs."""
    if chosen.any():
        table.extend(
            schema.MAP_GUEST,
            a=runs.nested_ipa[chosen],
            b=runs.canonical_ipa[chosen],
            c=runs.bytes[chosen],
            d=LEVEL[runs.leaf_size],
            e=attributes("rw"),
        )


def unmap_runs(table: EventTable, runs: Runs, chosen: Chosen) -> None:
    """L1 unmaps the chosen runs and invalidates them leaf by leaf, with level hints."""
    if not chosen.any():
        return
    level = LEVEL[runs.leaf_size]
    table.extend(schema.UNMAP_GUEST, a=runs.nested_ipa[chosen], b=runs.bytes[chosen], c=level)
    count = runs.count[chosen].astype(np.int64)
    before = np.repeat(np.cumsum(count) - count, count)
    offset = (np.arange(int(count.sum())) - before).astype(np.uint64) * np.uint64(runs.leaf_size)
    nested_ipa = np.repeat(runs.nested_ipa[chosen], count) + offset
    table.extend(schema.TLBI, a=IPAS2E1IS, b=(nested_ipa >> np.uint64(12)) | np.uint64(level_hint(level)))


def level_hint(level: int) -> int:
    """The TTL field of a TLBI operand: 4K granule, a leaf of this level (Arm ARM D8.16.5.5)."""
    return (0b0100 | level) << TTL_SHIFT


def touch(table: EventTable, runs: Runs, chosen: Chosen, operation: int = schema.WRITE) -> None:
    """L2 accesses every leaf of the chosen runs."""
    if chosen.any():
        table.extend(
            schema.TOUCH,
            a=runs.nested_ipa[chosen],
            b=runs.leaf_size,
            c=runs.count[chosen],
            d=operation,
            e=CODE_NESTED,
        )


def revisit(
    table: EventTable,
    random: np.random.Generator,
    population: Population,
    fraction: float,
    writes: float = 1.0,
) -> None:
    """L2 runs again in every MMU: it touches a fraction of its runs and writes to a share of these."""
    if not fraction:
        return
    for k, runs in enumerate(population.runs):
        enter(table, population, k)
        for r in runs:
            chosen = random.random(len(r.count)) < fraction
            if writes < 1:
                writing = random.random(len(r.count)) < writes
                touch(table, r, chosen & ~writing, schema.READ)
                chosen &= writing
            touch(table, r, chosen)


def mapped_page(random: np.random.Generator, population: Population) -> int:
    """Canonical IPA of a page that is mapped, each as likely."""
    everything = [r for runs in population.runs for r in runs]
    weights = np.array([float(r.count.sum()) for r in everything])
    runs = everything[int(random.choice(len(everything), p=weights / weights.sum()))]
    leaf = int(random.integers(int(runs.count.sum())))
    run = int(np.searchsorted(np.cumsum(runs.count), leaf, side="right"))
    page = int(random.integers(int(runs.bytes[run]) // PAGE))
    return int(runs.canonical_ipa[run]) + page * PAGE


def scenario_of(
    name: str, population: Population, table: EventTable, labels: list[str], spare_bytes: int = 0
) -> Scenario:
    """The finished scenario, its memory ending ``spare_bytes`` above the data.

    Raises ValueError where 48 bits of canonical IPA are not enough.
    """
    end = population.end + spare_bytes
    bits = max(schema.DEFAULT_VM_IPA_BITS, (end - 1).bit_length())
    if bits > CANONICAL_BITS:
        raise ValueError(f"the data ends at canonical IPA {end:#x}, above {CANONICAL_BITS} bits")
    return Scenario(
        name=name,
        memory_bytes=end - CANONICAL_RAM,
        events=table.finish(),
        vcpus=(len(population.roots) + 1) // 2,
        backing="base",
        vm_ipa_bits=0 if bits == schema.DEFAULT_VM_IPA_BITS else bits,
        labels=tuple(labels),
    )
