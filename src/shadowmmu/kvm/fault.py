"""Stage-2 aborts: who gets them, and the fill of a canonical or shadow leaf.

Mirrors Linux 7.3.4 ``kvm_handle_guest_abort``, ``kvm_s2_handle_perm_fault``, ``kvm_inject_s2_fault`` and
``user_mem_abort`` (``kvm_s2_resolve_vma_size``, ``kvm_s2_fault_pin_pfn``, ``kvm_s2_fault_compute_prot``,
``kvm_s2_fault_map``), in the kernel's order.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.fault import (
    ACCESS_FLAG,
    ADDRESS_SIZE,
    EC_DATA_CURRENT,
    EC_INSTRUCTION_CURRENT,
    ESR_EC_SHIFT,
    ESR_FSC,
    ESR_IL,
    EXECUTE,
    EXTERNAL,
    NONE,
    PERMISSION,
    TRANSLATION,
    WRITE,
    fault_status,
    faulting_ipa,
)
from shadowmmu.arch.regime import entry_size
from shadowmmu.arch.registers import HPFAR_EL2
from shadowmmu.arch.stage2 import S2AP_R, S2AP_W, executable_el0, executable_el1, stage2_permits
from shadowmmu.compiled import U64, Word, inline, kernel
from shadowmmu.designs.dispatch import design_forget, design_prepare, design_record
from shadowmmu.designs.interface import CAUSE_REPLACED
from shadowmmu.host.fault import plan_touch
from shadowmmu.host.geometry import hugetlb_size, page_size
from shadowmmu.host.layout import V_FLAGS, VM_HUGETLB
from shadowmmu.host.tables import HostPage, translate
from shadowmmu.host.vma import find_vma, vma_count
from shadowmmu.kvm.interleave import fault_bounced, host_interferes
from shadowmmu.kvm.layout import (
    EAGAIN,
    EFAULT_EXIT,
    IN_L2,
    INJECTED,
    K_IN_PROGRESS,
    K_SEQ,
    MMIO_EXIT,
    ONE,
    OWN_FAULT,
    RESUME,
    S_FLAGS,
    SLOT_READONLY,
    V_ELR,
    V_ESR,
    V_FAR,
    V_HPFAR,
    V_STATE,
    V_VTCR,
    V_VTTBR,
    ZERO,
)
from shadowmmu.kvm.leaf_size import mapping_size, resolve_vma_size
from shadowmmu.kvm.notifier import run_host_plan
from shadowmmu.kvm.pool import hw_mmu
from shadowmmu.kvm.slots import (
    NO_SLOT,
    find_slot,
    mark_dirty,
    slot_hva,
    slot_logs,
)
from shadowmmu.kvm.walk import GuestWalk, walk_guest_stage2
from shadowmmu.machine.calls import mmu_lock_read, mmu_unlock_read
from shadowmmu.machine.counters import (
    FAULTS_CANONICAL,
    FAULTS_INJECTED,
    FAULTS_OWN,
    FAULTS_SHADOW,
    GUEST_ABORTS,
    MMIO_EXITS,
)
from shadowmmu.machine.ghost import ghost_birth
from shadowmmu.machine.log import GUEST_FAULT, INJECT, MAP, MMIO, OWN, RELAX, observe
from shadowmmu.machine.state import R_PA_BITS, State
from shadowmmu.pgtable.attributes import (
    GUEST_LEVEL_SHIFT,
    PROT_PX,
    PROT_R,
    PROT_UX,
    PROT_W,
    PROT_X,
    SW_BITS,
    make_young,
    relax_permissions,
)
from shadowmmu.pgtable.context import (
    CANONICAL,
    M_ENABLED,
    context_regime,
    input_size,
)
from shadowmmu.pgtable.map import UNCHANGED, stage2_map

HPFAR_VALID: Final = HPFAR_EL2.mask("NS")
"""KVM's own mark in HPFAR_EL2, seen by L1 on the running kernel."""
TAG_MASK: Final = U64(3)
BIG: Final = U64(1 << 52)


class Abort(NamedTuple):
    """One stage-2 abort as the hardware reports it."""

    ipa: Word
    va: Word
    esr: Word
    pc: Word
    access: int
    kind: int
    level: int


@inline
def inject_fault(s: State, vcpu: int, abort: Abort, kind: int, level: int) -> int:
    """Give L1 a stage-2 fault of its own table. Mirrors ``kvm_inject_s2_fault``."""
    esr = (abort.esr & ~ESR_FSC) | fault_status(kind, level)
    s.count[FAULTS_INJECTED] += 1
    s.vcpus[vcpu, V_ESR] = esr
    s.vcpus[vcpu, V_FAR] = abort.va
    s.vcpus[vcpu, V_HPFAR] = faulting_ipa(abort.ipa) | HPFAR_VALID
    s.vcpus[vcpu, V_ELR] = abort.pc
    observe(s, INJECT, esr, abort.va, s.vcpus[vcpu, V_HPFAR], ZERO, ZERO)
    return INJECTED


@inline
def inject_own(s: State, vcpu: int, abort: Abort, kind: int) -> int:
    """Give an abort to the level that took it. Mirrors ``kvm_inject_size_fault``, ``kvm_inject_sea``, 7.3.4.

    An address that is too large is an address-size fault, level 0, beyond the host's limit, and an external
    abort between the VM's and the host's; a fetch from no memslot is an external abort. For L2 all go to its
    EL1: the L1 here never sets HCR_EL2.TEA. Seen on the rig (``vcpus/beyond-limit``, ``fetch-nowhere``).
    """
    ec = EC_INSTRUCTION_CURRENT if abort.access == EXECUTE else EC_DATA_CURRENT
    esr = (ec << ESR_EC_SHIFT) | ESR_IL | fault_status(kind, 0)
    s.count[FAULTS_OWN] += 1
    observe(s, OWN, esr, abort.va, abort.pc, ZERO, ZERO)
    if s.vcpus[vcpu, V_STATE] & IN_L2 == ZERO:
        s.vcpus[vcpu, V_ESR] = esr
        s.vcpus[vcpu, V_FAR] = abort.va
        s.vcpus[vcpu, V_ELR] = abort.pc
    return OWN_FAULT


@kernel
def handle_guest_abort(s: State, vcpu: int, abort: Abort) -> int:
    """One stage-2 abort, from the hardware's report to its outcome. Mirrors the function of that name."""
    mmu = hw_mmu(s, vcpu)
    s.count[GUEST_ABORTS] += 1
    if abort.kind == TRANSLATION and abort.ipa >= input_size(s, mmu):
        if mmu == CANONICAL:
            s.count[FAULTS_CANONICAL] += 1
        else:
            s.count[FAULTS_SHADOW] += 1
        beyond = abort.ipa >= ONE << s.regs[R_PA_BITS]
        return inject_own(s, vcpu, abort, ADDRESS_SIZE if beyond else EXTERNAL)
    observe(s, GUEST_FAULT, abort.ipa, abort.esr, abort.va, abort.pc, U64(mmu))
    walk = GuestWalk(NONE, 0, abort.ipa, BIG, ZERO, 0)
    nested = mmu != CANONICAL and s.mmus[mmu, M_ENABLED] != ZERO
    if mmu == CANONICAL:
        s.count[FAULTS_CANONICAL] += 1
    else:
        s.count[FAULTS_SHADOW] += 1
    if nested:
        walk = walk_guest_stage2(s, s.vcpus[vcpu, V_VTTBR], s.vcpus[vcpu, V_VTCR], abort.ipa, False)
        if walk.code == EAGAIN:
            return RESUME
        if walk.fault != NONE:
            return inject_fault(s, vcpu, abort, walk.fault, walk.level)
        if abort.kind == PERMISSION and not stage2_permits(walk.descriptor, abort.access):
            return inject_fault(s, vcpu, abort, PERMISSION, walk.level)
    slot = find_slot(s, walk.output)
    if slot == NO_SLOT or (abort.access == WRITE and s.slots[slot, S_FLAGS] & SLOT_READONLY != ZERO):
        if abort.access == EXECUTE:
            return inject_own(s, vcpu, abort, EXTERNAL)
        s.count[MMIO_EXITS] += 1
        observe(s, MMIO, walk.output, U64(abort.access), ZERO, ZERO, ZERO)
        return MMIO_EXIT
    if abort.kind == ACCESS_FLAG:
        mmu_lock_read(s)
        make_young(s, mmu, abort.ipa)
        mmu_unlock_read(s)
        return RESUME
    return user_mem_abort(s, vcpu, mmu, slot, abort, walk, nested)


@inline
def vma_page_size(s: State, hva: Word) -> Word:
    """Bytes of the pages of the VMA at ``hva``: those of hugetlb, else 4K."""
    count = vma_count(s)
    row = find_vma(s, 0, count, hva)
    if row < count and s.vmas[row, V_FLAGS] & VM_HUGETLB != ZERO:
        return hugetlb_size(s)
    return page_size(s)


@inline
def compute_prot(s: State, slot: int, page: HostPage, abort: Abort, walk: GuestWalk, nested: bool) -> Word:
    """Permissions of the leaf: the host's, cut to L1's, with the guest level tag.

    Mirrors ``kvm_s2_fault_compute_prot`` and ``adjust_nested_fault_perms``. The modelled CPU has DIC, so
    execution is granted without an execution fault.
    """
    prot = PROT_R | PROT_X
    writable = page.writable and s.slots[slot, S_FLAGS] & SLOT_READONLY == ZERO
    if writable and (not slot_logs(s, slot) or abort.access == WRITE):
        prot |= PROT_W
    if nested:
        if walk.descriptor & S2AP_W == ZERO:
            prot &= ~PROT_W
        if walk.descriptor & S2AP_R == ZERO:
            prot &= ~PROT_R
        if not executable_el1(walk.descriptor):
            prot &= ~PROT_PX
        if not executable_el0(walk.descriptor):
            prot &= ~PROT_UX
        prot |= U64(walk.level) << GUEST_LEVEL_SHIFT
    return prot


@kernel
def user_mem_abort(
    s: State, vcpu: int, mmu: int, slot: int, abort: Abort, walk: GuestWalk, nested: bool
) -> int:
    """Back a fault with host memory and fill the leaf. Mirrors ``user_mem_abort``."""
    canonical_ipa = walk.output
    hva = slot_hva(s, slot, canonical_ipa)
    sizes = resolve_vma_size(s, slot, hva, vma_page_size(s, hva), walk.size, nested)
    sequence = s.regs[K_SEQ]
    steps = plan_touch(s, hva, abort.access == WRITE)
    if steps < 0:
        return EFAULT_EXIT
    run_host_plan(s, steps)
    page = translate(s, hva)
    host_interferes(s, vcpu)
    prot = compute_prot(s, slot, page, abort, walk, nested)
    if mmu != CANONICAL and not design_prepare(s):
        return RESUME
    mmu_lock_read(s)
    if s.regs[K_IN_PROGRESS] != ZERO or s.regs[K_SEQ] != sequence:
        mmu_unlock_read(s)
        fault_bounced(s)
        return RESUME
    held_level = abort.level if abort.kind == PERMISSION else 3
    size = mapping_size(s, slot, hva, page.size, sizes, held_level)
    filled = map_fault(s, mmu, abort, canonical_ipa, size, sizes.vma, page, prot)
    mmu_unlock_read(s)
    if filled and prot & PROT_W != ZERO:
        mark_dirty(s, slot, canonical_ipa & ~(size - ONE))
    return RESUME


@kernel
def map_fault(
    s: State,
    mmu: int,
    abort: Abort,
    canonical_ipa: Word,
    size: Word,
    vma_size: Word,
    page: HostPage,
    prot: Word,
) -> bool:
    """Relax the leaf that is there, or map a new one and let the design record it."""
    r = context_regime(s, mmu)
    inside = size - ONE
    ipa = abort.ipa & ~inside
    if abort.kind == PERMISSION and size == entry_size(r, abort.level):
        # Linux passes the address of the fault, aligned as the VMA's pages are and not as the leaf is.
        observe(s, RELAX, abort.ipa & ~(vma_size - ONE), prot & ~SW_BITS, U64(mmu), ZERO, ZERO)
        return relax_permissions(s, mmu, ipa, prot & ~SW_BITS)
    offset = canonical_ipa & inside & ~(entry_size(r, 3) - ONE)
    pa = page.pa - offset
    level = 3
    while entry_size(r, level) < size:
        level -= 1
    observe(s, MAP, ipa, size, pa, prot, U64(mmu))
    if mmu != CANONICAL and (level < 3 or abort.kind == PERMISSION):
        design_forget(s, mmu, ipa, ipa + size, CAUSE_REPLACED)
    word = stage2_map(s, mmu, ipa, level, pa, prot)
    if word == UNCHANGED:
        return False
    if mmu != CANONICAL:
        base = canonical_ipa & ~inside
        tag = (prot >> GUEST_LEVEL_SHIFT) & TAG_MASK
        ghost_birth(s, mmu, ipa, word, base, tag)
        design_record(s, mmu, base, ipa, size, level, word)
    return True
