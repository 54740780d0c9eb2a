"""Operands of TLBIs that name addresses: the page or range each covers, and what its hint says.

Source: Arm ARM C5.5 (the instructions), D8.17.5.1 and D8.17.5.2 (operands), D8.17.5.3 (TTL hint),
pseudocode ``TLBIRange``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.registers import TLBI_IPAS2, TLBI_RIPAS2
from shadowmmu.arch.tlbi_operations import TLBI_VA
from shadowmmu.compiled import I64, U64, Word, inline

IPA_MASK: Final = TLBI_IPAS2.low_mask("IPA")
TTL_SHIFT: Final = TLBI_IPAS2.lsb("TTL")
TTL_MASK: Final = TLBI_IPAS2.low_mask("TTL")
BASE_MASK: Final = TLBI_RIPAS2.low_mask("BaseADDR")
NUM_SHIFT: Final = TLBI_RIPAS2.lsb("NUM")
NUM_MASK: Final = TLBI_RIPAS2.low_mask("NUM")
SCALE_SHIFT: Final = TLBI_RIPAS2.lsb("SCALE")
SCALE_MASK: Final = TLBI_RIPAS2.low_mask("SCALE")
TG_SHIFT: Final = TLBI_RIPAS2.lsb("TG")
TG_MASK: Final = TLBI_RIPAS2.low_mask("TG")
ZERO: Final = U64(0)
ONE: Final = U64(1)
FIVE: Final = U64(5)
PAGE: Final = U64(12)

VA_MASK: Final = TLBI_VA.low_mask("VA")
IPA_52_MASK: Final = TLBI_IPAS2.mask("IPA_HIGH") | TLBI_IPAS2.mask("IPA")
BASE_TOP: Final = U64(TLBI_RIPAS2["BaseADDR"].width - 1)
RANGE_TTL_SHIFT: Final = TLBI_RIPAS2.lsb("TTL")
RANGE_TTL_MASK: Final = TLBI_RIPAS2.low_mask("TTL")
PAGE_BYTES: Final = U64(1 << 12)

BY_ALL: Final = 0
BY_VA: Final = 1
BY_IPA: Final = 2

NO_LEVEL: Final = 4
"""No level is known: levels are -1 to 3."""


class Extent(NamedTuple):
    """What an operand names."""

    start: Word
    """First address, sign-extended if it is a VA."""
    size: Word
    """Bytes covered; a range never wraps."""
    granule: int
    """log2 of the granule of the entries, 0 for any."""
    level: int
    """Level of the leaves by the TTL hint, NO_LEVEL for any."""
    guaranteed: bool
    """False: reserved granule, or a base that does not suit the hint. No entry need be invalidated."""


class IpaRange(NamedTuple):
    """``size`` bytes from ``start``."""

    start: Word
    size: Word


@inline
def ipas2_address(operand: Word) -> Word:
    """The IPA an IPAS2E1 operand names."""
    return (operand & IPA_MASK) << PAGE


@inline
def ipas2_ttl(operand: Word) -> int:
    """The TTL hint, 0 for none."""
    return I64((operand >> TTL_SHIFT) & TTL_MASK)


@inline
def ttl_size(ttl: int) -> Word:
    """Bytes of the leaf a TTL hint names; 0 where it names none. Source: Arm ARM D8.16.5.5."""
    granule = ttl >> 2
    level = ttl & 3
    if granule == 0 or level == 0:
        return ZERO
    page_shift = 12 if granule == 1 else (14 if granule == 2 else 16)
    if page_shift != 12 and level == 1:
        return ZERO
    return ONE << U64(page_shift + (page_shift - 3) * (3 - level))


@inline
def ripas2_range(operand: Word) -> IpaRange:
    """The range a RIPAS2E1 operand covers: (NUM + 1) << (5 * SCALE + 1) granules from BaseADDR.

    >>> ripas2_range(U64(0x0000_4000_0004_0000))
    IpaRange(start=np.uint64(1073741824), size=np.uint64(8192))
    """
    granule = I64((operand >> TG_SHIFT) & TG_MASK)
    shift = PAGE if granule == 1 else (U64(14) if granule == 2 else U64(16))
    pages = (((operand >> NUM_SHIFT) & NUM_MASK) + ONE) << (
        FIVE * ((operand >> SCALE_SHIFT) & SCALE_MASK) + ONE
    )
    return IpaRange((operand & BASE_MASK) << shift, pages << shift)


@inline
def granule_of(tg: int) -> int:
    """log2 of the granule of a TG or TTL[3:2] code, 0 for none."""
    if tg == 1:
        return 12
    if tg == 2:
        return 14
    if tg == 3:
        return 16
    return 0


@inline
def hinted_level(granule: int, level: int, lpa2: bool) -> int:
    """The level two hint bits mean with a granule; NO_LEVEL where they are reserved. Table D8-123.

    Level 0 with 4K and level 1 with 16K hold leaves only with FEAT_LPA2.
    """
    if granule == 0 or (level == 0 and not (granule == 12 and lpa2)):
        return NO_LEVEL
    if level == 1 and granule == 14 and not lpa2:
        return NO_LEVEL
    return level


@inline
def leaf_shift(granule: int, level: int) -> int:
    """log2 of what an entry at ``level`` -1..3 covers."""
    return granule + (granule - 3) * (3 - level)


@inline
def single_start(by: int, operand: Word, pa_bits: int) -> Word:
    """The page an operand names: VA[63:56] copies VA[55]; IPA[51:48] counts with 52-bit addresses."""
    if by == BY_VA:
        start = (operand & VA_MASK) << PAGE
        if start >> U64(55) != ZERO:
            start |= ~ZERO << U64(56)
        return start
    if pa_bits > 48:
        return (operand & IPA_52_MASK) << PAGE
    return ipas2_address(operand)


@inline
def range_start(by: int, operand: Word, unit: int) -> Word:
    """BaseADDR in units of 1 << ``unit`` bytes; a VA is sign-extended from the field's top bit."""
    start = (operand & BASE_MASK) << U64(unit)
    if by == BY_VA and (operand >> BASE_TOP) & ONE != ZERO:
        start |= ~ZERO << (BASE_TOP + U64(unit))
    return start


@inline
def range_size(start: Word, operand: Word, granule: int) -> Word:
    """Bytes of a range, cut off at the top of the address space: it does not wrap."""
    scale = (operand >> SCALE_SHIFT) & SCALE_MASK
    pages = (((operand >> NUM_SHIFT) & NUM_MASK) + ONE) << (FIVE * scale + ONE)
    size = pages << U64(granule)
    room = ~start
    if size > room:
        size = room + ONE
    return size


@inline
def single_extent(by: int, operand: Word, pa_bits: int, lpa2: bool) -> Extent:
    """What the operand of a VA or IPA form names."""
    ttl = I64((operand >> TTL_SHIFT) & TTL_MASK)
    granule = granule_of(ttl >> 2)
    level = hinted_level(granule, ttl & 3, lpa2)
    if level == NO_LEVEL:
        granule = 0
    return Extent(single_start(by, operand, pa_bits), PAGE_BYTES, granule, level, True)


@inline
def range_extent(by: int, operand: Word, large: bool, lpa2: bool) -> Extent:
    """What the operand of a range form names; ``large``: BaseADDR counts 64K, whatever the granule (DS).

    A base that is not aligned to a leaf of the hinted level makes the range UNPREDICTABLE. D8.17.5.2 also
    asks for 512G alignment without a hint where 4K is used with DS; no instruction's page does, nor is it
    here.
    """
    granule = granule_of(I64((operand >> TG_SHIFT) & TG_MASK))
    level = I64((operand >> RANGE_TTL_SHIFT) & RANGE_TTL_MASK)
    if level == 0:
        level = NO_LEVEL
    else:
        level = hinted_level(granule, level, lpa2)
    start = range_start(by, operand, 16 if large else granule)
    guaranteed = granule != 0
    if level != NO_LEVEL:
        guaranteed = start & ((ONE << U64(leaf_shift(granule, level))) - ONE) == ZERO
    return Extent(start, range_size(start, operand, granule), granule, level, guaranteed)
