"""Registers and table columns of L0: the vCPU, the memslot, and what belongs to the VM."""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.context import C_HCR_EL2, C_VTCR_EL2, C_VTTBR_EL2, ROW
from shadowmmu.compiled import U64
from shadowmmu.machine.state import R_KVM

# Registers of the VM (``State.regs``); R_KVM itself is the size of the pool of shadow MMUs.
K_NEXT: Final = R_KVM + 1
K_SEQ: Final = R_KVM + 2
K_IN_PROGRESS: Final = R_KVM + 3
K_SLOTS: Final = R_KVM + 4
K_AT: Final = R_KVM + 5
K_RACES: Final = R_KVM + 6
"""How many compare-and-swaps of L1's descriptors lose their race from now on (injected)."""

# Columns of a virtual CPU (``State.vcpus``). Two context rows (``arch.context``) stand in them: L1's virtual
# registers, and those that L0 loads into the CPU to execute an AT for L1.
V_HW_MMU: Final = 0
V_REQUESTS: Final = 1
V_ESR: Final = 2
V_FAR: Final = 3
V_HPFAR: Final = 4
V_ELR: Final = 5
V_PAR: Final = 6
V_VIRTUAL: Final = 8
V_LOADED: Final = V_VIRTUAL + ROW
VCPU_COLUMNS: Final = V_LOADED + ROW
V_VTTBR: Final = V_VIRTUAL + C_VTTBR_EL2
V_VTCR: Final = V_VIRTUAL + C_VTCR_EL2
V_HCR: Final = V_VIRTUAL + C_HCR_EL2

NO_MMU: Final = U64(0xFFFF)
REQUEST_UNMAP: Final = U64(1)

# Columns of a memslot (``State.slots``).
S_BASE: Final = 0
S_SIZE: Final = 1
S_HVA: Final = 2
S_FLAGS: Final = 3
S_DIRTY_WORD: Final = 4
SLOT_COLUMNS: Final = 6

SLOT_LOG_DIRTY: Final = U64(1)
SLOT_READONLY: Final = U64(2)
SLOT_GUEST_MEMFD: Final = U64(4)

# What functions of the kernel return besides 0: 1 for a fault that L1 gets, else an error number.
FAULT_OF_L1: Final = 1
EAGAIN: Final = -11
EFAULT: Final = -14

# Outcomes of an abort.
RESUME: Final = 0
INJECTED: Final = 1
MMIO_EXIT: Final = 2
EFAULT_EXIT: Final = 3

ZERO: Final = U64(0)
ONE: Final = U64(1)
