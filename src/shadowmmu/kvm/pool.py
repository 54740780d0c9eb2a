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
    K_NEXT,
    NO_MMU,
    ONE,
    REQUEST_UNMAP,
    V_HCR,
    V_HW_MMU,
    V_REQUESTS,
    V_VTCR,
    V_VTTBR,
    ZERO,
)
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
    shadow_mmus,
    shadow_valid,
)

VMID_SHIFT: Final = VTTBR_EL2.lsb("VMID")
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
    """
    size = shadow_mmus(s)
    victim = NOT_FOUND
    for i in range(size):
        candidate = (I64(s.regs[K_NEXT]) + i) % size + 1
        if s.mmus[candidate, M_REFCNT] == ZERO:
            victim = candidate
            break
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
def put_hw_mmu(s: State, vcpu: int) -> None:
    """Drop the vCPU's context and its reference. Mirrors ``kvm_vcpu_put_hw_mmu``."""
    mmu = s.vcpus[vcpu, V_HW_MMU]
    if mmu != NO_MMU and mmu != U64(CANONICAL):
        s.mmus[mmu, M_REFCNT] -= ONE
    s.vcpus[vcpu, V_HW_MMU] = NO_MMU


@kernel
def load_canonical(s: State, vcpu: int) -> None:
    """The vCPU enters virtual EL2: the canonical context, without a reference."""
    put_hw_mmu(s, vcpu)
    s.vcpus[vcpu, V_HW_MMU] = U64(CANONICAL)


@kernel
def load_shadow(s: State, vcpu: int) -> None:
    """The vCPU leaves virtual EL2 for L2 (ERET): find its shadow, wipe it first if it was recycled."""
    put_hw_mmu(s, vcpu)
    mmu_lock_write(s)
    s.vcpus[vcpu, V_HW_MMU] = U64(get_shadow(s, vcpu))
    mmu_unlock_write(s)
    check_requests(s, vcpu)


@kernel
def prepare_shadow(s: State, vcpu: int) -> None:
    """Another vCPU of the same L2, loaded (``kvm_vcpu_load_hw_mmu``) and not entered: its requests wait."""
    for register in (V_VTTBR, V_VTCR, V_HCR):
        s.vcpus[vcpu, register] = s.vcpus[0, register]
    put_hw_mmu(s, vcpu)
    mmu_lock_write(s)
    s.vcpus[vcpu, V_HW_MMU] = U64(get_shadow(s, vcpu))
    mmu_unlock_write(s)


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
