"""Registers and table columns of L0: the vCPU, the memslot, and what belongs to the VM."""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.context import C_HCR_EL2, C_VTCR_EL2, C_VTTBR_EL2, ROW
from shadowmmu.compiled import U64
from shadowmmu.machine.state import R_GUEST, R_KVM

# Registers of the VM (``State.regs``); R_KVM itself is the size of the pool of shadow MMUs.
K_NEXT: Final = R_KVM + 1
K_SEQ: Final = R_KVM + 2
K_IN_PROGRESS: Final = R_KVM + 3
K_SLOTS: Final = R_KVM + 4
K_AT: Final = R_KVM + 5
K_RACES: Final = R_KVM + 6
"""How many compare-and-swaps of L1's descriptors lose their race from now on (injected)."""
K_SPLIT_CHUNK: Final = R_KVM + 8
"""Bytes that eager page splitting takes at a time (KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE); 0: none."""
K_LOG_MODE: Final = R_KVM + 9
"""How what is dirty is told, as the bits LOG_MANUAL to RING_BITMAP."""
K_SPLIT_CACHE: Final = R_KVM + 10
"""Pages that wait to become tables of split blocks (``split_page_cache``)."""
K_RING: Final = R_KVM + 11
"""Entries of each vCPU's dirty ring; 0: there are none."""
K_RUNNING: Final = R_KVM + 12
"""The vCPU that entered its guest last: dirty pages go into its ring."""
K_BOOT_HCR: Final = R_KVM + 20
"""HCR_EL2 as L1 sets it when it boots."""

K_VNCR_COUNT: Final = R_KVM + 16
"""How many vCPUs have a valid entry in their VNCR pseudo-TLB (``vncr_tlb_count``)."""
K_HOLD_START: Final = R_KVM + 17
K_HOLD_END: Final = R_KVM + 18
"""Host addresses of the invalidation that a scenario keeps between its start and its end; both 0: none."""
K_HOLD_LEFT: Final = R_KVM + 19
"""Faults that must still bounce before it ends; 0: it ends when the scenario says so."""
K_GAP_END: Final = R_KVM + 21
"""Where the unmap that may be broken off (``R_GAP_MMU``) ends."""
K_ARCHITECTURE: Final = R_GUEST - 1
"""One bit for each difference (``kvm.differences``) in which L0 does as the architecture asks."""

# Columns of a virtual CPU (``State.vcpus``). Two context rows (``arch.context``) stand in them: L1's virtual
# registers, and those that L0 loads into the CPU to execute an AT for L1.
V_HW_MMU: Final = 0
V_REQUESTS: Final = 1
V_ESR: Final = 2
V_FAR: Final = 3
V_HPFAR: Final = 4
V_ELR: Final = 5
V_PAR: Final = 6
V_STATE: Final = 7
"""Where the vCPU stands, as the bits below; 0: loaded, in virtual EL2."""
V_VIRTUAL: Final = 8
V_LOADED: Final = V_VIRTUAL + ROW
V_VNCR: Final = V_LOADED + ROW
"""First column of the VNCR pseudo-TLB (``kvm.vncr``)."""
V_RACE_START: Final = V_VNCR + 14
V_RACE_END: Final = V_VNCR + 15
"""Host addresses that the host takes in the middle of this vCPU's next fault; both 0: none."""
V_GAP: Final = V_VNCR + 16
"""The access a vCPU makes in the gap of a sweep: VA, operation, where its code is."""
V_RING_DIRTY: Final = V_VNCR + 20
V_RING_RESET: Final = V_VNCR + 21
"""How many entries the vCPU's dirty ring was ever given, and how many were taken out again."""
VCPU_COLUMNS: Final = V_VNCR + 22
V_VTTBR: Final = V_VIRTUAL + C_VTTBR_EL2
V_VTCR: Final = V_VIRTUAL + C_VTCR_EL2
V_HCR: Final = V_VIRTUAL + C_HCR_EL2

NO_MMU: Final = U64(0xFFFF)
REQUEST_UNMAP: Final = U64(1)
REQUEST_MAP_VNCR: Final = U64(1 << 8)

IN_L2: Final = U64(1)
"""PSTATE.M is EL1 or EL0 and HCR_EL2.TGE is 0: not ``is_hyp_ctxt``."""
IS_OUT: Final = U64(2)
"""Put: scheduled out, or back in the VMM."""
IN_GUEST: Final = U64(4)
"""Entered, past its requests, with what it had loaded."""
IN_WFI: Final = U64(8)
TRAPS_VM: Final = U64(16)
"""The host's HCR_EL2.TVM: set by a set/way operation, so that the next one flushes nothing."""
BOOTED: Final = U64(32)
"""L1 runs on it: it stands at its mailbox."""
CACHES_ON: Final = U64(64)
"""SCTLR_EL1.{M, C} of the guest are both 1."""

# Columns of a memslot (``State.slots``).
S_BASE: Final = 0
S_SIZE: Final = 1
S_HVA: Final = 2
S_FLAGS: Final = 3
S_DIRTY_WORD: Final = 4
S_BY_HVA: Final = 5
"""Of row n: the memslot that is n-th by user address; equal ones in the order in which they were set."""
SLOT_COLUMNS: Final = 6

SLOT_LOG_DIRTY: Final = U64(1)
SLOT_READONLY: Final = U64(2)
SLOT_GUEST_MEMFD: Final = U64(4)

LOG_MANUAL: Final = U64(1)
"""KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: KVM_GET_DIRTY_LOG changes nothing, KVM_CLEAR_DIRTY_LOG protects."""
LOG_ALL_SET: Final = U64(2)
"""KVM_DIRTY_LOG_INITIALLY_SET, with LOG_MANUAL: a log begins with every page dirty and nothing protected."""
RING_BITMAP: Final = U64(4)
"""KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP: memslots have a bitmap beside the rings."""

# What functions of the kernel return besides 0: 1 for a fault that L1 gets, else an error number.
FAULT_OF_L1: Final = 1
EAGAIN: Final = -11
EFAULT: Final = -14

# Outcomes of an abort.
RESUME: Final = 0
INJECTED: Final = 1
MMIO_EXIT: Final = 2
EFAULT_EXIT: Final = 3
OWN_FAULT: Final = 76
"""The exception went to the level that was running: EL1 of L2, or virtual EL2 itself."""

ZERO: Final = U64(0)
ONE: Final = U64(1)
