"""Emptying the dirty rings: the VMM reads them, KVM takes out what was read and protects the pages again.

Mirrors Linux 7.3.4 ``kvm_vm_ioctl_reset_dirty_pages`` and ``kvm_dirty_ring_reset`` (``dirty_ring.c``).
The VMM here always reads all there is, of every vCPU, and resets at once.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, kernel
from shadowmmu.kvm.dirty import BITS, protect_masked
from shadowmmu.kvm.layout import ONE, S_BASE, S_SIZE, V_RING_DIRTY, V_RING_RESET, ZERO
from shadowmmu.kvm.ring import PAGE_OF_SLOT, SLOT_SHIFT, ring_word
from shadowmmu.machine.calls import mmu_lock_write, mmu_unlock_write
from shadowmmu.machine.log import HARVESTED, observe
from shadowmmu.machine.state import R_PAGE_SHIFT, State
from shadowmmu.pgtable.context import CANONICAL
from shadowmmu.pgtable.tlb import flush_vmid

NONE: Final = -1


@kernel
def read_rings(s: State) -> None:
    """What the VMM sees: the pages in the rings, vCPU by vCPU, as canonical addresses."""
    for vcpu in range(len(s.vcpus)):
        index = s.vcpus[vcpu, V_RING_RESET]
        while index != s.vcpus[vcpu, V_RING_DIRTY]:
            entry = s.dirty[ring_word(s, vcpu, index)]
            base = s.slots[I64(entry >> SLOT_SHIFT), S_BASE]
            page = (entry & PAGE_OF_SLOT) << s.regs[R_PAGE_SHIFT]
            observe(s, HARVESTED, base + page, U64(vcpu), ZERO, ZERO, ZERO)
            index += ONE


@kernel
def reset_batch(s: State, slot: int, offset: int, mask: Word) -> None:
    """Protect a batch, if the slot still has all its pages. Mirrors ``kvm_reset_dirty_gfn``."""
    last = U64(BITS - 1)
    while (mask >> last) & ONE == ZERO:
        last -= ONE
    if U64(offset) + last >= s.slots[slot, S_SIZE] >> s.regs[R_PAGE_SHIFT]:
        return
    mmu_lock_write(s)
    protect_masked(s, slot, U64(offset), mask)
    mmu_unlock_write(s)


@kernel
def reset_ring(s: State, vcpu: int) -> bool:
    """Empty a vCPU's ring; whether it held anything. Mirrors ``kvm_dirty_ring_reset``.

    Entries that follow each other in one slot, within 64 pages, are one batch: upwards from its first page,
    or downwards while the mask has room.
    """
    slot = NONE
    offset = 0
    mask = ZERO
    while s.vcpus[vcpu, V_RING_RESET] != s.vcpus[vcpu, V_RING_DIRTY]:
        entry = s.dirty[ring_word(s, vcpu, s.vcpus[vcpu, V_RING_RESET])]
        s.vcpus[vcpu, V_RING_RESET] += ONE
        page = I64(entry & PAGE_OF_SLOT)
        delta = page - offset
        if slot == I64(entry >> SLOT_SHIFT):
            if 0 <= delta < BITS:
                mask |= ONE << U64(delta)
                continue
            if -BITS < delta < 0:
                back = U64(-delta)
                if (mask << back) >> back == mask:
                    offset = page
                    mask = (mask << back) | ONE
                    continue
        if slot != NONE:
            reset_batch(s, slot, offset, mask)
        slot = I64(entry >> SLOT_SHIFT)
        offset = page
        mask = ONE
    if slot == NONE:
        return False
    reset_batch(s, slot, offset, mask)
    return True


@kernel
def harvest_rings(s: State) -> None:
    """Read and reset the rings of all vCPUs; then one invalidation of the canonical VMID, if any held a page.

    Mirrors ``kvm_vm_ioctl_reset_dirty_pages``: the shadows' VMIDs are left, as after every write protection.
    """
    read_rings(s)
    held = False
    for vcpu in range(len(s.vcpus)):
        held |= reset_ring(s, vcpu)
    if held:
        flush_vmid(s, CANONICAL)
