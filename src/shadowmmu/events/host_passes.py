"""What a host does to memory in passes: NUMA balancing, KSM, a balloon, huge-page collapse.

Each starts from a population of pages of the host's granule, and L2 runs between the passes: ``active`` is
the fraction of its runs it touches then. Sources are Linux 7.3.4, by reading: ``mm/mprotect.c``,
``mm/ksm.c``, ``mm/khugepaged.c``, ``kernel/sched/fair.c``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shadowmmu.events import schema
from shadowmmu.events.population import (
    Population,
    Sizes,
    enter,
    fill,
    map_runs,
    mapped_page,
    populate,
    revisit,
    scenario_of,
    touch,
    unmap_runs,
)
from shadowmmu.events.schema import EventTable, Scenario
from shadowmmu.machine.granule import DEFAULT_GRANULE, page_bytes

KSM_NOTIFIERS = 2
"""``write_protect_page`` and ``replace_page`` notify once each for every page merged."""


def settled(
    random: np.random.Generator,
    table: EventTable,
    mmus: int,
    leaves: int,
    cluster: float,
    granule: str,
    leaf_sizes: Mapping[int, float] | None = None,
    used: int = 1,
) -> Population:
    """A population, of pages unless ``leaf_sizes`` says otherwise, all of it touched. Raises ValueError."""
    sizes = Sizes.of(granule)
    shares = {sizes.page: 1.0} if leaf_sizes is None else leaf_sizes
    population = populate(random, mmus, leaves, shares, cluster, sizes=sizes, used=used)
    fill(table, population)
    return population


def between(name: str, value: float) -> None:
    """Raises ValueError for a share that is none."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, expected 0 to 1")


def at_least(name: str, value: int, least: int) -> None:
    """Raises ValueError for a number below ``least``."""
    if value < least:
        raise ValueError(f"{name} is {value}, expected {least} or more")


def round_labels(rounds: int) -> list[str]:
    """The labels of a workload with rounds."""
    return ["fill", *(f"round {k}" for k in range(rounds))]


def numa_balancing(
    *,
    mmus: int,
    leaves: int,
    cluster: float,
    rounds: int,
    window: int,
    migrations: int,
    active: float,
    seed: int,
    granule: str = DEFAULT_GRANULE,
) -> Scenario:
    """Scan windows made inaccessible, and pages that migrate at the fault.

    ``change_prot_numa`` goes over ``window`` bytes with one notifier (``change_pud_range``), and of the pages
    that are touched again ``migrations`` a window move, each with a notifier (``try_to_migrate_one``).
    Both are a PUNCH here: one notifier, and what was mapped must be faulted in again.
    """
    at_least("rounds", rounds, 0)
    at_least("migrations", migrations, 0)
    between("active", active)
    page = page_bytes(granule)
    if window <= 0 or window % page:
        raise ValueError(f"window is {window}, expected a multiple of {page}")
    random = np.random.default_rng(seed)
    table = EventTable()
    population = settled(random, table, mmus, leaves, cluster, granule)
    for k in range(rounds):
        table.append(schema.MARK, k + 1)
        for start in range(population.first, population.end, window):
            table.append(schema.PUNCH, start, min(window, population.end - start))
            revisit(table, random, population, active)
            for _ in range(migrations):
                table.append(schema.PUNCH, mapped_page(random, population), page)
            revisit(table, random, population, active)
    return scenario_of(f"numa-balancing-{mmus}x{leaves // mmus}", population, table, round_labels(rounds))


def ksm(
    *,
    mmus: int,
    leaves: int,
    cluster: float,
    rounds: int,
    merged: int,
    active: float,
    writes: float,
    seed: int,
    granule: str = DEFAULT_GRANULE,
) -> Scenario:
    """Pages of equal content become one: each wake-up of ksmd merges ``merged`` pages, then L2 runs.

    Each merge is two notifiers of a page. A merged page reads as the zero page here, one frame for all, and a
    write takes it apart again with a notifier of its own (copy on write).
    """
    at_least("rounds", rounds, 0)
    at_least("merged", merged, 0)
    between("active", active)
    between("writes", writes)
    random = np.random.default_rng(seed)
    table = EventTable()
    population = settled(random, table, mmus, leaves, cluster, granule)
    for k in range(rounds):
        table.append(schema.MARK, k + 1)
        for _ in range(merged):
            canonical_ipa = mapped_page(random, population)
            for _ in range(KSM_NOTIFIERS):
                table.append(schema.PUNCH, canonical_ipa, population.sizes.page)
        revisit(table, random, population, active, writes)
    return scenario_of(f"ksm-{mmus}x{leaves // mmus}", population, table, round_labels(rounds))


def balloon(
    *,
    mmus: int,
    leaves: int,
    cluster: float,
    rounds: int,
    share: float,
    free: int,
    active: float,
    seed: int,
    granule: str = DEFAULT_GRANULE,
) -> Scenario:
    """Balloons of L1 and its L2s inflate and deflate.

    Inflating, L1 takes a ``share`` of the runs from its L2s (unmap, TLBI with level hints), and gives these
    and ``free`` pages that no L2 has to the host, which drops them page by page (as QEMU's virtio-balloon:
    MADV_DONTNEED of a host page each). The L2s run on with the rest. Deflating, all of it comes back.
    """
    at_least("rounds", rounds, 0)
    at_least("free", free, 0)
    between("share", share)
    between("active", active)
    random = np.random.default_rng(seed)
    table = EventTable()
    population = settled(random, table, mmus, leaves, cluster, granule)
    page, block = population.sizes.page, population.sizes.block
    spare = -(-free * page // block) * block
    if spare:
        table.append(schema.HOST_WRITE, population.end, spare)
    unused = population.end + np.arange(free, dtype=np.uint64) * np.uint64(page)
    for k in range(rounds):
        table.append(schema.MARK, k + 1)
        taken = [[random.random(len(r.count)) < share for r in runs] for runs in population.runs]
        for mmu, runs in enumerate(population.runs):
            enter(table, population, mmu)
            for r, chosen in zip(runs, taken[mmu], strict=True):
                unmap_runs(table, r, chosen, population.sizes)
                for start, size in zip(r.canonical_ipa[chosen], r.bytes[chosen], strict=True):
                    pages = np.arange(int(start), int(start + size), page, dtype=np.uint64)
                    table.extend(schema.DONTNEED, a=pages, b=page)
        if free:
            table.extend(schema.DONTNEED, a=unused, b=page)
        for mmu, runs in enumerate(population.runs):
            enter(table, population, mmu)
            for r, chosen in zip(runs, taken[mmu], strict=True):
                touch(table, r, ~chosen & (random.random(len(r.count)) < active))
            for r, chosen in zip(runs, taken[mmu], strict=True):
                map_runs(table, r, chosen, population.sizes)
                touch(table, r, chosen)
    name = f"balloon-{mmus}x{leaves // mmus}"
    return scenario_of(name, population, table, round_labels(rounds), spare)


def thp_collapse(
    *,
    mmus: int,
    leaves: int,
    cluster: float,
    rounds: int,
    blocks: int,
    active: float,
    seed: int,
    granule: str = DEFAULT_GRANULE,
) -> Scenario:
    """khugepaged goes through memory: ``blocks`` pieces of a block's size a round, then the L2s run.

    ``collapse_huge_page`` notifies once for the block that it collapses: 2M; 32M or 512M with larger pages.
    """
    at_least("rounds", rounds, 0)
    at_least("blocks", blocks, 1)
    between("active", active)
    random = np.random.default_rng(seed)
    table = EventTable()
    population = settled(random, table, mmus, leaves, cluster, granule)
    block = population.sizes.block
    pieces = list(range(population.first, population.end - block + 1, block))
    table.append(schema.HUGEPAGE, population.first, population.end - population.first)
    for k in range(rounds):
        table.append(schema.MARK, k + 1)
        for _ in range(min(blocks, len(pieces))):
            table.append(schema.COLLAPSE, pieces.pop(0), block)
        revisit(table, random, population, active)
    return scenario_of(f"thp-collapse-{mmus}x{leaves // mmus}", population, table, round_labels(rounds))
