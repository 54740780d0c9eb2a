"""What a VMM does to a whole VM in rounds: dirty logging for live migration, and memslot changes.

Sources are Linux 7.3.4, by reading and as recorded (``kernel_runs/scenario/12-dirtylog-slot``):
``kvm_mmu_wp_memory_region``, ``kvm_arch_mmu_enable_log_dirty_pt_masked``, ``kvm_mmu_split_memory_region``,
``kvm_dirty_ring_reset``, ``kvm_arch_flush_shadow_memslot``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from shadowmmu.events import schema
from shadowmmu.events.host_passes import at_least, between, round_labels, settled
from shadowmmu.events.population import Sizes, revisit, scenario_of
from shadowmmu.events.schema import CAPABILITIES, EventTable, Scenario
from shadowmmu.machine.granule import DEFAULT_GRANULE

LOGS: Final = ("get", "clear", "ring")
RING: Final = 4096
"""Entries of a dirty ring, a vCPU's."""
LEAST_SHARE: Final = 0.01
"""Less than that is sent while the VM stands still."""


def live_migration(
    *,
    mmus: int,
    leaves: int,
    cluster: float,
    rounds: int,
    active: float,
    writes: float,
    seed: int,
    leaf_sizes: Mapping[int, float] | None = None,
    used: int = 1,
    log: str = "get",
    split: int = 0,
    converge: bool = False,
    granule: str = DEFAULT_GRANULE,
) -> Scenario:
    """Pre-copy: the log is switched on, then at most ``rounds`` times the L2s run and the VMM harvests.

    The L2s touch ``active`` of their runs a round, and write ``writes`` of these. What switching on and a
    harvest protect from writes is ``log``'s affair: ``get``, all at first and by KVM_GET_DIRTY_LOG what was
    dirty; ``clear``, nothing at first (every page begins dirty), and by KVM_CLEAR_DIRTY_LOG what was dirty;
    ``ring``, dirty rings of ``RING`` entries, which are reset, a bitmap beside them (without it Linux maps
    blocks writable). ``split``: bytes of a chunk of eager page splitting, 0 for none; without it a block is
    split by the first write to it. With ``converge`` a round is as long as sending what the one before
    dirtied: the L2s get through that share of ``active``, until less than a hundredth is left. At the end
    the log goes off and they run once more. Raises ValueError.
    """
    at_least("rounds", rounds, 0)
    between("active", active)
    between("writes", writes)
    if log not in LOGS:
        raise ValueError(f"log is {log!r}, expected one of {', '.join(LOGS)}")
    sizes = Sizes.of(granule)
    if split not in (0, sizes.page, sizes.block):
        raise ValueError(f"split is {split}, expected 0, {sizes.page} or {sizes.block}")
    random = np.random.default_rng(seed)
    table = EventTable()
    if split:
        table.append(schema.CAPABILITY, CAPABILITIES.index("eager"), split)
    if log == "clear":
        table.append(schema.CAPABILITY, CAPABILITIES.index("manual"), 1)
    elif log == "ring":
        table.append(schema.CAPABILITY, CAPABILITIES.index("ring"), RING, 1)
    population = settled(random, table, mmus, leaves, cluster, granule, leaf_sizes, used)
    table.append(schema.LOG, 1)
    share = 1.0
    for k in range(rounds):
        table.append(schema.MARK, k + 1)
        revisit(table, random, population, active * share, writes)
        _harvest(table, log)
        share *= active * writes if converge else 1.0
        if share < LEAST_SHARE:
            break
    table.append(schema.LOG, 0)
    revisit(table, random, population, active, writes)
    return scenario_of(f"live-migration-{mmus}x{leaves // mmus}", population, table, round_labels(rounds))


def _harvest(table: EventTable, log: str) -> None:
    """The VMM reads what is dirty and asks for it to be protected again."""
    if log == "ring":
        table.append(schema.HARVEST)
        return
    table.append(schema.GETLOG)
    if log == "clear":
        table.append(schema.CLEARLOG)


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
