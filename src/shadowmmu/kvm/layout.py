"""Registers and table columns of L0: the vCPU, the memslot, and what belongs to the VM."""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import U64
from shadowmmu.machine.state import R_KVM

# Registers of the VM (``State.regs``); R_KVM itself is the size of the pool of shadow MMUs.
K_NEXT: Final = R_KVM + 1
K_SEQ: Final = R_KVM + 2
K_IN_PROGRESS: Final = R_KVM + 3
K_SLOTS: Final = R_KVM + 4

# Columns of a virtual CPU (``State.vcpus``).
V_HW_MMU: Final = 0
V_VTTBR: Final = 1
V_VTCR: Final = 2
V_HCR: Final = 3
V_ESR: Final = 4
V_FAR: Final = 5
V_HPFAR: Final = 6
V_ELR: Final = 7
V_REQUESTS: Final = 8
VCPU_COLUMNS: Final = 12

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

# Outcomes of an abort.
RESUME: Final = 0
INJECTED: Final = 1
MMIO_EXIT: Final = 2
EFAULT_EXIT: Final = 3

ZERO: Final = U64(0)
ONE: Final = U64(1)
