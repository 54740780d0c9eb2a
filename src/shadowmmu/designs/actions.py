"""What a design does to the leaves its lookup found: unmap them, age them, or write-protect them.

The lookup is the same for the three; only ``UNMAP`` takes entries off the record. Ageing and write
protection issue no TLB invalidation here: their caller does, as ``kvm_age_gfn`` and
``kvm_mmu_wp_memory_region`` do.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.stage2 import AF, S2AP_W
from shadowmmu.compiled import U64, Word, inline, kernel
from shadowmmu.designs.interface import AGE, UNMAP
from shadowmmu.machine.counters import DESCRIPTORS_READ, DESCRIPTORS_WRITTEN, MMUS_VISITED
from shadowmmu.machine.state import State
from shadowmmu.pgtable.attributes import clear_bits
from shadowmmu.pgtable.context import CANONICAL, M_DESIGN, input_size
from shadowmmu.pgtable.unmap import unmap_range

M_SEEN: Final = M_DESIGN + 11
"""Column: the number of the last lookup that reached this MMU; of the canonical MMU, the number now."""
ZERO: Final = U64(0)
ONE: Final = U64(1)


@inline
def begin_visits(s: State) -> None:
    """A lookup starts: no MMU has been reached by it."""
    s.mmus[CANONICAL, M_SEEN] += ONE


@inline
def note_visit(s: State, mmu: int) -> None:
    """Count an MMU that this lookup reaches, the first time it does."""
    if s.mmus[mmu, M_SEEN] != s.mmus[CANONICAL, M_SEEN]:
        s.mmus[mmu, M_SEEN] = s.mmus[CANONICAL, M_SEEN]
        s.count[MMUS_VISITED] += 1


@inline
def visited(s: State, mmu: int) -> bool:
    """Whether this lookup reached an MMU."""
    return s.mmus[mmu, M_SEEN] == s.mmus[CANONICAL, M_SEEN]


@inline
def action_bits(action: int) -> Word:
    """The descriptor bits that ``AGE`` or ``PROTECT`` clears."""
    return AF if action == AGE else S2AP_W


@kernel
def act_on_range(s: State, mmu: int, start: Word, end: Word, may_block: bool, action: int) -> int:
    """Act on what one MMU maps in nested [start, end); how many leaves went or changed."""
    if action == UNMAP:
        return unmap_range(s, mmu, start, end, may_block)
    return clear_bits(s, mmu, start, end, action_bits(action))


@kernel
def act_on_whole_mmu(s: State, mmu: int, may_block: bool, action: int) -> int:
    """Act on all an MMU maps; how many leaves went or changed. O(2^PA bits / chunk)."""
    return act_on_range(s, mmu, ZERO, input_size(s, mmu), may_block, action)


@inline
def clear_leaf_bits(s: State, descriptor: Word, action: int) -> int:
    """Age or protect one leaf by its descriptor; 1 if it changed. O(1), no walk."""
    old = s.mem[descriptor]
    bits = action_bits(action)
    s.count[DESCRIPTORS_READ] += 1
    if old & bits == ZERO:
        return 0
    s.mem[descriptor] = old & ~bits
    s.count[DESCRIPTORS_WRITTEN] += 1
    return 1
