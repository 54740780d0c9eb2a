"""The observation log."""

from __future__ import annotations

import pytest
from machine_lab import Op, call, machine, numbers

from shadowmmu.machine import log
from shadowmmu.machine.state import R_EVENT, R_LOG_ON, R_LOG_TOP


def test_a_row_is_kind_event_and_operands() -> None:
    s = machine()
    s.regs[R_LOG_ON], s.regs[R_EVENT] = 1, 41
    call(s, Op.OBSERVE, log.MAP, 10, 20, 30, 40)
    assert s.log[0].tolist() == [log.MAP, 41, 10, 20, 30, 40, 41, 0]
    assert s.regs[R_LOG_TOP] == 1


def test_nothing_is_written_while_the_log_is_off() -> None:
    s = machine()
    call(s, Op.OBSERVE, log.MAP, 10, 20, 30, 40)
    assert not s.log.any()
    assert s.regs[R_LOG_TOP] == 0


def test_rows_beyond_the_end_are_dropped_and_counted() -> None:
    s = machine()
    s.regs[R_LOG_ON] = 1
    for number in range(7):
        call(s, Op.OBSERVE, log.RANGE, number)
    assert s.regs[R_LOG_TOP] == 7
    assert s.log[:, 2].tolist() == [0, 1, 2, 3]


def test_every_kind_is_declared_once() -> None:
    kinds = {
        name: value
        for name, value in numbers(log).items()
        if name != "ROWS_PER_STEP" and name[:6] != "FLUSH_"
    }
    assert sorted(kinds.values()) == sorted(log.KINDS)
    names = [name for name, _ in log.KINDS.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", log.KINDS)
def test_operands_fit_a_row(kind: int) -> None:
    operands = log.KINDS[kind][1]
    assert 0 < len(operands) <= 5
    assert len(set(operands)) == len(operands)
