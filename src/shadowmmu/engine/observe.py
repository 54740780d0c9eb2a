"""Observations: what may be compared between the model and the real kernel.

A dump is runs of table entries as the kernel's ptdump sees them: maximal ranges of the same level and the
same printed attributes, holes included. Output addresses are not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from shadowmmu.arch.regime import level_shift, table_address
from shadowmmu.arch.stage2 import AF, S2AP_R, S2AP_W, TABLE, TABLE_TYPE, VALID, XN
from shadowmmu.compiled import I64, U64, Words, kernel
from shadowmmu.kvm.layout import S_BASE, S_DIRTY_WORD, S_SIZE
from shadowmmu.machine.log import KINDS
from shadowmmu.machine.state import R_LOG_TOP, R_PAGE_SHIFT, State
from shadowmmu.pgtable.context import (
    CANONICAL,
    CNP,
    M_ENABLED,
    M_VTCR,
    M_VTTBR,
    context_regime,
    input_size,
    root_word,
)

PRINTED: Final = VALID | TABLE | S2AP_R | S2AP_W | XN | AF
"""Descriptor bits that ptdump shows."""
ZERO: Final = U64(0)
ONE: Final = U64(1)
THREE: Final = U64(3)


@kernel
def dump_runs(s: State, mmu: int, out: Words) -> int:
    """Write the runs of an MMU's tables to ``out`` rows (start, end, level, bits); how many there are.

    Rows beyond the end of ``out`` are counted, not written. O(entries of the tables present).
    """
    r = context_regime(s, mmu)
    stride = U64(r.stride)
    index_mask = (ONE << stride) - ONE
    end = input_size(s, mmu)
    ipa = ZERO
    rows = 0
    last_level = -1
    last_bits = ZERO
    while ipa < end:
        level = r.start_level
        shift = U64(level_shift(r, level))
        word = root_word(s, mmu) + (ipa >> shift)
        descriptor = s.mem[word]
        while level < 3 and descriptor & TABLE_TYPE == TABLE_TYPE:
            level += 1
            shift -= stride
            word = (table_address(r, descriptor) >> THREE) + ((ipa >> shift) & index_mask)
            descriptor = s.mem[word]
        while True:
            bits = descriptor & PRINTED
            if level != last_level or bits != last_bits:
                if rows > 0 and rows <= len(out):
                    out[rows - 1, 1] = ipa
                if rows < len(out):
                    out[rows, 0] = ipa
                    out[rows, 2] = U64(level)
                    out[rows, 3] = bits
                rows += 1
                last_level = level
                last_bits = bits
            ipa += ONE << shift
            word += ONE
            if ipa >= end or (ipa >> shift) & index_mask == ZERO:
                break
            descriptor = s.mem[word]
            if level < 3 and descriptor & TABLE_TYPE == TABLE_TYPE:
                break
    if rows > 0 and rows <= len(out):
        out[rows - 1, 1] = end
    return rows


@dataclass(frozen=True)
class TableDump:
    """One table file of debugfs: its header fields (shadows) and its runs; ``runs`` None if empty."""

    file: str
    vtcr: int = 0
    vttbr: int = 0
    enabled: bool = False
    runs: Words | None = None

    @property
    def is_shadow(self) -> bool:
        """Whether the file is a shadow MMU's, which has a header line."""
        return self.file != CANONICAL_FILE


@dataclass(frozen=True)
class DirtyLog:
    """What one ``getlog`` command of a scenario shows: canonical addresses of the dirty pages, ascending."""

    event: int
    pages: Words


def dirty_pages(state: State, slot: int) -> Words:
    """Canonical addresses of the pages whose bits a memslot's dirty bitmap has. O(pages of the slot)."""
    page_shift = int(state.regs[R_PAGE_SHIFT])
    base, size, first = (int(state.slots[slot, column]) for column in (S_BASE, S_SIZE, S_DIRTY_WORD))
    pages = size >> page_shift
    bits = np.unpackbits(state.dirty[first : first + -(-pages // 64)].view(np.uint8), bitorder="little")
    return base + (np.flatnonzero(bits[:pages]).astype(np.uint64) << np.uint64(page_shift))


CANONICAL_FILE: Final = "stage2_page_tables"


@dataclass(frozen=True)
class Dump:
    """What one ``dump`` command of a scenario shows."""

    event: int
    label: str
    tables: list[TableDump] = field(default_factory=list)


def table_runs(state: State, mmu: int) -> Words:
    """The runs of one MMU, rows (start, end, level, bits)."""
    out = np.zeros((256, 4), np.uint64)
    rows = int(dump_runs(state, mmu, out))
    if rows > len(out):
        out = np.zeros((rows, 4), np.uint64)
        dump_runs(state, mmu, out)
    return out[:rows]


def dump_tables(state: State, nested_only: bool) -> list[TableDump]:
    """Every table file the kernel would show, in its order."""
    tables = []
    if not nested_only:
        tables.append(TableDump(CANONICAL_FILE, runs=table_runs(state, CANONICAL)))
    for mmu in range(1, len(state.mmus)):
        name = f"nested/nested_mmu{mmu - 1}"
        row = state.mmus[mmu]
        if row[M_VTTBR] & CNP:  # no tenant: an empty file
            tables.append(TableDump(name))
            continue
        tables.append(
            TableDump(
                name,
                int(row[M_VTCR]),
                int(row[M_VTTBR]),
                bool(row[M_ENABLED]),
                table_runs(state, mmu),
            )
        )
    return tables


@dataclass(frozen=True)
class Observed:
    """One row of the observation log, by name."""

    event: int
    name: str
    fields: dict[str, int]


def read_log(state: State) -> list[Observed]:
    """The rows written so far."""
    observed = []
    for row in state.log[: min(int(I64(state.regs[R_LOG_TOP])), len(state.log))]:
        name, names = KINDS[int(row[0])]
        fields = {key: int(value) for key, value in zip(names, row[2:7], strict=False)}
        observed.append(Observed(int(row[1]), name, fields))
    return observed
