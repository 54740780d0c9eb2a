"""What L0 does to a whole VM because its host cannot force memory to be cacheable, or because the VM ends.

Mirrors Linux 7.3.4 ``stage2_unmap_vm``, ``stage2_flush_vm``, ``kvm_set_way_flush``, ``kvm_toggle_cache``
(``mmu.c``, called by ``access_dcsw`` and ``access_vm_reg``) and ``kvm_arch_flush_shadow_all``
(``nested.c``). All by reading: the rig's CPU has FEAT_S2FWB, and a process that ends shows no tables.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, Word, kernel
from shadowmmu.designs.dispatch import design_forget_mmu
from shadowmmu.designs.interface import CAUSE_MEMSLOT, UNMAP
from shadowmmu.host.layout import V_END, V_START
from shadowmmu.host.vma import find_vma, vma_count
from shadowmmu.kvm.layout import CACHES_ON, K_SLOTS, S_BASE, S_HVA, S_SIZE, TRAPS_VM, V_STATE, ZERO
from shadowmmu.kvm.pool import init_shadow
from shadowmmu.kvm.shadows import update_shadows
from shadowmmu.machine.calls import mmu_lock_write, mmu_unlock_write
from shadowmmu.machine.counters import MMUS_LEAKED
from shadowmmu.machine.ghost import ghost_begin, ghost_end
from shadowmmu.machine.state import R_FWB, State
from shadowmmu.pgtable.context import (
    CANONICAL,
    M_REFCNT,
    input_size,
    shadow_mmus,
    shadow_valid,
)
from shadowmmu.pgtable.iterate import next_leaf
from shadowmmu.pgtable.tlb import clean_cache
from shadowmmu.pgtable.unmap import unmap_range, unmap_walk

SET_WAY: Final = 0
CACHES_OFF: Final = 1
CACHES_SWITCHED_ON: Final = 2


@kernel
def unmap_vm(s: State) -> None:
    """Empty every table of the VM: what each memslot's VMAs back, then the shadows.

    Mirrors ``stage2_unmap_vm``. The shadows are emptied slot by slot here, as a design is told ranges, and
    once in all in Linux. O(chunks of the slots and of the valid shadows).
    """
    mmu_lock_write(s)
    for slot in range(I64(s.regs[K_SLOTS])):
        start = s.slots[slot, S_BASE]
        end = start + s.slots[slot, S_SIZE]
        unmap_slot(s, slot)
        ghost_begin(s, start, end)
        update_shadows(s, start, end, True, CAUSE_MEMSLOT, UNMAP)
        ghost_end(s)
    mmu_unlock_write(s)


@kernel
def unmap_slot(s: State, slot: int) -> None:
    """Unmap what VMAs back under one memslot from the canonical table. Mirrors ``stage2_unmap_memslot``."""
    first = s.slots[slot, S_HVA]
    last = first + s.slots[slot, S_SIZE]
    hva = first
    while hva < last:
        row = find_vma(s, 0, vma_count(s), hva)
        if row >= vma_count(s) or s.vmas[row, V_START] >= last:
            return
        start = s.vmas[row, V_START]
        end = s.vmas[row, V_END]
        start = hva if start < hva else start
        end = last if end > last else end
        ipa = s.slots[slot, S_BASE] + (start - first)
        unmap_range(s, CANONICAL, ipa, ipa + (end - start), True)
        hva = end


@kernel
def flush_context(s: State, mmu: int, start: Word, end: Word) -> None:
    """Clean the memory behind every leaf of [start, end). Mirrors ``kvm_pgtable_stage2_flush``."""
    ipa = start
    while ipa < end:
        visit = next_leaf(s, mmu, ipa, end)
        if visit.word == ZERO:
            return
        clean_cache(s, visit.after - visit.ipa)
        ipa = visit.after


@kernel
def flush_vm(s: State) -> None:
    """Clean all memory that any table of the VM maps. Mirrors ``stage2_flush_vm``. O(leaves)."""
    mmu_lock_write(s)
    for slot in range(I64(s.regs[K_SLOTS])):
        start = s.slots[slot, S_BASE]
        flush_context(s, CANONICAL, start, start + s.slots[slot, S_SIZE])
    for mmu in range(1, shadow_mmus(s) + 1):
        if shadow_valid(s, mmu):
            flush_context(s, mmu, ZERO, input_size(s, mmu))
    mmu_unlock_write(s)


@kernel
def cache_operation(s: State, vcpu: int, operation: int) -> None:
    """The guest operates on its caches by set and way, or switches MMU and caches on or off.

    With FEAT_S2FWB nothing follows. Without, the first set/way operation flushes the VM and traps the
    registers that switch the caches (HCR_EL2.TVM, set at reset already); while they are trapped each switch
    flushes, and switching on ends the trap.
    """
    state = s.vcpus[vcpu, V_STATE]
    trapped = state & TRAPS_VM != ZERO
    was_on = state & CACHES_ON != ZERO
    if operation == SET_WAY:
        if s.regs[R_FWB] == ZERO and not trapped:
            flush_vm(s)
            s.vcpus[vcpu, V_STATE] |= TRAPS_VM
        return
    now_on = operation == CACHES_SWITCHED_ON
    if trapped and now_on != was_on:
        flush_vm(s)
    if now_on:
        s.vcpus[vcpu, V_STATE] |= CACHES_ON
        s.vcpus[vcpu, V_STATE] &= ~TRAPS_VM
    else:
        s.vcpus[vcpu, V_STATE] &= ~CACHES_ON


@kernel
def free_context(s: State, mmu: int) -> None:
    """Free an MMU's tables, without any invalidation; its empty start table is left.

    Mirrors ``kvm_free_stage2_pgd``: nothing runs on them any more.
    """
    unmap_walk(s, mmu, ZERO, input_size(s, mmu), False, False, False)


@kernel
def flush_shadow_all(s: State) -> None:
    """The VM ends: free every shadow MMU without a reference, then the canonical one.

    Mirrors ``kvm_arch_flush_shadow_all``. One that is still referenced is warned of and leaked on purpose: a
    vCPU may be running on it.
    """
    for mmu in range(1, shadow_mmus(s) + 1):
        if s.mmus[mmu, M_REFCNT] != ZERO:
            s.count[MMUS_LEAKED] += 1
            continue
        design_forget_mmu(s, mmu)
        free_context(s, mmu)
        init_shadow(s, mmu)
    free_context(s, CANONICAL)
