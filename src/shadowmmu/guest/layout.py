"""L1's memory map in canonical IPA, as the rig lays it out, and the guest's registers."""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import U64
from shadowmmu.machine.state import R_GUEST

RAM_BASE: Final = U64(0x4000_0000)
L1_START_PAGE: Final = U64(0x4000_0000)
L1_LOOP_PAGE: Final = U64(0x4000_1000)
L1_LARGE_PAGE: Final = U64(0x4000_2000)
L1_STACK_PAGE: Final = U64(0x4003_F000)
L2_CODE_PAGE: Final = U64(0x4005_0000)
MAILBOX_PAGE: Final = U64(0x4006_0000)
TABLE_POOL: Final = U64(0x4010_0000)

# Registers: what L1 remembers, and how far the event under way has come.
G_POOL: Final = R_GUEST
G_ROOT: Final = R_GUEST + 1
G_CURSOR: Final = R_GUEST + 2
G_LEFT: Final = R_GUEST + 3
G_STATUS: Final = R_GUEST + 4
G_MEMORY: Final = R_GUEST + 5

# Where in L2's code page its load, its store, its final HVC stand, where it stays or waits, and where it
# reads or writes a register of EL2.
PC_LOAD: Final = U64(0x18)
PC_STORE: Final = U64(0x24)
PC_HVC: Final = U64(0x3C)
PC_AFTER_HVC: Final = U64(0x40)
PC_STAY: Final = U64(0x44)
PC_WFI: Final = U64(0x48)
PC_READ_REGISTER: Final = U64(0x50)
PC_WRITE_REGISTER: Final = U64(0x58)
L2_VECTOR: Final = U64(0x200)
"""Where L2 takes an exception of its own: VBAR_EL1 is 0, the vector of a synchronous one from EL1."""
REGISTER_LOAD: Final = 5
REGISTER_STORE: Final = 4
ESR_HVC: Final = U64(0x5A00_0000)

ZERO: Final = U64(0)
ONE: Final = U64(1)
