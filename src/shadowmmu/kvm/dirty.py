"""Dirty logging and memslot changes.

Mirrors Linux 7.3.4 ``kvm_mmu_wp_memory_region``, ``kvm_nested_s2_wp``,
``kvm_arch_mmu_enable_log_dirty_pt_masked``, ``kvm_arch_flush_shadow_memslot``.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.interface import CAUSE_MEMSLOT, PROTECT, UNMAP
from shadowmmu.kvm.differences import DIRTY_LOG_FLUSH, as_architecture
from shadowmmu.kvm.layout import (
    ONE,
    S_BASE,
    S_DIRTY_WORD,
    S_FLAGS,
    S_SIZE,
    SLOT_LOG_DIRTY,
    ZERO,
)
from shadowmmu.kvm.shadows import precise_updates, update_shadows
from shadowmmu.kvm.vncr import invalidate_vncr_ipa_all, vncr_after_unmap
from shadowmmu.machine.calls import mmu_lock_write, mmu_unlock_write
from shadowmmu.machine.ghost import ghost_begin, ghost_end
from shadowmmu.machine.log import WRITE_PROTECT, observe
from shadowmmu.machine.state import R_PAGE_SHIFT, State
from shadowmmu.pgtable.attributes import write_protect
from shadowmmu.pgtable.context import CANONICAL, input_size, shadow_mmus, shadow_valid
from shadowmmu.pgtable.tlb import flush_range, flush_vmid
from shadowmmu.pgtable.unmap import unmap_range

PAGES_PER_WORD: Final = U64(64)


@kernel
def write_protect_slot(s: State, start: Word, end: Word) -> None:
    """Make canonical [start, end) read-only. Mirrors ``kvm_stage2_wp_range``."""
    observe(s, WRITE_PROTECT, start, end - start, U64(CANONICAL), ZERO, ZERO)
    write_protect(s, CANONICAL, start, end)


@kernel
def write_protect_shadows(s: State, start: Word, end: Word) -> None:
    """Make every leaf of every valid shadow read-only. Mirrors ``kvm_nested_s2_wp``.

    With precise updates only what maps canonical [start, end), by the design's record.
    No invalidation for the shadows' VMIDs follows, as seen on the running 7.3.4
    (``suspicion/write-protect-without-shadow-flush``); ``flush_protected`` can.
    """
    if precise_updates(s):
        update_shadows(s, start, end, False, CAUSE_MEMSLOT, PROTECT)
        vncr_after_unmap(s, start, end)
        return
    for mmu in range(1, shadow_mmus(s) + 1):
        if shadow_valid(s, mmu):
            observe(s, WRITE_PROTECT, ZERO, input_size(s, mmu), U64(mmu), ZERO, ZERO)
            write_protect(s, mmu, ZERO, input_size(s, mmu))
    invalidate_vncr_ipa_all(s)


@inline
def flush_protected(s: State, slot: int) -> None:
    """After write protection: invalidate the slot, and as the architecture asks the shadows' VMIDs too.

    Mirrors ``kvm_flush_remote_tlbs_memslot``, Linux 7.3.4, which names the canonical VMID alone.
    """
    flush_range(s, CANONICAL, s.slots[slot, S_BASE], s.slots[slot, S_SIZE])
    if as_architecture(s, DIRTY_LOG_FLUSH):
        for mmu in range(1, shadow_mmus(s) + 1):
            if shadow_valid(s, mmu):
                flush_vmid(s, mmu)


@kernel
def set_dirty_logging(s: State, slot: int, on: bool) -> None:
    """Switch the slot's log. On write-protects; off changes no table, but forgets what was dirty.

    Seen on the running 7.3.4 (``live/log-off-forgets``).
    """
    if not on:
        s.slots[slot, S_FLAGS] &= ~SLOT_LOG_DIRTY
        forget_dirty(s, slot)
        return
    if s.slots[slot, S_FLAGS] & SLOT_LOG_DIRTY != ZERO:
        return
    s.slots[slot, S_FLAGS] |= SLOT_LOG_DIRTY
    protect_slot(s, slot)


@kernel
def forget_dirty(s: State, slot: int) -> None:
    """Empty the slot's bitmap. Mirrors ``kvm_destroy_dirty_bitmap`` and the new one that follows."""
    word = I64(s.slots[slot, S_DIRTY_WORD])
    pages = I64(s.slots[slot, S_SIZE] >> s.regs[R_PAGE_SHIFT])
    for i in range((pages + 63) // 64):
        s.dirty[word + i] = ZERO


@kernel
def protect_slot(s: State, slot: int) -> None:
    """Write-protect a slot whose log begins, and every shadow. Mirrors ``kvm_mmu_wp_memory_region``."""
    start = s.slots[slot, S_BASE]
    end = start + s.slots[slot, S_SIZE]
    mmu_lock_write(s)
    write_protect_slot(s, start, end)
    write_protect_shadows(s, start, end)
    mmu_unlock_write(s)
    flush_protected(s, slot)


@kernel
def get_dirty_log(s: State, slot: int) -> int:
    """Harvest the bitmap: write-protect what was dirty, clear it; how many pages were dirty.

    Each 64-page word that has a bit costs a write protection from its first such page to its last, and
    one of every shadow; mmu_lock is taken once for all of them (``kvm_get_dirty_log_protect``, 7.3.4).
    """
    pages = I64(s.slots[slot, S_SIZE] >> s.regs[R_PAGE_SHIFT])
    word = I64(s.slots[slot, S_DIRTY_WORD])
    span = PAGES_PER_WORD << s.regs[R_PAGE_SHIFT]
    start = s.slots[slot, S_BASE]
    dirty = 0
    mmu_lock_write(s)
    for i in range((pages + 63) // 64):
        bits = s.dirty[word + i]
        if bits != ZERO:
            first = PAGES_PER_WORD
            last = ZERO
            for bit in range(64):
                if (bits >> U64(bit)) & ONE != ZERO:
                    first = min(first, U64(bit))
                    last = U64(bit)
                    dirty += 1
            page_shift = s.regs[R_PAGE_SHIFT]
            start_dirty = start + (first << page_shift)
            end_dirty = start + ((last + ONE) << page_shift)
            s.dirty[word + i] = ZERO
            write_protect_slot(s, start_dirty, end_dirty)
            write_protect_shadows(s, start_dirty, end_dirty)
        start += span
    mmu_unlock_write(s)
    if dirty > 0:
        flush_protected(s, slot)
    return dirty


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
    """Remove a memslot: its tables are flushed, its window closes."""
    flush_memslot(s, slot)
    s.slots[slot, S_SIZE] = ZERO


@kernel
def make_slot(s: State, slot: int, size: Word) -> None:
    """Make the memslot again, its log empty. One that logs is write-protected, as if its log began.

    Mirrors ``kvm_arch_commit_memory_region``; seen on the running 7.3.4 (``live/slot-with-log``).
    """
    s.slots[slot, S_SIZE] = size
    forget_dirty(s, slot)
    if s.slots[slot, S_FLAGS] & SLOT_LOG_DIRTY != ZERO:
        protect_slot(s, slot)
