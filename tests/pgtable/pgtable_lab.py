"""What the page-table tests share: stage-2 contexts, one compiled entry to the library, a walk by hand."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from shadowmmu.compiled import U64, kernel
from shadowmmu.machine.counters import DECLARED, TABLES_ALLOCATED, TABLES_FREED
from shadowmmu.machine.frames import BASE, KIND_TABLE, OWNER, PARENT, REFS
from shadowmmu.machine.state import (
    R_FREE_TOP,
    R_FWB,
    R_GHOST_ON,
    R_LOG_ON,
    R_NEXT_FRAME,
    R_PA_BITS,
    R_PAGE_SHIFT,
    R_STRIDE,
    R_TLBIRANGE,
    REGISTERS,
    State,
    empty_counters,
)
from shadowmmu.pgtable.attributes import (
    clear_young,
    find_entry,
    make_young,
    relax_permissions,
    write_protect,
)
from shadowmmu.pgtable.context import (
    M_IA_BITS,
    M_LEAVES,
    M_ROOT,
    M_START,
    MMU_COLUMNS,
    R_SHADOWS,
    context_regime,
    init_context,
    input_size,
    largest_block,
    shadow_mmus,
    shadow_valid,
)
from shadowmmu.pgtable.iterate import first_leaf
from shadowmmu.pgtable.map import stage2_map
from shadowmmu.pgtable.unmap import clear_leaf, leaf_at, stage2_unmap, unmap_range

K, M, G = 1 << 10, 1 << 20, 1 << 30
PAGE, BLOCK, GIGA = 4 * K, 2 * M, G
SIZE = {3: PAGE, 2: BLOCK, 1: GIGA}
R, W, PX, UX = 8, 4, 2, 1
RWX, RX, RW = R | W | PX | UX, R | PX | UX, R | W
DATA = 0x10_0000_0000


class Op(IntEnum):
    """The operations of the library, as the tests' one kernel knows them."""

    MAP = 0
    UNMAP = 1
    UNMAP_RANGE = 2
    CLEAR_LEAF = 3
    WRITE_PROTECT = 4
    CLEAR_YOUNG = 5
    MAKE_YOUNG = 6
    RELAX = 7
    LEAF_AT = 8
    FIND = 9
    FIRST_LEAF = 10
    INIT = 11
    CONTEXT = 12


@kernel
def _change(s: Any, op: Any, mmu: Any, a: Any, b: Any, c: Any, level: Any) -> Any:
    if op == 0:
        return stage2_map(s, mmu, a, level, b, c)
    if op == 1:
        return U64(stage2_unmap(s, mmu, a, b))
    if op == 2:
        return U64(unmap_range(s, mmu, a, b, level != 0))
    if op == 4:
        return U64(write_protect(s, mmu, a, b))
    if op == 5:
        return U64(clear_young(s, mmu, a, b))
    if op == 6:
        make_young(s, mmu, a)
    elif op == 7:
        return U64(relax_permissions(s, mmu, a, c))
    elif op == 11:
        init_context(s, mmu, level)
    return U64(0)


@kernel
def _operate(s: Any, op: Any, mmu: Any, a: Any, b: Any, c: Any, level: Any, out: Any) -> None:
    if op == 3 or op == 8:
        leaf = leaf_at(s, a)
        if op == 3:
            leaf = clear_leaf(s, a)
        out[0] = U64(leaf.mmu)
        out[1] = leaf.ipa
        out[2] = leaf.size
        out[3] = U64(leaf.level)
    elif op == 9:
        word, found = find_entry(s, mmu, a)
        out[0] = word
        out[1] = U64(found)
    elif op == 10:
        visit = first_leaf(s, mmu, a, b)
        out[0] = visit.word
        out[1] = visit.ipa
        out[2] = U64(visit.level)
        out[3] = visit.after
    elif op == 12:
        r = context_regime(s, mmu)
        out[0] = U64(r.oa_bits)
        out[1] = largest_block(r)
        out[2] = input_size(s, mmu)
        out[3] = U64(shadow_valid(s, mmu)) + U64(2) * U64(shadow_mmus(s))
    else:
        out[0] = _change(s, op, mmu, a, b, c, level)


class Found(NamedTuple):
    """A leaf as the walk by hand finds it."""

    level: int
    descriptor: int
    word: int


@dataclass
class Lab:
    """A machine driven by single operations of the library."""

    state: State

    def do(self, op: Op, mmu: int, a: int = 0, b: int = 0, c: int = 0, level: int = 0) -> list[int]:
        """One operation; the words it answers."""
        out = np.zeros(4, np.uint64)
        _operate(self.state, int(op), mmu, U64(a), U64(b), U64(c), level, out)
        return out.tolist()  # type: ignore[no-any-return]

    def map(self, mmu: int, ipa: int, level: int = 3, pa: int | None = None, prot: int = RWX) -> int:
        """Map one leaf (to the data at the same offset unless said); its word, 0 if unchanged."""
        return self.do(Op.MAP, mmu, ipa, DATA + ipa if pa is None else pa, prot, level)[0]

    def unmap(self, mmu: int, start: int, end: int) -> int:
        """One walk, one invalidation; how many leaves went."""
        return self.do(Op.UNMAP, mmu, start, end)[0]

    def unmap_range(self, mmu: int, start: int, end: int, may_block: bool = False) -> int:
        """The chunk loop."""
        return self.do(Op.UNMAP_RANGE, mmu, start, end, level=may_block)[0]

    def entry(self, mmu: int, ipa: int) -> tuple[int, int, int]:
        """Word, level and content of the last entry on the way to ``ipa``."""
        word, level = self.do(Op.FIND, mmu, ipa)[:2]
        return word, level, int(self.state.mem[word])

    def leaves(self, mmu: int, start: int = 0, end: int | None = None) -> list[tuple[int, int, int]]:
        """(IPA, level, word) of the leaves of a range, by ``next_leaf``."""
        found, at = [], start
        end = 1 << int(self.state.mmus[mmu, M_IA_BITS]) if end is None else end
        while at < end:
            word, ipa, level, at = self.do(Op.FIRST_LEAF, mmu, at, end)
            if word:
                found.append((ipa, level, word))
        return found

    def counts(self, op: Any, *operands: Any, **named: Any) -> dict[str, int]:
        """What one operation counts, by the counters' names."""
        before = self.state.count.copy()
        op(*operands, **named)
        change = (self.state.count - before).tolist()
        return {DECLARED[index][0]: by for index, by in enumerate(change) if by}

    def tables_in_use(self) -> int:
        """Table frames taken and not given back."""
        return int(self.state.count[TABLES_ALLOCATED] - self.state.count[TABLES_FREED])

    def walk_by_hand(self, mmu: int) -> dict[int, Found]:
        """Every leaf of an MMU by its IPA, read off the tables; checks each table's record on the way."""
        s = self.state
        shift, stride = int(s.regs[R_PAGE_SHIFT]), int(s.regs[R_STRIDE])
        start, ia_bits = int(s.mmus[mmu, M_START]), int(s.mmus[mmu, M_IA_BITS])
        words = 1 << stride
        leaves: dict[int, Found] = {}
        roots = 1 << max(0, ia_bits - shift - stride * (4 - start))
        first = int(s.mmus[mmu, M_ROOT]) >> shift
        todo = [(first + i, start, 0, i << (shift + stride * (4 - start))) for i in range(roots)]
        for frame, level, parent, base in todo:
            content = s.mem[frame * words : (frame + 1) * words]
            filled = np.flatnonzero(content).tolist()
            record = s.frames[frame].tolist()
            assert record[REFS] == 1 + len(filled), "A15"
            assert record[OWNER] == int(KIND_TABLE) | level << 16 | mmu
            assert (record[PARENT], record[BASE]) == (parent, base)
            assert filled or level == start, "an empty table is freed"
            for index in filled:
                entry, word = int(content[index]), frame * words + index
                ipa = base + (index << (shift + stride * (3 - level)))
                if level < 3 and entry & 3 == 3:
                    todo.append(((entry & 0xFFFF_FFFF_F000) >> shift, level + 1, word, ipa))
                else:
                    leaves[ipa] = Found(level, entry, word)
        self.tables_seen = len(todo)
        return dict(sorted(leaves.items()))

    def check(self) -> dict[int, dict[int, Found]]:
        """Every invariant of the tables of every MMU; their leaves."""
        s, tables, found = self.state, 0, {}
        for mmu in range(len(s.mmus)):
            found[mmu] = self.walk_by_hand(mmu)
            tables += self.tables_seen
            assert s.mmus[mmu, M_LEAVES] == len(found[mmu])
            for ipa, leaf in found[mmu].items():
                size = 1 << (int(s.regs[R_PAGE_SHIFT]) + int(s.regs[R_STRIDE]) * (3 - leaf.level))
                assert self.do(Op.LEAF_AT, 0, leaf.word) == [mmu, ipa, size, leaf.level]
                assert self.entry(mmu, ipa + size - 8) == (leaf.word, leaf.level, leaf.descriptor)
        assert self.tables_in_use() == tables
        free = s.free[: int(s.regs[R_FREE_TOP])].tolist()
        assert len(set(free)) == len(free)
        assert not s.frames[free, OWNER].any()
        return found


def lab(
    ia_bits: tuple[int, ...] = (40, 48),
    *,
    frames: int = 128,
    page_shift: int = 12,
    tlbirange: bool = True,
    fwb: bool = True,
    logged: bool = False,
) -> Lab:
    """A machine whose MMUs have these input sizes: the canonical one, then the shadows."""
    words = frames << (page_shift - 3)
    arrays: dict[str, Any] = {name: np.zeros(1, np.uint64) for name in State._fields}
    for name in ("vcpus", "slots", "vmas", "plan"):
        arrays[name] = np.zeros((1, 8), np.uint64)
    arrays |= {
        "mem": np.zeros(words, np.uint64),
        "frames": np.zeros((frames, 4), np.uint64),
        "free": np.zeros(frames, np.uint64),
        "regs": np.zeros(REGISTERS, np.uint64),
        "count": empty_counters(),
        "log": np.zeros((64, 8), np.uint64),
        "mmus": np.zeros((len(ia_bits), MMU_COLUMNS), np.uint64),
        "ghost": np.zeros(words, np.uint64),
        "graves": np.zeros(1 << 12, np.uint64),
    }
    made = Lab(State(**arrays))
    regs = made.state.regs
    regs[R_PAGE_SHIFT], regs[R_STRIDE], regs[R_NEXT_FRAME] = page_shift, page_shift - 3, 1
    regs[R_PA_BITS], regs[R_SHADOWS] = 48, len(ia_bits) - 1
    regs[R_TLBIRANGE], regs[R_FWB], regs[R_LOG_ON], regs[R_GHOST_ON] = tlbirange, fwb, logged, True
    for mmu, bits in enumerate(ia_bits):
        made.do(Op.INIT, mmu, level=bits)
    return made
