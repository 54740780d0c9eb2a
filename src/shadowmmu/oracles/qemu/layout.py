"""Where things stand in the physical memory of the guest, and the words the stub and its host exchange.

``stub.S`` has the same numbers. Everything that a walk may read stands in ``TABLES``: its physical
addresses have bits 30, 29 and 28 set, which or-ing address bits in and the offset of any block leave set,
so no walk strays into devices or into the stub's own data; what has a higher bit too is beyond RAM.
"""

from __future__ import annotations

from typing import Final

RAM: Final = 0x4000_0000
RAM_BYTES: Final = 1 << 30
RAM_END: Final = RAM + RAM_BYTES
STUB: Final = RAM + 0x20_0000
MAILBOX: Final = RAM + 0x21_0000
WINDOW: Final = RAM + 0x22_0000
"""The page with the EL1 vectors and the instructions that make real accesses (64K, the largest granule)."""
WINDOW_TABLES: Final = RAM + 0x40_0000
ARENA: Final = RAM + 0x80_0000
"""Contexts, queries and results, up to ``TABLES``."""
TABLES: Final = RAM + 0x3000_0000
TABLES_BYTES: Final = 0x140_0000
"""Translation tables. The low words of descriptors pointing here, 0x70.. and 0x71.., are harmless as
instructions (ADR, SUBS): a random fetch may execute one."""

ROW: Final = 32
"""Words of a context."""
FLAGS: Final = 24
VBAR_EL1: Final = 25
ACCESS_CODE: Final = 26
"""Words of a context that are the stub's own: flags, EL1 vectors, address of the access code."""
FLAG_EL2: Final = 1
FLAG_PIE: Final = 2
FLAG_DIRTY: Final = 4

INVALIDATE: Final = 1 << 9
"""Operation bit: TLBI before this query."""

TAG: Final = 0xEEEE
TAG_OWN: Final = 0x04
TAG_EL2: Final = 0x08
TAG_EL1: Final = 0x11
TAG_DECLINED: Final = 0x20
TAG_CRASHED: Final = 0xFF
"""Only the host writes this one: the query ended or hung QEMU."""
