"""``radix``: the page-table-shaped radix of ``reverse_table`` on its own, as a Python object.

It maps the pages of an address space to sets of numbers. The kernels and the layout are the design's
(``reverse_leaves``); here they run on a machine that has nothing but a canonical regime and the record.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shadowmmu.arch.regime import stage2_start_level
from shadowmmu.compiled import I64, U64, Word, kernel
from shadowmmu.designs.radix_check import check_accounts, walk_radix
from shadowmmu.designs.reverse_leaves import (
    ENTRY,
    leaf_link,
    leaf_names,
    leaf_unlink,
)
from shadowmmu.designs.reverse_nodes import CHAIN, CHAIN_WORDS, RT_BUMP, RT_BYTES, reverse_init
from shadowmmu.machine.counters import NODES_VISITED
from shadowmmu.machine.state import R_PAGE_SHIFT, R_STRIDE, REGISTERS, State, empty_counters, grow
from shadowmmu.pgtable.context import CANONICAL, M_IA_BITS, M_START, MMU_COLUMNS, context_regime

__all__ = ["PageRadix"]

ROOM = 16384
"""Words with which any single operation succeeds."""
ADD = 0
REMOVE = 1
LOOK = 2


@kernel
def radix_act(s: State, kind: int, page: Word, number: Word) -> bool:
    """Add, remove or look for one number under one page: one entry point, so one compilation."""
    r = context_regime(s, CANONICAL)
    ipa = page << U64(r.page_shift)
    if kind == I64(ADD):
        return leaf_link(s, r, ipa, number)
    if kind == I64(REMOVE):
        return leaf_unlink(s, r, ipa, number)
    return leaf_names(s, r, ipa, number)


class PageRadix:
    """Sets of numbers (1 to 2**49 - 1) under the pages of an address space, shaped like a 4K page table.

    >>> radix = PageRadix()
    >>> radix.add(0x100, 7), radix.add(0x100, 8), radix.add(0x5555, 9)
    (True, True, True)
    >>> [(hex(page), number) for page, number in radix], (0x100, 8) in radix
    ([('0x100', 7), ('0x100', 8), ('0x5555', 9)], True)
    >>> radix.remove(0x100, 7), radix.remove(0x100, 7), len(radix)
    (True, False, 2)
    """

    def __init__(self, bits: int = 40) -> None:
        """An empty radix over ``bits`` of address, 31 to 48. O(1)."""
        if not 31 <= bits <= 48:
            raise ValueError(f"an address space of 31 to 48 bits, not {bits}")
        arrays = {name: np.zeros(1, np.uint64) for name in State._fields if name != "count"}
        arrays["regs"] = np.zeros(REGISTERS, np.uint64)
        arrays["mmus"] = np.zeros((1, MMU_COLUMNS), np.uint64)
        arrays["rmap"] = np.zeros(2 * ROOM, np.uint64)
        for name in ("frames", "log", "vcpus", "slots", "vmas", "plan"):
            arrays[name] = np.zeros((1, 8), np.uint64)
        self._state = State(**arrays, count=empty_counters())
        self._state.regs[R_PAGE_SHIFT] = 12
        self._state.regs[R_STRIDE] = 9
        self._pages = 1 << (bits - 12)
        self._state.mmus[CANONICAL, M_IA_BITS] = bits
        self._state.mmus[CANONICAL, M_START] = stage2_start_level(12, bits)
        reverse_init(self._state)
        self._numbers = 0

    def _act(self, kind: int, page: int, number: int) -> bool:
        if not 0 <= page < self._pages:
            raise ValueError(f"page {page:#x} is not below {self._pages:#x}")
        if not 0 < number <= int(ENTRY):
            raise ValueError(f"number {number} is not in 1 .. 2**49 - 1")
        while len(self._state.rmap) - int(self._state.rmap[RT_BUMP]) < ROOM:
            self._state = grow(self._state, "rmap")
        return bool(radix_act(self._state, kind, U64(page), U64(number)))

    def add(self, page: int, number: int) -> bool:
        """Put a number under a page; False, and no change, if it is there. O(levels + numbers there).

        OverflowError, and no change: 512 pages have 33 million numbers already.
        """
        if (page, number) in self:
            return False
        if not self._act(ADD, page, number):
            raise OverflowError(f"page {page:#x}: no more numbers can be counted there")
        self._numbers += 1
        return True

    def remove(self, page: int, number: int) -> bool:
        """Take a number off a page; False if it was not there. O(levels + numbers there)."""
        gone = self._act(REMOVE, page, number)
        self._numbers -= gone
        return gone

    def __contains__(self, place: tuple[int, int]) -> bool:
        return self._act(LOOK, *place)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(page, number) in order. O(words), in Python: for tests and for looking at it."""
        found = []
        for head in walk_radix(self._state, sized_leaves=True).heads:
            page, content = int(head.canonical_ipa) >> 12, head.content
            while content & int(CHAIN):
                node = content & ~int(CHAIN)
                found.append((page, int(self._state.rmap[node])))
                content = int(self._state.rmap[node + 1])
            if content:
                found.append((page, content))
        return iter(sorted(found))

    def __len__(self) -> int:
        return self._numbers

    @property
    def bytes(self) -> int:
        """Bytes of the nodes and chains in use."""
        return int(self._state.rmap[RT_BYTES])

    @property
    def visited(self) -> int:
        """Nodes entered so far: 64 bytes of a small leaf are one."""
        return int(self._state.count[NODES_VISITED])

    def check(self) -> None:
        """Assert every invariant of the radix. O(words)."""
        walk = walk_radix(self._state, sized_leaves=True)
        for head in walk.heads:
            content = head.content
            while content & int(CHAIN):
                walk.meet(content & ~int(CHAIN), CHAIN_WORDS)
                content = int(self._state.rmap[(content & ~int(CHAIN)) + 1])
        held = sum(1 for _ in self)
        assert held == len(self), f"{held} numbers, {len(self)} counted"
        check_accounts(self._state, walk, CHAIN_WORDS)
