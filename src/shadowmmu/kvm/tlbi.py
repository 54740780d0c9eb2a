"""L1's TLBIs, trapped and carried out on the shadow MMUs.

Mirrors Linux 7.3.4 ``handle_ipas2e1is``, ``handle_ripas2e1is``, ``handle_vmalls12e1is``,
``handle_alle1is``, ``handle_tlbi_el1`` (``sys_regs.c``) and ``compute_tlb_inval_range``,
``get_guest_mapping_ttl`` (``nested.c``). Leaf-only forms act like the full ones, local forms like the
broadcast ones.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import SHIFT_4K
from shadowmmu.arch.stage2 import VALID
from shadowmmu.arch.tlbi import ipas2_address, ipas2_ttl, ripas2_range, ttl_size
from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.dispatch import design_forget
from shadowmmu.designs.interface import CAUSE_INVALIDATED
from shadowmmu.kvm.differences import TLBI_BEYOND_LIMIT, as_architecture
from shadowmmu.kvm.granule import guest_page_shift
from shadowmmu.kvm.layout import K_GAP_END, ONE, V_VTTBR, ZERO
from shadowmmu.kvm.pool import VMID_SHIFT, wipe_shadow
from shadowmmu.kvm.shadows import gap_open
from shadowmmu.kvm.vncr import invalidate_vncr_ipa_all
from shadowmmu.machine.calls import mmu_lock_write, mmu_unlock_write
from shadowmmu.machine.counters import CHUNKS, CHUNKS_SHADOW, TLBI_STAGE1, TLBIS_TRAPPED
from shadowmmu.machine.log import ERROR, RANGE, TLBI, observe
from shadowmmu.machine.state import R_GAP_IPA, R_GAP_MMU, R_PAGE_SHIFT, State
from shadowmmu.pgtable.attributes import GUEST_LEVEL, GUEST_LEVEL_SHIFT, find_entry
from shadowmmu.pgtable.context import (
    M_VTCR,
    M_VTTBR,
    input_size,
    shadow_mmus,
    shadow_valid,
)
from shadowmmu.pgtable.tlb import defers_tlbi, flush_range
from shadowmmu.pgtable.unmap import unmap_range

# The forms the laboratory's L1 can execute, numbered as the scenario language does.
IPAS2E1IS: Final = 0
IPAS2LE1IS: Final = 1
RIPAS2E1IS: Final = 2
RIPAS2LE1IS: Final = 3
VMALLS12E1IS: Final = 4
ALLE1IS: Final = 5
VMALLE1IS: Final = 6
IPAS2E1: Final = 7
VMALLS12E1: Final = 8

NAMES: Final = (
    "IPAS2E1IS",
    "IPAS2LE1IS",
    "RIPAS2E1IS",
    "RIPAS2LE1IS",
    "VMALLS12E1IS",
    "ALLE1IS",
    "VMALLE1IS",
    "IPAS2E1",
    "VMALLS12E1",
)


@inline
def same_vmid(s: State, mmu: int, vcpu: int) -> bool:
    """Whether a valid shadow MMU carries the VMID in the vCPU's VTTBR now."""
    vmid = s.vcpus[vcpu, V_VTTBR] >> VMID_SHIFT
    return shadow_valid(s, mmu) and s.mmus[mmu, M_VTTBR] >> VMID_SHIFT == vmid


@inline
def level_size(page_shift: int, level: int) -> Word:
    """Bytes of a guest leaf; 0 where KVM accepts none of that level. Source: ``ttl_to_size``."""
    if level < 1 or level > 3 or (level == 1 and page_shift != SHIFT_4K):
        return ZERO
    return ONE << U64(page_shift + (page_shift - 3) * (3 - level))


@inline
def widest_size(page_shift: int) -> Word:
    """What is unmapped when nothing bounds the TLBI: the largest block of the guest's granule."""
    return level_size(page_shift, 1 if page_shift == SHIFT_4K else 2)


@kernel
def tagged_size(s: State, mmu: int, nested_ipa: Word, page_shift: int) -> Word:
    """Size of L1's leaf at ``nested_ipa`` as the shadow's level tag tells; 0 where it does not.

    Mirrors ``get_guest_mapping_ttl``: the first leaf found at the address aligned to each size of the
    guest's granule, smallest first, whose tag is not 0 and whose span reaches the address.
    """
    first = 2 if page_shift != SHIFT_4K else 1
    level = 3
    while level >= first:
        aligned = nested_ipa & ~(level_size(page_shift, level) - ONE)
        level -= 1
        if aligned >= input_size(s, mmu):
            continue
        word, _level = find_entry(s, mmu, aligned)
        descriptor = s.mem[word]
        tag = (descriptor & GUEST_LEVEL) >> GUEST_LEVEL_SHIFT
        if descriptor & VALID == ZERO or tag == ZERO:
            continue
        size = level_size(page_shift, I64(tag))
        if size != ZERO and nested_ipa < aligned + size:
            return size
        return ZERO
    return ZERO


@kernel
def ipas2_size(s: State, mmu: int, operand: Word) -> Word:
    """How much one IPAS2E1 takes. Mirrors ``compute_tlb_inval_range``."""
    size = ttl_size(ipas2_ttl(operand))
    if size != ZERO:
        return size
    page_shift = guest_page_shift(s, s.mmus[mmu, M_VTCR])
    size = tagged_size(s, mmu, ipas2_address(operand), page_shift)
    return size if size != ZERO else widest_size(page_shift)


@inline
def watch_gap(s: State, mmu: int, end: Word) -> None:
    """An unmap of ``mmu`` up to ``end`` begins: it may be broken off, unless another was."""
    if not gap_open(s):
        s.regs[R_GAP_MMU] = U64(mmu)
        s.regs[K_GAP_END] = end


@inline
def pass_gap(s: State) -> None:
    """That unmap is over, or broken off."""
    if not gap_open(s):
        s.regs[R_GAP_MMU] = ZERO


@kernel
def unmap_for_guest(s: State, mmu: int, start: Word, size: Word) -> None:
    """Unmap nested [start, start + size) at L1's request.

    A size that is not whole pages of L0 trips a warning and unmaps the page it lies in (seen on the rig with
    16K pages, ``suspicion/ipas2-hint-below-the-page``); an invalidation by range then has no page left (read,
    not seen). What lies beyond the table trips a warning too: the walk is refused, but its chunk was begun
    and its TLB invalidation follows, as seen on the running 7.3.4 (``suspicion/ipas2-tlbi-beyond-limit``). As
    the architecture asks, nothing is done there: no translation has such an input.
    """
    if start + size > input_size(s, mmu):
        if as_architecture(s, TLBI_BEYOND_LIMIT):
            return
        observe(s, RANGE, start, size, U64(mmu), ZERO, ZERO)
        observe(s, ERROR, start, size, U64(mmu), ZERO, ZERO)
        s.count[CHUNKS] += 1
        s.count[CHUNKS_SHADOW] += 1
        if defers_tlbi(s):
            flush_range(s, mmu, start, size)
        return
    if size & ((ONE << s.regs[R_PAGE_SHIFT]) - ONE) != ZERO:
        observe(s, ERROR, start, size, U64(mmu), ZERO, ZERO)
    watch_gap(s, mmu, start + size)
    design_forget(s, mmu, start, start + size, CAUSE_INVALIDATED)
    unmap_range(s, mmu, start, start + size, True)
    pass_gap(s)


@kernel
def tlbi_by_ipa(s: State, vcpu: int, operand: Word) -> None:
    """IPAS2E1 and IPAS2LE1, all forms. Mirrors ``handle_ipas2e1is``."""
    for mmu in range(1, shadow_mmus(s) + 1):
        if same_vmid(s, mmu, vcpu):
            size = ipas2_size(s, mmu, operand)
            unmap_for_guest(s, mmu, ipas2_address(operand) & ~(size - ONE), size)


@kernel
def tlbi_by_range(s: State, vcpu: int, operand: Word) -> None:
    """RIPAS2E1 and RIPAS2LE1, all forms. Mirrors ``handle_ripas2e1is``; beyond the limit it is ignored."""
    wanted = ripas2_range(operand)
    for mmu in range(1, shadow_mmus(s) + 1):
        if same_vmid(s, mmu, vcpu) and wanted.start < input_size(s, mmu):
            room = input_size(s, mmu) - wanted.start
            unmap_for_guest(s, mmu, wanted.start, wanted.size if wanted.size < room else room)


@kernel
def wipe_with_gap(s: State, mmu: int) -> None:
    """Wipe a shadow MMU for a TLBI; it is broken off where the scenario said so, the first time."""
    watch_gap(s, mmu, input_size(s, mmu))
    wipe_shadow(s, mmu)
    pass_gap(s)


@kernel
def finish_unmap(s: State) -> None:
    """The lock is back: unmap the rest. What was filled there in the meantime is forgotten first."""
    mmu = I64(s.regs[R_GAP_MMU])
    start = s.regs[R_GAP_IPA]
    end = s.regs[K_GAP_END]
    s.regs[R_GAP_MMU] = ZERO
    s.regs[R_GAP_IPA] = ZERO
    mmu_lock_write(s)
    design_forget(s, mmu, start, end, CAUSE_INVALIDATED)
    unmap_range(s, mmu, start, end, True)
    mmu_unlock_write(s)


@kernel
def handle_tlbi(s: State, vcpu: int, form: int, operand: Word) -> None:
    """Emulate one TLBI executed by L1 at virtual EL2."""
    s.count[TLBIS_TRAPPED] += 1
    observe(s, TLBI, U64(form), operand, ZERO, ZERO, ZERO)
    mmu_lock_write(s)
    if form == IPAS2E1IS or form == IPAS2LE1IS or form == IPAS2E1:
        tlbi_by_ipa(s, vcpu, operand)
    elif form == RIPAS2E1IS or form == RIPAS2LE1IS:
        tlbi_by_range(s, vcpu, operand)
    else:
        for mmu in range(1, shadow_mmus(s) + 1):
            if form == ALLE1IS:
                if shadow_valid(s, mmu):
                    wipe_with_gap(s, mmu)
            elif same_vmid(s, mmu, vcpu):
                if form == VMALLE1IS:
                    s.count[TLBI_STAGE1] += 1
                else:
                    wipe_with_gap(s, mmu)
        if form == ALLE1IS:
            invalidate_vncr_ipa_all(s)
    mmu_unlock_write(s)
