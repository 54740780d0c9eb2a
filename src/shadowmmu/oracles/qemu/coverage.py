"""Which architectural cases a batch reached: granule, start level, fault or leaf, level, regime and stage.

Works on plain arrays: context rows, queries, and the model's answers (QEMU does not tell leaf levels). What
could be reached is derived by rule from granules, sizes and block levels, so ``missing`` needs no list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np

from shadowmmu.arch import context as c
from shadowmmu.arch import registers as r
from shadowmmu.arch.answer import A_FAULT, A_LEVELS
from shadowmmu.arch.fault import (
    ACCESS_FLAG,
    ADDRESS_SIZE,
    EXTERNAL,
    EXTERNAL_WALK,
    NONE,
    PERMISSION,
    TRANSLATION,
)
from shadowmmu.arch.fault import NAMES as FAULT_NAMES
from shadowmmu.arch.operation import (
    AT_S1E2A,
    AT_S1E2R,
    AT_S1E2W,
    AT_S12E0W,
    AT_S12E1R,
    ATOMIC_EL0,
    EL2,
    EL10,
    EL20,
    FETCH_EL2,
    LOAD_EL1,
    LOAD_EL2,
)
from shadowmmu.arch.operation import NAMES as OPERATION_NAMES
from shadowmmu.compiled import U64, Counts, Words
from shadowmmu.oracles.qemu.layout import TABLES

REGIMES: Final = {EL10: "EL1&0", EL20: "EL2&0", EL2: "EL2"}
SHIFT_OF_TG0: Final = np.array([12, 16, 14, 12])
SHIFT_OF_TG1: Final = np.array([12, 14, 12, 16])
SHIFTS: Final = (12, 14, 16)
PS_52: Final = 6
MAX_CONCATENATED: Final = 4
BOTH_STAGES: Final = (*range(AT_S12E1R, AT_S12E0W + 1), *range(LOAD_EL1, ATOMIC_EL0 + 1))
_LEAST: Final = -4
"""Start levels of nonsensical sizes are clipped here."""


class Cell(NamedTuple):
    """One case. ``outcome``: fault kind, or NONE for a leaf at ``level``; ``walk``: of a stage-1 read."""

    regime: int
    stage: int
    page_shift: int
    wide: bool
    start: int
    outcome: int
    level: int
    walk: bool

    def __str__(self) -> str:
        bits = "52-bit" if self.wide else "48-bit"
        what = "leaf" if self.outcome == NONE else FAULT_NAMES[self.outcome]
        on = " on a stage 1 walk" if self.walk else ""
        return (
            f"{REGIMES[self.regime]} stage {self.stage}{on}, {1 << self.page_shift - 10}K {bits}, "
            f"start {self.start}: {what} at level {self.level}"
        )


class Reason(NamedTuple):
    """What could have made a Permission fault: the operation, its stage, and the controls in force."""

    operation: str
    stage: int
    pan: bool
    wxn: bool
    indirect: bool


def cells(rows: Words, context_of: Counts, operations: Counts, va: Words, answers: Words) -> Counter[Cell]:
    """How often each case was reached."""
    fault = answers[:, A_FAULT].astype(np.int64)
    kind, stage = fault & 0xFF, fault >> 16 & 0xFF
    level, walk = (fault >> 8 & 0xFF) - 1, fault >> 24 & 1
    regime = regimes(rows[context_of, c.C_HCR_EL2], operations)
    first = _stage1_geometry(rows[context_of], regime, va)
    second = _stage2_geometry(rows[context_of])
    passed = (kind == NONE) | (kind == EXTERNAL)  # an access to nowhere has been translated
    leaf1 = (answers[:, A_LEVELS] & U64(0xFF)).astype(np.int64) - 2
    leaf2 = (answers[:, A_LEVELS] >> U64(8) & U64(0xFF)).astype(np.int64) - 2
    found: Counter[Cell] = Counter()
    for number, geometry, leaf in ((1, first, leaf1), (2, second, leaf2)):
        failed = ~passed & (stage == number)
        reached = passed & (leaf > -2) & _walked(rows[context_of], operations, regime, number)
        for where, outcome, at in ((failed, kind, level), (reached, np.zeros_like(kind), leaf)):
            columns = (regime, np.full_like(kind, number), *geometry, outcome, at, walk)
            found += _tally(np.stack(columns, axis=1)[where])
    return found


def regimes(hcr: Words, operations: Counts) -> Counts:
    """The regime each operation uses. Source: Arm ARM D8.1."""
    host = hcr & r.HCR_EL2.mask("E2H") != 0
    general = hcr & r.HCR_EL2.mask("TGE") != 0
    own = np.isin(operations, (AT_S1E2R, AT_S1E2W, AT_S1E2A, *range(LOAD_EL2, FETCH_EL2 + 1)))
    return np.where(own, np.where(host, EL20, EL2), np.where(host & general, EL20, EL10))


def permission_reasons(
    rows: Words, context_of: Counts, operations: Counts, answers: Words
) -> Counter[Reason]:
    """Permission faults by what they could come from."""
    fault = answers[:, A_FAULT].astype(np.int64)
    mine = fault & 0xFF == PERMISSION
    used = rows[context_of[mine]]
    wxn = used[:, c.C_SCTLR_EL1] & r.SCTLR_EL1.mask("WXN") != 0
    pan = used[:, c.C_PSTATE] & r.PSTATE.mask("PAN") != 0
    indirect = used[:, c.C_TCR2_EL1] & r.TCR2_EL1.mask("PIE") != 0
    lines = zip(operations[mine], fault[mine] >> 16 & 0xFF, pan, wxn, indirect, strict=True)
    return Counter(Reason(OPERATION_NAMES[o], int(s), bool(p), bool(w), bool(i)) for o, s, p, w, i in lines)


def missing(seen: Iterable[Cell], wanted: Iterable[int]) -> list[Cell]:
    """The possible cells of the regimes ``wanted`` that are not among ``seen``, in order."""
    have = set(seen)
    return sorted(cell for regime in wanted for cell in possible(regime) if cell not in have)


def possible(regime: int) -> Iterator[Cell]:
    """Every case of a regime that the architecture allows and the oracle's tables can reach.

    Not reachable: stage 2 of a stage-1 read in an IPA space too small for the place of the tables.
    """
    for page_shift in SHIFTS:
        for wide in (False, True):
            for start in stage1_starts(page_shift, wide):
                for outcome, level in outcomes(page_shift, wide, start):
                    yield Cell(regime, 1, page_shift, wide, start, outcome, level, False)
            if regime != EL10:
                continue
            for start in stage2_starts(page_shift, wide):
                largest = page_shift + (4 - start) * (page_shift - 3) + MAX_CONCATENATED
                for outcome, level in outcomes(page_shift, wide, start):
                    yield Cell(regime, 2, page_shift, wide, start, outcome, level, False)
                    if outcome != NONE and largest >= TABLES.bit_length():
                        yield Cell(regime, 2, page_shift, wide, start, outcome, level, True)


def stage1_starts(page_shift: int, wide: bool) -> list[int]:
    """Start levels that legal input sizes give. Source: ``AArch64.S1StartLevel``, FEAT_TTST, FEAT_LVA."""
    top = 52 if wide or page_shift == 16 else 48
    sizes = range(17 if page_shift == 16 else 16, top + 1)
    return sorted({3 - (bits - 1 - page_shift) // (page_shift - 3) for bits in sizes})


def stage2_starts(page_shift: int, wide: bool) -> list[int]:
    """Start levels that SL0 and SL2 can name. Source: ``AArch64.S2InvalidSL``."""
    lowest = {12: -1, 14: 0, 16: 1}[page_shift] if wide else {12: 0, 14: 1, 16: 1}[page_shift]
    return list(range(lowest, 4))


def outcomes(page_shift: int, wide: bool, start: int) -> Iterator[tuple[int, int]]:
    """Kind (NONE for a leaf) and level of everything a walk from ``start`` may come to.

    52-bit output leaves no room for an Address size fault with the 64K granule, whose format needs it.
    """
    first_block = {12: 0 if wide else 1, 14: 1 if wide else 2, 16: 1}[page_shift]
    levels = range(start, 4)
    for level in levels:
        yield EXTERNAL_WALK, level
        if level >= first_block:
            yield from ((NONE, level), (ACCESS_FLAG, level), (PERMISSION, level))
    for level in sorted({0, *levels}):
        yield TRANSLATION, level
        if not (page_shift == 16 and wide):
            yield ADDRESS_SIZE, level


def _tally(lines: Counts) -> Counter[Cell]:
    if not len(lines):
        return Counter()
    unique, counts = np.unique(lines, axis=0, return_counts=True)
    found: Counter[Cell] = Counter()
    for line, count in zip(unique.tolist(), counts.tolist(), strict=True):
        regime, stage, shift, wide, start, outcome, level, walk = line
        found[Cell(regime, stage, shift, bool(wide), start, outcome, level, bool(walk))] += count
    return found


def _walked(
    rows: Words, operations: Counts, regime: Counts, stage: int
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which successes passed through a stage's tables; what is off reports level 0 as well."""
    hcr = rows[:, c.C_HCR_EL2]
    both = np.isin(operations, BOTH_STAGES) & (regime == EL10)
    second: np.ndarray[tuple[int], np.dtype[np.bool_]]
    second = both & (hcr & (r.HCR_EL2.mask("VM") | r.HCR_EL2.mask("DC")) != 0)
    if stage == 2:
        return second
    sctlr = np.where(regime == EL10, rows[:, c.C_SCTLR_EL1], rows[:, c.C_SCTLR_EL2])
    off = (regime == EL10) & (hcr & (r.HCR_EL2.mask("DC") | r.HCR_EL2.mask("TGE")) != 0)
    first: np.ndarray[tuple[int], np.dtype[np.bool_]] = (sctlr & r.SCTLR_EL1.mask("M") != 0) & ~off
    return first


def _stage1_geometry(rows: Words, regime: Counts, va: Words) -> tuple[Counts, Counts, Counts]:
    """Page shift, 52-bit format, start level of the half each VA is in."""
    alone = regime == EL2
    tcr = np.where(regime == EL10, rows[:, c.C_TCR_EL1], rows[:, c.C_TCR_EL2])
    upper = (va >> U64(55) & U64(1) != 0) & ~alone

    def field(name: str) -> Counts:
        return (tcr >> r.TCR_EL1.lsb(name) & r.TCR_EL1.low_mask(name)).astype(np.int64)

    shift = np.where(upper, SHIFT_OF_TG1[field("TG1")], SHIFT_OF_TG0[field("TG0")])
    bits = 64 - np.where(upper, field("T1SZ"), field("T0SZ"))
    size = np.where(alone, (tcr >> U64(16) & U64(7)).astype(np.int64), field("IPS"))
    ds = np.where(alone, tcr >> U64(32) & U64(1) != 0, field("DS") != 0)
    wide = np.where(shift == 16, size >= PS_52, ds)
    start = 3 - (bits - 1 - shift) // (shift - 3)
    return shift, wide.astype(np.int64), np.clip(start, _LEAST, 3)


def _stage2_geometry(rows: Words) -> tuple[Counts, Counts, Counts]:
    """Page shift, 52-bit format, start level of stage 2."""
    vtcr = rows[:, c.C_VTCR_EL2]

    def field(name: str) -> Counts:
        return (vtcr >> r.VTCR_EL2.lsb(name) & r.VTCR_EL2.low_mask(name)).astype(np.int64)

    shift = SHIFT_OF_TG0[field("TG0")]
    wide = np.where(shift == 16, field("PS") >= PS_52, field("DS") != 0)
    of_4k = np.where(field("SL0") == 3, 3, 2 - field("SL0"))
    of_4k = np.where((field("DS") != 0) & (field("SL2") != 0), -1, of_4k)
    return shift, wide.astype(np.int64), np.where(shift == 12, of_4k, 3 - field("SL0"))
