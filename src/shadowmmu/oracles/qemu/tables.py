"""Random translation tables that all granules and both stages can walk.

Frames full of descriptors that mostly point at each other, as tables, blocks and pages at once: whichever
granule, level and stage reads a word, it means something. And *roots*: start tables of stage 2 that are
random too, but map the window (``window``) one to one, for contexts that make real accesses.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from shadowmmu.compiled import U64, Words
from shadowmmu.oracles.qemu.layout import RAM, TABLES, TABLES_BYTES

FRAME: Final = 0x1_0000
"""Bytes of a frame: the largest granule."""
FRAMES: Final = 128
ROOTS: Final = TABLES + FRAMES * FRAME
VARIANTS: Final = 2
"""Roots of each granule and start level."""

WINDOW_LEVELS: Final = {12: (-1, 0, 1, 2), 14: (0, 1, 2), 16: (1, 2)}
"""Start levels from which the window can be reached by blocks."""
_SLOT: Final = {12: 0x1_0000, 14: 0x4_0000, 16: 0x10_0000}
"""Bytes of 16 concatenated tables, and so the alignment of a root."""


_BLOCK_LEVEL: Final = 2
_WINDOW_BLOCKS: Final = {12: 3, 14: 1, 16: 1}
"""Blocks of level 2 from RAM on that hold the window page and its tables."""
WINDOW_BLOCK: Final = 0x4FD
"""AF, read and write, executable, Normal Write-Back, with FWB as stage 1 has it."""
TABLE: Final = 3

_TWO_MEGABYTES: Final = U64(0x1F_FFFF)
_SH: Final = U64(0x300)
_LOWER: Final = U64(0x3FC)
_UPPER: Final = U64(0x7FF0 << 48)
_GENEROUS: Final = U64(0xC0)
_AF: Final = U64(0x400)
_DBM: Final = U64(1 << 51)
_WIDE: Final = U64(0xF300)
"""Address bits of the 52-bit formats."""
STRAY_BITS: Final = tuple(bit for bit in range(32, 52) if bit != 39)
"""Address bits that lead beyond RAM; bit 39 could lead to the PCIe window of an older QEMU."""


def fill_tables(memory: Words, rng: np.random.Generator) -> None:
    """Write new random frames and roots into ``TABLES``. 20 ns a word."""
    words = memory[TABLES >> 3 : (TABLES + TABLES_BYTES) >> 3]
    words[:] = _descriptors(rng, words.size)
    for page_shift, levels in WINDOW_LEVELS.items():
        for level in levels:
            for variant in range(VARIANTS):
                _map_window(memory, page_shift, level, root_of(page_shift, level, variant))


def root_of(page_shift: int, level: int, variant: int) -> int:
    """Physical address of the root of this granule and start level."""
    place = ROOTS
    for shift in (16, 14, 12):  # the largest alignment first
        levels = WINDOW_LEVELS[shift]
        if shift == page_shift:
            return place + (levels.index(level) * VARIANTS + variant) * 2 * _SLOT[shift]
        place += len(levels) * VARIANTS * 2 * _SLOT[shift]
    raise ValueError(f"no granule has 2**{page_shift} bytes")


def _descriptors(rng: np.random.Generator, count: int) -> Words:
    def some(share: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return rng.random(count, dtype=np.float32) < share

    noise = rng.integers(0, 1 << 63, count, dtype=np.uint64)
    words = U64(TABLES) + rng.integers(0, FRAMES, count, dtype=np.uint64) * U64(FRAME)
    block = some(0.34)
    words[block] &= ~_TWO_MEGABYTES
    words |= np.where(block, U64(1), U64(3))
    words |= noise & _LOWER
    words[some(0.8)] &= ~_SH  # with 52 bits, SH is part of the address
    words[some(0.5)] |= _GENEROUS
    words[some(0.93)] |= _AF
    words[some(0.25)] |= _DBM
    upper = some(0.4)
    words[upper] |= noise[upper] & _UPPER
    stray = some(0.05)
    words[stray] |= U64(1) << rng.choice(np.array(STRAY_BITS, np.uint64), np.count_nonzero(stray))
    wide = some(0.04)
    words[wide] |= noise[wide] & _WIDE
    words[some(0.06)] &= ~U64(1)
    return words


def _map_window(memory: Words, page_shift: int, level: int, root: int) -> None:
    """Let the tables from ``root`` at ``level`` map the window, and nothing else but what they mapped."""
    stride = page_shift - 3
    table, below, entries = root, root + _SLOT[page_shift], -1  # the root may be concatenated: all bits
    while level < _BLOCK_LEVEL:
        index = RAM >> (page_shift + stride * (3 - level)) & entries
        memory[(table >> 3) + index] = below | TABLE
        table, below, entries = below, below + (1 << page_shift), (1 << stride) - 1
        level += 1
    shift = page_shift + stride
    for number in range(RAM >> shift, (RAM >> shift) + _WINDOW_BLOCKS[page_shift]):
        memory[(table >> 3) + (number & entries)] = (number << shift) | WINDOW_BLOCK
