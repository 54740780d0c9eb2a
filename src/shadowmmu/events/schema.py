"""The event table: one fixed-size row an event, and the one declaration of every kind.

Kinds are plain module-level integers (``TOUCH``), so compiled code can use them as globals; ``KINDS``
says what each means and what its operands are, and ``Kind`` is the same list as an ``IntEnum`` for
printing. A row of zeros is a ``NOP``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from shadowmmu.machine.granule import DEFAULT_GRANULE

EVENT = np.dtype(
    [
        ("kind", "u2"),
        ("vcpu", "u2"),
        ("line", "u4"),
        ("a", "u8"),
        ("b", "u8"),
        ("c", "u8"),
        ("d", "u8"),
        ("e", "u8"),
        ("f", "u8"),
    ]
)
"""One event: its kind, the vCPU it happens on, the script line it came from (0: none), six operands."""

Events = npt.NDArray[np.void]

OPERANDS = ("a", "b", "c", "d", "e", "f")

NOP = 0
SET_STAGE2 = 1
MAP_GUEST = 2
UNMAP_GUEST = 3
TOUCH = 4
TLBI = 5
VM = 6
POKE = 7
PEEK = 8
S1 = 9
AT = 10
DONTNEED = 16
MUNMAP = 17
MMAP = 18
HUGEPAGE = 19
NOHUGEPAGE = 20
COLLAPSE = 21
MERGEABLE = 22
PAGEOUT = 23
HOST_WRITE = 24
MPROTECT = 25
PUNCH = 26
LOG = 32
GETLOG = 33
SLOT = 34
IDLE = 35
IDLEGET = 36
KHUGEPAGED = 82
MIGRATE = 83
CAPABILITY = 84
MEMSLOT = 85
CLEARLOG = 86
HARVEST = 87
KSM = 90
SWAP = 91
NUMA_HINT = 94
DUMP = 48
PAGEMAP = 49
MARK = 50
ENTER = 76
SCHEDULE = 77
RESET = 78
CACHES = 79
TEARDOWN = 80
VNCR = 70
TLBI_EL2 = 71
HOLD = 72
RELEASE = 73
RACE = 74
GAP = 75
GAP_TAKES = 3
"""Operation of GAP: no access of L2, the host takes pages."""

READ = 0
WRITE = 1
EXECUTE = 2
"""Values of operand ``d`` of TOUCH."""

CAPABILITIES = ("eager", "manual", "ring")
"""Values of operand ``a`` of CAPABILITY, and the words of the language for them."""

MOST_SLOTS = 8
"""Memslots that a VM may have."""

SLOT_LOGS = 1
SLOT_READ_ONLY = 2
"""Bits of operand ``e`` of MEMSLOT: KVM_MEM_LOG_DIRTY_PAGES and KVM_MEM_READONLY."""

TURNS = ("resume", "preempt", "wfi", "exit", "load")
"""Values of operand ``a`` of SCHEDULE, and the words of the language for them."""

CACHE_OPERATIONS = ("setway", "caches 0", "caches 1")
"""Values of operand ``a`` of CACHES, and how the language says them."""

PROT_READ = 1
PROT_WRITE = 2
"""Bits of operand ``c`` of MPROTECT, as in ``<sys/mman.h>``."""

CANONICAL_RAM = 0x4000_0000
"""Canonical IPA of the first byte of L1's memory (``RAM_BASE`` of the rig)."""

CODE_CANONICAL = 0x4005_0000
"""Canonical IPA of the page that holds L2's code (``L2CODE_PA`` of the rig)."""

CODE_NESTED = 0x1_0000
"""Nested IPA at which L2's code is mapped unless a script says otherwise (``L2CODE_IPA``)."""

DEFAULT_VTCR = 0x8002_3559
"""VTCR_EL2 of L1 unless a script says otherwise: 39 bits of nested IPA, levels 1 to 3, 4K granule."""

DEFAULT_VTCRS = {"4K": DEFAULT_VTCR, "16K": 0x8002_B55C, "64K": 0x8002_7559}
"""The same on a host of larger pages, which offers L1 no smaller granule: one root table, levels 2 and 3."""

NESTED_BITS = {"4K": 39, "16K": 36, "64K": 39}
"""Nested IPA bits under the default VTCR_EL2."""

DEFAULT_VM_IPA_BITS = 40
"""Width of the canonical space of a VM created with 0 as its IPA size (KVM's default)."""


@dataclass(frozen=True)
class KindSpec:
    """What one kind of event means: its number, its name and the meaning of each operand it uses."""

    number: int
    name: str
    meaning: str
    operands: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for documentation: name, meaning, operands ``a``, ``b``... with their meanings."""
        used = "; ".join(f"{letter}: {text}" for letter, text in zip(OPERANDS, self.operands, strict=False))
        return f"{self.name}: {self.meaning}" + (f" ({used})" if used else "")


_RANGE = ("canonical_ipa", "size in bytes")

_S1_REGISTERS = (
    "registers, a bit each: 0 TTBR0_EL1, 1 TTBR1_EL1, 2 TCR_EL1, 3 SCTLR_EL1, 4 MAIR_EL1, 13 TCR2_EL1, "
    "14 PIR_EL1, 15 PIRE0_EL1, 20 PSTATE of L1 (columns of arch.context)"
)
S1_VALUES = 5
"""Registers that one S1 writes at most."""

_TLBI_KINDS = (
    "kind: 0 IPAS2E1IS, 1 IPAS2LE1IS, 2 RIPAS2E1IS, 3 RIPAS2LE1IS, 4 VMALLS12E1IS, 5 ALLE1IS, "
    "6 VMALLE1IS, 7 IPAS2E1, 8 VMALLS12E1"
)

KINDS: tuple[KindSpec, ...] = (
    KindSpec(NOP, "NOP", "L1 is entered and does nothing"),
    KindSpec(
        SET_STAGE2,
        "SET_STAGE2",
        "L1 writes VTCR_EL2 and VTTBR_EL2",
        ("canonical_ipa of the root table, 0 takes a new zeroed page", "VMID", "VTCR_EL2"),
    ),
    KindSpec(
        MAP_GUEST,
        "MAP_GUEST",
        "L1 writes leaves in its guest stage 2",
        (
            "nested_ipa",
            "canonical_ipa",
            "size in bytes",
            "level of the leaves, 1 to 3",
            "attribute bits of the descriptors, without the output and the type",
            "window in bytes after which the canonical_ipa wraps, 0: none",
        ),
    ),
    KindSpec(
        UNMAP_GUEST,
        "UNMAP_GUEST",
        "L1 zeroes leaves in its guest stage 2; no TLBI",
        ("nested_ipa", "size in bytes", "level of the leaves, 1 to 3"),
    ),
    KindSpec(
        TOUCH,
        "TOUCH",
        "L2 runs and accesses count places a stride apart, then its HVC exits",
        (
            "va of the first access",
            "stride in bytes",
            "count of accesses",
            "operation: 0 read, 1 write, 2 execute",
            "nested_ipa of L2's code page",
        ),
    ),
    KindSpec(TLBI, "TLBI", "L1 invalidates", (_TLBI_KINDS, "value of the operand register")),
    KindSpec(VM, "VM", "L1 sets HCR_EL2.VM", ("0 or 1",)),
    KindSpec(POKE, "POKE", "L1 stores 8 bytes", ("canonical_ipa", "value")),
    KindSpec(PEEK, "PEEK", "L1 loads 8 bytes", ("canonical_ipa",)),
    KindSpec(
        S1,
        "S1",
        "L1 writes up to five registers of L2's stage 1",
        (_S1_REGISTERS, "value of the lowest bit", "of the next", "of the third", "fourth", "fifth"),
    ),
    KindSpec(AT, "AT", "L1 executes an AT instruction", ("operation, as in arch.operation", "va")),
    KindSpec(DONTNEED, "DONTNEED", "the VMM's madvise(MADV_DONTNEED)", _RANGE),
    KindSpec(MUNMAP, "MUNMAP", "the VMM's munmap", _RANGE),
    KindSpec(MMAP, "MMAP", "the VMM maps fresh anonymous memory over the range", _RANGE),
    KindSpec(HUGEPAGE, "HUGEPAGE", "the VMM's madvise(MADV_HUGEPAGE)", _RANGE),
    KindSpec(NOHUGEPAGE, "NOHUGEPAGE", "the VMM's madvise(MADV_NOHUGEPAGE)", _RANGE),
    KindSpec(COLLAPSE, "COLLAPSE", "the VMM's madvise(MADV_COLLAPSE)", _RANGE),
    KindSpec(MERGEABLE, "MERGEABLE", "the VMM's madvise(MADV_MERGEABLE)", _RANGE),
    KindSpec(PAGEOUT, "PAGEOUT", "the VMM's madvise(MADV_PAGEOUT)", _RANGE),
    KindSpec(
        HOST_WRITE,
        "HOST_WRITE",
        "the VMM stores to each page of the range",
        (*_RANGE, "0 its canonical_ipa, 1 a ret instruction"),
    ),
    KindSpec(
        MPROTECT,
        "MPROTECT",
        "the VMM's mprotect",
        (*_RANGE, "protection bits: 1 read, 2 write"),
    ),
    KindSpec(
        PUNCH, "PUNCH", "the host takes exactly the range, with one notifier and no split notifier", _RANGE
    ),
    KindSpec(LOG, "LOG", "dirty logging of memslot 0", ("0 off, 1 on",)),
    KindSpec(GETLOG, "GETLOG", "KVM_GET_DIRTY_LOG", ("memslot",)),
    KindSpec(SLOT, "SLOT", "memslot 0 is deleted or made again", ("0 delete, 1 make",)),
    KindSpec(IDLE, "IDLE", "the host marks pages idle (page_idle)", ("canonical_ipa", "pages")),
    KindSpec(IDLEGET, "IDLEGET", "the host reads which pages are still idle", ("canonical_ipa", "pages")),
    KindSpec(KHUGEPAGED, "KHUGEPAGED", "khugepaged collapses what it can of the VMM's memory"),
    KindSpec(MIGRATE, "MIGRATE", "each page of the range moves to another frame (move_pages)", _RANGE),
    KindSpec(
        NUMA_HINT, "NUMA_HINT", "NUMA balancing sets hints on the 2M blocks that the range is in", _RANGE
    ),
    KindSpec(SWAP, "SWAP", "swap space is there (swapon) or not (swapoff)", ("0 or 1",)),
    KindSpec(KSM, "KSM", "ksmd goes over the mergeable memory until nothing is left to merge"),
    KindSpec(
        CAPABILITY,
        "CAPABILITY",
        "what the VMM enabled when it made the VM",
        (
            "0 eager page splitting, 1 manual protection of the dirty log, 2 dirty rings",
            "bytes of a chunk; 1: a log begins with every page dirty; entries of a ring",
            "1: rings with a bitmap beside them",
        ),
    ),
    KindSpec(
        MEMSLOT,
        "MEMSLOT",
        "KVM_SET_USER_MEMORY_REGION of a window onto the VM's memory: made, moved, deleted, its log switched",
        (
            "memslot",
            "canonical_ipa of the window",
            "size in bytes, 0 deletes it",
            "canonical_ipa of the memory, in memslot 0",
            "1: dirty logging, 2: read-only",
        ),
    ),
    KindSpec(
        CLEARLOG, "CLEARLOG", "KVM_CLEAR_DIRTY_LOG", ("memslot", "first page", "pages, 0: all that follow")
    ),
    KindSpec(HARVEST, "HARVEST", "the VMM reads the dirty rings and resets them (KVM_RESET_DIRTY_RINGS)"),
    KindSpec(
        DUMP,
        "DUMP",
        "observation: the page tables",
        ("index of the label", "0 canonical and shadows, 1 shadows only"),
    ),
    KindSpec(PAGEMAP, "PAGEMAP", "observation: host frames", ("canonical_ipa", "pages")),
    KindSpec(MARK, "MARK", "observation: a label in the trace", ("index of the label",)),
    KindSpec(ENTER, "ENTER", "L1 enters L2, which stays", ("nested_ipa of L2's code page",)),
    KindSpec(
        SCHEDULE,
        "SCHEDULE",
        "a vCPU gets or loses its CPU",
        ("turn: 0 loaded and entered, 1 preempted, 2 asleep in WFI, 3 out to the VMM, 4 loaded",),
    ),
    KindSpec(RESET, "RESET", "KVM_ARM_VCPU_INIT of a vCPU that has run"),
    KindSpec(
        CACHES,
        "CACHES",
        "the guest's caches",
        ("operation: 0 by set and way, 1 switched off with the MMU, 2 switched on",),
    ),
    KindSpec(TEARDOWN, "TEARDOWN", "the VMM's process ends, and the VM with it"),
    KindSpec(
        VNCR,
        "VNCR",
        "L1 writes VNCR_EL2 and runs a hypervisor of its own, which accesses a register kept in that page",
        ("va of the page in L1's EL2&0 regime", "operation: 0 read, 1 write", "nested_ipa of L2's code page"),
    ),
    KindSpec(
        TLBI_EL2,
        "TLBI_EL2",
        "L1 invalidates its own EL2&0 regime, {E2H,TGE} being {1,1}",
        ("scope: 0 all, 1 VA, 2 VA of every ASID, 3 ASID, 4 and 5 ranges of 1 and 2", "operand register"),
    ),
    KindSpec(
        HOLD,
        "HOLD",
        "the host begins to invalidate a range and goes on later",
        ("canonical_ipa", "bytes", "faults that bounce before it goes on, 0: at RELEASE", "1: may not sleep"),
    ),
    KindSpec(RELEASE, "RELEASE", "the host takes the range of HOLD and ends the invalidation"),
    KindSpec(
        RACE,
        "RACE",
        "the host takes a range in the middle of the vCPU's next fault",
        ("canonical_ipa", "bytes"),
    ),
    KindSpec(
        GAP,
        "GAP",
        "what gets in while the next TLBI has given mmu_lock away: L2 on the last vCPU, or the host",
        (
            "chunks before it",
            "va, or canonical_ipa that the host takes",
            "operation: 0 read, 1 write, 2 execute, 3 the host takes pages",
            "nested_ipa of L2's code page, or bytes",
        ),
    ),
)

SPECS: dict[int, KindSpec] = {spec.number: spec for spec in KINDS}

Kind: Any = cast(Any, IntEnum)("Kind", {spec.name: spec.number for spec in KINDS}, module=__name__)
"""The kinds as an ``IntEnum``, for printing: ``Kind(4).name == "TOUCH"``."""

HOST_RANGE_KINDS = tuple(spec.number for spec in KINDS if spec.operands[:2] == _RANGE)
"""The kinds that act on a canonical range of the VMM's memory."""

_FIRST_ROWS = 64


class EventTable:
    """Builds an event array row by row or column by column; amortised O(1) a row."""

    def __init__(self) -> None:
        self._rows: Events = np.zeros(_FIRST_ROWS, EVENT)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def _reserve(self, more: int) -> int:
        first, needed = self._used, self._used + more
        if needed > len(self._rows):
            grown = np.zeros(max(needed, 2 * len(self._rows)), EVENT)
            grown[:first] = self._rows[:first]
            self._rows = grown
        self._used = needed
        return first

    def append(self, kind: int, *operands: int, vcpu: int = 0, line: int = 0) -> int:
        """Append one event with up to six operands (missing ones are 0) and return its index.

        Raises ValueError for an unknown kind or more than six operands, OverflowError for an operand
        that does not fit 64 bits; the table is unchanged then.
        """
        if kind not in SPECS:
            raise ValueError(f"unknown event kind {kind}")
        if len(operands) > len(OPERANDS):
            raise ValueError(f"an event has {len(OPERANDS)} operands, not {len(operands)}")
        row = np.zeros(1, EVENT)
        row[0] = (kind, vcpu, line, *operands, *(0,) * (len(OPERANDS) - len(operands)))
        at = self._reserve(1)
        self._rows[at] = row[0]
        return at

    def extend(self, kind: npt.ArrayLike, **columns: npt.ArrayLike) -> slice:
        """Append many events at once and return where they are.

        ``kind`` and the columns (``a`` to ``f``, ``vcpu``, ``line``) are scalars or arrays and broadcast
        against each other. Raises ValueError for an unknown kind or column, or shapes that do not fit.
        """
        unknown = set(columns) - set(EVENT.names or ())
        if unknown:
            raise ValueError(f"no column {sorted(unknown)} in an event")
        given = {"kind": np.asarray(kind), **{name: np.asarray(c) for name, c in columns.items()}}
        if not np.isin(given["kind"], list(SPECS)).all():
            raise ValueError("unknown event kind")
        shape = np.broadcast_shapes((1,), *(column.shape for column in given.values()))
        if len(shape) != 1:
            raise ValueError("the columns of events have one dimension")
        block = np.zeros(shape, EVENT)
        for name, column in given.items():
            block[name] = column
        first = self._reserve(len(block))
        self._rows[first : self._used] = block
        return slice(first, self._used)

    def append_rows(self, rows: Events) -> None:
        """Append rows that are events already (from another table)."""
        if rows.dtype != EVENT or rows.ndim != 1:
            raise ValueError("expected a one-dimensional array of events")
        first = self._reserve(len(rows))
        self._rows[first : self._used] = rows

    def finish(self) -> Events:
        """A read-only copy of the events so far."""
        events = self._rows[: self._used].copy()
        events.setflags(write=False)
        return events


@dataclass(frozen=True, eq=False)
class Scenario:
    """A virtual machine and everything that happens to it.

    ``memory_bytes`` of canonical RAM start at ``CANONICAL_RAM``; ``vcpus`` vCPUs give the VM twice as
    many shadow MMUs; ``backing`` is how the VMM advises its memory: ``base`` (no huge pages), ``thp`` or
    ``huge`` (hugetlb); ``e2h0`` makes L1 an nVHE hypervisor; ``vm_ipa_bits`` is the VM's canonical address
    width, 0 for KVM's default of 40; ``granule`` is the host's page size. ``labels`` are the texts that DUMP
    and MARK refer to. ``path`` and ``lines`` are the script, if there was one.
    """

    name: str
    memory_bytes: int
    events: Events
    vcpus: int = 1
    backing: str = "base"
    e2h0: bool = False
    vm_ipa_bits: int = 0
    granule: str = DEFAULT_GRANULE
    labels: tuple[str, ...] = ()
    path: str = ""
    lines: tuple[str, ...] = field(default=(), repr=False)

    @property
    def canonical_end(self) -> int:
        """Canonical IPA just above the VM's memory."""
        return CANONICAL_RAM + self.memory_bytes

    def label(self, index: int) -> str:
        """The label of event ``index``, empty if the event has none. Raises IndexError."""
        event = self.events[index]
        return self.labels[int(event["a"])] if int(event["kind"]) in (DUMP, MARK) else ""

    def where(self, index: int) -> str:
        """``file:line: text`` of event ``index``, or its number when it came from no script."""
        number = int(self.events[index]["line"])
        if 0 < number <= len(self.lines):
            return f"{self.path or self.name}:{number}: {self.lines[number - 1]}"
        return f"{self.path or self.name}: event {index}"


def same_events(one: Scenario, other: Scenario) -> bool:
    """Whether two scenarios make the same VM and the same events, wherever their scripts came from.

    Labels are compared as texts; names, paths and line numbers are not compared.
    """
    return _machine(one) == _machine(other) and _plain(one) == _plain(other)


def _machine(scenario: Scenario) -> tuple[Any, ...]:
    s = scenario
    return (s.memory_bytes, s.vcpus, s.backing, s.e2h0, s.vm_ipa_bits, s.granule)


def _plain(scenario: Scenario) -> Sequence[tuple[Any, ...]]:
    plain = []
    for i, row in enumerate(scenario.events.tolist()):
        kind, vcpu, _, *operands = row
        if kind in (DUMP, MARK):
            operands[0] = scenario.label(i)
        plain.append((kind, vcpu, *operands))
    return plain
