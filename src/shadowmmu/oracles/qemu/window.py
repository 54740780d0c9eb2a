"""The window: one page with EL1 vectors and the instructions that make loads, stores and atomics.

A real access from EL1 or EL0 needs code to run there. It stands in a page of its own that is mapped in the
half of the VA space that is not under test, by tables with nothing but that page; stage 2 must map it, and
those tables, one to one. The page is readable and executable, writable by nobody, so neither WXN nor the
rule against executing what EL0 may write takes it away.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from shadowmmu.compiled import Words
from shadowmmu.oracles.qemu.layout import STUB, WINDOW, WINDOW_TABLES

INPUT_BITS: Final = {12: 39, 14: 36, 16: 42}
"""Size of the window's half by granule: legal with and without 52-bit addresses."""
CODE: Final = 0x800
"""Offset of the access code, behind the vectors."""
PAGE: Final = 0x4C3
"""A page: AF, read-only at EL1 and EL0 (index 1 of PIR with stage-1 permission indirection), MAIR 0."""
PERMISSION_INDEX: Final = 1
TABLE: Final = 3
HVC_1: Final = 0xD400_0022
_PAGE_BYTES: Final = 0x1_0000
_CODE_WORDS: Final = 6
_TABLES_OF: Final = {12: 0, 14: 0x2_0000, 16: 0x8_0000}


class Window(NamedTuple):
    """What a context needs for its window half: TTBR, TxSZ, and the VA of the vectors."""

    ttbr: int
    txsz: int
    vectors: int


def window(page_shift: int, half: int) -> Window:
    """The window of this granule in the lower (0) or upper (1) half of the VA space."""
    bits = INPUT_BITS[page_shift]
    vectors = (1 << 64) - (1 << bits) if half else 0
    return Window(WINDOW_TABLES + _TABLES_OF[page_shift], 64 - bits, vectors)


def install_window(memory: Words) -> None:
    """Write the page, with the access code of the stub in ``memory``, and the tables of all granules."""
    page = memory[WINDOW >> 3 : (WINDOW + _PAGE_BYTES) >> 3].view("<u4")
    page[:] = HVC_1
    stub = memory[STUB >> 3 : WINDOW >> 3].view("<u4")
    code = int(stub[1]) >> 2
    page[CODE >> 2 : (CODE >> 2) + _CODE_WORDS] = stub[code : code + _CODE_WORDS]
    for page_shift, bits in INPUT_BITS.items():
        table = WINDOW_TABLES + _TABLES_OF[page_shift]
        start = 3 - (bits - 1 - page_shift) // (page_shift - 3)
        for _ in range(start, 3):
            memory[table >> 3] = np.uint64((table + (1 << page_shift)) | TABLE)
            table += 1 << page_shift
        memory[table >> 3] = np.uint64(WINDOW | PAGE)
