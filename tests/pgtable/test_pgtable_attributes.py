"""Changes in place: write protection, age, wider permissions."""

from __future__ import annotations

import pytest
from pgtable_lab import BLOCK, GIGA, PAGE, PX, RW, RWX, RX, UX, Lab, Op, R, W, lab

AF, S2AP_R, S2AP_W, XN_SHIFT = 1 << 10, 1 << 6, 1 << 7, 53


def mixed() -> Lab:
    """A page at 1, 2 and 511, a block of 2M at 2M, one of 1G at 1G."""
    machine = lab()
    for page in (1, 2, 511):
        machine.map(1, page * PAGE)
    machine.map(1, BLOCK, 2)
    machine.map(1, GIGA, 1)
    return machine


def with_bit(machine: Lab, bit: int) -> list[int]:
    return [ipa for ipa, leaf in machine.check()[1].items() if leaf.descriptor & bit]


@pytest.mark.parametrize(("op", "bit"), [(Op.WRITE_PROTECT, S2AP_W), (Op.CLEAR_YOUNG, AF)])
@pytest.mark.parametrize(
    ("start", "end", "left"),
    [
        (0, 2 * GIGA, []),
        (PAGE, 2 * PAGE, [2 * PAGE, 511 * PAGE, BLOCK, GIGA]),
        (2 * PAGE, BLOCK, [PAGE, BLOCK, GIGA]),
        (511 * PAGE, BLOCK + PAGE, [PAGE, 2 * PAGE, GIGA]),
        (2 * GIGA - PAGE, 2 * GIGA, [PAGE, 2 * PAGE, 511 * PAGE, BLOCK]),
        (2 * GIGA, 9 * GIGA, [PAGE, 2 * PAGE, 511 * PAGE, BLOCK, GIGA]),
        (0, 0, [PAGE, 2 * PAGE, 511 * PAGE, BLOCK, GIGA]),
    ],
)
def test_a_bit_is_cleared_in_the_leaves_of_a_range(
    op: Op, bit: int, start: int, end: int, left: list[int]
) -> None:
    machine = mixed()
    counted = machine.counts(machine.do, op, 1, start, end)
    assert with_bit(machine, bit) == left
    changed = 5 - len(left)
    assert counted.get("descriptors_written", 0) == changed
    assert not {name for name in counted if name.startswith(("tlbi", "dsb", "leaves", "tables"))}
    assert machine.do(op, 1, start, end)[0] == 0, "nothing is left to change"


@pytest.mark.parametrize("pages", [1, 5, 512])
def test_each_entry_of_a_run_is_read_once(pages: int) -> None:
    machine = mixed()
    counted = machine.counts(machine.do, Op.WRITE_PROTECT, 1, 0, pages * PAGE)
    assert counted["descriptors_read"] == 3 + pages


def test_a_leaf_is_made_young() -> None:
    machine = mixed()
    machine.do(Op.CLEAR_YOUNG, 1, 0, 2 * GIGA)
    for ipa in (PAGE + 8, 2 * GIGA - 8, 3 * PAGE):
        machine.do(Op.MAKE_YOUNG, 1, ipa)
    assert with_bit(machine, AF) == [PAGE, GIGA]
    assert machine.counts(machine.do, Op.MAKE_YOUNG, 1, PAGE) == {"descriptors_read": 4}


RELAXED = [
    (RX, RWX, S2AP_R | S2AP_W, 0b00),
    (RWX, R | PX | UX, S2AP_R | S2AP_W, 0b00),
    (R, RW, S2AP_R | S2AP_W, 0b10),
    (R, RX, S2AP_R, 0b00),
    (RX, RW, S2AP_R | S2AP_W, 0b00),
    (RX, R | UX, S2AP_R, 0b01),
    (R | UX, R | PX, S2AP_R, 0b11),
    (W, R, S2AP_R | S2AP_W, 0b10),
    (R, W | PX, S2AP_R | S2AP_W, 0b11),
    (RX, 0, S2AP_R, 0b00),
]


@pytest.mark.parametrize(("before", "prot", "data", "xn"), RELAXED)
def test_reads_and_writes_are_added_and_execution_is_replaced_where_it_is_given(
    before: int, prot: int, data: int, xn: int
) -> None:
    machine = lab()
    machine.map(1, PAGE, prot=before | 3 << 55)
    old = machine.entry(1, PAGE)[2]
    assert machine.do(Op.RELAX, 1, PAGE + 8, c=prot)[0] == 1
    new = machine.entry(1, PAGE)[2]
    assert (new & (S2AP_R | S2AP_W), new >> XN_SHIFT & 3) == (data, xn)
    permissions = S2AP_R | S2AP_W | 3 << XN_SHIFT
    assert new & ~permissions == old & ~permissions


LOCAL_FLUSH = {"tlbi_ipa": 1, "tlbi_stage1": 1, "dsbs": 3}


def test_relaxing_takes_a_tlbi_changed_or_not() -> None:
    machine = lab()
    machine.map(1, PAGE, prot=RX)
    widened = machine.counts(machine.do, Op.RELAX, 1, PAGE, c=RWX)
    assert widened == {"descriptors_read": 4, "descriptors_written": 1, "leaves_relaxed": 1} | LOCAL_FLUSH
    again = machine.counts(machine.do, Op.RELAX, 1, PAGE, c=RWX)
    assert again == {"descriptors_read": 4, "leaves_relaxed": 1} | LOCAL_FLUSH


def test_relaxing_what_is_gone_takes_a_tlbi_too() -> None:
    machine = lab()
    assert machine.do(Op.RELAX, 1, PAGE, c=RWX)[0] == 0
    assert machine.counts(machine.do, Op.RELAX, 1, PAGE, c=RWX) == {"descriptors_read": 1} | LOCAL_FLUSH


def test_only_shadow_leaves_count_as_relaxed() -> None:
    machine = lab()
    machine.map(0, PAGE, prot=RX)
    assert "leaves_relaxed" not in machine.counts(machine.do, Op.RELAX, 0, PAGE, c=RWX)
