"""KSM: ksmd goes over the mergeable memory and lets pages that hold the same share one frame.

Mirrors ``mm/ksm.c`` of Linux 7.3.4, ``smart_scan`` off: a scan asks of each page whether it changed since
the scan before, then looks for a merged page, then for another page of this scan, with the same contents.
The trees are searches over the page table here: only whether two pages are equal matters, never their order.
Seen on the rig: two notifiers of a page for each that is merged into another's frame (write protection, then
replacement), one for the page whose frame it becomes.

What is remembered of each page stands in the second half of ``hpte``: 0 is nothing, else a checksum with
``SEEN``, and ``CANDIDATE`` while it stands in the unstable tree; or into which page it was merged
(``ksm_rmap``).
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, kernel
from shadowmmu.host.cutting import put_folio
from shadowmmu.host.folio import frame_words, holds_zeros, in_large_folio, same_content, sharers
from shadowmmu.host.geometry import huge_mask, huge_size, page_shift, page_size
from shadowmmu.host.ksm_rmap import memory_of, stay
from shadowmmu.host.layout import (
    E_ADDRESS,
    E_HUGE,
    E_KSM,
    E_PRESENT,
    E_ZERO,
    HVA_BASE,
    NO_ROWS,
    ONE,
    R_CONTENTS,
    R_MERGE_SCAN,
    R_PAGES,
    R_RESUME,
    V_FLAGS,
    V_START,
    VM_MERGEABLE,
    ZERO,
)
from shadowmmu.host.steps import FILL_PAGE, MERGE, SPLIT_FOLIO, put, put_end, put_start
from shadowmmu.host.tables import entry_at
from shadowmmu.host.vma import find_vma, vma_count
from shadowmmu.machine.frames import data_frame
from shadowmmu.machine.state import State

KSM_SCANS: Final = U64(4)
"""Scans of the rig's ``ksm``: checksums, merging, what a split left over, one that finds nothing."""
MAX_SHARING: Final = 256
"""Mappings of one merged page at most (``max_page_sharing``)."""

CANDIDATE: Final = U64(1)
SEEN: Final = U64(2)
CHECKSUM: Final = U64(~U64(3))
TURN: Final = U64(7)
TURN_BACK: Final = U64(57)


@kernel
def frame_at(s: State, hva: Word) -> Word:
    """Address of the data page mapped at page ``hva``, also inside a huge page."""
    word = entry_at(s, hva)
    pa = word & E_ADDRESS
    if word & E_HUGE != ZERO:
        pa += hva & (huge_size(s) - page_size(s))
    return U64(pa)


@kernel
def checksum(s: State, pa: Word) -> Word:
    """A checksum of a data page, with ``SEEN`` set (``calc_checksum``)."""
    holder = s.content[data_frame(s, pa)]
    total = ZERO
    if holder != ZERO:
        words = frame_words(s)
        first = I64(holder) * words
        for word in range(first, first + words):
            total = (total << TURN | total >> TURN_BACK) ^ s.mem[word]
    return U64((total & CHECKSUM) | SEEN)


@kernel
def mergeable_at(s: State, hva: Word) -> bool:
    """Whether ksmd would look at page ``hva``: an anonymous page in mergeable memory."""
    word = entry_at(s, hva)
    if word & E_PRESENT == ZERO or word & E_ZERO != ZERO:
        return False
    count = vma_count(s)
    row = find_vma(s, NO_ROWS, count, hva)
    return bool(row < count and s.vmas[row, V_START] <= hva and s.vmas[row, V_FLAGS] & VM_MERGEABLE != ZERO)


@kernel
def merged_like(s: State, pa: Word) -> Word:
    """Address of a merged page with the contents of ``pa`` that may be shared once more, 0 if none.

    Mirrors ``stable_tree_search``. O(pages).
    """
    for page in range(I64(s.regs[R_PAGES])):
        word = s.hpte[page]
        if word & E_KSM == ZERO or not same_content(s, word & E_ADDRESS, pa):
            continue
        if sharers(s, word & E_ADDRESS) < MAX_SHARING:
            return HVA_BASE + (U64(page) << page_shift(s))
    return ZERO


@kernel
def candidate_like(s: State, pa: Word) -> Word:
    """Address of a page met before in this scan with the contents of ``pa``, 0 if none.

    Mirrors ``unstable_tree_search_insert``. O(pages).
    """
    half = len(s.hpte) // 2
    for page in range(I64(s.regs[R_PAGES])):
        if s.hpte[half + page] & CANDIDATE != ZERO:
            hva = HVA_BASE + (U64(page) << page_shift(s))
            if mergeable_at(s, hva) and same_content(s, frame_at(s, hva), pa):
                return hva
    return ZERO


@kernel
def put_merge(s: State, rows: int, hva: Word, into: Word) -> int:
    """Merge the page of ``hva``, alone in its folio, into that of ``into`` (itself: others may share it).

    The first notifier is the write protection's, the second the replacement's. What is remembered of it is
    lost: the kernel keeps the checksum where a merged page has its index (seen on the rig). Mirrors
    ``try_to_merge_one_page``.
    """
    s.hpte[memory_of(s, hva)] = ZERO
    end = hva + page_size(s)
    rows = put_start(s, rows, hva, end)
    if hva == into:
        rows = put(s, rows, MERGE, hva, hva, ZERO)
    rows = put_end(s, rows, hva, end)
    if hva != into:
        stay(s, hva, frame_at(s, into))
        rows = put_start(s, rows, hva, end)
        rows = put(s, rows, MERGE, hva, into, ZERO)
        rows = put_end(s, rows, hva, end)
    return rows


@kernel
def put_protect_in_vain(s: State, rows: int, hva: Word) -> int:
    """The notifier of a write protection that finds the page gone: its huge page's split left a zero page."""
    return put_end(s, put_start(s, rows, hva, hva + page_size(s)), hva, hva + page_size(s))


@kernel
def put_break_cow(s: State, rows: int, hva: Word) -> int:
    """The merged page that nobody came to share becomes the process's own again (``break_cow``)."""
    rows = put_start(s, rows, hva, hva + page_size(s))
    rows = put(s, rows, FILL_PAGE, hva, ZERO, ZERO)
    return put_end(s, rows, hva, hva + page_size(s))


@kernel
def put_merge_two(s: State, hva: Word, other: Word) -> int:
    """Plan letting two pages share the frame of the first: huge pages around them are split before.

    Two pages of one huge page only split it: while both are held, it cannot be split, and afterwards nobody
    tries again. Mirrors ``try_to_merge_two_pages`` and the end of ``cmp_and_merge_page``.
    """
    rows = NO_ROWS
    first_large = in_large_folio(s, hva)
    other_large = in_large_folio(s, other)
    if first_large and other_large and hva & huge_mask(s) == other & huge_mask(s):
        return put_folio(s, rows, hva, SPLIT_FOLIO)
    zeros = holds_zeros(s, frame_at(s, hva))
    if first_large:
        rows = put_folio(s, rows, hva, SPLIT_FOLIO)
        if zeros:
            return put_protect_in_vain(s, rows, hva)
    rows = put_merge(s, rows, hva, hva)
    if other_large:
        rows = put_folio(s, rows, other, SPLIT_FOLIO)
        if zeros:
            return put_break_cow(s, put_protect_in_vain(s, rows, other), hva)
    rows = put_merge(s, rows, other, hva)
    stay(s, hva, frame_at(s, hva))
    return rows


@kernel
def plan_page(s: State, hva: Word) -> int:
    """Plan what ksmd does with the anonymous page ``hva`` (``cmp_and_merge_page``)."""
    word = entry_at(s, hva)
    if word & E_KSM != ZERO:
        return 0
    remembered = memory_of(s, hva)
    pa = frame_at(s, hva)
    total = checksum(s, pa)
    if s.hpte[remembered] & ~CANDIDATE != total:
        s.hpte[remembered] = total
        return 0
    merged = merged_like(s, pa)
    if merged != ZERO:
        if not in_large_folio(s, hva):
            return put_merge(s, NO_ROWS, hva, merged)
        rows = put_folio(s, NO_ROWS, hva, SPLIT_FOLIO)
        if holds_zeros(s, pa):
            return put_protect_in_vain(s, rows, hva)
        return put_merge(s, rows, hva, merged)
    other = candidate_like(s, pa)
    if other != ZERO:
        return put_merge_two(s, hva, other)
    s.hpte[remembered] |= CANDIDATE
    return 0


@kernel
def begin_scan(s: State) -> None:
    """Empty the unstable tree."""
    half = len(s.hpte) // 2
    for page in range(half, half + I64(s.regs[R_PAGES])):
        s.hpte[page] &= ~CANDIDATE


@kernel
def plan_ksm(s: State, hva: Word) -> int:
    """Plan ksmd's next change at ``hva`` or behind: rows, 0 at the end of a scan.

    ``regs[R_RESUME]`` is where to go on, 0 after ``KSM_SCANS`` scans; ``regs[R_MERGE_SCAN]`` counts them, and
    has to be 0 before. Nothing where contents are not kept. O(pages squared) a scan.
    """
    s.regs[R_RESUME] = ZERO
    if s.regs[R_CONTENTS] == ZERO:
        return 0
    if hva == HVA_BASE:
        begin_scan(s)
    rows = 0
    here = hva
    end = HVA_BASE + (s.regs[R_PAGES] << page_shift(s))
    while here < end and rows == 0:
        if mergeable_at(s, here):
            rows = plan_page(s, here)
        else:
            s.hpte[memory_of(s, here)] = ZERO
        here += page_size(s)
    if here < end:
        s.regs[R_RESUME] = here
        return rows
    s.regs[R_MERGE_SCAN] += ONE
    if s.regs[R_MERGE_SCAN] < KSM_SCANS:
        s.regs[R_RESUME] = HVA_BASE
    else:
        s.regs[R_MERGE_SCAN] = ZERO
    return rows
