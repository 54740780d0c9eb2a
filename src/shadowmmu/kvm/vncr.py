"""The VNCR pseudo-TLB: where L0 keeps the page that L1's VNCR_EL2 names, one entry a vCPU.

L1 runs a hypervisor of its own with HCR_EL2.NV2: the CPU turns that hypervisor's register accesses into
accesses of a page of L1, which L0 puts into a slot of its own address space (the fixmap). The entry comes
from L1's EL2 stage 1 and the canonical IPA: no shadow leaf stands for it, so no reverse map finds it.
Mirrors Linux 7.3.4 ``nested.c``: ``struct vncr_tlb``, ``kvm_map_l1_vncr``, ``unmap_l1_vncr``,
``invalidate_vncr``, ``vncr_tlb_intersects``, ``kvm_invalidate_vncr_ipa``, ``invalidate_vncr_va``,
``compute_s1_tlbi_range``. As seen on the rig with L1's stage 1 off and one vCPU; the rest by reading.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.context import C_SCTLR_EL2, C_TCR_EL2, C_TTBR0_EL2, C_TTBR1_EL2
from shadowmmu.arch.tlbi import BY_VA, granule_of, range_size, range_start, ttl_size
from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.interface import VNCR_ALL, VNCR_BY_DESIGN, VNCR_FORGOTTEN, VNCR_RANGE
from shadowmmu.kvm.layout import (
    K_SEQ,
    K_VNCR_COUNT,
    ONE,
    REQUEST_MAP_VNCR,
    V_HW_MMU,
    V_REQUESTS,
    V_VIRTUAL,
    V_VNCR,
    ZERO,
)
from shadowmmu.machine.calls import mmu_lock_read, mmu_lock_write, mmu_unlock_read, mmu_unlock_write
from shadowmmu.machine.counters import VNCR_INVALIDATIONS, VNCR_OVER
from shadowmmu.machine.log import VNCR_INVALIDATE, VNCR_MAP, VNCR_UNMAP, observe
from shadowmmu.machine.state import R_DESIGN, State
from shadowmmu.pgtable.context import CANONICAL, input_size

# Columns of a vCPU: its VNCR_EL2, then the entry (``struct vncr_tlb``).
T_VNCR_EL2: Final = V_VNCR
T_VALID: Final = V_VNCR + 1
T_GVA: Final = V_VNCR + 2
T_IPA: Final = V_VNCR + 3
"""Canonical IPA the walk came to (``wr.pa``)."""
T_SPAN: Final = V_VNCR + 4
"""Bytes of L1's stage-1 leaf, which the entry counts as; 1G where L0 cannot tell, as with stage 1 off."""
T_HPA: Final = V_VNCR + 5
T_WRITABLE: Final = V_VNCR + 6
T_READ: Final = V_VNCR + 7
T_WRITE: Final = V_VNCR + 8
T_NG: Final = V_VNCR + 9
T_ASID: Final = V_VNCR + 10
T_TRANSLATED: Final = V_VNCR + 11
T_MAPPED: Final = V_VNCR + 12
T_LEVEL: Final = V_VNCR + 13

GIGA: Final = U64(1 << 30)
PAGE_SIZE: Final = U64(1 << 12)
VA_BITS_SIGN: Final = U64(48)
VA_LOW: Final = U64((1 << 49) - 1)
SCTLR_M: Final = ONE
TCR_A1: Final = U64(1 << 22)
TCR_AS: Final = U64(1 << 36)
ASID_SHIFT: Final = U64(48)
ASID_8: Final = U64(0xFF)
TTL_SHIFT: Final = U64(44)
TG_SHIFT: Final = U64(46)
FOUR_BITS: Final = U64(0xF)
TWO_BITS: Final = U64(3)
TWELVE: Final = U64(12)
PAGE_SHIFT_4K: Final = 12
PAGE_SHIFT_16K: Final = 14

# What a TLBI of the EL2&0 regime names (``struct s1e2_tlbi_scope``), numbered as TLBI_EL2's first operand.
SCOPE_ALL: Final = 0
SCOPE_VA: Final = 1
SCOPE_VAA: Final = 2
SCOPE_ASID: Final = 3
SCOPE_RANGE_VA: Final = 4
SCOPE_RANGE_VAA: Final = 5


@inline
def span_or_giga(size: Word) -> Word:
    """``ttl_to_size``: what a hint names, 1G where it names nothing."""
    return size if size != ZERO else GIGA


@inline
def leaf_span(page_shift: int, level: int) -> Word:
    """Bytes an entry counts as, by L1's leaf. Mirrors ``pgshift_level_to_ttl`` and ``ttl_to_size``."""
    granule = 1 if page_shift == PAGE_SHIFT_4K else (2 if page_shift == PAGE_SHIFT_16K else 3)
    return span_or_giga(ttl_size(granule << 2 | level))


@inline
def vncr_va(s: State, vcpu: int) -> Word:
    """The address in VNCR_EL2, sign-extended from bit 48. Mirrors ``read_vncr_el2``."""
    value = s.vcpus[vcpu, T_VNCR_EL2] & VA_LOW
    return value | ~VA_LOW if value >> VA_BITS_SIGN != ZERO else value


@inline
def el2_asid(s: State, vcpu: int) -> Word:
    """The ASID that the EL2&0 regime of L1 runs with. Mirrors ``get_asid_by_regime``."""
    tcr = s.vcpus[vcpu, V_VIRTUAL + C_TCR_EL2]
    ttbr = s.vcpus[vcpu, V_VIRTUAL + (C_TTBR1_EL2 if tcr & TCR_A1 != ZERO else C_TTBR0_EL2)]
    asid = ttbr >> ASID_SHIFT
    return asid if tcr & TCR_AS != ZERO else asid & ASID_8


@kernel
def unmap_l1_vncr(s: State, vcpu: int) -> None:
    """Take the page out of the fixmap, if it is there; the entry stays as it is."""
    if s.vcpus[vcpu, T_MAPPED] != ZERO:
        s.vcpus[vcpu, T_MAPPED] = ZERO
        observe(s, VNCR_UNMAP, s.vcpus[vcpu, T_GVA], s.vcpus[vcpu, T_HPA], U64(vcpu), ZERO, ZERO)


@kernel
def map_l1_vncr(s: State, vcpu: int) -> None:
    """Put the page into the fixmap if the entry still is what VNCR_EL2 and EL2's registers ask for.

    If not, nothing is mapped: the access faults and fills the entry. A page that L1's stage 1 does not
    let it read is not mapped at all.
    """
    row = s.vcpus[vcpu]
    if row[V_HW_MMU] == U64(CANONICAL) or row[T_VALID] == ZERO or row[T_READ] == ZERO:
        return
    if row[V_VIRTUAL + C_SCTLR_EL2] & SCTLR_M != row[T_TRANSLATED]:
        return
    if vncr_va(s, vcpu) != row[T_GVA]:
        return
    if row[T_NG] != ZERO and el2_asid(s, vcpu) != row[T_ASID]:
        return
    row[T_MAPPED] = ONE
    writable = row[T_WRITABLE] & row[T_WRITE]
    observe(s, VNCR_MAP, row[T_GVA], row[T_HPA], writable, U64(vcpu), ZERO)


@kernel
def check_vncr_request(s: State, vcpu: int) -> None:
    """Before entry: ``KVM_REQ_MAP_L1_VNCR_EL2`` of ``check_nested_vcpu_requests``."""
    if s.vcpus[vcpu, V_REQUESTS] & REQUEST_MAP_VNCR != ZERO:
        s.vcpus[vcpu, V_REQUESTS] &= ~REQUEST_MAP_VNCR
        mmu_lock_read(s)
        map_l1_vncr(s, vcpu)
        mmu_unlock_read(s)


@kernel
def invalidate_vncr(s: State, vcpu: int) -> None:
    """Throw out a valid entry. Mirrors the function of that name."""
    row = s.vcpus[vcpu]
    row[T_VALID] = ZERO
    s.regs[K_VNCR_COUNT] -= ONE
    s.count[VNCR_INVALIDATIONS] += 1
    observe(s, VNCR_INVALIDATE, row[T_GVA], row[T_IPA], row[T_HPA], U64(vcpu), ZERO)
    unmap_l1_vncr(s, vcpu)


@inline
def intersects(page: Word, span: Word, start: Word, size: Word) -> bool:
    """Whether the span around ``page`` meets [start, start + size). Mirrors ``vncr_tlb_intersects``."""
    first = page & ~(span - ONE)
    return not (first + (span - ONE) < start or first > start + (size - ONE))


@kernel
def invalidate_vncr_ipa(s: State, start: Word, end: Word) -> None:
    """Throw out what canonical [start, end) reaches. Mirrors ``kvm_invalidate_vncr_ipa``.

    An entry counts as large as L1's stage-1 leaf, so some go whose page lies beside the range.
    """
    for vcpu in range(len(s.vcpus)):
        row = s.vcpus[vcpu]
        if row[T_VALID] != ZERO and intersects(row[T_IPA], row[T_SPAN], start, end - start):
            invalidate_vncr(s, vcpu)


@kernel
def invalidate_vncr_ipa_all(s: State) -> None:
    """Throw out every entry. Mirrors ``kvm_invalidate_vncr_ipa_all``: the range of the canonical table."""
    invalidate_vncr_ipa(s, ZERO, input_size(s, CANONICAL))


@kernel
def vncr_after_unmap(s: State, start: Word, end: Word) -> None:
    """What the design's unmap (or precise write protection) of canonical [start, end) does to the entries."""
    design = I64(s.regs[R_DESIGN])
    policy = VNCR_BY_DESIGN[design] if design < len(VNCR_BY_DESIGN) else VNCR_RANGE
    if policy == VNCR_FORGOTTEN:
        return
    for vcpu in range(len(s.vcpus)):
        row = s.vcpus[vcpu]
        if row[T_VALID] == ZERO:
            continue
        if policy == VNCR_ALL or intersects(row[T_IPA], row[T_SPAN], start, end - start):
            if not intersects(row[T_IPA], PAGE_SIZE, start, end - start):
                s.count[VNCR_OVER] += 1
            invalidate_vncr(s, vcpu)


@inline
def scope_start(scope: int, operand: Word) -> Word:
    """First address a TLBI by VA names: aligned to its hint's size, or the base of a range."""
    if scope == SCOPE_RANGE_VA or scope == SCOPE_RANGE_VAA:
        return range_start(BY_VA, operand, range_granule(operand))
    page = (operand << TWELVE) & VA_LOW
    va = page | ~VA_LOW if page >> VA_BITS_SIGN != ZERO else page
    return va & ~(scope_size(scope, operand) - ONE)


@inline
def range_granule(operand: Word) -> int:
    """log2 of the granule of a range operand; reserved is 64K. Mirrors ``decode_range_tlbi``."""
    granule = granule_of(I64((operand >> TG_SHIFT) & TWO_BITS))
    return granule if granule != 0 else 16


@inline
def scope_size(scope: int, operand: Word) -> Word:
    """Bytes a TLBI by VA names: 1G without a hint that says less."""
    if scope == SCOPE_RANGE_VA or scope == SCOPE_RANGE_VAA:
        granule = range_granule(operand)
        return range_size(range_start(BY_VA, operand, granule), operand, granule)
    return span_or_giga(ttl_size(I64((operand >> TTL_SHIFT) & FOUR_BITS)))


@inline
def scope_names(s: State, vcpu: int, scope: int, operand: Word) -> bool:
    """Whether a TLBI of the EL2&0 regime names the valid entry of ``vcpu``."""
    row = s.vcpus[vcpu]
    asid = operand >> ASID_SHIFT
    if scope == SCOPE_ALL:
        return True
    if scope == SCOPE_ASID:
        return row[T_NG] != ZERO and row[T_ASID] == asid
    if not intersects(row[T_GVA], row[T_SPAN], scope_start(scope, operand), scope_size(scope, operand)):
        return False
    by_asid = scope == SCOPE_VA or scope == SCOPE_RANGE_VA
    return not (by_asid and row[T_NG] != ZERO and row[T_ASID] != asid)


@kernel
def handle_tlbi_el2(s: State, scope: int, operand: Word) -> None:
    """A TLBI of L1 for its own EL2&0 regime, {E2H,TGE} being {1,1}. Mirrors ``kvm_handle_s1e2_tlbi``.

    Without a valid entry in the VM it does not get here (``kvm_hyp_handle_tlbi_el2`` carries it out). With
    one, the count of invalidations goes up even if none is named: a walk of the same tables may be under way.
    """
    if s.regs[K_VNCR_COUNT] == ZERO:
        return
    mmu_lock_write(s)
    s.regs[K_SEQ] += ONE
    for vcpu in range(len(s.vcpus)):
        if s.vcpus[vcpu, T_VALID] != ZERO and scope_names(s, vcpu, scope, operand):
            invalidate_vncr(s, vcpu)
    mmu_unlock_write(s)
