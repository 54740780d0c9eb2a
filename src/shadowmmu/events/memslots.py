"""What a script says about memslots, dirty logs and rings, checked as KVM would check it.

Memslot 0 is the VM's memory. Each of the others is a window of canonical IPAs above it onto a part of the
same memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from shadowmmu.events.schema import (
    CANONICAL_RAM,
    DEFAULT_VM_IPA_BITS,
    MOST_SLOTS,
    SLOT_READ_ONLY,
)
from shadowmmu.events.words import WordError, number, slot_flags
from shadowmmu.machine.granule import DEFAULT_GRANULE, GRANULES, block_bytes, leaf_bytes, page_bytes

RING_ENTRY: Final = 16
"""Bytes of an entry of a dirty ring; a ring has a page of them at least."""
MOST_RING: Final = 1 << 16


@dataclass(frozen=True)
class Window:
    """A memslot: where it is, how large, what memory it shows, its flags."""

    base: int
    size: int
    memory: int
    flags: int


@dataclass
class Memslots:
    """The memslots of a script as far as it is read; its machine is filled in by ``start``."""

    granule: str = DEFAULT_GRANULE
    memory: int = 0
    ipa_bits: int = 0
    ring: bool = False
    bitmap: bool = True
    windows: dict[int, Window] = field(default_factory=dict)

    def chunk(self, word: str) -> int:
        """Bytes of a chunk of eager splitting: a page, a block or, with 4K pages, 1G. Raises WordError."""
        sizes = [page_bytes(self.granule), block_bytes(self.granule)]
        if self.granule == "4K":
            sizes.append(leaf_bytes(GRANULES[self.granule], 1))
        size = number(word, "a chunk size")
        if size not in sizes:
            raise WordError(word, "a chunk of " + " or ".join(f"{one:#x}" for one in sizes))
        return size

    def rings(self, entries: str, bitmap: str) -> tuple[int, int]:
        """Entries of the rings, and whether there are bitmaps too. Raises WordError."""
        count = number(entries, "a number of entries")
        least = page_bytes(self.granule) // RING_ENTRY
        if count & (count - 1) or not least <= count <= MOST_RING:
            raise WordError(entries, f"a power of two from {least} to {MOST_RING}")
        if bitmap not in ("0", "bitmap"):
            raise WordError(bitmap, "bitmap or nothing")
        self.ring, self.bitmap = True, bitmap == "bitmap"
        return count, int(self.bitmap)

    def started(self, memory: int, ipa_bits: int) -> None:
        """The VM is made: memslot 0 is there."""
        self.memory, self.ipa_bits = memory, ipa_bits or DEFAULT_VM_IPA_BITS
        self.windows[0] = Window(CANONICAL_RAM, memory, CANONICAL_RAM, 0)

    def known(self, word: str) -> int:
        """The number of a memslot that is there. Raises WordError."""
        slot = number(word, "a memslot")
        if slot not in self.windows:
            raise WordError(word, "a memslot that was made")
        return slot

    def logged(self, word: str) -> int:
        """The number of a memslot whose dirty bitmap may be read. Raises WordError."""
        if not self.bitmap:
            raise WordError(word, "rings with a bitmap: 'ring ENTRIES bitmap'")
        return self.known(word)

    def harvested(self, word: str) -> None:
        """Whether there are rings. Raises WordError."""
        if not self.ring:
            raise WordError(word, "'ring' before 'start'")

    def deleted(self, word: str) -> tuple[int, int, int, int, int]:
        """Operands of a MEMSLOT that deletes. Raises WordError."""
        slot = self.known(word)
        if not slot:
            raise WordError(word, f"a memslot from 1 to {MOST_SLOTS - 1}: memslot 0 is deleted by 'slot 0'")
        del self.windows[slot]
        return slot, 0, 0, CANONICAL_RAM, 0

    def set(self, words: list[str]) -> tuple[int, int, int, int, int]:
        """Operands of a MEMSLOT that makes, moves or changes flags. Raises WordError for what KVM refuses."""
        slot = number(words[0], "a memslot")
        if not 1 <= slot < MOST_SLOTS:
            raise WordError(words[0], f"a memslot from 1 to {MOST_SLOTS - 1}")
        window = self._window(words[1:])
        old = self.windows.get(slot)
        if old is not None:
            if (old.size, old.memory) != (window.size, window.memory):
                raise WordError(" ".join(words[2:4]), "the size and the memory that this memslot has")
            if (old.flags ^ window.flags) & SLOT_READ_ONLY:
                raise WordError(words[4], "'r' as when this memslot was made")
        for other, taken in self.windows.items():
            if (
                other != slot
                and window.base < taken.base + taken.size
                and taken.base < window.base + window.size
            ):
                raise WordError(words[1], f"a range beside memslot {other}")
        self.windows[slot] = window
        return slot, window.base, window.size, window.memory, window.flags

    def _window(self, words: list[str]) -> Window:
        page = page_bytes(self.granule)
        for word in words[:3]:
            if number(word, "a canonical IPA or a size") % page:
                raise WordError(word, f"a multiple of {page}")
        base, size, memory = (number(word, "a number") for word in words[:3])
        end = CANONICAL_RAM + self.memory
        if not size:
            raise WordError(words[1], "a size above 0")
        if base < end or base + size > 1 << self.ipa_bits:
            raise WordError(words[0], f"a range from {end:#x} to {1 << self.ipa_bits:#x}")
        if memory < CANONICAL_RAM or memory + size > end:
            raise WordError(words[2], f"a range inside the memory {CANONICAL_RAM:#x}-{end:#x}")
        return Window(base, size, memory, slot_flags(words[3]))

    def cleared(self, words: list[str]) -> tuple[int, int, int]:
        """Operands of a CLEARLOG: memslot, first page, pages. Raises WordError."""
        slot = self.logged(words[0])
        pages = self.windows[slot].size // page_bytes(self.granule)
        first, count = number(words[1], "a page"), number(words[2], "a number of pages")
        if first >= pages or first + count > pages:
            raise WordError(" ".join(words[1:]), f"pages of this memslot, which has {pages}")
        return slot, first, count
