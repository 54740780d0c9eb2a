"""What the VMM does to its memslots and dirty logs, one bounded step at a time.

Splitting goes block by block, clearing a log word by word: ``G_CURSOR`` says where, and mmu_lock is held over
the steps as the kernel holds it.
"""

from __future__ import annotations

from shadowmmu.compiled import I64, U64, Word, Words, inline, kernel
from shadowmmu.engine.actions import EVENT_DONE, MORE, A, B, C, D, E, host_address
from shadowmmu.events.schema import CAPABILITY, CLEARLOG, HARVEST, LOG, SLOT
from shadowmmu.guest.layout import G_CURSOR, G_MEMORY, ONE, RAM_BASE, ZERO
from shadowmmu.host.layout import HVA_BASE
from shadowmmu.kvm.dirty import BITS, clear_dirty_log
from shadowmmu.kvm.harvest import harvest_rings
from shadowmmu.kvm.interleave import end_hold
from shadowmmu.kvm.layout import (
    K_LOG_MODE,
    K_RING,
    K_SPLIT_CHUNK,
    LOG_ALL_SET,
    LOG_MANUAL,
    RING_BITMAP,
    S_FLAGS,
    S_SIZE,
    SLOT_LOG_DIRTY,
)
from shadowmmu.kvm.memslot import delete_slot, set_slot
from shadowmmu.kvm.split import split_on
from shadowmmu.machine.calls import mmu_lock_write, mmu_unlock_write
from shadowmmu.machine.state import R_PAGE_SHIFT, State


@inline
def enable(s: State, op: Words) -> None:
    """A capability that the VMM enabled before it made memslots and vCPUs (``CAPABILITIES``)."""
    if op[A] == ZERO:
        s.regs[K_SPLIT_CHUNK] = op[B]
    elif op[A] == ONE:
        s.regs[K_LOG_MODE] |= LOG_MANUAL | (LOG_ALL_SET if op[B] != ZERO else ZERO)
    else:
        s.regs[K_RING] = op[B]
        s.regs[K_LOG_MODE] |= RING_BITMAP if op[C] != ZERO else ZERO


@kernel
def change_slot(s: State, slot: int, base: Word, size: Word, hva: Word, flags: Word) -> int:
    """Set a memslot; then, step by step, split what is logged from now on (``kvm_mmu_split_memory_region``).

    Memslots do not change while an invalidation is under way (``mn_active_invalidate_count``): it ends first.
    """
    at = s.regs[G_CURSOR]
    if at == ZERO:
        end_hold(s)
        if size == ZERO:
            delete_slot(s, slot)
            return EVENT_DONE
        if not set_slot(s, slot, base, size, hva, flags):
            return EVENT_DONE
        mmu_lock_write(s)
        at = base
    at = split_on(s, base, at, base + size)
    s.regs[G_CURSOR] = at
    if at < base + size:
        return MORE
    mmu_unlock_write(s)
    return EVENT_DONE


@inline
def clear_log(s: State, op: Words) -> int:
    """The next word of KVM_CLEAR_DIRTY_LOG; the cursor is its number and whether anything was cleared."""
    slot = I64(op[A])
    first = I64(op[B])
    end = first + I64(op[C])
    if op[C] == ZERO:
        end = I64(s.slots[slot, S_SIZE] >> s.regs[R_PAGE_SHIFT])
    cursor = s.regs[G_CURSOR]
    word = first // BITS
    if cursor != ZERO:
        word = I64(cursor >> ONE)
    flush = clear_dirty_log(s, slot, first, end, word, cursor & ONE != ZERO)
    s.regs[G_CURSOR] = (U64(word + 1) << ONE) | U64(flush)
    return MORE if (word + 1) * BITS < end else EVENT_DONE


@kernel
def slot_action(s: State, kind: int, op: Words) -> int:
    """One step of what the VMM does to memslots and logs."""
    if kind == CAPABILITY:
        enable(s, op)
        return EVENT_DONE
    if kind == CLEARLOG:
        return clear_log(s, op)
    if kind == HARVEST:
        harvest_rings(s)
        return EVENT_DONE
    if kind == LOG:
        flags = (s.slots[0, S_FLAGS] & ~SLOT_LOG_DIRTY) | (SLOT_LOG_DIRTY if op[A] != ZERO else ZERO)
        return change_slot(s, 0, RAM_BASE, s.regs[G_MEMORY], HVA_BASE, flags)
    if kind == SLOT:
        size = s.regs[G_MEMORY] if op[A] != ZERO else ZERO
        return change_slot(s, 0, RAM_BASE, size, HVA_BASE, s.slots[0, S_FLAGS])
    return change_slot(s, I64(op[A]), op[B], op[C], host_address(op[D]), op[E])
