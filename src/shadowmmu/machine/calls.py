"""The calls that stand for what a kernel does besides computing: locks, allocation, preemption.

Compiled they count. Interpreted they are the points at which a schedule may switch or a rule be
checked. Lock hold is measured in work units: descriptors, chunks, TLBIs and nodes handled.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, inline
from shadowmmu.machine.counters import (
    ALLOCATION_FAILURES,
    CHUNKS,
    DESCRIPTORS_READ,
    DESCRIPTORS_WRITTEN,
    LOCK_HELD,
    LOCK_LONGEST,
    LOCK_READ,
    LOCK_WRITE,
    NODES_VISITED,
    RESCHEDULES,
    TLBI_IPA,
    TLBI_RANGE,
    TREE_LOCKS,
)
from shadowmmu.machine.state import (
    R_FAIL_ALLOCATION,
    R_GAP,
    R_GAP_IPA,
    R_GAP_MMU,
    R_LOCK_START,
    State,
    Word,
)

GFP_KERNEL: Final = 0
GFP_NOWAIT: Final = 1
ZERO: Final = U64(0)
ONE: Final = U64(1)


@inline
def work_done(s: State) -> int:
    """Work units since the machine started."""
    return (
        s.count[DESCRIPTORS_READ]
        + s.count[DESCRIPTORS_WRITTEN]
        + s.count[CHUNKS]
        + s.count[TLBI_RANGE]
        + s.count[TLBI_IPA]
        + s.count[NODES_VISITED]
    )


@inline
def mmu_lock_read(s: State) -> None:
    """Take mmu_lock for read."""
    s.count[LOCK_READ] += 1


@inline
def mmu_unlock_read(s: State) -> None:
    """Release mmu_lock held for read."""


@inline
def mmu_lock_write(s: State) -> None:
    """Take mmu_lock for write."""
    s.count[LOCK_WRITE] += 1
    s.regs[R_LOCK_START] = U64(work_done(s))


@inline
def mmu_unlock_write(s: State) -> None:
    """Release mmu_lock held for write, and note how much was done under it."""
    held = work_done(s) - I64(s.regs[R_LOCK_START])
    s.count[LOCK_HELD] += held
    if held > s.count[LOCK_LONGEST]:
        s.count[LOCK_LONGEST] = held


@inline
def cond_resched_lock(s: State) -> None:
    """A point where a blockable holder of mmu_lock may lose and retake it."""
    s.count[RESCHEDULES] += 1
    mmu_unlock_write(s)
    s.regs[R_LOCK_START] = U64(work_done(s))


@inline
def gap_reached(s: State, mmu: int, ipa: Word) -> bool:
    """Whether the sweep of ``mmu`` is to be broken off here, at ``ipa``, for another vCPU to get in."""
    if s.regs[R_GAP] == ZERO or s.regs[R_GAP_MMU] != U64(mmu):
        return False
    s.regs[R_GAP] -= ONE
    if s.regs[R_GAP] != ZERO:
        return False
    s.regs[R_GAP_IPA] = ipa
    return True


@inline
def tree_lock(s: State) -> None:
    """Take the lock of the reverse map itself."""
    s.count[TREE_LOCKS] += 1


@inline
def tree_unlock(s: State) -> None:
    """Release the lock of the reverse map itself."""


@inline
def allocation_fails(s: State, gfp: int) -> bool:
    """Whether this allocation fails: the injected failure counts down to zero; 0 means never."""
    left = s.regs[R_FAIL_ALLOCATION]
    if left == ZERO:
        return False
    left -= ONE
    s.regs[R_FAIL_ALLOCATION] = left
    if left == ZERO:
        s.count[ALLOCATION_FAILURES] += 1
        return True
    return False
