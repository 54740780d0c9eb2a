"""The event table: layout of a row, builders, labels and places."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from shadowmmu.events import schema
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.events.schema import EVENT, EventTable, Kind


def test_row_layout() -> None:
    assert EVENT.itemsize == 56
    assert EVENT.names == ("kind", "vcpu", "line", "a", "b", "c", "d", "e", "f")


def test_every_kind_is_a_plain_integer_under_its_name() -> None:
    for spec in schema.KINDS:
        assert type(getattr(schema, spec.name)) is int
        assert getattr(schema, spec.name) == spec.number == Kind[spec.name]
        assert len(spec.operands) <= len(schema.OPERANDS)
    assert len(schema.SPECS) == len(schema.KINDS)


def test_kinds_are_usable_as_compiled_globals() -> None:
    touch = schema.TOUCH

    @numba.njit
    def touches(kinds: np.ndarray) -> int:
        found = 0
        for kind in kinds:
            if kind == touch:
                found += 1
        return found

    table = EventTable()
    table.append(schema.TOUCH, 1)
    table.append(schema.NOP)
    assert touches(table.finish()["kind"].copy()) == 1


def test_append_and_extend_agree() -> None:
    one, other = EventTable(), EventTable()
    for k in range(1000):
        assert one.append(schema.TLBI, k, 2**64 - 1 - k, vcpu=k % 3, line=k) == k
    n = np.arange(1000, dtype=np.uint64)
    top = np.uint64(2**64 - 1)
    where = other.extend(schema.TLBI, a=n, b=top - n, vcpu=n % np.uint64(3), line=n)
    assert where == slice(0, 1000)
    assert (one.finish() == other.finish()).all()


def test_extend_with_scalars_appends_one_and_with_nothing_none() -> None:
    table = EventTable()
    table.extend(schema.VM, a=1)
    table.extend(schema.VM, a=np.zeros(0, np.uint64))
    assert table.finish().tolist() == [(schema.VM, 0, 0, 1, 0, 0, 0, 0, 0)]


def test_append_rows() -> None:
    one, other = EventTable(), EventTable()
    one.append(schema.VM, 1)
    other.append_rows(one.finish())
    assert other.finish().tolist() == one.finish().tolist()
    with pytest.raises(ValueError, match="events"):
        other.append_rows(np.zeros(2))  # type: ignore[arg-type]


def test_bad_events_leave_the_table_unchanged() -> None:
    table = EventTable()
    for attempt in (
        lambda: table.append(999),
        lambda: table.append(schema.VM, 1, 2, 3, 4, 5, 6, 7),
        lambda: table.extend(999, a=1),
        lambda: table.extend(schema.VM, g=1),
        lambda: table.extend(schema.VM, a=np.zeros((2, 2), np.uint64)),
        lambda: table.extend(schema.VM, a=np.zeros(2), b=np.zeros(3)),
    ):
        with pytest.raises(ValueError):
            attempt()
    with pytest.raises(OverflowError):
        table.append(schema.VM, 1 << 64)
    with pytest.raises(OverflowError):
        table.append(schema.VM, -1)
    assert len(table) == 0


def test_finished_events_are_read_only() -> None:
    table = EventTable()
    table.append(schema.VM, 1)
    events = table.finish()
    with pytest.raises(ValueError):
        events["a"] = 0
    table.append(schema.VM, 0)
    assert len(events) == 1


def test_labels_and_places() -> None:
    scenario = parse_scenario("start base\nmark hello there\ndump a n\nvm 0\n", "x", "dir/x.scenario")
    assert [scenario.label(i) for i in range(3)] == ["hello there", "a", ""]
    assert scenario.where(1) == "dir/x.scenario:3: dump a n"
    assert scenario.canonical_end == 0x40000000 + (64 << 20)
    assert "two operands" not in schema.KINDS[0].describe()
