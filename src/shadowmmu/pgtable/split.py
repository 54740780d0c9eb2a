"""Splitting blocks into pages before anything is written to them.

Mirrors Linux 7.3.4 ``kvm_pgtable_stage2_split`` (``stage2_split_walker``): a table of pages with the block's
permissions and the access flag takes the block's place, by break-before-make. Blocks of level 2 only: no host
here has larger ones.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import output_address
from shadowmmu.arch.stage2 import AF, TABLE, TABLE_TYPE, VALID
from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.machine.counters import DESCRIPTORS_WRITTEN
from shadowmmu.machine.frames import REFS, frame_of
from shadowmmu.machine.log import observe_leaf
from shadowmmu.machine.state import R_PAGE_SHIFT, R_STRIDE, State
from shadowmmu.pgtable.attributes import find_entry, next_entry
from shadowmmu.pgtable.context import M_LEAVES, context_regime
from shadowmmu.pgtable.map import add_table, break_leaf

ZERO: Final = U64(0)
ONE: Final = U64(1)
THREE: Final = U64(3)


@inline
def split_block(s: State, mmu: int, ipa: Word, word: Word) -> None:
    """Replace the level-2 block at ``word``, which maps ``ipa``, by a table of its pages."""
    r = context_regime(s, mmu)
    block = s.mem[word]
    page = ONE << s.regs[R_PAGE_SHIFT]
    pages = ONE << s.regs[R_STRIDE]
    pa = output_address(r, block, 2, ipa)
    leaf = (block - pa) | AF | TABLE_TYPE
    break_leaf(s, mmu, ipa, word, page << s.regs[R_STRIDE])
    table = add_table(s, mmu, word, 3, ipa)
    first = (table & ~(page - ONE)) >> THREE
    for index in range(I64(pages)):
        s.mem[first + U64(index)] = leaf + pa + U64(index) * page
    s.frames[frame_of(s, first), REFS] += pages
    s.mmus[mmu, M_LEAVES] += pages
    s.count[DESCRIPTORS_WRITTEN] += I64(pages)
    observe_leaf(s, mmu, ipa, 2, block | AF)  # the pages translate as the block did


@kernel
def split_first(s: State, mmu: int, start: Word, end: Word) -> Word:
    """Split the first block in [start, end); where to go on, ``end`` if there is none. O(entries passed)."""
    r = context_regime(s, mmu)
    ipa = start
    while ipa < end:
        word, level = find_entry(s, mmu, ipa)
        if level == 3:
            level = 2  # a table of pages: past all of it
        elif level == 2 and s.mem[word] & VALID != ZERO and s.mem[word] & TABLE == ZERO:
            after = next_entry(r, ipa, 2)
            split_block(s, mmu, after - (ONE << (s.regs[R_PAGE_SHIFT] + s.regs[R_STRIDE])), word)
            return after if after < end else end
        ipa = next_entry(r, ipa, level)
    return end
