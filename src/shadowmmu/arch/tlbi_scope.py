"""What one executed TLBI covers: its operand and the PE that executes it make a ``Scope``.

The scope says what the architecture *requires* to be invalidated; an implementation may drop more.
Source: Arm ARM C5.5 (each instruction's pseudocode gives regime, VMID and level), D8.17.5.4 (scope).

>>> operand = TLBI_VA.encode(VA=0x40200, TTL=0b0110, ASID=7)
>>> describe(scope_of("VALE1IS", operand, issuer(vttbr=3 << 48)))
'EL1&0, stage 1, VA 0x40200000 +0x1000, ASID 7 and global, VMID 3, leaves at level 2 of 4K, inner shareable'
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.registers import HCR_EL2, HCRX_EL2, TCR_EL1, TCR_EL2, VTCR_EL2, VTTBR_EL2
from shadowmmu.arch.tlbi import (
    BY_ALL,
    BY_IPA,
    BY_VA,
    NO_LEVEL,
    Extent,
    range_extent,
    single_extent,
)
from shadowmmu.arch.tlbi_operations import (
    ALL,
    ASID,
    DOMAIN_NAMES,
    INNER_SHAREABLE,
    IPA,
    NON_SHAREABLE,
    RULE,
    TLBI_VA,
    VA,
    VAA,
    VMALLS12,
    operation,
)
from shadowmmu.compiled import I64, U64, Word, inline, kernel

ZERO: Final = U64(0)
HCR_E2H: Final = HCR_EL2.mask("E2H")
HCR_HOST: Final = HCR_EL2.mask("E2H") | HCR_EL2.mask("TGE")
HCR_FB: Final = HCR_EL2.mask("FB")
HCRX_FNXS: Final = HCRX_EL2.mask("FnXS")
VMID_SHIFT: Final = VTTBR_EL2.lsb("VMID")
VTCR_VS: Final = VTCR_EL2.mask("VS")
VTCR_DS: Final = VTCR_EL2.mask("DS")
TCR_DS: Final = TCR_EL1.mask("DS")
TCR_EL2_DS: Final = TCR_EL2.mask("DS")
LOW_BYTE: Final = U64(0xFF)
ASID_SHIFT: Final = TLBI_VA.lsb("ASID")
CODE_WHAT: Final = RULE["WHAT"].mask
CODE_LAST: Final = RULE["LAST"].mask
CODE_RANGE: Final = RULE["RANGE"].mask
CODE_EL2: Final = RULE["EL2"].mask
CODE_DOMAIN: Final = RULE["DOMAIN"].mask >> RULE["DOMAIN"].lsb
CODE_DOMAIN_SHIFT: Final = RULE["DOMAIN"].lsb
CODE_NXS: Final = RULE["NXS"].mask

EL10: Final = 0
EL20: Final = 1
EL2: Final = 2
REGIME_NAMES: Final = ("EL1&0", "EL2&0", "EL2")

STAGE1: Final = 1
"""Bits of a stage selector."""
STAGE2: Final = 2
BOTH: Final = 3

ANY: Final = -1


class Issuer(NamedTuple):
    """What decides the scope of a TLBI beside its operand: the executing PE."""

    el: int
    hcr: Word
    hcrx: Word
    vttbr: Word
    vtcr: Word
    tcr_el1: Word
    tcr_el2: Word
    pa_bits: int
    lpa2: bool


class Scope(NamedTuple):
    """Which TLB entries a TLBI must invalidate, and where."""

    regime: int
    stages: int
    """STAGE1: entries with stage-1 information. STAGE2: those with stage-2 information only. BOTH: any."""
    by: int
    start: Word
    """This and ``size``, ``granule``, ``level``, ``guaranteed``: as in ``Extent``."""
    size: Word
    asid: int
    """ANY, or the ASID of the non-global entries; walk entries are non-global always."""
    global_too: bool
    vmid: int
    last_only: bool
    granule: int
    level: int
    domain: int
    nxs: bool
    guaranteed: bool


@inline
def current_vmid(pe: Issuer) -> int:
    """VTTBR_EL2.VMID, 8 bits of it unless VTCR_EL2.VS. Source: pseudocode ``VMID``."""
    vmid = pe.vttbr >> VMID_SHIFT
    if pe.vtcr & VTCR_VS == ZERO:
        vmid &= LOW_BYTE
    return I64(vmid)


@inline
def target_regime(code: int, hcr: Word) -> int:
    """The regime an operation is for.

    E2 forms follow HCR_EL2.E2H. Of the E1 forms, those by VMID, ASID or VA are for EL2&0 while
    {E2H, TGE} is {1, 1} (``ELIsInHost(EL0)``); by IPA, for both stages, and ALLE1 never are.
    """
    what = code & CODE_WHAT
    if code & CODE_EL2 != 0:
        if hcr & HCR_E2H != ZERO:
            return EL20
        return EL2
    if hcr & HCR_HOST == HCR_HOST and what != ALL and what != VMALLS12 and what != IPA:
        return EL20
    return EL10


@inline
def large_addresses(by: int, regime: int, pe: Issuer) -> bool:
    """Whether BaseADDR is in units of 64K: the effective DS of the regime's control register."""
    if not pe.lpa2:
        return False
    if by == BY_IPA:
        return pe.vtcr & VTCR_DS != ZERO
    if regime == EL10:
        return pe.tcr_el1 & TCR_DS != ZERO
    if regime == EL20:
        return pe.tcr_el2 & TCR_DS != ZERO
    return pe.tcr_el2 & TCR_EL2_DS != ZERO


@inline
def operand_extent(code: int, regime: int, operand: Word, pe: Issuer) -> Extent:
    """What the operand names: nothing, a page or a range."""
    by = addressed_by(code)
    if by == BY_ALL:
        return Extent(ZERO, ZERO, 0, NO_LEVEL, True)
    if code & CODE_RANGE != 0:
        return range_extent(by, operand, large_addresses(by, regime, pe), pe.lpa2)
    return single_extent(by, operand, pe.pa_bits, pe.lpa2)


@inline
def addressed_by(code: int) -> int:
    """Which kind of address an operation names."""
    what = code & CODE_WHAT
    if what == VA or what == VAA:
        return BY_VA
    if what == IPA:
        return BY_IPA
    return BY_ALL


@inline
def selected_stages(code: int, regime: int) -> int:
    """Entries of which stages an operation is for."""
    what = code & CODE_WHAT
    if what == IPA:
        return STAGE2
    if regime == EL10 and (what == ALL or what == VMALLS12):
        return BOTH
    return STAGE1


@kernel
def tlbi_scope(code: int, operand: Word, pe: Issuer) -> Scope:
    """The scope of the operation with ``code`` (TlbiOperation.code), executed by ``pe``.

    Whether ``pe`` may execute it is not looked at. Source: Arm ARM D8.17.5.4.
    """
    what = code & CODE_WHAT
    regime = target_regime(code, pe.hcr)
    vmid = ANY
    if regime == EL10 and what != ALL:
        vmid = current_vmid(pe)
    asid = ANY
    if regime != EL2 and (what == ASID or what == VA):
        asid = I64(operand >> ASID_SHIFT)
    domain = (code >> CODE_DOMAIN_SHIFT) & CODE_DOMAIN
    nxs = code & CODE_NXS != 0
    if pe.el == 1:
        if domain == NON_SHAREABLE and pe.hcr & HCR_FB != ZERO:
            domain = INNER_SHAREABLE
        if pe.hcrx & HCRX_FNXS != ZERO:
            nxs = True
    extent = operand_extent(code, regime, operand, pe)
    return Scope(
        regime,
        selected_stages(code, regime),
        addressed_by(code),
        extent.start,
        extent.size,
        asid,
        what != ASID,
        vmid,
        code & CODE_LAST != 0,
        extent.granule,
        extent.level,
        domain,
        nxs,
        extent.guaranteed,
    )


@inline
def scope_reaches(scope: Scope, same_pe: bool, same_inner: bool) -> bool:
    """Whether a PE is in the domain of a TLBI: the issuer, one of its Inner Shareable domain, or another.

    All PEs are taken to be in one Outer Shareable domain.
    """
    if scope.domain == NON_SHAREABLE:
        return same_pe
    return scope.domain != INNER_SHAREABLE or same_inner


def issuer(
    *,
    el: int = 2,
    hcr: int = 0,
    hcrx: int = 0,
    vttbr: int = 0,
    vtcr: int = 0,
    tcr_el1: int = 0,
    tcr_el2: int = 0,
    pa_bits: int = 48,
    lpa2: bool = False,
) -> Issuer:
    """An ``Issuer`` for kernels from plain register values."""
    return Issuer(el, U64(hcr), U64(hcrx), U64(vttbr), U64(vtcr), U64(tcr_el1), U64(tcr_el2), pa_bits, lpa2)


def scope_of(name: str, operand: int = 0, pe: Issuer | None = None) -> Scope:
    """The scope of ``TLBI name, operand``, ready to be handed to kernels. Raises InputError for the name."""
    return as_scope(tlbi_scope(operation(name).code, U64(operand), pe or issuer()))


def as_scope(scope: Scope) -> Scope:
    """A scope that came out of a compiled kernel, ready to be handed back to one."""
    return scope._replace(start=U64(scope.start), size=U64(scope.size))


def describe(scope: Scope) -> str:
    """One line: what a scope covers."""
    parts = [REGIME_NAMES[scope.regime]]
    parts.append({STAGE1: "stage 1", STAGE2: "stage 2 only", BOTH: "stages 1 and 2"}[scope.stages])
    if scope.by != BY_ALL:
        kind = "VA" if scope.by == BY_VA else "IPA"
        parts.append(f"{kind} {int(scope.start):#x} +{int(scope.size):#x}")
    if scope.asid != ANY:
        parts.append(f"ASID {scope.asid}" + (" and global" if scope.global_too else ", non-global"))
    if scope.regime == EL10:
        parts.append("any VMID" if scope.vmid == ANY else f"VMID {scope.vmid}")
    which = "leaves" if scope.last_only else "leaves and walk entries"
    if scope.level != NO_LEVEL:
        which += f" at level {scope.level}" if scope.last_only else f" down to level {scope.level}"
    if scope.granule:
        which += f" of {1 << (scope.granule - 10)}K"
    parts.append(which)
    parts.append(DOMAIN_NAMES[scope.domain])
    if scope.nxs:
        parts.append("nXS")
    if not scope.guaranteed:
        parts.append("nothing guaranteed")
    return ", ".join(parts)
