"""Eager page splitting: the canonical table's blocks of a range that is about to be logged become pages.

Mirrors ``kvm_mmu_split_huge_pages`` of Linux 7.3.4 (``mmu.c``). Shadow tables are not split: their blocks are
write-protected as they are, and go when L2 writes to them.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import entry_size
from shadowmmu.compiled import U64, Word, inline, kernel
from shadowmmu.kvm.layout import K_SPLIT_CACHE, K_SPLIT_CHUNK, ONE, ZERO
from shadowmmu.machine.calls import mmu_lock_write, mmu_unlock_write
from shadowmmu.machine.counters import TABLES_ALLOCATED
from shadowmmu.machine.log import SPLIT, observe
from shadowmmu.machine.state import R_STRIDE, State
from shadowmmu.pgtable.context import CANONICAL, context_regime
from shadowmmu.pgtable.split import split_first

STRIDE_OF_4K: Final = U64(9)


@inline
def splits(s: State) -> bool:
    """Whether the VMM asked for eager splitting."""
    return s.regs[K_SPLIT_CHUNK] != ZERO


@inline
def tables_of_chunk(s: State) -> Word:
    """Tables that a chunk may take: one a block, and with pages of 4K one a 1G that holds them.

    Mirrors ``kvm_mmu_split_nr_page_tables``.
    """
    r = context_regime(s, CANONICAL)
    chunk = s.regs[K_SPLIT_CHUNK] - ONE
    tables = chunk // entry_size(r, 2) + ONE
    if s.regs[R_STRIDE] == STRIDE_OF_4K:
        tables += chunk // entry_size(r, 1) + ONE
    return tables


@kernel
def begin_chunk(s: State, at: Word, end: Word) -> None:
    """The lock is given away to fetch tables where too few are left, before each chunk."""
    if s.regs[K_SPLIT_CACHE] < tables_of_chunk(s):
        mmu_unlock_write(s)
        s.regs[K_SPLIT_CACHE] = tables_of_chunk(s)
        mmu_lock_write(s)
    observe(s, SPLIT, at, chunk_end(s, at, end) - at, ZERO, ZERO, ZERO)


@inline
def chunk_end(s: State, at: Word, end: Word) -> Word:
    """Where the chunk that holds ``at`` ends (``__stage2_range_addr_end``)."""
    chunk = s.regs[K_SPLIT_CHUNK]
    after = (at + chunk) & ~(chunk - ONE)
    return after if after < end else end


@kernel
def split_on(s: State, start: Word, at: Word, end: Word) -> Word:
    """Split one block of [start, end) at most, from ``at`` on and in its chunk; where to go on.

    A block of 1G takes ``tables_of_chunk`` tables in one step.
    """
    if at == start or at & (s.regs[K_SPLIT_CHUNK] - ONE) == ZERO:
        begin_chunk(s, at, end)
    tables = s.count[TABLES_ALLOCATED]
    after = split_first(s, CANONICAL, at, chunk_end(s, at, end), s.regs[K_SPLIT_CACHE])
    s.regs[K_SPLIT_CACHE] -= U64(s.count[TABLES_ALLOCATED] - tables)
    return after


@kernel
def split_range(s: State, start: Word, end: Word) -> None:
    """Split every block of canonical [start, end). The caller holds mmu_lock for write."""
    at = start
    while at < end:
        at = split_on(s, start, at, end)
