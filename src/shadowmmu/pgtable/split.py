"""Splitting blocks into pages before anything is written to them.

Mirrors Linux 7.3.4 ``kvm_pgtable_stage2_split`` (``stage2_split_walker``): a table of pages with the block's
permissions and the access flag takes the block's place, by break-before-make. A block of 1G becomes pages at
once where there are tables for all of it, else blocks of 2M first.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import entry_size, output_address, table_address
from shadowmmu.arch.stage2 import AF, TABLE, VALID
from shadowmmu.compiled import I64, U64, Word, kernel
from shadowmmu.machine.counters import DESCRIPTORS_WRITTEN
from shadowmmu.machine.frames import REFS, frame_of
from shadowmmu.machine.log import observe_leaf
from shadowmmu.machine.state import R_STRIDE, State
from shadowmmu.pgtable.attributes import find_entry, next_entry
from shadowmmu.pgtable.context import M_LEAVES, context_regime
from shadowmmu.pgtable.map import add_table, break_leaf

ZERO: Final = U64(0)
ONE: Final = U64(1)
THREE: Final = U64(3)


@kernel
def put_table(s: State, mmu: int, ipa: Word, word: Word, level: int, block: Word) -> None:
    """Put a table of what is one level below at ``word``, where ``level`` leaf ``block`` of ``ipa`` was."""
    r = context_regime(s, mmu)
    size = entry_size(r, level + 1)
    entries = ONE << s.regs[R_STRIDE]
    pa = output_address(r, block, level, ipa)
    leaf = (block - pa) | AF | (TABLE if level == 2 else ZERO)
    first = table_address(r, add_table(s, mmu, word, level + 1, ipa)) >> THREE
    for index in range(I64(entries)):
        s.mem[first + U64(index)] = leaf + pa + U64(index) * size
    s.frames[frame_of(s, first), REFS] += entries
    s.mmus[mmu, M_LEAVES] += entries
    s.count[DESCRIPTORS_WRITTEN] += I64(entries)


@kernel
def split_block(s: State, mmu: int, ipa: Word, word: Word, level: int, tables: Word) -> None:
    """Replace the ``level`` block at ``word``, which maps from ``ipa`` on, with ``tables`` tables at hand.

    Mirrors ``stage2_split_walker``: pages where the tables suffice for all of them, else the level below.
    """
    r = context_regime(s, mmu)
    block = s.mem[word]
    break_leaf(s, mmu, ipa, word, entry_size(r, level))
    put_table(s, mmu, ipa, word, level, block)
    entries = ONE << s.regs[R_STRIDE]
    if level == 1 and tables > entries:
        first = table_address(r, s.mem[word]) >> THREE
        s.mmus[mmu, M_LEAVES] -= entries
        s.frames[frame_of(s, first), REFS] -= entries
        for index in range(I64(entries)):
            at = first + U64(index)
            put_table(s, mmu, ipa + U64(index) * entry_size(r, 2), at, 2, s.mem[at])
    observe_leaf(s, mmu, ipa, level, block | AF)  # the pages translate as the block did


@kernel
def split_first(s: State, mmu: int, start: Word, end: Word, tables: Word) -> Word:
    """Split the first block in [start, end); where to go on, ``end`` if there is none. O(entries passed).

    Of a 1G that becomes blocks of 2M the first of them is split too.
    """
    r = context_regime(s, mmu)
    ipa = start
    while ipa < end:
        word, level = find_entry(s, mmu, ipa)
        after = next_entry(r, ipa, 2 if level == 3 else level)  # of a table of pages, past all of it
        if level < 3 and s.mem[word] & VALID != ZERO and s.mem[word] & TABLE == ZERO:
            split_block(s, mmu, after - entry_size(r, level), word, level, tables)
            if level == 2:
                return after if after < end else end
            tables -= ONE
        else:
            ipa = after
    return end
