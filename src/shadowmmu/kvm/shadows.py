"""Handing a canonical range to the design under test, with what it needs to be told.

Stands where Linux 7.3.4 has ``kvm_nested_s2_unmap`` and ``kvm_nested_s2_wp``. For a design that knows
leaves by output address, the frames behind the range are read in the VMM's page table first, as
``get_user_mapping_size`` reads it: a notifier comes before its change, so the entry is still the one that
was mapped; an entry that is not there has no leaf either.
"""

from __future__ import annotations

from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.actions import act_on_range
from shadowmmu.designs.dispatch import design_apply, design_forget, forgets_first
from shadowmmu.designs.interface import CAUSE_INVALIDATED, UNMAP
from shadowmmu.designs.outputs import add_output, clear_outputs, outputs_overflow, wants_outputs
from shadowmmu.host.tables import translate
from shadowmmu.kvm.layout import K_GAP_END, ONE, ZERO
from shadowmmu.kvm.slots import NO_SLOT, find_slot, slot_hva
from shadowmmu.machine.counters import LOOKUPS
from shadowmmu.machine.state import R_GAP_IPA, R_GAP_MMU, R_PAGE_SHIFT, R_PRECISE_UPDATES, State


@inline
def precise_updates(s: State) -> bool:
    """Whether ageing and write protection go through the design's record; not so in 7.3.4."""
    return s.regs[R_PRECISE_UPDATES] != ZERO


@kernel
def note_outputs(s: State, start: Word, end: Word) -> None:
    """Read the frames behind canonical [start, end) of one memslot. O(pages), one step a huge page."""
    clear_outputs(s)
    slot = find_slot(s, start)
    if slot == NO_SLOT:
        return
    page = ONE << s.regs[R_PAGE_SHIFT]
    ipa = start
    while ipa < end and not outputs_overflow(s):
        hva = slot_hva(s, slot, ipa)
        mapped = translate(s, hva)
        s.count[LOOKUPS] += 1
        size = page
        if mapped.size != ZERO:
            size = mapped.size - (hva & (mapped.size - ONE))
            if size > end - ipa:
                size = end - ipa
            add_output(s, mapped.pa, size)
        ipa += size


@inline
def gap_open(s: State) -> bool:
    """Whether an unmap that L1 asked for gave the lock away, for someone else to get in."""
    return s.regs[R_GAP_IPA] != ZERO


@inline
def awaits_unmap(s: State, mmu: int, nested_ipa: Word) -> bool:
    """Whether that unmap has yet to come to ``nested_ipa``."""
    if not gap_open(s) or U64(mmu) != s.regs[R_GAP_MMU]:
        return False
    return bool(nested_ipa >= s.regs[R_GAP_IPA] and nested_ipa < s.regs[K_GAP_END])


@kernel
def update_unfinished(s: State, may_block: bool, action: int) -> int:
    """Act on all that L1's unmap has yet to take, since no record knows of it any more.

    A design forgets before the leaves go, under the same lock; where that is given away in between, a
    notifier must not trust the record. What was filled there in the meantime is in the record again, and is
    taken off it first. A kernel would keep the rest of the range with the MMU.
    """
    if not gap_open(s) or not forgets_first(s):
        return 0
    mmu = I64(s.regs[R_GAP_MMU])
    start = s.regs[R_GAP_IPA]
    end = s.regs[K_GAP_END]
    if action == UNMAP:
        design_forget(s, mmu, start, end, CAUSE_INVALIDATED)
    return act_on_range(s, mmu, start, end, may_block, action)


@kernel
def update_shadows(s: State, start: Word, end: Word, may_block: bool, cause: int, action: int) -> int:
    """Unmap, age or protect what maps canonical [start, end) in any shadow; how many leaves changed."""
    if wants_outputs(s):
        note_outputs(s, start, end)
    changed = design_apply(s, start, end, may_block, cause, action)
    return changed + update_unfinished(s, may_block, action)
