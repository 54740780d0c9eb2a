"""How large a stage-2 leaf becomes: the host's backing, the memslot's alignment, dirty logging, L1's leaf.

Mirrors ``kvm_s2_resolve_vma_size``, ``kvm_s2_fault_map`` and ``transparent_hugepage_adjust`` of Linux 7.3.4
(``mmu.c``). All sizes are the host's: a page, a PMD (2M, 32M, 512M by granule) and a PUD (1G, 64G, 4T).
"""

from __future__ import annotations

from typing import NamedTuple

from shadowmmu.arch.regime import entry_size
from shadowmmu.compiled import Word, inline
from shadowmmu.kvm.layout import S_FLAGS, SLOT_GUEST_MEMFD, ZERO
from shadowmmu.kvm.slots import huge_mapping_fits, slot_logs
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import CANONICAL, context_regime


class Sizes(NamedTuple):
    """``vma``: what the VMA alone allows; ``limit``: what nothing may exceed."""

    vma: Word
    limit: Word


@inline
def resolve_vma_size(s: State, slot: int, hva: Word, backing: Word, guest_size: Word, nested: bool) -> Sizes:
    """How large the leaf may be over a VMA with pages of ``backing`` bytes (hugetlb, else the base page).

    ``guest_size`` is L1's leaf where there is one (``nested``). A size between two of the host's own, which a
    contiguous run of hugetlb entries has, falls to the smaller. A slot of guest_memfd gets pages only
    (``gmem_abort``). Mirrors ``kvm_s2_resolve_vma_size``.
    """
    r = context_regime(s, CANONICAL)
    page = entry_size(r, 3)
    block = entry_size(r, 2)
    giant = entry_size(r, 1)
    vma = page
    limit = giant
    if slot_logs(s, slot) or s.slots[slot, S_FLAGS] & SLOT_GUEST_MEMFD != ZERO:
        limit = page
    elif backing >= giant and huge_mapping_fits(s, slot, hva, giant):
        vma = giant
    elif backing >= block and huge_mapping_fits(s, slot, hva, block):
        vma = block
    elif backing > page:
        limit = page
    if nested:
        if guest_size < limit:
            limit = guest_size
        if limit >= block and limit < giant:
            limit = block
        elif limit < block:
            limit = page
        if vma > limit:
            vma = limit
    return Sizes(vma, limit)


@inline
def mapping_size(s: State, slot: int, hva: Word, mapped: Word, sizes: Sizes, held_level: int) -> Word:
    """Size of the leaf to put in where the host maps ``hva`` by ``mapped`` bytes.

    ``held_level``: the level of the leaf whose permissions faulted, 3 if it was another fault; its block
    stays, and a THP enlarges a page. Mirrors ``kvm_s2_fault_map`` and ``transparent_hugepage_adjust``.
    """
    r = context_regime(s, CANONICAL)
    page = entry_size(r, 3)
    if sizes.vma != page or sizes.limit == page:
        return sizes.vma
    if held_level < 3:
        return entry_size(r, held_level)
    block = entry_size(r, 2)
    if sizes.limit >= block and mapped >= block and huge_mapping_fits(s, slot, hva, block):
        return block
    return page
