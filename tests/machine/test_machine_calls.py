"""Locks, preemption and allocation: what the calls count."""

from __future__ import annotations

import pytest
from machine_lab import Op, call, machine

from shadowmmu.machine.counters import (
    ALLOCATION_FAILURES,
    CHUNKS,
    COUNTERS,
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
from shadowmmu.machine.state import R_FAIL_ALLOCATION

WORK = {DESCRIPTORS_READ, DESCRIPTORS_WRITTEN, CHUNKS, TLBI_RANGE, TLBI_IPA, NODES_VISITED}


@pytest.mark.parametrize("counter", range(COUNTERS))
def test_what_counts_as_work(counter: int) -> None:
    s = machine()
    s.count[counter] = 7
    assert call(s, Op.WORK_DONE) == (7 if counter in WORK else 0)


def test_hold_of_the_write_lock() -> None:
    s = machine()
    s.count[DESCRIPTORS_READ] = 100
    for work in (5, 30, 10):
        call(s, Op.LOCK_WRITE)
        s.count[DESCRIPTORS_READ] += work
        call(s, Op.UNLOCK_WRITE)
        s.count[DESCRIPTORS_READ] += 1000
    assert (s.count[LOCK_WRITE], s.count[LOCK_HELD], s.count[LOCK_LONGEST]) == (3, 45, 30)


def test_giving_way_ends_a_hold_and_begins_another() -> None:
    s = machine()
    call(s, Op.LOCK_WRITE)
    for work in (8, 20):
        s.count[CHUNKS] += work
        call(s, Op.RESCHED)
    s.count[CHUNKS] += 4
    call(s, Op.UNLOCK_WRITE)
    assert (s.count[LOCK_HELD], s.count[LOCK_LONGEST], s.count[RESCHEDULES]) == (32, 20, 2)
    assert s.count[LOCK_WRITE] == 1


def test_the_other_locks_are_counted_and_hold_nothing_up() -> None:
    s = machine()
    for op in (Op.LOCK_READ, Op.UNLOCK_READ, Op.TREE_LOCK, Op.TREE_UNLOCK, Op.TREE_LOCK, Op.TREE_UNLOCK):
        s.count[DESCRIPTORS_READ] += 1
        call(s, op)
    assert (s.count[LOCK_READ], s.count[TREE_LOCKS]) == (1, 2)
    assert s.count[[LOCK_HELD, LOCK_LONGEST, LOCK_WRITE]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("gfp", [0, 1])
@pytest.mark.parametrize("which", [1, 2, 5])
def test_the_chosen_allocation_fails_once(which: int, gfp: int) -> None:
    s = machine()
    s.regs[R_FAIL_ALLOCATION] = which
    outcomes = [call(s, Op.ALLOCATION_FAILS, gfp) for _ in range(8)]
    assert outcomes == [int(number == which) for number in range(1, 9)]
    assert s.count[ALLOCATION_FAILURES] == 1


def test_without_injection_no_allocation_fails() -> None:
    s = machine()
    assert not any(call(s, Op.ALLOCATION_FAILS, 0) for _ in range(5))
    assert s.count[ALLOCATION_FAILURES] == 0
