"""What each kind of event does, one bounded step at a time.

An action returns MORE while its event has steps left (``G_CURSOR`` counts them), else EVENT_DONE, or
EVENT_STUCK when an access made no progress; IN_GAP is MORE where the judge may look in between.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.context import C_HCRX_EL2, C_TCR2_EL1, ROW
from shadowmmu.arch.fault import READ, WRITE
from shadowmmu.arch.registers import HCR_EL2, HCRX_EL2
from shadowmmu.compiled import I64, U64, Word, Words, inline, kernel
from shadowmmu.engine.contents import STORED, keep_l2_store, keep_vmm_store
from shadowmmu.engine.vcpu_actions import bring_to_l1, return_to_l1
from shadowmmu.events.schema import (
    AT,
    COLLAPSE,
    DONTNEED,
    GAP_TAKES,
    HOST_WRITE,
    HUGEPAGE,
    KHUGEPAGED,
    KSM,
    MAP_GUEST,
    MERGEABLE,
    MIGRATE,
    MMAP,
    MPROTECT,
    MUNMAP,
    NOHUGEPAGE,
    NUMA_HINT,
    PAGEOUT,
    PEEK,
    POKE,
    PUNCH,
    S1,
    SET_STAGE2,
    SWAP,
    TLBI,
    TOUCH,
    UNMAP_GUEST,
    VM,
)
from shadowmmu.guest.cpu import DONE, STUCK
from shadowmmu.guest.hypervisor import (
    answer_mailbox,
    guest_leaf,
    l1_at,
    l1_load,
    l1_store,
    new_table,
    set_leaf,
    switch_to_l2,
    table_shift,
    use_stack,
    wake_l1,
)
from shadowmmu.guest.l2 import enter_l2, hypercall, leave_l2, touch_once
from shadowmmu.guest.layout import (
    G_CURSOR,
    G_LEFT,
    G_ROOT,
    G_STATUS,
    L1_LOOP_PAGE,
    L1_START_PAGE,
    MAILBOX_PAGE,
    ONE,
    RAM_BASE,
    ZERO,
)
from shadowmmu.host.advise import (
    plan_advise,
    plan_collapse,
    plan_idle,
    plan_mprotect,
)
from shadowmmu.host.background import plan_khugepaged, plan_migrate, plan_numa_hints
from shadowmmu.host.fault import plan_touch
from shadowmmu.host.geometry import page_shift, page_size
from shadowmmu.host.ksm import plan_ksm
from shadowmmu.host.layout import (
    HVA_BASE,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    R_CONTENTS,
    R_RESUME,
)
from shadowmmu.host.reclaim import plan_pageout, plan_swap
from shadowmmu.host.remove import plan_dontneed, plan_mmap, plan_munmap, plan_punch
from shadowmmu.host.tables import region_end, translate
from shadowmmu.kvm.interleave import host_takes
from shadowmmu.kvm.layout import IN_L2, V_ELR, V_ESR, V_FAR, V_GAP, V_HCR, V_HPFAR, V_VIRTUAL, V_VTCR, V_VTTBR
from shadowmmu.kvm.notifier import run_host_plan
from shadowmmu.kvm.shadows import gap_open
from shadowmmu.kvm.tlbi import finish_unmap, handle_tlbi
from shadowmmu.kvm.vcpu import put_vcpu, resume_vcpu, vcpu_state
from shadowmmu.machine.counters import GUEST_ABORTS
from shadowmmu.machine.log import HVC, observe
from shadowmmu.machine.state import R_GAP, State

MORE: Final = 0
EVENT_DONE: Final = 1
EVENT_STUCK: Final = 2
IN_GAP: Final = 3

HCR_VM: Final = HCR_EL2.mask("VM")
TCR2_ENABLED: Final = HCRX_EL2.mask("TCR2En")
VMID_SHIFT: Final = U64(48)
# Columns of an event's operands; column 0 is its vCPU.
A: Final = 1
B: Final = 2
C: Final = 3
D: Final = 4
E: Final = 5
F: Final = 6


@inline
def host_address(canonical_ipa: Word) -> Word:
    """The VMM's address of its guest's memory."""
    return HVA_BASE + (canonical_ipa - RAM_BASE)


@kernel
def vmm_store(s: State, canonical_ipa: Word) -> None:
    """The VMM stores to its own memory."""
    steps = plan_touch(s, host_address(canonical_ipa), True)
    if steps > 0:
        run_host_plan(s, steps)


@kernel
def command_l1(s: State, vcpu: int) -> None:
    """The VMM fills L1's mailbox and lets it run to the end of one command."""
    bring_to_l1(s, vcpu)
    vmm_store(s, MAILBOX_PAGE)
    wake_l1(s, vcpu)


@kernel
def start_l1(s: State) -> None:
    """The VMM loads L1's image; L1 runs to its mailbox on vCPU 0 and answers what it is."""
    vmm_store(s, L1_START_PAGE)
    vmm_store(s, L1_LOOP_PAGE)
    command_l1(s, 0)
    answer_mailbox(s, 0)


@inline
def set_stage2(s: State, vcpu: int, op: Words) -> int:
    """L1 writes VTCR_EL2 and VTTBR_EL2, with a new root if none is given."""
    root = op[A]
    if root == ZERO:
        root = new_table(s, vcpu, table_shift(op[C]))
    s.regs[G_ROOT] = root
    answer_mailbox(s, vcpu)
    s.vcpus[vcpu, V_VTCR] = op[C]
    s.vcpus[vcpu, V_VTTBR] = root | (op[B] << VMID_SHIFT)
    return EVENT_DONE


@inline
def map_guest(s: State, vcpu: int, op: Words) -> int:
    """L1 writes the next leaf of a run."""
    if s.regs[G_CURSOR] == ZERO:
        use_stack(s, vcpu, WRITE)
    offset = s.regs[G_CURSOR] * guest_leaf(s, vcpu, op[D])
    if offset >= op[C]:
        use_stack(s, vcpu, READ)
        answer_mailbox(s, vcpu)
        return EVENT_DONE
    window = op[F] if op[F] != ZERO else op[C]
    set_leaf(s, vcpu, s.regs[G_ROOT], op[A] + offset, op[B] + offset % window, I64(op[D]), op[E])
    s.regs[G_CURSOR] += ONE
    return MORE


@inline
def unmap_guest(s: State, vcpu: int, op: Words) -> int:
    """L1 clears the next leaf of a run."""
    if s.regs[G_CURSOR] == ZERO:
        use_stack(s, vcpu, WRITE)
    offset = s.regs[G_CURSOR] * guest_leaf(s, vcpu, op[C])
    if offset >= op[B]:
        use_stack(s, vcpu, READ)
        return EVENT_DONE
    set_leaf(s, vcpu, s.regs[G_ROOT], op[A] + offset, ZERO, I64(op[C]), ZERO)
    s.regs[G_CURSOR] += ONE
    return MORE


@kernel
def touch(s: State, vcpu: int, op: Words) -> int:
    """L2's accesses, up to the next abort; enters before the first, leaves after the last or at a fault."""
    done = s.regs[G_CURSOR]
    if done == ZERO:
        if vcpu_state(s, vcpu, IN_L2):
            put_vcpu(s, vcpu, False)  # the VMM takes it out to tell it what to access
            resume_vcpu(s, vcpu)
        else:
            switch_to_l2(s, vcpu)
            enter_l2(s, vcpu)
    outcome = DONE
    fetched = False  # without an abort in between, the code page is still where it was
    while outcome == DONE and done < op[C]:
        aborts = s.count[GUEST_ABORTS]
        va = op[A] + done * op[B]
        outcome = touch_once(s, vcpu, va, I64(op[D]), op[E], done == ZERO, fetched)
        fetched = s.count[GUEST_ABORTS] == aborts
        if outcome == DONE:
            if op[D] == U64(WRITE):
                keep_l2_store(s, vcpu, va, op[A] ^ STORED)
            done += ONE
            if (not fetched or s.regs[R_CONTENTS] != ZERO) and done < op[C]:
                s.regs[G_CURSOR] = done
                return MORE
    if outcome == DONE:
        hypercall(s, vcpu, op[E])
    return_to_l1(s, vcpu)
    s.regs[G_LEFT] = op[C] - done
    s.regs[G_STATUS] = U64(outcome)
    report_touch(s, vcpu, op[C] - done)
    return EVENT_STUCK if outcome == STUCK else EVENT_DONE


@inline
def report_touch(s: State, vcpu: int, left: Word) -> None:
    """What L1 saw when L2 left: its syndrome registers, and how many accesses were not made."""
    row = s.vcpus[vcpu]
    observe(s, HVC, row[V_ESR], row[V_FAR], row[V_HPFAR], row[V_ELR], left)


@inline
def write_registers(s: State, vcpu: int, op: Words) -> None:
    """L1 writes registers of L2's stage 1; with TCR2_EL1 the bit of HCRX_EL2 that gives it effect."""
    place = B
    for column in range(ROW):
        if (op[A] >> U64(column)) & ONE != ZERO:
            s.vcpus[vcpu, V_VIRTUAL + column] = op[place]
            place += 1
            if column == C_TCR2_EL1:
                s.vcpus[vcpu, V_VIRTUAL + C_HCRX_EL2] |= TCR2_ENABLED


@kernel
def execute_at(s: State, vcpu: int, op: Words) -> int:
    """L1 executes an AT and stores PAR_EL1 in its mailbox."""
    if l1_at(s, vcpu, I64(op[A]), op[B]) == STUCK:
        return EVENT_STUCK
    answer_mailbox(s, vcpu)
    return EVENT_DONE


@inline
def execute_tlbi(s: State, vcpu: int, op: Words) -> int:
    """L1 executes a TLBI; one that gave the lock away to a vCPU or the host goes on in further steps."""
    step = s.regs[G_CURSOR]
    s.regs[G_CURSOR] += ONE
    if step == ZERO:
        handle_tlbi(s, vcpu, I64(op[A]), op[B])
        s.regs[R_GAP] = ZERO  # a sweep too short for it has no such gap
        return MORE if gap_open(s) else EVENT_DONE
    outcome = DONE
    gap = s.vcpus[len(s.vcpus) - 1, V_GAP : V_GAP + 3]
    if I64(gap[1]) != GAP_TAKES:
        outcome = touch_in_gap(s, vcpu)
    elif step == ONE:
        start = host_address(gap[0])
        host_takes(s, start, start + gap[2])
        return IN_GAP
    finish_unmap(s)
    return EVENT_STUCK if outcome == STUCK else EVENT_DONE


@kernel
def touch_in_gap(s: State, vcpu: int) -> int:
    """One access of the same L2 on the last vCPU, while the TLBI of ``vcpu`` waits for mmu_lock."""
    other = len(s.vcpus) - 1
    row = s.vcpus[other]
    for column in (V_VTCR, V_VTTBR, V_HCR):
        row[column] = s.vcpus[vcpu, column]
    enter_l2(s, other)
    outcome = touch_once(s, other, row[V_GAP], I64(row[V_GAP + 1]), row[V_GAP + 2], True, False)
    leave_l2(s, other)
    return outcome


@kernel
def guest_action(s: State, kind: int, vcpu: int, op: Words) -> int:
    """Commands of L1, and L2's run."""
    if s.regs[G_CURSOR] == ZERO and not (kind == TOUCH and vcpu_state(s, vcpu, IN_L2)):
        command_l1(s, vcpu)
    if kind == TOUCH:
        return touch(s, vcpu, op)
    if kind == MAP_GUEST:
        return map_guest(s, vcpu, op)
    if kind == UNMAP_GUEST:
        return unmap_guest(s, vcpu, op)
    if kind == SET_STAGE2:
        return set_stage2(s, vcpu, op)
    if kind == AT:
        return execute_at(s, vcpu, op)
    if kind == TLBI:
        return execute_tlbi(s, vcpu, op)
    if kind == VM:
        if op[A] != ZERO:
            s.vcpus[vcpu, V_HCR] |= HCR_VM
        else:
            s.vcpus[vcpu, V_HCR] &= ~HCR_VM
    elif kind == POKE:
        l1_store(s, vcpu, op[A], op[B], L1_LOOP_PAGE)
    elif kind == PEEK:
        l1_load(s, vcpu, op[A], L1_LOOP_PAGE)
        answer_mailbox(s, vcpu)
    elif kind == S1:
        write_registers(s, vcpu, op)
    return EVENT_DONE


@kernel
def host_write(s: State, op: Words) -> int:
    """The VMM stores to the next page of a range; a huge page is all there after the first store to it."""
    offset = s.regs[G_CURSOR]
    if offset >= op[B]:
        return EVENT_DONE
    vmm_store(s, op[A] + offset)
    hva = host_address(op[A] + offset)
    keep_vmm_store(s, hva, op[A] + offset, op[C] != ZERO)
    size = translate(s, hva).size
    if size < page_size(s) or s.regs[R_CONTENTS] != ZERO:
        size = page_size(s)
    s.regs[G_CURSOR] = offset + (size - (hva & (size - ONE)))
    return MORE


@inline
def plan_action(s: State, kind: int, hva: Word, size: Word, prot: Word) -> int:
    """Plan a memory-management call of the VMM: rows, or a negative errno."""
    if kind == DONTNEED:
        return plan_dontneed(s, hva, size)
    if kind == PUNCH:
        return plan_punch(s, hva, size)
    if kind == MUNMAP:
        return plan_munmap(s, hva, size)
    if kind == MMAP:
        return plan_mmap(s, hva, size)
    if kind == MPROTECT:
        return plan_mprotect(s, hva, size, I64(prot))
    if kind == COLLAPSE:
        return plan_collapse(s, hva, size)
    if kind == MIGRATE:
        return plan_migrate(s, hva, size)
    if kind == NUMA_HINT:
        return plan_numa_hints(s, hva, size)
    if kind == KHUGEPAGED:
        return plan_khugepaged(s, hva)
    if kind == KSM:
        return plan_ksm(s, hva)
    if kind == PAGEOUT:
        return plan_pageout(s, hva, size)
    if kind == HUGEPAGE:
        return plan_advise(s, hva, size, MADV_HUGEPAGE)
    if kind == NOHUGEPAGE:
        return plan_advise(s, hva, size, MADV_NOHUGEPAGE)
    if kind == MERGEABLE:
        return plan_advise(s, hva, size, MADV_MERGEABLE)
    return 0


@kernel
def host_action(s: State, kind: int, op: Words) -> int:
    """What the VMM does to its own memory; a call too long for one plan goes on where it stopped."""
    if kind == HOST_WRITE:
        return host_write(s, op)
    if kind == SWAP:
        run_host_plan(s, plan_swap(s, op[A] != ZERO))
        return EVENT_DONE
    if kind == KHUGEPAGED or kind == KSM:
        start = HVA_BASE
        end = region_end(s)
    else:
        start = host_address(op[A])
        end = start + op[B]
    if s.regs[G_CURSOR] != ZERO:
        start = s.regs[G_CURSOR]
    steps = plan_action(s, kind, start, end - start, op[C])
    resume = s.regs[R_RESUME]
    if steps > 0:
        run_host_plan(s, steps)
    if steps >= 0 and resume != ZERO:
        s.regs[G_CURSOR] = resume
        s.regs[R_RESUME] = ZERO
        return MORE
    return EVENT_DONE


@kernel
def mark_idle(s: State, op: Words) -> int:
    """The host marks the next page of a run idle."""
    if s.regs[G_CURSOR] >= op[B]:
        return EVENT_DONE
    steps = plan_idle(s, host_address(op[A]) + (s.regs[G_CURSOR] << page_shift(s)))
    if steps > 0:
        run_host_plan(s, steps)
    s.regs[G_CURSOR] += ONE
    return MORE
