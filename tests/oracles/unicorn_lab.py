"""Random tables and registers for Unicorn: whatever stage or granule reads a word, it means something."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shadowmmu.arch import context as c
from shadowmmu.arch import registers as r
from shadowmmu.compiled import Counts, Words

TABLES = 1 << 20
FRAME = 0x1_0000
FRAMES = 64
TG0 = {12: 0, 14: 2, 16: 1}
TG1 = {12: 2, 14: 1, 16: 3}
SHIFTS = (12, 14, 16)
MAIR_BYTES = (0x00, 0x04, 0x08, 0x0C, 0x44, 0x4F, 0xF4, 0xFF, 0xBB, 0xAA, 0xEE, 0xDD)


class Batch(NamedTuple):
    """Rows of registers, and for each query its row, operation and VA."""

    rows: Words
    context_of: Counts
    operations: Counts
    va: Words


def fill_tables(memory: Words, rng: np.random.Generator) -> None:
    """Frames of 64K whose words point at each other, as tables, blocks or pages at once."""
    count = FRAMES * FRAME // 8
    words = np.uint64(TABLES) + rng.integers(0, FRAMES, count, dtype=np.uint64) * np.uint64(FRAME)
    block = rng.random(count) < 0.34
    words[block] = rng.integers(0, 1 << 20, np.count_nonzero(block), dtype=np.uint64) << np.uint64(30)
    words |= np.where(block, 1, 3).astype(np.uint64)
    words |= rng.integers(0, 1 << 10, count, dtype=np.uint64) << np.uint64(2) & np.uint64(0xBFC)
    words |= np.where(rng.random(count) < 0.93, 0x400, 0).astype(np.uint64)
    upper = rng.integers(0, 1 << 12, count, dtype=np.uint64) << np.uint64(52) & ~np.uint64(1 << 63)
    words |= np.where(rng.random(count) < 0.4, upper, np.uint64(0))
    words[rng.random(count) < 0.05] &= ~np.uint64(1)
    memory[TABLES >> 3 :][:count] = words


def random_rows(rng: np.random.Generator, count: int) -> Words:
    """Context rows: both stages, all granules, 48 bits of output, at times with illegal sizes."""
    rows = np.zeros((count, c.ROW), np.uint64)
    for row in rows:
        shifts = rng.choice(SHIFTS, 3)

        def base() -> int:
            return TABLES + int(rng.integers(0, FRAMES)) * FRAME

        def bit(share: float) -> int:
            return int(rng.random() < share)

        row[c.C_TTBR0_EL1], row[c.C_TTBR1_EL1] = base(), base()
        row[c.C_TCR_EL1] = r.TCR_EL1.encode(
            T0SZ=int(rng.integers(16, 40)),
            T1SZ=int(rng.integers(16, 40)),
            TG0=TG0[int(shifts[0])],
            TG1=TG1[int(shifts[1])],
            EPD0=bit(0.05),
            EPD1=bit(0.05),
            IPS=5,
            TBI0=bit(0.4),
            TBI1=bit(0.4),
            HPD0=bit(0.3),
            HPD1=bit(0.3),
        )
        row[c.C_SCTLR_EL1] = 0x30D0_0800 | r.SCTLR_EL1.encode(M=bit(0.92), C=1, I=1, WXN=bit(0.3))
        row[c.C_MAIR_EL1] = sum(int(b) << 8 * i for i, b in enumerate(rng.choice(MAIR_BYTES, 8)))
        level = int(rng.integers(1 if shifts[2] != 12 else 0, 3))
        low = (3 - level) * (int(shifts[2]) - 3) + int(shifts[2]) + 1
        bits = min(int(rng.integers(low, low + int(shifts[2]))), 44)
        row[c.C_VTTBR_EL2] = base()
        row[c.C_VTCR_EL2] = r.VTCR_EL2.encode(
            T0SZ=64 - max(bits, 25),
            SL0=2 - level if shifts[2] == 12 else 3 - level,
            TG0=TG0[int(shifts[2])],
            PS=5,
            RES1=1,
        )
        row[c.C_HCR_EL2] = 1 << 31 | r.HCR_EL2.encode(VM=bit(0.6))
        row[c.C_TTBR0_EL2] = base()
        row[c.C_TCR_EL2] = (
            1 << 31
            | 1 << 23
            | r.TCR_EL2.encode(
                T0SZ=int(rng.integers(16, 40)),
                TG0=TG0[int(rng.choice(SHIFTS))],
                PS=5,
                TBI=bit(0.4),
                HPD=bit(0.3),
            )
        )
        row[c.C_MAIR_EL2], row[c.C_SCTLR_EL2] = row[c.C_MAIR_EL1], row[c.C_SCTLR_EL1]
        row[c.C_PSTATE] = r.PSTATE.encode(PAN=bit(0.5))
    return rows


def random_batch(
    memory: Words, rng: np.random.Generator, operations: tuple[int, ...], contexts: int, queries: int
) -> Batch:
    """New tables in ``memory`` and ``queries`` for each of ``contexts`` rows."""
    fill_tables(memory, rng)
    rows = random_rows(rng, contexts)
    context_of = np.repeat(np.arange(contexts), queries)
    count = len(context_of)
    noise = rng.integers(0, 1 << 64, count, dtype=np.uint64)
    keep = rng.integers(20, 49, count).astype(np.uint64)
    va = noise & ((np.uint64(1) << keep) - np.uint64(1))
    upper = rng.random(count) < 0.4
    va[upper] |= np.uint64(0xFFFF << 48) | ~((np.uint64(1) << keep[upper]) - np.uint64(1))
    wild = rng.random(count) < 0.05
    va[wild] = noise[wild]
    return Batch(rows, context_of, rng.choice(np.array(operations), count), va)
