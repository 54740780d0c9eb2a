"""What operations on VMAs share: checking a range, cutting with its notifier, changing flags and merging."""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import U64, kernel
from shadowmmu.host.geometry import huge_mask, huge_size, hugetlb_mask, page_mask, page_size
from shadowmmu.host.ksm_rmap import LATEST, before, memory_of, stale_at, turn_of
from shadowmmu.host.layout import (
    E_ADDRESS,
    NO_ROWS,
    ONE,
    ONE_ROW,
    R_DRAFT_CHANGED,
    R_RESUME,
    TWO_ROWS,
    V_ANON,
    V_END,
    V_FLAGS,
    V_START,
    VM_HUGETLB,
    ZERO,
)
from shadowmmu.host.steps import COMMIT_VMAS, SPLIT, put, put_end, put_start
from shadowmmu.host.tables import page_index, populated
from shadowmmu.host.vma import adopt_anon, anon_agree, can_merge, cut, delete_rows, find_vma, vma_count
from shadowmmu.machine.state import State, Word

ADDRESS_LIMIT: Final = U64(1 << 56)
"""No range may end above: user addresses of arm64 end well below."""
WALK_PER_PLAN: Final = 16
"""Stale addresses of a merged page in one plan: their notifiers fit the log of one step."""


@kernel
def range_end(s: State, hva: Word, size: Word) -> Word:
    """End of [hva, hva + size) rounded up to pages, 0 if ``hva`` is off the page grid or it is too long."""
    if hva & page_mask(s) != hva or hva >= ADDRESS_LIMIT or size >= ADDRESS_LIMIT:
        return ZERO
    return (hva + size + page_size(s) - ONE) & page_mask(s)


@kernel
def hugetlb_cut(s: State, row: int, hva: Word) -> bool:
    """Whether cutting the draft's VMA ``row`` at ``hva`` is refused: inside a hugetlb page."""
    if s.vmas[row, V_FLAGS] & VM_HUGETLB == ZERO or hva & hugetlb_mask(s) == hva:
        return False
    return bool(s.vmas[row, V_START] < hva and hva < s.vmas[row, V_END])


@kernel
def put_split(s: State, rows: int, row: int, hva: Word) -> int:
    """The notifier and the split where VMA ``row`` of the draft is about to end or begin at ``hva``.

    Only if ``hva`` lies inside a 2M that is wholly in the VMA and something in its 1G was ever mapped;
    then whatever maps the 2M, base pages too. Mirrors ``split_huge_pmd_if_needed`` and
    ``__split_huge_pmd`` (runs 11 and random/*).
    """
    block = hva & huge_mask(s)
    if hva == block or block < s.vmas[row, V_START] or block + huge_size(s) > s.vmas[row, V_END]:
        return rows
    if not populated(s, block):
        return rows
    rows = put_start(s, rows, block, block + huge_size(s))
    rows = put(s, rows, SPLIT, block, ZERO, ZERO)
    return put_end(s, rows, block, block + huge_size(s))


@kernel
def plan_cut(s: State, rows: int, row: int, hva: Word) -> int:
    """Cut the draft's VMA ``row`` at ``hva``, which lies inside it (``__split_vma``)."""
    rows = put_split(s, rows, row, hva)
    cut(s, row, hva)
    return rows


@kernel
def move_border(s: State, below: int, hva: Word) -> None:
    """Let the draft's VMA ``below`` end, and the next begin, at ``hva``; both share their anon_vma."""
    s.vmas[below, V_END] = hva
    s.vmas[below + 1, V_START] = hva


@kernel
def plan_modify(s: State, rows: int, row: int, start: Word, end: Word, flags: Word) -> int:
    """Give [start, end), a part of the draft's VMA ``row``, new ``flags``: merge if it can be, else cut.

    Mirrors ``vma_modify`` with ``vma_merge_existing_range``; a part that merges moves a border, which
    splits like a cut.
    """
    at_start = s.vmas[row, V_START] == start
    at_end = s.vmas[row, V_END] == end
    left = at_start and can_merge(s, row, row - 1, flags)
    right = at_end and can_merge(s, row, row + 1, flags)
    if left and right and not anon_agree(s, row - 1, row + 1):
        right = False
    s.regs[R_DRAFT_CHANGED] = ONE
    if left:
        adopt_anon(s, row - 1, row)
    elif right:
        adopt_anon(s, row + 1, row)
    if left and right:
        adopt_anon(s, row - 1, row + 1)
        s.vmas[row - 1, V_END] = s.vmas[row + 1, V_END]
        delete_rows(s, row, TWO_ROWS)
    elif left and at_end:
        s.vmas[row - 1, V_END] = end
        delete_rows(s, row, ONE_ROW)
    elif left:
        rows = put_split(s, rows, row, end)
        move_border(s, row - 1, end)
    elif right and at_start:
        s.vmas[row + 1, V_START] = start
        delete_rows(s, row, ONE_ROW)
    elif right:
        rows = put_split(s, rows, row, start)
        move_border(s, row, start)
    else:
        if not at_start:
            rows = plan_cut(s, rows, row, start)
            row += 1
        if not at_end:
            rows = plan_cut(s, rows, row, end)
        s.vmas[row, V_FLAGS] = flags
    return rows


@kernel
def close_plan(s: State, rows: int) -> int:
    """Fill the first row, kept free for it, with the commit of the draft: the plan's number of rows.

    0 when the draft was not changed: then nothing else was planned either.
    """
    if s.regs[R_DRAFT_CHANGED] == ZERO:
        return 0
    put(s, NO_ROWS, COMMIT_VMAS, ZERO, ZERO, ZERO)
    return rows


@kernel
def put_walk(s: State, rows: int, hva: Word) -> int:
    """Notifiers of the walk over a merged page's addresses until it finds ``hva``, where alone it is mapped.

    Where they are more than ``WALK_PER_PLAN``, those planned are forgotten and ``regs[R_RESUME]`` is ``hva``,
    to go on from. Mirrors ``rmap_walk_ksm`` (seen on the rig).
    """
    pa = s.hpte[page_index(s, hva)] & E_ADDRESS
    most = rows + 2 * WALK_PER_PLAN
    here = before(s, pa, LATEST)
    while here != hva and here != ZERO and rows < most:
        if stale_at(s, here):
            rows = put_start(s, rows, here, here + page_size(s))
            rows = put_end(s, rows, here, here + page_size(s))
        here = before(s, pa, turn_of(s.hpte[memory_of(s, here)]))
    if here != hva and here != ZERO:
        first = before(s, pa, LATEST)
        while first != here:
            s.hpte[memory_of(s, first)] = ZERO
            first = before(s, pa, LATEST)
        s.regs[R_RESUME] = hva
    return rows


@kernel
def put_folio(s: State, rows: int, hva: Word, op: Word) -> int:
    """``op`` on the huge page around ``hva``: a notifier for its part in each VMA of its anon_vma, in order.

    The kernel takes each part's entries out inside that part's notifier and puts them back after the last;
    here all happens inside the last one. Mirrors ``try_to_migrate`` (``rmap_walk_anon``): one VMA and 2M
    where the leaf maps it, parts where that was split (seen on the rig).
    """
    block = hva & huge_mask(s)
    end = block + huge_size(s)
    count = vma_count(s)
    anon = s.vmas[find_vma(s, NO_ROWS, count, hva), V_ANON]
    first = find_vma(s, NO_ROWS, count, block)
    last = first
    row = first
    while row < count and s.vmas[row, V_START] < end:
        if s.vmas[row, V_ANON] == anon:
            last = row
        row += 1
    for row in range(first, last + 1):
        if s.vmas[row, V_ANON] == anon:
            part = max(block, s.vmas[row, V_START])
            rest = min(end, s.vmas[row, V_END])
            rows = put_start(s, rows, part, rest)
            if row == last:
                rows = put(s, rows, op, hva, ZERO, ZERO)
            rows = put_end(s, rows, part, rest)
    return rows
