"""What the registers of a context say about one translation, decoded.

Each stage becomes a flat record that the walk is parametrised by; features that the machine lacks read as
zero. Source: Arm ARM D24.2 (registers), pseudocode ``AArch64.GetS1TTWParams``, ``AArch64.GetS2TTWParams``,
``AArch64.S1Enabled``, ``AArch64.S1DCacheEnabled``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch import context as c
from shadowmmu.arch.context import FEATURES, Implementation
from shadowmmu.arch.operation import EL2, EL10, HOST
from shadowmmu.arch.regime import (
    OA52_DS,
    Regime,
    granule_shift,
    granule_shift_upper,
    input_size_legal,
    root_base,
    stage1_regime,
    stage2_legal,
    stage2_regime,
)
from shadowmmu.arch.registers import (
    HCR_EL2,
    HCRX_EL2,
    SCTLR_EL1,
    TCR2_EL1,
    TCR_EL1,
    TCR_EL2,
    VTCR_EL2,
)
from shadowmmu.compiled import I64, U64, Word, Words, inline

ZERO: Final = U64(0)
THREE: Final = U64(3)
SIX_BITS: Final = U64(0x3F)
SEVEN: Final = U64(7)

FEAT_LVA: Final = FEATURES.mask("LVA")
FEAT_LPA2: Final = FEATURES.mask("LPA2")
FEAT_TTST: Final = FEATURES.mask("TTST")
FEAT_HAF: Final = FEATURES.mask("HAF")
FEAT_HDBS: Final = FEATURES.mask("HDBS")
FEAT_HPDS: Final = FEATURES.mask("HPDS")
FEAT_XNX: Final = FEATURES.mask("XNX")
FEAT_PAN: Final = FEATURES.mask("PAN")
FEAT_EPAN: Final = FEATURES.mask("EPAN")
FEAT_E0PD: Final = FEATURES.mask("E0PD")
FEAT_FWB: Final = FEATURES.mask("FWB")
FEAT_S1PIE: Final = FEATURES.mask("S1PIE")
FEAT_MTE2: Final = FEATURES.mask("MTE2")

TCR_IPS_SHIFT: Final = TCR_EL1.lsb("IPS")
TCR_HA: Final = TCR_EL1.mask("HA")
TCR_HD: Final = TCR_EL1.mask("HD")
TCR_DS: Final = TCR_EL1.mask("DS")
UPPER_TG_SHIFT: Final = TCR_EL1.lsb("TG1")
UPPER_TXSZ_SHIFT: Final = TCR_EL1.lsb("T1SZ")
UPPER_SH_SHIFT: Final = TCR_EL1.lsb("SH1")
UPPER_EPD: Final = TCR_EL1.mask("EPD1")
UPPER_TBI: Final = TCR_EL1.mask("TBI1")
UPPER_TBID: Final = TCR_EL1.mask("TBID1")
UPPER_HPD: Final = TCR_EL1.mask("HPD1")
UPPER_E0PD: Final = TCR_EL1.mask("E0PD1")
LOWER_TG_SHIFT: Final = TCR_EL1.lsb("TG0")
LOWER_SH_SHIFT: Final = TCR_EL1.lsb("SH0")
LOWER_EPD: Final = TCR_EL1.mask("EPD0")
LOWER_TBI: Final = TCR_EL1.mask("TBI0")
LOWER_TBID: Final = TCR_EL1.mask("TBID0")
LOWER_HPD: Final = TCR_EL1.mask("HPD0")
LOWER_E0PD: Final = TCR_EL1.mask("E0PD0")
EL2_PS_SHIFT: Final = TCR_EL2.lsb("PS")
EL2_HA: Final = TCR_EL2.mask("HA")
EL2_HD: Final = TCR_EL2.mask("HD")
EL2_DS: Final = TCR_EL2.mask("DS")
EL2_TBI: Final = TCR_EL2.mask("TBI")
EL2_TBID: Final = TCR_EL2.mask("TBID")
EL2_HPD: Final = TCR_EL2.mask("HPD")

SCTLR_M: Final = SCTLR_EL1.mask("M")
SCTLR_C: Final = SCTLR_EL1.mask("C")
SCTLR_WXN: Final = SCTLR_EL1.mask("WXN")
SCTLR_EE: Final = SCTLR_EL1.mask("EE")
SCTLR_EPAN: Final = SCTLR_EL1.mask("EPAN")
PIE: Final = TCR2_EL1.mask("PIE")
TCR2_ENABLED: Final = HCRX_EL2.mask("TCR2En")

HCR_VM: Final = HCR_EL2.mask("VM")
HCR_PTW: Final = HCR_EL2.mask("PTW")
HCR_DC: Final = HCR_EL2.mask("DC")
HCR_TGE: Final = HCR_EL2.mask("TGE")
HCR_CD: Final = HCR_EL2.mask("CD")
HCR_FWB: Final = HCR_EL2.mask("FWB")
VTCR_HA: Final = VTCR_EL2.mask("HA")
VTCR_HD: Final = VTCR_EL2.mask("HD")
VTCR_SH_SHIFT: Final = VTCR_EL2.lsb("SH0")
VTCR_LPA2: Final = VTCR_EL2.mask("DS") | VTCR_EL2.mask("SL2")


class Stage1(NamedTuple):
    """One half of a stage 1. ``refused``: every walk faults at level 0 (TxSZ out of range, EPD)."""

    enabled: bool
    refused: bool
    regime: Regime
    root: Word
    has_el0: bool
    upper: bool
    tbi: bool
    tbid: bool
    e0pd: bool
    tables_count: bool
    ha: bool
    hd: bool
    wxn: bool
    epan: bool
    indirect: bool
    pir: Word
    pire0: Word
    mair: Word
    shareability: int
    cacheable: bool
    default_cacheable: bool
    big_endian: bool


class Stage2(NamedTuple):
    """Stage 2. ``refused``: every walk faults at level 0 (T0SZ or SL0 that may not be used)."""

    enabled: bool
    refused: bool
    regime: Regime
    root: Word
    ha: bool
    hd: bool
    xnx: bool
    fwb: bool
    ptw: bool
    cacheable: bool
    shareability: int
    big_endian: bool


class Half(NamedTuple):
    """The fields of a TCR that belong to one half of the input range."""

    page_shift: int
    txsz: Word
    ps: Word
    ds: bool
    epd: bool
    tbi: bool
    tbid: bool
    hpd: bool
    e0pd: bool
    shareability: int
    ha: bool
    hd: bool


@inline
def upper_half(tcr: Word) -> Half:
    """What TCR_EL1, or TCR_EL2 with E2H, says of addresses with bit 55 set."""
    return Half(
        granule_shift_upper((tcr >> UPPER_TG_SHIFT) & THREE),
        (tcr >> UPPER_TXSZ_SHIFT) & SIX_BITS,
        (tcr >> TCR_IPS_SHIFT) & SEVEN,
        tcr & TCR_DS != ZERO,
        tcr & UPPER_EPD != ZERO,
        tcr & UPPER_TBI != ZERO,
        tcr & UPPER_TBID != ZERO,
        tcr & UPPER_HPD != ZERO,
        tcr & UPPER_E0PD != ZERO,
        I64((tcr >> UPPER_SH_SHIFT) & THREE),
        tcr & TCR_HA != ZERO,
        tcr & TCR_HD != ZERO,
    )


@inline
def lower_half(tcr: Word) -> Half:
    """What TCR_EL1, or TCR_EL2 with E2H, says of addresses with bit 55 clear."""
    return Half(
        granule_shift((tcr >> LOWER_TG_SHIFT) & THREE),
        tcr & SIX_BITS,
        (tcr >> TCR_IPS_SHIFT) & SEVEN,
        tcr & TCR_DS != ZERO,
        tcr & LOWER_EPD != ZERO,
        tcr & LOWER_TBI != ZERO,
        tcr & LOWER_TBID != ZERO,
        tcr & LOWER_HPD != ZERO,
        tcr & LOWER_E0PD != ZERO,
        I64((tcr >> LOWER_SH_SHIFT) & THREE),
        tcr & TCR_HA != ZERO,
        tcr & TCR_HD != ZERO,
    )


@inline
def whole_range(tcr: Word) -> Half:
    """What TCR_EL2 without E2H says: one range, from 0."""
    return Half(
        granule_shift((tcr >> LOWER_TG_SHIFT) & THREE),
        tcr & SIX_BITS,
        (tcr >> EL2_PS_SHIFT) & SEVEN,
        tcr & EL2_DS != ZERO,
        False,
        tcr & EL2_TBI != ZERO,
        tcr & EL2_TBID != ZERO,
        tcr & EL2_HPD != ZERO,
        False,
        I64((tcr >> LOWER_SH_SHIFT) & THREE),
        tcr & EL2_HA != ZERO,
        tcr & EL2_HD != ZERO,
    )


@inline
def half_of(row: Words, regime: int, upper: bool) -> Half:
    """The half of ``regime`` that an address with bit 55 == ``upper`` belongs to."""
    if regime == EL10:
        tcr = row[c.C_TCR_EL1]
    else:
        tcr = row[c.C_TCR_EL2]
        if regime == EL2:
            return whole_range(tcr)
    return upper_half(tcr) if upper else lower_half(tcr)


@inline
def stage1_controls(row: Words, machine: Implementation, regime: int, upper: bool) -> Stage1:
    """Stage 1 of ``regime`` for the half of the address. Source: ``AArch64.GetS1TTWParams``."""
    half = half_of(row, regime, upper)
    hcr = row[c.C_HCR_EL2]
    enabled = True
    if regime == EL10:
        sctlr = row[c.C_SCTLR_EL1]
        ttbr = row[c.C_TTBR1_EL1] if upper else row[c.C_TTBR0_EL1]
        mair = row[c.C_MAIR_EL1]
        tcr2 = row[c.C_TCR2_EL1] if row[c.C_HCRX_EL2] & TCR2_ENABLED != ZERO else ZERO
        pir = row[c.C_PIR_EL1]
        pire0 = row[c.C_PIRE0_EL1]
        if hcr & (HCR_TGE | HCR_DC) != ZERO:
            enabled = False
    else:
        sctlr = row[c.C_SCTLR_EL2]
        ttbr = row[c.C_TTBR1_EL2] if upper and regime != EL2 else row[c.C_TTBR0_EL2]
        mair = row[c.C_MAIR_EL2]
        tcr2 = row[c.C_TCR2_EL2]
        pir = row[c.C_PIR_EL2]
        pire0 = row[c.C_PIRE0_EL2]
    has = machine.features
    geometry = stage1_regime(
        half.page_shift, half.txsz, half.ps, half.ds and has & FEAT_LPA2 != ZERO, machine.pa_bits
    )
    legal = input_size_legal(geometry, has & FEAT_LVA != ZERO, has & FEAT_TTST != ZERO)
    indirect = has & FEAT_S1PIE != ZERO and tcr2 & PIE != ZERO
    hpd = half.hpd and has & FEAT_HPDS != ZERO
    ha = half.ha and has & FEAT_HAF != ZERO
    return Stage1(
        enabled and sctlr & SCTLR_M != ZERO,
        half.epd or not legal,
        geometry,
        root_base(geometry, ttbr) if legal else ZERO,
        regime != EL2,
        upper,
        half.tbi,
        half.tbid,
        half.e0pd and has & FEAT_E0PD != ZERO,
        not (hpd or indirect),
        ha,
        ha and half.hd and has & FEAT_HDBS != ZERO,
        sctlr & SCTLR_WXN != ZERO,
        indirect or (sctlr & SCTLR_EPAN != ZERO and has & FEAT_EPAN != ZERO),
        indirect,
        pir,
        pire0,
        mair,
        half.shareability,
        sctlr & SCTLR_C != ZERO,
        regime == EL10 and hcr & HCR_DC != ZERO,
        sctlr & SCTLR_EE != ZERO,
    )


@inline
def stage2_controls(row: Words, machine: Implementation, regime: int) -> Stage2:
    """Stage 2 as EL1&0 sees it; the other regimes have none. Source: ``AArch64.GetS2TTWParams``."""
    has = machine.features
    hcr = row[c.C_HCR_EL2]
    vtcr = row[c.C_VTCR_EL2]
    if has & FEAT_LPA2 == ZERO:
        vtcr &= ~VTCR_LPA2
    geometry = stage2_regime(vtcr, machine.pa_bits)
    legal = stage2_legal(geometry, vtcr, machine.pa_bits, has & FEAT_LVA != ZERO, has & FEAT_TTST != ZERO)
    ha = vtcr & VTCR_HA != ZERO and has & FEAT_HAF != ZERO
    return Stage2(
        regime == EL10 and hcr & (HCR_VM | HCR_DC) != ZERO and hcr & HOST != HOST,
        not legal,
        geometry,
        root_base(geometry, row[c.C_VTTBR_EL2]) if legal else ZERO,
        ha,
        ha and vtcr & VTCR_HD != ZERO and has & FEAT_HDBS != ZERO,
        has & FEAT_XNX != ZERO,
        hcr & HCR_FWB != ZERO and has & FEAT_FWB != ZERO,
        hcr & HCR_PTW != ZERO,
        hcr & HCR_CD == ZERO,
        I64((vtcr >> VTCR_SH_SHIFT) & THREE),
        row[c.C_SCTLR_EL2] & SCTLR_EE != ZERO,
    )


@inline
def uses_register_shareability(r: Regime) -> bool:
    """With DS the descriptor's SH bits are address bits, and the TCR's shareability stands for them."""
    return r.wide == OA52_DS


@inline
def machine_has_pan(machine: Implementation) -> bool:
    """Whether PSTATE.PAN exists."""
    return machine.features & FEAT_PAN != ZERO


@inline
def machine_has_tags(machine: Implementation) -> bool:
    """Whether memory can be tagged."""
    return machine.features & FEAT_MTE2 != ZERO
