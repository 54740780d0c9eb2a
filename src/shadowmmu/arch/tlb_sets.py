"""A TLB of sets and ways, for cost: what fits, what is replaced, how much of each walk it saves.

A micro TLB before a main one, a TLB of stage-2 leaves by IPA, and a walk cache for each level of either
stage. Sizes, ways and replacement are chosen; ``combined`` says whether leaves and walk entries of EL1&0
hold both stages (VA to PA) or stage 1 alone (VA to IPA). No real core is meant: cores do not say theirs.

A set is chosen by the bits above an entry's size, so a lookup probes one set for each entry size that the
structure has held since it was last emptied. TLBIs remove exactly what they must (``tlb.must_drop``) and look
at every row. What it holds, ``tlb_ideal`` holds too after the same fills and TLBIs.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from shadowmmu.arch.tlb import (
    COLUMNS,
    ENTRY_TAG,
    SMALLEST_SHIFT,
    T_INPUT,
    T_STAMP,
    T_TAG,
    TABLE,
    VALID,
    ZERO,
    Entry,
    Key,
    answers_key,
    cacheable,
    canonical_input,
    entry_tag,
    level_of_stage,
    must_drop,
    read_entry,
    tag_kind,
    tag_size,
    write_entry,
)
from shadowmmu.arch.tlbi_scope import BOTH, EL10, STAGE1, STAGE2, Scope
from shadowmmu.compiled import I64, U64, Counts, Word, Words, inline, kernel
from shadowmmu.errors import InputError

LRU: Final = 0
ROUND_ROBIN: Final = 1
RANDOM: Final = 2

MICRO: Final = 0
MAIN: Final = 1
STAGE2_LEAVES: Final = 2
WALK1: Final = 3
"""Stage-1 walk caches of the tables at levels -1 to 2, and after them those of stage 2."""
WALK2: Final = 7
STRUCTURES: Final = 11
TOP_LEVEL: Final = -1
LAST_TABLE_LEVEL: Final = 2

C_BASE: Final = 0
"""Columns of ``Sets.shape``: first row, sets, ways, sizes held (one bit a log2)."""
C_SETS: Final = 1
C_WAYS: Final = 2
C_SIZES: Final = 3

S_CLOCK: Final = 0
S_POLICY: Final = 1
S_COMBINED: Final = 2

COUNTERS: Final = (
    "micro hits",
    "main hits",
    "misses",
    "stage-2 hits",
    "stage-2 misses",
    "walk hits",
    "walk misses",
    "walk steps saved",
    "evictions",
    "invalidated",
)
MICRO_HITS: Final = 0
MAIN_HITS: Final = 1
MISSES: Final = 2
STAGE2_HITS: Final = 3
STAGE2_MISSES: Final = 4
WALK_HITS: Final = 5
WALK_MISSES: Final = 6
STEPS_SAVED: Final = 7
EVICTIONS: Final = 8
INVALIDATED: Final = 9

MISS: Final = -1
ONE: Final = U64(1)
SLOT: Final = U64(
    sum(ENTRY_TAG[name].mask for name in ("VALID", "KIND", "REGIME", "GLOBAL", "SIZE", "VMID", "ASID"))
)
"""Tag bits of two entries that cannot both be in a set: the later one replaces the other."""
SHIFT_A: Final = U64(13)
SHIFT_B: Final = U64(7)
SHIFT_C: Final = U64(17)


class Sets(NamedTuple):
    """The arrays of one TLB; a copy of them is a snapshot."""

    rows: Words
    """(entries of all structures, COLUMNS); T_STAMP: when last used."""
    shape: Counts
    """(STRUCTURES, 4): C_ columns."""
    turns: Counts
    """Next way to replace, by the first row of each set (ROUND_ROBIN)."""
    state: Counts
    """S_ columns: clock, policy, whether combined."""
    seed: Words
    """State of the pseudo-random sequence (RANDOM), never 0."""
    count: Counts  # type: ignore[assignment]  # a tuple has a method of this name
    """By the names in COUNTERS."""


class Shape(NamedTuple):
    """Entries of each structure as (sets, ways); (0, 0): there is none."""

    micro: tuple[int, int] = (1, 32)
    main: tuple[int, int] = (256, 4)
    stage2: tuple[int, int] = (64, 4)
    walk1: tuple[int, int] = (4, 4)
    """Of each level."""
    walk2: tuple[int, int] = (4, 4)
    policy: int = LRU
    combined: bool = True
    seed: int = 1


@inline
def keeps(tlb: Sets, kind: int, regime: int) -> bool:
    """Whether entries of this kind are kept: of EL1&0 either both stages in one, or each apart."""
    stages = kind & BOTH
    if stages == STAGE2 or regime != EL10:
        return True
    if tlb.state[S_COMBINED] != 0:
        return stages == BOTH
    return stages == STAGE1


@inline
def home(tag: Word) -> int:
    """The structure an entry belongs to; leaves by VA go to MICRO as well."""
    kind = tag_kind(tag)
    if kind & TABLE == 0:
        if kind == STAGE2:
            return STAGE2_LEAVES
        return MAIN
    if kind & BOTH == STAGE2:
        return WALK2 + level_of_stage(tag, STAGE2) - TOP_LEVEL
    return WALK1 + level_of_stage(tag, STAGE1) - TOP_LEVEL


@inline
def set_of(tlb: Sets, structure: int, first: Word, size: Word) -> int:
    """First row of the set where an entry of 1 << ``size`` bytes at ``first`` may stand."""
    sets = U64(tlb.shape[structure, C_SETS])
    return tlb.shape[structure, C_BASE] + I64((first >> size) % sets) * tlb.shape[structure, C_WAYS]


@inline
def touch(tlb: Sets, row: int) -> None:
    """Note the use of a row."""
    tlb.state[S_CLOCK] += 1
    tlb.rows[row, T_STAMP] = U64(tlb.state[S_CLOCK])


@inline
def next_random(tlb: Sets) -> Word:
    """The next word of a xorshift sequence (Marsaglia 2003: 13, 7, 17)."""
    word = tlb.seed[0]
    word ^= word << SHIFT_A
    word ^= word >> SHIFT_B
    word ^= word << SHIFT_C
    tlb.seed[0] = word
    return word


@inline
def victim(tlb: Sets, base: int, ways: int) -> int:
    """The row of a full set to replace."""
    policy = tlb.state[S_POLICY]
    if policy == ROUND_ROBIN:
        way = tlb.turns[base]
        tlb.turns[base] = (way + 1) % ways
        return base + way
    if policy == RANDOM:
        return base + I64(next_random(tlb) % U64(ways))
    oldest = base
    for row in range(base + 1, base + ways):
        if tlb.rows[row, T_STAMP] < tlb.rows[oldest, T_STAMP]:
            oldest = row
    return oldest


@inline
def row_for(tlb: Sets, structure: int, tag: Word, first: Word) -> int:
    """Where an entry goes: over one for the same input, else a free row, else the victim's."""
    base = set_of(tlb, structure, first, tag_size(tag))
    ways = tlb.shape[structure, C_WAYS]
    free = MISS
    for row in range(base, base + ways):
        held = tlb.rows[row, T_TAG]
        if held == ZERO:
            if free == MISS:
                free = row
        elif (held ^ tag) & SLOT == ZERO and tlb.rows[row, T_INPUT] == first:
            return row
    if free != MISS:
        return free
    tlb.count[EVICTIONS] += 1
    return victim(tlb, base, ways)


@inline
def put(tlb: Sets, structure: int, tag: Word, e: Entry) -> None:
    """Write an entry into a structure, if there is one."""
    if tlb.shape[structure, C_WAYS] == 0:
        return
    size = tag_size(tag)
    row = row_for(tlb, structure, tag, canonical_input(e.kind, e.input) >> size << size)
    write_entry(tlb.rows, row, tag, e)
    tlb.shape[structure, C_SIZES] |= 1 << I64(size)
    touch(tlb, row)


@inline
def promote(tlb: Sets, row: int) -> int:
    """Copy an entry of the main TLB to the micro TLB; the row to go on with."""
    if tlb.shape[MICRO, C_WAYS] == 0:
        return row
    tag = tlb.rows[row, T_TAG]
    to = row_for(tlb, MICRO, tag, tlb.rows[row, T_INPUT])
    for column in range(COLUMNS):
        tlb.rows[to, column] = tlb.rows[row, column]
    tlb.shape[MICRO, C_SIZES] |= 1 << I64(tag_size(tag))
    touch(tlb, to)
    return to


@inline
def probe(tlb: Sets, structure: int, wanted: Key) -> int:
    """The row of a structure that answers, of several the first met; MISS if none does."""
    sizes = tlb.shape[structure, C_SIZES]
    ia = canonical_input(wanted.kind, wanted.input)
    size = SMALLEST_SHIFT
    while sizes >> size != 0:
        if (sizes >> size) & 1 != 0:
            base = set_of(tlb, structure, ia, U64(size))
            for row in range(base, base + tlb.shape[structure, C_WAYS]):
                if answers_key(tlb.rows[row, T_TAG], tlb.rows[row, T_INPUT], wanted):
                    touch(tlb, row)
                    return row
        size += 1
    return MISS


@kernel
def sets_fill(tlb: Sets, e: Entry, fault: int) -> bool:
    """Keep what a walk with outcome ``fault`` read, where this TLB has a place for it."""
    if not cacheable(fault) or not keeps(tlb, e.kind, e.regime):
        return False
    tag = entry_tag(e)
    structure = home(tag)
    put(tlb, structure, tag, e)
    if structure == MAIN:
        put(tlb, MICRO, tag, e)
    return True


@kernel
def sets_lookup(tlb: Sets, wanted: Key) -> int:
    """The row of the leaf that translates ``wanted``, MISS if there is none."""
    if wanted.kind == STAGE2:
        row = probe(tlb, STAGE2_LEAVES, wanted)
        if row == MISS:
            tlb.count[STAGE2_MISSES] += 1
        else:
            tlb.count[STAGE2_HITS] += 1
        return row
    row = probe(tlb, MICRO, wanted)
    if row != MISS:
        tlb.count[MICRO_HITS] += 1
        return row
    row = probe(tlb, MAIN, wanted)
    if row == MISS:
        tlb.count[MISSES] += 1
        return MISS
    tlb.count[MAIN_HITS] += 1
    return promote(tlb, row)


@kernel
def sets_walk(tlb: Sets, wanted: Key, start_level: int) -> int:
    """The row of the deepest table entry on the way to ``wanted`` (a kind with TABLE), MISS if none.

    A walk that begins below it saves a descriptor read for each level from ``start_level`` on.
    """
    first = WALK1 - TOP_LEVEL
    if wanted.kind & BOTH == STAGE2:
        first = WALK2 - TOP_LEVEL
    level = LAST_TABLE_LEVEL
    while level >= start_level:
        row = probe(tlb, first + level, wanted)
        if row != MISS:
            tlb.count[WALK_HITS] += 1
            tlb.count[STEPS_SAVED] += level - start_level + 1
            return row
        level -= 1
    tlb.count[WALK_MISSES] += 1
    return MISS


@kernel
def sets_invalidate(tlb: Sets, scope: Scope) -> int:
    """Remove what a TLBI must remove; how many entries that were (one in two structures counts twice)."""
    dropped = 0
    for structure in range(STRUCTURES):
        base = tlb.shape[structure, C_BASE]
        sizes = 0
        for row in range(base, base + tlb.shape[structure, C_SETS] * tlb.shape[structure, C_WAYS]):
            tag = tlb.rows[row, T_TAG]
            if tag == ZERO:
                continue
            if must_drop(scope, tag, tlb.rows[row, T_INPUT]):
                tlb.rows[row, T_TAG] = ZERO
                dropped += 1
            else:
                sizes |= 1 << I64(tag_size(tag))
        tlb.shape[structure, C_SIZES] = sizes
    tlb.count[INVALIDATED] += dropped
    return dropped


def sets_tlb(shape: Shape | None = None) -> Sets:
    """An empty TLB of this shape. Raises InputError where a part has a negative size, or the seed is 0."""
    chosen = shape or Shape()
    walks = [chosen.walk1] * (WALK2 - WALK1) + [chosen.walk2] * (STRUCTURES - WALK2)
    table = np.zeros((STRUCTURES, 4), np.int64)
    rows = 0
    for structure, (sets, ways) in enumerate([chosen.micro, chosen.main, chosen.stage2, *walks]):
        if sets < 0 or ways < 0:
            raise InputError(f"a TLB of {sets} sets and {ways} ways: expected neither to be negative")
        table[structure, :C_SIZES] = (rows, sets, ways if sets else 0)
        rows += sets * ways
    if not 0 < chosen.seed < 1 << 64:
        raise InputError(f"seed {chosen.seed}: expected 1 to 2**64 - 1")
    return Sets(
        np.zeros((rows, COLUMNS), np.uint64),
        table,
        np.zeros(rows, np.int64),
        np.array([0, chosen.policy, chosen.combined], np.int64),
        np.array([chosen.seed], np.uint64),
        np.zeros(len(COUNTERS), np.int64),
    )


def sets_entries(tlb: Sets) -> list[Entry]:
    """All entries, by structure; a leaf by VA may be there twice, in the micro and the main TLB."""
    return [read_entry(row) for row in tlb.rows if row[T_TAG] & VALID]


def sets_counts(tlb: Sets) -> dict[str, int]:
    """The counters by name."""
    return dict(zip(COUNTERS, tlb.count.tolist(), strict=True))
