"""The VMAs: finding them, and a draft on which a plan cuts, changes, merges and removes them.

A plan leaves the VMAs alone and works on a copy in the second half of ``vmas``; the plan's
``COMMIT_VMAS`` step puts the copy in their place. Merging follows ``vma_merge_existing_range`` and
``vma_merge_new_range``: neighbours with equal flags whose anon_vmas agree (either has none, or they
are the same). hugetlb VMAs never merge (``VM_DONTEXPAND``).
"""

from __future__ import annotations

from shadowmmu.compiled import I64, U64, inline, kernel
from shadowmmu.host.layout import (
    NO_ROWS,
    ONE,
    R_DRAFT,
    R_DRAFT_CHANGED,
    R_DRAFT_VMAS,
    R_NEXT_ANON,
    R_VMAS,
    V_ANON,
    V_END,
    V_FLAGS,
    V_START,
    VM_ACCESS,
    VM_HUGETLB,
    VMA_COLUMNS,
    ZERO,
)
from shadowmmu.machine.state import State, Word


@kernel
def find_vma(s: State, first: int, last: int, hva: Word) -> int:
    """First row of ``first .. last`` whose VMA ends above ``hva``; ``last`` if none. O(log VMAs)."""
    low = first
    high = last
    while low < high:
        middle = (low + high) >> 1
        if s.vmas[middle, V_END] > hva:
            high = middle
        else:
            low = middle + 1
    return low


@inline
def vma_count(s: State) -> int:
    """VMAs in use: their rows begin at 0."""
    return int(I64(s.regs[R_VMAS]))


@inline
def draft_first(s: State) -> int:
    """First row of the draft."""
    return int(I64(s.regs[R_DRAFT]))


@inline
def draft_last(s: State) -> int:
    """Row behind the draft's last."""
    return int(I64(s.regs[R_DRAFT] + s.regs[R_DRAFT_VMAS]))


@kernel
def open_draft(s: State) -> None:
    """Start a draft: a copy of the VMAs. O(VMAs)."""
    first = len(s.vmas) // 2
    count = vma_count(s)
    for row in range(count):
        for column in range(VMA_COLUMNS):
            s.vmas[first + row, column] = s.vmas[row, column]
    s.regs[R_DRAFT] = U64(first)
    s.regs[R_DRAFT_VMAS] = U64(count)
    s.regs[R_DRAFT_CHANGED] = ZERO


@kernel
def commit_draft(s: State) -> None:
    """Put the draft in the place of the VMAs. O(VMAs)."""
    first = draft_first(s)
    count = I64(s.regs[R_DRAFT_VMAS])
    for row in range(count):
        for column in range(VMA_COLUMNS):
            s.vmas[row, column] = s.vmas[first + row, column]
    s.regs[R_VMAS] = U64(count)


@kernel
def insert_row(s: State, row: int) -> None:
    """Make room for a VMA at ``row`` of the draft: the rows from there move up, ``row`` keeps its words."""
    for old in range(draft_last(s) - 1, row - 1, -1):
        for column in range(VMA_COLUMNS):
            s.vmas[old + 1, column] = s.vmas[old, column]
    s.regs[R_DRAFT_VMAS] += ONE
    s.regs[R_DRAFT_CHANGED] = ONE


@kernel
def delete_rows(s: State, row: int, count: int) -> None:
    """Take ``count`` VMAs from ``row`` on out of the draft."""
    for old in range(row + count, draft_last(s)):
        for column in range(VMA_COLUMNS):
            s.vmas[old - count, column] = s.vmas[old, column]
    s.regs[R_DRAFT_VMAS] -= U64(count)
    s.regs[R_DRAFT_CHANGED] = ONE


@kernel
def cut(s: State, row: int, hva: Word) -> None:
    """Cut the draft's VMA ``row`` in two at ``hva``: rows ``row`` and ``row + 1`` (``__split_vma``)."""
    insert_row(s, row)
    s.vmas[row, V_END] = hva
    s.vmas[row + 1, V_START] = hva


@kernel
def anon_agree(s: State, one: int, other: int) -> bool:
    """Whether two VMAs' anon_vmas allow them to become one (``is_mergeable_anon_vma``)."""
    first = s.vmas[one, V_ANON]
    second = s.vmas[other, V_ANON]
    return bool(first == ZERO or second == ZERO or first == second)


@kernel
def adjacent(s: State, below: int, above: int) -> bool:
    """Whether two rows are VMAs of the draft with no gap between them."""
    if below < draft_first(s) or above >= draft_last(s):
        return False
    return bool(s.vmas[below, V_END] == s.vmas[above, V_START])


@kernel
def can_merge(s: State, row: int, neighbour: int, flags: Word) -> bool:
    """Whether the draft's VMA ``row``, given ``flags``, becomes one with its ``neighbour``."""
    if not adjacent(s, min(row, neighbour), max(row, neighbour)):
        return False
    if s.vmas[neighbour, V_FLAGS] != flags or flags & VM_HUGETLB != ZERO:
        return False
    return anon_agree(s, row, neighbour)


@kernel
def adopt_anon(s: State, row: int, other: int) -> None:
    """Row ``row`` takes over the anon_vma of ``other`` if it has none."""
    if s.vmas[row, V_ANON] == ZERO:
        s.vmas[row, V_ANON] = s.vmas[other, V_ANON]


@kernel
def anon_for(s: State, row: int) -> Word:
    """Number of the anon_vma that VMA ``row`` (not of the draft) gets at its first anonymous page.

    Mirrors ``find_mergeable_anon_vma``: that of a neighbour, first the one above, that differs in
    nothing but access; else a new one.
    """
    count = vma_count(s)
    if row + 1 < count and s.vmas[row, V_END] == s.vmas[row + 1, V_START] and same_kind(s, row, row + 1):
        return U64(s.vmas[row + 1, V_ANON])
    if row > 0 and s.vmas[row - 1, V_END] == s.vmas[row, V_START] and same_kind(s, row, row - 1):
        return U64(s.vmas[row - 1, V_ANON])
    return U64(s.regs[R_NEXT_ANON])


@kernel
def same_kind(s: State, row: int, neighbour: int) -> bool:
    """Whether ``neighbour`` has an anon_vma and differs in nothing but access (``anon_vma_compatible``)."""
    different = (s.vmas[row, V_FLAGS] ^ s.vmas[neighbour, V_FLAGS]) & ~VM_ACCESS
    return bool(different == ZERO and s.vmas[neighbour, V_ANON] != ZERO)


@kernel
def set_anon(s: State, hva: Word, anon: Word) -> None:
    """Give the VMA that holds ``hva`` the anon_vma ``anon``; a new number is used up."""
    row = find_vma(s, NO_ROWS, vma_count(s), hva)
    s.vmas[row, V_ANON] = anon
    if anon == s.regs[R_NEXT_ANON]:
        s.regs[R_NEXT_ANON] = anon + ONE
