"""A look ahead: the entry of an address that a batch will come to is fetched before its turn.

A walk ends in a word that is in no cache where tables are large. Whoever knows the next addresses, as a loop
over events does, asks for their words while it works on the present one; the misses then overlap however
many instructions lie between. Nothing is counted and nothing changes.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import level_shift, table_address
from shadowmmu.arch.stage2 import TABLE_TYPE
from shadowmmu.compiled import U64, Word, kernel, prefetch
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import context_regime, root_word

AHEAD: Final = 12
"""How many events a loop looks ahead: enough for the misses of as many as a processor has under way."""
ONE: Final = U64(1)
THREE: Final = U64(3)


@kernel
def entry_ahead(s: State, mmu: int, ipa: Word) -> None:
    """Start fetching the last descriptor on the way to ``ipa``, and ``side`` of it. O(levels)."""
    r = context_regime(s, mmu)
    level = r.start_level
    shift = U64(level_shift(r, level))
    stride = U64(r.stride)
    index_mask = (ONE << stride) - ONE
    word = root_word(s, mmu) + (ipa >> shift)
    while level < 3:
        descriptor = s.mem[word]
        if descriptor & TABLE_TYPE != TABLE_TYPE:
            return
        level += 1
        shift -= stride
        word = (table_address(r, descriptor) >> THREE) + ((ipa >> shift) & index_mask)
    prefetch(s.mem, word)
    prefetch(s.side, word)
