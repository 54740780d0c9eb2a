"""The debug walk lists the reads of the very translation it explains, and changes nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from shadowmmu.arch import account as acc
from shadowmmu.arch import answer as ans
from shadowmmu.arch.context import C_SCTLR_EL1, COLUMNS, EVERYTHING, ROW, context
from shadowmmu.arch.fault import (
    ACCESS_FLAG,
    ADDRESS_SIZE,
    EXTERNAL,
    EXTERNAL_WALK,
    NONE,
    PERMISSION,
    TRANSLATION,
)
from shadowmmu.arch.operation import ATOMIC_EL0, ATOMIC_EL1, NAMES
from shadowmmu.arch.trace import LONGEST, T_DESCRIPTOR, T_LEVEL, T_STAGE, TRACK
from shadowmmu.compiled import U64

FRAMES = 8
FRAME = 1 << 13
"""Words in a 64K frame; the frames stand at the start of memory and point at one another."""


def memory(rng: np.random.Generator) -> np.ndarray:
    """Frames of descriptors: most are tables or pages of other frames with generous permissions."""
    n = FRAMES * FRAME
    words = rng.integers(0, FRAMES, n).astype(np.uint64) << np.uint64(16)
    words |= np.uint64(0x7C3)
    kind = rng.random(n)
    words[kind < 0.35] &= ~np.uint64(2)
    words[kind < 0.05] &= ~np.uint64(1)
    words[rng.random(n) < 0.15] &= ~np.uint64(0x400)
    odd = rng.random(n) < 0.1
    words[odd] ^= rng.integers(0, 1 << 63, n).astype(np.uint64)[odd]
    return words


def registers(rng: np.random.Generator) -> np.ndarray:
    """A context whose tables are the frames: random sizes and granules, mostly legal."""
    row = rng.integers(0, 1 << 63, ROW).astype(np.uint64)
    row[len(COLUMNS) :] = 0
    base = context(
        TTBR0_EL1=int(rng.integers(FRAMES)) << 16,
        TTBR1_EL1=int(rng.integers(FRAMES)) << 16,
        VTTBR_EL2=int(rng.integers(FRAMES)) << 16,
        TTBR0_EL2=int(rng.integers(FRAMES)) << 16,
        TTBR1_EL2=int(rng.integers(FRAMES)) << 16,
        TCR_EL1=0x5_0000_0000
        | int(rng.integers(16, 40)) * 0x10001
        | int(rng.choice([0, 4, 8])) << 12
        | 2 << 30,
        TCR_EL2=0x5_0000 | int(rng.integers(16, 40)),
        VTCR_EL2=int(rng.choice([0x8005_0050, 0x8005_0090, 0x8005_4058, 0x8005_8058]))
        | int(rng.integers(16, 40)),
        HCR_EL2=int(rng.choice([0, 1, 1, 1 << 34, 1 << 34 | 1 << 27, 1 << 12])),
        SCTLR_EL1=int(rng.choice([0, 5, 5, 5])),
        SCTLR_EL2=5,
    )
    return row if rng.random() < 0.1 else base


def address(rng: np.random.Generator) -> int:
    """A virtual address of either half, short enough to be in range often."""
    low = int(rng.integers(1 << 20, 1 << 48)) >> int(rng.integers(0, 28))
    return low if rng.random() < 0.6 else (1 << 64) - 1 - low


@pytest.mark.parametrize("seed", range(4))
def test_the_reads_end_where_the_translation_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mem = memory(rng)
    before = mem.copy()
    steps = np.zeros((LONGEST, TRACK), np.uint64)
    seen: Counter[int] = Counter()
    for _ in range(800):
        row, va, operation = registers(rng), address(rng), int(rng.integers(len(NAMES)))
        facts, out = np.zeros(acc.FACTS, np.int64), np.zeros(ans.ANSWER, np.uint64)
        n = acc.recount(mem, row, EVERYTHING, operation, U64(va), steps, facts, out)
        packed = int(out[ans.A_FAULT])
        kind, level, stage = packed & 0xFF, (packed >> 8 & 0xFF) - 1, packed >> 16 & 0xFF
        read = [(int(step[T_STAGE]), int(step[T_LEVEL]) - 1) for step in steps[:n]]
        if kind == NONE:
            assert not read or int(steps[n - 1, T_DESCRIPTOR]) & 1
        elif kind not in (EXTERNAL, EXTERNAL_WALK) and any(s == stage for s, _ in read):
            last = [where for s, where in read if s == stage][-1]
            if last != level:
                assert level == 0, "only what is refused before a table is read has a level of its own"
                continue
        seen[kind] += 1
    assert all(seen[kind] for kind in (NONE, ADDRESS_SIZE, TRANSLATION, ACCESS_FLAG, PERMISSION)), seen
    assert np.array_equal(mem, before)


def test_no_step_where_stage_1_is_off_and_there_is_no_stage_2() -> None:
    row = context(HCR_EL2=0)
    assert int(row[C_SCTLR_EL1]) == 0
    facts, out = np.zeros(acc.FACTS, np.int64), np.zeros(ans.ANSWER, np.uint64)
    steps = np.zeros((LONGEST, TRACK), np.uint64)
    mem = np.zeros(1 << 12, np.uint64)
    assert acc.recount(mem, row, EVERYTHING, 0, U64(0x1234), steps, facts, out) == 0
    assert int(out[ans.A_PAR]) & 0xFFFFFFFFFF000 == 0x1000
    for operation in (ATOMIC_EL1, ATOMIC_EL0):
        out[:] = 0
        acc.recount(mem, row, EVERYTHING, operation, U64(1 << 20), steps, facts, out)
        assert int(out[ans.A_FAULT]) & 0xFF == EXTERNAL
