"""Sizes of the host's pages: base page, PMD leaf, and what one page middle directory translates.

They follow the machine's granule, as ``PAGE_SHIFT``, ``PMD_SHIFT`` and ``PUD_SHIFT`` of arm64 kernels do:

========  ==========  ==========  ===========
granule   page        huge        giga
========  ==========  ==========  ===========
4K        4K          2M          1G
16K       16K         32M         64G
64K       64K         512M        4T
========  ==========  ==========  ===========

Docstrings of this room say 4K, 2M, 512 pages and 1G, as with the 4K granule.
"""

from __future__ import annotations

from shadowmmu.compiled import I64, U64, inline
from shadowmmu.host.layout import ONE, R_HUGETLB
from shadowmmu.machine.state import R_PAGE_SHIFT, R_STRIDE, State, Word


@inline
def page_shift(s: State) -> Word:
    """Address bits inside a base page."""
    return U64(s.regs[R_PAGE_SHIFT])


@inline
def huge_shift(s: State) -> Word:
    """Address bits inside a PMD leaf."""
    return U64(s.regs[R_PAGE_SHIFT] + s.regs[R_STRIDE])


@inline
def giga_shift(s: State) -> Word:
    """Address bits that one page middle directory translates."""
    return U64(s.regs[R_PAGE_SHIFT] + s.regs[R_STRIDE] + s.regs[R_STRIDE])


@inline
def page_size(s: State) -> Word:
    """Bytes of a base page."""
    return U64(ONE << page_shift(s))


@inline
def huge_size(s: State) -> Word:
    """Bytes of a PMD leaf: what THP makes."""
    return U64(ONE << huge_shift(s))


@inline
def giga_size(s: State) -> Word:
    """Bytes that one page middle directory translates."""
    return U64(ONE << giga_shift(s))


@inline
def page_mask(s: State) -> Word:
    """The bits of a page's address."""
    return U64(~(page_size(s) - ONE))


@inline
def huge_mask(s: State) -> Word:
    """The bits of a PMD leaf's address."""
    return U64(~(huge_size(s) - ONE))


@inline
def giga_mask(s: State) -> Word:
    """The bits of the address of what one page middle directory translates."""
    return U64(~(giga_size(s) - ONE))


@inline
def hugetlb_size(s: State) -> Word:
    """Bytes of a hugetlb page: a PMD or PUD leaf, or a contiguous run of PTEs or PMDs."""
    return U64(s.regs[R_HUGETLB])


@inline
def hugetlb_mask(s: State) -> Word:
    """The bits of a hugetlb page's address."""
    return U64(~(hugetlb_size(s) - ONE))


@inline
def pages_per_huge(s: State) -> int:
    """Base pages in a PMD leaf."""
    return int(I64(ONE << s.regs[R_STRIDE]))
