"""Reclaim asked for: MADV_PAGEOUT.

Mirrors ``madvise.c`` and ``shrink_folio_list`` of ``vmscan.c`` (Linux 7.3.4).
"""

from __future__ import annotations

from shadowmmu.compiled import Word, kernel
from shadowmmu.host.cutting import put_folio, range_end
from shadowmmu.host.folio import in_large_folio
from shadowmmu.host.geometry import huge_mask, huge_size, page_size
from shadowmmu.host.layout import (
    E_HUGE,
    EINVAL,
    ENOMEM,
    NO_ROWS,
    PMD_TABLE,
    R_RESUME,
    V_END,
    V_FLAGS,
    V_START,
    VM_HUGETLB,
    ZERO,
)
from shadowmmu.host.steps import SPLIT_FOLIO
from shadowmmu.host.tables import block_index
from shadowmmu.host.vma import find_vma, vma_count
from shadowmmu.machine.state import State


@kernel
def large_folio_in(s: State, start: Word, end: Word) -> Word:
    """First page of [start, end) that maps a page of a huge page, ``end`` if none."""
    here = start
    while here < end:
        word = s.hpmd[block_index(s, here)]
        if word != PMD_TABLE and word & E_HUGE == ZERO:
            here = (here & huge_mask(s)) + huge_size(s)
        elif in_large_folio(s, here):
            return here
        else:
            here += page_size(s)
    return end


@kernel
def plan_pageout(s: State, hva: Word, size: Word) -> int:
    """Plan madvise(hva, size, MADV_PAGEOUT), the next huge page of it: the number of rows.

    Without swap nothing is taken: an anonymous page gets no swap entry in ``shrink_folio_list`` and stays,
    and references are ignored, so nothing is aged. But a huge page, whole or in part in the range, is split
    into pages of their own, and those of zeros into the zero page (seen on the rig): a notifier for each VMA
    that maps a part of it. ``regs[R_RESUME]`` is where to go on. ``-EINVAL`` off the page grid or in
    hugetlb, ``-ENOMEM`` at a hole; what comes before is split.
    """
    s.regs[R_RESUME] = ZERO
    end = range_end(s, hva, size)
    if end == ZERO:
        return -EINVAL
    here = hva
    count = vma_count(s)
    row = find_vma(s, NO_ROWS, count, hva)
    while here < end:
        if row == count or s.vmas[row, V_START] > here:
            return -ENOMEM
        if s.vmas[row, V_FLAGS] & VM_HUGETLB != ZERO:
            return -EINVAL
        stop = min(end, s.vmas[row, V_END])
        large = large_folio_in(s, here, stop)
        if large < stop:
            following = min(stop, (large & huge_mask(s)) + huge_size(s))
            if following < end:
                s.regs[R_RESUME] = following
            return put_folio(s, NO_ROWS, large, SPLIT_FOLIO)
        here = stop
        row += 1
    return 0
