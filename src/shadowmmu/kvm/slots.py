"""Memslots: windows of canonical IPA onto the VMM's memory, and the dirty bitmap of each.

Mirrors ``gfn_to_memslot`` and ``mark_page_dirty`` of Linux 7.3.4 ``virt/kvm/kvm_main.c``.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.kvm.layout import (
    K_LOG_MODE,
    K_RUNNING,
    K_SLOTS,
    ONE,
    RING_BITMAP,
    S_BASE,
    S_DIRTY_WORD,
    S_FLAGS,
    S_HVA,
    S_SIZE,
    SLOT_LOG_DIRTY,
    SLOT_READONLY,
    ZERO,
)
from shadowmmu.kvm.ring import has_rings, push_dirty
from shadowmmu.machine.log import observe_dirty
from shadowmmu.machine.state import R_PAGE_SHIFT, State

NO_SLOT: Final = -1
WORD_SHIFT: Final = U64(6)
BIT_MASK: Final = U64(63)


@inline
def find_slot(s: State, canonical_ipa: Word) -> int:
    """The memslot that holds ``canonical_ipa``, or NO_SLOT. O(slots)."""
    for slot in range(I64(s.regs[K_SLOTS])):
        base = s.slots[slot, S_BASE]
        if base <= canonical_ipa and canonical_ipa - base < s.slots[slot, S_SIZE]:
            return slot
    return NO_SLOT


@inline
def slot_hva(s: State, slot: int, canonical_ipa: Word) -> Word:
    """The VMM's address of ``canonical_ipa`` in ``slot``."""
    return s.slots[slot, S_HVA] + (canonical_ipa - s.slots[slot, S_BASE])


@inline
def has_bitmap(s: State, slot: int) -> bool:
    """Whether ``slot`` has a dirty bitmap: it logs, and not into rings alone (``kvm_use_dirty_bitmap``)."""
    if s.slots[slot, S_FLAGS] & SLOT_LOG_DIRTY == ZERO:
        return False
    return not has_rings(s) or s.regs[K_LOG_MODE] & RING_BITMAP != ZERO


@inline
def slot_logs(s: State, slot: int) -> bool:
    """Whether faults are to tell what is written. Mirrors ``memslot_is_logging``, Linux 7.3.4.

    It asks for the bitmap: a slot that logs into rings alone is treated as one that does not log.
    """
    return has_bitmap(s, slot) and s.slots[slot, S_FLAGS] & SLOT_READONLY == ZERO


@inline
def huge_mapping_fits(s: State, slot: int, hva: Word, size: Word) -> bool:
    """Whether a block of ``size`` around ``hva`` may be mapped.

    Mirrors ``fault_supports_stage2_huge_mapping``: base and user address agree modulo the size, and the
    aligned block lies inside the slot.
    """
    inside = size - ONE
    start = s.slots[slot, S_HVA]
    if s.slots[slot, S_BASE] & inside != start & inside:
        return False
    block = hva & ~inside
    return block >= start and block + size <= start + s.slots[slot, S_SIZE]


@kernel
def mark_dirty(s: State, slot: int, canonical_ipa: Word) -> None:
    """Note a page of a slot that logs: in the ring of the vCPU that runs, else in the slot's bitmap.

    Mirrors ``mark_page_dirty_in_slot``.
    """
    if s.slots[slot, S_FLAGS] & SLOT_LOG_DIRTY == ZERO:
        return
    page = (canonical_ipa - s.slots[slot, S_BASE]) >> s.regs[R_PAGE_SHIFT]
    observe_dirty(s, canonical_ipa)
    if has_rings(s):
        push_dirty(s, I64(s.regs[K_RUNNING]), slot, page)
        return
    word = s.slots[slot, S_DIRTY_WORD] + (page >> WORD_SHIFT)
    s.dirty[word] |= ONE << (page & BIT_MASK)
