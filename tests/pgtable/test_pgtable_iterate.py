"""Contexts and visits: the geometry of an MMU, and its leaves in order."""

from __future__ import annotations

import pytest
from pgtable_lab import BLOCK, GIGA, PAGE, Op, lab

from shadowmmu.machine.counters import DESCRIPTORS_READ
from shadowmmu.machine.frames import BASE
from shadowmmu.pgtable.context import CNP, M_IA_BITS, M_LEAVES, M_ROOT, M_START, M_VTTBR


@pytest.mark.parametrize(
    ("bits", "page_shift", "start", "tables"),
    [
        (32, 12, 2, 4),
        (34, 12, 2, 16),
        (36, 12, 1, 1),
        (39, 12, 1, 1),
        (40, 12, 1, 2),
        (43, 12, 1, 16),
        (44, 12, 0, 1),
        (48, 12, 0, 1),
        (40, 14, 2, 16),
        (48, 14, 1, 2),
        (46, 16, 2, 16),
        (48, 16, 1, 1),
    ],
)
def test_start_tables_of_a_context(bits: int, page_shift: int, start: int, tables: int) -> None:
    machine = lab((40, bits), page_shift=page_shift, frames=64)
    before = lab((40,), page_shift=page_shift, frames=64).tables_in_use()
    row = machine.state.mmus[1]
    assert (row[M_START], row[M_IA_BITS], row[M_LEAVES]) == (start, bits, 0)
    assert machine.tables_in_use() - before == tables
    assert row[M_ROOT] % (tables << page_shift) == 0
    first = int(row[M_ROOT]) >> page_shift
    span = 1 << (page_shift + (page_shift - 3) * (4 - start))
    assert machine.state.frames[first : first + tables, BASE].tolist() == [i * span for i in range(tables)]
    machine.check()


def test_what_a_context_says_of_itself() -> None:
    machine = lab((40, 48, 40))
    assert machine.do(Op.CONTEXT, 1) == [48, GIGA, 1 << 48, 1 + 2 * 2]
    machine.state.mmus[1, M_VTTBR] = CNP
    assert machine.do(Op.CONTEXT, 1)[3] == 0 + 2 * 2, "a set CnP means no tenant"
    assert machine.do(Op.CONTEXT, 2)[2] == 1 << 40


LEAVES = [
    (0, 3),
    (511 * PAGE, 3),
    (BLOCK, 2),
    (GIGA, 1),
    (511 * GIGA, 3),
    (512 * GIGA, 2),
    (1024 * GIGA - PAGE, 3),
]


@pytest.mark.parametrize("bits", [40, 48])
def test_leaves_are_visited_in_order_across_tables_and_roots(bits: int) -> None:
    machine = lab((40, bits))
    for ipa, level in reversed(LEAVES):
        machine.map(1, ipa, level)
    assert [(ipa, level) for ipa, level, _ in machine.leaves(1)] == LEAVES
    assert [ipa for ipa, _, _ in machine.leaves(1, PAGE, BLOCK)] == [511 * PAGE]
    assert [ipa for ipa, _, _ in machine.leaves(1, 2 * BLOCK - PAGE, 2 * BLOCK)] == [BLOCK], "from its middle"
    assert machine.leaves(1, 2 * BLOCK, GIGA) == []
    assert machine.leaves(1, PAGE, PAGE) == []


def test_a_visit_leaves_all_as_it_was_and_says_where_to_go_on() -> None:
    machine = lab()
    word = machine.map(1, GIGA, 2)
    before = machine.state.mem.copy()
    assert machine.do(Op.FIRST_LEAF, 1, 0, 4 * GIGA) == [word, GIGA, 2, GIGA + BLOCK]
    assert machine.do(Op.FIRST_LEAF, 1, GIGA + BLOCK, 4 * GIGA) == [0, 4 * GIGA, 0, 4 * GIGA]
    assert (machine.state.mem == before).all()


def test_a_run_of_empty_entries_is_read_in_one_go() -> None:
    machine = lab()
    machine.map(1, 0)
    machine.map(1, 511 * PAGE)
    counted = machine.counts(machine.do, Op.FIRST_LEAF, 1, PAGE, BLOCK)
    assert counted == {"descriptors_read": 4 + 510}
    machine.state.count[DESCRIPTORS_READ] = 0
    assert len(machine.leaves(1, 0, BLOCK)) == 2
    assert machine.state.count[DESCRIPTORS_READ] == 4 + 4 + 510
