"""What a VMM does to a whole VM in rounds: dirty logging for live migration, and memslot changes.

Sources are Linux 7.3.4, by reading and as recorded (``kernel_runs/scenario/12-dirtylog-slot``):
``kvm_mmu_wp_memory_region``, ``kvm_arch_mmu_enable_log_dirty_pt_masked``, ``kvm_arch_flush_shadow_memslot``.
"""

from __future__ import annotations

import numpy as np

from shadowmmu.events import schema
from shadowmmu.events.host_passes import at_least, between, round_labels, settled
from shadowmmu.events.population import revisit, scenario_of
from shadowmmu.events.schema import EventTable, Scenario
from shadowmmu.machine.granule import DEFAULT_GRANULE


def live_migration(
    *,
    mmus: int,
    leaves: int,
    cluster: float,
    rounds: int,
    active: float,
    writes: float,
    seed: int,
    granule: str = DEFAULT_GRANULE,
) -> Scenario:
    """Pre-copy: the log is switched on, then ``rounds`` times the L2s run and the VMM harvests.

    Switching on, and each harvest, write-protects what may have been written; the L2s touch ``active`` of
    their runs, and write ``writes`` of these. At the end the log goes off and they run once more.
    """
    at_least("rounds", rounds, 0)
    between("active", active)
    between("writes", writes)
    random = np.random.default_rng(seed)
    table = EventTable()
    population = settled(random, table, mmus, leaves, cluster, granule)
    table.append(schema.LOG, 1)
    for k in range(rounds):
        table.append(schema.MARK, k + 1)
        revisit(table, random, population, active, writes)
        table.append(schema.GETLOG)
    table.append(schema.LOG, 0)
    revisit(table, random, population, active, writes)
    return scenario_of(f"live-migration-{mmus}x{leaves // mmus}", population, table, round_labels(rounds))


def memslot_churn(
    *,
    mmus: int,
    leaves: int,
    cluster: float,
    rounds: int,
    active: float,
    seed: int,
    granule: str = DEFAULT_GRANULE,
) -> Scenario:
    """The memslot is deleted and made again, ``rounds`` times; the L2s run after each.

    Every leaf has to go and be faulted in again whatever the design; how they are found differs.
    (Linux 7.3.4 unmaps all shadow MMUs; the other designs take the slot's range.)
    """
    at_least("rounds", rounds, 0)
    between("active", active)
    random = np.random.default_rng(seed)
    table = EventTable()
    population = settled(random, table, mmus, leaves, cluster, granule)
    for k in range(rounds):
        table.append(schema.MARK, k + 1)
        table.append(schema.SLOT, 0)
        table.append(schema.SLOT, 1)
        revisit(table, random, population, active)
    return scenario_of(f"memslot-churn-{mmus}x{leaves // mmus}", population, table, round_labels(rounds))
