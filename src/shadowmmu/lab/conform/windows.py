"""Memslots besides the first, for generated scenarios: made, moved, deleted, read-only, logging."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Final

from shadowmmu.lab.conform.guest_tables import LEAF, PAGE

BLOCK: Final = LEAF[2]
MOST_WINDOWS: Final = 3
REGION: Final = 1 << 28
"""Canonical IPAs that one memslot moves in: two never meet."""
BASES: Final = (0, 0, BLOCK, 2 * BLOCK, 3 * BLOCK, PAGE, BLOCK + 16 * PAGE)
"""Where in its region a memslot is: as blocks need it, beside that, and so that a move overlaps itself."""
SIZES: Final = (16 * PAGE, 256 * PAGE, BLOCK, 2 * BLOCK)


@dataclass(frozen=True)
class Window:
    """A memslot that is there: SIZE bytes at ``base`` show the memory that memslot 0 has at ``memory``."""

    base: int
    size: int
    memory: int
    read_only: bool
    logs: bool

    def line(self, slot: int) -> str:
        """The command that makes it, or makes it so."""
        letters = "r" * self.read_only + "d" * self.logs
        return f"memslot {slot} {self.base:#x} {self.size:#x} {self.memory:#x} {letters}".rstrip()


@dataclass
class Windows:
    """The memslots of a script above its memory, as far as it is made."""

    rng: random.Random
    first: int
    """Canonical IPA where the regions start."""
    memory: tuple[int, int]
    """Canonical IPAs of the data that they show, start and end."""
    made: dict[int, Window] = field(default_factory=dict)
    instructions: Window | None = None
    """The memslot that L2 executes from; it has the number after the others."""

    def change(self) -> list[str]:
        """One memslot comes, goes, moves, or its log begins or ends."""
        slot = self.rng.randint(1, MOST_WINDOWS)
        old = self.made.get(slot)
        if old is None:
            new = self._fresh(slot)
        else:
            how = self.rng.choice(("delete", "move", "move", "log", "log", "both"))
            if how == "delete":
                del self.made[slot]
                return [f"memslot {slot}"]
            base = old.base if how == "log" else self._base(slot)
            new = replace(old, base=base, logs=old.logs ^ (how != "move"))
        self.made[slot] = new
        return [new.line(slot)]

    def code(self, memory: int) -> tuple[int, list[str]]:
        """Where a read-only memslot shows the instructions at ``memory``, and what makes or moves it so."""
        slot = MOST_WINDOWS + 1
        old = self.instructions
        if old is not None and self.rng.random() < 0.6:
            return old.base, []
        logs = self.rng.random() < 0.3 if old is None else old.logs
        self.instructions = Window(self._base(slot), BLOCK, memory, read_only=True, logs=logs)
        return self.instructions.base, [] if self.instructions == old else [self.instructions.line(slot)]

    def _base(self, slot: int) -> int:
        return self.first + (slot - 1) * REGION + self.rng.choice(BASES)

    def _fresh(self, slot: int) -> Window:
        start, end = self.memory
        memory = start + BLOCK * self.rng.randrange((end - start) // BLOCK)
        memory += PAGE * self.rng.choice((0, 0, 0, 1, 8))
        size = min(self.rng.choice(SIZES), end - memory)
        kind = self.rng.choice(("", "", "", "d", "r", "rd"))
        return Window(self._base(slot), size, memory, "r" in kind, "d" in kind)

    def page(self, near: int) -> int:
        """A page of a memslot, most near its start; now and then one where a memslot was or will be."""
        if not self.made or self.rng.random() < 0.05:
            return self._base(self.rng.randint(1, MOST_WINDOWS)) + PAGE * self.rng.randrange(near)
        window = self.made[self.rng.choice(sorted(self.made))]
        pages = window.size // PAGE
        return window.base + PAGE * self.rng.randrange(min(near, pages) if self.rng.random() < 0.9 else pages)

    def logging(self) -> list[int]:
        """The memslots that log."""
        return sorted(slot for slot, window in self.made.items() if window.logs)
