"""Reclaim asked for: MADV_PAGEOUT.

Mirrors ``madvise.c`` and ``shrink_folio_list`` of ``vmscan.c`` (Linux 7.3.4).
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import Word, kernel
from shadowmmu.host.cutting import put_folio, put_walk, range_end
from shadowmmu.host.folio import fully_mapped, in_large_folio, sharers
from shadowmmu.host.geometry import huge_mask, huge_size, page_size
from shadowmmu.host.layout import (
    E_ADDRESS,
    E_HUGE,
    E_KSM,
    E_PRESENT,
    E_ZERO,
    EINVAL,
    ENOMEM,
    NO_ROWS,
    ONE,
    PMD_TABLE,
    R_RESUME,
    R_SWAP,
    V_END,
    V_FLAGS,
    V_START,
    VM_HUGETLB,
    ZERO,
)
from shadowmmu.host.steps import SET_SWAP, SPLIT_FOLIO, SWAP_OUT, put, put_end, put_start
from shadowmmu.host.tables import block_index, page_index
from shadowmmu.host.vma import find_vma, vma_count
from shadowmmu.machine.state import State

PAGES_PER_PLAN: Final = 16
"""Base pages that go to swap space in one plan: their notifiers fit the log of one step."""


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
def swappable(s: State, hva: Word) -> bool:
    """Whether page ``hva``, which has a table, is one that MADV_PAGEOUT takes.

    Not the zero page, and not a page that KSM merged and others map (``folio_mapcount``).
    """
    word = s.hpte[page_index(s, hva)]
    if word & E_PRESENT == ZERO or word & E_ZERO != ZERO:
        return False
    return bool(word & E_KSM == ZERO or sharers(s, word & E_ADDRESS) == 1)


@kernel
def put_swap_out(s: State, rows: int, hva: Word, size: Word) -> int:
    """The folio of ``size`` bytes at ``hva`` goes to swap space, with one notifier."""
    rows = put_start(s, rows, hva, hva + size)
    rows = put(s, rows, SWAP_OUT, hva, ZERO, ZERO)
    return put_end(s, rows, hva, hva + size)


@kernel
def plan_pages_out(s: State, start: Word, end: Word) -> int:
    """Plan swapping out the next of [start, end), base pages in one VMA; ``R_RESUME`` is where to go on."""
    rows = NO_ROWS
    here = start
    while here < end and rows < 3 * PAGES_PER_PLAN:
        if s.hpmd[block_index(s, here)] != PMD_TABLE:
            here = (here & huge_mask(s)) + huge_size(s)
        else:
            merged = s.hpte[page_index(s, here)] & E_KSM != ZERO
            if swappable(s, here):
                if merged and rows > 0:
                    break
                s.regs[R_RESUME] = ZERO
                if merged:
                    rows = put_walk(s, rows, here)
                if s.regs[R_RESUME] == here:
                    return rows
                rows = put_swap_out(s, rows, here, page_size(s))
            here += page_size(s)
    s.regs[R_RESUME] = min(here, end)
    return rows


@kernel
def plan_part(s: State, start: Word, end: Word) -> int:
    """Plan the next of [start, end), in one VMA: a huge page's split, or what goes to swap space.

    ``R_RESUME`` is where to go on. In each 2M the split comes before any page goes. A huge page that is
    mapped whole inside the range goes whole; without swap it is split, as one in part in it always is.
    """
    large = large_folio_in(s, start, end)
    block = large & huge_mask(s)
    if s.regs[R_SWAP] == ZERO:
        if large == end:
            s.regs[R_RESUME] = end
            return 0
        s.regs[R_RESUME] = min(end, block + huge_size(s))
        return put_folio(s, NO_ROWS, large, SPLIT_FOLIO)
    if large == end or start < block:
        return plan_pages_out(s, start, min(end, block) if large < end else end)
    if large == block and block + huge_size(s) <= end and fully_mapped(s, block):
        s.regs[R_RESUME] = block + huge_size(s)
        return put_swap_out(s, NO_ROWS, block, huge_size(s))
    s.regs[R_RESUME] = start
    return put_folio(s, NO_ROWS, large, SPLIT_FOLIO)


@kernel
def plan_pageout(s: State, hva: Word, size: Word) -> int:
    """Plan madvise(hva, size, MADV_PAGEOUT), the next part of it: the number of rows.

    With swap space each page goes with a notifier of its own, in order, whether it was accessed or not
    (references are ignored, so nothing is aged), a huge page that the range holds whole with one (seen on the
    rig); zero pages and pages that KSM shares stay. Without, nothing is taken: an anonymous page gets no swap
    entry in ``shrink_folio_list``. A huge page in part in the range, and without swap any, is split into
    pages of their own, and those of zeros into the zero page (seen on the rig): a notifier for each VMA
    that maps a part of it. ``regs[R_RESUME]`` is where to go on. ``-EINVAL`` off the page grid or in
    hugetlb, ``-ENOMEM`` at a hole; what comes before is done.
    """
    s.regs[R_RESUME] = ZERO
    end = range_end(s, hva, size)
    if end == ZERO:
        return -EINVAL
    here = hva
    rows = NO_ROWS
    count = vma_count(s)
    row = find_vma(s, NO_ROWS, count, hva)
    while here < end and rows == 0:
        if row == count or s.vmas[row, V_START] > here:
            return -ENOMEM
        if s.vmas[row, V_FLAGS] & VM_HUGETLB != ZERO:
            return -EINVAL
        stop = min(end, s.vmas[row, V_END])
        rows = plan_part(s, here, stop)
        here = s.regs[R_RESUME]
        if here == stop:
            row += 1
    s.regs[R_RESUME] = here if here < end else ZERO
    return rows


@kernel
def plan_swap(s: State, on: bool) -> int:
    """Plan swapon or swapoff of the only swap space: no notifier (seen on the rig)."""
    s.regs[R_RESUME] = ZERO
    return put(s, NO_ROWS, SET_SWAP, ONE if on else ZERO, ZERO, ZERO)
