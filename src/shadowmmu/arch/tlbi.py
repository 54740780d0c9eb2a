"""Operands of the TLBIs that name intermediate physical addresses, and the range each covers.

Source: Arm ARM C5.5 (TLBI IPAS2E1, RIPAS2E1), D8.16 (TTL hint, range operands).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.registers import TLBI_IPAS2, TLBI_RIPAS2
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
