"""Host page faults: GUP on behalf of a guest fault, or the VMM touching its own memory.

Mirrors ``handle_mm_fault`` of Linux 7.3.4 for one anonymous private mapping or hugetlb pages. There is
no fork, so a page that is neither the zero page nor merged by KSM belongs to this process alone.
"""

from __future__ import annotations

from shadowmmu.compiled import kernel
from shadowmmu.host.geometry import huge_mask, huge_size, hugetlb_mask, page_size
from shadowmmu.host.layout import (
    E_HUGE,
    E_IDLE,
    E_KSM,
    E_WRITE,
    E_ZERO,
    EAGAIN,
    EFAULT,
    NO_ROWS,
    ONE,
    PMD_DETACHED,
    V_ANON,
    V_END,
    V_FLAGS,
    V_START,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_READ,
    VM_WRITE,
    ZERO,
)
from shadowmmu.host.steps import (
    FILL_HUGE,
    FILL_HUGETLB,
    FILL_PAGE,
    MAKE_WRITABLE,
    SET_ANON,
    SET_IDLE,
    SWAP_IN,
    WRITE_HUGETLB,
    put,
    put_end,
    put_start,
)
from shadowmmu.host.swap import swapped_out
from shadowmmu.host.tables import block_index, entry_at, in_region, page_of
from shadowmmu.host.vma import anon_for, find_vma, vma_count
from shadowmmu.machine.state import State, Word


@kernel
def thp_suits(s: State, row: int, block: Word) -> bool:
    """Whether the 2M at ``block`` may be faulted in as one page: THP=madvise (``thp_vma_suitable_order``)."""
    if s.vmas[row, V_FLAGS] & VM_HUGEPAGE == ZERO:
        return False
    return bool(block >= s.vmas[row, V_START] and block + huge_size(s) <= s.vmas[row, V_END])


@kernel
def put_anon(s: State, rows: int, row: int, hva: Word) -> int:
    """The VMA's anon_vma before its first anonymous page (``vmf_anon_prepare``)."""
    if s.vmas[row, V_ANON] == ZERO:
        rows = put(s, rows, SET_ANON, hva, anon_for(s, row), ZERO)
    return rows


@kernel
def plan_absent(s: State, row: int, hva: Word, write: bool) -> int:
    """Nothing is mapped at page ``hva``: a fresh page or a zero page, of 2M where that suits; or hugetlb.

    No notifier.
    """
    block = hva & huge_mask(s)
    hugetlb = s.vmas[row, V_FLAGS] & VM_HUGETLB != ZERO
    fill = ONE if write else ZERO
    zero = ZERO if write else ONE
    rows = NO_ROWS
    if hugetlb:
        rows = put_anon(s, rows, row, hva)
        return put(s, rows, FILL_HUGETLB, hva & hugetlb_mask(s), fill, ZERO)
    if s.hpmd[block_index(s, hva)] == ZERO and thp_suits(s, row, block):
        rows = put_anon(s, rows, row, hva)
        return put(s, rows, FILL_HUGE, block, zero, ZERO)
    if write:
        rows = put_anon(s, rows, row, hva)
    return put(s, rows, FILL_PAGE, hva, zero, ZERO)


@kernel
def plan_write_protected(s: State, row: int, hva: Word, word: Word) -> int:
    """A write to page ``hva`` that leaf ``word`` maps read-only though the VMA allows writing.

    The zero page, or a page that KSM merged, is replaced inside a notifier of its size (``wp_page_copy``,
    ``do_huge_zero_wp_pmd``; seen on the rig). Any other page is this process's alone and only its entry
    changes (``wp_page_reuse``, ``hugetlb_wp``): after mprotect to read-only and back that has happened
    already, except in hugetlb.
    """
    if s.vmas[row, V_FLAGS] & VM_HUGETLB != ZERO:
        return put(s, NO_ROWS, WRITE_HUGETLB, hva & hugetlb_mask(s), ZERO, ZERO)
    if word & (E_ZERO | E_KSM) == ZERO:
        return put(s, NO_ROWS, MAKE_WRITABLE, hva, ZERO, ZERO)
    huge = word & E_HUGE != ZERO
    start = hva & huge_mask(s) if huge else hva
    end = start + (huge_size(s) if huge else page_size(s))
    rows = put_anon(s, NO_ROWS, row, hva)
    rows = put_start(s, rows, start, end)
    if huge:
        rows = put(s, rows, FILL_HUGE, start, ZERO, ZERO)
    else:
        rows = put(s, rows, FILL_PAGE, start, ZERO, ZERO)
    return put_end(s, rows, start, end)


@kernel
def plan_touch(s: State, hva: Word, write: bool) -> int:
    """Plan a read or write access to ``hva`` by GUP or by the VMM: the number of rows. O(log VMAs).

    0 when the page is there with the access asked for (a page marked idle costs one row that clears
    the mark). ``-EFAULT`` without a VMA that allows the access; ``-EAGAIN`` while the 2M is being
    collapsed (the kernel would wait for mmap_lock). Reading a mapping that may only be written is
    refused, as GUP does. Seen in runs 01, 02, 04, 11 and random/*; the huge zero page was read, not seen.
    """
    if not in_region(s, hva):
        return -EFAULT
    count = vma_count(s)
    row = find_vma(s, NO_ROWS, count, hva)
    if row == count or s.vmas[row, V_START] > hva:
        return -EFAULT
    wanted = VM_WRITE if write else VM_READ
    if s.vmas[row, V_FLAGS] & wanted == ZERO:
        return -EFAULT
    if s.hpmd[block_index(s, hva)] == PMD_DETACHED:
        return -EAGAIN
    page = page_of(s, hva)
    word = entry_at(s, hva)
    if word == ZERO:
        return plan_absent(s, row, page, write)
    if swapped_out(word):
        return put(s, NO_ROWS, SWAP_IN, page, s.vmas[row, V_FLAGS], ONE if write else ZERO)
    if write and word & E_WRITE == ZERO:
        return plan_write_protected(s, row, page, word)
    if word & E_IDLE != ZERO:
        return put(s, NO_ROWS, SET_IDLE, page, ZERO, ZERO)
    return 0
