"""Notifier storms: many shadow leaves, then host notifiers one at a time, each followed by refaults.

The workload for which reverse maps are asked for: L2s with much memory run, the host takes one page of it,
and what was torn down must be faulted in again. Mappings come in runs of consecutive leaves, as guests'
memory does; every MMU has its own nested layout, with gaps and in another order than the canonical one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shadowmmu.events import schema
from shadowmmu.events.commands import MOST_VCPUS
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

Column = npt.NDArray[np.uint64]


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

    def level(self, leaf_size: int) -> int:
        """Guest stage-2 level of a leaf."""
        return 3 if leaf_size == self.page else 2

    def shares(self) -> dict[int, float]:
        """Weights of the leaf sizes where none are given."""
        blocks = BLOCKS * (BLOCK // PAGE) / (self.block // self.page)
        return {self.page: 1 - blocks, self.block: blocks}


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
class _Machine:
    """Everything placed: the runs of each MMU by leaf size, the roots, and the data areas by leaf size."""

    sizes: Sizes
    runs: list[list[Runs]]
    roots: list[int]
    areas: dict[int, tuple[int, int]]


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
    granule: str = DEFAULT_GRANULE,
) -> Scenario:
    """A notifier storm over ``mmus`` shadow MMUs with ``leaves`` leaves altogether; O(leaves / cluster).

    ``granule`` is the page size of the host and of L1's tables; ``leaf_sizes`` weighs the leaf sizes (4096
    and 2 MiB with 4K) by number of leaves; ``cluster`` is the mean length
    of a run of leaves (geometric); ``alias_rate`` is the chance that a run starts at a canonical place where
    another run of the same MMU starts too. L1 makes one root an MMU (VMIDs from 1), the host writes all the
    data first, 2 MiB leaves lie over an area advised for huge pages, and L2 writes every leaf once. Then
    ``notifiers`` times: DONTNEED of ``notifier_bytes`` at a mapped place, the host writes it again, and L2
    writes all leaves (``refault`` ``"all"``) or those of that fraction of the runs in every MMU.

    The same arguments give the same events. Raises ValueError for arguments out of range and for layouts
    that do not fit the nested IPAs of the default VTCR_EL2 (39 bits; 36 with 16K) or 48 bits of canonical
    IPA.
    """
    sizes = Sizes.of(granule)
    shares = sizes.shares() if leaf_sizes is None else leaf_sizes
    taken = sizes.page if notifier_bytes is None else notifier_bytes
    fraction = _checked(mmus, leaves, sizes, shares, cluster, alias_rate, notifiers, taken, refault)
    random = np.random.default_rng(seed)
    per_mmu = [leaves // mmus + (k < leaves % mmus) for k in range(mmus)]
    drawn = [_draw_mmu(random, count, sizes, shares, cluster, alias_rate) for count in per_mmu]
    machine = _laid_out(drawn, sizes)
    end = max(stop for _, stop in machine.areas.values())
    end += -end % sizes.block
    bits = max(schema.DEFAULT_VM_IPA_BITS, (end - 1).bit_length())
    if bits > CANONICAL_BITS:
        raise ValueError(f"the data ends at canonical IPA {end:#x}, above {CANONICAL_BITS} bits")
    table = EventTable()
    labels = ["fill", *(f"notifier {k}" for k in range(notifiers))]
    _fill(table, machine)
    for k in range(notifiers):
        table.append(schema.MARK, k + 1)
        _notify(table, random, machine, taken, end)
        _refault(table, random, machine, fraction)
    return Scenario(
        name=f"storm-{mmus}x{leaves // mmus}-seed{seed}",
        memory_bytes=end - CANONICAL_RAM,
        events=table.finish(),
        vcpus=(mmus + 1) // 2,
        backing="base",
        vm_ipa_bits=0 if bits == schema.DEFAULT_VM_IPA_BITS else bits,
        granule=granule,
        labels=tuple(labels),
    )


def _checked(
    mmus: int,
    leaves: int,
    sizes: Sizes,
    leaf_sizes: Mapping[int, float],
    cluster: float,
    alias_rate: float,
    notifiers: int,
    notifier_bytes: int,
    refault: str | float,
) -> float:
    """The refaulted fraction of the runs. Raises ValueError for an argument out of range."""
    if not 1 <= mmus <= 2 * MOST_VCPUS:
        raise ValueError(f"mmus is {mmus}, expected 1 to {2 * MOST_VCPUS}")
    if leaves < mmus:
        raise ValueError(f"leaves is {leaves}, expected at least one an MMU")
    weights = list(leaf_sizes.values())
    if (
        not set(leaf_sizes) <= {sizes.page, sizes.block}
        or not weights
        or min(weights) < 0
        or not 0 < sum(weights) < np.inf
    ):
        raise ValueError(
            f"leaf_sizes is {dict(leaf_sizes)}, expected weights for {sizes.page} and {sizes.block}"
        )
    if not cluster >= 1:
        raise ValueError(f"cluster is {cluster}, expected at least 1")
    if not 0 <= alias_rate < 1:
        raise ValueError(f"alias_rate is {alias_rate}, expected 0 to below 1")
    if notifiers < 0:
        raise ValueError(f"notifiers is {notifiers}, expected 0 or more")
    if notifier_bytes <= 0 or notifier_bytes % sizes.page:
        raise ValueError(f"notifier_bytes is {notifier_bytes}, expected a multiple of {sizes.page}")
    fraction = 1.0 if refault == "all" else refault
    if isinstance(fraction, str) or not 0 <= fraction <= 1:
        raise ValueError(f"refault is {refault!r}, expected 'all' or 0 to 1")
    return fraction


def _draw_mmu(
    random: np.random.Generator,
    leaves: int,
    sizes: Sizes,
    leaf_sizes: Mapping[int, float],
    cluster: float,
    alias_rate: float,
) -> list[Runs]:
    """The runs of one MMU, canonical places relative to each size's area. Pages first, then blocks."""
    blocks = round(leaves * leaf_sizes.get(sizes.block, 0.0) / sum(leaf_sizes.values()))
    nested_ipa = NESTED_FIRST
    drawn = []
    for leaf_size, count in ((sizes.page, leaves - blocks), (sizes.block, blocks)):
        if not count:
            continue
        nested_ipa += -nested_ipa % leaf_size
        runs = _draw_runs(random, leaf_size, count, cluster, alias_rate, nested_ipa)
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
) -> Runs:
    count = _run_lengths(random, leaves, cluster)
    alias = random.random(len(count)) < alias_rate
    alias[0] = False
    own = np.flatnonzero(~alias)
    canonical = np.zeros(len(count), np.uint64)
    canonical[own] = _spaced(random, count[own])
    canonical[alias] = canonical[random.choice(own, int(alias.sum()))]
    order = random.permutation(len(count))
    nested = np.zeros(len(count), np.uint64)
    nested[order] = _spaced(random, count[order])
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


def _spaced(random: np.random.Generator, count: Column) -> Column:
    """Starts of runs of ``count`` leaves placed in order, each after a gap of 1 to 8 leaves."""
    gaps = random.integers(1, 9, len(count)).astype(np.uint64)
    starts: Column = np.cumsum(count + gaps) - count
    return starts


def _tables(runs: list[Runs], sizes: Sizes) -> int:
    """Table pages L1 takes for one MMU: the root, level 3 by 2 MiB of pages, with 4K level 2 by 1 GiB."""
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


def _laid_out(drawn: list[list[Runs]], sizes: Sizes) -> _Machine:
    """Place tables, then the data of each leaf size, MMU after MMU, in canonical memory."""
    roots = []
    tables = 0
    for runs in drawn:
        roots.append(TABLE_POOL + tables * sizes.page)
        tables += _tables(runs, sizes)
    at = LOWEST_DATA + tables * sizes.page
    areas: dict[int, tuple[int, int]] = {}
    placed: list[list[Runs]] = [[] for _ in drawn]
    for leaf_size in (sizes.page, sizes.block):
        at += -at % sizes.block
        first = at
        for k, runs in enumerate(drawn):
            for r in runs:
                if r.leaf_size == leaf_size:
                    canonical_ipa = r.canonical_ipa + np.uint64(at)
                    placed[k].append(Runs(leaf_size, r.nested_ipa, canonical_ipa, r.count))
                    at = int((canonical_ipa + r.bytes).max())
        if at > first:
            areas[leaf_size] = (first, at)
    return _Machine(sizes, placed, roots, areas)


def _fill(table: EventTable, machine: _Machine) -> None:
    """The host writes the data, L1 maps it, L2 touches all of it once, MMU after MMU."""
    for leaf_size, (first, stop) in machine.areas.items():
        if leaf_size == machine.sizes.block:
            table.append(schema.HUGEPAGE, first, stop - first)
        table.append(schema.HOST_WRITE, first, stop - first)
    table.append(schema.MARK, 0)
    bits = attributes("rw")
    for k, runs in enumerate(machine.runs):
        table.append(schema.SET_STAGE2, 0, k + 1, schema.DEFAULT_VTCRS[machine.sizes.granule])
        table.append(schema.MAP_GUEST, CODE_NESTED, CODE_CANONICAL, machine.sizes.page, 3, attributes("rx"))
        for r in runs:
            level = machine.sizes.level(r.leaf_size)
            table.extend(schema.MAP_GUEST, a=r.nested_ipa, b=r.canonical_ipa, c=r.bytes, d=level, e=bits)
        for r in runs:
            _touch(table, r, np.ones(len(r.count), np.bool_))


def _touch(table: EventTable, runs: Runs, chosen: npt.NDArray[np.bool_]) -> None:
    """L2 writes every leaf of the chosen runs."""
    if chosen.any():
        table.extend(
            schema.TOUCH,
            a=runs.nested_ipa[chosen],
            b=runs.leaf_size,
            c=runs.count[chosen],
            d=schema.WRITE,
            e=CODE_NESTED,
        )


def _notify(
    table: EventTable, random: np.random.Generator, machine: _Machine, notifier_bytes: int, end: int
) -> None:
    """The host drops a range that holds a randomly drawn mapped page, and writes it again."""
    everything = [r for runs in machine.runs for r in runs]
    weights = np.array([float(r.count.sum()) for r in everything])
    runs = everything[int(random.choice(len(everything), p=weights / weights.sum()))]
    leaf = int(random.integers(int(runs.count.sum())))
    run = int(np.searchsorted(np.cumsum(runs.count), leaf, side="right"))
    page_size = machine.sizes.page
    page = int(random.integers(int(runs.bytes[run]) // page_size))
    canonical_ipa = int(runs.canonical_ipa[run]) + page * page_size
    canonical_ipa -= canonical_ipa % notifier_bytes
    lowest = min(first for first, _ in machine.areas.values())
    canonical_ipa = max(lowest, min(canonical_ipa, end - notifier_bytes))
    size = min(notifier_bytes, end - canonical_ipa)
    table.append(schema.DONTNEED, canonical_ipa, size)
    table.append(schema.HOST_WRITE, canonical_ipa, size)


def _refault(table: EventTable, random: np.random.Generator, machine: _Machine, fraction: float) -> None:
    """L2 runs again in every MMU and touches a fraction of its runs."""
    if not fraction:
        return
    for k, runs in enumerate(machine.runs):
        vtcr = schema.DEFAULT_VTCRS[machine.sizes.granule]
        table.append(schema.SET_STAGE2, machine.roots[k], k + 1, vtcr)
        for r in runs:
            _touch(table, r, random.random(len(r.count)) < fraction)
