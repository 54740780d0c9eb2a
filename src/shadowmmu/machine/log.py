"""The observation log: what happened, in order, as rows of eight words.

A row is (kind, event index, five operands, vCPU or MMU). It is written only while ``R_LOG_ON``; the
executor empties and grows it between steps. Kinds carry the names of the rig's trace events.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, apart, inline
from shadowmmu.machine.state import R_EVENT, R_LOG_ON, R_LOG_TLB, R_LOG_TOP, State, Word

GUEST_FAULT: Final = 1
MAP: Final = 2
RELAX: Final = 3
RANGE: Final = 4
UNMAP_GFN: Final = 5
INJECT: Final = 6
TLBI: Final = 7
MMIO: Final = 8
AGE: Final = 9
WRITE_PROTECT: Final = 10
NESTED_UNMAP: Final = 11
STALE: Final = 12
HVC: Final = 13
ERROR: Final = 14
AT: Final = 15
OWN: Final = 76
SPLIT: Final = 84
RING_FULL: Final = 85
HARVESTED: Final = 86

VNCR_FILL: Final = 70
VNCR_MAP: Final = 71
VNCR_UNMAP: Final = 72
VNCR_INVALIDATE: Final = 73
VNCR_FAULT: Final = 74
# Written only while R_LOG_TLB: what a TLB may hold, and what the dirty bitmap hears.
LEAF: Final = 64
FLUSH: Final = 65
DIRTY: Final = 66

KINDS: Final[dict[int, tuple[str, tuple[str, ...]]]] = {
    GUEST_FAULT: ("kvm_guest_fault", ("ipa", "hsr", "hxfar", "pc")),
    MAP: ("s2map", ("addr", "size", "phys", "prot", "mmu")),
    RELAX: ("s2relax", ("addr", "prot", "mmu")),
    RANGE: ("s2range", ("addr", "size", "mmu")),
    UNMAP_GFN: ("unmap_gfn", ("start", "end", "mayblock")),
    INJECT: ("inject_s2", ("esr", "far", "hpfar")),
    TLBI: ("tlbi", ("kind", "val")),
    MMIO: ("mmio", ("phys_addr", "write")),
    AGE: ("age_gfn", ("start", "end")),
    WRITE_PROTECT: ("s2wp", ("addr", "size", "mmu")),
    NESTED_UNMAP: ("nested_unmap", ("start", "end")),
    STALE: ("stale", ("rule", "mmu", "word")),
    HVC: ("touch", ("esr", "far", "hpfar", "elr", "left")),
    ERROR: ("efault", ("ipa",)),
    AT: ("at", ("op", "va", "par", "slow", "replayed")),
    OWN: ("inject_own", ("esr", "far", "pc")),
    SPLIT: ("s2split", ("addr", "size")),
    RING_FULL: ("ring_full", ("vcpu",)),
    HARVESTED: ("harvested", ("ipa", "vcpu")),
    VNCR_FILL: ("vncr_fill", ("gva", "ipa", "hpa", "writable", "vcpu")),
    VNCR_MAP: ("vncr_map", ("gva", "hpa", "writable", "vcpu")),
    VNCR_UNMAP: ("vncr_unmap", ("gva", "hpa", "vcpu")),
    VNCR_INVALIDATE: ("vncr_invalidate", ("gva", "ipa", "hpa", "vcpu")),
    VNCR_FAULT: ("vncr_fault", ("gva", "esr", "vcpu")),
    LEAF: ("leaf", ("addr", "level", "descriptor", "mmu")),
    FLUSH: ("flush", ("scope", "addr", "size", "mmu")),
    DIRTY: ("dirty", ("ipa",)),
}

FLUSH_IPA: Final = 0
"""Scopes of FLUSH: one IPA in all PEs, one IPA in this PE, a range, a whole VMID; in the names of the rig."""
FLUSH_LOCAL: Final = 1
FLUSH_RANGE: Final = 2
FLUSH_VMID: Final = 3
FLUSH_NAMES: Final = ("flush_ipa", "flush_ipa_nsh", "flush_range", "flush_vmid")

ROWS_PER_STEP: Final = 64
"""Rows one step of an event may write: the executor keeps this much room."""

ZERO: Final = U64(0)
ONE: Final = U64(1)


@inline
def observe(s: State, kind: int, a: Word, b: Word, c: Word, d: Word, e: Word) -> None:
    """Append one row, if the log is on. Rows beyond its end are dropped and counted by ``R_LOG_TOP``."""
    if s.regs[R_LOG_ON] != ZERO:
        write_row(s, kind, a, b, c, d, e)


@apart
def write_row(s: State, kind: int, a: Word, b: Word, c: Word, d: Word, e: Word) -> None:
    """Append one row if there is room."""
    top = I64(s.regs[R_LOG_TOP])
    s.regs[R_LOG_TOP] = U64(top + 1)
    if top >= len(s.log):
        return
    s.log[top, 0] = U64(kind)
    s.log[top, 1] = s.regs[R_EVENT]
    s.log[top, 2] = a
    s.log[top, 3] = b
    s.log[top, 4] = c
    s.log[top, 5] = d
    s.log[top, 6] = e


@inline
def observe_leaf(s: State, mmu: int, ipa: Word, level: int, descriptor: Word) -> None:
    """A leaf that a TLB may hold from now on was written."""
    if s.regs[R_LOG_TLB] != ZERO:
        observe(s, LEAF, ipa, U64(level), descriptor, U64(mmu), ZERO)


@inline
def observe_flush(s: State, scope: int, mmu: int, start: Word, size: Word) -> None:
    """L0 invalidated."""
    if s.regs[R_LOG_TLB] != ZERO:
        write_flush(s, scope, mmu, start, size)


@apart
def write_flush(s: State, scope: int, mmu: int, start: Word, size: Word) -> None:
    """One row. A range that goes on where the last row's ended is added to it: a sweep is one row."""
    last = I64(s.regs[R_LOG_TOP]) - 1
    if scope == FLUSH_RANGE and 0 <= last < len(s.log) and s.log[last, 0] == U64(FLUSH):
        same = s.log[last, 1] == s.regs[R_EVENT] and s.log[last, 5] == U64(mmu)
        if same and s.log[last, 2] == U64(scope) and s.log[last, 3] + s.log[last, 4] == start:
            s.log[last, 4] += size
            return
    observe(s, FLUSH, U64(scope), start, size, U64(mmu), ZERO)


@inline
def observe_dirty(s: State, canonical_ipa: Word) -> None:
    """A page's bit of the dirty bitmap was set."""
    if s.regs[R_LOG_TLB] != ZERO:
        observe(s, DIRTY, canonical_ipa, ZERO, ZERO, ZERO, ZERO)
