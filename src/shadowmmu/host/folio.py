"""Folios of more than a page: new frames for one, or its split into pages of their own; and pages of zeros.

Mirrors ``split_huge_page`` and ``try_to_map_unused_to_zeropage`` of Linux 7.3.4 (``huge_memory.c``,
``migrate.c``).
"""

from __future__ import annotations

from shadowmmu.compiled import I64, Word, inline, kernel
from shadowmmu.host.geometry import pages_per_huge
from shadowmmu.host.layout import (
    E_ADDRESS,
    E_FOLIO,
    E_HUGE,
    E_KSM,
    E_LEAVING,
    E_PRESENT,
    E_READ,
    E_ZERO,
    ONE,
    R_PAGES,
    R_ZERO_PAGE,
    ZERO,
)
from shadowmmu.host.tables import block_index, page_index, split_huge
from shadowmmu.machine.frames import data_frame, drop_content
from shadowmmu.machine.state import R_PAGE_SHIFT, State


@inline
def frame_words(s: State) -> int:
    """Words of 8 bytes in a page."""
    return int(I64(ONE << s.regs[R_PAGE_SHIFT])) >> 3


@kernel
def holds_zeros(s: State, pa: Word) -> bool:
    """Whether the data page at ``pa`` is all zeros."""
    holder = s.content[data_frame(s, pa)]
    if holder == ZERO:
        return True
    words = frame_words(s)
    at = I64(holder) * words
    last = at + words
    while at < last and s.mem[at] == ZERO:
        at += 1
    return bool(at == last)


@kernel
def same_content(s: State, one: Word, other: Word) -> bool:
    """Whether the data pages at ``one`` and ``other`` hold the same words (``memcmp_pages``)."""
    first = s.content[data_frame(s, one)]
    second = s.content[data_frame(s, other)]
    if first == second:
        return True
    if first == ZERO:
        return holds_zeros(s, other)
    if second == ZERO:
        return holds_zeros(s, one)
    words = frame_words(s)
    at = I64(first) * words
    last = at + words
    other_at = I64(second) * words
    while at < last and s.mem[at] == s.mem[other_at]:
        at += 1
        other_at += 1
    return bool(at == last)


@kernel
def sharers(s: State, pa: Word) -> int:
    """Mappings of the merged page at ``pa``. O(pages)."""
    found = 0
    for page in range(I64(s.regs[R_PAGES])):
        word = s.hpte[page]
        if word & E_KSM != ZERO and word & E_ADDRESS == pa:
            found += 1
    return found


@kernel
def in_large_folio(s: State, hva: Word) -> bool:
    """Whether ``hva`` is mapped to a page of a huge page: by a 2M leaf, or by one of its 512 pages."""
    block = block_index(s, hva)
    if s.hpmd[block] & E_HUGE != ZERO:
        return bool(s.hpmd[block] & E_ZERO == ZERO)
    return bool(s.hpte[page_index(s, hva)] & E_FOLIO != ZERO)


@kernel
def fully_mapped(s: State, block: Word) -> bool:
    """Whether all pages of the huge page in ``block`` are mapped (``folio_test_partially_mapped``: not)."""
    if s.hpmd[block_index(s, block)] & E_HUGE != ZERO:
        return True
    first = page_index(s, block)
    page = first
    while page < first + pages_per_huge(s) and s.hpte[page] & E_FOLIO != ZERO:
        page += 1
    return bool(page == first + pages_per_huge(s))


@kernel
def split_folio(s: State, hva: Word, leaving: bool) -> None:
    """Split the huge page around ``hva``; its pages of zeros go, and the zero page is mapped instead.

    ``leaving``: the others are to move next.
    """
    split_huge(s, hva)
    first = block_index(s, hva) * pages_per_huge(s)
    for page in range(first, first + pages_per_huge(s)):
        word = s.hpte[page]
        if word & E_FOLIO == ZERO:
            continue
        pa = word & E_ADDRESS
        if holds_zeros(s, pa):
            drop_content(s, pa)
            s.hpte[page] = s.regs[R_ZERO_PAGE] | E_ZERO | E_PRESENT | (word & E_READ)
        else:
            s.hpte[page] = (word & ~E_FOLIO) | (E_LEAVING if leaving else ZERO)
