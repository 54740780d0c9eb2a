"""``sweep_vmalls12``: the cheaper sweep. Marc Zyngier, "Reduce overhead of full S2 teardown", September 2026.

Idea: unmap everything, as ``sweep``, but the walker invalidates nothing on its way: each shadow MMU ends
with one VMALLS12E1IS of its VMID. The same serves every other unmap of a whole MMU: the wipe of a recycled
one and L1's own VMALLS12E1. The chunks stay, so that mmu_lock can be given way to (inferred: the patches
were not available, nor seen in the log of 7.4).
Guarantees: as ``sweep``: nothing can be missed, 0 bytes a leaf, no failure, no race with fills.
Fails by cost: the walks of ``sweep`` and all its refaults remain, only the invalidations are gone. Between
two chunks the lock may be lost while leaves are cleared and still in TLBs: a fill then would be a make
without its break. Notifiers are safe, since fills bounce until they end; a wipe is, since nobody runs on
the MMU; L1's VMALLS12E1 of a shared MMU depends on it (reading, not seen).
"""

from __future__ import annotations

from shadowmmu.compiled import kernel
from shadowmmu.designs.actions import act_on_whole_mmu
from shadowmmu.designs.interface import UNMAP
from shadowmmu.machine.counters import MMUS_VISITED
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import shadow_mmus, shadow_valid
from shadowmmu.pgtable.unmap import unmap_all


@kernel
def sweep_vmalls12_apply(s: State, may_block: bool, action: int) -> int:
    """Act on every valid shadow MMU, whole; an unmap costs one invalidation an MMU."""
    changed = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        if shadow_valid(s, mmu):
            s.count[MMUS_VISITED] += 1
            if action == UNMAP:
                changed += unmap_all(s, mmu, may_block)
            else:
                changed += act_on_whole_mmu(s, mmu, may_block, action)
    return changed
