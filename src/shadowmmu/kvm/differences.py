"""Where L0 can do as the architecture asks instead of as Linux 7.3.4 does: one switch a difference.

All are off unless a ``Machine`` names them, so that L0 is Linux 7.3.4. What each is about, and what follows
from it, is in ``verify.differences``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shadowmmu.compiled import U64, inline
from shadowmmu.kvm.layout import K_ARCHITECTURE, ONE, ZERO
from shadowmmu.machine.state import State

DIRTY_LOG_FLUSH: Final = 0
NESTED_IPA_SIZE: Final = 1
TLBI_BEYOND_LIMIT: Final = 2
AT_RECYCLED_MMU: Final = 3
AT_REPLAY: Final = 4
AT_PAN: Final = 5

SWITCHES: Final = {
    "dirty-log-flush": DIRTY_LOG_FLUSH,
    "nested-ipa-size": NESTED_IPA_SIZE,
    "tlbi-beyond-limit": TLBI_BEYOND_LIMIT,
    "at-recycled-mmu": AT_RECYCLED_MMU,
    "at-replay": AT_REPLAY,
    "at-pan": AT_PAN,
}
"""Bit of ``K_ARCHITECTURE`` by the name of the difference."""


@inline
def as_architecture(s: State, difference: int) -> bool:
    """Whether L0 does as the architecture asks in this difference."""
    return (s.regs[K_ARCHITECTURE] >> U64(difference)) & ONE != ZERO


def switch_bits(names: Iterable[str]) -> int:
    """The register's value with the named switches on. Raises KeyError for an unknown name."""
    return sum(1 << SWITCHES[name] for name in set(names))
