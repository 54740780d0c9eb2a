"""MMU notifiers: the host takes memory away, and every table that maps it must let go first.

Mirrors Linux 7.3.4 ``kvm_mmu_notifier_invalidate_range_start/_end`` (``kvm_handle_hva_range``) and arm64's
``kvm_unmap_gfn_range``, ``kvm_age_gfn``. Runs once per overlapped memslot, in the
order of their user addresses (``hva_tree``).
"""

from __future__ import annotations

from typing import NamedTuple

from shadowmmu.arch.stage2 import AF
from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.interface import AGE as AGE_LEAVES
from shadowmmu.designs.interface import CAUSE_NOTIFIER, UNMAP
from shadowmmu.host.steps import NOTIFY_AGE, NOTIFY_END, NOTIFY_START, apply_step
from shadowmmu.kvm.layout import (
    K_IN_PROGRESS,
    K_SEQ,
    K_SLOTS,
    ONE,
    S_BASE,
    S_BY_HVA,
    S_HVA,
    S_SIZE,
    ZERO,
)
from shadowmmu.kvm.shadows import precise_updates, update_shadows
from shadowmmu.kvm.vncr import vncr_after_unmap
from shadowmmu.machine.calls import mmu_lock_write, mmu_unlock_write
from shadowmmu.machine.counters import MMUS_VALID, NOTIFIERS, NOTIFIERS_BLOCKABLE
from shadowmmu.machine.ghost import ghost_begin, ghost_end
from shadowmmu.machine.log import AGE, UNMAP_GFN, observe
from shadowmmu.machine.state import R_PAGE_SHIFT, State
from shadowmmu.pgtable.attributes import clear_bits
from shadowmmu.pgtable.context import CANONICAL, shadow_mmus, shadow_valid
from shadowmmu.pgtable.unmap import unmap_range


class Overlap(NamedTuple):
    """The part of a memslot a range of user addresses covers; empty when ``start == end``."""

    start: Word
    end: Word


@inline
def slot_overlap(s: State, slot: int, hva_start: Word, hva_end: Word) -> Overlap:
    """Canonical range of [hva_start, hva_end) in ``slot``."""
    first = s.slots[slot, S_HVA]
    last = first + s.slots[slot, S_SIZE]
    start = hva_start if hva_start > first else first
    end = hva_end if hva_end < last else last
    if start >= end:
        return Overlap(ZERO, ZERO)
    base = s.slots[slot, S_BASE]
    return Overlap(base + (start - first), base + (end - first))


@kernel
def unmap_gfn_range(s: State, start: Word, end: Word, may_block: bool) -> None:
    """Take canonical [start, end) out of every table. Mirrors ``kvm_unmap_gfn_range``."""
    page = s.regs[R_PAGE_SHIFT]
    observe(s, UNMAP_GFN, start >> page, end >> page, U64(may_block), ZERO, ZERO)
    unmap_range(s, CANONICAL, start, end, may_block)
    for mmu in range(1, shadow_mmus(s) + 1):
        if shadow_valid(s, mmu):
            s.count[MMUS_VALID] += 1
    ghost_begin(s, start, end)
    update_shadows(s, start, end, may_block, CAUSE_NOTIFIER, UNMAP)
    ghost_end(s)
    vncr_after_unmap(s, start, end)


@kernel
def invalidate_range_start(s: State, hva_start: Word, hva_end: Word, may_block: bool) -> None:
    """The host is about to change [hva_start, hva_end). O(slots), plus the unmap."""
    locked = False
    for place in range(I64(s.regs[K_SLOTS])):
        slot = I64(s.slots[place, S_BY_HVA])
        part = slot_overlap(s, slot, hva_start, hva_end)
        if part.start == part.end:
            continue
        if not locked:
            locked = True
            mmu_lock_write(s)
            s.regs[K_IN_PROGRESS] += ONE
        s.count[NOTIFIERS] += 1
        if may_block:
            s.count[NOTIFIERS_BLOCKABLE] += 1
        unmap_gfn_range(s, part.start, part.end, may_block)
    if locked:
        mmu_unlock_write(s)


@kernel
def invalidate_range_end(s: State, hva_start: Word, hva_end: Word) -> None:
    """The host is done: fills may proceed, and those sampled before must start again."""
    for slot in range(I64(s.regs[K_SLOTS])):
        part = slot_overlap(s, slot, hva_start, hva_end)
        if part.start != part.end:
            mmu_lock_write(s)
            s.regs[K_SEQ] += ONE
            s.regs[K_IN_PROGRESS] -= ONE
            mmu_unlock_write(s)
            return


@kernel
def age_range(s: State, hva_start: Word, hva_end: Word) -> None:
    """Clear the access flag over a range: the canonical table only, as ``kvm_age_gfn`` of 7.3.4 does.

    With precise updates the shadows' too, through the design's record.
    """
    for place in range(I64(s.regs[K_SLOTS])):
        slot = I64(s.slots[place, S_BY_HVA])
        part = slot_overlap(s, slot, hva_start, hva_end)
        if part.start != part.end:
            page = s.regs[R_PAGE_SHIFT]
            observe(s, AGE, part.start >> page, part.end >> page, ZERO, ZERO, ZERO)
            mmu_lock_write(s)
            clear_bits(s, CANONICAL, part.start, part.end, AF)
            if precise_updates(s):
                update_shadows(s, part.start, part.end, False, CAUSE_NOTIFIER, AGE_LEAVES)
            mmu_unlock_write(s)


@kernel
def run_host_plan(s: State, steps: int) -> None:
    """Carry out the host operation in ``State.plan``: notifiers here, the rest in the host room."""
    for row in range(steps):
        step = s.plan[row, 0]
        if step == U64(NOTIFY_START):
            invalidate_range_start(s, s.plan[row, 1], s.plan[row, 2], s.plan[row, 3] != ZERO)
        elif step == U64(NOTIFY_END):
            invalidate_range_end(s, s.plan[row, 1], s.plan[row, 2])
        elif step == U64(NOTIFY_AGE):
            age_range(s, s.plan[row, 1], s.plan[row, 2])
        else:
            apply_step(s, row)
