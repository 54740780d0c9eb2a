"""The granule of the machine: the host's page size, and with it every size of its tables.

``GRANULES`` has the names by which people choose one. What follows from it (Arm ARM D8.2: a table fills
one page, so a level translates ``page_shift - 3`` bits) is computed here for Python; kernels read
``R_PAGE_SHIFT`` and ``R_STRIDE``.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.registers import VTCR_EL2

__all__ = [
    "DEFAULT_GRANULE",
    "GRANULES",
    "block_bytes",
    "leaf_bytes",
    "page_bytes",
    "page_shift_of",
    "stage2_page_shift",
]

GRANULES: Final[dict[str, int]] = {"4K": 12, "16K": 14, "64K": 16}
"""Address bits inside a page, by the granule's name."""

TG0: Final = {0: GRANULES["4K"], 2: GRANULES["16K"]}
TG0_LSB: Final = VTCR_EL2["TG0"].lsb

DEFAULT_GRANULE: Final = "4K"


def page_shift_of(granule: str) -> int:
    """Address bits inside a page. Raises ValueError for a name that is no granule."""
    if granule not in GRANULES:
        raise ValueError(f"granule {granule!r}: choose one of {', '.join(GRANULES)}")
    return GRANULES[granule]


def stage2_page_shift(vtcr: int) -> int:
    """Address bits inside a page of the tables that VTCR_EL2 describes; the reserved TG0 reads as 64K."""
    return TG0.get(vtcr >> TG0_LSB & 3, GRANULES["64K"])


def leaf_bytes(page_shift: int, level: int) -> int:
    """Bytes that one entry of a ``level`` table covers."""
    return 1 << (page_shift + (page_shift - 3) * (3 - level))


def page_bytes(granule: str) -> int:
    """Bytes of a page. Raises ValueError for a name that is no granule."""
    return leaf_bytes(page_shift_of(granule), 3)


def block_bytes(granule: str) -> int:
    """Bytes of a level 2 block: 2M, 32M or 512M. Raises ValueError for a name that is no granule."""
    return leaf_bytes(page_shift_of(granule), 2)
