"""Taking memory away: MADV_DONTNEED, munmap, and mmap over what is there.

Order and nesting of the notifiers as in ``madvise.c`` and ``vma.c`` of Linux 7.3.4.
"""

from __future__ import annotations

from shadowmmu.compiled import U64, inline, kernel
from shadowmmu.host.cutting import close_plan, hugetlb_cut, plan_cut, range_end
from shadowmmu.host.geometry import huge_mask, huge_size, hugetlb_mask
from shadowmmu.host.layout import (
    E_HUGE,
    E_ZERO,
    EINVAL,
    ENOMEM,
    HVA_BASE,
    NO_ROWS,
    ONE,
    ONE_ROW,
    R_DRAFT_CHANGED,
    R_RESULT,
    R_RESUME,
    V_ANON,
    V_END,
    V_FLAGS,
    V_START,
    VM_HUGETLB,
    VM_READ,
    VM_WRITE,
    ZERO,
)
from shadowmmu.host.steps import FREE_TABLES, SPLIT, ZAP, put, put_end, put_start
from shadowmmu.host.tables import block_index, entry_at, in_region, region_end
from shadowmmu.host.vma import (
    adopt_anon,
    can_merge,
    delete_rows,
    draft_first,
    draft_last,
    find_vma,
    insert_row,
    open_draft,
    vma_count,
)
from shadowmmu.machine.state import State, Word


@kernel
def is_huge(s: State, hva: Word) -> bool:
    """Whether a 2M leaf maps ``hva``, an address of the region."""
    return bool(s.hpmd[block_index(s, hva)] & E_HUGE != ZERO)


@kernel
def plan_zap_vma(s: State, rows: int, start: Word, end: Word) -> int:
    """Zap [start, end), which lies in one VMA: one notifier over it, and one over each 2M leaf cut.

    Mirrors ``zap_page_range_single_batched``; the nested notifier is ``__split_huge_pmd``'s
    (runs 02 and 11). Sent whether or not anything is mapped (random/*).
    """
    rows = put_start(s, rows, start, end)
    here = start
    block = start & huge_mask(s)
    if (start > block or end < block + huge_size(s)) and is_huge(s, start):
        rows = put_start(s, rows, block, block + huge_size(s))
        rows = put(s, rows, SPLIT, block, ZERO, ZERO)
        rows = put_end(s, rows, block, block + huge_size(s))
    last = end & huge_mask(s)
    if last > block and last < end and is_huge(s, last):
        rows = put(s, rows, ZAP, here, last, ONE)
        rows = put_start(s, rows, last, last + huge_size(s))
        rows = put(s, rows, SPLIT, last, ZERO, ZERO)
        rows = put_end(s, rows, last, last + huge_size(s))
        here = last
    rows = put(s, rows, ZAP, here, end, ONE)
    return put_end(s, rows, start, end)


@inline
def splits_unevenly(s: State, hva: Word) -> bool:
    """Whether a cut at ``hva`` falls inside a hugetlb page or the huge zero page, which cannot be split."""
    if not in_region(s, hva):
        return False
    word = entry_at(s, hva)
    if word == ZERO:
        return False
    row = find_vma(s, 0, vma_count(s), hva)
    if s.vmas[row, V_FLAGS] & VM_HUGETLB != ZERO:
        return bool(hva & hugetlb_mask(s) != hva)
    return bool(word & E_HUGE != ZERO and word & E_ZERO != ZERO and hva & huge_mask(s) != hva)


@kernel
def plan_punch(s: State, hva: Word, size: Word) -> int:
    """Plan a bare invalidation: the range goes with one notifier of exactly its bounds.

    No kernel function: what the notifier's contract allows and 7.3.4's huge-page code, which announces
    every split of a 2M leaf too, happens not to do. The pages around it must stay what they are, so
    ``-EINVAL`` for part of a hugetlb page or of the huge zero page, and for a bad range. O(1).
    """
    s.regs[R_RESULT] = ZERO
    s.regs[R_RESUME] = ZERO
    end = range_end(s, hva, size)
    if end == ZERO:
        return -EINVAL
    if splits_unevenly(s, hva) or splits_unevenly(s, end):
        return -EINVAL
    rows = put_start(s, NO_ROWS, hva, end)
    if hva & huge_mask(s) != hva:
        rows = put(s, rows, SPLIT, hva & huge_mask(s), ZERO, ZERO)
    if end & huge_mask(s) != end:
        rows = put(s, rows, SPLIT, end & huge_mask(s), ZERO, ZERO)
    rows = put(s, rows, ZAP, hva, end, ONE)
    return put_end(s, rows, hva, end)


@kernel
def plan_dontneed(s: State, hva: Word, size: Word) -> int:
    """Plan madvise(hva, size, MADV_DONTNEED): the number of rows. O(VMAs in the range).

    ``-EINVAL`` for an ``hva`` off the page grid (that of hugetlb pages there); ``-ENOMEM`` where nothing is
    mapped. A range with holes is zapped all the same and ``regs[R_RESULT]`` says ENOMEM.
    """
    s.regs[R_RESULT] = ZERO
    s.regs[R_RESUME] = ZERO
    end = range_end(s, hva, size)
    if end == ZERO:
        return -EINVAL
    rows = NO_ROWS
    here = hva
    count = vma_count(s)
    row = find_vma(s, NO_ROWS, count, hva)
    while row < count and here < end and s.vmas[row, V_START] < end:
        if s.vmas[row, V_START] > here:
            s.regs[R_RESULT] = U64(ENOMEM)
            here = s.vmas[row, V_START]
        stop = min(end, s.vmas[row, V_END])
        reach = stop
        if s.vmas[row, V_FLAGS] & VM_HUGETLB != ZERO:
            if here & hugetlb_mask(s) != here:
                s.regs[R_RESULT] = U64(EINVAL)
                return rows if rows > 0 else -EINVAL
            reach = stop & hugetlb_mask(s)
        if here < reach:
            rows = plan_zap_vma(s, rows, here, reach)
        here = stop
        row += 1
    if here < end:
        s.regs[R_RESULT] = U64(ENOMEM)
        if rows == 0:
            return -ENOMEM
    return rows


@kernel
def plan_remove(s: State, rows: int, start: Word, end: Word) -> int:
    """Plan the removal of every VMA in [start, end) from the draft and of what they map.

    Cuts with their notifiers first, then one notifier over the whole range, whatever it holds, then
    the tables that no VMA needs any more. Nothing if no VMA is there. ``-EINVAL`` for a hugetlb mapping
    cut off the grid of its pages; where only the end is refused the cut at the start stays, and
    ``regs[R_RESULT]`` says EINVAL. Mirrors ``vms_gather_munmap_vmas``, ``vms_clear_ptes`` (run 11,
    ``live/munmap-into-hugetlb``).
    """
    last = draft_last(s)
    row = find_vma(s, draft_first(s), last, start)
    if row == last or s.vmas[row, V_START] >= end:
        return rows
    if hugetlb_cut(s, row, start):
        return -EINVAL
    if s.vmas[row, V_START] < start:
        rows = plan_cut(s, rows, row, start)
        row += 1
    tail = find_vma(s, row, draft_last(s), end)
    if tail < draft_last(s) and hugetlb_cut(s, tail, end):
        s.regs[R_RESULT] = U64(EINVAL)
        return rows if s.regs[R_DRAFT_CHANGED] != ZERO else -EINVAL
    if tail < draft_last(s) and s.vmas[tail, V_START] < end:
        rows = plan_cut(s, rows, tail, end)
        tail += 1
    delete_rows(s, row, tail - row)
    floor = s.vmas[row - 1, V_END] if row > draft_first(s) else HVA_BASE
    ceiling = s.vmas[row, V_START] if row < draft_last(s) else region_end(s)
    rows = put_start(s, rows, start, end)
    rows = put(s, rows, ZAP, start, end, ZERO)
    rows = put_end(s, rows, start, end)
    return put(s, rows, FREE_TABLES, floor, ceiling, ZERO)


@kernel
def plan_munmap(s: State, hva: Word, size: Word) -> int:
    """Plan munmap(hva, size): the number of rows, 0 when nothing is mapped there.

    ``-EINVAL`` for a bad range, or for a hugetlb mapping cut off the grid of its pages.
    """
    s.regs[R_RESULT] = ZERO
    s.regs[R_RESUME] = ZERO
    end = range_end(s, hva, size)
    if end == ZERO or end == hva or not in_region(s, hva) or end > region_end(s):
        return -EINVAL
    open_draft(s)
    rows = plan_remove(s, ONE_ROW, hva, end)
    if rows < 0:
        return rows
    return close_plan(s, rows)


@kernel
def insert_vma(s: State, start: Word, end: Word) -> None:
    """Put a fresh anonymous read-write VMA over the hole [start, end) of the draft, merging.

    Mirrors ``vma_merge_new_range``. Its flags are those of mmap without MAP_NORESERVE and without
    any advice, so it never merges with the VMM's first mapping.
    """
    flags = VM_READ | VM_WRITE
    row = find_vma(s, draft_first(s), draft_last(s), start)
    insert_row(s, row)
    s.vmas[row, V_START] = start
    s.vmas[row, V_END] = end
    s.vmas[row, V_FLAGS] = flags
    s.vmas[row, V_ANON] = ZERO
    if can_merge(s, row, row - 1, flags):
        s.vmas[row - 1, V_END] = end
        delete_rows(s, row, ONE_ROW)
        row -= 1
    if can_merge(s, row, row + 1, flags):
        adopt_anon(s, row, row + 1)
        s.vmas[row, V_END] = s.vmas[row + 1, V_END]
        delete_rows(s, row + 1, ONE_ROW)


@kernel
def plan_mmap(s: State, hva: Word, size: Word) -> int:
    """Plan mmap(hva, size, read and write, private anonymous, MAP_FIXED): the number of rows.

    What was there goes as by munmap (``__mmap_region``). ``-EINVAL`` for a bad range or a hugetlb
    mapping cut off the grid of its pages, ``-ENOMEM`` outside the region.
    """
    s.regs[R_RESULT] = ZERO
    s.regs[R_RESUME] = ZERO
    end = range_end(s, hva, size)
    if end == ZERO or end == hva:
        return -EINVAL
    if not in_region(s, hva) or end > region_end(s):
        return -ENOMEM
    open_draft(s)
    rows = plan_remove(s, ONE_ROW, hva, end)
    if rows < 0:
        return rows
    if s.regs[R_RESULT] != ZERO:
        return close_plan(s, rows)
    insert_vma(s, hva, end)
    s.regs[R_DRAFT_CHANGED] = ONE
    return close_plan(s, rows)
