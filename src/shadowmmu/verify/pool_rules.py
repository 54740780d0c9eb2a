"""The rules about the pool of shadow MMUs, as one compiled pass over MMUs and vCPUs.

A8   single tenancy: at most one valid MMU answers to a (VTTBR, VTCR, HCR.VM), to a VMID where stage 2 is off
A9   references: an MMU has as many as there are vCPUs that hold it, and one without tenant has none
A10  wipe before run: no vCPU is in the guest with an MMU whose former tenant's leaves are still there
"""

from __future__ import annotations

from shadowmmu.compiled import U64, inline, kernel
from shadowmmu.kvm.layout import IN_GUEST, V_HW_MMU, V_STATE
from shadowmmu.kvm.pool import VMID_SHIFT
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import (
    M_ENABLED,
    M_PENDING,
    M_REFCNT,
    M_VTCR,
    M_VTTBR,
    shadow_mmus,
    shadow_valid,
)
from shadowmmu.verify.rules import (
    HOLDS,
    ONE,
    RUNS_UNWIPED,
    TWO_TENANCIES,
    WRONG_REFERENCES,
    ZERO,
    Finding,
)


@inline
def same_tenancy(s: State, one: int, other: int) -> bool:
    """Whether one lookup could find both MMUs (``lookup_s2_mmu``)."""
    if s.mmus[one, M_ENABLED] != s.mmus[other, M_ENABLED]:
        return False
    if s.mmus[one, M_ENABLED] == ZERO:
        return s.mmus[one, M_VTTBR] >> VMID_SHIFT == s.mmus[other, M_VTTBR] >> VMID_SHIFT
    return s.mmus[one, M_VTTBR] == s.mmus[other, M_VTTBR] and s.mmus[one, M_VTCR] == s.mmus[other, M_VTCR]


@inline
def pool_rule(s: State, mmu: int, checks: int) -> int:
    """The first of rules A8 to A10 that one MMU breaks, of those ``checks`` asks for; HOLDS if none."""
    valid = shadow_valid(s, mmu)
    if checks & (1 << TWO_TENANCIES) != 0 and valid:
        for other in range(1, mmu):
            if shadow_valid(s, other) and same_tenancy(s, other, mmu):
                return TWO_TENANCIES
    holders = ZERO
    inside = False
    for vcpu in range(len(s.vcpus)):
        if s.vcpus[vcpu, V_HW_MMU] == U64(mmu):
            holders += ONE
            inside = inside or s.vcpus[vcpu, V_STATE] & IN_GUEST != ZERO
    if checks & (1 << WRONG_REFERENCES) != 0:
        if s.mmus[mmu, M_REFCNT] != holders or (holders != ZERO and not valid):
            return WRONG_REFERENCES
    if checks & (1 << RUNS_UNWIPED) != 0 and inside and s.mmus[mmu, M_PENDING] != ZERO:
        return RUNS_UNWIPED
    return HOLDS


@kernel
def judge_pool(s: State, checks: int) -> Finding:
    """Rules A8 to A10 on every shadow MMU; the first broken. O(MMUs x (MMUs + vCPUs)). Changes nothing."""
    for mmu in range(1, shadow_mmus(s) + 1):
        rule = pool_rule(s, mmu, checks)
        if rule != HOLDS:
            return Finding(rule, mmu, ZERO, ZERO, ZERO, ZERO, 0)
    return Finding(HOLDS, 0, ZERO, ZERO, ZERO, ZERO, 0)
