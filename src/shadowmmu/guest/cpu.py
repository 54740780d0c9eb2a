"""What a virtual CPU does with one access: translate it, abort to EL2 if it must, try again.

Source: Arm ARM D8.15 (stage-2 aborts), and the rig's VMM for what leaves the kernel: an -EFAULT exit
makes it all of the guest's memory writable again, a missing memslot is MMIO and is answered.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.fault import EXECUTE, NONE, WRITE, abort_syndrome, fault_status
from shadowmmu.arch.regime import output_address
from shadowmmu.arch.stage2 import stage2_fault, stage2_walk
from shadowmmu.compiled import I64, U64, Word, kernel
from shadowmmu.guest.layout import REGISTER_LOAD, REGISTER_STORE, ZERO
from shadowmmu.host.advise import plan_mprotect
from shadowmmu.host.geometry import page_shift
from shadowmmu.host.layout import HVA_BASE, R_PAGES, VM_READ, VM_WRITE
from shadowmmu.kvm.fault import Abort, handle_guest_abort
from shadowmmu.kvm.harvest import harvest_rings
from shadowmmu.kvm.layout import EFAULT_EXIT, MMIO_EXIT, RESUME
from shadowmmu.kvm.notifier import run_host_plan
from shadowmmu.kvm.pool import hw_mmu
from shadowmmu.kvm.ring import ring_full
from shadowmmu.kvm.vcpu import put_vcpu, resume_vcpu
from shadowmmu.machine.counters import GUEST_ABORTS
from shadowmmu.machine.log import ERROR, RING_FULL, observe
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import M_ROOT, context_regime

DONE: Final = 100
STUCK: Final = 101
TRIES: Final = 64
"""Retries after which an access counts as making no progress (invariant A14)."""
FAULT_PAGE: Final = ~U64(0xFFF)
"""HPFAR_EL2.FIPA holds bits 12 and up, whatever the granule."""
MAPS_NOTHING: Final = ZERO


@kernel
def try_access(s: State, vcpu: int, ipa: Word, access: int, pc: Word) -> int:
    """One attempt at ``ipa`` (the VA too, stage 1 being off): DONE, RESUME after an abort, or the exit."""
    mmu = hw_mmu(s, vcpu)
    r = context_regime(s, mmu)
    walk = stage2_walk(s.mem, r, s.mmus[mmu, M_ROOT], ipa, False)
    kind = stage2_fault(walk, access)
    if kind == NONE:
        return DONE
    register = REGISTER_STORE if access == WRITE else REGISTER_LOAD
    esr = abort_syndrome(access, register, fault_status(kind, walk.level))
    outcome = handle_guest_abort(s, vcpu, Abort(ipa & FAULT_PAGE, ipa, esr, pc, access, kind, walk.level))
    if outcome == EFAULT_EXIT or outcome == MMIO_EXIT:
        return leave_for_vmm(s, vcpu, outcome)
    if ring_full(s, vcpu):
        empty_rings(s, vcpu)
    return outcome


@kernel
def leave_for_vmm(s: State, vcpu: int, why: int) -> int:
    """The vCPU goes out to the VMM and back: it gives up its stage-2 context, and finds it again."""
    put_vcpu(s, vcpu, False)
    outcome = DONE
    if why == EFAULT_EXIT:
        outcome = vmm_makes_writable(s)
    resume_vcpu(s, vcpu)
    return outcome


@kernel
def empty_rings(s: State, vcpu: int) -> None:
    """The vCPU may not enter: it goes out, the VMM harvests the rings of all vCPUs, and it comes back."""
    observe(s, RING_FULL, U64(vcpu), ZERO, ZERO, ZERO, ZERO)
    put_vcpu(s, vcpu, False)
    harvest_rings(s)
    resume_vcpu(s, vcpu)


@kernel
def vmm_makes_writable(s: State) -> int:
    """The VMM's answer to an -EFAULT exit: mprotect all its memory read-write, run the vCPU again."""
    observe(s, ERROR, ZERO, ZERO, ZERO, ZERO, ZERO)
    size = s.regs[R_PAGES] << page_shift(s)
    steps = plan_mprotect(s, HVA_BASE, size, I64(VM_READ | VM_WRITE))
    if steps < 0:
        return STUCK
    run_host_plan(s, steps)
    return RESUME


@kernel
def access_until_done(s: State, vcpu: int, ipa: Word, access: int) -> int:
    """Repeat an access until it is done, injected, or out of tries (STUCK)."""
    for _attempt in range(TRIES):
        outcome = try_access(s, vcpu, ipa, access, ipa)
        if outcome != RESUME:
            return outcome
    return STUCK


@kernel
def l1_access(s: State, vcpu: int, canonical_ipa: Word, access: int, code_page: Word) -> int:
    """An access by L1's code in ``code_page``, which an abort may have unmapped: it is fetched again."""
    for _attempt in range(TRIES):
        aborts = s.count[GUEST_ABORTS]
        outcome = try_access(s, vcpu, canonical_ipa, access, code_page)
        if s.count[GUEST_ABORTS] == aborts:
            return outcome
        access_until_done(s, vcpu, code_page, EXECUTE)
        if outcome != RESUME:
            return outcome
    return STUCK


@kernel
def l1_address(s: State, vcpu: int, canonical_ipa: Word, access: int, code_page: Word) -> Word:
    """Physical address behind one of L1's own, after the access that makes it so; 0 if there is none."""
    if l1_access(s, vcpu, canonical_ipa, access, code_page) != DONE:
        return MAPS_NOTHING
    mmu = hw_mmu(s, vcpu)
    r = context_regime(s, mmu)
    walk = stage2_walk(s.mem, r, s.mmus[mmu, M_ROOT], canonical_ipa, False)
    if stage2_fault(walk, access) != NONE:
        return MAPS_NOTHING  # answered as MMIO
    return output_address(r, walk.descriptor, walk.level, canonical_ipa)
