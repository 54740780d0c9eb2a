"""Who lives in the machine before anything happens: L2s with their leaves, laid out as guests' memory is.

Mappings come in runs of consecutive leaves; every MMU has its own nested layout, with gaps and in another
order than the canonical one. Every workload starts from such a population and disturbs it in its own way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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
from shadowmmu.machine.granule import DEFAULT_GRANULE, block_bytes, leaf_bytes, page_bytes, page_shift_of

PAGE = page_bytes(DEFAULT_GRANULE)
BLOCK = block_bytes(DEFAULT_GRANULE)
BLOCKS = 0.02
"""Share of blocks among the leaves with the 4K granule; with another, blocks have the same share of bytes."""

TABLE_POOL = 0x4010_0000
"""Canonical IPA from which L1 of the rig takes its table pages, one after the other (``POOL_PA``)."""

LOWEST_DATA = 0x4100_0000
NESTED_FIRST = 0x4000_0000
CANONICAL_BITS = 48

USUAL_GAP = 8

MOST_MMUS = 1024
"""Shadow MMUs of a VM at most: two for each of 512 vCPUs (``KVM_MAX_VCPUS`` with a GICv3)."""

IPAS2E1IS = 0
"""The first form of ``schema.TLBI``."""

TTL_SHIFT = 44
TTL_GRANULE = {"4K": 0b0100, "16K": 0b1000, "64K": 0b1100}
"""The granule half of a TLBI operand's TTL field (Arm ARM D8.16.5.5)."""

Column = npt.NDArray[np.uint64]
Chosen = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sizes:
    """The leaf sizes of a granule: page and block, and what a level 2 table covers."""

    granule: str
    page: int
    block: int
    region: int

    @classmethod
    def of(cls, granule: str) -> Sizes:
        """Those of a granule. Raises ValueError for a name that is no granule."""
        shift = page_shift_of(granule)
        return cls(granule, *(leaf_bytes(shift, level) for level in (3, 2, 1)))

    @property
    def vtcr(self) -> int:
        """VTCR_EL2 of L1 with this granule, unless a script says otherwise."""
        return schema.DEFAULT_VTCRS[self.granule]

    def level(self, leaf_size: int) -> int:
        """Guest stage-2 level of a leaf."""
        return 3 if leaf_size == self.page else 2

    def level_hint(self, leaf_size: int) -> int:
        """The TTL field of a TLBI operand for a leaf of this size."""
        return (TTL_GRANULE[self.granule] | self.level(leaf_size)) << TTL_SHIFT

    def shares(self) -> dict[int, float]:
        """Weights of the leaf sizes where none are given."""
        blocks = BLOCKS * (BLOCK // PAGE) / (self.block // self.page)
        return {self.page: 1 - blocks, self.block: blocks}


DEFAULT_SIZES = Sizes.of(DEFAULT_GRANULE)


@dataclass(frozen=True)
class Runs:
    """Runs of consecutive leaves of one size in one MMU; ``count`` in leaves, one element a run.

    ``canonical_ipa`` is relative to the start of the data until the scenario is laid out.
    """

    leaf_size: int
    nested_ipa: Column
    canonical_ipa: Column
    count: Column
    used: int = 1
    """Places in each leaf that L2 accesses, evenly spread: what of a block comes back once it is split."""

    @property
    def bytes(self) -> Column:
        """Length of each run in bytes."""
        return self.count * np.uint64(self.leaf_size)


@dataclass(frozen=True)
class Population:
    """Everything placed: the runs of each MMU by leaf size, the roots, the data areas by leaf size.

    ``sizes``: those of the granule of the host and of L1's tables.

    ``moved`` remembers the leaves that L1 has moved since: (MMU, nested IPA) to canonical IPA.
    """

    runs: list[list[Runs]]
    roots: list[int]
    areas: dict[int, tuple[int, int]]
    sizes: Sizes = DEFAULT_SIZES
    moved: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """Canonical IPA of the first byte of data."""
        return min(first for first, _ in self.areas.values())

    @property
    def end(self) -> int:
        """Canonical IPA above the data, a multiple of a block."""
        end = max(stop for _, stop in self.areas.values())
        return end + -end % self.sizes.block


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
    sizes: Sizes = DEFAULT_SIZES,
    used: int = 1,
) -> Population:
    """``leaves`` leaves over ``mmus`` MMUs; O(leaves / cluster).

    ``leaf_sizes`` weighs the leaf sizes (page and block) by number of leaves; ``cluster`` is the mean length
    of a run of leaves (geometric); ``alias_rate`` is the chance that a run starts at a canonical place where
    another run of the same MMU starts too; with ``shared`` all MMUs map the same canonical memory, as many
    leaves each. Between two runs are 1 to ``gap`` leaves of nothing. ``spare_tables`` pages are left to L1
    for roots it makes later. ``used`` is how many pages of a block L2 accesses, a power of two. Raises
    ValueError for arguments out of range, and where the nested IPAs of the default VTCR_EL2 (39 bits; 36 with
    16K) are not enough.
    """
    if not 1 <= mmus <= MOST_MMUS:
        raise ValueError(f"mmus is {mmus}, expected 1 to {MOST_MMUS}")
    if leaves < mmus:
        raise ValueError(f"leaves is {leaves}, expected at least one an MMU")
    weights = list(leaf_sizes.values())
    known = {sizes.page, sizes.block}
    if not set(leaf_sizes) <= known or not weights or min(weights) < 0 or not 0 < sum(weights) < np.inf:
        raise ValueError(
            f"leaf_sizes is {dict(leaf_sizes)}, expected weights for {sizes.page} and {sizes.block}"
        )
    if not cluster >= 1:
        raise ValueError(f"cluster is {cluster}, expected at least 1")
    if not 0 <= alias_rate < 1:
        raise ValueError(f"alias_rate is {alias_rate}, expected 0 to below 1")
    most = sizes.block // sizes.page
    if not 1 <= used <= most or used & (used - 1):
        raise ValueError(f"used is {used}, expected a power of two up to {most}, the pages of a block")
    if shared:
        drawn = [_draw_mmu(random, leaves // mmus, sizes, leaf_sizes, cluster, alias_rate, gap)] * mmus
    else:
        counts = [leaves // mmus + (k < leaves % mmus) for k in range(mmus)]
        drawn = [_draw_mmu(random, count, sizes, leaf_sizes, cluster, alias_rate, gap) for count in counts]
    using = [[replace(r, used=used) if r.leaf_size == sizes.block else r for r in runs] for runs in drawn]
    return _laid_out(using, sizes, shared, spare_tables)


def _draw_mmu(
    random: np.random.Generator,
    leaves: int,
    sizes: Sizes,
    leaf_sizes: Mapping[int, float],
    cluster: float,
    alias_rate: float,
    gap: int,
) -> list[Runs]:
    """The runs of one MMU, canonical places relative to each size's area. Pages first, then blocks."""
    blocks = round(leaves * leaf_sizes.get(sizes.block, 0.0) / sum(leaf_sizes.values()))
    nested_ipa = NESTED_FIRST
    drawn = []
    for leaf_size, count in ((sizes.page, leaves - blocks), (sizes.block, blocks)):
        if not count:
            continue
        nested_ipa += -nested_ipa % leaf_size
        runs = _draw_runs(random, leaf_size, count, cluster, alias_rate, nested_ipa, gap)
        nested_ipa = int((runs.nested_ipa + runs.bytes).max())
        drawn.append(runs)
    bits = schema.NESTED_BITS[sizes.granule]
    if nested_ipa > 1 << bits:
        raise ValueError(f"an MMU needs nested IPAs up to {nested_ipa:#x}, above {bits} bits")
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


def _tables(runs: list[Runs], sizes: Sizes) -> int:
    """Table pages that L1 takes for one MMU: the root, level 3 by block, with 4K level 2 by 1 GiB."""
    code = np.array([CODE_NESTED], np.uint64)
    regions, blocks = [code // np.uint64(sizes.region)], [code // np.uint64(sizes.block)]
    for r in runs:
        regions.append(_touched(r, sizes.region))
        if r.leaf_size == sizes.page:
            blocks.append(_touched(r, sizes.block))
    below_root = (regions, blocks) if sizes.granule == DEFAULT_GRANULE else (blocks,)
    return 1 + sum(len(np.unique(np.concatenate(parts))) for parts in below_root)


def _touched(runs: Runs, unit: int) -> Column:
    """Numbers of the ``unit``-sized pieces of nested space that the runs lie in."""
    first = runs.nested_ipa // np.uint64(unit)
    last = (runs.nested_ipa + runs.bytes - np.uint64(1)) // np.uint64(unit)
    pieces = (last - first).astype(np.int64) + 1
    before = np.repeat(np.cumsum(pieces) - pieces, pieces)
    return np.repeat(first, pieces) + (np.arange(len(before)) - before).astype(np.uint64)


def _laid_out(drawn: list[list[Runs]], sizes: Sizes, shared: bool, spare_tables: int) -> Population:
    """Place tables, then the data of each leaf size, MMU after MMU, in canonical memory."""
    roots = []
    tables = 0
    for runs in drawn:
        roots.append(TABLE_POOL + tables * sizes.page)
        tables += _tables(runs, sizes)
    at = LOWEST_DATA + (tables + spare_tables) * sizes.page
    areas: dict[int, tuple[int, int]] = {}
    placed: list[list[Runs]] = [[] for _ in drawn]
    for leaf_size in (sizes.page, sizes.block):
        at += -at % sizes.block
        first = stop = at
        for k, runs in enumerate(drawn):
            for r in runs:
                if r.leaf_size == leaf_size:
                    canonical_ipa = r.canonical_ipa + np.uint64(first if shared else stop)
                    placed[k].append(replace(r, canonical_ipa=canonical_ipa))
                    stop = int((canonical_ipa + r.bytes).max())
        if stop > first:
            areas[leaf_size] = (first, stop)
        at = stop
    return Population(placed, roots, areas, sizes)


def fill(table: EventTable, population: Population) -> None:
    """The host writes the data, L1 maps it, L2 touches all of it once, MMU after MMU. Takes label 0."""
    sizes = population.sizes
    for leaf_size, (first, stop) in population.areas.items():
        if leaf_size == sizes.block:
            table.append(schema.HUGEPAGE, first, stop - first)
        table.append(schema.HOST_WRITE, first, stop - first)
    table.append(schema.MARK, 0)
    for k, runs in enumerate(population.runs):
        table.append(schema.SET_STAGE2, 0, k + 1, sizes.vtcr)
        table.append(schema.MAP_GUEST, CODE_NESTED, CODE_CANONICAL, sizes.page, 3, attributes("rx"))
        for r in runs:
            everything = np.ones(len(r.count), np.bool_)
            map_runs(table, r, everything, sizes)
        for r in runs:
            touch(table, r, np.ones(len(r.count), np.bool_))


def enter(table: EventTable, population: Population, k: int) -> None:
    """L1 switches to the L2 of MMU ``k``."""
    table.append(schema.SET_STAGE2, population.roots[k], k + 1, population.sizes.vtcr)


def map_runs(table: EventTable, runs: Runs, chosen: Chosen, sizes: Sizes = DEFAULT_SIZES) -> None:
    """L1 maps the chosen runs."""
    if chosen.any():
        table.extend(
            schema.MAP_GUEST,
            a=runs.nested_ipa[chosen],
            b=runs.canonical_ipa[chosen],
            c=runs.bytes[chosen],
            d=sizes.level(runs.leaf_size),
            e=attributes("rw"),
        )


def unmap_runs(table: EventTable, runs: Runs, chosen: Chosen, sizes: Sizes) -> None:
    """L1 unmaps the chosen runs and invalidates them leaf by leaf, with level hints."""
    if not chosen.any():
        return
    level = sizes.level(runs.leaf_size)
    table.extend(schema.UNMAP_GUEST, a=runs.nested_ipa[chosen], b=runs.bytes[chosen], c=level)
    count = runs.count[chosen].astype(np.int64)
    before = np.repeat(np.cumsum(count) - count, count)
    offset = (np.arange(int(count.sum())) - before).astype(np.uint64) * np.uint64(runs.leaf_size)
    nested_ipa = np.repeat(runs.nested_ipa[chosen], count) + offset
    hint = np.uint64(sizes.level_hint(runs.leaf_size))
    table.extend(schema.TLBI, a=IPAS2E1IS, b=(nested_ipa >> np.uint64(12)) | hint)


def touch(table: EventTable, runs: Runs, chosen: Chosen, operation: int = schema.WRITE) -> None:
    """L2 accesses every leaf of the chosen runs, in as many places as it uses."""
    if chosen.any():
        table.extend(
            schema.TOUCH,
            a=runs.nested_ipa[chosen],
            b=runs.leaf_size // runs.used,
            c=runs.count[chosen] * np.uint64(runs.used),
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
    page_size = population.sizes.page
    page = int(random.integers(int(runs.bytes[run]) // page_size))
    return int(runs.canonical_ipa[run]) + page * page_size


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
        granule=population.sizes.granule,
        labels=tuple(labels),
    )
