"""Changing what memory is: mprotect, madvise of flags, MADV_COLLAPSE, page idle.

Mirrors ``mprotect.c``, ``madvise.c``, ``khugepaged.c`` and ``page_idle.c`` of Linux 7.3.4.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, kernel
from shadowmmu.host.cutting import close_plan, hugetlb_cut, plan_modify, range_end
from shadowmmu.host.geometry import giga_mask, giga_size, huge_mask, huge_size, page_size, pages_per_huge
from shadowmmu.host.layout import (
    E_HUGE,
    E_IDLE,
    E_PRESENT,
    E_ZERO,
    EINVAL,
    ENOMEM,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    NO_ROWS,
    ONE,
    ONE_ROW,
    PMD_TABLE,
    R_DRAFT_CHANGED,
    R_PLAN_BASE,
    R_RESULT,
    R_RESUME,
    V_ANON,
    V_END,
    V_FLAGS,
    V_START,
    VM_ACCESS,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    ZERO,
)
from shadowmmu.host.steps import (
    CHANGE_ACCESS,
    COLLAPSE,
    DETACH,
    NOTIFY_AGE,
    SET_IDLE,
    put,
    put_end,
    put_start,
)
from shadowmmu.host.tables import block_index, entry_at, in_region, page_of, populated
from shadowmmu.host.vma import draft_first, draft_last, find_vma, open_draft, vma_count
from shadowmmu.machine.state import R_NEXT_DATA, State, Word

NOT_HUGEPAGE: Final = U64(~VM_HUGEPAGE)
NOT_NOHUGEPAGE: Final = U64(~VM_NOHUGEPAGE)
NOT_ACCESS: Final = U64(~VM_ACCESS)


@kernel
def first_populated(s: State, start: Word, end: Word) -> Word:
    """Where ``change_pud_range`` over [start, end) meets its first table; not below ``end`` if nowhere."""
    here = start
    while here < end and not populated(s, here):
        here = (here & giga_mask(s)) + giga_size(s)
    return here


@kernel
def put_change(s: State, rows: int, start: Word, end: Word, flags: Word) -> int:
    """New access for [start, end), inside one notifier that begins where something was ever populated.

    No notifier, and nothing to change, where nothing in the range's gigabytes was. Mirrors
    ``change_pud_range``; hugetlb sends its notifier always (``hugetlb_change_protection``: read, not
    seen). A range that crosses 512G would take one notifier for each; here it is one.
    """
    here = start
    if flags & VM_HUGETLB == ZERO:
        here = first_populated(s, start, end)
    if here >= end:
        return rows
    rows = put_start(s, rows, here, end)
    rows = put(s, rows, CHANGE_ACCESS, here, end, flags)
    return put_end(s, rows, here, end)


@kernel
def finish_partly(s: State, rows: int, error: int) -> int:
    """End a plan on the draft that met ``error`` (0: none): it counts as failed if it changes nothing."""
    s.regs[R_RESULT] = U64(error)
    if error != 0 and s.regs[R_DRAFT_CHANGED] == ZERO:
        return -error
    return close_plan(s, rows)


@kernel
def plan_mprotect(s: State, hva: Word, size: Word, prot: int) -> int:
    """Plan mprotect(hva, size, prot), ``prot`` of PROT_READ 1 and PROT_WRITE 2: the number of rows.

    0 when the protection is that already. VMA by VMA: the cuts or the moved borders with their
    notifiers, then one notifier over the part and the change of its entries. ``-EINVAL`` off the page
    grid (that of hugetlb pages there); ``-ENOMEM`` at a hole: the VMAs before it are changed,
    ``regs[R_RESULT]`` says so. Mirrors ``do_mprotect_pkey`` and ``mprotect_fixup`` (runs 11 and random/*).
    """
    s.regs[R_RESUME] = ZERO
    s.regs[R_RESULT] = ZERO
    end = range_end(s, hva, size)
    if end == ZERO:
        return -EINVAL
    open_draft(s)
    rows = ONE_ROW
    error = 0
    here = hva
    access = U64(prot) & VM_ACCESS
    while here < end:
        row = find_vma(s, draft_first(s), draft_last(s), here)
        if row == draft_last(s) or s.vmas[row, V_START] > here:
            error = ENOMEM
            break
        stop = min(end, s.vmas[row, V_END])
        flags = (s.vmas[row, V_FLAGS] & NOT_ACCESS) | access
        if flags != s.vmas[row, V_FLAGS]:
            if hugetlb_cut(s, row, here) or hugetlb_cut(s, row, stop):
                error = EINVAL
                break
            rows = plan_modify(s, rows, row, here, stop, flags)
            rows = put_change(s, rows, here, stop, flags)
        here = stop
    return finish_partly(s, rows, error)


@kernel
def advised(flags: Word, advice: int) -> Word:
    """VMA ``flags`` after ``advice``; hugetlb cannot be mergeable."""
    if advice == MADV_HUGEPAGE:
        return (flags & NOT_NOHUGEPAGE) | VM_HUGEPAGE
    if advice == MADV_NOHUGEPAGE:
        return (flags & NOT_HUGEPAGE) | VM_NOHUGEPAGE
    if flags & VM_HUGETLB == ZERO:
        return flags | VM_MERGEABLE
    return flags


@kernel
def plan_advise(s: State, hva: Word, size: Word, advice: int) -> int:
    """Plan madvise(hva, size, MADV_HUGEPAGE, MADV_NOHUGEPAGE or MADV_MERGEABLE): the number of rows.

    Only VMAs change, so the only notifiers are those of cuts and moved borders off the 2M grid.
    ``-EINVAL`` for other advice or off the page grid; holes give ENOMEM after the rest is done.
    Mirrors ``madvise_update_vma`` (run 11 on the 2M grid; off it read, not seen).
    """
    s.regs[R_RESUME] = ZERO
    s.regs[R_RESULT] = ZERO
    end = range_end(s, hva, size)
    if end == ZERO or (advice != MADV_HUGEPAGE and advice != MADV_NOHUGEPAGE and advice != MADV_MERGEABLE):
        return -EINVAL
    open_draft(s)
    rows = ONE_ROW
    error = 0
    here = hva
    while here < end:
        row = find_vma(s, draft_first(s), draft_last(s), here)
        if row == draft_last(s) or s.vmas[row, V_START] >= end:
            error = ENOMEM
            break
        if s.vmas[row, V_START] > here:
            error = ENOMEM
            here = s.vmas[row, V_START]
        stop = min(end, s.vmas[row, V_END])
        flags = advised(s.vmas[row, V_FLAGS], advice)
        if flags != s.vmas[row, V_FLAGS]:
            if hugetlb_cut(s, row, here) or hugetlb_cut(s, row, stop):
                error = EINVAL
                break
            rows = plan_modify(s, rows, row, here, stop, flags)
        here = stop
    return finish_partly(s, rows, error)


@kernel
def may_collapse(s: State, row: int) -> bool:
    """Whether MADV_COLLAPSE accepts the VMA (``thp_vma_allowable_order`` with TVA_FORCED_COLLAPSE)."""
    flags = s.vmas[row, V_FLAGS]
    if flags & (VM_NOHUGEPAGE | VM_HUGETLB) != ZERO or s.vmas[row, V_ANON] == ZERO:
        return False
    first = (s.vmas[row, V_START] + huge_size(s) - ONE) & huge_mask(s)
    return bool(first + huge_size(s) <= s.vmas[row, V_END])


@kernel
def collapse_fits(s: State, rows: int) -> bool:
    """Whether one more collapse fits the plan and the data frames; each before it took four rows."""
    frames = (rows // 4 + 2) * pages_per_huge(s)
    last = I64(s.regs[R_PLAN_BASE]) + rows + 4
    return bool(last <= len(s.plan) and I64(s.regs[R_NEXT_DATA]) + frames <= len(s.content))


@kernel
def plan_collapse_blocks(s: State, rows: int, first: Word, last: Word, flags: Word) -> int:
    """Plan the collapse of every 2M of [first, last), in one VMA, that has a table, as far as it fits."""
    block = first
    while block < last:
        word = s.hpmd[block_index(s, block)]
        if word == PMD_TABLE:
            if not collapse_fits(s, rows):
                s.regs[R_RESUME] = block
                return rows
            rows = put_start(s, rows, block, block + huge_size(s))
            rows = put(s, rows, DETACH, block, ZERO, ZERO)
            rows = put_end(s, rows, block, block + huge_size(s))
            rows = put(s, rows, COLLAPSE, block, flags, ZERO)
        elif word & E_HUGE == ZERO:
            s.regs[R_RESULT] = U64(EINVAL)
        block += huge_size(s)
    return rows


@kernel
def plan_collapse(s: State, hva: Word, size: Word) -> int:
    """Plan madvise(hva, size, MADV_COLLAPSE): the number of rows, four for each 2M that is collapsed.

    Each 2M mapped by base pages, absent and zero ones among them, gets one notifier, which is over
    before the pages are copied; meanwhile the 2M maps nothing. 2M leaves stay as they are.
    ``-EINVAL`` for an ineligible VMA (advised against, hugetlb, never faulted) and for a 2M that has no
    table at all, ``-ENOMEM`` at a hole; with rows planned, ``regs[R_RESULT]`` says it instead. Where plan or
    ``content`` are full, ``regs[R_RESUME]`` is the address to go on from (``R_RESULT`` is of this part).
    Mirrors ``madvise_collapse``, ``collapse_huge_page`` (run 11 for a full 2M; the rest read, not seen).
    """
    s.regs[R_RESULT] = ZERO
    s.regs[R_RESUME] = ZERO
    end = range_end(s, hva, size)
    if end == ZERO:
        return -EINVAL
    rows = NO_ROWS
    error = 0
    here = hva
    count = vma_count(s)
    row = find_vma(s, NO_ROWS, count, hva)
    while here < end and s.regs[R_RESUME] == ZERO:
        if row == count or s.vmas[row, V_START] >= end:
            error = ENOMEM
            break
        if s.vmas[row, V_START] > here:
            error = ENOMEM
            here = s.vmas[row, V_START]
        stop = min(end, s.vmas[row, V_END])
        first = (here + huge_size(s) - ONE) & huge_mask(s)
        last = stop & huge_mask(s)
        if not may_collapse(s, row) or first > last:
            error = EINVAL
            break
        rows = plan_collapse_blocks(s, rows, first, last, s.vmas[row, V_FLAGS])
        here = stop
        row += 1
    if error != 0:
        s.regs[R_RESULT] = U64(error)
    if rows == 0 and s.regs[R_RESULT] != ZERO:
        return -int(I64(s.regs[R_RESULT]))
    return rows


@kernel
def idle_size(s: State, hva: Word) -> Word:
    """Size of the mapping whose folio begins at page ``hva``, 0 where page idle tracking sees none."""
    word = entry_at(s, hva)
    if word & E_PRESENT == ZERO or word & E_ZERO != ZERO:
        return ZERO
    row = find_vma(s, NO_ROWS, vma_count(s), hva)
    if s.vmas[row, V_FLAGS] & VM_HUGETLB != ZERO:
        return ZERO
    if word & E_HUGE == ZERO:
        return page_size(s)
    if hva & huge_mask(s) != hva:
        return ZERO
    return huge_size(s)


@kernel
def plan_idle(s: State, hva: Word) -> int:
    """Plan marking the page of ``hva`` idle through page_idle/bitmap: one ageing call, then the mark.

    0 rows where the bitmap has no effect: nothing mapped, the zero page, hugetlb, the tail of a huge
    page. Mirrors ``page_idle_bitmap_write``. Every page counts as being on an LRU list; in run 14 half
    were not yet.
    """
    if not in_region(s, hva):
        return 0
    page = page_of(s, hva)
    size = idle_size(s, page)
    if size == ZERO:
        return 0
    rows = put(s, NO_ROWS, NOTIFY_AGE, page, page + size, ZERO)
    return put(s, rows, SET_IDLE, page, ONE, ZERO)


@kernel
def plan_idle_check(s: State, hva: Word) -> int:
    """Plan reading the idle mark of the page of ``hva``: one ageing call if it is set, else nothing.

    Where the caller finds the page young it calls ``set_idle(s, hva, False)``; the answer is then
    ``is_idle``. Mirrors ``page_idle_bitmap_read``, which asks for all 64 frames of a word; this asks for one.
    """
    if not in_region(s, hva):
        return 0
    page = page_of(s, hva)
    size = idle_size(s, page)
    if size == ZERO or entry_at(s, page) & E_IDLE == ZERO:
        return 0
    return put(s, NO_ROWS, NOTIFY_AGE, page, page + size, ZERO)
