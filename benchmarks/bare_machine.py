"""A machine for benchmarks of ``reverse_table``: stage-2 tables and the record, no host, no L1, no judge."""

from __future__ import annotations

import numpy as np

from shadowmmu.compiled import I64, U64, Words, kernel, prefetch
from shadowmmu.designs.dispatch import design_init
from shadowmmu.designs.interface import REVERSE_TABLE
from shadowmmu.designs.reverse_ahead import reverse_ahead, reverse_near
from shadowmmu.designs.reverse_nodes import RT_FLUSH_START
from shadowmmu.designs.reverse_table import reverse_record, reverse_unlink, reverse_unmap
from shadowmmu.machine.state import (
    R_FWB,
    R_NEXT_FRAME,
    R_PA_BITS,
    R_PAGE_SHIFT,
    R_STRIDE,
    R_TLBIRANGE,
    REGISTERS,
    State,
    empty_counters,
)
from shadowmmu.pgtable.context import M_VTTBR, MMU_COLUMNS, R_SHADOWS, init_context
from shadowmmu.pgtable.map import stage2_map

PAGE = 12
PAGE_SHIFT = U64(PAGE)
DATA = U64(1 << 36)
PROT = U64(0xD)
IPA_BITS = 40
NO_ADDRESS = U64(60)


@kernel
def start_bare(s: State, mmus: int, design: int, bits: int) -> None:
    """Empty contexts and an empty record."""
    for mmu in range(mmus + 1):
        init_context(s, mmu, I64(40) if mmu == 0 else bits)
        s.mmus[mmu, M_VTTBR] = U64(mmu) << U64(48)
    design_init(s, design)


def bare_machine(tables: int, record_words: int, mmus: int, bits: int = IPA_BITS) -> State:
    """A machine with room for ``tables`` table frames and a record of ``record_words`` words, all touched.

    Shadow MMUs have ``bits`` of input, the canonical one 40.
    """

    def words(*shape: int) -> Words:
        array = np.empty(shape, np.uint64)
        array.fill(0)  # touched: page faults are not what is timed
        return array

    none = words(1)
    rows = words(1, 8)
    frames = tables + 40 * (mmus + 1)
    state = State(
        mem=words(frames * 512),
        frames=words(frames, 4),
        free=words(frames),
        content=none,
        regs=words(REGISTERS),
        count=empty_counters(),
        log=rows,
        mmus=words(mmus + 1, MMU_COLUMNS),
        vcpus=rows,
        slots=rows,
        vmas=rows,
        hpte=none,
        hpmd=none,
        plan=rows,
        dirty=none,
        rmap=words(record_words),
        side=words(frames * 512),
        ghost=none,
        graves=none,
    )
    for register, value in ((R_PAGE_SHIFT, PAGE), (R_STRIDE, 9), (R_NEXT_FRAME, 1), (R_PA_BITS, 48)):
        state.regs[register] = value
    state.regs[R_TLBIRANGE] = 1
    state.regs[R_FWB] = 1
    state.regs[R_SHADOWS] = mmus
    start_bare(state, mmus, REVERSE_TABLE, bits)
    return state


@kernel
def map_pages(s: State, mmu: int, nested: Words, words: Words) -> None:
    """Map page ``nested[i]`` and note the word of its leaf."""
    for i in range(len(nested)):
        ipa = nested[i] << PAGE_SHIFT
        words[i] = stage2_map(s, mmu, ipa, I64(3), DATA + ipa, PROT)


@kernel
def record_pages(s: State, mmu: int, canonical: Words, words: Words, ahead: int) -> None:
    """Record each leaf. With ``ahead``, what the leaf so many later will need is fetched meanwhile."""
    for i in range(len(words)):
        if ahead != 0 and i + ahead < len(words):
            reverse_ahead(s, canonical[i + ahead] << PAGE_SHIFT)
            prefetch(s.side, words[i + ahead])
        reverse_record(s, mmu, canonical[i] << PAGE_SHIFT, I64(3), words[i])


@kernel
def unmap_pages(s: State, starts: Words, pages: int, ahead: int) -> int:
    """A notifier for each range. With ``ahead``, what the next ones will need is fetched meanwhile."""
    removed = 0
    for i in range(len(starts)):
        if ahead != 0:
            if i + 2 * ahead < len(starts):
                reverse_ahead(s, starts[i + 2 * ahead] << PAGE_SHIFT)
            if i + ahead < len(starts):
                reverse_near(s, starts[i + ahead] << PAGE_SHIFT)
        first = starts[i] << PAGE_SHIFT
        removed += reverse_unmap(s, first, first + (U64(pages) << PAGE_SHIFT), False)
    return removed


@kernel
def unmap_in_turn(s: State, starts: Words) -> int:
    """A notifier of a page for each, that cannot begin before the one before has found its leaf."""
    removed = 0
    for i in range(len(starts)):
        waits = (
            s.rmap[RT_FLUSH_START] >> NO_ADDRESS
        )  # 0, which the processor learns from the descriptor's table
        first = (starts[i] ^ waits) << PAGE_SHIFT
        removed += reverse_unmap(s, first, first + (U64(1) << PAGE_SHIFT), False)
    return removed


@kernel
def unlink_words(s: State, words: Words) -> None:
    """Take each leaf off the record by its descriptor, as a TLBI does."""
    for i in range(len(words)):
        reverse_unlink(s, words[i])
