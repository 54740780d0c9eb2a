"""Two TLBs that keep all they may, beside a running machine: what the machine's answers would let happen.

- The *CPU's* TLB holds every shadow leaf that L0 ever wrote, until L0's own invalidations must remove it
  (``arch.tlb_ideal``; each shadow MMU has a VMID of its own). Where L2 takes an abort and this TLB holds a
  translation that permits the access, real hardware may never have taken the abort: L0 changed its tables
  and did not invalidate. A write that goes that way sets no bit of the dirty bitmap.
- *L1's* TLB holds what L1's own stage 2 gave for the places that L2 accessed, until L1's TLBIs must remove
  it. Where L2 reaches memory that neither L1's table nor this TLB leads to, L0 gave what L1 had taken away,
  or never gave.

L2 runs with its stage 1 off, so that a VA is a nested IPA, and all happens on one PE. Walk entries are left
out: an entry here is a leaf. Only what was accessed is judged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from shadowmmu.arch import fault
from shadowmmu.arch.fault import EXECUTE, READ, WRITE
from shadowmmu.arch.regime import TG0_MASK, TG0_SHIFT, granule_shift
from shadowmmu.arch.stage2 import OA_BITS, VALID, stage2_permits
from shadowmmu.arch.tlb import Entry, entry, key
from shadowmmu.arch.tlb_ideal import (
    FULL,
    Ideal,
    ideal_entries,
    ideal_fill,
    ideal_grow,
    ideal_invalidate,
    ideal_lookup,
    ideal_tlb,
)
from shadowmmu.arch.tlbi_scope import BOTH, STAGE2, Issuer, Scope, current_vmid, issuer, scope_of
from shadowmmu.compiled import U64
from shadowmmu.engine.executor import Executor
from shadowmmu.events.schema import GETLOG, LOG, TLBI, TOUCH
from shadowmmu.kvm.layout import V_HCR, V_VTCR, V_VTTBR
from shadowmmu.kvm.pool import HCR_VM, NOT_FOUND, lookup_shadow
from shadowmmu.kvm.tlbi import NAMES
from shadowmmu.machine.log import DIRTY, FLUSH, FLUSH_VMID, GUEST_FAULT, HVC, LEAF
from shadowmmu.machine.state import R_LOG_TOP, State
from shadowmmu.pgtable.attributes import find_entry
from shadowmmu.pgtable.context import CANONICAL
from shadowmmu.verify.rules import address_chain

PAGE: Final = 4096
PAGE_SHIFT: Final = 12
VMID_SHIFT: Final = 48
MOST_HITS: Final = 64

LOST_DIRTY_PAGE: Final = "lost dirty page"
STALE_TRANSLATION: Final = "stale translation"
USE_AFTER_UNMAP: Final = "use after unmap"
NEVER_MAPPED: Final = "memory L1 never mapped there"

ESR_CLASS_SHIFT: Final = 26
INSTRUCTION_ABORT: Final = 0x20
ESR_WRITE: Final = 1 << 6


@dataclass(frozen=True)
class Consequence:
    """What a legal TLB makes of the machine's answers: its kind, and the chain that shows it."""

    kind: str
    text: str
    event: int


class Tlb:
    """An ideal TLB that grows, with plain integers at its edge."""

    def __init__(self) -> None:
        self.ideal: Ideal = ideal_tlb(64)

    def fill(self, e: Entry) -> None:
        """Keep a translation."""
        while ideal_fill(self.ideal, e, fault.NONE) == FULL:
            self.ideal = ideal_grow(self.ideal)

    def invalidate(self, scope: Scope) -> None:
        """Remove what a TLBI must remove."""
        ideal_invalidate(self.ideal, scope)

    def entries(self) -> list[Entry]:
        """All that is held."""
        return ideal_entries(self.ideal)

    def lookup(self, kind: int, vmid: int, ia: int) -> list[Entry]:
        """The entries that may be used for an input address."""
        rows = np.zeros(MOST_HITS, np.int64)
        hits = int(ideal_lookup(self.ideal, key(kind, ia, vmid=vmid), rows))
        held = self.entries()
        return [held[int(row)] for row in rows[: min(hits, MOST_HITS)]]


def access_of_abort(esr: int) -> int:
    """READ, WRITE or EXECUTE, as the syndrome of an abort says."""
    if esr >> ESR_CLASS_SHIFT == INSTRUCTION_ABORT:
        return EXECUTE
    return WRITE if esr & ESR_WRITE else READ


@dataclass(frozen=True)
class Silent:
    """An abort of L2 that a legal TLB would have spared: where, and the event that wrote the translation."""

    event: int
    nested_ipa: int
    access: int
    written: int


@dataclass
class CpuTlb:
    """The CPU's TLB against L0's tables: aborts that need not happen, and the writes that nobody hears of."""

    tlb: Tlb = field(default_factory=Tlb)
    found: list[Consequence] = field(default_factory=list)
    _written: dict[tuple[int, int, int], int] = field(default_factory=dict)
    _silent: Silent | None = None
    _unheard: dict[int, Silent] = field(default_factory=dict)
    _heard: set[int] = field(default_factory=set)

    def row(self, executor: Executor, row: list[int]) -> None:
        """One row of the machine's log."""
        kind, event, a, b, c, d, e = row[:7]
        if kind == LEAF and d != CANONICAL:
            self._fill(event, a, b, c, d)
        elif kind == FLUSH and d != CANONICAL:
            for scope in flush_scopes(a, b, c, d):
                self.tlb.invalidate(scope)
        elif kind == GUEST_FAULT:
            self._silent = self._spared(event, a, access_of_abort(b), e) if e != CANONICAL else None
            if self._silent is not None:
                self.found.append(stale_translation(executor, self._silent))
        elif kind == DIRTY:
            if self._silent is not None and self._silent.event == event:
                self._unheard.setdefault(a & ~(PAGE - 1), self._silent)
            else:
                self._heard.add(a & ~(PAGE - 1))

    def _fill(self, event: int, ipa: int, level: int, descriptor: int, mmu: int) -> None:
        output = descriptor & int(OA_BITS)
        for stages in (STAGE2, BOTH):
            leaf = (PAGE_SHIFT, level)
            self.tlb.fill(
                entry(stages, vmid=mmu, stage2=leaf, input=ipa, ipa=ipa, output=output, attributes=descriptor)
            )
        self._written[mmu, ipa, descriptor] = event

    def _spared(self, event: int, nested_ipa: int, access: int, mmu: int) -> Silent | None:
        """The abort, if the TLB may hold a translation that permits the access."""
        for stages in (STAGE2, BOTH):
            for hit in self.tlb.lookup(stages, mmu, nested_ipa):
                if stage2_permits(U64(hit.attributes), access):
                    written = self._written[mmu, int(hit.input), int(hit.attributes)]
                    return Silent(event, nested_ipa, access, written)
        return None

    def log_switched(self) -> None:
        """The dirty log begins, or ends: its bitmap is empty."""
        self._unheard.clear()
        self._heard.clear()

    def harvest(self, executor: Executor, event: int) -> None:
        """The bitmap is read and cleared: which pages were written and are not in it?"""
        for page, silent in sorted(self._unheard.items()):
            if page not in self._heard:
                self.found.append(lost_page(executor, page, silent, event))
        self.log_switched()


def flush_scopes(scope: int, start: int, size: int, mmu: int) -> list[Scope]:
    """What L0's invalidation must remove, as the TLBIs that KVM executes for it.

    By address: IPAS2E1 (or the range form) for stage 2, then VMALLE1 for what includes stage 1, because the
    VA is unknown. Source: Linux 7.3.4 ``hyp/vhe/tlb.c``.
    """
    pe = issuer(vttbr=mmu << VMID_SHIFT)
    if scope == FLUSH_VMID:
        return [scope_of("VMALLS12E1IS", 0, pe)]
    by_ipa = scope_of("IPAS2E1IS", start >> PAGE_SHIFT, pe)
    return [by_ipa._replace(size=U64(max(size, PAGE))), scope_of("VMALLE1IS", 0, pe)]


def stale_translation(executor: Executor, silent: Silent) -> Consequence:
    """An abort that a legal TLB does not take."""
    verb = {READ: "read", WRITE: "write", EXECUTE: "fetch"}[silent.access]
    text = (
        f"nested IPA {silent.nested_ipa:#x}: L2's {verb} ({place(executor, silent.event)}) aborts by the "
        f"tables, but the CPU may still use the translation of {place(executor, silent.written)}: nothing "
        "invalidated it"
    )
    return Consequence(STALE_TRANSLATION, text, silent.event)


def lost_page(executor: Executor, page: int, silent: Silent, harvest: int) -> Consequence:
    """A write that the dirty log does not show."""
    text = (
        f"canonical {page:#x}: written by L2 through nested IPA {silent.nested_ipa:#x} "
        f"({place(executor, silent.event)}) after the log was armed, by a translation that the CPU may keep "
        f"since {place(executor, silent.written)}; the harvest ({place(executor, harvest)}) does not have it"
    )
    return Consequence(LOST_DIRTY_PAGE, text, harvest)


def place(executor: Executor, event: int) -> str:
    """``line N: TEXT`` of an event of a script."""
    scenario = executor.scenario
    number = int(scenario.events[event]["line"])
    if 0 < number <= len(scenario.lines):
        return f"line {number}, {scenario.lines[number - 1].strip()}"
    return f"event {event}"


@dataclass
class GuestTlb:
    """L1's TLB against what L2 reached."""

    tlb: Tlb = field(default_factory=Tlb)
    found: list[Consequence] = field(default_factory=list)

    def invalidated(self, state: State, vcpu: int, form: int, operand: int) -> None:
        """L1 executed a TLBI."""
        self.tlb.invalidate(scope_of(NAMES[form], operand, l1_registers(state, vcpu)))

    def holds_vmid(self, state: State, vcpu: int) -> bool:
        """Whether any translation of L1's present VMID may be held."""
        vmid = int(current_vmid(l1_registers(state, vcpu)))
        return any(e.vmid == vmid for e in self.tlb.entries())

    def touched(self, executor: Executor, event: int, done: int) -> None:
        """L2 ran: the first ``done`` of its accesses were made."""
        row = executor.scenario.events[event]
        state, vcpu = executor.state, int(row["vcpu"])
        mmu = int(lookup_shadow(state, vcpu))
        if mmu == NOT_FOUND or not int(state.vcpus[vcpu, V_HCR]) & int(HCR_VM):
            return
        pages = {int(row["a"]) + i * int(row["b"]) & ~(PAGE - 1) for i in range(done)}
        for nested_ipa in sorted(pages):
            consequence = self._accessed(executor, event, mmu, nested_ipa)
            if consequence is not None:
                self.found.append(consequence)

    def _accessed(self, executor: Executor, event: int, mmu: int, nested_ipa: int) -> Consequence | None:
        state, vcpu = executor.state, int(executor.scenario.events[event]["vcpu"])
        reached = reached_page(state, mmu, nested_ipa)
        if reached is None:
            return None
        vtcr = int(state.vcpus[vcpu, V_VTCR])
        vmid = int(current_vmid(l1_registers(state, vcpu)))
        input_bits = 64 - (vtcr & 0x3F)
        chain = address_chain(state, mmu, U64(nested_ipa), U64(0))
        inside = nested_ipa >> input_bits == 0
        if inside and chain.fault == fault.NONE:
            granule = int(granule_shift((U64(vtcr) >> TG0_SHIFT) & TG0_MASK))
            leaf = (granule, int(chain.level))
            self.tlb.fill(entry(STAGE2, vmid=vmid, stage2=leaf, input=nested_ipa, output=int(chain.output)))
            if int(chain.output) & ~(PAGE - 1) == reached:
                return None
        if reached in self._may_reach(vmid, nested_ipa):
            return None
        gone = chain.fault != fault.NONE and not self._leads_to(vmid, reached)
        return beyond(executor, event, nested_ipa, reached, None if inside else input_bits, gone)

    def _may_reach(self, vmid: int, nested_ipa: int) -> set[int]:
        """Canonical pages that L1's TLB may lead to."""
        return {
            int(e.output) + (nested_ipa - int(e.input)) & ~(PAGE - 1)
            for e in self.tlb.lookup(STAGE2, vmid, nested_ipa)
        }

    def _leads_to(self, vmid: int, canonical_ipa: int) -> bool:
        """Whether any translation of the VMID that may be held leads to a canonical page."""
        return any(e.vmid == vmid and int(e.output) == canonical_ipa for e in self.tlb.entries())


def l1_registers(state: State, vcpu: int) -> Issuer:
    """The PE as a TLBI of L1 sees it."""
    row = state.vcpus[vcpu]
    return issuer(hcr=int(row[V_HCR]), vttbr=int(row[V_VTTBR]), vtcr=int(row[V_VTCR]))


def reached_page(state: State, mmu: int, nested_ipa: int) -> int | None:
    """The canonical page behind a nested one by the shadow's leaf and the judge's record of its fill."""
    word, level = find_entry(state, mmu, U64(nested_ipa))
    if not int(state.mem[int(word)]) & int(VALID):
        return None
    size = 1 << (PAGE_SHIFT + 9 * (3 - int(level)))
    return (int(state.ghost[int(word)]) & ~(PAGE - 1)) + (nested_ipa & (size - 1) & ~(PAGE - 1))


def beyond(
    executor: Executor, event: int, nested_ipa: int, reached: int, input_bits: int | None, gone: bool
) -> Consequence:
    """L2 reached what L1's stage 2 does not give, by its table or by any TLB."""
    kind = USE_AFTER_UNMAP if gone else NEVER_MAPPED
    text = f"nested IPA {nested_ipa:#x} {'still ' if gone else ''}reaches canonical {reached:#x}"
    text += f" ({place(executor, event)})"
    if gone:
        text += ", which L1 unmapped and invalidated"
    if input_bits is not None:
        text += f"; L1's stage 2 has {input_bits} bits of input: a translation fault at level 0"
    return Consequence(kind, text, event)


@dataclass
class Witness:
    """Both TLBs. ``look`` is an ``after_event`` of an executor whose machine is judged and logs its TLBIs."""

    cpu: CpuTlb = field(default_factory=CpuTlb)
    guest: GuestTlb = field(default_factory=GuestTlb)
    _seen: int = 0

    def look(self, executor: Executor) -> None:
        """After every event. O(rows of the log since then, entries held, pages touched)."""
        state = executor.state
        event = executor.position - 1
        row = executor.scenario.events[event]
        kind, vcpu = int(row["kind"]), int(row["vcpu"])
        if kind == GETLOG:
            self.cpu.harvest(executor, event)
        top = int(state.regs[R_LOG_TOP])
        if top > len(state.log):
            raise AssertionError("the log has lost rows: a witness needs them all")
        rows = state.log[self._seen : top].tolist()
        self._seen = top
        if kind == LOG:
            self.cpu.log_switched()
        for logged in rows:
            self.cpu.row(executor, logged)
        if kind == TLBI:
            self.guest.invalidated(state, vcpu, int(row["a"]), int(row["b"]))
        elif kind == TOUCH:
            left = next((logged[6] for logged in reversed(rows) if logged[0] == HVC), int(row["c"]))
            self.guest.touched(executor, event, int(row["c"]) - left)

    @property
    def found(self) -> list[Consequence]:
        """What was concluded; a stale translation only where nothing worse follows from it."""
        lost = [c for c in self.cpu.found if c.kind == LOST_DIRTY_PAGE]
        return [*(lost or self.cpu.found), *self.guest.found]
