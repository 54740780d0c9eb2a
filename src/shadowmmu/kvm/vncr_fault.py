"""An abort on the page that L1's VNCR_EL2 names: fill the pseudo-TLB, or tell L1 what is wrong.

Mirrors Linux 7.3.4 ``kvm_handle_vncr_abort``, ``kvm_translate_vncr`` and ``handle_vncr_perm``
(``nested.c``), in the kernel's order. FAR_EL2 is not written, as seen on the rig (``vncr/nowhere``).
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch import context as c
from shadowmmu.arch.controls import stage1_controls
from shadowmmu.arch.fault import ESR_FSC, ESR_IL, ESR_WNR, PERMISSION, TRANSLATION, fault_status
from shadowmmu.arch.operation import AT_S1E2A, AT_S1E2R, AT_S1E2W, access_of
from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.host.fault import plan_touch
from shadowmmu.host.tables import translate
from shadowmmu.kvm.at import offered
from shadowmmu.kvm.at_walk import BIT_55, permits, slow_walk
from shadowmmu.kvm.interleave import fault_bounced, host_interferes
from shadowmmu.kvm.layout import (
    EAGAIN,
    FAULT_OF_L1,
    INJECTED,
    K_IN_PROGRESS,
    K_SEQ,
    K_VNCR_COUNT,
    ONE,
    REQUEST_MAP_VNCR,
    RESUME,
    S_FLAGS,
    SLOT_READONLY,
    V_ELR,
    V_ESR,
    V_HCR,
    V_REQUESTS,
    V_VIRTUAL,
    ZERO,
)
from shadowmmu.kvm.notifier import run_host_plan
from shadowmmu.kvm.slots import NO_SLOT, find_slot, mark_dirty, slot_hva
from shadowmmu.kvm.vncr import (
    GIGA,
    SCTLR_M,
    T_ASID,
    T_GVA,
    T_HPA,
    T_IPA,
    T_LEVEL,
    T_MAPPED,
    T_NG,
    T_READ,
    T_SPAN,
    T_TRANSLATED,
    T_VALID,
    T_WRITABLE,
    T_WRITE,
    el2_asid,
    invalidate_vncr,
    leaf_span,
    unmap_l1_vncr,
    vncr_va,
)
from shadowmmu.machine.calls import mmu_lock_write, mmu_unlock_write
from shadowmmu.machine.counters import FAULTS_INJECTED, VNCR_ABORTS, VNCR_FILLS
from shadowmmu.machine.log import VNCR_FAULT, VNCR_FILL, observe
from shadowmmu.machine.state import State

ESR_VNCR: Final = U64(1 << 13)
EC_DATA_ABORT_SAME: Final = U64(0x25 << 26)
EXTERNAL: Final = U64(0x10)
NOT_GLOBAL: Final = U64(1 << 11)
PAGE_MASK: Final = ~U64(0xFFF)
LAST_LEVEL: Final = 3


@inline
def fail(s: State, vcpu: int, status: Word) -> int:
    """The translation failed with ``status``, which the abort's syndrome gets. Mirrors ``fail_s1_walk``."""
    s.vcpus[vcpu, V_ESR] = (s.vcpus[vcpu, V_ESR] & ~ESR_FSC) | status
    return FAULT_OF_L1


@kernel
def walk_vncr(s: State, vcpu: int) -> int:
    """Walk L1's EL2&0 stage 1 for VNCR_EL2 and note what it says in the entry, which stays invalid.

    0, EAGAIN or FAULT_OF_L1. Mirrors ``__kvm_translate_va``: permissions are noted, not enforced.
    """
    row = s.vcpus[vcpu]
    va = row[T_GVA]
    cpu = offered(s)
    hcr = row[V_HCR]
    access = access_of(AT_S1E2A, hcr)
    upper = (va >> BIT_55) & ONE != ZERO
    s1 = stage1_controls(row[V_VIRTUAL : V_VIRTUAL + c.ROW], cpu, access.regime, upper)
    w = slow_walk(s, vcpu, s1, access, va, False, False, cpu.pa_bits)
    if w.code == EAGAIN:
        return EAGAIN
    if w.failed:
        return fail(s, vcpu, w.status)
    row[T_IPA] = w.pa
    row[T_TRANSLATED] = ZERO if w.off else SCTLR_M
    row[T_READ] = ONE
    row[T_WRITE] = ONE
    row[T_NG] = ZERO
    row[T_SPAN] = GIGA
    row[T_LEVEL] = ZERO
    if not w.off:
        row[T_READ] = U64(permits(s1, w, access_of(AT_S1E2R, hcr), False))
        row[T_WRITE] = U64(permits(s1, w, access_of(AT_S1E2W, hcr), False))
        row[T_SPAN] = leaf_span(s1.regime.page_shift, w.level)
        row[T_LEVEL] = U64(w.level)
        if w.descriptor & NOT_GLOBAL != ZERO:
            row[T_NG] = ONE
            row[T_ASID] = el2_asid(s, vcpu)
    return 0


@kernel
def translate_vncr(s: State, vcpu: int, write: bool) -> int:
    """Fill the entry of ``vcpu``: 0, EAGAIN or FAULT_OF_L1. Mirrors ``kvm_translate_vncr``."""
    row = s.vcpus[vcpu]
    mmu_lock_write(s)
    unmap_l1_vncr(s, vcpu)
    if row[T_VALID] != ZERO:
        invalidate_vncr(s, vcpu)
    mmu_unlock_write(s)
    row[T_GVA] = vncr_va(s, vcpu)
    sequence = s.regs[K_SEQ]
    code = walk_vncr(s, vcpu)
    if code != 0:
        return code
    slot = find_slot(s, row[T_IPA])
    if slot == NO_SLOT or (write and s.slots[slot, S_FLAGS] & SLOT_READONLY != ZERO):
        return fail(s, vcpu, EXTERNAL)
    hva = slot_hva(s, slot, row[T_IPA] & PAGE_MASK)
    steps = plan_touch(s, hva, write)
    if steps < 0:
        return fail(s, vcpu, EXTERNAL)
    run_host_plan(s, steps)
    page = translate(s, hva)
    host_interferes(s, vcpu)
    mmu_lock_write(s)
    if s.regs[K_IN_PROGRESS] != ZERO or s.regs[K_SEQ] != sequence:
        mmu_unlock_write(s)
        fault_bounced(s)
        return EAGAIN
    writable = page.writable and s.slots[slot, S_FLAGS] & SLOT_READONLY == ZERO
    row[T_HPA] = page.pa
    row[T_WRITABLE] = U64(writable)
    row[T_VALID] = ONE
    row[T_MAPPED] = ZERO
    s.regs[K_VNCR_COUNT] += ONE
    row[V_REQUESTS] |= REQUEST_MAP_VNCR
    s.count[VNCR_FILLS] += 1
    observe(s, VNCR_FILL, row[T_GVA], row[T_IPA], page.pa, U64(writable), U64(vcpu))
    mmu_unlock_write(s)
    if writable and row[T_WRITE] != ZERO:
        mark_dirty(s, slot, row[T_IPA] & PAGE_MASK)
    return 0


@kernel
def handle_vncr_abort(s: State, vcpu: int, write: bool, pc: Word) -> int:
    """One abort on the VNCR page: RESUME to try again, or INJECTED. Mirrors ``kvm_handle_vncr_abort``.

    A lack of permission is L1's, at the level of its own leaf. Linux makes it an external abort where L1's
    stage 1 permits a write and the host's page, filled for writing, does not: guest_memfd alone can.
    """
    row = s.vcpus[vcpu]
    s.count[VNCR_ABORTS] += 1
    status = fault_status(PERMISSION if row[T_MAPPED] != ZERO else TRANSLATION, LAST_LEVEL)
    kept = row[V_ESR]
    row[V_ESR] = EC_DATA_ABORT_SAME | ESR_IL | ESR_VNCR | (ESR_WNR if write else ZERO) | status
    code = translate_vncr(s, vcpu, write)
    if code == EAGAIN:
        row[V_ESR] = kept
        return RESUME
    if code == 0:
        if (row[T_WRITE] if write else row[T_READ]) == ZERO:
            fail(s, vcpu, fault_status(PERMISSION, I64(row[T_LEVEL])))
        else:
            row[V_ESR] = kept
            return RESUME
    s.count[FAULTS_INJECTED] += 1
    row[V_ELR] = pc
    observe(s, VNCR_FAULT, row[T_GVA], row[V_ESR], U64(vcpu), ZERO, ZERO)
    return INJECTED


@inline
def vncr_page_mapped(s: State, vcpu: int, write: bool) -> bool:
    """Whether the CPU's access of the page goes through: mapped, and writable where it is a write."""
    row = s.vcpus[vcpu]
    if row[T_MAPPED] == ZERO:
        return False
    return not write or row[T_WRITABLE] & row[T_WRITE] != ZERO
