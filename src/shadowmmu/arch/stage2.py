"""Stage 2 of the VMSAv8-64: descriptors, permissions and the walk.

Source: Arm ARM D8.3 (descriptor formats), D8.4 (access permissions), pseudocode ``AArch64.S2Walk``,
``AArch64.S2CheckPermissions``. Order of faults at one level: external abort, translation, address size,
access flag, permission.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.fault import (
    ACCESS_FLAG,
    ADDRESS_SIZE,
    EXECUTE,
    EXTERNAL_WALK,
    NONE,
    PERMISSION,
    TRANSLATION,
    WRITE,
)
from shadowmmu.arch.fields import Field, Layout
from shadowmmu.arch.memory import beyond_memory, read_descriptor
from shadowmmu.arch.regime import Regime, beyond_output, level_shift, output_address, table_address
from shadowmmu.compiled import I64, U64, Word, Words, inline

STAGE2_LEAF: Final = Layout(
    "stage-2 block or page",
    "Arm ARM D8.3.2",
    Field("VALID", 0, 1, "the entry translates"),
    Field("PAGE", 1, 1, "page at level 3; 0 makes a block above it"),
    Field("MemAttr", 2, 4, "memory type"),
    Field("S2AP_R", 6, 1, "reads allowed"),
    Field("S2AP_W", 7, 1, "writes allowed"),
    Field("SH", 8, 2, "shareability", {0: "non", 2: "outer", 3: "inner"}),
    Field("AF", 10, 1, "accessed"),
    Field("FnXS", 11, 1, "not XS"),
    Field("OA", 12, 36, "output address, bits 47:12", address=True),
    Field("DBM", 51, 1, "dirty bit modifier"),
    Field("Contiguous", 52, 1, "one of a run that may share a TLB entry"),
    Field("XN", 53, 2, "no execution", {1: "EL1", 2: "EL0 and EL1", 3: "EL0"}),
    Field("SW", 55, 4, "left to software"),
)

STAGE2_TABLE: Final = Layout(
    "stage-2 table",
    "Arm ARM D8.3.1",
    Field("VALID", 0, 1, "the entry translates"),
    Field("TABLE", 1, 1, "points to a table"),
    Field("NLTA", 12, 36, "next-level table address, bits 47:12", address=True),
)

VALID: Final = STAGE2_LEAF.mask("VALID")
TABLE: Final = STAGE2_TABLE.mask("TABLE")
PAGE_BIT: Final = STAGE2_LEAF.mask("PAGE")
S2AP_R: Final = STAGE2_LEAF.mask("S2AP_R")
S2AP_W: Final = STAGE2_LEAF.mask("S2AP_W")
AF: Final = STAGE2_LEAF.mask("AF")
CONTIGUOUS: Final = STAGE2_LEAF.mask("Contiguous")
XN: Final = STAGE2_LEAF.mask("XN")
XN_SHIFT: Final = STAGE2_LEAF.lsb("XN")
XN_LOW: Final = STAGE2_LEAF.low_mask("XN")
OA_BITS: Final = STAGE2_LEAF.mask("OA")
DBM: Final = STAGE2_LEAF.mask("DBM")
MEMATTR_SHIFT: Final = STAGE2_LEAF.lsb("MemAttr")
MEMATTR_LOW: Final = STAGE2_LEAF.low_mask("MemAttr")
SH_SHIFT: Final = STAGE2_LEAF.lsb("SH")
SH_LOW: Final = STAGE2_LEAF.low_mask("SH")
ZERO: Final = U64(0)
ONE: Final = U64(1)
TWO: Final = U64(2)
THREE: Final = U64(3)
TABLE_TYPE: Final = VALID | TABLE
BLOCK_TYPE: Final = VALID


class Stage2Walk(NamedTuple):
    """Outcome of a walk: ``fault`` NONE, or its kind; the last descriptor read and where it stands."""

    fault: int
    level: int
    descriptor: Word
    word: Word


@inline
def stage2_walk(mem: Words, r: Regime, root: Word, ipa: Word, big_endian: bool) -> Stage2Walk:
    """Walk stage-2 tables in ``mem`` (word index = address >> 3) from ``root`` for ``ipa``.

    Access flag and permissions are left to the caller. O(levels). Source: ``AArch64.S2Walk``.
    """
    if ipa >> U64(r.ia_bits) != ZERO:
        return Stage2Walk(TRANSLATION, 0, ZERO, ZERO)
    if beyond_output(r, root):
        return Stage2Walk(ADDRESS_SIZE, 0, ZERO, ZERO)
    level = r.start_level
    shift = U64(level_shift(r, level))
    stride = U64(r.stride)
    index_mask = (ONE << stride) - ONE
    word = (root >> THREE) + (ipa >> shift)
    while True:
        if beyond_memory(mem, word):
            return Stage2Walk(EXTERNAL_WALK, level, ZERO, word)
        descriptor = read_descriptor(mem, word, big_endian)
        if descriptor & VALID == ZERO:
            return Stage2Walk(TRANSLATION, level, descriptor, word)
        if level == 3 or descriptor & TABLE == ZERO:
            return Stage2Walk(leaf_fault(r, descriptor, level, ipa), level, descriptor, word)
        following = table_address(r, descriptor)
        if beyond_output(r, following):
            return Stage2Walk(ADDRESS_SIZE, level, descriptor, word)
        level += 1
        shift -= stride
        word = (following >> THREE) + ((ipa >> shift) & index_mask)


@inline
def leaf_fault(r: Regime, descriptor: Word, level: int, ia: Word) -> int:
    """The fault of a valid descriptor that ends a walk of either stage, before the access flag.

    A block may be larger than the output size, so it is the whole output address that counts.
    Source: ``DecodeDescriptorType``, ``AArch64.OAOutOfRange``.
    """
    if level == 3:
        if descriptor & PAGE_BIT == ZERO:
            return TRANSLATION
    elif level < r.block_level:
        return TRANSLATION
    return ADDRESS_SIZE if beyond_output(r, output_address(r, descriptor, level, ia)) else NONE


@inline
def executable_el1(descriptor: Word) -> bool:
    """Whether EL1 may execute: XN[1:0] is 00 or 11. Source: Arm ARM D8.4.3, FEAT_XNX."""
    xn = (descriptor >> XN_SHIFT) & XN_LOW
    return xn == ZERO or xn == THREE


@inline
def executable_el0(descriptor: Word) -> bool:
    """Whether EL0 may execute: XN[1:0] is 00 or 01."""
    xn = (descriptor >> XN_SHIFT) & XN_LOW
    return xn == ZERO or xn == ONE


@inline
def stage2_permits(descriptor: Word, access: int) -> bool:
    """Whether a leaf allows an EL1 access. Source: ``AArch64.S2CheckPermissions``."""
    if access == EXECUTE:
        return executable_el1(descriptor)
    if access == WRITE:
        return descriptor & S2AP_W != ZERO
    return descriptor & S2AP_R != ZERO


@inline
def stage2_fault(walk: Stage2Walk, access: int) -> int:
    """The fault an EL1 access takes after ``walk``, where hardware does not set the access flag; or NONE."""
    if walk.fault != NONE:
        return walk.fault
    if walk.descriptor & AF == ZERO:
        return ACCESS_FLAG
    return NONE if stage2_permits(walk.descriptor, access) else PERMISSION


@inline
def stage2_allows(descriptor: Word, kind: int, el: int, xnx: bool, dirty_managed: bool) -> bool:
    """Whether a leaf allows an access of ``kind`` from ``el`` 0 or 1.

    With dirty state managed by hardware a DBM leaf counts as writable; without FEAT_XNX bit 54 alone forbids
    execution. Source: ``AArch64.S2CheckPermissions``.
    """
    if kind == EXECUTE:
        if not xnx:
            return (descriptor >> XN_SHIFT) & TWO == ZERO
        return executable_el1(descriptor) if el == 1 else executable_el0(descriptor)
    if kind == WRITE:
        return descriptor & S2AP_W != ZERO or (dirty_managed and descriptor & DBM != ZERO)
    return descriptor & S2AP_R != ZERO


@inline
def memory_attribute(descriptor: Word) -> int:
    """MemAttr[3:0] of a leaf."""
    return I64((descriptor >> MEMATTR_SHIFT) & MEMATTR_LOW)


@inline
def device_type(descriptor: Word, fwb: bool) -> bool:
    """Whether a leaf makes memory Device. Source: Arm ARM D8.6.5 and, with FWB, D8.6.6."""
    memattr = memory_attribute(descriptor)
    if fwb:
        return memattr & 4 == 0
    return memattr >> 2 == 0
