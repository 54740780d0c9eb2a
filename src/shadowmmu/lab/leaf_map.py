"""A set of leaves by address: what a trace says is mapped, with exact lookups and removal by range.

Leaves are aligned and never overlap; each size has a dictionary of its own, so a lookup tries three keys.
"""

from __future__ import annotations

from typing import Final, Generic, NamedTuple, TypeVar

LEAF_SIZES: Final = (1 << 12, 1 << 21, 1 << 30)
"""Sizes of a leaf with 4K pages: page, 2M block, 1G block."""

Value = TypeVar("Value")


class Held(NamedTuple, Generic[Value]):
    """One leaf: first byte, bytes, and what is remembered of it."""

    base: int
    size: int
    value: Value


class LeafMap(Generic[Value]):
    """Leaves of one input address space."""

    def __init__(self) -> None:
        self._by_size: dict[int, dict[int, Value]] = {size: {} for size in LEAF_SIZES}

    def __len__(self) -> int:
        return sum(len(leaves) for leaves in self._by_size.values())

    def find(self, ipa: int) -> Held[Value] | None:
        """The leaf that covers ``ipa``."""
        for size, leaves in self._by_size.items():
            base = ipa & -size
            if base in leaves:
                return Held(base, size, leaves[base])
        return None

    def put(self, base: int, size: int, value: Value) -> list[Held[Value]]:
        """Add a leaf; what it took the place of. KeyError for a size that no leaf has."""
        gone = self.take(base, base + size)
        self._by_size[size][base] = value
        return gone

    def over(self, start: int, end: int) -> list[Held[Value]]:
        """The leaves that cover part of [start, end). O(leaves, or pages of the range, whichever is less)."""
        found = []
        for size, leaves in self._by_size.items():
            first = start & -size
            if (end - first) // size < len(leaves):
                bases = [base for base in range(first, end, size) if base in leaves]
            else:
                bases = [base for base in leaves if base < end and base + size > start]
            found += [Held(base, size, leaves[base]) for base in bases]
        return found

    def take(self, start: int, end: int) -> list[Held[Value]]:
        """Remove and return what ``over`` finds."""
        gone = self.over(start, end)
        for leaf in gone:
            del self._by_size[leaf.size][leaf.base]
        return gone
