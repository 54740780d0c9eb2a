"""Events of L1 as the host of a further hypervisor, and of a host at work while the guest faults."""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.registers import HCR_EL2
from shadowmmu.compiled import I64, U64, Word, Words, kernel
from shadowmmu.engine.actions import (
    EVENT_DONE,
    EVENT_STUCK,
    A,
    B,
    C,
    D,
    command_l1,
    host_address,
    report_touch,
)
from shadowmmu.events.schema import GAP, HOLD, RACE, RELEASE, TLBI_EL2
from shadowmmu.guest.hypervisor import answer_mailbox, switch_from_l2, switch_to_l2
from shadowmmu.guest.l2 import enter_l2, hypercall, leave_l2
from shadowmmu.guest.layout import G_LEFT, G_STATUS, ONE, PC_READ_REGISTER, PC_WRITE_REGISTER, ZERO
from shadowmmu.guest.vel2 import DONE, STUCK, access_vncr_page
from shadowmmu.kvm.interleave import arm_race, begin_hold, end_hold
from shadowmmu.kvm.layout import V_GAP, V_HCR
from shadowmmu.kvm.vncr import T_VNCR_EL2, handle_tlbi_el2
from shadowmmu.machine.state import R_GAP, State

HCR_NESTED: Final = HCR_EL2.mask("NV") | HCR_EL2.mask("NV1") | HCR_EL2.mask("NV2")


@kernel
def run_nested_hypervisor(s: State, vcpu: int, op: Words) -> int:
    """L1 sets VNCR_EL2 and HCR_EL2.NV, enters its guest hypervisor, which accesses one register in memory."""
    command_l1(s, vcpu)
    s.vcpus[vcpu, T_VNCR_EL2] = op[A]
    s.vcpus[vcpu, V_HCR] |= HCR_NESTED
    switch_to_l2(s, vcpu)
    enter_l2(s, vcpu)
    code: Word = op[C]
    write = op[B] != ZERO
    outcome = access_vncr_page(s, vcpu, write, code + (PC_WRITE_REGISTER if write else PC_READ_REGISTER))
    if outcome == DONE:
        hypercall(s, vcpu, code)
    leave_l2(s, vcpu)
    s.vcpus[vcpu, V_HCR] &= ~HCR_NESTED
    switch_from_l2(s, vcpu)
    answer_mailbox(s, vcpu)
    left = ZERO if outcome == DONE else ONE
    s.regs[G_LEFT] = left
    s.regs[G_STATUS] = U64(outcome)
    report_touch(s, vcpu, left)
    return EVENT_STUCK if outcome == STUCK else EVENT_DONE


@kernel
def interleaved_action(s: State, kind: int, vcpu: int, op: Words) -> int:
    """One event of kinds 70 and up."""
    if kind == TLBI_EL2:
        command_l1(s, vcpu)
        handle_tlbi_el2(s, I64(op[A]), op[B])
    elif kind == HOLD:
        start = host_address(op[A])
        begin_hold(s, start, start + op[B], op[C], op[D] == ZERO)
    elif kind == RELEASE:
        end_hold(s)
    elif kind == RACE:
        start = host_address(op[A])
        arm_race(s, vcpu, start, start + op[B])
    elif kind == GAP:
        s.regs[R_GAP] = op[A]
        for place in range(3):
            s.vcpus[len(s.vcpus) - 1, V_GAP + place] = op[B + place]
    else:
        return run_nested_hypervisor(s, vcpu, op)
    return EVENT_DONE
