"""``sweep``: unmap everything. Linux 7.3.4, ``kvm_nested_s2_unmap`` (Zyngier and others, 2022 on).

Idea: there is no record. A notifier for any canonical range unmaps every valid shadow MMU over its
whole input range, in chunks of the largest block, with one walk and one range invalidation a chunk.
Guarantees: nothing can be missed. No memory (0 bytes a leaf), no failure, no race with fills.
Fails by cost: 2^PA bits / chunk walks for each valid MMU whatever is mapped, and every leaf of every
L2 must be faulted in again.
"""

from __future__ import annotations

from shadowmmu.compiled import kernel
from shadowmmu.designs.actions import act_on_whole_mmu
from shadowmmu.machine.counters import FALLBACK_VM, MMUS_VISITED
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import shadow_mmus, shadow_valid


@kernel
def sweep_apply(s: State, may_block: bool, action: int) -> int:
    """Act on every valid shadow MMU, whole. Mirrors ``kvm_nested_s2_unmap`` and ``kvm_nested_s2_wp``."""
    changed = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        if shadow_valid(s, mmu):
            s.count[MMUS_VISITED] += 1
            changed += act_on_whole_mmu(s, mmu, may_block, action)
    return changed


@kernel
def fall_back_to_vm(s: State, may_block: bool, action: int) -> int:
    """The last rung of a design that keeps a record: a sweep, counted as a fallback."""
    s.count[FALLBACK_VM] += 1
    return sweep_apply(s, may_block, action)
