"""``sweep``: unmap everything. Linux 7.3.4, ``kvm_nested_s2_unmap`` (Zyngier and others, 2022 on).

Idea: there is no record. A notifier for any canonical range unmaps every valid shadow MMU over its
whole input range, in chunks of the largest block, with one walk and one range invalidation a chunk.
Guarantees: nothing can be missed. No memory, no failure, no race with fills.
Fails by cost: 2^PA bits / chunk walks for each valid MMU whatever is mapped, and every leaf of every
L2 must be faulted in again.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import U64, kernel
from shadowmmu.machine.counters import MMUS_VISITED
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import input_size, shadow_mmus, shadow_valid
from shadowmmu.pgtable.unmap import unmap_range

ZERO: Final = U64(0)


@kernel
def unmap_whole_mmu(s: State, mmu: int, may_block: bool) -> int:
    """Unmap a shadow MMU over its whole input range; how many leaves went. O(2^PA bits / chunk)."""
    return unmap_range(s, mmu, ZERO, input_size(s, mmu), may_block)


@kernel
def sweep_unmap(s: State, may_block: bool) -> int:
    """Unmap every valid shadow MMU. Mirrors ``kvm_nested_s2_unmap``."""
    removed = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        if shadow_valid(s, mmu):
            s.count[MMUS_VISITED] += 1
            removed += unmap_whole_mmu(s, mmu, may_block)
    return removed
