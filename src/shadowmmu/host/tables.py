"""The host's page tables: looking up, and the changes that the steps of a plan make.

Data frames come from a bump pointer and are never used twice, so that a translation that outlived its
page can never look right by accident. A page that is taken away loses its content.
Each change is given the range or address it is for and trusts the plan: a 2M leaf is split before part
of it is touched, and nothing here sends a notifier or looks at a VMA.
"""

from __future__ import annotations

from typing import NamedTuple

from shadowmmu.compiled import I64, U64, inline, kernel
from shadowmmu.host.geometry import (
    giga_mask,
    giga_shift,
    giga_size,
    huge_mask,
    huge_shift,
    huge_size,
    hugetlb_size,
    page_mask,
    page_shift,
    page_size,
    pages_per_huge,
)
from shadowmmu.host.layout import (
    E_ADDRESS,
    E_FOLIO,
    E_HUGE,
    E_HUGETLB,
    E_IDLE,
    E_KSM,
    E_MERGED,
    E_NOT_ACCESS,
    E_NOT_HUGE,
    E_NOT_IDLE,
    E_NOT_MERGED,
    E_PRESENT,
    E_READ,
    E_SWAP,
    E_WRITE,
    E_ZERO,
    HVA_BASE,
    ONE,
    PMD_DETACHED,
    PMD_TABLE,
    R_HUGE_ZERO,
    R_HUGES,
    R_PAGES,
    R_ZERO_PAGE,
    VM_ACCESS,
    VM_HUGETLB,
    VM_WRITE,
    ZERO,
)
from shadowmmu.machine.counters import COPIES_ON_WRITE, HOST_FAULTS
from shadowmmu.machine.frames import data_frame, drop_content, share_content
from shadowmmu.machine.state import DATA_BASE, R_NEXT_DATA, State, Word


class HostPage(NamedTuple):
    """Where the host maps a virtual address."""

    pa: Word
    """Physical address of the 4K page that holds it (also inside a huge page)."""
    size: Word
    """Size of the mapping that holds it: 4K, 2M or a hugetlb page's; 0 when nothing accessible is mapped."""
    writable: bool
    """Whether the host's entry allows writing now."""


@inline
def page_index(s: State, hva: Word) -> int:
    """Row of the page in ``hpte``; ``hva`` lies in the region."""
    return int(I64((hva - HVA_BASE) >> page_shift(s)))


@inline
def block_index(s: State, hva: Word) -> int:
    """Row of the 2M block in ``hpmd``; ``hva`` lies in the region."""
    return int(I64((hva - HVA_BASE) >> huge_shift(s)))


@inline
def giga_index(s: State, hva: Word) -> int:
    """Row of the 1G word in ``hpmd``; ``hva`` lies in the region."""
    return int(I64(s.regs[R_HUGES]) + I64((hva - HVA_BASE) >> giga_shift(s)))


@inline
def region_end(s: State) -> Word:
    """First address behind the region."""
    return U64(HVA_BASE + (s.regs[R_PAGES] << page_shift(s)))


@inline
def in_region(s: State, hva: Word) -> bool:
    """Whether ``hva`` is an address of the VMM's memory."""
    return bool(hva >= HVA_BASE and hva < region_end(s))


@kernel
def entry_at(s: State, hva: Word) -> Word:
    """The leaf word that maps ``hva``, 2M or 4K, 0 when there is none; ``hva`` lies in the region."""
    upper = s.hpmd[block_index(s, hva)]
    if upper & E_HUGE != ZERO:
        return U64(upper)
    if upper == PMD_TABLE:
        return U64(s.hpte[page_index(s, hva)])
    return ZERO


@kernel
def translate(s: State, hva: Word) -> HostPage:
    """Where the host maps ``hva`` now. O(1), changes nothing; no VMA is asked.

    Mirrors what ``get_user_mapping_size`` and the fast path of GUP read.
    """
    if not in_region(s, hva):
        return HostPage(ZERO, ZERO, False)
    word = entry_at(s, hva)
    if word & E_READ == ZERO:
        return HostPage(ZERO, ZERO, False)
    pa = word & E_ADDRESS
    size = page_size(s)
    if word & E_HUGE != ZERO:
        pa += hva & (huge_size(s) - page_size(s))
        size = huge_size(s)
    if word & E_HUGETLB != ZERO:
        size = hugetlb_size(s)
    return HostPage(pa, size, bool(word & E_WRITE != ZERO))


@inline
def populated(s: State, hva: Word) -> bool:
    """Whether a page middle directory hangs over ``hva``: something in its 1G was mapped before."""
    return bool(s.hpmd[giga_index(s, hva)] != ZERO)


@inline
def fresh_page(s: State) -> Word:
    """Physical address of a data frame never used before."""
    index = s.regs[R_NEXT_DATA]
    s.regs[R_NEXT_DATA] = index + ONE
    return U64(DATA_BASE + (index << page_shift(s)))


@inline
def fresh_huge(s: State) -> Word:
    """Physical address of 512 data frames never used before, aligned to 2M."""
    return fresh_frames(s, U64(pages_per_huge(s)))


@inline
def fresh_frames(s: State, count: Word) -> Word:
    """Physical address of ``count`` data frames never used before, aligned as that power of two."""
    index = (s.regs[R_NEXT_DATA] + count - ONE) // count * count
    s.regs[R_NEXT_DATA] = index + count
    return U64(DATA_BASE + (index << page_shift(s)))


@kernel
def fill_page(s: State, hva: Word, zero: bool) -> None:
    """Map the page of ``hva``: read-only to the zero page, or writable to a fresh frame.

    Mirrors the ends of ``do_anonymous_page`` and ``wp_page_copy``: a merged page's content is copied, the
    zero page has none.
    """
    s.count[HOST_FAULTS] += 1
    s.hpmd[giga_index(s, hva)] = ONE
    s.hpmd[block_index(s, hva)] = PMD_TABLE
    index = page_index(s, hva)
    if zero:
        s.hpte[index] = s.regs[R_ZERO_PAGE] | E_ZERO | E_READ | E_PRESENT
        return
    old = s.hpte[index]
    pa = fresh_page(s)
    if old & (E_ZERO | E_KSM) != ZERO:
        s.count[COPIES_ON_WRITE] += 1
    if old & E_KSM != ZERO:
        share_content(s, old & E_ADDRESS, pa)
    s.hpte[index] = pa | E_READ | E_WRITE | E_PRESENT


@kernel
def fill_huge(s: State, hva: Word, zero: bool) -> None:
    """Map the 2M of ``hva`` by one entry: the huge zero page (read-only) or a fresh huge page.

    Mirrors the ends of ``do_huge_pmd_anonymous_page`` and ``do_huge_zero_wp_pmd``.
    """
    s.count[HOST_FAULTS] += 1
    s.hpmd[giga_index(s, hva)] = ONE
    block = block_index(s, hva)
    if zero:
        s.hpmd[block] = s.regs[R_HUGE_ZERO] | E_ZERO | E_READ | E_HUGE | E_PRESENT
        return
    if s.hpmd[block] & E_ZERO != ZERO:
        s.count[COPIES_ON_WRITE] += 1
    s.hpmd[block] = fresh_huge(s) | E_READ | E_WRITE | E_HUGE | E_PRESENT


@kernel
def make_writable(s: State, hva: Word) -> None:
    """Let the entry of ``hva`` be written: its page belongs to this process alone (``wp_page_reuse``)."""
    s.count[HOST_FAULTS] += 1
    block = block_index(s, hva)
    if s.hpmd[block] & E_HUGE != ZERO:
        s.hpmd[block] |= E_WRITE
    else:
        page = page_index(s, hva)
        s.hpte[page] = (s.hpte[page] & E_NOT_MERGED) | E_WRITE


@kernel
def split_huge(s: State, hva: Word) -> None:
    """Replace the 2M leaf over ``hva``, if there is one, by 512 pages of the same frames.

    Mirrors ``split_huge_pmd_locked``. The idle flag, which belongs to the whole folio, is dropped.
    """
    block = block_index(s, hva)
    word = s.hpmd[block]
    if word & E_HUGE == ZERO:
        return
    word = word & E_NOT_HUGE & E_NOT_IDLE
    step = page_size(s)
    if word & E_ZERO == ZERO:
        word |= E_FOLIO
    else:
        word = (word & ~E_ADDRESS) | s.regs[R_ZERO_PAGE]
        step = ZERO
    first = block * pages_per_huge(s)
    for page in range(first, first + pages_per_huge(s)):
        s.hpte[page] = word
        word += step
    s.hpmd[block] = PMD_TABLE


@kernel
def forget_pages(s: State, first: int, last: int) -> None:
    """Drop the content of the pages that ``hpte[first:last]`` maps, and clear these words.

    That of a merged page stays: others may map its frame.
    """
    for page in range(first, last):
        word = s.hpte[page]
        if word != ZERO and word & (E_ZERO | E_KSM) == ZERO:
            drop_content(s, word & E_ADDRESS)
    s.hpte[first:last] = ZERO


@kernel
def zap(s: State, start: Word, end: Word, reclaim: bool) -> None:
    """Take away every page of [start, end). O(blocks + pages mapped).

    With ``reclaim``, the table of a block that lies wholly inside goes too (``PT_RECLAIM``: read, not
    seen). Mirrors ``unmap_page_range``.
    """
    here = start
    while here < end:
        block = block_index(s, here)
        stop = min((here & huge_mask(s)) + huge_size(s), end)
        word = s.hpmd[block]
        if word & E_HUGE != ZERO:
            if word & E_ZERO == ZERO:
                pa = word & E_ADDRESS
                for _ in range(pages_per_huge(s)):
                    drop_content(s, pa)
                    pa += page_size(s)
            s.hpmd[block] = ZERO
        elif word != ZERO:
            first = page_index(s, here)
            forget_pages(s, first, first + int(I64((stop - here) >> page_shift(s))))
            if reclaim and stop - here == huge_size(s):
                s.hpmd[block] = ZERO
        here = stop


@kernel
def free_tables(s: State, floor: Word, ceiling: Word) -> None:
    """Free the tables of every 2M and 1G that lies wholly in [floor, ceiling), where nothing is mapped.

    Mirrors ``free_pgd_range``.
    """
    first = (floor + huge_size(s) - ONE) & huge_mask(s)
    last = ceiling & huge_mask(s)
    if first < last:
        s.hpmd[block_index(s, first) : block_index(s, last)] = ZERO
    first = (floor + giga_size(s) - ONE) & giga_mask(s)
    last = ceiling & giga_mask(s)
    if first < last:
        s.hpmd[giga_index(s, first) : giga_index(s, last)] = ZERO


@inline
def access_word(word: Word, flags: Word) -> Word:
    """Leaf ``word`` with the access of a VMA with ``flags``; zero, merged, hugetlb pages stay read-only.

    A page on swap space has none until it comes back; one that was merged is read-only then, as it is not
    known to be exclusive.
    """
    if word == ZERO or word & E_SWAP != ZERO:
        return word
    word = word & E_NOT_ACCESS
    if flags & VM_ACCESS != ZERO:
        word |= E_READ
    if flags & (VM_WRITE | VM_HUGETLB) == VM_WRITE and word & (E_ZERO | E_KSM | E_MERGED) == ZERO:
        word |= E_WRITE
    return word


@kernel
def change_access(s: State, start: Word, end: Word, flags: Word) -> None:
    """Give every page of [start, end) the access that ``flags`` allow.

    Mirrors ``change_protection_range`` with ``MM_CP_TRY_CHANGE_WRITABLE``: pages that belong to this
    process alone become writable at once; all but the zero page and merged ones do here. hugetlb pages wait
    for the next write fault (``hugetlb_change_protection``: read, not seen).
    """
    here = start
    while here < end:
        block = block_index(s, here)
        stop = min((here & huge_mask(s)) + huge_size(s), end)
        word = s.hpmd[block]
        if word & E_HUGE != ZERO:
            s.hpmd[block] = access_word(word, flags)
        elif word != ZERO:
            first = page_index(s, here)
            for page in range(first, first + I64((stop - here) >> page_shift(s))):
                s.hpte[page] = access_word(s.hpte[page], flags)
        here = stop


@kernel
def detach_table(s: State, hva: Word) -> None:
    """Take the table of a 2M block off: nothing in it translates until ``collapse``."""
    s.hpmd[block_index(s, hva)] = PMD_DETACHED


@kernel
def collapse(s: State, hva: Word, flags: Word) -> None:
    """Map the block whose table was detached by a fresh huge page that holds what its pages held.

    Mirrors the end of ``collapse_huge_page``; ``flags`` are the VMA's. The old frames are
    freed; absent and zero pages read as zeros.
    """
    pa = fresh_huge(s)
    block = block_index(s, hva)
    first = block * pages_per_huge(s)
    target = I64(data_frame(s, pa))
    for page in range(pages_per_huge(s)):
        old = s.hpte[first + page]
        if old != ZERO and old & E_ZERO == ZERO:
            source = I64(data_frame(s, old & E_ADDRESS))
            if old & E_KSM != ZERO:
                share_content(s, old & E_ADDRESS, pa + (U64(page) << page_shift(s)))
            else:
                s.content[target + page] = s.content[source]
                s.content[source] = ZERO
    s.hpte[first : first + pages_per_huge(s)] = ZERO
    s.hpmd[block] = access_word(pa | E_HUGE | E_PRESENT, flags)


@kernel
def set_idle(s: State, hva: Word, idle: bool) -> None:
    """Set or clear the page idle flag of the mapped page (or huge page) of ``hva``."""
    block = block_index(s, hva)
    flag = E_IDLE if idle else ZERO
    if s.hpmd[block] & E_HUGE != ZERO:
        s.hpmd[block] = (s.hpmd[block] & E_NOT_IDLE) | flag
    elif s.hpte[page_index(s, hva)] != ZERO:
        page = page_index(s, hva)
        s.hpte[page] = (s.hpte[page] & E_NOT_IDLE) | flag


@kernel
def is_idle(s: State, hva: Word) -> bool:
    """Whether the page idle flag of the page of ``hva`` is set."""
    if not in_region(s, hva):
        return False
    return bool(entry_at(s, hva) & E_IDLE != ZERO)


@inline
def page_of(s: State, hva: Word) -> Word:
    """First address of the page of ``hva``."""
    return hva & page_mask(s)
