"""What the judge remembers apart from every design: births and deaths of shadow leaves.

``ghost[word]`` holds the canonical address a shadow leaf was filled from. ``graves`` is an
open-addressing hash of every (MMU, leaf address) ever filled and how it last died, so that each refault
is put down to the cause of the death it repairs. Off (``R_GHOST_ON`` 0) it costs one test.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, apart, inline, kernel
from shadowmmu.machine.counters import (
    FIRST_TOUCHES,
    OVER_UNMAPPED_BYTES,
    OVER_UNMAPPED_LEAVES,
    REFAULTS_AVOIDABLE,
    REFAULTS_GUEST,
    REFAULTS_NOTIFIER,
)
from shadowmmu.machine.state import (
    R_CAUSE,
    R_CAUSE_END,
    R_CAUSE_START,
    R_GHOST_ON,
    R_GRAVES,
    State,
    Words,
)

ALIVE: Final = 1
BY_NOTIFIER: Final = 2
BY_NOTIFIER_OVER: Final = 3
BY_GUEST: Final = 4

CAUSE_OTHER: Final = U64(0)
CAUSE_NOTIFIER: Final = U64(1)

ZERO: Final = U64(0)
ONE: Final = U64(1)
FOUR: Final = U64(4)
PAGE: Final = U64(12)
FATE: Final = U64(0xF)
MMU_SHIFT: Final = U64(44)
LOW32: Final = U64(0xFFFF_FFFF)
MIX: Final = U64(0x9E37_79B1)
SPREAD: Final = U64(29)
FOLD: Final = U64(16)
PAGE_OFFSET: Final = U64(0xFFF)


@inline
def ghost_begin(s: State, canonical_start: Word, canonical_end: Word) -> None:
    """Deaths from here to ``ghost_end`` are the work of a notifier for this canonical range."""
    s.regs[R_CAUSE] = CAUSE_NOTIFIER
    s.regs[R_CAUSE_START] = canonical_start
    s.regs[R_CAUSE_END] = canonical_end


@inline
def ghost_end(s: State) -> None:
    """Deaths are no notifier's any more."""
    s.regs[R_CAUSE] = CAUSE_OTHER


@inline
def grave_key(mmu: int, nested_ipa: Word) -> Word:
    """Name of a leaf address: MMU and page, in the high 60 bits."""
    return ((U64(mmu) << MMU_SHIFT) | (nested_ipa >> PAGE)) << FOUR


@inline
def grave_slot(graves: Words, key: Word) -> Word:
    """Where ``key`` stands or would stand. O(1) expected; the table is at most half full."""
    mask = U64(len(graves) - 1)
    name = key >> FOUR
    slot = (((name ^ (name >> SPREAD)) & LOW32) * MIX) >> FOLD
    slot &= mask
    while graves[slot] != ZERO and (graves[slot] & ~FATE) != key:
        slot = (slot + ONE) & mask
    return slot


@kernel
def grave_rehash(old: Words, new: Words) -> None:
    """Copy every grave of ``old`` into the larger, empty ``new``."""
    for i in range(len(old)):
        entry = old[i]
        if entry != ZERO:
            new[grave_slot(new, entry & ~FATE)] = entry


@kernel
def ghost_birth(s: State, mmu: int, nested_ipa: Word, word: Word, canonical_ipa: Word, tag: Word) -> None:
    """A shadow leaf was filled: remember its source, and put the refault down to the last death."""
    if s.regs[R_GHOST_ON] == ZERO:
        return
    s.ghost[word] = canonical_ipa | tag
    key = grave_key(mmu, nested_ipa)
    slot = grave_slot(s.graves, key)
    fate = I64(s.graves[slot] & FATE)
    if s.graves[slot] == ZERO:
        s.count[FIRST_TOUCHES] += 1
        s.regs[R_GRAVES] += ONE
    elif fate == BY_NOTIFIER or fate == BY_NOTIFIER_OVER:
        s.count[REFAULTS_NOTIFIER] += 1
        if fate == BY_NOTIFIER_OVER:
            s.count[REFAULTS_AVOIDABLE] += 1
    elif fate == BY_GUEST:
        s.count[REFAULTS_GUEST] += 1
    s.graves[slot] = key | U64(ALIVE)


@inline
def ghost_death(s: State, mmu: int, nested_ipa: Word, word: Word, size: Word) -> None:
    """A shadow leaf was cleared: note why, and whether the notifier's range needed it."""
    if s.regs[R_GHOST_ON] != ZERO:
        bury(s, mmu, nested_ipa, word, size)


@apart
def bury(s: State, mmu: int, nested_ipa: Word, word: Word, size: Word) -> None:
    """Write down how a shadow leaf died."""
    fate = BY_GUEST
    if s.regs[R_CAUSE] == CAUSE_NOTIFIER:
        canonical_ipa = s.ghost[word] & ~PAGE_OFFSET
        fate = BY_NOTIFIER
        if canonical_ipa >= s.regs[R_CAUSE_END] or canonical_ipa + size <= s.regs[R_CAUSE_START]:
            fate = BY_NOTIFIER_OVER
            s.count[OVER_UNMAPPED_LEAVES] += 1
            s.count[OVER_UNMAPPED_BYTES] += I64(size)
    key = grave_key(mmu, nested_ipa)
    slot = grave_slot(s.graves, key)
    if s.graves[slot] == ZERO:
        s.regs[R_GRAVES] += ONE
    s.graves[slot] = key | U64(fate)
