"""AT instructions that L1 executes at virtual EL2, trapped and emulated.

Mirrors Linux 7.3.4 ``__kvm_at_s1e01``, ``__kvm_at_s1e2``, ``__kvm_at_s12`` (``at.c``). First the CPU is
asked, with L2's registers and the shadow stage 2 loaded (the fast path). The shadow holds what was touched,
not what L1 mapped: but for a stage-1 permission or access flag fault a failure says nothing, and the tables
are walked in software (the slow path). AT S12 adds a walk of L1's stage 2. A nonzero return leaves the
program counter where it is: L1 executes the instruction again. ``docs/at.md`` lists where this is not what
the architecture asks.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch import context as c
from shadowmmu.arch.answer import PAR_F, PAR_FST_SHIFT, PAR_S
from shadowmmu.arch.context import Implementation, implementation
from shadowmmu.arch.controls import Stage2, stage1_controls
from shadowmmu.arch.fault import (
    ACCESS_FLAG,
    EXTERNAL_WALK,
    NONE,
    PERMISSION,
    TRANSLATION,
    WRITE,
    fault_kind,
    fault_status,
)
from shadowmmu.arch.operation import (
    AT_S1E2A,
    AT_S1E2R,
    AT_S1E2W,
    AT_S12E0W,
    AT_S12E1R,
    EL10,
    Access,
    access_of,
)
from shadowmmu.arch.registers import HCR_EL2, HCRX_EL2, PSTATE
from shadowmmu.arch.stage2 import S2AP_R, S2AP_W
from shadowmmu.arch.translate import pan_applies
from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.kvm.at_par import OUTPUT_48, par_of_fault, par_s1, par_s12
from shadowmmu.kvm.at_walk import BIT_55, slow_walk
from shadowmmu.kvm.differences import AT_PAN, AT_RECYCLED_MMU, AT_REPLAY, as_architecture
from shadowmmu.kvm.layout import (
    EAGAIN,
    K_AT,
    ONE,
    V_HCR,
    V_LOADED,
    V_PAR,
    V_VIRTUAL,
    V_VTCR,
    V_VTTBR,
    ZERO,
)
from shadowmmu.kvm.pool import NOT_FOUND, hw_mmu, lookup_shadow
from shadowmmu.kvm.walk import GuestWalk, walk_guest_stage2
from shadowmmu.machine.at import execute_at
from shadowmmu.machine.calls import mmu_lock_write, mmu_unlock_write
from shadowmmu.machine.counters import AT_REPLAYED, AT_SLOW, AT_TRAPPED
from shadowmmu.machine.log import AT, observe
from shadowmmu.machine.state import R_FWB, R_PA_BITS, State
from shadowmmu.pgtable.context import M_PENDING, M_ROOT, context_regime

OFFERED: Final = implementation(48, "HAF", "HPDS", "XNX", "PAN", "EPAN", "E0PD", "FWB", "S1PIE").features
"""What L1 may use (``limit_nv_id_reg``, Linux 7.3.4); the modelled CPU has just that too. Left out: large
addresses, small tables, hardware dirty state, tagged memory."""
OFFERED_PA_BITS: Final = 48

AT_LINUX: Final = 0
AT_FAST_ONLY: Final = 1
VARIANTS: Final = {"linux-7.3.4": AT_LINUX, "fast-only": AT_FAST_ONLY}
"""Ways to emulate AT. ``fast-only``: what the CPU says is the answer, as before the software walk existed
(what the review of March 2024 objects to): a negative control."""

HCR_VM: Final = HCR_EL2.mask("VM")
HCR_DC: Final = HCR_EL2.mask("DC")
TCR2_ENABLED: Final = HCRX_EL2.mask("TCR2En")
PAN: Final = PSTATE.mask("PAN")
INNER: Final = 3
STATUS: Final = U64(0x3F)
IN_PAGE: Final = U64(0xFFF)
EL1_REGISTERS: Final = (
    c.C_TTBR0_EL1,
    c.C_TTBR1_EL1,
    c.C_TCR_EL1,
    c.C_SCTLR_EL1,
    c.C_MAIR_EL1,
    c.C_TCR2_EL1,
    c.C_PIR_EL1,
    c.C_PIRE0_EL1,
)


class Answered(NamedTuple):
    """An emulated instruction: 0 or the error number that replays it, PAR_EL1, whether software walked."""

    code: int
    par: Word
    slow: bool


@inline
def offered(s: State) -> Implementation:
    """The CPU that L1 sees."""
    bits = I64(s.regs[R_PA_BITS])
    return Implementation(bits if bits < OFFERED_PA_BITS else OFFERED_PA_BITS, OFFERED)


@inline
def loaded_stage2(s: State, mmu: int) -> Stage2:
    """One of L0's own stage-2 contexts as the CPU uses it (``__load_stage2``)."""
    regime = context_regime(s, mmu)
    fwb = s.regs[R_FWB] != ZERO
    return Stage2(
        True, False, regime, s.mmus[mmu, M_ROOT], False, False, True, fwb, False, True, INNER, False
    )


@inline
def load_guest_registers(s: State, vcpu: int) -> None:
    """L2's translation registers into the CPU's.

    HCR_EL2 and HCRX_EL2 are L0's own: L1's DC, TGE and TCR2En do not reach the CPU, which the architecture
    would have them do.
    """
    for register in EL1_REGISTERS:
        s.vcpus[vcpu, V_LOADED + register] = s.vcpus[vcpu, V_VIRTUAL + register]
    s.vcpus[vcpu, V_LOADED + c.C_HCR_EL2] = HCR_VM
    s.vcpus[vcpu, V_LOADED + c.C_HCRX_EL2] = TCR2_ENABLED


@kernel
def fast_path(s: State, vcpu: int, access: Access, va: Word) -> Word:
    """Let the CPU execute the AT; PAR_EL1, with only F set where no shadow MMU is there to ask.

    Mirrors ``__kvm_at_s1e01_fast``. Every regime but EL1&0 is the one L1 was running in: its registers and
    the canonical stage 2 are loaded already (also for ``__kvm_at_s1e2``). PAN is off: ``at_s1e1p_fast`` takes
    L1's through the wrong mask (PSTATE_PAN, an encoding, for PSR_PAN_BIT), as seen on the running 7.3.4.
    """
    row = s.vcpus[vcpu]
    mmu_lock_write(s)
    if access.regime == EL10:
        mmu = lookup_shadow(s, vcpu)
        unwiped = mmu != NOT_FOUND and s.mmus[mmu, M_PENDING] != ZERO
        if mmu == NOT_FOUND or (unwiped and as_architecture(s, AT_RECYCLED_MMU)):
            mmu_unlock_write(s)
            return PAR_F
        load_guest_registers(s, vcpu)
        registers = row[V_LOADED : V_LOADED + c.ROW]
    else:
        mmu = hw_mmu(s, vcpu)
        registers = row[V_VIRTUAL : V_VIRTUAL + c.ROW]
    pan = False
    if as_architecture(s, AT_PAN):
        pan = pan_applies(row[V_VIRTUAL + c.C_PSTATE] & PAN != ZERO, access, offered(s))
    par = execute_at(s, registers, offered(s), loaded_stage2(s, mmu), access, va, pan)
    mmu_unlock_write(s)
    return par


@inline
def conclusive(par: Word, access_flag: bool) -> bool:
    """Whether the CPU's answer stands: no fault, or stage 1's own permission (or access flag) fault."""
    if par & PAR_F == ZERO:
        return True
    kind = fault_kind((par >> PAR_FST_SHIFT) & STATUS)
    return par & PAR_S == ZERO and (kind == PERMISSION or (access_flag and kind == ACCESS_FLAG))


@kernel
def at_stage1(s: State, vcpu: int, operation: int, va: Word) -> Answered:
    """AT of stage 1 alone. Mirrors ``__kvm_at_s1e01`` and ``__kvm_at_s1e2``.

    For EL2's own regime an access flag fault of the CPU does not stand; the software walk repeats it.
    """
    hcr = s.vcpus[vcpu, V_HCR]
    access = access_of(operation, hcr)
    par = fast_path(s, vcpu, access, va)
    of_el2 = operation == AT_S1E2R or operation == AT_S1E2W or operation == AT_S1E2A
    if conclusive(par, not of_el2) or s.regs[K_AT] == U64(AT_FAST_ONLY):
        return Answered(0, par, False)
    cpu = offered(s)
    upper = (va >> BIT_55) & ONE != ZERO
    row = s.vcpus[vcpu]
    s1 = stage1_controls(row[V_VIRTUAL : V_VIRTUAL + c.ROW], cpu, access.regime, upper)
    through = access.regime == EL10 and hcr & (HCR_VM | HCR_DC) != ZERO
    pan = pan_applies(row[V_VIRTUAL + c.C_PSTATE] & PAN != ZERO, access, cpu)
    w = slow_walk(s, vcpu, s1, access, va, pan, through, cpu.pa_bits)
    return Answered(w.code, par_s1(s1, w), True)


@inline
def never_walked(t: GuestWalk) -> Word:
    """Fault status of a walk of L1's stage 2 that ended in an error number: a VTCR that cannot be walked is
    a translation fault at level 0; a table outside L1's memory stays an external abort."""
    if t.fault == EXTERNAL_WALK:
        return fault_status(EXTERNAL_WALK, t.level)
    return fault_status(TRANSLATION, 0)


@kernel
def at_both_stages(s: State, vcpu: int, operation: int, va: Word) -> Answered:
    """AT S12E1 and S12E0. Mirrors ``__kvm_at_s12``.

    Every error number of L1's stage-2 walk replays, also those that will be the same the next time (a VTCR
    that cannot be walked, a table outside L1's memory): L1 then never gets past its AT.
    """
    first = at_stage1(s, vcpu, operation - AT_S12E1R, va)
    hcr = s.vcpus[vcpu, V_HCR]
    access = access_of(operation, hcr)
    if first.code != 0 or first.par & PAR_F != ZERO:
        return first
    if access.regime != EL10 or hcr & (HCR_VM | HCR_DC) == ZERO:
        return first
    nested_ipa = (first.par & OUTPUT_48) | (va & IN_PAGE)
    t = walk_guest_stage2(s, s.vcpus[vcpu, V_VTTBR], s.vcpus[vcpu, V_VTCR], nested_ipa, False)
    if t.code < 0 and t.code != EAGAIN and as_architecture(s, AT_REPLAY):
        return Answered(0, par_of_fault(never_walked(t), True, False), first.slow)
    if t.code < 0:
        return Answered(t.code, first.par, first.slow)
    if t.fault != NONE:
        return Answered(0, par_of_fault(fault_status(t.fault, t.level), True, False), first.slow)
    needed = S2AP_W if access.kind == WRITE else S2AP_R
    if t.descriptor & needed == ZERO:
        return Answered(0, par_of_fault(fault_status(PERMISSION, t.level), True, False), first.slow)
    return Answered(0, par_s12(hcr, first.par, t.output, t.descriptor), first.slow)


@kernel
def handle_at(s: State, vcpu: int, operation: int, va: Word) -> bool:
    """Emulate one AT (numbered as in ``arch.operation``); False: L1 has to execute it again."""
    if AT_S12E1R <= operation <= AT_S12E0W:
        answered = at_both_stages(s, vcpu, operation, va)
    else:
        answered = at_stage1(s, vcpu, operation, va)
    s.count[AT_TRAPPED] += 1
    if answered.slow:
        s.count[AT_SLOW] += 1
    if answered.code != 0:
        s.count[AT_REPLAYED] += 1
    else:
        s.vcpus[vcpu, V_PAR] = answered.par
    observe(s, AT, U64(operation), va, s.vcpus[vcpu, V_PAR], U64(answered.slow), U64(answered.code != 0))
    return answered.code == 0
