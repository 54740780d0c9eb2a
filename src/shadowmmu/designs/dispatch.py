"""The one interface, by number: which design answers is an integer tested here and nowhere else.

(An integer test in one compiled routine is found again in the disk cache; a function passed as an
argument would not be. A number from ``OWN`` up is a design of the user's own, ``designs.own``.)
"""

from __future__ import annotations

from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.actions import act_on_whole_mmu
from shadowmmu.designs.containers.pool import pool_reset, pool_used
from shadowmmu.designs.gfn_lists import gfn_apply, gfn_covers, gfn_record
from shadowmmu.designs.interface import (
    AGE,
    CAUSE_REPLACED,
    GFN_LISTS,
    LEAF_SCAN,
    MAPLE_2025,
    OWN,
    PA_KEYED,
    PER_VM_TREE,
    PTE_CHAINS,
    RBTREE_2024,
    REVERSE_TABLE,
    SPANNING,
    SPANNING_V2,
    SWEEP,
    SWEEP_VMALLS12,
    UNMAP,
)
from shadowmmu.designs.leaf_scan import leaf_scan_apply
from shadowmmu.designs.maple_2025 import (
    maple_2025_apply,
    maple_2025_covers,
    maple_2025_forget_mmu,
    maple_2025_init,
    maple_2025_record,
    maple_2025_recorded,
)
from shadowmmu.designs.own import (
    own_age,
    own_covers,
    own_footprint,
    own_forget,
    own_forget_mmu,
    own_init,
    own_prepare,
    own_protect,
    own_record,
    own_recorded,
    own_unmap,
)
from shadowmmu.designs.pa_keyed import (
    pa_apply,
    pa_covers,
    pa_init,
    pa_record,
    pa_recorded,
    pa_unlink,
)
from shadowmmu.designs.per_vm_tree import (
    per_vm_apply,
    per_vm_covers,
    per_vm_forget,
    per_vm_init,
    per_vm_record,
    per_vm_recorded,
)
from shadowmmu.designs.pte_chains import pte_apply, pte_covers, pte_record, pte_unlink
from shadowmmu.designs.rbtree_2024 import (
    rbtree_apply,
    rbtree_covers,
    rbtree_init,
    rbtree_record,
    rbtree_recorded,
)
from shadowmmu.designs.reverse_ahead import reverse_ahead, reverse_near
from shadowmmu.designs.reverse_nodes import listed_entries, reverse_init
from shadowmmu.designs.reverse_table import (
    reverse_bytes,
    reverse_covers,
    reverse_forget,
    reverse_forget_mmu,
    reverse_record,
    reverse_recorded,
    reverse_settle,
    reverse_table_init,
    reverse_unmap,
)
from shadowmmu.designs.reverse_update import reverse_update
from shadowmmu.designs.spanning import (
    spanning_apply,
    spanning_covers,
    spanning_forget,
    spanning_forget_mmu,
    spanning_init,
    spanning_record,
    spanning_recorded,
)
from shadowmmu.designs.spanning_v2 import spanning_v2_init
from shadowmmu.designs.sweep import sweep_apply
from shadowmmu.designs.sweep_vmalls12 import sweep_vmalls12_apply
from shadowmmu.machine.calls import GFP_KERNEL, allocation_fails
from shadowmmu.machine.frames import is_table, owner_mmu
from shadowmmu.machine.state import R_DESIGN, R_NEXT_FRAME, R_PAGE_SHIFT, State
from shadowmmu.pgtable.context import CANONICAL, M_LEAVES, input_size
from shadowmmu.pgtable.iterate import next_leaf
from shadowmmu.pgtable.unmap import unmap_all

ZERO = U64(0)
ONE = U64(1)


@kernel
def design_init(s: State, design: int) -> None:
    """Plug in ``design``: an empty record for a machine whose MMUs exist and are empty."""
    s.regs[R_DESIGN] = U64(design)
    if design == RBTREE_2024:
        rbtree_init(s)
    elif design == SPANNING:
        spanning_init(s, True)
    elif design == SPANNING_V2:
        spanning_v2_init(s)
    elif design == REVERSE_TABLE:
        reverse_table_init(s)
    elif design == GFN_LISTS or design == PTE_CHAINS:
        reverse_init(s)
    elif design == MAPLE_2025:
        maple_2025_init(s)
    elif design == PA_KEYED:
        pa_init(s)
    elif design == PER_VM_TREE:
        per_vm_init(s)
    elif design >= OWN:
        own_init(design, s)
    else:
        pool_reset(s.rmap)


@inline
def design_prepare(s: State) -> bool:
    """Allocate what the record of a fill will need, where the design does that before. No lock is held.

    False: there is no memory, and the fill must not happen; the access faults again.
    """
    design = I64(s.regs[R_DESIGN])
    if design == MAPLE_2025 or design == GFN_LISTS or design == PTE_CHAINS or design == PA_KEYED:
        return not allocation_fails(s, GFP_KERNEL)
    if design >= OWN:
        return bool(own_prepare(design, s))
    return True


@inline
def design_ahead(s: State, canonical_ipa: Word) -> None:
    """A page will soon be filled or unmapped: a design may start fetching what it keeps of it."""
    if I64(s.regs[R_DESIGN]) == REVERSE_TABLE:
        reverse_ahead(s, canonical_ipa)


@inline
def design_near(s: State, canonical_ipa: Word) -> None:
    """A page will be unmapped sooner still: what the record says of it may be fetched."""
    if I64(s.regs[R_DESIGN]) == REVERSE_TABLE:
        reverse_near(s, canonical_ipa)


@kernel
def design_record(
    s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word, level: int, word: Word
) -> None:
    """A shadow leaf was filled. mmu_lock is held for read; must not sleep."""
    design = I64(s.regs[R_DESIGN])
    if design == REVERSE_TABLE:
        reverse_record(s, mmu, canonical_ipa, level, word)
    elif design == SPANNING or design == SPANNING_V2:
        spanning_record(s, mmu, canonical_ipa, nested_ipa, size)
    elif design == RBTREE_2024:
        rbtree_record(s, mmu, canonical_ipa, nested_ipa, size)
    elif design == MAPLE_2025:
        maple_2025_record(s, mmu, canonical_ipa, nested_ipa, size)
    elif design == GFN_LISTS:
        gfn_record(s, mmu, canonical_ipa, nested_ipa, size, level, word)
    elif design == PTE_CHAINS:
        pte_record(s, canonical_ipa, level, word)
    elif design == PA_KEYED:
        pa_record(s, mmu, nested_ipa, size, level, word)
    elif design == PER_VM_TREE:
        per_vm_record(s, mmu, canonical_ipa, nested_ipa, size)
    elif design >= OWN:
        own_record(design, s, mmu, canonical_ipa, nested_ipa, size, level, word)


@kernel
def forget_leaves(s: State, mmu: int, start: Word, end: Word) -> None:
    """Take each leaf of nested [start, end) off a record that names leaves, one that sticks out included."""
    by_descriptor = I64(s.regs[R_DESIGN]) == PTE_CHAINS
    ipa = start
    while ipa < end:
        visit = next_leaf(s, mmu, ipa, end)
        if visit.word == ZERO:
            return
        if by_descriptor:
            pte_unlink(s, visit.word, visit.level)
        else:
            pa_unlink(s, mmu, visit.ipa, visit.word, visit.level)
        ipa = visit.after


@kernel
def design_forget(s: State, mmu: int, start: Word, end: Word, cause: int) -> None:
    """Leaves of nested [start, end) are about to go: invalidated by L1, or replaced by another leaf."""
    design = I64(s.regs[R_DESIGN])
    if design == REVERSE_TABLE:
        reverse_forget(s, mmu, start, end)
    elif design == PTE_CHAINS or design == PA_KEYED:
        forget_leaves(s, mmu, start, end)
    elif design == SPANNING and cause != CAUSE_REPLACED:
        spanning_forget(s, mmu, start, end)
    elif design == PER_VM_TREE and cause != CAUSE_REPLACED:
        per_vm_forget(s, mmu, start, end, False)
    elif design >= OWN:
        own_forget(design, s, mmu, start, end, cause)


@kernel
def design_forget_mmu(s: State, mmu: int) -> None:
    """A whole shadow MMU is about to be wiped, for another reason than a notifier."""
    design = I64(s.regs[R_DESIGN])
    if design == REVERSE_TABLE:
        reverse_forget_mmu(s, mmu)
    elif design == PTE_CHAINS or design == PA_KEYED:
        if s.mmus[mmu, M_LEAVES] != ZERO:
            forget_leaves(s, mmu, ZERO, input_size(s, mmu))
    elif design == SPANNING or design == SPANNING_V2:
        spanning_forget_mmu(s, mmu)
    elif design == PER_VM_TREE:
        per_vm_forget(s, mmu, ZERO, input_size(s, mmu), True)
    elif design == MAPLE_2025:
        maple_2025_forget_mmu(s, mmu)
    elif design >= OWN:
        own_forget_mmu(design, s, mmu)


@inline
def forgets_first(s: State) -> bool:
    """Whether the record forgets leaves that L1 invalidates before they go (``design_forget``)."""
    design = I64(s.regs[R_DESIGN])
    return design in (
        REVERSE_TABLE,
        PTE_CHAINS,
        PA_KEYED,
        SPANNING,
        SPANNING_V2,
        PER_VM_TREE,
        MAPLE_2025,
    ) or (design >= OWN)


@inline
def design_wipe(s: State, mmu: int) -> None:
    """Unmap a whole shadow MMU that was just forgotten."""
    if I64(s.regs[R_DESIGN]) == SWEEP_VMALLS12:
        unmap_all(s, mmu, True)
    else:
        act_on_whole_mmu(s, mmu, True, UNMAP)
        if I64(s.regs[R_DESIGN]) == REVERSE_TABLE:
            reverse_settle(s, mmu)


@kernel
def design_apply(s: State, start: Word, end: Word, may_block: bool, cause: int, action: int) -> int:
    """Unmap, age or protect what maps canonical [start, end) in any shadow MMU; how many leaves changed."""
    design = I64(s.regs[R_DESIGN])
    if design == REVERSE_TABLE:
        if action == UNMAP:
            return reverse_unmap(s, start, end, may_block)
        return reverse_update(s, start, end, may_block, action)
    if design == SPANNING or design == SPANNING_V2:
        return spanning_apply(s, start, end, may_block, action)
    if design == RBTREE_2024:
        return rbtree_apply(s, start, end, may_block, cause, action)
    if design == MAPLE_2025:
        return maple_2025_apply(s, start, end, may_block, action)
    if design == GFN_LISTS:
        return gfn_apply(s, start, end, may_block, action)
    if design == PTE_CHAINS:
        return pte_apply(s, start, end, action)
    if design == PA_KEYED:
        return pa_apply(s, may_block, action)
    if design == PER_VM_TREE:
        return per_vm_apply(s, start, end, may_block, action)
    if design == LEAF_SCAN:
        return leaf_scan_apply(s, may_block, action)
    if design == SWEEP_VMALLS12:
        return sweep_vmalls12_apply(s, may_block, action)
    if design >= OWN:
        if action == UNMAP:
            return I64(own_unmap(design, s, start, end, may_block, cause))
        if action == AGE:
            return I64(own_age(design, s, start, end, may_block))
        return I64(own_protect(design, s, start, end, may_block))
    return sweep_apply(s, may_block, action)


@kernel
def design_covers(
    s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word, level: int, word: Word
) -> bool:
    """Whether an unmap of any part of the leaf's canonical range would find it (invariant A3)."""
    design = I64(s.regs[R_DESIGN])
    if design == REVERSE_TABLE:
        return reverse_covers(s, mmu, canonical_ipa, level, word)
    if design == SPANNING or design == SPANNING_V2:
        return spanning_covers(s, mmu, canonical_ipa, nested_ipa, size)
    if design == RBTREE_2024:
        return rbtree_covers(s, mmu, canonical_ipa, nested_ipa, size)
    if design == MAPLE_2025:
        return maple_2025_covers(s, mmu, canonical_ipa, nested_ipa, size)
    if design == GFN_LISTS:
        return gfn_covers(s, mmu, canonical_ipa, nested_ipa, size, level, word)
    if design == PTE_CHAINS:
        return pte_covers(s, canonical_ipa, level, word)
    if design == PA_KEYED:
        return pa_covers(s, mmu, nested_ipa, size, level, word)
    if design == PER_VM_TREE:
        return per_vm_covers(s, mmu, canonical_ipa, nested_ipa, size)
    if design >= OWN:
        return bool(own_covers(design, s, mmu, canonical_ipa, nested_ipa, size, level, word))
    return True


@kernel
def design_recorded(s: State) -> int:
    """How many entries the record holds; 0 where the design keeps none."""
    design = I64(s.regs[R_DESIGN])
    if design == REVERSE_TABLE:
        return reverse_recorded(s)
    if design == GFN_LISTS or design == PTE_CHAINS:
        return listed_entries(s)
    if design == SPANNING or design == SPANNING_V2:
        return spanning_recorded(s)
    if design == RBTREE_2024:
        return rbtree_recorded(s)
    if design == MAPLE_2025:
        return maple_2025_recorded(s)
    if design == PA_KEYED:
        return pa_recorded(s)
    if design == PER_VM_TREE:
        return per_vm_recorded(s)
    if design >= OWN:
        return I64(own_recorded(design, s))
    return 0


@kernel
def design_bytes(s: State) -> int:
    """Bytes of the record now, ``State.side`` apart."""
    design = I64(s.regs[R_DESIGN])
    if design == REVERSE_TABLE or design == GFN_LISTS or design == PTE_CHAINS:
        return reverse_bytes(s)
    if design >= OWN:
        return I64(own_footprint(design, s))
    return I64(pool_used(s.rmap))


@kernel
def design_footprint(s: State) -> int:
    """Bytes of the design's record: nodes, and a word of ``side`` a shadow descriptor. O(frames)."""
    tables = 0
    if len(s.side) > 1:
        frame = ONE
        while frame < s.regs[R_NEXT_FRAME]:
            if is_table(s, frame) and owner_mmu(s, frame) != CANONICAL:
                tables += 1
            frame += ONE
    return design_bytes(s) + (tables << I64(s.regs[R_PAGE_SHIFT]))


__all__ = [
    "SWEEP",
    "design_apply",
    "design_bytes",
    "design_covers",
    "design_footprint",
    "design_forget",
    "design_forget_mmu",
    "design_init",
    "design_prepare",
    "design_record",
    "design_recorded",
    "design_wipe",
]
