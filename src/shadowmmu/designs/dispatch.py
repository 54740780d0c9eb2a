"""The one interface, by number: which design answers is an integer tested here and nowhere else.

(An integer test in one compiled routine is found again in the disk cache; a function passed as an
argument would not be.)
"""

from __future__ import annotations

from shadowmmu.compiled import I64, U64, Word, kernel
from shadowmmu.designs.containers.pool import pool_used
from shadowmmu.designs.interface import (
    CAUSE_REPLACED,
    RBTREE_2024,
    REVERSE_TABLE,
    SPANNING,
    SWEEP,
)
from shadowmmu.designs.rbtree_2024 import (
    rbtree_covers,
    rbtree_init,
    rbtree_record,
    rbtree_recorded,
    rbtree_unmap,
)
from shadowmmu.designs.reverse_nodes import reverse_init
from shadowmmu.designs.reverse_table import (
    reverse_bytes,
    reverse_covers,
    reverse_forget,
    reverse_forget_mmu,
    reverse_record,
    reverse_recorded,
    reverse_unmap,
)
from shadowmmu.designs.spanning import (
    spanning_covers,
    spanning_forget,
    spanning_forget_mmu,
    spanning_init,
    spanning_record,
    spanning_recorded,
    spanning_unmap,
)
from shadowmmu.designs.sweep import sweep_unmap
from shadowmmu.machine.frames import is_table, owner_mmu
from shadowmmu.machine.state import R_DESIGN, R_NEXT_FRAME, R_PAGE_SHIFT, State
from shadowmmu.pgtable.context import CANONICAL

ONE = U64(1)


@kernel
def design_init(s: State, design: int) -> None:
    """Plug in ``design``: an empty record for a machine whose MMUs exist and are empty."""
    s.regs[R_DESIGN] = U64(design)
    if design == RBTREE_2024:
        rbtree_init(s)
    elif design == SPANNING:
        spanning_init(s)
    elif design == REVERSE_TABLE:
        reverse_init(s)


@kernel
def design_record(
    s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word, level: int, word: Word
) -> None:
    """A shadow leaf was filled. mmu_lock is held for read; must not sleep."""
    design = I64(s.regs[R_DESIGN])
    if design == REVERSE_TABLE:
        reverse_record(s, mmu, canonical_ipa, level, word)
    elif design == SPANNING:
        spanning_record(s, mmu, canonical_ipa, nested_ipa, size)
    elif design == RBTREE_2024:
        rbtree_record(s, mmu, canonical_ipa, nested_ipa, size)


@kernel
def design_forget(s: State, mmu: int, start: Word, end: Word, cause: int) -> None:
    """Leaves of nested [start, end) are about to go: invalidated by L1, or replaced by another leaf."""
    design = I64(s.regs[R_DESIGN])
    if design == REVERSE_TABLE:
        reverse_forget(s, mmu, start, end)
    elif design == SPANNING and cause != CAUSE_REPLACED:
        spanning_forget(s, mmu, start, end)


@kernel
def design_forget_mmu(s: State, mmu: int) -> None:
    """A whole shadow MMU is about to be wiped, for another reason than a notifier."""
    design = I64(s.regs[R_DESIGN])
    if design == REVERSE_TABLE:
        reverse_forget_mmu(s, mmu)
    elif design == SPANNING:
        spanning_forget_mmu(s, mmu)


@kernel
def design_unmap(s: State, start: Word, end: Word, may_block: bool, cause: int) -> int:
    """Clear what maps canonical [start, end) in any shadow MMU; how many leaves went."""
    design = I64(s.regs[R_DESIGN])
    if design == REVERSE_TABLE:
        return reverse_unmap(s, start, end, may_block)
    if design == SPANNING:
        return spanning_unmap(s, start, end, may_block)
    if design == RBTREE_2024:
        return rbtree_unmap(s, start, end, may_block, cause)
    return sweep_unmap(s, may_block)


@kernel
def design_covers(
    s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word, level: int, word: Word
) -> bool:
    """Whether an unmap of any part of the leaf's canonical range would find it (invariant A3)."""
    design = I64(s.regs[R_DESIGN])
    if design == REVERSE_TABLE:
        return reverse_covers(s, mmu, canonical_ipa, level, word)
    if design == SPANNING:
        return spanning_covers(s, mmu, canonical_ipa, nested_ipa, size)
    if design == RBTREE_2024:
        return rbtree_covers(s, mmu, canonical_ipa, nested_ipa, size)
    return True


@kernel
def design_recorded(s: State) -> int:
    """How many entries the record holds; 0 where the design keeps none."""
    design = I64(s.regs[R_DESIGN])
    if design == REVERSE_TABLE:
        return reverse_recorded(s)
    if design == SPANNING:
        return spanning_recorded(s)
    if design == RBTREE_2024:
        return rbtree_recorded(s)
    return 0


@kernel
def design_bytes(s: State) -> int:
    """Bytes of the record now, ``State.side`` apart."""
    design = I64(s.regs[R_DESIGN])
    if design == REVERSE_TABLE:
        return reverse_bytes(s)
    if design == SPANNING or design == RBTREE_2024:
        return I64(pool_used(s.rmap))
    return 0


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
    "design_bytes",
    "design_covers",
    "design_footprint",
    "design_forget",
    "design_forget_mmu",
    "design_init",
    "design_record",
    "design_recorded",
    "design_unmap",
]
