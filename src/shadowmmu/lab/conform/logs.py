"""How L0 logs what the guest writes, for generated scenarios: bitmaps, CLEAR, all dirty at first, rings."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from shadowmmu.lab.conform.guest_tables import PAGE

MANNERS: Final = (
    *((), (), (), (), (), ()),
    *(("manual",), ("manual",), ("manual 1",), ("manual 1",)),
    *(("ring 256",), ("ring 256",), ("ring 256 bitmap",), ("ring 256 bitmap",)),
    *(("manual", "ring 256 bitmap"), ("manual 1", "ring 256 bitmap"), ("manual 1", "ring 256")),
)
LARGE: Final = 1 << 30
RAM: Final = 0x4000_0000
"""Where memslot 0 is."""
CHUNKS: Final = ("4k", "2M", "1G")
"""Of eager splitting: a page, a block, a gigabyte."""


@dataclass
class Logs:
    """The dirty logs of a script under way."""

    rng: random.Random
    manner: tuple[str, ...] = ()
    on: bool = False
    """Whether memslot 0 logs."""

    def begin(self, memory: int) -> list[str]:
        """What is said before ``start`` of a VM with so many bytes: no chunk of which it has too many."""
        self.manner = self.rng.choice(MANNERS)
        chunks = CHUNKS if memory < LARGE else CHUNKS[1:]
        eager = [f"eager {self.rng.choice(chunks)}"] if self.rng.random() < 0.35 else []
        return [*eager, *self.manner]

    @property
    def rings(self) -> bool:
        """Whether vCPUs have rings."""
        return any(line.startswith("ring") for line in self.manner)

    @property
    def bitmaps(self) -> bool:
        """Whether memslots have a bitmap that may be read."""
        return "ring 256" not in self.manner

    def switch(self) -> list[str]:
        """Memslot 0's log begins or ends."""
        self.on = not self.on
        return [f"log {int(self.on)}"]

    def read(self, sizes: dict[int, int], block: int) -> list[str]:
        """The VMM reads, or protects, what memslots of these sizes logged; of memslot 0 about ``block``."""
        if self.rings and (not self.bitmaps or not sizes or self.rng.random() < 0.7):
            return ["harvest"]
        if not sizes:
            return []
        slot = self.rng.choice(sorted(sizes))
        if self.manner[:1] in (("manual",), ("manual 1",)) and self.rng.random() < 0.6:
            return [self._clear(slot, sizes[slot] // PAGE, 0 if slot else (block - RAM) // PAGE)]
        return [f"getlog {slot}"]

    def _clear(self, slot: int, pages: int, near: int) -> str:
        """KVM_CLEAR_DIRTY_LOG of all, of whole words of the bitmap, or of any pages."""
        how = self.rng.random()
        if how < 0.3:
            return f"clearlog {slot}"
        first = near + self.rng.choice((0, 0, 3, 60, 100) if near else (0, 0, pages // 2))
        count = self.rng.choice((64, 128, 512) if how < 0.6 else (1, 5, 24, 70))
        return f"clearlog {slot} {first} {min(count, pages - first)}"
