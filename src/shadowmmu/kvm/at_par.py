"""PAR_EL1 as L0 writes it after an AT that it walked itself.

Mirrors Linux 7.3.4 ``compute_par_s1``, ``compute_par_s12``, ``combine_s1_s2_attr``, ``compute_final_sh``
(``at.c``). Where the combination of both stages is not the architecture's (``arch.attributes``), it says so.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.answer import (
    PAR_ATTR_SHIFT,
    PAR_F,
    PAR_FST_SHIFT,
    PAR_PA,
    PAR_PTW,
    PAR_RES1,
    PAR_S,
    PAR_SH_SHIFT,
)
from shadowmmu.arch.attributes import (
    FWB_NC,
    FWB_NORMAL,
    FWB_WB,
    NON_SHAREABLE,
    NORMAL_NC,
    NORMAL_WB,
    OUTER_SHAREABLE,
    DEVICE_nGnRnE,
    combine_shareability,
    is_device,
    mair_attribute,
    uncached,
)
from shadowmmu.arch.controls import Stage1
from shadowmmu.arch.registers import HCR_EL2
from shadowmmu.arch.stage1 import ATTR_INDEX_LOW, ATTR_INDEX_SHIFT, SH_LOW, SH_SHIFT
from shadowmmu.arch.stage2 import memory_attribute
from shadowmmu.compiled import I64, U64, Word, inline
from shadowmmu.kvm.at_walk import Walk

HCR_FWB: Final = HCR_EL2.mask("FWB")
HCR_CD: Final = HCR_EL2.mask("CD")
ZERO: Final = U64(0)
OUTPUT_48: Final = U64(0x0000_FFFF_FFFF_F000)
ATTR_LOW: Final = U64(0xFF)
THREE: Final = U64(3)

NC: Final = 0x4
WRITE_THROUGH: Final = 0x8
WRITE_BACK: Final = 0xC
CACHING: Final = 0xC
HINTS: Final = 0x3


@inline
def par_of_fault(status: Word, stage2: bool, walk: bool) -> Word:
    """PAR_EL1 of a fault; ``walk``: stage 2 refused a stage-1 table."""
    par = PAR_F | PAR_RES1 | (status << PAR_FST_SHIFT)
    if walk:
        par |= PAR_PTW
    if stage2:
        par |= PAR_S
    return par


@inline
def par_of_output(pa: Word, attribute: int, shareability: int) -> Word:
    """The fields of a successful PAR_EL1 that both stages fill."""
    return (pa & PAR_PA) | (U64(shareability) << PAR_SH_SHIFT) | (U64(attribute) << PAR_ATTR_SHIFT)


@inline
def final_shareability(attribute: int, shareability: int) -> int:
    """Device and Non-cacheable memory is outer shareable; the reserved encoding means not shareable."""
    if is_device(attribute) or attribute == NORMAL_NC:
        return OUTER_SHAREABLE
    return shareability if shareability >= OUTER_SHAREABLE else NON_SHAREABLE


@inline
def par_s1(s1: Stage1, w: Walk) -> Word:
    """PAR_EL1 after stage 1 in software. Mirrors ``compute_par_s1``.

    Bit 11 is set and NS is not; the CPU's own answer has both. MAIR's byte is reported as it stands.
    """
    if w.failed:
        return par_of_fault(w.status, w.stage2, w.stage2)
    if w.off:
        attribute = NORMAL_WB if s1.default_cacheable else DEVICE_nGnRnE
        shareability = NON_SHAREABLE if s1.default_cacheable else OUTER_SHAREABLE
        return PAR_RES1 | par_of_output(w.pa, attribute, shareability)
    attribute = mair_attribute(s1.mair, (w.descriptor >> ATTR_INDEX_SHIFT) & ATTR_INDEX_LOW, True)
    if not s1.cacheable:
        attribute = uncached(attribute)
    shareability = I64((w.descriptor >> SH_SHIFT) & SH_LOW)
    return PAR_RES1 | par_of_output(w.pa, attribute, final_shareability(attribute, shareability))


@inline
def stage2_half(bits: int) -> int:
    """Two bits of MemAttr as a nibble of MAIR: 1 Non-cacheable, 2 Write-Through, 3 Write-Back."""
    return bits << 2


@inline
def stage2_attribute(memattr: int) -> int:
    """MemAttr[3:0] as a byte of MAIR. Mirrors ``s2_memattr_to_attr``, its choices for reserved values too."""
    if memattr < 4:
        return memattr << 2
    if memattr == 0b0100:
        return WRITE_BACK << 4 | WRITE_BACK
    if memattr & 3 == 0:
        return NORMAL_NC
    return stage2_half(memattr >> 2) << 4 | stage2_half(memattr & 3)


@inline
def combined_half(first: int, second: int) -> int:
    """Inner or outer cacheability of both stages. Mirrors ``combine_s1_s2_attr``.

    A transient Write-Back under a Write-Through stage 2 stays Write-Back here; the architecture makes it
    Write-Through.
    """
    transient = first != NC and first < WRITE_THROUGH and first & HINTS != 0
    caching = (WRITE_THROUGH if first < NC else WRITE_BACK) if transient else first & CACHING
    if caching == NC or second == NC:
        return NC
    if transient:
        return (0 if caching == WRITE_THROUGH else NC) | (first & HINTS)
    weaker = caching == WRITE_THROUGH or second == WRITE_THROUGH
    return (WRITE_THROUGH if weaker else WRITE_BACK) | (first & HINTS)


@inline
def combined_fwb(first: int, memattr: int) -> int:
    """Both stages where stage 2 wins (FEAT_S2FWB).

    Forced Write-Back is reported with every allocation hint; the architecture keeps stage 1's hints.
    """
    code = memattr & 7
    if code == FWB_NC:
        return uncached(first)
    if code == FWB_WB:
        return NORMAL_WB
    if code >= FWB_NORMAL:
        return first
    return min(code << 2, first)


@inline
def combined(first: int, memattr: int) -> int:
    """Both stages without FWB: a Device type wins, else each half by itself."""
    second = stage2_attribute(memattr)
    if is_device(first) or is_device(second):
        return min(first, second)
    inner = combined_half(first & 0xF, second & 0xF)
    return combined_half(first >> 4, second >> 4) << 4 | inner


@inline
def par_s12(hcr: Word, first_par: Word, output: Word, descriptor: Word) -> Word:
    """PAR_EL1 after both stages; ``descriptor``: L1's leaf. Mirrors ``compute_par_s12``.

    Bit 11 (RES1) stays 0. Shareability combines what PAR has of stage 1, already adapted to its memory type.
    """
    first = I64((first_par >> PAR_ATTR_SHIFT) & ATTR_LOW)
    memattr = memory_attribute(descriptor)
    attribute = combined_fwb(first, memattr) if hcr & HCR_FWB != ZERO else combined(first, memattr)
    if hcr & HCR_CD != ZERO:
        attribute = uncached(attribute)
    second = final_shareability(attribute, I64((descriptor >> SH_SHIFT) & SH_LOW))
    shareability = combine_shareability(I64((first_par >> PAR_SH_SHIFT) & THREE), second)
    return par_of_output(output & OUTPUT_48, attribute, shareability)
