"""``check()`` of ``spanning``: every invariant of its two trees, in plain Python on the raw words."""

from __future__ import annotations

from typing import NamedTuple

from shadowmmu.compiled import Word
from shadowmmu.designs.containers.checks import maple_check, maple_ranges
from shadowmmu.designs.spanning import FLAGS, M_BROKEN, M_DIRECT, M_MAP, UNKNOWN, VALID_ENTRY
from shadowmmu.machine.state import R_PAGE_SHIFT, State
from shadowmmu.pgtable.context import shadow_mmus

__all__ = ["SpanningEntry", "check_spanning", "spanning_entries"]


class SpanningEntry(NamedTuple):
    """An entry of a tree: its range (``last`` inclusive), what it leads to, and whether that is UNKNOWN."""

    first: int
    last: int
    output: int
    unknown: bool


def spanning_entries(state: State, tree: Word | int) -> list[SpanningEntry]:
    """The entries of one tree in order; O(n)."""
    return [
        SpanningEntry(first, last, value & ~int(FLAGS), bool(value & int(UNKNOWN)))
        for first, last, value in maple_ranges(state.rmap, tree)
    ]


def check_spanning(state: State) -> int:
    """Assert every invariant of both trees of every shadow MMU; how many entries have no twin.

    Serves ``spanning_v2`` too, which has one tree. Each tree is a sound maple tree. An exact entry of the
    map is one leaf: a power of two in size, aligned in both spaces. The direct map holds exact entries
    only. Where nothing was aliased or replaced, map and direct map are each other's inverse: an exact
    entry without its twin in the other tree is left behind by what the design does not hear of, and is
    counted, not refused. Raises AssertionError.
    """
    page = 1 << int(state.regs[R_PAGE_SHIFT])
    unpaired = 0
    for mmu in range(1, shadow_mmus(state) + 1):
        trees = (state.mmus[mmu, M_MAP], state.mmus[mmu, M_DIRECT])
        for tree in trees:
            if tree:
                maple_check(state.rmap, tree)
        recorded, direct = (spanning_entries(state, tree) if tree else [] for tree in trees)
        for entry in recorded + direct:
            where = f"shadow MMU {mmu}: entry [{entry.first:#x}, {entry.last:#x}]"
            assert entry.first % page == 0, f"{where} starts inside a page"
            assert (entry.last + 1) % page == 0, f"{where} ends inside a page"
            assert entry.output % page == 0, f"{where} leads to {entry.output:#x}"
        for entry in recorded:
            where = f"shadow MMU {mmu}: entry [{entry.first:#x}, {entry.last:#x}]"
            size = entry.last - entry.first + 1
            assert size & (size - 1) == 0, f"{where} is no power of two"
            assert entry.first % size == 0, f"{where} is not aligned"
            assert not entry.unknown or entry.output == 0, f"{where} is UNKNOWN and has an address"
            assert entry.output % size == 0, f"{where} leads to {entry.output:#x}, aligned otherwise"
        assert not any(entry.unknown for entry in direct), f"shadow MMU {mmu}: UNKNOWN in the direct map"
        if trees[1] and not state.mmus[mmu, M_BROKEN]:
            unpaired += _unpaired(recorded, direct)
    return unpaired


def _unpaired(recorded: list[SpanningEntry], direct: list[SpanningEntry]) -> int:
    """Entries of either tree, UNKNOWN apart, that the other tree does not mirror."""
    forward = {(e.first, e.last - e.first, e.output) for e in recorded if not e.unknown}
    backward = {(e.output, e.last - e.first, e.first) for e in direct}
    return len(forward ^ backward)


assert int(VALID_ENTRY | UNKNOWN) == int(FLAGS)
