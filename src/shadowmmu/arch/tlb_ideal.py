"""The TLB that keeps all it may: every translation ever filled, until a TLBI must remove it.

It is the adversary for staleness: a later access may use *any* entry a lookup returns, so what no
lookup returns is certainly gone. Entries for the same input coexist; the same entry is kept once.

Rows are packed in the order of their first fill and chained by a hash of size and first address. A
fill costs the length of one chain, a lookup one chain for each entry size in use, a TLBI the number of
entries.

>>> from shadowmmu.arch import fault
>>> from shadowmmu.arch.tlb import entry
>>> from shadowmmu.arch.tlbi_scope import BOTH, issuer, scope_of
>>> tlb = ideal_tlb()
>>> page = entry(BOTH, vmid=3, stage1=(12, 3), stage2=(12, 3), input=0x1000, output=0x8000, asid=7)
>>> int(ideal_fill(tlb, page, fault.NONE))
0
>>> int(ideal_invalidate(tlb, scope_of("VAE1IS", 7 << 48 | 1, issuer(vttbr=3 << 48))))
1
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from shadowmmu.arch.tlb import (
    COLUMNS,
    LARGEST_SHIFT,
    SMALLEST_SHIFT,
    T_ATTRIBUTES,
    T_INPUT,
    T_IPA,
    T_OUTPUT,
    T_TAG,
    Entry,
    Key,
    answers_key,
    cacheable,
    canonical_input,
    entry_tag,
    must_drop,
    read_entry,
    tag_size,
    write_entry,
)
from shadowmmu.arch.tlbi_scope import Scope
from shadowmmu.compiled import I64, U64, Counts, Word, Words, inline, kernel

NOT_KEPT: Final = -1
FULL: Final = -2
END: Final = -1

S_USED: Final = 0
S_SIZES: Final = 1
"""One bit for each log2 of a size that an entry has had."""

NINE: Final = U64(9)
FOLD: Final = U64(20)


class Ideal(NamedTuple):
    """The arrays of one TLB; a copy of them is a snapshot."""

    rows: Words
    """(capacity, COLUMNS): entries, packed; the last row is working space."""
    heads: Counts
    """First row of each chain, END if empty; a power of two of them."""
    links: Counts
    """Next row of the chain of a row."""
    state: Counts
    """Rows in use, sizes in use."""


@inline
def chain_of(tlb: Ideal, first: Word, size: Word) -> int:
    """The chain of entries of 1 << ``size`` bytes that begin at ``first``."""
    page = first >> size
    mixed = page ^ (page >> NINE) ^ (page >> FOLD) ^ size
    return I64(mixed & U64(tlb.heads.size - 1))


@inline
def same_row(rows: Words, one: int, other: int) -> bool:
    """Whether two rows hold the same entry."""
    return (
        rows[one, T_TAG] == rows[other, T_TAG]
        and rows[one, T_INPUT] == rows[other, T_INPUT]
        and rows[one, T_OUTPUT] == rows[other, T_OUTPUT]
        and rows[one, T_IPA] == rows[other, T_IPA]
        and rows[one, T_ATTRIBUTES] == rows[other, T_ATTRIBUTES]
    )


@inline
def link_row(tlb: Ideal, row: int) -> None:
    """Put a row in front of its chain."""
    tag = tlb.rows[row, T_TAG]
    chain = chain_of(tlb, tlb.rows[row, T_INPUT], tag_size(tag))
    tlb.links[row] = tlb.heads[chain]
    tlb.heads[chain] = row
    tlb.state[S_SIZES] |= 1 << I64(tag_size(tag))


@kernel
def ideal_fill(tlb: Ideal, e: Entry, fault: int) -> int:
    """Keep what a walk with outcome ``fault`` read: its row, NOT_KEPT, or FULL (then grow and repeat)."""
    if not cacheable(fault):
        return NOT_KEPT
    used = tlb.state[S_USED]
    write_entry(tlb.rows, used, entry_tag(e), e)
    chain = chain_of(tlb, tlb.rows[used, T_INPUT], tag_size(tlb.rows[used, T_TAG]))
    row = tlb.heads[chain]
    while row != END:
        if same_row(tlb.rows, row, used):
            return row
        row = tlb.links[row]
    if used + 1 == tlb.rows.shape[0]:
        return FULL
    link_row(tlb, used)
    tlb.state[S_USED] = used + 1
    return used


@kernel
def ideal_lookup(tlb: Ideal, wanted: Key, found: Counts) -> int:
    """How many entries may be used for ``wanted``; the first of their rows go to ``found``.

    Smaller entries come first, of one size the one filled last.
    """
    hits = 0
    ia = canonical_input(wanted.kind, wanted.input)
    for size in range(SMALLEST_SHIFT, LARGEST_SHIFT):
        if (tlb.state[S_SIZES] >> size) & 1 == 0:
            continue
        first = ia >> U64(size) << U64(size)
        row = tlb.heads[chain_of(tlb, first, U64(size))]
        while row != END:
            tag = tlb.rows[row, T_TAG]
            if tag_size(tag) == U64(size) and answers_key(tag, tlb.rows[row, T_INPUT], wanted):
                if hits < found.size:
                    found[hits] = row
                hits += 1
            row = tlb.links[row]
    return hits


@kernel
def ideal_invalidate(tlb: Ideal, scope: Scope) -> int:
    """Remove what a TLBI must remove, and nothing else; how many entries that were."""
    used = tlb.state[S_USED]
    kept = 0
    for row in range(used):
        if must_drop(scope, tlb.rows[row, T_TAG], tlb.rows[row, T_INPUT]):
            continue
        if kept != row:
            for column in range(COLUMNS):
                tlb.rows[kept, column] = tlb.rows[row, column]
        kept += 1
    if kept != used:
        tlb.state[S_USED] = kept
        rebuild(tlb)
    return used - kept


@kernel
def rebuild(tlb: Ideal) -> None:
    """Chain all rows anew."""
    tlb.heads[:] = END
    tlb.state[S_SIZES] = 0
    for row in range(tlb.state[S_USED]):
        link_row(tlb, row)


def ideal_tlb(capacity: int = 256) -> Ideal:
    """An empty TLB with room for ``capacity`` entries at first."""
    chains = 1 << max(4, capacity.bit_length())
    return Ideal(
        np.zeros((capacity + 1, COLUMNS), np.uint64),
        np.full(chains, END, np.int64),
        np.zeros(capacity + 1, np.int64),
        np.zeros(2, np.int64),
    )


def ideal_grow(tlb: Ideal) -> Ideal:
    """The same entries in the same rows, with room for twice as many."""
    larger = ideal_tlb(2 * (tlb.rows.shape[0] - 1))
    larger.rows[: tlb.rows.shape[0]] = tlb.rows
    larger.state[:] = tlb.state
    rebuild(larger)
    return larger


def ideal_entries(tlb: Ideal) -> list[Entry]:
    """All entries, in the order of their first fill."""
    return [read_entry(row) for row in tlb.rows[: int(tlb.state[S_USED])]]
