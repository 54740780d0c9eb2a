"""What full unmaps cost a recorded run: each death of a shadow leaf, and each refault, put down to its cause.

A leaf is born by a fill and dies by a range that covers it. A death belongs to the notifier it happens in,
else to L1 (its TLBI, or a recycled MMU). A refault is a fill of an address that was filled before and is
not live; it belongs to whatever took the last leaf there. No model is asked: these are the host's own facts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum

from shadowmmu.lab.leaf_map import LeafMap


class Fate(IntEnum):
    """What a recorded fill was."""

    FIRST = 1
    AFTER_NOTIFIER = 2
    AFTER_GUEST = 3
    REPLACED = 4
    """The address had a leaf: other permissions, another output or another size."""


@dataclass
class RecordedCost:
    """The books of one trace. Tables are numbered; only those ``shown`` are counted."""

    shown: list[bool]
    fates: Counter[Fate] = field(default_factory=Counter)
    notifiers: int = 0
    sweeps: list[int] = field(default_factory=list)
    """Leaves each notifier took, those that took any."""
    guest_ranges: int = 0
    guest_swept: int = 0
    _live: list[LeafMap[None]] = field(default_factory=list)
    _last: dict[tuple[int, int], Fate] = field(default_factory=dict)
    _swept_now: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._live = [LeafMap() for _ in self.shown]

    @property
    def swept(self) -> int:
        """Leaves that notifiers took."""
        return sum(self.sweeps)

    def fill(self, table: int, nested_ipa: int, size: int) -> Fate:
        """A leaf is born; what the fill was."""
        key = (table, nested_ipa)
        replaced = self._live[table].put(nested_ipa, size, None)
        for leaf in replaced:
            self._last[table, leaf.base] = Fate.AFTER_GUEST
        fate = Fate.REPLACED if replaced else self._last.get(key, Fate.FIRST)
        self._last.setdefault(key, Fate.AFTER_GUEST)
        self.fates[fate] += self.shown[table]
        return fate

    def begin_notifier(self, thread: int) -> None:
        """``kvm_unmap_gfn_range``, or a memslot that goes, begins on this thread."""
        self.end_notifier(thread)
        self.notifiers += 1
        self._swept_now[thread] = 0

    def end_notifier(self, thread: int) -> None:
        """It ends (or the trace shows that it must have)."""
        swept = self._swept_now.pop(thread, 0)
        if swept:
            self.sweeps.append(swept)

    def end(self) -> None:
        """The trace ends."""
        for thread in list(self._swept_now):
            self.end_notifier(thread)

    def take(self, table: int, start: int, end: int, thread: int) -> None:
        """A range of a shadow is unmapped, by the notifier open on this thread or else by L1."""
        inside = thread in self._swept_now
        gone = self._live[table].take(start, end)
        for leaf in gone:
            self._last[table, leaf.base] = Fate.AFTER_NOTIFIER if inside else Fate.AFTER_GUEST
        counted = len(gone) * self.shown[table]
        if inside:
            self._swept_now[thread] += counted
        else:
            self.guest_ranges += self.shown[table]
            self.guest_swept += counted
