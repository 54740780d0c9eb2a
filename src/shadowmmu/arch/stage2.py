"""Stage 2 of the VMSAv8-64: descriptors, permissions and the walk.

Source: Arm ARM D8.3 (descriptor formats), D8.4 (access permissions), pseudocode ``AArch64.S2Walk``,
``AArch64.S2CheckPermissions``. Order of faults at one level: translation, address size, access flag,
permission.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.fault import (
    ACCESS_FLAG,
    ADDRESS_SIZE,
    EXECUTE,
    NONE,
    TRANSLATION,
    WRITE,
)
from shadowmmu.arch.fields import Field, Layout
from shadowmmu.arch.regime import Regime, first_block_level, level_shift, root_base
from shadowmmu.compiled import U64, Word, Words, inline

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
def output_address(r: Regime, descriptor: Word, level: int, ipa: Word) -> Word:
    """Where a leaf at ``level`` sends ``ipa``."""
    inside = (ONE << U64(level_shift(r, level))) - ONE
    return (descriptor & OA_BITS & ~inside) | (ipa & inside)


@inline
def table_address(r: Regime, descriptor: Word) -> Word:
    """Physical address of the table a table descriptor points to."""
    return descriptor & OA_BITS & ~((ONE << U64(r.page_shift)) - ONE)


@inline
def stage2_walk(mem: Words, r: Regime, vttbr: Word, ipa: Word) -> Stage2Walk:
    """Walk stage-2 tables in ``mem`` (word index = address >> 3) for ``ipa``.

    Permissions are left to ``stage2_permits``. O(levels). Source: ``AArch64.S2Walk``.
    """
    if ipa >> U64(r.ia_bits) != ZERO:
        return Stage2Walk(TRANSLATION, 0, ZERO, ZERO)
    base = root_base(r, vttbr)
    if base >> U64(r.oa_bits) != ZERO:
        return Stage2Walk(ADDRESS_SIZE, 0, ZERO, ZERO)
    level = r.start_level
    shift = U64(level_shift(r, level))
    stride = U64(r.stride)
    index_mask = (ONE << stride) - ONE
    word = (base >> THREE) + (ipa >> shift)
    while True:
        descriptor = mem[word]
        if descriptor & VALID == ZERO:
            return Stage2Walk(TRANSLATION, level, descriptor, word)
        if level == 3 or descriptor & TABLE == ZERO:
            break
        following = table_address(r, descriptor)
        if following >> U64(r.oa_bits) != ZERO:
            return Stage2Walk(ADDRESS_SIZE, level, descriptor, word)
        level += 1
        shift -= stride
        word = (following >> THREE) + ((ipa >> shift) & index_mask)
    return stage2_leaf(r, descriptor, level, word)


@inline
def stage2_leaf(r: Regime, descriptor: Word, level: int, word: Word) -> Stage2Walk:
    """What a valid descriptor that ends the walk means: a leaf, or the fault it takes."""
    if level == 3:
        if descriptor & PAGE_BIT == ZERO:
            return Stage2Walk(TRANSLATION, level, descriptor, word)
    elif level < first_block_level(r):
        return Stage2Walk(TRANSLATION, level, descriptor, word)
    if (descriptor & OA_BITS) >> U64(r.oa_bits) != ZERO:
        return Stage2Walk(ADDRESS_SIZE, level, descriptor, word)
    if descriptor & AF == ZERO:
        return Stage2Walk(ACCESS_FLAG, level, descriptor, word)
    return Stage2Walk(NONE, level, descriptor, word)


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
