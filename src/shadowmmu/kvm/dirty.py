"""Dirty logging: write protection, and reading and clearing the bitmap.

Mirrors Linux 7.3.4 ``kvm_mmu_wp_memory_region``, ``kvm_nested_s2_wp``,
``kvm_arch_mmu_enable_log_dirty_pt_masked``, ``kvm_get_dirty_log_protect``, ``kvm_clear_dirty_log_protect``.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.interface import CAUSE_MEMSLOT, PROTECT
from shadowmmu.kvm.differences import DIRTY_LOG_FLUSH, as_architecture
from shadowmmu.kvm.layout import (
    K_LOG_MODE,
    LOG_ALL_SET,
    LOG_MANUAL,
    ONE,
    S_BASE,
    S_DIRTY_WORD,
    S_SIZE,
    ZERO,
)
from shadowmmu.kvm.shadows import precise_updates, update_shadows
from shadowmmu.kvm.split import split_range, splits
from shadowmmu.kvm.vncr import invalidate_vncr_ipa_all, vncr_after_unmap
from shadowmmu.machine.calls import mmu_lock_write, mmu_unlock_write
from shadowmmu.machine.log import WRITE_PROTECT, observe
from shadowmmu.machine.state import R_PAGE_SHIFT, State
from shadowmmu.pgtable.attributes import write_protect
from shadowmmu.pgtable.context import CANONICAL, input_size, shadow_mmus, shadow_valid
from shadowmmu.pgtable.tlb import flush_range, flush_vmid

BITS: Final = 64
"""Pages of one word of the bitmap: what one write protection of a harvest is about."""
ALL_ONES: Final = ~U64(0)


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


@inline
def begins_all_set(s: State) -> bool:
    """Whether a log begins with every page dirty, and protection is left to KVM_CLEAR_DIRTY_LOG.

    Mirrors ``kvm_dirty_log_manual_protect_and_init_set``.
    """
    return s.regs[K_LOG_MODE] & (LOG_MANUAL | LOG_ALL_SET) == LOG_MANUAL | LOG_ALL_SET


@inline
def bitmap_words(s: State, slot: int) -> int:
    """Words of the slot's bitmap."""
    return (I64(s.slots[slot, S_SIZE] >> s.regs[R_PAGE_SHIFT]) + BITS - 1) // BITS


@inline
def word_mask(word: int, first: int, end: int) -> Word:
    """Bits of the slot's pages [first, end) in ``word`` of its bitmap; there is one at least."""
    low = first - word * BITS
    high = end - word * BITS
    mask = ALL_ONES
    if low > 0:
        mask &= ALL_ONES << U64(low)
    if high < BITS:
        mask &= (ONE << U64(high)) - ONE
    return mask


@kernel
def fill_bitmap(s: State, slot: int, dirty: bool) -> None:
    """Make every page of the slot clean, or every one dirty."""
    first = I64(s.slots[slot, S_DIRTY_WORD])
    pages = I64(s.slots[slot, S_SIZE] >> s.regs[R_PAGE_SHIFT])
    for word in range(bitmap_words(s, slot)):
        s.dirty[first + word] = word_mask(word, 0, pages) if dirty else ZERO


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
def protect_masked(s: State, slot: int, page: Word, mask: Word) -> None:
    """Write-protect from the first to the last page of ``mask``, whose bit 0 is ``page``; then every shadow.

    Mirrors ``kvm_arch_mmu_enable_log_dirty_pt_masked``: blocks are split here if they were not when the log
    began. ``mask`` is not 0; the caller holds mmu_lock for write.
    """
    first = ZERO
    while (mask >> first) & ONE == ZERO:
        first += ONE
    last = U64(BITS - 1)
    while (mask >> last) & ONE == ZERO:
        last -= ONE
    base = s.slots[slot, S_BASE]
    start = base + ((page + first) << s.regs[R_PAGE_SHIFT])
    end = base + ((page + last + ONE) << s.regs[R_PAGE_SHIFT])
    write_protect_slot(s, start, end)
    if splits(s) and begins_all_set(s):
        split_range(s, start, end)
    write_protect_shadows(s, start, end)


@kernel
def clear_word(s: State, slot: int, word: int, mask: Word) -> bool:
    """Take the dirty pages of ``mask`` out of a word of the bitmap and protect them; whether any was."""
    at = I64(s.slots[slot, S_DIRTY_WORD]) + word
    cleared = s.dirty[at] & mask
    if cleared == ZERO:
        return False
    s.dirty[at] &= ~cleared
    protect_masked(s, slot, U64(word * BITS), cleared)
    return True


@kernel
def get_dirty_log(s: State, slot: int) -> None:
    """Harvest the bitmap: write-protect what was dirty, clear it. With manual protection nothing changes.

    Each 64-page word that has a bit costs a write protection from its first such page to its last, and
    one of every shadow; mmu_lock is taken once for all of them (``kvm_get_dirty_log_protect``, 7.3.4).
    """
    if s.regs[K_LOG_MODE] & LOG_MANUAL != ZERO:
        return
    flush = False
    mmu_lock_write(s)
    for word in range(bitmap_words(s, slot)):
        flush |= clear_word(s, slot, word, ALL_ONES)
    mmu_unlock_write(s)
    if flush:
        flush_protected(s, slot)


@kernel
def clear_dirty_log(s: State, slot: int, first: int, end: int, word: int, flush: bool) -> bool:
    """One word of KVM_CLEAR_DIRTY_LOG of the slot's pages [first, end): whether anything was cleared by now.

    Mirrors ``kvm_clear_dirty_log_protect``, whose mask may name any pages: those that are not dirty stay as
    they are. Words are taken in order, mmu_lock is held from the first to the last, then the slot is flushed.
    """
    if word == first // BITS:
        mmu_lock_write(s)
    flush |= clear_word(s, slot, word, word_mask(word, first, end))
    if (word + 1) * BITS >= end:
        mmu_unlock_write(s)
        if flush:
            flush_protected(s, slot)
    return flush
