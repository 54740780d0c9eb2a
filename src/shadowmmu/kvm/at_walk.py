"""The software walk of L2's stage 1: L0 reads the tables through L1's stage 2, as the CPU would.

Mirrors Linux 7.3.4 ``setup_s1_walk``, ``walk_s1``, ``compute_s1_permissions`` (``at.c``). Descriptors,
geometry and register fields are the architecture's (``arch``); what Linux decides otherwise is named
where it does so, and listed in ``docs/at.md``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.controls import Stage1
from shadowmmu.arch.fault import (
    ACCESS_FLAG,
    ADDRESS_SIZE,
    EXTERNAL_WALK,
    NONE,
    PERMISSION,
    TRANSLATION,
    fault_status,
)
from shadowmmu.arch.memory import swapped
from shadowmmu.arch.operation import EL2, Access
from shadowmmu.arch.regime import (
    Regime,
    beyond_output,
    descriptor_address,
    level_shift,
    table_address,
)
from shadowmmu.arch.stage1 import direct_permissions, indirect_permissions, stage1_permits
from shadowmmu.arch.stage2 import AF, S2AP_R, S2AP_W, TABLE, VALID, leaf_fault
from shadowmmu.arch.translate import outside_range
from shadowmmu.compiled import U64, Word, inline, kernel
from shadowmmu.kvm.layout import EAGAIN, ONE, V_VTCR, V_VTTBR, ZERO
from shadowmmu.kvm.walk import output_mask, read_guest, swap_guest_word, walk_guest_stage2
from shadowmmu.machine.state import State

BIT_55: Final = U64(55)
TOP_BYTE: Final = U64(0xFF << 56)
THREE: Final = U64(3)
LEVEL_OF_STATUS: Final = U64(3)
STATUS: Final = U64(0x3F)
LOW_32: Final = U64((1 << 32) - 1)
ALL: Final = U64((1 << 64) - 1)
START_LEVEL_BASE: Final = U64(1 << 33)
TRANSLATION_STATUS: Final = U64(0x04)
NEGATIVE_TRANSLATION_STATUS: Final = U64(0x2C)
SIGN_32: Final = U64(31)


class Walk(NamedTuple):
    """``struct s1_walk_result``: ``failed`` with PAR's fault status, of stage 2 or not; else the leaf.

    ``code`` EAGAIN: the instruction has to be replayed; nothing else counts then. ``off``: stage 1 is
    disabled. ``pa``: the output, an address of the next stage.
    """

    code: int
    failed: bool
    status: Word
    stage2: bool
    off: bool
    level: int
    descriptor: Word
    tables: Word
    pa: Word


@inline
def failure(status: Word, stage2: bool) -> Walk:
    """A walk that failed. Mirrors ``fail_s1_walk``: what stage 2 refuses, it refuses to a table walk."""
    return Walk(0, True, status, stage2, False, 0, ZERO, ZERO, ZERO)


@inline
def failure_at(kind: int, level: int, stage2: bool) -> Walk:
    """A walk that failed with a fault of the architecture."""
    return failure(fault_status(kind, level), stage2)


@inline
def replay() -> Walk:
    """Another CPU changed a descriptor under the walk's hands."""
    return Walk(EAGAIN, True, ZERO, False, False, 0, ZERO, ZERO, ZERO)


@inline
def sign_extended(va: Word) -> Word:
    """The address with its top byte made a copy of bit 55."""
    return va | TOP_BYTE if (va >> BIT_55) & ONE != ZERO else va & ~TOP_BYTE


@inline
def start_level_status(r: Regime) -> Word:
    """The translation fault of an address that is not walked, as Linux numbers it: at the start level.

    The architecture says level 0. An input smaller than a page makes the level wrap in 32 bits; what is left
    of it in six bits is reported.
    """
    above_page = r.ia_bits - 1 - r.page_shift
    if above_page >= 0:
        steps = U64(above_page // r.stride)
    else:
        steps = (ALL - U64(-above_page - 1)) // U64(r.stride)
    level = (START_LEVEL_BASE + THREE - (steps & LOW_32)) & LOW_32
    base = NEGATIVE_TRANSLATION_STATUS if level >> SIGN_32 != ZERO else TRANSLATION_STATUS
    return (base + level) & STATUS


@inline
def setup_s1_walk(s1: Stage1, access: Access, va: Word, pa_bits: int) -> Walk:
    """What the registers alone decide. Mirrors the function of that name.

    An address that is not a sign-extended one, or of the upper half at EL2, is an address size fault
    in Linux; the architecture makes it a translation fault.
    """
    address = sign_extended(va)
    if (access.regime == EL2 and s1.upper) or (not s1.tbi and address != va):
        return failure_at(ADDRESS_SIZE, 0, False)
    if not s1.enabled:
        if address >> U64(pa_bits) != ZERO:
            return failure_at(ADDRESS_SIZE, 0, False)
        return Walk(0, False, ZERO, False, True, 0, ZERO, ZERO, address)
    if s1.refused or outside_range(address, s1) or (s1.e0pd and access.el == 0):
        return failure(start_level_status(s1.regime), False)
    if beyond_output(s1.regime, s1.root):
        return failure_at(ADDRESS_SIZE, 0, False)
    return Walk(0, False, ZERO, False, False, 0, ZERO, ZERO, ZERO)


class Place(NamedTuple):
    """Where a stage-1 descriptor stands in L1's memory, or the failure to find out."""

    found: bool
    canonical_ipa: Word
    writable: bool
    problem: Walk


@kernel
def place_of_table(s: State, vcpu: int, nested_ipa: Word, level: int, through: bool) -> Place:
    """The canonical address of a stage-1 table entry; ``through``: L1's stage 2 applies to it.

    The fault status carries the level of stage 1; the architecture reports stage 2's.
    """
    if not through:
        return Place(True, nested_ipa, True, failure(ZERO, False))
    t = walk_guest_stage2(s, s.vcpus[vcpu, V_VTTBR], s.vcpus[vcpu, V_VTCR], nested_ipa, False)
    if t.code == EAGAIN:
        return Place(False, ZERO, False, replay())
    if t.fault != NONE:
        status = (fault_status(t.fault, t.level) & ~LEVEL_OF_STATUS) | U64(level)
        return Place(False, ZERO, False, failure(status, True))
    if t.descriptor & S2AP_R == ZERO:
        return Place(False, ZERO, False, failure_at(PERMISSION, level, True))
    return Place(True, t.output, t.descriptor & S2AP_W != ZERO, failure(ZERO, False))


@kernel
def walk_s1(s: State, vcpu: int, s1: Stage1, va: Word, through: bool) -> Walk:
    """Walk L2's (or L1's own) stage 1 for an address in range. Mirrors the function of that name.

    O(levels of stage 1 x levels of stage 2) reads of L1's memory; sets access flags where TCR.HA or
    VTCR.HA ask for it.
    """
    r = s1.regime
    ia = va & ((ONE << U64(r.ia_bits)) - ONE)
    level = r.start_level
    index_mask = (ONE << U64(r.stride)) - ONE
    entry = s1.root + ((ia >> U64(level_shift(r, level))) << THREE)
    tables = ZERO
    while True:
        place = place_of_table(s, vcpu, entry, level, through)
        if not place.found:
            return place.problem
        word = read_guest(s, place.canonical_ipa, False)
        if not word.found:
            return failure_at(EXTERNAL_WALK, level, False)
        descriptor = swapped(word.value) if s1.big_endian else word.value
        if descriptor & VALID == ZERO:
            return failure_at(TRANSLATION, level, False)
        if level == 3 or descriptor & TABLE == ZERO:
            return stage1_leaf(s, s1, level, descriptor, place, ia, tables)
        following = table_address(r, descriptor)
        if beyond_output(r, following):
            return failure_at(ADDRESS_SIZE, level, False)
        tables |= descriptor
        level += 1
        entry = following + (((ia >> U64(level_shift(r, level))) & index_mask) << THREE)


@kernel
def stage1_leaf(
    s: State, s1: Stage1, level: int, descriptor: Word, place: Place, ia: Word, tables: Word
) -> Walk:
    """The end of the walk: checks of the leaf, its access flag, the output address.

    A contiguous leaf passes more bits of the input than its own size; the architecture leaves that to the
    tables being consistent.
    """
    r = s1.regime
    fault = leaf_fault(r, descriptor, level, ia)
    if fault != NONE:
        return failure_at(fault, level, False)
    if descriptor & AF == ZERO:
        if not s1.ha:
            return failure_at(ACCESS_FLAG, level, False)
        if not place.writable:
            return failure_at(PERMISSION, level, True)
        descriptor |= AF
        stored = swapped(descriptor) if s1.big_endian else descriptor
        code = swap_guest_word(s, place.canonical_ipa, stored)
        if code == EAGAIN:
            return replay()
        if code != 0:
            return failure_at(EXTERNAL_WALK, level, False)
    inside = output_mask(r, level, descriptor)
    pa = (descriptor_address(r, descriptor) & ~inside) | (ia & inside)
    return Walk(0, False, ZERO, False, False, level, descriptor, tables, pa)


@inline
def permits(s1: Stage1, w: Walk, access: Access, pan: bool) -> bool:
    """Whether the leaf allows the access. Mirrors ``compute_s1_permissions``.

    The rules are the architecture's, but for nDirty: Linux does not look at it, though L1 is not offered
    hardware dirty state and a page marked so may not be written.
    """
    if s1.indirect:
        allowed = indirect_permissions(w.descriptor, s1.pir, s1.pire0, s1.has_el0, True)
    else:
        counted = w.tables if s1.tables_count else ZERO
        allowed = direct_permissions(w.descriptor, counted, s1.has_el0, False, s1.wxn)
    return stage1_permits(allowed, access.kind, access.el, pan, s1.epan)


@kernel
def slow_walk(
    s: State, vcpu: int, s1: Stage1, access: Access, va: Word, pan: bool, through: bool, pa_bits: int
) -> Walk:
    """All of stage 1 in software: registers, walk, permissions. Mirrors ``handle_at_slow``."""
    w = setup_s1_walk(s1, access, va, pa_bits)
    if w.failed or w.off:
        return w
    w = walk_s1(s, vcpu, s1, sign_extended(va), through)
    if not w.failed and access.checked and not permits(s1, w, access, pan):
        return failure_at(PERMISSION, w.level, False)
    return w
