"""The pool of shadow MMUs: lookup, round-robin recycling, references, the wipe before use.

Mirrors Linux 7.3.4 ``arch/arm64/kvm/nested.c``: ``lookup_s2_mmu``, ``get_s2_mmu_nested``,
``kvm_vcpu_load_hw_mmu``, ``kvm_vcpu_put_hw_mmu``, ``check_nested_vcpu_requests``.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.registers import HCR_EL2, VTTBR_EL2
from shadowmmu.compiled import I64, U64, inline, kernel
from shadowmmu.designs.dispatch import design_forget_mmu, design_wipe
from shadowmmu.kvm.layout import (
    IN_GUEST,
    IN_L2,
    IN_WFI,
    K_NEXT,
    K_RUNNING,
    NO_MMU,
    ONE,
    REQUEST_MAP_VNCR,
    REQUEST_UNMAP,
    V_HCR,
    V_HW_MMU,
    V_REQUESTS,
    V_STATE,
    V_VTCR,
    V_VTTBR,
    ZERO,
)
from shadowmmu.kvm.vncr import check_vncr_request, unmap_l1_vncr
from shadowmmu.machine.calls import mmu_lock_write, mmu_unlock_write
from shadowmmu.machine.counters import RECYCLED, WIPES
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import (
    CANONICAL,
    CNP,
    M_ENABLED,
    M_PENDING,
    M_REFCNT,
    M_VTCR,
    M_VTTBR,
    R_SHADOWS,
    init_context,
    shadow_mmus,
    shadow_valid,
)

VMID_SHIFT: Final = VTTBR_EL2.lsb("VMID")
HCR_NV: Final = HCR_EL2.mask("NV")
HCR_VM: Final = HCR_EL2.mask("VM")
SHADOWS_PER_VCPU: Final = 2
NOT_FOUND: Final = 0


@inline
def hw_mmu(s: State, vcpu: int) -> int:
    """The stage-2 context loaded on a vCPU."""
    return I64(s.vcpus[vcpu, V_HW_MMU])


@kernel
def lookup_shadow(s: State, vcpu: int) -> int:
    """The shadow MMU of the vCPU's VTTBR, VTCR and HCR.VM, or NOT_FOUND. Mirrors ``lookup_s2_mmu``.

    With stage 2 on the key is VMID, base and the whole VTCR; with it off, the VMID alone.
    """
    vttbr = s.vcpus[vcpu, V_VTTBR] & ~CNP
    enabled = s.vcpus[vcpu, V_HCR] & HCR_VM
    for mmu in range(1, shadow_mmus(s) + 1):
        if not shadow_valid(s, mmu) or s.mmus[mmu, M_ENABLED] != enabled:
            continue
        if enabled != ZERO:
            if s.mmus[mmu, M_VTTBR] == vttbr and s.mmus[mmu, M_VTCR] == s.vcpus[vcpu, V_VTCR]:
                return mmu
        elif s.mmus[mmu, M_VTTBR] >> VMID_SHIFT == vttbr >> VMID_SHIFT:
            return mmu
    return NOT_FOUND


@kernel
def recycle_shadow(s: State, vcpu: int) -> int:
    """Take the next unreferenced shadow MMU, round robin, for a new tenant.

    Its old contents stay until the wipe, under the new tenant's name (``pending_unmap``).
    One is always unreferenced: there are two for each vCPU, which references one at most.
    """
    size = shadow_mmus(s)
    victim = I64(s.regs[K_NEXT]) + 1
    while s.mmus[victim, M_REFCNT] != ZERO:
        victim = victim % size + 1
    s.regs[K_NEXT] = U64(victim % size)
    if shadow_valid(s, victim):
        s.mmus[victim, M_PENDING] = ONE
        s.count[RECYCLED] += 1
    s.mmus[victim, M_VTTBR] = s.vcpus[vcpu, V_VTTBR] & ~CNP
    s.mmus[victim, M_VTCR] = s.vcpus[vcpu, V_VTCR]
    s.mmus[victim, M_ENABLED] = s.vcpus[vcpu, V_HCR] & HCR_VM
    return victim


@kernel
def get_shadow(s: State, vcpu: int) -> int:
    """Find or recycle a shadow MMU and take a reference. Mirrors ``get_s2_mmu_nested``."""
    mmu = lookup_shadow(s, vcpu)
    if mmu == NOT_FOUND:
        mmu = recycle_shadow(s, vcpu)
    s.mmus[mmu, M_REFCNT] += ONE
    if s.mmus[mmu, M_PENDING] != ZERO:
        s.vcpus[vcpu, V_REQUESTS] |= REQUEST_UNMAP
    return mmu


@kernel
def load_hw_mmu(s: State, vcpu: int) -> None:
    """Give a vCPU its stage-2 context, unless it kept the one it had. Mirrors ``kvm_vcpu_load_hw_mmu``."""
    kept = s.vcpus[vcpu, V_HW_MMU] != NO_MMU
    if s.vcpus[vcpu, V_STATE] & IN_L2 == ZERO:
        if not kept:
            s.vcpus[vcpu, V_HW_MMU] = U64(CANONICAL)
        return
    if not kept:
        mmu_lock_write(s)
        s.vcpus[vcpu, V_HW_MMU] = U64(get_shadow(s, vcpu))
        mmu_unlock_write(s)
    if s.vcpus[vcpu, V_HCR] & HCR_NV != ZERO:
        s.vcpus[vcpu, V_REQUESTS] |= REQUEST_MAP_VNCR


@kernel
def put_hw_mmu(s: State, vcpu: int, scheduled_out: bool) -> None:
    """Drop the vCPU's context and its reference. Mirrors ``kvm_vcpu_put_hw_mmu``, Linux 7.3.4.

    A vCPU that is scheduled out, and not because of its WFI, keeps both: it will want the same MMU soon.
    """
    unmap_l1_vncr(s, vcpu)
    if scheduled_out and s.vcpus[vcpu, V_STATE] & IN_WFI == ZERO:
        return
    mmu = s.vcpus[vcpu, V_HW_MMU]
    if mmu != NO_MMU and mmu != U64(CANONICAL):
        s.mmus[mmu, M_REFCNT] -= ONE
    s.vcpus[vcpu, V_HW_MMU] = NO_MMU


@kernel
def load_canonical(s: State, vcpu: int) -> None:
    """The vCPU enters virtual EL2: the canonical context, without a reference."""
    put_hw_mmu(s, vcpu, False)
    s.vcpus[vcpu, V_STATE] &= ~(IN_L2 | IN_GUEST)
    load_hw_mmu(s, vcpu)


@kernel
def load_shadow(s: State, vcpu: int) -> None:
    """The vCPU leaves virtual EL2 for L2 (ERET): find its shadow, wipe it first if it was recycled."""
    put_hw_mmu(s, vcpu, False)
    s.vcpus[vcpu, V_STATE] |= IN_L2
    load_hw_mmu(s, vcpu)
    enter_guest(s, vcpu)


@kernel
def enter_guest(s: State, vcpu: int) -> None:
    """Serve what was requested of a loaded vCPU, then enter the guest."""
    s.regs[K_RUNNING] = U64(vcpu)
    check_requests(s, vcpu)
    check_vncr_request(s, vcpu)
    s.vcpus[vcpu, V_STATE] |= IN_GUEST


@kernel
def check_requests(s: State, vcpu: int) -> None:
    """What must happen before entry. Mirrors ``check_nested_vcpu_requests``."""
    if s.vcpus[vcpu, V_REQUESTS] & REQUEST_UNMAP == ZERO:
        return
    s.vcpus[vcpu, V_REQUESTS] &= ~REQUEST_UNMAP
    mmu = hw_mmu(s, vcpu)
    mmu_lock_write(s)
    if s.mmus[mmu, M_PENDING] != ZERO:
        wipe_shadow(s, mmu)
        s.mmus[mmu, M_PENDING] = ZERO
    mmu_unlock_write(s)


@kernel
def wipe_shadow(s: State, mmu: int) -> None:
    """Unmap a whole shadow MMU, for another reason than a notifier."""
    s.count[WIPES] += 1
    design_forget_mmu(s, mmu)
    design_wipe(s, mmu)


@kernel
def init_shadow(s: State, mmu: int) -> None:
    """A shadow MMU without tenant. Mirrors ``kvm_init_nested_s2_mmu``."""
    s.mmus[mmu, M_VTTBR] = CNP
    s.mmus[mmu, M_ENABLED] = ZERO
    s.mmus[mmu, M_REFCNT] = ZERO


@kernel
def init_nested_vcpu(s: State, ipa_bits: int) -> None:
    """Two more shadow MMUs for one more vCPU. Mirrors ``kvm_vcpu_init_nested``.

    Each gets its start table now, for the host's IPA limit (``kvm_get_pa_bits``).
    """
    first = shadow_mmus(s) + 1
    for mmu in range(first, first + SHADOWS_PER_VCPU):
        init_context(s, mmu, ipa_bits)
        init_shadow(s, mmu)
    s.regs[R_SHADOWS] = U64(first - 1 + SHADOWS_PER_VCPU)
