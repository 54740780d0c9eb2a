"""Swap space: pages that go there and come back.

The word of a page on swap space says the fresh frame in which it will come back; its content is there
already, so that the frame it left holds nothing. The RAM disk of the rig is synchronous: a page that was
written out is freed at once and is never found in the swap cache (Linux 7.3.4, seen on the rig).
"""

from __future__ import annotations

from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.host.frames import move_content
from shadowmmu.host.geometry import page_shift, pages_per_huge
from shadowmmu.host.layout import (
    E_ADDRESS,
    E_FOLIO,
    E_KSM,
    E_MERGED,
    E_NOT_MERGED,
    E_NOT_SWAP,
    E_PRESENT,
    E_SWAP,
    E_WRITE,
    HVA_BASE,
    NO_ROWS,
    ONE,
    R_PAGES,
    R_SWAP,
    V_FLAGS,
    ZERO,
)
from shadowmmu.host.tables import access_word, block_index, fresh_page, page_index, split_huge
from shadowmmu.host.vma import find_vma, vma_count
from shadowmmu.machine.counters import HOST_FAULTS
from shadowmmu.machine.state import State


@inline
def swapped_out(word: Word) -> bool:
    """Whether the leaf ``word`` is that of a page on swap space."""
    return bool(word & E_SWAP != ZERO)


@kernel
def swap_out_page(s: State, page: int) -> None:
    """The page of row ``page`` of ``hpte`` goes to swap space."""
    word = s.hpte[page]
    slot = fresh_page(s)
    move_content(s, word & E_ADDRESS, slot)
    s.hpte[page] = slot | E_SWAP | (E_MERGED if word & (E_KSM | E_MERGED) != ZERO else ZERO)


@kernel
def swap_out(s: State, hva: Word) -> None:
    """The folio of ``hva``, a page or a huge page all of which is mapped, goes to swap space.

    Mirrors ``try_to_unmap_one``: each page of a huge page has a swap entry of its own.
    """
    split_huge(s, hva)
    page = page_index(s, hva)
    if s.hpte[page] & E_FOLIO == ZERO:
        swap_out_page(s, page)
        return
    first = block_index(s, hva) * pages_per_huge(s)
    for each in range(first, first + pages_per_huge(s)):
        swap_out_page(s, each)


@kernel
def swap_in(s: State, hva: Word, flags: Word, write: bool) -> None:
    """The page of ``hva`` comes back, alone, with the access of the VMA's ``flags`` (``do_swap_page``)."""
    s.count[HOST_FAULTS] += 1
    page = page_index(s, hva)
    word = s.hpte[page] & E_NOT_SWAP
    if write:
        word &= E_NOT_MERGED
    s.hpte[page] = access_word(word | E_PRESENT, flags)


@kernel
def set_swap(s: State, on: bool) -> None:
    """There is swap space; or it goes, and every page on it comes back read-only (``unuse_pte``).

    No notifier. O(pages). Nothing where it is so already.
    """
    was = s.regs[R_SWAP]
    s.regs[R_SWAP] = ONE if on else ZERO
    if on or was == ZERO:
        return
    count = vma_count(s)
    for page in range(I64(s.regs[R_PAGES])):
        word = s.hpte[page]
        if word & E_SWAP != ZERO:
            row = find_vma(s, NO_ROWS, count, HVA_BASE + (U64(page) << page_shift(s)))
            word = access_word((word & E_NOT_SWAP) | E_PRESENT, s.vmas[row, V_FLAGS])
            s.hpte[page] = word & ~E_WRITE
