"""The steps of a plan: what each row of ``State.plan`` means, and carrying them out.

A plan is rows (op, a, b, c) from row ``regs[R_PLAN_BASE]`` on, walked in order. Nothing has happened to
the host when a plan is returned: it can be read, and dropped. ``NOTIFY_*`` rows are for the caller (KVM's
``invalidate_range_start``, ``_end`` and the ageing calls); every other row is for ``apply_step``.

The kernel holds mmap_lock for write from the first row to the last of an mprotect, munmap, mmap,
madvise of flags or collapse; for read during a fault or MADV_DONTNEED. So only plans of the second kind
may be interleaved with other faults, whose plans the caller puts behind the first by ``R_PLAN_BASE`` (a
fault into a block that is being collapsed is answered ``-EAGAIN``).
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, kernel
from shadowmmu.host.folio import split_folio
from shadowmmu.host.frames import merge, move
from shadowmmu.host.hugetlb import fill_hugetlb, write_hugetlb
from shadowmmu.host.layout import ONE, R_PLAN_BASE, ZERO
from shadowmmu.host.swap import set_swap, swap_in, swap_out
from shadowmmu.host.tables import (
    change_access,
    collapse,
    detach_table,
    fill_huge,
    fill_page,
    free_tables,
    make_writable,
    set_idle,
    split_huge,
    zap,
)
from shadowmmu.host.vma import commit_draft, set_anon
from shadowmmu.machine.state import State, Word

NOTIFY_START: Final = U64(1)
NOTIFY_END: Final = U64(2)
NOTIFY_AGE: Final = U64(3)
COMMIT_VMAS: Final = U64(4)
SET_ANON: Final = U64(5)
FILL_PAGE: Final = U64(6)
FILL_HUGE: Final = U64(7)
MAKE_WRITABLE: Final = U64(8)
SPLIT: Final = U64(9)
ZAP: Final = U64(10)
FREE_TABLES: Final = U64(11)
CHANGE_ACCESS: Final = U64(12)
DETACH: Final = U64(13)
COLLAPSE: Final = U64(14)
SET_IDLE: Final = U64(15)
MOVE: Final = U64(16)
SPLIT_FOLIO: Final = U64(17)
MERGE: Final = U64(18)
FILL_HUGETLB: Final = U64(24)
WRITE_HUGETLB: Final = U64(25)
SPLIT_TO_MOVE: Final = U64(19)
SWAP_OUT: Final = U64(26)
SWAP_IN: Final = U64(27)
SET_SWAP: Final = U64(28)

OPS: Final[dict[Word, tuple[str, tuple[str, ...], str]]] = {
    NOTIFY_START: ("notify_start", ("start", "end", "blockable"), "mmu_notifier_invalidate_range_start"),
    NOTIFY_END: ("notify_end", ("start", "end"), "mmu_notifier_invalidate_range_end"),
    NOTIFY_AGE: ("notify_age", ("start", "end"), "mmu_notifier_clear_young"),
    COMMIT_VMAS: ("commit_vmas", (), "the VMAs become what the plan made of them"),
    SET_ANON: ("set_anon", ("hva", "anon_vma"), "the VMA of hva gets its anon_vma"),
    FILL_PAGE: ("fill_page", ("hva", "zero"), "a fresh page, or the zero page read-only"),
    FILL_HUGE: ("fill_huge", ("hva", "zero"), "a fresh huge page, or the huge zero page"),
    MAKE_WRITABLE: ("make_writable", ("hva",), "the entry may be written"),
    FILL_HUGETLB: ("fill_hugetlb", ("hva", "writable"), "a fresh hugetlb page"),
    WRITE_HUGETLB: ("write_hugetlb", ("hva",), "a hugetlb page may be written"),
    SPLIT: ("split", ("hva",), "a 2M leaf, if there is one, becomes 512 pages"),
    ZAP: ("zap", ("start", "end", "reclaim"), "pages go; with reclaim the tables of whole 2M too"),
    FREE_TABLES: ("free_tables", ("floor", "ceiling"), "tables of 2M and 1G with no VMA left go"),
    CHANGE_ACCESS: ("change_access", ("start", "end", "flags"), "entries get the access of flags"),
    DETACH: ("detach", ("hva",), "the table of a 2M is taken off"),
    COLLAPSE: ("collapse", ("hva", "flags"), "a huge page takes the place of a detached table"),
    MOVE: ("move", ("hva",), "a page, huge page or split huge page gets new frames"),
    SPLIT_FOLIO: (
        "split_folio",
        ("hva",),
        "a huge page becomes pages of their own, zeros the zero page",
    ),
    SPLIT_TO_MOVE: ("split_to_move", ("hva",), "the same, and its pages move next"),
    MERGE: ("merge", ("hva", "into"), "a page is write-protected, and maps the frame of the page at into"),
    SWAP_OUT: ("swap_out", ("hva",), "a page or a whole huge page goes to swap space"),
    SWAP_IN: ("swap_in", ("hva", "flags", "write"), "a page comes back, with the access of flags"),
    SET_SWAP: ("set_swap", ("on",), "swap space is there; or goes, and all of it comes back read-only"),
    SET_IDLE: ("set_idle", ("hva", "idle"), "the page idle flag is set or cleared"),
}
"""Name, operands a, b, c, and meaning of each op. Addresses are host virtual, ends exclusive."""


@kernel
def put(s: State, rows: int, op: Word, a: Word, b: Word, c: Word) -> int:
    """Write row ``rows`` of the plan; the new number of rows."""
    row = int(I64(s.regs[R_PLAN_BASE])) + rows
    s.plan[row, 0] = op
    s.plan[row, 1] = a
    s.plan[row, 2] = b
    s.plan[row, 3] = c
    return rows + 1


@kernel
def put_start(s: State, rows: int, start: Word, end: Word) -> int:
    """An invalidation of [start, end) begins; all of this room's may sleep."""
    return put(s, rows, NOTIFY_START, start, end, ONE)


@kernel
def put_end(s: State, rows: int, start: Word, end: Word) -> int:
    """An invalidation of [start, end) is over."""
    return put(s, rows, NOTIFY_END, start, end, ZERO)


@kernel
def apply_step(s: State, row: int) -> None:
    """Carry out row ``row`` of ``plan`` (``regs[R_PLAN_BASE]`` included). Nothing for a ``NOTIFY_*`` row."""
    op = s.plan[row, 0]
    a = s.plan[row, 1]
    b = s.plan[row, 2]
    c = s.plan[row, 3]
    if op == FILL_PAGE:
        fill_page(s, a, b != ZERO)
    elif op == FILL_HUGE:
        fill_huge(s, a, b != ZERO)
    elif op == ZAP:
        zap(s, a, b, c != ZERO)
    elif op == SPLIT:
        split_huge(s, a)
    elif op == FILL_HUGETLB:
        fill_hugetlb(s, a, b != ZERO)
    elif op == WRITE_HUGETLB:
        write_hugetlb(s, a)
    elif op == MAKE_WRITABLE:
        make_writable(s, a)
    elif op == CHANGE_ACCESS:
        change_access(s, a, b, c)
    elif op == COMMIT_VMAS:
        commit_draft(s)
    elif op == SET_ANON:
        set_anon(s, a, b)
    elif op == FREE_TABLES:
        free_tables(s, a, b)
    elif op == DETACH:
        detach_table(s, a)
    elif op == COLLAPSE:
        collapse(s, a, b)
    elif op == MOVE:
        move(s, a)
    elif op == SPLIT_FOLIO or op == SPLIT_TO_MOVE:
        split_folio(s, a, bool(op == SPLIT_TO_MOVE))
    elif op == MERGE:
        merge(s, a, b)
    elif op == SWAP_OUT:
        swap_out(s, a)
    elif op == SWAP_IN:
        swap_in(s, a, b, c != ZERO)
    elif op == SET_SWAP:
        set_swap(s, a != ZERO)
    elif op == SET_IDLE:
        set_idle(s, a, b != ZERO)
