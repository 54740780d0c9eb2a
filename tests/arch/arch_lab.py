"""What the architecture's tests share: plain-integer regimes and walks, and a walker nobody optimised."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from shadowmmu.arch import fault
from shadowmmu.arch.regime import (
    OA48,
    Regime,
    output_address,
    root_base,
    stage2_legal,
    stage2_regime,
    start_entries_shift,
)
from shadowmmu.arch.registers import VTCR_EL2
from shadowmmu.arch.stage2 import stage2_fault, stage2_walk
from shadowmmu.compiled import U64, kernel

GRANULES = {"4K": 12, "64K": 16, "16K": 14}
"""log2 of the granule by its name; the position in this table is the TG0 code."""
TG0 = {name: code for code, name in enumerate(GRANULES)}
FIRST_BLOCK = {"4K": 1, "64K": 2, "16K": 2}
OUTPUT = {0: 32, 1: 36, 2: 40, 3: 42, 4: 44, 5: 48, 6: 52}
"""PS codes."""
GRANULE_4K = GRANULES["4K"]
VALID, TABLE, AF = 1, 2, 1 << 10
ADDRESS = 0x0000_FFFF_FFFF_F000


def vtcr(granule: str, t0sz: int, sl0: int, ps: int = 5) -> int:
    """VTCR_EL2 with these fields."""
    return VTCR_EL2.encode(TG0=TG0[granule], T0SZ=t0sz, SL0=sl0, PS=ps)


class Decoded(NamedTuple):
    """A regime and what the room derives from it, as plain numbers."""

    page_shift: int
    stride: int
    start_level: int
    ia_bits: int
    oa_bits: int
    entries_shift: int
    legal: bool
    base: int


@kernel
def _decode(vtcr_el2: Any, pa_bits: Any, vttbr: Any, out: Any) -> None:
    r = stage2_regime(vtcr_el2, pa_bits)
    out[0] = r.page_shift
    out[1] = r.stride
    out[2] = r.start_level
    out[3] = r.ia_bits
    out[4] = r.oa_bits
    out[5] = start_entries_shift(r)
    out[6] = stage2_legal(r, vtcr_el2, pa_bits, False, False)
    if out[6] != 0:
        out[7] = root_base(r, vttbr)


def decode(vtcr_el2: int, pa_bits: int = 48, vttbr: int = 0) -> Decoded:
    """What VTCR_EL2 means on a machine with ``pa_bits``, and where VTTBR_EL2 then points."""
    out = np.zeros(8, np.int64)
    _decode(U64(vtcr_el2), pa_bits, U64(vttbr), out)
    *numbers, legal, base = out.tolist()
    return Decoded(*numbers, bool(legal), base)


class Walked(NamedTuple):
    """The outcome of a walk as plain numbers; ``pa`` is -1 after a fault."""

    fault: str
    level: int
    pa: int = -1
    descriptor: int = 0
    at: int = 0
    """Physical address of the last descriptor read."""


@kernel
def _walk(mem: Any, numbers: Any, vttbr: Any, ipa: Any, out: Any) -> None:
    blocks = 1 if numbers[0] == GRANULE_4K else 2
    r = Regime(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], OA48, blocks)
    w = stage2_walk(mem, r, root_base(r, vttbr), ipa, False)
    kind = stage2_fault(w, fault.READ)
    out[0] = U64(kind if kind != fault.PERMISSION else fault.NONE)
    out[1] = U64(w.level)
    out[2] = w.descriptor
    out[3] = w.word
    if out[0] == U64(fault.NONE):
        out[4] = output_address(r, w.descriptor, w.level, ipa)


def walk(mem: np.ndarray, decoded: Decoded, vttbr: int, ipa: int) -> Walked:
    """``stage2_walk`` over ``mem``."""
    numbers, out = np.array(decoded[:5], np.int64), np.zeros(5, np.uint64)
    _walk(mem, numbers, U64(vttbr), U64(ipa), out)
    kind, level, descriptor, word, pa = out.tolist()
    return Walked(fault.NAMES[kind], level, pa if kind == fault.NONE else -1, descriptor, word * 8)


def naive_legal(granule: str, t0sz: int, sl0: int, pa_bits: int) -> bool:
    """``AArch64.S2InvalidSL`` and the start-size check, from the Arm ARM's table of start levels."""
    level = {"4K": [2, 1, 0, None], "16K": [3, 2, 1, None], "64K": [3, 2, 1, None]}[granule][sl0]
    needs_more_than = {("4K", 0): 42, ("16K", 1): 40, ("64K", 1): 42}
    if not 16 <= t0sz <= 39:
        return False
    if level is None or pa_bits <= needs_more_than.get((granule, level), 0) or 64 - t0sz > pa_bits:
        return False
    per_table = 2 ** (GRANULES[granule] - 3)
    entries = 2 ** (64 - t0sz) / (2 ** GRANULES[granule] * per_table ** (3 - level))
    return 2 <= entries <= 16 * per_table


def naive_walk(
    words: dict[int, int], granule: str, level: int, ia: int, oa: int, base: int, ipa: int
) -> Walked:
    """Stage 2 by the book: recursive, over a dictionary of descriptors by physical address."""
    page = 2 ** GRANULES[granule]
    per_table = page // 8

    def visit(table: int, level: int, entries: int) -> Walked:
        covers = page * per_table ** (3 - level)
        at = table + 8 * (ipa // covers % entries)
        entry = words.get(at, 0)
        output = entry & ADDRESS
        if not entry & VALID:
            return Walked("translation", level, -1, entry, at)
        if level < 3 and entry & TABLE:
            if output // page * page >= 2**oa:
                return Walked("address size", level, -1, entry, at)
            return visit(output // page * page, level + 1, per_table)
        wrong_type = level == 3 and not entry & TABLE
        if wrong_type or level < FIRST_BLOCK[granule]:
            return Walked("translation", level, -1, entry, at)
        if output >= 2**oa:
            return Walked("address size", level, -1, entry, at)
        if not entry & AF:
            return Walked("access flag", level, -1, entry, at)
        return Walked("none", level, output // covers * covers + ipa % covers, entry, at)

    if ipa >= 2**ia:
        return Walked("translation", 0)
    if base >= 2**oa:
        return Walked("address size", 0)
    return visit(base, level, 2**ia // (page * per_table ** (3 - level)))
