"""Where a generated scenario has its data, code and memslots, by what backs the VM's memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shadowmmu.lab.conform.guest_tables import LEAF, PAGE

BLOCK: Final = LEAF[2]


@dataclass(frozen=True)
class Places:
    """Canonical IPAs of one backing; ``hugetlb`` is the size of its pages, 0 without hugetlb."""

    memory: int = 64 << 20
    identity: int = 0x4000_0000
    """A gigabyte in which the data is: L1 maps it by one leaf."""
    data: int = 0x4100_0000
    blocks: int = 6
    """2M blocks of data that the host changes; most accesses are to the first pages of each."""
    code: int = 0x4200_0000
    """Pages that hold instructions: only ``ret`` writes them."""
    slots: int = 0x8000_0000
    """Where the memslots besides the first are."""
    no_slot: int = 0x5000_0000
    """Beyond the memory: an access there leaves to the VMM."""
    hugetlb: int = 0

    @property
    def end(self) -> int:
        """Where the data ends."""
        return self.data + self.blocks * BLOCK


PLACES: Final = {
    "base": Places(),
    "thp": Places(),
    "huge": Places(hugetlb=BLOCK),
    "huge-cont-pte": Places(hugetlb=16 * PAGE),
    "huge-cont-pmd": Places(memory=128 << 20, data=0x45C0_0000, hugetlb=16 * BLOCK),
    "huge-pud": Places(
        memory=2 << 30,
        identity=0x8000_0000,
        data=0x8000_0000,
        slots=0xC000_0000,
        no_slot=0xF800_0000,
        hugetlb=LEAF[1],
    ),
}
"""L1's image and its tables are in a hugetlb page that is not of the data."""
