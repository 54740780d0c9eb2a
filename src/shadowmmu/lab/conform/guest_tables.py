"""What a generator must know of L1's tables to obey the architecture: what a TLB may hold of them.

L1 obeys break-before-make: the output address of a mapping changes only after the old one was taken out and
invalidated. That is the precondition of every generated script.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

LEAF: Final = {1: 1 << 30, 2: 1 << 21, 3: 1 << 12}
TABLE_POOL: Final = 0x4010_0000
PAGE: Final = 4096


@dataclass(frozen=True)
class Piece:
    """Nested IPAs [start, end) mapped by leaves of ``level`` to canonical IPAs ``offset`` further on."""

    start: int
    end: int
    offset: int
    level: int

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any of [start, end) is in it."""
        return self.start < end and start < self.end


def without(pieces: list[Piece], start: int, end: int) -> list[Piece]:
    """The pieces less [start, end)."""
    left = []
    for piece in pieces:
        if not piece.overlaps(start, end):
            left.append(piece)
            continue
        if piece.start < start:
            left.append(replace(piece, end=start))
        if end < piece.end:
            left.append(replace(piece, start=end))
    return left


@dataclass
class Pool:
    """L1's table pages: where the next one is."""

    next_table: int = TABLE_POOL

    def take(self) -> int:
        """The canonical IPA of a new table."""
        self.next_table += PAGE
        return self.next_table - PAGE


@dataclass
class Root:
    """One guest stage 2: its root, VMID and VTCR_EL2; what it maps, and what a TLB may hold of it."""

    at: int
    vmid: int
    vtcr: int
    window: int
    """Where its nested IPAs start."""
    live: list[Piece] = field(default_factory=list)
    cached: list[Piece] = field(default_factory=list)
    tables: set[tuple[int, int]] = field(default_factory=set)
    """(level of the entry, index from the start of the space) of every entry that points to a table."""

    def conflicts(self, start: int, end: int, offset: int, level: int) -> bool:
        """Whether mapping this would change an output, or a level, that a TLB may hold."""
        return any(
            piece.overlaps(start, end) and (piece.offset, piece.level) != (offset, level)
            for piece in self.cached
        )

    def breaking(self, start: int, end: int) -> list[Piece]:
        """The mappings that L1 must take out before it maps [start, end) anew, whole leaves."""
        return [piece for piece in self.live if piece.overlaps(start, end)]

    def map(self, pool: Pool, start: int, end: int, offset: int, level: int) -> None:
        """L1 writes leaves; tables are taken from the pool as ``set_leaf`` of the rig does."""
        self.live = [*without(self.live, start, end), Piece(start, end, offset, level)]
        self.cached.append(Piece(start, end, offset, level))
        for nested_ipa in range(start, end, LEAF[level]):
            for at in range(1, level):
                entry = (at, nested_ipa // LEAF[at])
                if entry not in self.tables:
                    pool.take()
                    self.tables.add(entry)
            self.tables.discard((level, nested_ipa // LEAF[level]))
            if level == 1:
                first = nested_ipa // LEAF[2]
                self.tables -= {(2, first + i) for i in range(512)}

    def unmap(self, start: int, end: int) -> None:
        """L1 zeroes leaves."""
        self.live = without(self.live, start, end)

    def invalidated(self, start: int, end: int) -> None:
        """A TLBI covered [start, end): a TLB holds of it only what is mapped now."""
        for piece in [p for p in self.cached if p.overlaps(start, end) and p.level < 3]:
            start, end = min(start, piece.start), max(end, piece.end)
        held = [piece for piece in self.live if piece.overlaps(start, end)]
        self.cached = without(self.cached, start, end) + held
