"""Changes of memslots: made, deleted, moved, their log switched.

Mirrors Linux 7.3.4 ``kvm_set_memory_region`` and ``kvm_set_memslot`` (``virt/kvm/kvm_main.c``) with arm64's
``kvm_arch_flush_shadow_memslot`` and ``kvm_arch_commit_memory_region``. What a deleted or moved slot had is
unmapped before the change; a shadow MMU is unmapped whole, or where the design's record says.
"""

from __future__ import annotations

from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.interface import CAUSE_MEMSLOT, UNMAP
from shadowmmu.kvm.dirty import begins_all_set, fill_bitmap, protect_slot
from shadowmmu.kvm.layout import (
    K_SLOTS,
    K_SPLIT_CACHE,
    ONE,
    S_BASE,
    S_BY_HVA,
    S_FLAGS,
    S_HVA,
    S_SIZE,
    SLOT_LOG_DIRTY,
    ZERO,
)
from shadowmmu.kvm.shadows import update_shadows
from shadowmmu.kvm.slots import has_bitmap
from shadowmmu.kvm.split import splits
from shadowmmu.kvm.vncr import vncr_after_unmap
from shadowmmu.machine.calls import mmu_lock_write, mmu_unlock_write
from shadowmmu.machine.ghost import ghost_begin, ghost_end
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import CANONICAL
from shadowmmu.pgtable.unmap import unmap_range


@kernel
def flush_memslot(s: State, slot: int) -> None:
    """The slot goes or moves: take its whole range out. Mirrors ``kvm_arch_flush_shadow_memslot``."""
    start = s.slots[slot, S_BASE]
    end = start + s.slots[slot, S_SIZE]
    mmu_lock_write(s)
    unmap_range(s, CANONICAL, start, end, True)
    ghost_begin(s, start, end)
    update_shadows(s, start, end, True, CAUSE_MEMSLOT, UNMAP)
    ghost_end(s)
    vncr_after_unmap(s, start, end)
    mmu_unlock_write(s)


@kernel
def delete_slot(s: State, slot: int) -> None:
    """Remove a memslot: its tables are flushed, its window closes (KVM_MR_DELETE)."""
    flush_memslot(s, slot)
    s.slots[slot, S_SIZE] = ZERO
    s.regs[K_SPLIT_CACHE] = ZERO


@inline
def is_there(s: State, slot: int) -> bool:
    """Whether the memslot exists."""
    return s.slots[slot, S_SIZE] != ZERO


@kernel
def order_by_hva(s: State, slot: int) -> None:
    """Put a memslot that was set into its place by user address, behind its equals; O(slots).

    Mirrors the interval tree of Linux 7.3.4, where ``kvm_replace_memslot`` inserts a changed slot anew.
    """
    for new in range(I64(s.regs[K_SLOTS]), slot + 1):
        s.slots[new, S_BY_HVA] = U64(new)
        s.regs[K_SLOTS] = U64(new) + ONE
    last = I64(s.regs[K_SLOTS]) - 1
    at = 0
    while s.slots[at, S_BY_HVA] != U64(slot):
        at += 1
    for row in range(at, last):
        s.slots[row, S_BY_HVA] = s.slots[row + 1, S_BY_HVA]
    while last > 0:
        before = I64(s.slots[last - 1, S_BY_HVA])
        if is_there(s, before) and s.slots[before, S_HVA] <= s.slots[slot, S_HVA]:
            break
        s.slots[last, S_BY_HVA] = U64(before)
        last -= 1
    s.slots[last, S_BY_HVA] = U64(slot)


@kernel
def set_slot(s: State, slot: int, base: Word, size: Word, hva: Word, flags: Word) -> bool:
    """Make a memslot, move it or change its flags; whether its blocks are to be split now (``kvm.split``).

    The caller keeps what the kernel refuses away: another size, other memory or another SLOT_READONLY of a
    slot that exists, and overlaps. A log that goes on over a move keeps its bitmap; one that ends forgets it;
    one that begins is empty, or full where the VMM asked for that. A slot that logs is write-protected and
    split, made or moved too, unless its log began full (``live/slot-with-log``, ``slots/``).
    """
    old = s.slots[slot, S_FLAGS]
    logged = is_there(s, slot) and old & SLOT_LOG_DIRTY != ZERO
    if is_there(s, slot):
        if s.slots[slot, S_BASE] != base:
            flush_memslot(s, slot)
        elif flags == old:
            return False
    s.slots[slot, S_BASE] = base
    s.slots[slot, S_SIZE] = size
    s.slots[slot, S_HVA] = hva
    s.slots[slot, S_FLAGS] = flags
    order_by_hva(s, slot)
    if flags & SLOT_LOG_DIRTY == ZERO:
        s.regs[K_SPLIT_CACHE] = ZERO
        return False
    if not logged and has_bitmap(s, slot):
        fill_bitmap(s, slot, begins_all_set(s))
    if begins_all_set(s):
        return False
    protect_slot(s, slot)
    return splits(s)
