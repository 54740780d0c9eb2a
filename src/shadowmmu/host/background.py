"""What the host does to memory that nobody asked for: migration, khugepaged, NUMA hints.

Mirrors ``migrate.c``, ``rmap.c`` and ``khugepaged.c`` of Linux 7.3.4. Each plan is one folio or one 2M;
``regs[R_RESUME]`` is the address to go on from. Seen on the rig: one migration notifier a base page or a
huge page, one a VMA for a huge page whose leaf was split; one a collapsed 2M.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import U64, Word, kernel
from shadowmmu.host.advise import first_populated, may_collapse, plan_collapse_blocks
from shadowmmu.host.cutting import put_folio, put_walk, range_end
from shadowmmu.host.folio import fully_mapped, sharers
from shadowmmu.host.geometry import huge_mask, huge_size, page_shift, page_size, pages_per_huge
from shadowmmu.host.layout import (
    E_ADDRESS,
    E_FOLIO,
    E_HUGE,
    E_KSM,
    E_LEAVING,
    E_PRESENT,
    E_SWAP,
    E_ZERO,
    EINVAL,
    NO_ROWS,
    ONE,
    PMD_TABLE,
    R_RESULT,
    R_RESUME,
    V_END,
    V_FLAGS,
    V_START,
    VM_ACCESS,
    VM_HUGEPAGE,
    VM_HUGETLB,
    ZERO,
)
from shadowmmu.host.steps import MOVE, SPLIT_TO_MOVE, put, put_end, put_start
from shadowmmu.host.tables import block_index, entry_at, in_region, page_index
from shadowmmu.host.vma import find_vma, vma_count
from shadowmmu.machine.state import State

MOVES_PER_PLAN: Final = 16
"""Pages of a split folio that move in one plan: their notifiers fit the log of one step."""


@kernel
def pages_leaving(s: State, block: Word) -> int:
    """Pages in ``block`` of a folio that was split in order to move and that have not moved yet."""
    found = 0
    first = block_index(s, block) * pages_per_huge(s)
    for page in range(first, first + pages_per_huge(s)):
        if s.hpte[page] & E_LEAVING != ZERO:
            found += 1
    return found


@kernel
def plan_leaving(s: State, block: Word) -> int:
    """Plan moving the next pages of a folio that was split for it, ``MOVES_PER_PLAN`` at most.

    The first page comes last. Mirrors ``migrate_pages_batch`` of ``split_folios`` (seen on the rig).
    """
    rows = NO_ROWS
    turn = 1
    while turn <= pages_per_huge(s) and rows < 3 * MOVES_PER_PLAN:
        page = block + (U64(turn % pages_per_huge(s)) << page_shift(s))
        if s.hpte[page_index(s, page)] & E_LEAVING != ZERO:
            rows = put_start(s, rows, page, page + page_size(s))
            rows = put(s, rows, MOVE, page, ZERO, ZERO)
            rows = put_end(s, rows, page, page + page_size(s))
        turn += 1
    return rows


@kernel
def plan_migrate(s: State, hva: Word, size: Word) -> int:
    """Plan move_pages of [hva, hva + size), the next folio of it: the number of rows.

    Zero pages, pages shared by KSM, and hugetlb stay (the rig has no spare hugetlb page to move one to). A
    huge page in part in the range moves whole, and the plan goes on behind it; one of which some was unmapped
    is split first, and then each of its pages moves, but for those of zeros. ``-EINVAL`` off the page grid.
    Mirrors ``try_to_migrate_one``.
    """
    s.regs[R_RESUME] = ZERO
    end = range_end(s, hva, size)
    if end == ZERO:
        return -EINVAL
    here = hva
    count = vma_count(s)
    while here < end and in_region(s, here):
        word = entry_at(s, here)
        block = here & huge_mask(s)
        following = here + page_size(s)
        if word & (E_HUGE | E_FOLIO) != ZERO:
            following = block + huge_size(s)
        if here == hva and word & E_HUGE == ZERO:  # where the plan before may have split
            leaving = pages_leaving(s, block)
            if leaving > MOVES_PER_PLAN:
                s.regs[R_RESUME] = here
            elif leaving > 0 and block + huge_size(s) < end:
                s.regs[R_RESUME] = block + huge_size(s)
            if leaving > 0:
                return plan_leaving(s, block)
        row = find_vma(s, NO_ROWS, count, here)
        stays = word & E_ZERO != ZERO or (word & E_KSM != ZERO and sharers(s, word & E_ADDRESS) > 1)
        if word & E_PRESENT != ZERO and not stays and s.vmas[row, V_FLAGS] & VM_HUGETLB == ZERO:
            if following < end:
                s.regs[R_RESUME] = following
            if word & E_FOLIO != ZERO and not fully_mapped(s, block):
                s.regs[R_RESUME] = here  # then its pages
                return put_folio(s, NO_ROWS, here, SPLIT_TO_MOVE)
            if word & E_FOLIO != ZERO:
                return put_folio(s, NO_ROWS, here, MOVE)
            rows = NO_ROWS
            if word & E_KSM != ZERO:
                rows = put_walk(s, rows, here)
                if s.regs[R_RESUME] == here:
                    return rows
            start = block if word & E_HUGE != ZERO else here
            rows = put_start(s, rows, start, following)
            rows = put(s, rows, MOVE, here, ZERO, ZERO)
            return put_end(s, rows, start, following)
        here = following
    return 0


@kernel
def plan_numa_hints(s: State, hva: Word, size: Word) -> int:
    """Plan NUMA balancing's pass over the 2M blocks that [hva, hva + size) is in: the number of rows.

    One blockable notifier for each VMA's part, from its first populated 1G on, whatever is mapped; hugetlb
    and memory without access are left out. The entries become hints, which nobody can tell from pages here:
    the next access, a fault's GUP too, makes them what they were and sends no notifier. If that fault moves
    the page, it is ``plan_migrate``. ``-EINVAL`` off the page grid. Mirrors ``task_numa_work``,
    ``change_prot_numa`` and ``do_numa_page``: read, not seen.
    """
    s.regs[R_RESUME] = ZERO
    end = range_end(s, hva, size)
    if end == ZERO:
        return -EINVAL
    first = hva & huge_mask(s)
    last = (end + huge_size(s) - ONE) & huge_mask(s)
    rows = NO_ROWS
    count = vma_count(s)
    row = find_vma(s, NO_ROWS, count, first)
    while row < count and s.vmas[row, V_START] < last:
        flags = s.vmas[row, V_FLAGS]
        if flags & VM_HUGETLB == ZERO and flags & VM_ACCESS != ZERO:
            stop = min(last, s.vmas[row, V_END])
            start = first_populated(s, max(first, s.vmas[row, V_START]), stop)
            if start < stop:
                rows = put_start(s, rows, start, stop)
                rows = put_end(s, rows, start, stop)
        row += 1
    return rows


@kernel
def worth_collapsing(s: State, block: Word) -> bool:
    """Whether the 2M has a table that maps a page that is not the zero page (``collapse_scan_pmd``).

    Every page counts as referenced; ``max_ptes_none`` and ``max_ptes_swap`` are their defaults, 511 and an
    eighth. With pages on swap space half of all must be there (seen on the rig).
    """
    first = block_index(s, block)
    if s.hpmd[first] != PMD_TABLE:
        return False
    own = 0
    swapped = 0
    for page in range(first * pages_per_huge(s), (first + 1) * pages_per_huge(s)):
        word = s.hpte[page]
        if word & E_SWAP != ZERO:
            swapped += 1
        elif word != ZERO and word & E_ZERO == ZERO:
            own += 1
    if swapped == 0:
        return own > 0
    return 8 * swapped <= pages_per_huge(s) <= 2 * own


@kernel
def plan_khugepaged(s: State, hva: Word) -> int:
    """Plan khugepaged's next collapse at ``hva`` or above: four rows, or none when nothing is left.

    Only VMAs advised MADV_HUGEPAGE (THP=madvise). Mirrors ``collapse_scan_mm_slot``.
    """
    s.regs[R_RESUME] = ZERO
    s.regs[R_RESULT] = ZERO
    count = vma_count(s)
    row = find_vma(s, NO_ROWS, count, hva)
    while row < count:
        if s.vmas[row, V_FLAGS] & VM_HUGEPAGE != ZERO and may_collapse(s, row):
            block = (max(hva, s.vmas[row, V_START]) + huge_size(s) - ONE) & huge_mask(s)
            while block + huge_size(s) <= s.vmas[row, V_END]:
                if worth_collapsing(s, block):
                    rows = plan_collapse_blocks(s, NO_ROWS, block, block + huge_size(s), s.vmas[row, V_FLAGS])
                    if s.regs[R_RESUME] == ZERO:
                        s.regs[R_RESUME] = block + huge_size(s)
                    return rows
                block += huge_size(s)
        row += 1
    return 0
