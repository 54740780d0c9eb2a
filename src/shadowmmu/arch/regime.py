"""The geometry of a translation regime: granule, levels, input and output size.

Decoded once from a control register; every walk is parametrised by it. A regime is five small
integers, so kernels pass it by value.
Source: Arm ARM D8.2 (granules, levels, block sizes), D24.2.193 (VTCR_EL2), pseudocode
``AArch64.S2StartLevel`` and ``AArch64.S2MinTxSZ``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.registers import VTCR_EL2, VTTBR_EL2
from shadowmmu.compiled import I64, U64, Word, inline

T0SZ_MASK: Final = VTCR_EL2.low_mask("T0SZ")
SL0_SHIFT: Final = VTCR_EL2.lsb("SL0")
SL0_MASK: Final = VTCR_EL2.low_mask("SL0")
TG0_SHIFT: Final = VTCR_EL2.lsb("TG0")
TG0_MASK: Final = VTCR_EL2.low_mask("TG0")
PS_SHIFT: Final = VTCR_EL2.lsb("PS")
PS_MASK: Final = VTCR_EL2.low_mask("PS")
VTTBR_BASE: Final = VTTBR_EL2.mask("BADDR")
ONE: Final = U64(1)

SHIFT_4K: Final = 12
SHIFT_16K: Final = 14
SHIFT_64K: Final = 16
MAX_CONCATENATED: Final = 4
"""Up to 2**4 start tables side by side, at stage 2 only (Arm ARM D8.2.9)."""


class Regime(NamedTuple):
    """What a walk must know. Sizes are log2 of bytes, levels 0..3."""

    page_shift: int
    stride: int
    start_level: int
    ia_bits: int
    oa_bits: int


@inline
def output_bits(ps: Word) -> int:
    """Output size for a PS/IPS/PARange code. Source: Arm ARM, VTCR_EL2.PS."""
    code = I64(ps)
    if code == 0:
        return 32
    if code == 1:
        return 36
    if code == 2:
        return 40
    if code == 3:
        return 42
    if code == 4:
        return 44
    if code == 5:
        return 48
    return 52


@inline
def granule_shift(tg0: Word) -> int:
    """log2 of the granule for a TG0 code; the reserved code reads as 64K."""
    code = I64(tg0)
    if code == 0:
        return SHIFT_4K
    if code == 2:
        return SHIFT_16K
    return SHIFT_64K


@inline
def start_level(page_shift: int, sl0: Word) -> int:
    """Start level for SL0. Source: Arm ARM, VTCR_EL2.SL0."""
    if page_shift == SHIFT_4K:
        return 2 - I64(sl0)
    return 3 - I64(sl0)


@inline
def stage2_regime(vtcr: Word, pa_bits: int) -> Regime:
    """The regime VTCR_EL2 describes, its output capped to the ``pa_bits`` the machine implements.

    Nothing is checked here: ``start_table_legal`` says whether the combination may be walked.
    """
    page_shift = granule_shift((vtcr >> TG0_SHIFT) & TG0_MASK)
    oa_bits = output_bits((vtcr >> PS_SHIFT) & PS_MASK)
    if oa_bits > pa_bits:
        oa_bits = pa_bits
    level = start_level(page_shift, (vtcr >> SL0_SHIFT) & SL0_MASK)
    return Regime(page_shift, page_shift - 3, level, 64 - I64(vtcr & T0SZ_MASK), oa_bits)


@inline
def level_shift(r: Regime, level: int) -> int:
    """log2 of what one entry at ``level`` covers."""
    return r.page_shift + r.stride * (3 - level)


@inline
def entry_size(r: Regime, level: int) -> Word:
    """Bytes one entry at ``level`` covers."""
    return ONE << U64(r.page_shift + r.stride * (3 - level))


@inline
def first_block_level(r: Regime) -> int:
    """Lowest level number that may hold a block: 1 for 4K, 2 for 16K and 64K (without LPA2)."""
    if r.page_shift == SHIFT_4K:
        return 1
    return 2


@inline
def start_entries_shift(r: Regime) -> int:
    """log2 of the entries of the start table(s): above ``stride`` they are concatenated."""
    return r.ia_bits - level_shift(r, r.start_level)


@inline
def start_table_legal(r: Regime, pa_bits: int) -> bool:
    """Whether T0SZ and SL0 fit each other and the machine. Source: Arm ARM D8.2.9, ``S2InvalidSL``."""
    level = r.start_level
    if r.page_shift == SHIFT_64K:
        if level == 0 or (level == 1 and pa_bits <= 42):
            return False
    elif r.page_shift == SHIFT_16K:
        if level == 0 or (level == 1 and pa_bits <= 40):
            return False
    elif level < 0 or (level == 0 and pa_bits <= 42):
        return False
    entries = start_entries_shift(r)
    return r.ia_bits <= pa_bits and 1 <= entries <= r.stride + MAX_CONCATENATED


@inline
def root_base(r: Regime, vttbr: Word) -> Word:
    """Base of the start table(s): BADDR aligned down to their size, at least 32 bytes."""
    size_shift = start_entries_shift(r) + 3
    if size_shift < 5:
        size_shift = 5
    return (vttbr & VTTBR_BASE) >> U64(size_shift) << U64(size_shift)


@inline
def stage2_start_level(page_shift: int, ia_bits: int) -> int:
    """Start level with the fewest levels, using concatenation where it saves one (16 tables at most).

    Source: Arm ARM D8.2.9; the choice Linux makes for its own tables.
    """
    stride = page_shift - 3
    levels = (ia_bits - MAX_CONCATENATED - page_shift + stride - 1) // stride
    if levels < 2:
        levels = 2
    return 4 - levels
