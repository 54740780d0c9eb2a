"""A hypervisor that L1 runs: its register accesses go to the page that L1's VNCR_EL2 names.

Source: Arm ARM, FEAT_NV2: with HCR_EL2.{NV,NV2} set, accesses of most EL1 and EL2 registers become loads
and stores at VNCR_EL2 plus an offset, made with the rights of EL2; their aborts carry ESR_EL2.ISS.VNCR.
"""

from __future__ import annotations

from shadowmmu.arch.fault import EXECUTE
from shadowmmu.compiled import Word, kernel
from shadowmmu.guest.cpu import DONE, STUCK, TRIES, try_access
from shadowmmu.kvm.layout import INJECTED, RESUME
from shadowmmu.kvm.vncr import check_vncr_request
from shadowmmu.kvm.vncr_fault import handle_vncr_abort, vncr_page_mapped
from shadowmmu.machine.state import State

__all__ = ["DONE", "INJECTED", "STUCK", "access_vncr_page"]


@kernel
def access_vncr_page(s: State, vcpu: int, write: bool, pc: Word) -> int:
    """One register access of L1's guest hypervisor at ``pc``: DONE, INJECTED or STUCK.

    The instruction is fetched through the shadow stage 2 like any other, each time it is tried.
    """
    for _attempt in range(TRIES):
        check_vncr_request(s, vcpu)
        outcome = try_access(s, vcpu, pc, EXECUTE, pc)
        if outcome == RESUME:
            continue
        if outcome != DONE:
            return outcome
        if vncr_page_mapped(s, vcpu, write):
            return DONE
        if handle_vncr_abort(s, vcpu, write, pc) == INJECTED:
            return INJECTED
    return STUCK
