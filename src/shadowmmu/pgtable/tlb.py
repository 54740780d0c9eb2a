"""The TLB invalidations L0 issues for one of its own contexts, as counted events; and cache cleaning.

Mirrors Linux 7.3.4 ``hyp/vhe/tlb.c``: every stage-2 invalidation by address ends with a stage-1 one of
the whole VMID, because the virtual address is unknown.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, inline
from shadowmmu.machine.counters import (
    CACHE_BYTES,
    CACHE_CLEANS,
    DSBS,
    TLBI_IPA,
    TLBI_RANGE,
    TLBI_RANGE_SHADOW,
    TLBI_STAGE1,
    TLBI_VMID,
    TLBI_VMID_SHADOW,
)
from shadowmmu.machine.log import FLUSH_IPA, FLUSH_LOCAL, FLUSH_RANGE, FLUSH_VMID, observe_flush
from shadowmmu.machine.state import R_FWB, R_PAGE_SHIFT, R_TLBIRANGE, State

MAX_RANGE_PAGES: Final = U64(32 << 16)
"""Pages of the largest single range TLBI: ``MAX_TLBI_RANGE_PAGES``."""
ZERO: Final = U64(0)
ONE: Final = U64(1)


@inline
def defers_tlbi(s: State) -> bool:
    """Whether an unmap leaves its TLBI to one range invalidation at the end.

    Mirrors ``stage2_unmap_defer_tlb_flush``: needs FEAT_TLBIRANGE and FEAT_S2FWB.
    """
    return s.regs[R_TLBIRANGE] != ZERO and s.regs[R_FWB] != ZERO


@inline
def clean_cache(s: State, size: Word) -> None:
    """Clean and invalidate a leaf's memory to the point of coherency; nothing with FEAT_S2FWB.

    Mirrors ``clean_dcache_guest_page`` before a leaf is written and ``dcache_clean_inval_poc`` after it is
    cleared, Linux 7.3.4 (by reading). Every leaf here is cacheable.
    """
    if s.regs[R_FWB] == ZERO:
        s.count[CACHE_CLEANS] += 1
        s.count[CACHE_BYTES] += I64(size)


@inline
def flush_ipa(s: State, mmu: int, ipa: Word) -> None:
    """One invalidation by IPA. Mirrors ``__kvm_tlb_flush_vmid_ipa``."""
    observe_flush(s, FLUSH_IPA, mmu, ipa, ZERO)
    count_ipa(s)


@inline
def flush_ipa_local(s: State, mmu: int, ipa: Word) -> None:
    """The same in this PE alone. Mirrors ``__kvm_tlb_flush_vmid_ipa_nsh``."""
    observe_flush(s, FLUSH_LOCAL, mmu, ipa, ZERO)
    count_ipa(s)


@inline
def count_ipa(s: State) -> None:
    """What one invalidation by IPA takes."""
    s.count[TLBI_IPA] += 1
    s.count[TLBI_STAGE1] += 1
    s.count[DSBS] += 3


@inline
def flush_vmid(s: State, mmu: int) -> None:
    """Invalidate both stages of a whole VMID (VMALLS12E1IS). Mirrors ``__kvm_tlb_flush_vmid``."""
    observe_flush(s, FLUSH_VMID, mmu, ZERO, ZERO)
    s.count[TLBI_VMID] += 1
    s.count[DSBS] += 2
    if mmu != 0:
        s.count[TLBI_VMID_SHADOW] += 1


@inline
def flush_range(s: State, mmu: int, start: Word, size: Word) -> None:
    """Invalidate ``size`` bytes from ``start``, at most 2M pages at once.

    Mirrors ``kvm_tlb_flush_vmid_range``.
    """
    if s.regs[R_TLBIRANGE] == ZERO:
        flush_vmid(s, mmu)
        return
    observe_flush(s, FLUSH_RANGE, mmu, start, size)
    pages = size >> s.regs[R_PAGE_SHIFT]
    ranges = (pages + MAX_RANGE_PAGES - ONE) // MAX_RANGE_PAGES
    while ranges != ZERO:
        ranges -= ONE
        s.count[TLBI_RANGE] += 1
        s.count[TLBI_STAGE1] += 1
        s.count[DSBS] += 3
        if mmu != 0:
            s.count[TLBI_RANGE_SHADOW] += 1
