"""Events of vCPUs: entering L2 to stay there, losing and getting a CPU, reset, caches, the end of the VM."""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, Words, kernel
from shadowmmu.events.schema import CACHES, ENTER, RESET, SCHEDULE
from shadowmmu.guest.cpu import DONE, STUCK
from shadowmmu.guest.hypervisor import answer_mailbox, boot_l1, switch_from_l2, switch_to_l2
from shadowmmu.guest.l2 import fetch, leave_l2, stand_in_l2
from shadowmmu.guest.layout import PC_HVC, PC_STAY, PC_WFI
from shadowmmu.kvm.caches import cache_operation, flush_shadow_all
from shadowmmu.kvm.layout import BOOTED, IN_L2, V_ELR
from shadowmmu.kvm.vcpu import (
    load_vcpu,
    put_vcpu,
    reset_vcpu,
    resume_vcpu,
    vcpu_state,
    wait_for_interrupt,
)
from shadowmmu.machine.state import State

OPERAND: Final = 1
PREEMPT: Final = 1
WFI: Final = 2
EXIT: Final = 3
LOAD: Final = 4


@kernel
def return_to_l1(s: State, vcpu: int) -> None:
    """L1 takes L2's exception, and stores what it saw in its mailbox."""
    leave_l2(s, vcpu)
    switch_from_l2(s, vcpu)
    answer_mailbox(s, vcpu)


@kernel
def bring_to_l1(s: State, vcpu: int) -> None:
    """Whatever the vCPU did before, it runs now, and L1 stands at its mailbox on it.

    One that stands in L2 is taken out by the VMM, which points it to its HVC; one that L1 never ran on boots.
    """
    if vcpu_state(s, vcpu, IN_L2):
        put_vcpu(s, vcpu, False)
        resume_vcpu(s, vcpu)
        fetch(s, vcpu, s.vcpus[vcpu, V_ELR] + PC_HVC)
        return_to_l1(s, vcpu)
    resume_vcpu(s, vcpu)
    if not vcpu_state(s, vcpu, BOOTED):
        boot_l1(s, vcpu)


@kernel
def enter_to_stay(s: State, vcpu: int, op: Words) -> bool:
    """L1 enters L2, which stays, unless its first fetch is a fault of L1's; False if it makes no progress."""
    switch_to_l2(s, vcpu)
    outcome = stand_in_l2(s, vcpu, op[OPERAND])
    if outcome != DONE:
        return_to_l1(s, vcpu)
    return outcome != STUCK


@kernel
def take_turn(s: State, vcpu: int, turn: int) -> bool:
    """A vCPU gets or loses its CPU; False if it gets it and makes no progress."""
    if turn == PREEMPT:
        put_vcpu(s, vcpu, True)
    elif turn == EXIT:
        put_vcpu(s, vcpu, False)
    elif turn == LOAD:
        load_vcpu(s, vcpu)
    else:
        resume_vcpu(s, vcpu)
        if vcpu_state(s, vcpu, IN_L2):
            outcome = fetch(s, vcpu, s.vcpus[vcpu, V_ELR] + (PC_WFI if turn == WFI else PC_STAY))
            if outcome != DONE:
                return_to_l1(s, vcpu)
                return outcome != STUCK
        if turn == WFI:
            wait_for_interrupt(s, vcpu)
    return True


@kernel
def tear_down(s: State) -> None:
    """The VMM's process ends: its vCPUs leave the kernel, then the VM's tables go."""
    for vcpu in range(len(s.vcpus)):
        put_vcpu(s, vcpu, False)
    flush_shadow_all(s)


@kernel
def vcpu_action(s: State, kind: int, vcpu: int, op: Words) -> bool:
    """Events of vCPUs; False where an access makes no progress."""
    if kind == ENTER:
        return enter_to_stay(s, vcpu, op)
    if kind == SCHEDULE:
        return take_turn(s, vcpu, I64(op[OPERAND]))
    if kind == RESET:
        reset_vcpu(s, vcpu)
    elif kind == CACHES:
        cache_operation(s, vcpu, I64(op[OPERAND]))
    else:
        tear_down(s)
    return True
