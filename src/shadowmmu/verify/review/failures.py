"""Objections about what goes wrong: no memory, a notifier in the way, and who is told."""

from __future__ import annotations

from shadowmmu.kvm.layout import K_IN_PROGRESS
from shadowmmu.verify.review.result import NO_RECORD, Result, holds, refuted
from shadowmmu.verify.review.trial import (
    DATA,
    NESTED,
    Trial,
    prepare,
    run,
    scenario_text,
    script,
    worst,
)

LEAVES = 6
FILLS = LEAVES + 1
"""Fills before the first notifier: L2's code page too."""
FULL = script(
    f"map {NESTED:#x} {DATA:#x} 24k 3 rw\ntouch w {NESTED:#x} 4096 {LEAVES}",
    f"dontneed {DATA:#x} 24k\ntouch w {NESTED:#x} 4096 {LEAVES}",
    f"dontneed {DATA + 0x2000:#x} 4k\ndontneed 0x40050000 4k",
)


def tries(design: str) -> list[tuple[str, Trial]]:
    """One run for each allocation of the record that can fail, until one is not reached."""
    found = []
    for n in range(1, 2 * FILLS + 1):
        trial = run(design, FULL, fail=n)
        if not trial.count("allocation_failures"):
            break
        found.append((f"allocation {n}", trial))
    return found


def allocations(design: str) -> Result:
    """17: whichever allocation fails, no stale leaf is left."""
    found = tries(design)
    if not found:
        return NO_RECORD
    return worst([(name, trial.result()) for name, trial in found], "failed allocations")


def guest_goes_on(design: str) -> Result:
    """23: a record without memory never fails the guest: each access comes to its end, none gets a fault."""
    found = tries(design)
    if not found:
        return NO_RECORD
    for name, trial in found:
        if trial.stuck:
            return refuted(f"{name}: {trial.stuck}")
        if trial.count("faults_injected"):
            return refuted(f"{name}: L1 got {trial.count('faults_injected')} faults that it has no part in")
    return holds(f"{len(found)} failed allocations, all accesses succeeded")


def counted(design: str) -> Result:
    """28: what the record had to give up shows in a counter that says why."""
    found = tries(design)
    if not found:
        return NO_RECORD
    reasons = ("broken", "fallbacks_mmu", "fallbacks_vm", "fallbacks_frame", "faults_bounced")
    told: set[str] = set()
    for name, trial in found:
        given = {reason for reason in reasons if trial.count(reason)}
        told |= given
        lost = trial.violation is not None or trial.count("over_unmapped_leaves")
        if lost and not given:
            return refuted(f"{name}: leaves were lost or left, and no counter says so")
    return holds(
        f"told by {', '.join(sorted(told))}" if told else "nothing was lost: the access was repeated"
    )


def bounced(design: str) -> Result:
    """38: a fault that meets a notifier under way leaves neither leaf nor entry, and succeeds after it."""
    trial = prepare(design, scenario_text("38-bounced"))
    trial.run(trial.last - 1)
    state = trial.executor.state
    leaves, entries = trial.leaves, trial.recorded
    state.regs[K_IN_PROGRESS] = 1
    trial.run(trial.last)
    if not trial.stuck or not trial.count("faults_bounced"):
        return refuted("the fill went on while a notifier was under way")
    if (trial.leaves, trial.recorded) != (leaves, entries):
        more = trial.recorded - entries, trial.leaves - leaves
        return refuted(f"a bounced fill left {more[0]} entries and {more[1]} leaves")
    trial.stuck = ""
    trial.executor.state.regs[K_IN_PROGRESS] = 0
    return trial.run().result(f"bounced {trial.count('faults_bounced')} times without a trace, then filled")


def given_away(design: str) -> Result:
    """39: L2 and the host get in between two chunks of an unmap, and the judge looks there too."""
    trial = run(design, scenario_text("39-given-away"))
    inside = trial.judge.looks - (trial.last + 1)
    return trial.result(f"no rule broken in {trial.judge.looks} looks, {inside} of them between two chunks")
