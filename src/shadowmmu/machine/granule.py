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
    "HUGETLB",
    "block_bytes",
    "hugetlb_bytes",
    "leaf_bytes",
    "page_bytes",
    "page_shift_of",
    "stage2_page_shift",
]

GRANULES: Final[dict[str, int]] = {"4K": 12, "16K": 14, "64K": 16}
"""Address bits inside a page, by the granule's name."""

HUGETLB: Final[dict[str, dict[str, int]]] = {
    "huge": {"4K": 21, "16K": 25, "64K": 29},
    "huge-pud": {"4K": 30},
    "huge-cont-pte": {"4K": 16, "16K": 21, "64K": 21},
    "huge-cont-pmd": {"4K": 25, "16K": 30, "64K": 34},
}
"""Address bits inside a hugetlb page, by backing and granule: ``arch_hugetlb_valid_size`` of Linux 7.3.4."""

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


def hugetlb_bytes(granule: str, backing: str) -> int:
    """Bytes of a hugetlb page of ``backing``, 0 if that is none (or none of this granule)."""
    bits = HUGETLB.get(backing, {}).get(granule, 0)
    return 1 << bits if bits else 0
