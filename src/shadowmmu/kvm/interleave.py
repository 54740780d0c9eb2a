"""The host at work while a vCPU faults: an invalidation kept open, and one that slips into a fault.

One event after the other never makes a fault bounce. Here the host takes a range away in two halves, with
faults in between, or in the middle of a fault. Mirrors the contract of Linux 7.3.4
``mmu_invalidate_retry``, which arm64 asks for every address: while an invalidation is under way, or if one
ended since the fault sampled its sequence number, the fault gives up and the guest tries again.
"""

from __future__ import annotations

from shadowmmu.compiled import U64, Word, kernel
from shadowmmu.host.remove import plan_punch
from shadowmmu.host.steps import NOTIFY_END, NOTIFY_START, apply_step
from shadowmmu.kvm.layout import (
    K_HOLD_END,
    K_HOLD_LEFT,
    K_HOLD_START,
    ONE,
    V_RACE_END,
    V_RACE_START,
    ZERO,
)
from shadowmmu.kvm.notifier import invalidate_range_end, invalidate_range_start, run_host_plan
from shadowmmu.machine.counters import FAULTS_BOUNCED
from shadowmmu.machine.state import State


@kernel
def begin_hold(s: State, hva_start: Word, hva_end: Word, faults: Word, may_block: bool) -> None:
    """The host's invalidation of [hva_start, hva_end) starts; one that is open ends first.

    ``faults``: it ends after so many bounced, 0: at ``end_hold``.
    """
    end_hold(s)
    s.regs[K_HOLD_START] = hva_start
    s.regs[K_HOLD_END] = hva_end
    s.regs[K_HOLD_LEFT] = faults
    invalidate_range_start(s, hva_start, hva_end, may_block)


@kernel
def end_hold(s: State) -> None:
    """The host takes the pages of the open invalidation, if there is one, and says it is done."""
    start = s.regs[K_HOLD_START]
    end = s.regs[K_HOLD_END]
    if end == ZERO:
        return
    s.regs[K_HOLD_START] = ZERO
    s.regs[K_HOLD_END] = ZERO
    s.regs[K_HOLD_LEFT] = ZERO
    for row in range(plan_punch(s, start, end - start)):
        step = s.plan[row, 0]
        if step != U64(NOTIFY_START) and step != U64(NOTIFY_END):
            apply_step(s, row)
    invalidate_range_end(s, start, end)


@kernel
def fault_bounced(s: State) -> None:
    """A fill is given up because the host invalidates: count it, and let the host get on with its work."""
    s.count[FAULTS_BOUNCED] += 1
    if s.regs[K_HOLD_LEFT] != ZERO:
        s.regs[K_HOLD_LEFT] -= ONE
        if s.regs[K_HOLD_LEFT] == ZERO:
            end_hold(s)


@kernel
def arm_race(s: State, vcpu: int, hva_start: Word, hva_end: Word) -> None:
    """The host will take [hva_start, hva_end) in the middle of the next fault of ``vcpu``."""
    s.vcpus[vcpu, V_RACE_START] = hva_start
    s.vcpus[vcpu, V_RACE_END] = hva_end


@kernel
def host_interferes(s: State, vcpu: int) -> None:
    """Between the sequence number of a fault and its lock: a whole invalidation, if one was armed."""
    start = s.vcpus[vcpu, V_RACE_START]
    end = s.vcpus[vcpu, V_RACE_END]
    if end == ZERO:
        return
    s.vcpus[vcpu, V_RACE_START] = ZERO
    s.vcpus[vcpu, V_RACE_END] = ZERO
    host_takes(s, start, end)


@kernel
def host_takes(s: State, hva_start: Word, hva_end: Word) -> None:
    """A whole invalidation of [hva_start, hva_end), while something else is under way."""
    steps = plan_punch(s, hva_start, hva_end - hva_start)
    if steps > 0:
        run_host_plan(s, steps)
