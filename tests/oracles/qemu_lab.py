"""QEMU for the tests: where it is, and the smallest machine state that translates something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shadowmmu.compiled import Words
from shadowmmu.errors import InputError
from shadowmmu.oracles.qemu.driver import QemuOracle
from shadowmmu.oracles.qemu.install import find_qemu
from shadowmmu.oracles.qemu.layout import ACCESS_CODE, ROW, TABLES, VBAR_EL1
from shadowmmu.oracles.qemu.window import CODE, window

PAGE_RW = 0x443
PAGE_RO = 0x4C3
READABLE, READ_ONLY, UNMAPPED = 0x0, 0x1000, 0x2000
"""VAs of ``small_space``."""


def qemu_or_none() -> Path | None:
    """The QEMU of this machine, if it has one."""
    try:
        return find_qemu()
    except InputError:
        return None


needs_qemu = pytest.mark.skipif(
    qemu_or_none() is None, reason="no qemu-system-aarch64: set SHADOWMMU_QEMU or install it"
)


@pytest.fixture(scope="module")
def oracle() -> Iterator[QemuOracle]:
    with QemuOracle() as running:
        yield running


def small_space(memory: Words) -> Words:
    """A context whose lower half maps two pages, one of them read-only; the window is the upper half."""
    pages = TABLES + 0x1000
    memory[TABLES >> 3] = pages | 3
    memory[pages >> 3] = (TABLES + 0x2000) | 3
    last = (TABLES + 0x2000) >> 3
    memory[last : last + 3] = ((TABLES + 0x5000) | PAGE_RW, (TABLES + 0x6000) | PAGE_RO, 0)
    view = window(12, 1)
    row = np.zeros((1, ROW), np.uint64)
    row[0, :5] = (TABLES, view.ttbr, 25 | view.txsz << 16 | 2 << 30 | 5 << 32, 0x30D0_0805, 0xFF)
    row[0, 7] = 1 << 31
    row[0, [VBAR_EL1, ACCESS_CODE]] = (view.vectors, view.vectors + CODE)
    return row
