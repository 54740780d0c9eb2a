"""Protections and how a leaf carries them, and the walks that change them in place.

Mirrors Linux 7.3.4 ``stage2_set_prot_attr``, ``kvm_pgtable_stage2_{wrprotect,mkyoung,relax_perms,
test_clear_young}``. A protection is the kernel's own word: R 8, W 4, execute at EL1 2, at EL0 1, software
bits 58:55 in place.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import Regime, level_shift, table_address
from shadowmmu.arch.stage2 import (
    AF,
    BLOCK_TYPE,
    S2AP_R,
    S2AP_W,
    STAGE2_LEAF,
    TABLE,
    TABLE_TYPE,
    VALID,
    XN,
    XN_SHIFT,
)
from shadowmmu.compiled import U64, Word, inline, kernel
from shadowmmu.machine.counters import (
    DESCRIPTORS_READ,
    DESCRIPTORS_WRITTEN,
    LEAVES_RELAXED,
)
from shadowmmu.machine.log import observe_leaf
from shadowmmu.machine.state import R_FWB, State
from shadowmmu.pgtable.context import CANONICAL, context_regime, root_word
from shadowmmu.pgtable.tlb import flush_ipa_local

PROT_R: Final = U64(8)
PROT_W: Final = U64(4)
PROT_PX: Final = U64(2)
PROT_UX: Final = U64(1)
PROT_X: Final = PROT_PX | PROT_UX
SW_BITS: Final = STAGE2_LEAF.mask("SW")
GUEST_LEVEL_SHIFT: Final = U64(55)
GUEST_LEVEL: Final = U64(3 << 55)
"""KVM_NV_GUEST_MAP_SZ: SW bits 56:55 hold the level of L1's leaf in a shadow leaf."""

MEMATTR_NORMAL_FWB: Final = U64(STAGE2_LEAF.encode(MemAttr=6))
MEMATTR_NORMAL: Final = U64(STAGE2_LEAF.encode(MemAttr=0xF))
INNER_SHAREABLE: Final = U64(STAGE2_LEAF.encode(SH=3))
XN_EL1: Final = U64(1) << XN_SHIFT
XN_ALL: Final = U64(2) << XN_SHIFT
XN_EL0: Final = U64(3) << XN_SHIFT
ZERO: Final = U64(0)
ONE: Final = U64(1)
THREE: Final = U64(3)


@inline
def xn_bits(prot: Word) -> Word:
    """XN[1:0] for the execute permissions of ``prot``. Mirrors ``stage2_set_xn_attr``."""
    execute = prot & PROT_X
    if execute == PROT_X:
        return ZERO
    if execute == PROT_UX:
        return XN_EL1
    if execute == PROT_PX:
        return XN_EL0
    return XN_ALL


@inline
def leaf_descriptor(s: State, pa: Word, level: int, prot: Word) -> Word:
    """A valid leaf for normal memory. Mirrors ``stage2_set_prot_attr`` and ``kvm_init_valid_leaf_pte``."""
    descriptor = pa | AF | INNER_SHAREABLE | xn_bits(prot) | (prot & SW_BITS)
    descriptor |= MEMATTR_NORMAL if s.regs[R_FWB] == ZERO else MEMATTR_NORMAL_FWB
    if prot & PROT_R != ZERO:
        descriptor |= S2AP_R
    if prot & PROT_W != ZERO:
        descriptor |= S2AP_W
    return descriptor | (TABLE_TYPE if level == 3 else BLOCK_TYPE)


@inline
def same_but_permissions(old: Word, new: Word) -> bool:
    """Whether two leaves differ in permissions only, if at all (``stage2_pte_needs_update``)."""
    free = S2AP_R | S2AP_W | XN
    return (old & ~free) == (new & ~free)


@kernel
def find_entry(s: State, mmu: int, ipa: Word) -> tuple[Word, int]:
    """Word and level of the last entry on the way to ``ipa``: a leaf, or the empty entry. O(levels)."""
    r = context_regime(s, mmu)
    level = r.start_level
    shift = U64(level_shift(r, level))
    stride = U64(r.stride)
    index_mask = (ONE << stride) - ONE
    word = root_word(s, mmu) + (ipa >> shift)
    while True:
        descriptor = s.mem[word]
        s.count[DESCRIPTORS_READ] += 1
        if level == 3 or descriptor & TABLE_TYPE != TABLE_TYPE:
            return word, level
        level += 1
        shift -= stride
        word = (table_address(r, descriptor) >> THREE) + ((ipa >> shift) & index_mask)


@kernel
def relax_permissions(s: State, mmu: int, ipa: Word, prot: Word) -> bool:
    """Change the permissions of a leaf in place, with a local TLBI. False if there is no leaf.

    Mirrors ``kvm_pgtable_stage2_relax_perms``: R and W are added, XN is replaced by a ``prot`` that executes
    and otherwise stays (``live/relax-keeps-execution``); what the TLB holds for ``ipa`` goes even if nothing
    changed or the leaf is gone.
    """
    word, level = find_entry(s, mmu, ipa)
    flush_ipa_local(s, mmu, ipa)
    old = s.mem[word]
    if old & VALID == ZERO:
        return False
    new = old
    if prot & PROT_X != ZERO:
        new = (old & ~XN) | xn_bits(prot)
    if prot & PROT_R != ZERO:
        new |= S2AP_R
    if prot & PROT_W != ZERO:
        new |= S2AP_W
    if mmu != CANONICAL:
        s.count[LEAVES_RELAXED] += 1
    if new != old:
        s.mem[word] = new
        s.count[DESCRIPTORS_WRITTEN] += 1
        observe_leaf(s, mmu, ipa, level, new)
    return True


@kernel
def make_young(s: State, mmu: int, ipa: Word) -> None:
    """Set the access flag of the leaf at ``ipa``. Mirrors ``kvm_pgtable_stage2_mkyoung``."""
    word, _level = find_entry(s, mmu, ipa)
    if s.mem[word] & VALID != ZERO and s.mem[word] & AF == ZERO:
        s.mem[word] |= AF
        s.count[DESCRIPTORS_WRITTEN] += 1


@inline
def next_entry(r: Regime, ipa: Word, level: int) -> Word:
    """First input address after the entry at ``level`` that covers ``ipa``."""
    shift = U64(level_shift(r, level))
    return ((ipa >> shift) + ONE) << shift


@kernel
def clear_bits(s: State, mmu: int, start: Word, end: Word, bits: Word) -> int:
    """Clear ``bits`` in every valid leaf of [start, end); how many changed. No TLBI.

    Serves ``kvm_pgtable_stage2_wrprotect`` and the clearing half of ``test_clear_young``.
    """
    r = context_regime(s, mmu)
    ipa = start
    changed = 0
    while ipa < end:
        word, level = find_entry(s, mmu, ipa)
        if level == 3:
            s.count[DESCRIPTORS_READ] -= 1  # the run below begins with this very entry
            after = next_entry(r, ipa, 2)
            last = after if after < end else end
            while ipa < last:
                old = s.mem[word]
                s.count[DESCRIPTORS_READ] += 1
                if old & VALID != ZERO and old & bits != ZERO:
                    s.mem[word] = old & ~bits
                    changed += 1
                word += ONE
                ipa += ONE << U64(r.page_shift)
            continue
        old = s.mem[word]
        if old & VALID != ZERO and old & TABLE == ZERO and old & bits != ZERO:
            s.mem[word] = old & ~bits
            changed += 1
        ipa = next_entry(r, ipa, level)
    s.count[DESCRIPTORS_WRITTEN] += changed
    return changed


@inline
def write_protect(s: State, mmu: int, start: Word, end: Word) -> int:
    """Make every leaf of [start, end) read-only. Mirrors ``kvm_pgtable_stage2_wrprotect``."""
    return clear_bits(s, mmu, start, end, S2AP_W)


@inline
def clear_young(s: State, mmu: int, start: Word, end: Word) -> int:
    """Clear the access flag over [start, end); how many were young. Mirrors ``test_clear_young``."""
    return clear_bits(s, mmu, start, end, AF)
