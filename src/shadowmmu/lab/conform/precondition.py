"""What a script must keep so that both sides can be asked: checked on its events, whoever wrote it.

L1 obeys break-before-make: the output of a nested address changes only after a TLBI that covers it. A VMID
belongs to one table. While the guest runs its memory is all there: the memslot, and what the VMM unmapped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from shadowmmu.events import schema
from shadowmmu.events.schema import Scenario
from shadowmmu.lab.conform.guest_tables import LEAF, PAGE, Pool, Root

ALL: Final = 1 << 48
GUEST_KINDS: Final = range(schema.NOP, schema.DONTNEED)
STORES: Final = (schema.HOST_WRITE,)
IN_L2: Final = (schema.TOUCH, schema.ENTER)
LOCAL: Final = (7, 8)
"""The TLBIs of one PE: IPAS2E1, VMALLS12E1."""
OF_SLOT: Final = (schema.LOG, schema.GETLOG, schema.CLEARLOG)
"""What the VMM asks of a memslot that is there."""
IPA_FIELD: Final = (1 << 36) - 1
RANGE_FIELD: Final = (1 << 37) - 1


@dataclass
class _Reader:
    """L1's tables and the VM's memory as the events before left them."""

    pool: Pool = field(default_factory=Pool)
    roots: dict[int, Root] = field(default_factory=dict)
    vmids: dict[int, Root] = field(default_factory=dict)
    shared: bool = False
    """Whether there are several vCPUs: what one PE invalidates for itself the others may hold."""
    vcpu: int = 0
    on: dict[int, Root] = field(default_factory=dict)
    """What VTTBR_EL2 of each vCPU names."""
    holes: list[tuple[int, int]] = field(default_factory=list)
    slot: bool = True
    logging: set[int] = field(default_factory=set)
    """The memslots that log."""

    @property
    def root(self) -> Root | None:
        """What VTTBR_EL2 of this vCPU names."""
        return self.on.get(self.vcpu)

    def select(self, at: int, vmid: int, vtcr: int) -> str:
        """L1 writes VTTBR_EL2."""
        if at and at not in self.roots:
            return f"s2 {at:#x}: no root table is there"
        root = self.roots[at] if at else Root(self.pool.take(), vmid, vtcr, 0)
        self.roots[root.at] = root
        owner = self.vmids.setdefault(vmid, root)
        if (owner is not root and owner.cached) or root.vmid != vmid or root.vtcr != vtcr:
            return f"VMID {vmid} changes its table without a TLBI"
        self.vmids[vmid] = self.on[self.vcpu] = root
        return ""

    def map(self, nested_ipa: int, canonical_ipa: int, size: int, level: int, window: int) -> str:
        """L1 writes leaves."""
        root = self.root
        if root is None:
            return "no root"
        for o in range(0, size, window or size):
            start, end = nested_ipa + o, nested_ipa + min(size, o + (window or size))
            if root.conflicts(start, end, canonical_ipa - start, level):
                return f"the output of {start:#x}-{end:#x} changes without a TLBI"
            root.map(self.pool, start, end, canonical_ipa - start, level)
        return ""

    def invalidate(self, kind: int, value: int) -> None:
        """L1 executes a TLBI; what it covers is no longer cached."""
        if self.root is None or kind == 6 or (kind in LOCAL and self.shared):
            return
        if kind == 5:
            for root in self.roots.values():
                root.invalidated(0, ALL)
        elif kind in (4, 8):
            self.root.invalidated(0, ALL)
        elif kind in (2, 3):
            start = (value & RANGE_FIELD) << 12
            pages = ((value >> 39 & 31) + 1) << (5 * (value >> 44 & 3) + 1)
            self.root.invalidated(start, start + pages * PAGE)
        else:
            start = (value & IPA_FIELD) << 12
            self.root.invalidated(start, start + PAGE)


def broken_precondition(scenario: Scenario) -> str:
    """What a scenario breaks, with its place; empty if it keeps the precondition. O(events x mappings)."""
    reader = _Reader(shared=scenario.vcpus > 1)
    for index, event in enumerate(scenario.events):
        kind = int(event["kind"])
        operands = [int(event[name]) for name in schema.OPERANDS]
        reader.vcpu = int(event["vcpu"])
        told = _step(reader, kind, operands)
        if told:
            return f"{scenario.where(index)}: {told}"
    return "" if reader.slot else "the memslot is left out at the end"


def _step(reader: _Reader, kind: int, operands: list[int]) -> str:
    a, b, c, d, _e, f = operands
    if (kind in GUEST_KINDS and not reader.slot) or (kind in (*GUEST_KINDS, *STORES) and reader.holes):
        return "the guest's memory is not all there"
    if kind in IN_L2 and reader.root is None:
        return "L2 runs before L1 wrote VTTBR_EL2"
    if kind == schema.SET_STAGE2:
        return reader.select(a, b, c)
    if kind == schema.MAP_GUEST:
        return reader.map(a, b, c, d, f)
    if kind == schema.UNMAP_GUEST and reader.root is not None:
        span = LEAF[c]
        reader.root.unmap(a, a + -(-b // span) * span)
    elif kind == schema.TLBI:
        reader.invalidate(a, b)
    elif kind == schema.RESET:
        reader.on.pop(reader.vcpu, None)
    elif kind == schema.MUNMAP:
        reader.holes.append((a, a + b))
    elif kind == schema.MMAP:
        reader.holes = [hole for hole in reader.holes if not (a <= hole[0] and hole[1] <= a + b)]
    elif kind == schema.SLOT:
        reader.slot = bool(a)
    else:
        return _log(reader, kind, operands)
    return ""


def _log(reader: _Reader, kind: int, operands: list[int]) -> str:
    """What the VMM does with memslots' logs: it reads only what KVM would give it."""
    a, _b, c, _d, e, _f = operands
    if kind in (schema.GETLOG, schema.CLEARLOG) and a not in reader.logging:
        return f"memslot {a} logs nothing"
    if kind in OF_SLOT and not reader.slot and (kind == schema.LOG or a == 0):
        return "the memslot is left out"
    if kind == schema.LOG:
        reader.logging = reader.logging - {0} | ({0} if a else set())
    elif kind == schema.MEMSLOT:
        reader.logging = reader.logging - {a} | ({a} if c and e & schema.SLOT_LOGS else set())
    return ""
