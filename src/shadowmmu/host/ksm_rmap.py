"""Where KSM looks for the mappings of a merged page: the addresses that were merged into it, stale ones too.

An address stays with the page it was merged into until ksmd comes by again, though meanwhile it may have been
written, and have another page. A merged page that is mapped once can go or move, and the walk over its
addresses, the last merged first, sends a notifier for each until it has found the page (``rmap_walk_ksm``,
Linux 7.3.4; seen on the rig). The second half of ``hpte`` says with which frame an address stays, as which
one in order, and what its anon_vma was.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.host.geometry import page_shift
from shadowmmu.host.layout import (
    E_ADDRESS,
    HVA_BASE,
    NO_ROWS,
    ONE,
    R_PAGES,
    V_ANON,
    V_START,
    ZERO,
)
from shadowmmu.host.tables import page_index
from shadowmmu.host.vma import find_vma, vma_count
from shadowmmu.machine.state import State

STAYS: Final = U64(1 << 63)
CHECKSUMMED: Final = U64(3)  # no bit of these: it is no checksum
ANON_SHIFT: Final = U64(48)
ANON_MASK: Final = U64(0x7FFF)
TURN_SHIFT: Final = U64(2)
TURN_MASK: Final = U64(0x3FF)
LATEST: Final = U64(1 << 10)


@inline
def memory_of(s: State, hva: Word) -> int:
    """Row of ``hpte`` with what KSM remembers of the page of ``hva``."""
    return len(s.hpte) // 2 + page_index(s, hva)


@inline
def stays_with(word: Word, pa: Word) -> bool:
    """Whether what KSM remembers of an address is that it was merged into the page at ``pa``."""
    return bool(word & STAYS != ZERO and word & CHECKSUMMED == ZERO and word & E_ADDRESS == pa)


@inline
def turn_of(word: Word) -> Word:
    """Which address of its page it is, from 1, in the order of merging."""
    return (word >> TURN_SHIFT) & TURN_MASK


@kernel
def anon_at(s: State, hva: Word) -> Word:
    """The anon_vma of the VMA at ``hva``, 0 if there is none."""
    count = vma_count(s)
    row = find_vma(s, NO_ROWS, count, hva)
    if row == count or s.vmas[row, V_START] > hva:
        return ZERO
    return U64(s.vmas[row, V_ANON] & ANON_MASK)


@kernel
def before(s: State, pa: Word, turn: Word) -> Word:
    """The address merged into the page at ``pa`` last before ``turn``, 0 if none. O(pages)."""
    half = len(s.hpte) // 2
    found = ZERO
    latest = ZERO
    for page in range(half, half + I64(s.regs[R_PAGES])):
        word = s.hpte[page]
        if stays_with(word, pa) and turn_of(word) < turn and turn_of(word) > latest:
            latest = turn_of(word)
            found = HVA_BASE + (U64(page - half) << page_shift(s))
    return U64(found)


@kernel
def stay(s: State, hva: Word, pa: Word) -> None:
    """The address ``hva`` was merged into the page at ``pa`` (``stable_tree_append``)."""
    turn = ONE
    last = before(s, pa, LATEST)
    if last != ZERO:
        turn = min(turn_of(s.hpte[memory_of(s, last)]) + ONE, TURN_MASK)
    s.hpte[memory_of(s, hva)] = STAYS | (anon_at(s, hva) << ANON_SHIFT) | pa | (turn << TURN_SHIFT)


@kernel
def stale_at(s: State, hva: Word) -> bool:
    """Whether the walk passes ``hva``: its VMA is still one of the anon_vma."""
    anon = (s.hpte[memory_of(s, hva)] >> ANON_SHIFT) & ANON_MASK
    return bool(anon != ZERO and anon_at(s, hva) == anon)


@kernel
def stay_with_moved(s: State, old: Word, new: Word) -> None:
    """The merged page at ``old`` moved to ``new`` with its addresses (``folio_migrate_ksm``). O(pages)."""
    half = len(s.hpte) // 2
    for page in range(half, half + I64(s.regs[R_PAGES])):
        word = s.hpte[page]
        if stays_with(word, old):
            s.hpte[page] = (word & ~E_ADDRESS) | new
