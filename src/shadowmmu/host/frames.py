"""Giving mapped pages other frames: what migration and merging do to page tables and to contents.

A huge page whose leaf was split stays one folio: its pages carry ``E_FOLIO`` and move together.
"""

from __future__ import annotations

from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.host.geometry import page_shift, page_size, pages_per_huge
from shadowmmu.host.ksm_rmap import stay_with_moved
from shadowmmu.host.layout import E_ADDRESS, E_FOLIO, E_HUGE, E_KSM, E_LEAVING, E_WRITE, ZERO
from shadowmmu.host.tables import block_index, fresh_huge, fresh_page, page_index
from shadowmmu.machine.frames import data_frame, drop_content
from shadowmmu.machine.state import State


@inline
def readdressed(word: Word, pa: Word) -> Word:
    """Leaf ``word`` with another frame."""
    return (word & ~E_ADDRESS) | pa


@kernel
def move_content(s: State, source: Word, target: Word) -> None:
    """The page at data address ``target`` holds what the one at ``source`` held, which holds nothing."""
    old = I64(data_frame(s, source))
    s.content[I64(data_frame(s, target))] = s.content[old]
    s.content[old] = ZERO


@kernel
def move_huge(s: State, block: int) -> None:
    """New frames for the huge page that the leaf of ``block`` maps."""
    word = s.hpmd[block]
    source = word & E_ADDRESS
    target = fresh_huge(s)
    s.hpmd[block] = readdressed(word, target)
    for _ in range(pages_per_huge(s)):
        move_content(s, source, target)
        source += page_size(s)
        target += page_size(s)


@kernel
def move_split(s: State, block: int) -> None:
    """New frames, side by side, for the huge page in ``block`` whose leaf was split; all of it is mapped."""
    base = fresh_huge(s)
    for page in range(pages_per_huge(s)):
        word = s.hpte[block * pages_per_huge(s) + page]
        target = base + (U64(page) << page_shift(s))
        move_content(s, word & E_ADDRESS, target)
        s.hpte[block * pages_per_huge(s) + page] = readdressed(word, target)


@kernel
def move(s: State, hva: Word) -> None:
    """New frames for the folio mapped at ``hva``. Mirrors ``migrate_folio`` between its two rmap walks."""
    block = block_index(s, hva)
    if s.hpmd[block] & E_HUGE != ZERO:
        move_huge(s, block)
        return
    page = page_index(s, hva)
    word = s.hpte[page]
    if word & E_FOLIO != ZERO:
        move_split(s, block)
        return
    target = fresh_page(s)
    if word & E_KSM != ZERO:
        stay_with_moved(s, word & E_ADDRESS, target)
    move_content(s, word & E_ADDRESS, target)
    s.hpte[page] = readdressed(word, target) & ~E_LEAVING


@kernel
def merge(s: State, hva: Word, into: Word) -> None:
    """Map the page of ``hva`` read-only to the frame of the page of ``into``, which holds the same.

    With both the same, that page itself becomes one that others may share (``write_protect_page``). Mirrors
    ``replace_page``.
    """
    page = page_index(s, hva)
    word = s.hpte[page]
    pa = s.hpte[page_index(s, into)] & E_ADDRESS
    if pa != word & E_ADDRESS:
        drop_content(s, word & E_ADDRESS)
    s.hpte[page] = (readdressed(word, pa) | E_KSM) & ~E_WRITE
