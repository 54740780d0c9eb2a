"""Random registers and queries: near enough to legal that most translate, wild enough that every rule is hit.

    batch = random_batch(oracle.memory, Recipe(accesses=True), seed=7, contexts=512, queries=256)

Vectorised; the same seed gives the same batch. What could not be compared is not made: every address that
a walk may read has bits 30..28 set (``layout``), so does every VA of a real access that is large enough;
fetches come without tags under TBI, since a branch strips them; there are no atomics under permission
indirection, since QEMU makes one of a load and a store through the TLB entry of the load, which says
nothing of nDirty; tables are little-endian; reserved encodings of MAIR and PIR are left out. Illegal
values of TxSZ, SL0, DS, PS, granules and addresses are not left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from shadowmmu.arch import context as c
from shadowmmu.arch import registers as r
from shadowmmu.arch.fields import Layout
from shadowmmu.arch.operation import (
    AT_S1E1A,
    AT_S1E1R,
    AT_S1E1WP,
    AT_S1E2A,
    AT_S1E2R,
    AT_S1E2W,
    ATOMIC_EL0,
    ATOMIC_EL1,
    FETCH_EL0,
    FETCH_EL1,
    LOAD_EL1,
)
from shadowmmu.compiled import U64, Counts, Words
from shadowmmu.oracles.qemu import tables
from shadowmmu.oracles.qemu.layout import ACCESS_CODE, RAM, TABLES, VBAR_EL1, WINDOW
from shadowmmu.oracles.qemu.window import CODE, INPUT_BITS, PERMISSION_INDEX, window

MAIR_BYTES: Final = (
    *(0x00, 0x04, 0x08, 0x0C, 0x44, 0x4F, 0xF4, 0xFF),
    *(0xBB, 0xAA, 0xEE, 0xDD, 0x99, 0xBF, 0xFB, 0xB4),
)
PIR_FIELDS: Final = (0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 12, 14)
READ_EXECUTE: Final = 3
SIZES: Final = (0, 0, 1, 1, 2, 2, 3, 4, 5, 5, 5, 6, 6, 6, 6)
"""Codes of (I)PS, 48 and 52 bits more often."""
SHIFTS: Final = (12, 14, 16)
TG0: Final = {12: 0, 14: 2, 16: 1}
TG1: Final = {12: 2, 14: 1, 16: 3}
SCTLR_RES1: Final = 0x30D0_0800
TCR_EL2_RES1: Final = 1 << 31 | 1 << 23
HCR_RW: Final = 1 << 31
LOWEST_BITS: Final = 16
NARROW_IPA: Final = 31
"""An IPA space of fewer bits does not reach the tables: stage 1 off is the way into it."""


@dataclass(frozen=True)
class Recipe:
    """What kind of batch: for a stub at EL3 or EL2, AT or real accesses, hardware updates or none."""

    el3: bool = False
    accesses: bool = False
    updates: bool = False
    wide: bool = True
    """DS may be set (FEAT_LPA2)."""
    indirect: bool = True
    """FEAT_S1PIE may be used."""
    newer: bool = True
    """FEAT_PAN3 may be used."""
    unchecked: bool = True
    """The A forms of AT, which look at no permission (FEAT_ATS1A), may be used."""


@dataclass(frozen=True)
class Batch:
    """Context rows, and for each query the number of its row, its operation and its VA."""

    recipe: Recipe
    rows: Words
    context_of: Counts
    operations: Counts
    va: Words

    def __len__(self) -> int:
        return len(self.va)


def random_batch(memory: Words, recipe: Recipe, *, seed: int, contexts: int, queries: int) -> Batch:
    """New tables in ``memory``, ``contexts`` rows and ``queries`` of each."""
    rng = np.random.default_rng(seed)
    tables.fill_tables(memory, rng)
    draw = Draw(rng, contexts)
    rows, tested = random_rows(draw, recipe)
    return random_queries(rng, recipe, rows, tested, queries)


class Draw:
    """One random value for each of ``count`` rows."""

    def __init__(self, rng: np.random.Generator, count: int) -> None:
        self.rng = rng
        self.count = count

    def below(self, high: int | Words) -> Words:
        """0 .. high - 1."""
        return self.rng.integers(0, high, self.count, dtype=np.uint64)

    def between(self, low: Counts, high: Counts) -> Counts:
        """low .. high, both included."""
        return self.rng.integers(low, high + 1, self.count, dtype=np.int64)

    def chance(self, share: float) -> npt.NDArray[np.bool_]:
        """True for this share of the rows."""
        return self.rng.random(self.count) < share

    def pick(self, values: Sequence[int]) -> Counts:
        """One of ``values``."""
        return self.rng.choice(np.array(values, np.int64), self.count)

    def frame(self) -> Words:
        """The address of a table: a frame, at times a small table inside one."""
        base = U64(TABLES) + self.below(tables.FRAMES) * U64(tables.FRAME)
        return base + np.where(self.chance(0.3), self.below(2048) * U64(32), U64(0))

    def fields(self, layout: Layout, **values: npt.ArrayLike) -> Words:
        """Words with these fields; values too large for a field lose their upper bits."""
        words = np.zeros(self.count, np.uint64)
        for name, value in values.items():
            field = layout[name]
            inside = np.asarray(value).astype(np.uint64) & U64((1 << field.width) - 1)
            words |= inside << U64(field.lsb)
        return words


def random_rows(draw: Draw, recipe: Recipe) -> tuple[Words, Counts]:
    """Context rows, and for each the half of the VA space that is asked about (-1: both)."""
    rows = np.zeros((draw.count, c.ROW), np.uint64)
    rows[:, c.C_TCR_EL1] = _tcr(draw, recipe)
    for column in (c.C_TTBR0_EL1, c.C_TTBR1_EL1, c.C_TTBR0_EL2, c.C_TTBR1_EL2):
        rows[:, column] = _ttbr(draw)
    rows[:, c.C_SCTLR_EL1] = _sctlr(draw, recipe)
    rows[:, c.C_SCTLR_EL2] = _sctlr(draw, recipe)
    for column in (c.C_MAIR_EL1, c.C_MAIR_EL2):
        rows[:, column] = draw.rng.choice(np.array(MAIR_BYTES, np.uint8), (draw.count, 8)).view("<u8").ravel()
    _stage2(draw, recipe, rows)
    if recipe.el3:
        _el2_regime(draw, recipe, rows)
    if recipe.indirect:
        _indirection(draw, rows)
    rows[:, c.C_PSTATE] = draw.fields(r.PSTATE, PAN=draw.below(2))
    if not recipe.accesses:
        return rows, np.full(draw.count, -1)
    return rows, _window(draw, rows)


def _input_bits(draw: Draw, shift: Counts, wide: npt.NDArray[np.bool_]) -> Counts:
    """Input sizes of stage 1: a start level first, then any size that starts there; some out of range."""
    stride = shift - 3
    top = np.where(wide | (shift == 16), 52, 48)
    highest = 3 - (top - 1 - shift) // stride
    level = draw.between(highest, np.full(draw.count, 3))
    low = np.maximum(shift + (3 - level) * stride + 1, LOWEST_BITS + (shift == 16))
    bits = draw.between(low, np.minimum(low + stride - 1, top))
    wild = draw.between(np.full(draw.count, 1), np.full(draw.count, 64))
    return np.where(draw.chance(0.03), wild, bits)


def _tcr(draw: Draw, recipe: Recipe) -> Words:
    shift0, shift1 = draw.pick(SHIFTS), draw.pick(SHIFTS)
    wide = draw.chance(0.5) & recipe.wide
    tg0 = np.vectorize(TG0.get)(shift0)
    tg1 = np.vectorize(TG1.get)(shift1)
    ha = draw.chance(0.7 * recipe.updates)
    return draw.fields(
        r.TCR_EL1,
        T0SZ=64 - _input_bits(draw, shift0, wide),
        T1SZ=64 - _input_bits(draw, shift1, wide),
        TG0=np.where(draw.chance(0.01), 3, tg0),
        TG1=np.where(draw.chance(0.01), 0, tg1),
        EPD0=draw.chance(0.03),
        EPD1=draw.chance(0.03),
        SH0=draw.pick((0, 2, 3)),
        SH1=draw.pick((0, 2, 3)),
        IRGN0=draw.below(4),
        ORGN1=draw.below(4),
        A1=draw.below(2),
        IPS=draw.pick(SIZES),
        AS=draw.below(2),
        TBI0=draw.chance(0.4),
        TBI1=draw.chance(0.4),
        HA=ha,
        HD=draw.chance(0.7) & recipe.updates,
        HPD0=draw.chance(0.4),
        HPD1=draw.chance(0.4),
        E0PD0=draw.chance(0.07),
        E0PD1=draw.chance(0.07),
        DS=wide,
    )


def _ttbr(draw: Draw) -> Words:
    """A start table; at times with bits 5:2, address bits of the 52-bit formats, or beyond RAM."""
    high = np.where(draw.chance(0.05), draw.below(64) & U64(0x3C), U64(0))
    stray = U64(1) << draw.pick([bit for bit in tables.STRAY_BITS if bit < 48]).astype(np.uint64)
    beyond = np.where(draw.chance(0.08), stray, U64(0))
    return draw.frame() | high | beyond | draw.below(1 << 16) << U64(48) | draw.below(2)


def _sctlr(draw: Draw, recipe: Recipe) -> Words:
    return U64(SCTLR_RES1) | draw.fields(
        r.SCTLR_EL1,
        M=draw.chance(0.93),
        C=draw.chance(0.93),
        I=1,
        WXN=draw.chance(0.4),
        EPAN=draw.chance(0.5) & recipe.newer,
    )


def _stage2(draw: Draw, recipe: Recipe, rows: Words) -> None:
    """VTTBR, VTCR and HCR; a narrow IPA space goes with stage 1 off."""
    shift = draw.pick(SHIFTS)
    wide = draw.chance(0.5) & recipe.wide
    highest = np.where(draw.chance(0.05), 0, np.select([shift == 12, shift == 14], [-1, 0], 1))
    level = draw.between(highest, np.full(draw.count, 3))
    wide |= (level < np.where(shift == 12, 0, 1)) & draw.chance(0.9) & recipe.wide
    sl0 = np.where(shift == 12, np.select([level == 3, level == -1], [3, 0], 2 - level), 3 - level)
    low = (3 - level) * (shift - 3) + shift + 1
    bits = np.minimum(draw.between(low, low + shift), np.where(wide | (shift == 16), 52, 48))
    wild = draw.between(np.full(draw.count, 1), np.full(draw.count, 63))
    bits = np.where(draw.chance(0.04), wild, bits)
    tg0 = np.vectorize(TG0.get)(shift)
    rows[:, c.C_VTTBR_EL2] = _ttbr(draw)
    rows[:, c.C_VTCR_EL2] = draw.fields(
        r.VTCR_EL2,
        T0SZ=64 - bits,
        SL0=np.where(draw.chance(0.02), draw.pick((0, 1, 2, 3)), sl0),
        TG0=np.where(draw.chance(0.01), 3, tg0),
        SH0=draw.pick((0, 2, 3)),
        PS=draw.pick(SIZES),
        VS=draw.below(2),
        HA=draw.chance(0.7) & recipe.updates,
        HD=draw.chance(0.7) & recipe.updates,
        RES1=1,
        DS=wide,
        SL2=np.where(draw.chance(0.02), 1, level == -1),
    )
    rows[:, c.C_HCR_EL2] = U64(HCR_RW) | draw.fields(
        r.HCR_EL2,
        VM=draw.chance(0.75),
        PTW=draw.chance(0.15),
        DC=draw.chance(0.04),
        CD=draw.chance(0.06),
        FWB=draw.chance(0.5),
    )
    off = (bits < NARROW_IPA) & draw.chance(0.7)
    rows[off, c.C_SCTLR_EL1] &= ~r.SCTLR_EL1.mask("M")


def _el2_regime(draw: Draw, recipe: Recipe, rows: Words) -> None:
    """TCR_EL2 in its two forms, and HCR_EL2.{E2H, TGE}."""
    host = draw.chance(0.5)
    general = np.where(host, draw.chance(0.5), draw.chance(0.05))
    rows[:, c.C_HCR_EL2] |= draw.fields(r.HCR_EL2, E2H=host, TGE=general)
    like_el1 = _tcr(draw, recipe)

    def of(name: str) -> Words:
        return like_el1 >> r.TCR_EL1.lsb(name) & r.TCR_EL1.low_mask(name)

    alone = U64(TCR_EL2_RES1) | draw.fields(
        r.TCR_EL2,
        T0SZ=of("T0SZ"),
        SH0=of("SH0"),
        TG0=of("TG0"),
        PS=of("IPS"),
        TBI=of("TBI0"),
        HA=of("HA"),
        HD=of("HD"),
        HPD=of("HPD0"),
        DS=of("DS"),
    )
    rows[:, c.C_TCR_EL2] = np.where(host, like_el1, alone)


def _indirection(draw: Draw, rows: Words) -> None:
    """Permission indirection for a quarter of the rows; HCRX_EL2 at times hides it from EL1."""
    for column in (c.C_PIR_EL1, c.C_PIRE0_EL1, c.C_PIR_EL2, c.C_PIRE0_EL2):
        nibbles = draw.rng.choice(np.array(PIR_FIELDS, np.uint64), (draw.count, 16))
        rows[:, column] = (nibbles << (np.arange(16, dtype=np.uint64) * U64(4))).sum(axis=1, dtype=np.uint64)
    rows[:, c.C_TCR2_EL1] = draw.fields(r.TCR2_EL1, PIE=draw.chance(0.25))
    rows[:, c.C_TCR2_EL2] = draw.fields(r.TCR2_EL1, PIE=draw.chance(0.25))
    rows[:, c.C_HCRX_EL2] = draw.fields(r.HCRX_EL2, TCR2En=draw.chance(0.95))


def _put(words: Words, layout: Layout, name: str, value: npt.ArrayLike) -> Words:
    """The words with one field replaced."""
    inside = np.asarray(value).astype(np.uint64) << layout.lsb(name)
    return (words & ~layout.mask(name)) | inside


def _window(draw: Draw, rows: Words) -> Counts:
    """Make rows fit for real accesses, with a window in one half; returns the other, the tested one."""
    tested = draw.below(2).astype(np.int64)
    upper = tested == 0  # where the window is
    shift = draw.pick(SHIFTS)
    vectors = np.zeros(draw.count, np.uint64)
    tcr = rows[:, c.C_TCR_EL1]
    for page_shift in SHIFTS:
        for half in (0, 1):
            here = (shift == page_shift) & (upper == (half == 1))
            view = window(page_shift, half)
            rows[here, c.C_TTBR1_EL1 if half else c.C_TTBR0_EL1] = view.ttbr
            vectors[here] = view.vectors
            fields = ("T1SZ", "TG1", "EPD1", "E0PD1") if half else ("T0SZ", "TG0", "EPD0", "E0PD0")
            codes = (64 - INPUT_BITS[page_shift], (TG1 if half else TG0)[page_shift], 0, 0)
            for name, code in zip(fields, codes, strict=True):
                tcr[here] = _put(tcr[here], r.TCR_EL1, name, code)
    off = (rows[:, c.C_SCTLR_EL1] & r.SCTLR_EL1.mask("M") == 0) | (
        rows[:, c.C_HCR_EL2] & r.HCR_EL2.mask("DC") != 0
    )
    vectors[off] = WINDOW
    rows[:, VBAR_EL1] = vectors
    rows[:, ACCESS_CODE] = vectors + U64(CODE)
    for column in (c.C_PIR_EL1, c.C_PIRE0_EL1):
        nibble = U64(4 * PERMISSION_INDEX)
        rows[:, column] = rows[:, column] & ~(U64(15) << nibble) | U64(READ_EXECUTE) << nibble
    _reachable_stage2(draw, rows)
    return tested


def _reachable_stage2(draw: Draw, rows: Words) -> None:
    """A stage 2 that maps the window, for all rows: from 32 bits on, with a root made for it."""
    shift = draw.pick(SHIFTS)
    vtcr = rows[:, c.C_VTCR_EL2]
    wide = vtcr & r.VTCR_EL2.mask("DS") != 0
    for page_shift in SHIFTS:
        for level in tables.WINDOW_LEVELS[page_shift]:
            variant = draw.below(tables.VARIANTS).astype(np.int64)
            mine = (shift == page_shift) & (draw.pick(tables.WINDOW_LEVELS[page_shift]) == level)
            needs_wide = level < (0 if page_shift == 12 else 1)
            mine &= wide if needs_wide else np.full(draw.count, True)
            low = max((3 - level) * (page_shift - 3) + page_shift + 1, 32)
            top = np.where(wide | (page_shift == 16), 52, 48)
            high = np.minimum((3 - level) * (page_shift - 3) + 2 * page_shift + 1, top)
            bits = draw.between(np.minimum(low, high), high)
            sl0 = {3: 3, -1: 0}.get(level, 2 - level) if page_shift == 12 else 3 - level
            roots = np.array(
                [tables.root_of(page_shift, level, v) for v in range(tables.VARIANTS)], np.uint64
            )
            rows[mine, c.C_VTTBR_EL2] = roots[variant[mine]]
            for name, code in (
                ("T0SZ", 64 - bits),
                ("SL0", np.full(draw.count, sl0)),
                ("TG0", np.full(draw.count, TG0[page_shift])),
                ("SL2", np.full(draw.count, int(level == -1))),
            ):
                vtcr[mine] = _put(vtcr[mine], r.VTCR_EL2, name, code[mine])
            shift[mine] = 0  # done
    rest = shift != 0
    rows[rest, c.C_HCR_EL2] &= ~(r.HCR_EL2.mask("VM") | r.HCR_EL2.mask("DC"))
    off = rest & (rows[:, VBAR_EL1] == U64(WINDOW))
    rows[off, c.C_SCTLR_EL1] &= ~r.SCTLR_EL1.mask("M")


def random_queries(
    rng: np.random.Generator, recipe: Recipe, rows: Words, tested: Counts, queries: int
) -> Batch:
    """``queries`` operations on random VAs under each row, row after row."""
    context_of = np.repeat(np.arange(len(rows)), queries)
    draw = Draw(rng, len(context_of))
    operations = draw.pick(operations_of(recipe))
    indirect = rows[context_of, c.C_TCR2_EL1] & r.TCR2_EL1.mask("PIE") != 0
    atomic = (operations == ATOMIC_EL1) | (operations == ATOMIC_EL0)
    operations = np.where(atomic & indirect, operations - ATOMIC_EL1 + LOAD_EL1, operations)
    half = tested[context_of]
    half = np.where(half < 0, draw.below(2).astype(np.int64), half)
    host = rows[:, c.C_HCR_EL2] & r.HCR_EL2.mask("E2H") != 0
    second = (operations == AT_S1E2R) | (operations == AT_S1E2W) | (operations == AT_S1E2A)
    alone = second & ~host[context_of] & draw.chance(0.95)
    half = np.where(alone, 0, half)
    registers = _half_registers(rows)
    which = context_of * 4 + half + 2 * second
    va = _random_va(draw, registers[0][which], registers[1][which], half == 1)
    tbi = registers[2][which]
    fetch = (operations == FETCH_EL0) | (operations == FETCH_EL1)
    tagged = tbi & ~fetch & draw.chance(0.5)
    va = np.where(tagged, va ^ draw.below(256) << U64(56), va)
    if recipe.accesses:
        canonical = (va & U64((1 << 56) - 1)) | np.where(half == 1, U64(0xFF << 56), U64(0))
        va = np.where(fetch & tbi, canonical, va)
        reach = (registers[0][which] > RAM.bit_length()) | (registers[1][which] != 0)
        va = np.where(reach, va | U64(RAM), va) & ~U64(7)
        bit55 = U64(1 << 55)
        va = np.where(half == 1, va | bit55, va & ~bit55)
    return Batch(recipe, rows, context_of, operations, va)


def operations_of(recipe: Recipe) -> list[int]:
    """The operations a recipe asks for."""
    if recipe.accesses:
        return list(range(LOAD_EL1, ATOMIC_EL0 + 1))
    first = [*range(AT_S1E1R, AT_S1E1WP + 1), *[AT_S1E1A] * recipe.unchecked]
    if not recipe.el3:
        return first
    return [*first, *[AT_S1E2R, AT_S1E2W] * 5, *[AT_S1E2A] * recipe.unchecked]


def _half_registers(rows: Words) -> tuple[Counts, Counts, npt.NDArray[np.bool_]]:
    """Input bits, whether stage 1 is off (then: bits of the IPA space, else 0), and TBI, by row, regime
    and half: index = row * 4 + 2 * (EL2's regime) + half.
    """
    bits = np.empty((len(rows), 4), np.int64)
    flat = np.zeros((len(rows), 4), np.int64)
    tbi = np.empty((len(rows), 4), np.bool_)
    tcr1, tcr2, hcr = rows[:, c.C_TCR_EL1], rows[:, c.C_TCR_EL2], rows[:, c.C_HCR_EL2]
    host = hcr & r.HCR_EL2.mask("E2H") != 0
    for regime, tcr in enumerate((tcr1, tcr2)):
        for half, (size, ignore) in enumerate((("T0SZ", "TBI0"), ("T1SZ", "TBI1"))):
            code = tcr >> r.TCR_EL1.lsb(size) & r.TCR_EL1.low_mask(size)
            bits[:, 2 * regime + half] = 64 - code.astype(np.int64)
            tbi[:, 2 * regime + half] = tcr & r.TCR_EL1.mask(ignore) != 0
    tbi[~host, 2] = tcr2[~host] & r.TCR_EL2.mask("TBI") != 0
    off = (rows[:, c.C_SCTLR_EL1] & r.SCTLR_EL1.mask("M") == 0) | (
        hcr & (r.HCR_EL2.mask("DC") | r.HCR_EL2.mask("TGE")) != 0
    )
    space = 64 - (rows[:, c.C_VTCR_EL2] & r.VTCR_EL2.low_mask("T0SZ")).astype(np.int64)
    flat[off, :2] = space[off, None]
    return np.clip(np.where(flat != 0, flat, bits), 12, 64).ravel(), flat.ravel(), tbi.ravel()


def _random_va(draw: Draw, bits: Counts, flat: Counts, upper: npt.NDArray[np.bool_]) -> Words:
    """VAs inside the input size, sign-extended in the upper half; 5 % anywhere."""
    noise = draw.rng.integers(0, 1 << 64, draw.count, dtype=np.uint64)
    narrow = np.where(
        draw.chance(0.3) & (bits > 40), draw.between(np.full(draw.count, 32), np.maximum(bits, 32)), bits
    )
    inside = noise & (U64(1) << np.minimum(narrow, 63).astype(np.uint64)) - U64(1)
    extension = U64(0) - (U64(1) << np.minimum(bits, 63).astype(np.uint64))
    va = np.where(upper & (flat == 0), inside | extension, inside)
    return np.where(draw.chance(0.05), noise, va)
