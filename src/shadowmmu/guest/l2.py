"""L2: a loop that touches addresses, run under the shadow stage 2.

Every round fetches its code, then makes its access. When L0 resumes it after an abort it starts the
instruction again, fetch included, because the code page may have gone with the rest.
"""

from __future__ import annotations

from shadowmmu.arch.fault import EXECUTE, WRITE
from shadowmmu.compiled import Word, kernel
from shadowmmu.guest.cpu import DONE, STUCK, TRIES, access_until_done, try_access
from shadowmmu.guest.layout import ESR_HVC, L2_VECTOR, PC_AFTER_HVC, PC_LOAD, PC_STAY, PC_STORE
from shadowmmu.kvm.layout import INJECTED, OWN_FAULT, RESUME, V_ELR, V_ESR
from shadowmmu.kvm.pool import load_canonical, load_shadow
from shadowmmu.machine.state import State


@kernel
def enter_l2(s: State, vcpu: int) -> None:
    """L1 executes ERET to L2: L0 loads the shadow MMU of L1's VTTBR."""
    load_shadow(s, vcpu)


@kernel
def leave_l2(s: State, vcpu: int) -> None:
    """L2 is left for virtual EL2: an injected fault, or its HVC."""
    load_canonical(s, vcpu)


@kernel
def touch_once(s: State, vcpu: int, va: Word, access: int, code_ipa: Word, first: bool, fetched: bool) -> int:
    """One access of L2 at ``va``: DONE, INJECTED (L1 must look), or STUCK.

    ``fetched``: the code page is known to be mapped, so its translation need not be tried again.
    """
    data_pc = code_ipa + (PC_STORE if access == WRITE else PC_LOAD)
    pc = code_ipa if first else data_pc
    for _attempt in range(TRIES):
        if not fetched:
            outcome = try_access(s, vcpu, pc, EXECUTE, pc)
            if outcome == RESUME:
                continue
            if outcome == OWN_FAULT:
                return take_exception(s, vcpu)
            if outcome != DONE:
                return outcome
        fetched = False
        pc = data_pc
        outcome = try_access(s, vcpu, va, access, va if access == EXECUTE else pc)
        if outcome == OWN_FAULT:
            return take_exception(s, vcpu)
        if outcome != RESUME:
            return outcome
    return STUCK


@kernel
def take_exception(s: State, vcpu: int) -> int:
    """L2 takes an exception of its own: it fetches its vector, where nobody put any code.

    VBAR_EL1 is 0 out of reset, so the fetch is at nested IPA 0x200. INJECTED if L1 does not map it, and else
    STUCK: what stands there would be executed, and it is not known.
    """
    outcome = access_until_done(s, vcpu, L2_VECTOR, EXECUTE)
    return outcome if outcome == INJECTED else STUCK


@kernel
def stand_in_l2(s: State, vcpu: int, code_ipa: Word) -> int:
    """L2 is entered, fetches its code and stays: DONE, or INJECTED or STUCK if it cannot even fetch it."""
    enter_l2(s, vcpu)
    s.vcpus[vcpu, V_ELR] = code_ipa
    return fetch(s, vcpu, code_ipa + PC_STAY)


@kernel
def fetch(s: State, vcpu: int, pc: Word) -> int:
    """L2 fetches the instruction at ``pc`` until it can: DONE, INJECTED, or STUCK."""
    outcome = access_until_done(s, vcpu, pc, EXECUTE)
    return take_exception(s, vcpu) if outcome == OWN_FAULT else outcome


@kernel
def hypercall(s: State, vcpu: int, code_ipa: Word) -> None:
    """L2's final HVC, as L1 sees it."""
    s.vcpus[vcpu, V_ESR] = ESR_HVC
    s.vcpus[vcpu, V_ELR] = code_ipa + PC_AFTER_HVC
