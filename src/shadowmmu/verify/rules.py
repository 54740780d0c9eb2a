"""The rules, as one compiled pass over every shadow leaf and every table.

A1   no stale leaf: the host maps, at the leaf's canonical address, the very frames the leaf points to
A1W  and a leaf that may be written is backed by memory the host lets the VMM write
A3   coverage: the design's record would find the leaf for any part of its canonical range
A5   size: the leaf is no larger than L1's, aligned alike in both spaces, inside one memslot
A6   tag: the level tag in the leaf is L1's leaf level; 0 only with stage 2 off
A7   TLBI: nothing that L1 invalidated is left, so a leaf that differs from L1's table now awaits a TLBI
A8 to A10 speak of the pool of shadow MMUs: ``verify.pool_rules``
A11  no orphan: the record holds no more leaves than there are
A15  table use counts: one, plus one for each entry that is not zero
A16  VNCR: a valid entry's frame is the frame of its canonical page (verify.vncr)
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.fault import NONE
from shadowmmu.arch.regime import entry_size
from shadowmmu.arch.stage2 import OA_BITS, S2AP_W
from shadowmmu.arch.tlbi import ipas2_address, ripas2_range
from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.dispatch import design_covers, design_recorded
from shadowmmu.designs.interface import PA_KEYED, PTE_CHAINS, REVERSE_TABLE
from shadowmmu.host.tables import translate
from shadowmmu.kvm.granule import guest_regime
from shadowmmu.kvm.layout import S_BASE, S_SIZE
from shadowmmu.kvm.shadows import awaits_unmap
from shadowmmu.kvm.slots import NO_SLOT, find_slot, slot_hva
from shadowmmu.kvm.tlbi import (
    ALLE1IS,
    IPAS2E1,
    IPAS2E1IS,
    IPAS2LE1IS,
    RIPAS2E1IS,
    RIPAS2LE1IS,
    VMALLE1IS,
    same_vmid,
)
from shadowmmu.kvm.walk import GuestWalk, GuestWord, read_guest, walk_guest_stage2
from shadowmmu.machine.counters import DESCRIPTORS_READ
from shadowmmu.machine.frames import REFS, is_table
from shadowmmu.machine.state import R_DESIGN, R_NEXT_FRAME, R_PAGE_SHIFT, State
from shadowmmu.pgtable.attributes import GUEST_LEVEL, GUEST_LEVEL_SHIFT
from shadowmmu.pgtable.context import (
    M_ENABLED,
    M_LEAVES,
    M_PENDING,
    M_VTCR,
    M_VTTBR,
    context_regime,
    input_size,
    shadow_mmus,
    shadow_valid,
)
from shadowmmu.pgtable.iterate import next_leaf

HOLDS: Final = 0
STALE_LEAF: Final = 1
WRITABLE_LEAF: Final = 2
NOT_COVERED: Final = 3
WRONG_SIZE: Final = 4
WRONG_TAG: Final = 5
ORPHAN: Final = 6
USE_COUNT: Final = 7
SURVIVED_TLBI: Final = 8
TWO_TENANCIES: Final = 21
WRONG_REFERENCES: Final = 22
RUNS_UNWIPED: Final = 23
STALE_VNCR: Final = 16

RULES: Final[dict[int, tuple[str, str]]] = {
    STALE_LEAF: ("A1", "a valid shadow leaf points to memory the host no longer maps there"),
    WRITABLE_LEAF: ("A1W", "a writable shadow leaf over memory the host made read-only"),
    NOT_COVERED: ("A3", "the design's record would not find this leaf"),
    WRONG_SIZE: ("A5", "the leaf is larger than L1's, misaligned, or leaves its memslot"),
    WRONG_TAG: ("A6", "the level tag is not that of L1's leaf"),
    ORPHAN: ("A11", "the record holds more entries than there are leaves"),
    USE_COUNT: ("A15", "a table's use count is not one plus its nonzero entries"),
    SURVIVED_TLBI: ("A7", "a leaf that L1 invalidated is still there"),
    TWO_TENANCIES: ("A8", "two shadow MMUs answer to one VTTBR, VTCR and HCR.VM"),
    WRONG_REFERENCES: ("A9", "a shadow MMU's references are not the vCPUs that hold it"),
    RUNS_UNWIPED: ("A10", "a vCPU runs on a recycled shadow MMU that was not wiped"),
    STALE_VNCR: ("A16", "a VNCR pseudo-TLB entry holds a frame that its canonical page has no more"),
}

ALL_RULES: Final = sum(1 << rule for rule in RULES)
"""``checks`` of the passes below: bit n asks for rule n, so that one broken rule does not hide another."""
HOST_RULES: Final = 1 << STALE_LEAF | 1 << WRITABLE_LEAF

ZERO: Final = U64(0)
ONE: Final = U64(1)
PAGE_OFFSET: Final = U64(0xFFF)
IPAS2_UNIT: Final = U64(1 << 12)
"""What an operand of IPAS2E1 names at least, whatever the granule (Arm ARM, TLBI IPAS2E1.IPA)."""


class Finding(NamedTuple):
    """The first rule broken (``HOLDS`` if none), where, and how many leaves await a TLBI of L1."""

    rule: int
    mmu: int
    nested_ipa: Word
    size: Word
    word: Word
    canonical_ipa: Word
    awaiting: int


@inline
def host_agrees(s: State, canonical_ipa: Word, pa: Word, size: Word, writable: bool, checks: int) -> int:
    """Whether the host maps all of [canonical_ipa, +size) to [pa, +size): HOLDS or the rule broken."""
    stale = STALE_LEAF if checks & (1 << STALE_LEAF) != 0 else HOLDS
    slot = find_slot(s, canonical_ipa)
    if slot == NO_SLOT:
        return stale
    page = ONE << s.regs[R_PAGE_SHIFT]
    offset = ZERO
    while offset < size:
        mapped = translate(s, slot_hva(s, slot, canonical_ipa + offset))
        if mapped.size == ZERO or mapped.pa != pa + offset:
            if stale != HOLDS:
                return stale
        elif writable and not mapped.writable and checks & (1 << WRITABLE_LEAF) != 0:
            return WRITABLE_LEAF
        offset += size if mapped.size >= size else page
    return HOLDS


@inline
def guest_leaf_size(s: State, mmu: int, tag: Word) -> Word:
    """Bytes of L1's leaf by its level tag and L1's granule; everything with stage 2 off."""
    level = I64(tag)
    if level == 0:
        return ONE << U64(52)
    return entry_size(guest_regime(s, s.mmus[mmu, M_VTCR]), level)


@inline
def size_holds(s: State, mmu: int, nested_ipa: Word, canonical_ipa: Word, size: Word, tag: Word) -> bool:
    """Rule A5."""
    inside = size - ONE
    if size > guest_leaf_size(s, mmu, tag) or nested_ipa & inside != canonical_ipa & inside:
        return False
    slot = find_slot(s, canonical_ipa)
    if slot == NO_SLOT:
        return True  # A1 speaks of it
    return canonical_ipa + size <= s.slots[slot, S_BASE] + s.slots[slot, S_SIZE]


@inline
def leaf_rule(
    s: State, mmu: int, nested_ipa: Word, level: int, word: Word, canonical_ipa: Word, checks: int
) -> int:
    """The first rule one leaf breaks of those ``checks`` asks for, or HOLDS."""
    descriptor = s.mem[word]
    size = entry_size(context_regime(s, mmu), level)
    tag = s.ghost[word] & PAGE_OFFSET
    if checks & HOST_RULES != 0:
        pa = descriptor & OA_BITS & ~(size - ONE)
        broken = host_agrees(s, canonical_ipa, pa, size, descriptor & S2AP_W != ZERO, checks)
        if broken != HOLDS:
            return broken
    if checks & (1 << WRONG_SIZE) != 0 and not size_holds(s, mmu, nested_ipa, canonical_ipa, size, tag):
        return WRONG_SIZE
    enabled = s.mmus[mmu, M_ENABLED] != ZERO
    pending = s.mmus[mmu, M_PENDING] != ZERO
    shown = (descriptor & GUEST_LEVEL) >> GUEST_LEVEL_SHIFT
    if checks & (1 << WRONG_TAG) != 0:
        if shown != tag or (not pending and enabled != (tag != ZERO)):
            return WRONG_TAG
    if checks & (1 << NOT_COVERED) != 0 and not awaits_unmap(s, mmu, nested_ipa):
        if not design_covers(s, mmu, canonical_ipa, nested_ipa, size, level, word):
            return NOT_COVERED
    return HOLDS


@inline
def agrees_with_guest(s: State, mmu: int, nested_ipa: Word, canonical_ipa: Word) -> bool:
    """Whether L1's table, as it is now, still sends the leaf to where it was filled from."""
    if s.mmus[mmu, M_PENDING] != ZERO:
        return True
    if s.mmus[mmu, M_ENABLED] == ZERO:
        return nested_ipa == canonical_ipa
    walk = walk_guest_stage2(s, s.mmus[mmu, M_VTTBR], s.mmus[mmu, M_VTCR], nested_ipa, True)
    return walk.fault == NONE and walk.output == canonical_ipa


@kernel
def judge_leaves(s: State, checks: int, compose: bool) -> Finding:
    """The rules of ``checks`` on every shadow leaf; the first broken. O(leaves). Changes nothing.

    ``compose`` also walks L1's tables for each leaf and counts those that await a TLBI: all of them if no
    rule is broken, else those before the leaf that breaks it.
    """
    reads = s.count[DESCRIPTORS_READ]
    awaiting = 0
    finding = Finding(HOLDS, 0, ZERO, ZERO, ZERO, ZERO, 0)
    for mmu in range(1, shadow_mmus(s) + 1):
        if not shadow_valid(s, mmu) or s.mmus[mmu, M_LEAVES] == ZERO:
            continue
        ipa = ZERO
        end = input_size(s, mmu)
        while ipa < end and finding.rule == HOLDS:
            visit = next_leaf(s, mmu, ipa, end)
            if visit.word == ZERO:
                break
            canonical_ipa = s.ghost[visit.word] & ~PAGE_OFFSET
            rule = leaf_rule(s, mmu, visit.ipa, visit.level, visit.word, canonical_ipa, checks)
            if rule != HOLDS:
                size = visit.after - visit.ipa
                finding = Finding(rule, mmu, visit.ipa, size, visit.word, canonical_ipa, 0)
            elif compose and not agrees_with_guest(s, mmu, visit.ipa, canonical_ipa):
                awaiting += 1
            ipa = visit.after
    s.count[DESCRIPTORS_READ] = reads
    return Finding(
        finding.rule,
        finding.mmu,
        finding.nested_ipa,
        finding.size,
        finding.word,
        finding.canonical_ipa,
        awaiting,
    )


@inline
def leaf_left(s: State, mmu: int, start: Word, end: Word) -> Finding:
    """Rule A7 for one MMU: a leaf left in [start, end), if any."""
    reads = s.count[DESCRIPTORS_READ]
    visit = next_leaf(s, mmu, start, end)
    s.count[DESCRIPTORS_READ] = reads
    if visit.word == ZERO:
        return Finding(HOLDS, mmu, ZERO, ZERO, ZERO, ZERO, 0)
    canonical_ipa = s.ghost[visit.word] & ~PAGE_OFFSET
    size = visit.after - visit.ipa
    return Finding(SURVIVED_TLBI, mmu, visit.ipa, size, visit.word, canonical_ipa, 0)


@kernel
def judge_tlbi(s: State, vcpu: int, form: int, operand: Word) -> Finding:
    """Rule A7 right after a TLBI of L1: a leaf of its VMID that is left in what it names."""
    for mmu in range(1, shadow_mmus(s) + 1):
        concerned = shadow_valid(s, mmu) if form == ALLE1IS else same_vmid(s, mmu, vcpu)
        if form == VMALLE1IS or not concerned:
            continue
        start = ZERO
        end = input_size(s, mmu)
        if form == IPAS2E1IS or form == IPAS2LE1IS or form == IPAS2E1:
            start = ipas2_address(operand)
            end = start + IPAS2_UNIT
        elif form == RIPAS2E1IS or form == RIPAS2LE1IS:
            wanted = ripas2_range(operand)
            start = wanted.start
            end = start + wanted.size
        if end > input_size(s, mmu):
            end = input_size(s, mmu)
        if start < end:
            finding = leaf_left(s, mmu, start, end)
            if finding.rule != HOLDS:
                return finding
    return Finding(HOLDS, 0, ZERO, ZERO, ZERO, ZERO, 0)


class Chain(NamedTuple):
    """Where a nested IPA leads now: L1's table, the memslot, the VMM's address, the host's frame."""

    fault: int
    level: int
    output: Word
    slot: int
    hva: Word
    pa: Word
    size: Word
    writable: bool


@kernel
def address_chain(s: State, mmu: int, nested_ipa: Word, canonical_ipa: Word) -> Chain:
    """Follow ``nested_ipa`` through L1's table, and ``canonical_ipa`` to the host. No side effects."""
    walk = GuestWalk(NONE, 0, nested_ipa, ZERO, ZERO, 0)
    if s.mmus[mmu, M_ENABLED] != ZERO:
        walk = walk_guest_stage2(s, s.mmus[mmu, M_VTTBR], s.mmus[mmu, M_VTCR], nested_ipa, True)
    slot = find_slot(s, canonical_ipa)
    if slot == NO_SLOT:
        return Chain(walk.fault, walk.level, walk.output, slot, ZERO, ZERO, ZERO, False)
    hva = slot_hva(s, slot, canonical_ipa)
    page = translate(s, hva)
    return Chain(walk.fault, walk.level, walk.output, slot, hva, page.pa, page.size, page.writable)


@kernel
def guest_word(s: State, canonical_ipa: Word) -> GuestWord:
    """A word of L1's memory, read without side effects."""
    return read_guest(s, canonical_ipa, True)


@kernel
def judge_tables(s: State, checks: int) -> Finding:
    """Rules A15 and A11, as far as ``checks`` asks for them. O(words of the tables in use)."""
    shift = s.regs[R_PAGE_SHIFT] - U64(3)
    words = I64(ONE << shift)
    frame = ONE
    while checks & (1 << USE_COUNT) != 0 and frame < s.regs[R_NEXT_FRAME]:
        if is_table(s, frame):
            used = 1
            first = I64(frame << shift)
            for i in range(first, first + words):
                if s.mem[i] != ZERO:
                    used += 1
            if U64(used) != s.frames[frame, REFS]:
                return Finding(USE_COUNT, 0, ZERO, ZERO, frame << shift, ZERO, 0)
        frame += ONE
    design = I64(s.regs[R_DESIGN])
    exact = design == REVERSE_TABLE or design == PTE_CHAINS or design == PA_KEYED
    if checks & (1 << ORPHAN) != 0 and exact:
        leaves = 0
        for mmu in range(1, shadow_mmus(s) + 1):
            leaves += I64(s.mmus[mmu, M_LEAVES])
        if design_recorded(s) > leaves:
            return Finding(ORPHAN, 0, ZERO, ZERO, ZERO, ZERO, 0)
    return Finding(HOLDS, 0, ZERO, ZERO, ZERO, ZERO, 0)
