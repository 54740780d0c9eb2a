"""Which table of a trace is the canonical one, which are shadows, and how far they reach.

A trace names tables by pointer. A shadow shows itself: by a VTTBR that is not 0, by L1's leaf level in the
software bits of a leaf, or by being unmapped inside ``kvm_nested_s2_unmap``. Of the tables that show
nothing the one with the most fills is canonical; any other is the shadow of an L2 without stage 2, whose
nested addresses are canonical ones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from shadowmmu.formats.shadow_trace import ShadowEvent

VTTBR_CNP: Final = 1
TAG_SHIFT: Final = 55
TAG_MASK: Final = 3
DEFAULT_IPA_BITS: Final = 48
IPA_BITS: Final = range(32, 53)


def tag_of(prot: int) -> int:
    """The level of L1's leaf in a protection (``KVM_NV_GUEST_MAP_SZ``); 0: stage 2 was off, or canonical."""
    return prot >> TAG_SHIFT & TAG_MASK


@dataclass(frozen=True)
class ShadowTable:
    """A shadow MMU of the trace. ``stage2_on``: some leaf of it came from a leaf of L1's."""

    pgt: int
    vttbrs: tuple[int, ...]
    fills: int
    stage2_on: bool


@dataclass
class TableCensus:
    """What one pass over the events says of the tables."""

    fills: Counter[int] = field(default_factory=Counter)
    vttbrs: dict[int, dict[int, None]] = field(default_factory=dict)
    tagged: set[int] = field(default_factory=set)
    swept: set[int] = field(default_factory=set)
    whole_bits: int = 0
    returns: bool = False
    """Whether maps are also seen to return."""
    _sweeping: set[int] = field(default_factory=set)

    def see(self, event: ShadowEvent) -> None:
        """Take one event into account."""
        values = event.values
        if event.name == "s2map":
            pgt = values["pgt"]
            self.fills[pgt] += 1
            self.vttbrs.setdefault(pgt, {})[values["vttbr"] & ~VTTBR_CNP] = None
            if tag_of(values["prot"]):
                self.tagged.add(pgt)
        elif event.name == "nested_unmap":
            self._sweeping.add(event.thread)
        elif event.name == "s2range":
            size = values["size"]
            if values["addr"] == 0 and size & (size - 1) == 0:
                self.whole_bits = max(self.whole_bits, size.bit_length() - 1)
            if event.thread in self._sweeping:
                self.swept.add(values["pgt"])
        elif event.name == "s2map_ret":
            self.returns = True
        elif event.name == "nested_unmap_ret":
            self._sweeping.discard(event.thread)

    def _shows_itself(self, pgt: int) -> bool:
        return pgt in self.tagged or pgt in self.swept or any(self.vttbrs[pgt])

    @property
    def canonical(self) -> int | None:
        """The canonical table; None if the trace filled none."""
        silent = [pgt for pgt in self.fills if not self._shows_itself(pgt)]
        return max(silent, key=lambda pgt: self.fills[pgt], default=None)

    def shadows(self, canonical: int | None) -> list[ShadowTable]:
        """The shadow tables, in order of their first fill."""
        return [
            ShadowTable(pgt, tuple(self.vttbrs[pgt]), self.fills[pgt], pgt in self.tagged)
            for pgt in self.fills
            if pgt != canonical
        ]

    def ipa_bits(self, stated: int) -> int:
        """Input bits of the shadows: as a whole unmap shows, as the log states, or the default."""
        return self.whole_bits if self.whole_bits in IPA_BITS else stated or DEFAULT_IPA_BITS
