"""When a vCPU is loaded and when it is put: preemption, WFI, the way out to the VMM, reset.

Mirrors Linux 7.3.4 ``kvm_sched_in`` and ``kvm_sched_out`` (``virt/kvm/kvm_main.c``), ``kvm_vcpu_wfi`` and
``kvm_arch_vcpu_ioctl_vcpu_init`` (``arm64/kvm/arm.c``), as far as they decide which stage-2 context a vCPU
holds. What a preempted vCPU keeps, and what an exit gives up, is seen on the rig (``vcpus/``); WFI and reset
are by reading.
"""

from __future__ import annotations

from shadowmmu.compiled import Word, inline, kernel
from shadowmmu.kvm.caches import unmap_vm
from shadowmmu.kvm.layout import (
    BOOTED,
    IN_GUEST,
    IN_WFI,
    IS_OUT,
    K_BOOT_HCR,
    TRAPS_VM,
    V_ELR,
    V_ESR,
    V_FAR,
    V_HCR,
    V_HPFAR,
    V_STATE,
    V_VTCR,
    V_VTTBR,
    ZERO,
)
from shadowmmu.kvm.pool import enter_guest, load_hw_mmu, put_hw_mmu
from shadowmmu.machine.state import R_FWB, State


@inline
def vcpu_state(s: State, vcpu: int, bit: Word) -> bool:
    """Whether ``bit`` of the vCPU's state is set."""
    return s.vcpus[vcpu, V_STATE] & bit != ZERO


@kernel
def load_vcpu(s: State, vcpu: int) -> None:
    """The vCPU's thread gets a CPU: KVM_RUN, or the scheduler's turn. Nothing if it has one."""
    if vcpu_state(s, vcpu, IS_OUT):
        s.vcpus[vcpu, V_STATE] &= ~(IS_OUT | IN_WFI)
        load_hw_mmu(s, vcpu)


@kernel
def put_vcpu(s: State, vcpu: int, scheduled_out: bool) -> None:
    """The vCPU's thread loses its CPU (``scheduled_out``), or takes the vCPU out to the VMM.

    A vCPU that was scheduled out before runs first, as its thread must to leave the kernel.
    """
    if vcpu_state(s, vcpu, IS_OUT) and scheduled_out:
        return
    s.vcpus[vcpu, V_STATE] &= ~IN_GUEST
    put_hw_mmu(s, vcpu, scheduled_out)
    s.vcpus[vcpu, V_STATE] |= IS_OUT


@kernel
def wait_for_interrupt(s: State, vcpu: int) -> None:
    """The guest's WFI was trapped, and its vCPU sleeps until it is resumed: it holds no shadow MMU."""
    resume_vcpu(s, vcpu)
    s.vcpus[vcpu, V_STATE] |= IN_WFI
    put_vcpu(s, vcpu, True)


@kernel
def resume_vcpu(s: State, vcpu: int) -> None:
    """Load the vCPU and enter its guest, after what was requested of it."""
    load_vcpu(s, vcpu)
    enter_guest(s, vcpu)


@kernel
def reset_vcpu(s: State, vcpu: int) -> None:
    """KVM_ARM_VCPU_INIT of a vCPU that has run: it starts anew at virtual EL2.

    Without FEAT_S2FWB every table of the VM is emptied, so that the fills to come clean the caches of a
    guest whose MMU is off; the VM's cache registers are trapped again (``vcpu_reset_hcr``).
    """
    put_vcpu(s, vcpu, False)
    if vcpu_state(s, vcpu, BOOTED) and s.regs[R_FWB] == ZERO:
        unmap_vm(s)
    init_vcpu(s, vcpu)


@kernel
def init_vcpu(s: State, vcpu: int) -> None:
    """Registers of a vCPU out of reset, with HCR_EL2 as L1 sets it when it boots; it is not loaded yet."""
    s.vcpus[vcpu, V_STATE] = IS_OUT
    if s.regs[R_FWB] == ZERO:
        s.vcpus[vcpu, V_STATE] |= TRAPS_VM
    s.vcpus[vcpu, V_HCR] = s.regs[K_BOOT_HCR]
    s.vcpus[vcpu, V_VTTBR] = ZERO
    s.vcpus[vcpu, V_VTCR] = ZERO
    s.vcpus[vcpu, V_ESR] = ZERO
    s.vcpus[vcpu, V_ELR] = ZERO
    s.vcpus[vcpu, V_FAR] = ZERO
    s.vcpus[vcpu, V_HPFAR] = ZERO
