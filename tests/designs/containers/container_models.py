"""What the containers must agree with, as simple as can be, and what the tests share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from shadowmmu.compiled import INTERPRETED, Words
from shadowmmu.designs.containers.pool import SCRATCH, SCRATCH_WORDS

END = (1 << 64) - 1


def scaled(compiled: int, interpreted: int) -> int:
    """A number of examples or steps for the mode the suite runs in."""
    return interpreted if INTERPRETED else compiled


def profile(compiled: int, interpreted: int) -> settings:
    """Hypothesis settings: reproducible, and as many examples as the mode allows."""
    return settings(
        max_examples=scaled(compiled, interpreted),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def content(words: Words) -> bytes:
    """The array without the scratch words, whose content means nothing between operations."""
    start = int(SCRATCH)
    return words[:start].tobytes() + words[start + SCRATCH_WORDS :].tobytes()


class RangeModel:
    """A sorted list of (first, last, value): the naive maple tree."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, int]] = []

    def store(self, first: int, last: int, value: int) -> None:
        """Map the range, trimming what it overlaps; 0 erases."""
        kept: list[tuple[int, int, int]] = []
        for low, high, old in self.entries:
            if high < first or low > last:
                kept.append((low, high, old))
                continue
            if low < first:
                kept.append((low, first - 1, old))
            if high > last:
                kept.append((last + 1, high, old))
        if value:
            kept.append((first, last, value))
        self.entries = sorted(kept)

    def find(self, index: int, limit: int = END) -> tuple[int, int, int] | None:
        """First entry that overlaps [index, limit]."""
        for entry in self.entries:
            if entry[1] >= index:
                return entry if entry[0] <= limit else None
        return None

    def erase(self, index: int) -> tuple[int, int, int] | None:
        """Remove the entry that covers ``index``."""
        entry = self.find(index, index)
        if entry is not None:
            self.entries.remove(entry)
        return entry
