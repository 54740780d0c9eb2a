"""The geometry of a translation regime: granule, levels, input and output size.

Decoded once from a control register; every walk is parametrised by it. A regime is six small
integers, so kernels pass it by value. Levels run from -1 (52-bit input, 4K granule) to 3.
Source: Arm ARM D8.2 (granules, levels, block sizes), D24.2.181 (TCR_EL1), D24.2.193 (VTCR_EL2), pseudocode
``AArch64.S2StartLevel``, ``AArch64.S2InvalidSL``, ``AArch64.S2InconsistentSL``,
``AArch64.PhysicalAddressSize``, ``AArch64.BlockDescSupported``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.registers import TTBR_EL1, VTCR_EL2
from shadowmmu.compiled import I64, U64, Word, inline

T0SZ_MASK: Final = VTCR_EL2.low_mask("T0SZ")
SL0_SHIFT: Final = VTCR_EL2.lsb("SL0")
SL0_MASK: Final = VTCR_EL2.low_mask("SL0")
SL2: Final = VTCR_EL2.mask("SL2")
DS: Final = VTCR_EL2.mask("DS")
TG0_SHIFT: Final = VTCR_EL2.lsb("TG0")
TG0_MASK: Final = VTCR_EL2.low_mask("TG0")
PS_SHIFT: Final = VTCR_EL2.lsb("PS")
PS_MASK: Final = VTCR_EL2.low_mask("PS")
BASE: Final = TTBR_EL1.mask("BADDR")
ZERO: Final = U64(0)
ONE: Final = U64(1)

SHIFT_4K: Final = 12
SHIFT_16K: Final = 14
SHIFT_64K: Final = 16
MAX_CONCATENATED: Final = 4
"""Up to 2**4 start tables side by side, at stage 2 only (Arm ARM D8.2.9)."""
MIN_TXSZ: Final = 16
MIN_TXSZ_52: Final = 12
MAX_TXSZ: Final = 39
MAX_TXSZ_SMALL: Final = 48
MAX_TXSZ_SMALL_64K: Final = 47

OA48: Final = 0
"""Descriptors hold bits 47:12 of an address, in place."""
OA52_64K: Final = 1
"""64K granule with 52-bit output (FEAT_LPA): bits 51:48 stand in descriptor bits 15:12."""
OA52_DS: Final = 2
"""4K and 16K granules with DS (FEAT_LPA2): bits 49:48 in place, 51:50 in descriptor bits 9:8."""

ADDRESS_48: Final = U64(0x0000_FFFF_FFFF_F000)
ADDRESS_50: Final = U64(0x0003_FFFF_FFFF_F000)
LPA_FIELD: Final = U64(0xF)
LPA_SHIFT: Final = U64(12)
DS_FIELD: Final = U64(0x3)
DS_SHIFT: Final = U64(8)
ROOT_48: Final = U64(0x0000_FFFF_FFFF_FFC0)
ROOT_HIGH_SHIFT: Final = U64(2)
BIT_48: Final = U64(48)
BIT_50: Final = U64(50)


class Regime(NamedTuple):
    """What a walk must know. Sizes are log2 of bytes; ``wide`` is OA48, OA52_64K or OA52_DS; blocks are
    allowed from level ``block_level`` on."""

    page_shift: int
    stride: int
    start_level: int
    ia_bits: int
    oa_bits: int
    wide: int
    block_level: int


@inline
def output_bits(ps: Word) -> int:
    """Output size for a PS/IPS/PARange code; the reserved code reads as 52. Source: VTCR_EL2.PS."""
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
def granule_shift_upper(tg1: Word) -> int:
    """log2 of the granule for a TG1 code; the reserved code reads as 64K. Source: TCR_EL1.TG1."""
    code = I64(tg1)
    if code == 1:
        return SHIFT_16K
    if code == 2:
        return SHIFT_4K
    return SHIFT_64K


@inline
def address_format(page_shift: int, ps: Word, ds: bool, pa_bits: int) -> int:
    """How descriptors hold output addresses. ``ds`` is the register's bit on a machine with FEAT_LPA2.

    The 64K granule has its own 52-bit form, chosen by the output size where the machine has 52 address
    bits (FEAT_LPA), and does not look at DS.
    """
    if page_shift == SHIFT_64K:
        return OA52_64K if output_bits(ps) == 52 and pa_bits == 52 else OA48
    return OA52_DS if ds else OA48


@inline
def limited_output(wide: int, ps: Word, pa_bits: int) -> int:
    """Output size in force: 52 needs a 52-bit format, and no more than the machine has.

    Source: ``AArch64.PhysicalAddressSize``.
    """
    bits = output_bits(ps)
    if bits == 52 and wide == OA48:
        bits = 48
    return pa_bits if bits > pa_bits else bits


@inline
def first_block_level(page_shift: int, wide: int, pa_bits: int) -> int:
    """Lowest level number that may hold a block. Source: ``AArch64.BlockDescSupported``."""
    if page_shift == SHIFT_4K:
        return 0 if wide == OA52_DS else 1
    if page_shift == SHIFT_16K:
        return 1 if wide == OA52_DS else 2
    return 1 if pa_bits == 52 else 2


@inline
def start_level(page_shift: int, sl0: Word, sl2: bool) -> int:
    """Start level for SL0 and SL2. Source: Arm ARM, VTCR_EL2.SL0 and SL2.

    SL0 of 3 means level 3 with the 4K granule (FEAT_TTST) and level 0 with the 16K granule.
    """
    code = I64(sl0)
    if page_shift == SHIFT_4K:
        if sl2:
            return -1
        return 3 if code == 3 else 2 - code
    return 3 - code


@inline
def stage2_regime(vtcr: Word, pa_bits: int) -> Regime:
    """The regime VTCR_EL2 describes, its output capped to the ``pa_bits`` the machine implements.

    Nothing is checked here: ``stage2_legal`` says whether the combination may be walked.
    """
    page_shift = granule_shift((vtcr >> TG0_SHIFT) & TG0_MASK)
    ps = (vtcr >> PS_SHIFT) & PS_MASK
    ds = vtcr & DS != ZERO
    wide = address_format(page_shift, ps, ds, pa_bits)
    level = start_level(page_shift, (vtcr >> SL0_SHIFT) & SL0_MASK, ds and vtcr & SL2 != ZERO)
    ia_bits = 64 - I64(vtcr & T0SZ_MASK)
    oa_bits = limited_output(wide, ps, pa_bits)
    blocks = first_block_level(page_shift, wide, pa_bits)
    return Regime(page_shift, page_shift - 3, level, ia_bits, oa_bits, wide, blocks)


@inline
def stage1_regime(page_shift: int, txsz: Word, ps: Word, ds: bool, pa_bits: int) -> Regime:
    """The regime of one half of a stage 1: the start level follows from the input size.

    Source: ``AArch64.S1StartLevel``. Sizes that ``input_size_legal`` refuses give some level, never used.
    """
    wide = address_format(page_shift, ps, ds, pa_bits)
    ia_bits = 64 - I64(txsz)
    stride = page_shift - 3
    level = 3 - (ia_bits - 1 - page_shift) // stride
    oa_bits = limited_output(wide, ps, pa_bits)
    return Regime(
        page_shift, stride, level, ia_bits, oa_bits, wide, first_block_level(page_shift, wide, pa_bits)
    )


@inline
def input_size_legal(r: Regime, large: bool, small: bool) -> bool:
    """Whether TxSZ lies in its range; outside, this room takes the Translation fault the rules allow.

    ``large``: 52-bit input with the 64K granule (FEAT_LVA); ``small``: FEAT_TTST.
    Source: ``AArch64.S1MinTxSZ``, ``AArch64.S2MinTxSZ``, ``AArch64.MaxTxSZ``.
    """
    least = MIN_TXSZ
    if r.wide == OA52_DS or (r.page_shift == SHIFT_64K and large):
        least = MIN_TXSZ_52
    most = MAX_TXSZ
    if small:
        most = MAX_TXSZ_SMALL_64K if r.page_shift == SHIFT_64K else MAX_TXSZ_SMALL
    return least <= 64 - r.ia_bits <= most


@inline
def start_level_legal(r: Regime, pa_bits: int, sl0: Word, sl2: bool, small: bool) -> bool:
    """Whether SL0 and SL2 may be used with this granule. Source: ``AArch64.S2InvalidSL``."""
    level = r.start_level
    code = I64(sl0)
    if r.page_shift == SHIFT_4K:
        if sl2 and r.wide == OA52_DS:
            return code == 0 and pa_bits == 52
        return not (level == 0 and pa_bits <= 42) and (level != 3 or small)
    if r.page_shift == SHIFT_16K:
        if level == 0:
            return r.wide == OA52_DS and pa_bits == 52
        return not (level == 1 and pa_bits <= 40)
    return level != 0 and not (level == 1 and pa_bits <= 42)


@inline
def start_size_legal(r: Regime) -> bool:
    """Whether the input fits the start level: one table in part, up to 16 tables side by side.

    Source: ``AArch64.S2InconsistentSL``.
    """
    return 1 <= start_entries_shift(r) <= r.stride + MAX_CONCATENATED


@inline
def stage2_legal(r: Regime, vtcr: Word, pa_bits: int, large: bool, small: bool) -> bool:
    """Whether VTCR_EL2 may be walked at all; if not, every translation faults at level 0.

    An input larger than the machine's addresses is refused, as ``Unpredictable_LARGEIPA`` allows.
    """
    sl0 = (vtcr >> SL0_SHIFT) & SL0_MASK
    return (
        input_size_legal(r, large, small)
        and r.ia_bits <= pa_bits
        and start_level_legal(r, pa_bits, sl0, vtcr & SL2 != ZERO, small)
        and start_size_legal(r)
    )


@inline
def level_shift(r: Regime, level: int) -> int:
    """log2 of what one entry at ``level`` covers."""
    return r.page_shift + r.stride * (3 - level)


@inline
def entry_size(r: Regime, level: int) -> Word:
    """Bytes one entry at ``level`` covers."""
    return ONE << U64(r.page_shift + r.stride * (3 - level))


@inline
def start_entries_shift(r: Regime) -> int:
    """log2 of the entries of the start table(s): above ``stride`` they are concatenated."""
    return r.ia_bits - level_shift(r, r.start_level)


@inline
def root_base(r: Regime, ttbr: Word) -> Word:
    """Base of the start table(s): BADDR aligned down to their size, with 52 bits to 64 bytes at least.

    Source: ``AArch64.S1TTBaseAddress``, ``AArch64.S2TTBaseAddress``.
    """
    size_shift = start_entries_shift(r) + 3
    if r.wide == OA48:
        base = ttbr & BASE
    else:
        base = (ttbr & ROOT_48) | (((ttbr >> ROOT_HIGH_SHIFT) & LPA_FIELD) << BIT_48)
        if size_shift < 6:
            size_shift = 6
    return base >> U64(size_shift) << U64(size_shift)


@inline
def descriptor_address(r: Regime, descriptor: Word) -> Word:
    """The address a descriptor holds, not yet aligned: bits below its granule may be other fields.

    Source: Arm ARM D8.3.1 and D8.3.2, the address fields for each granule and size.
    """
    if r.wide == OA48:
        return descriptor & ADDRESS_48
    if r.wide == OA52_64K:
        return (descriptor & ADDRESS_48) | (((descriptor >> LPA_SHIFT) & LPA_FIELD) << BIT_48)
    return (descriptor & ADDRESS_50) | (((descriptor >> DS_SHIFT) & DS_FIELD) << BIT_50)


@inline
def table_address(r: Regime, descriptor: Word) -> Word:
    """Physical address of the table a table descriptor points to."""
    return descriptor_address(r, descriptor) & ~((ONE << U64(r.page_shift)) - ONE)


@inline
def output_address(r: Regime, descriptor: Word, level: int, ia: Word) -> Word:
    """Where a leaf at ``level`` sends the input address ``ia``."""
    inside = (ONE << U64(level_shift(r, level))) - ONE
    return (descriptor_address(r, descriptor) & ~inside) | (ia & inside)


@inline
def beyond_output(r: Regime, pa: Word) -> bool:
    """Whether an address leaves the output size. Source: ``AArch64.OAOutOfRange``."""
    return pa >> U64(r.oa_bits) != ZERO


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
