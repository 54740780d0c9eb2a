"""Migration and khugepaged: their notifiers, and the page tables after."""

from __future__ import annotations

from host_lab import BASE, HUGE, PAGE, Host, machine

from shadowmmu.compiled import U64
from shadowmmu.host.advise import plan_advise
from shadowmmu.host.background import plan_khugepaged, plan_migrate, plan_numa_hints
from shadowmmu.host.layout import EINVAL, HVA_BASE, MADV_HUGEPAGE, R_RESUME
from shadowmmu.host.tables import translate
from shadowmmu.machine.frames import read_memory, write_memory
from shadowmmu.machine.state import R_NEXT_DATA


def whole_migration(host: Host, offset: int, size: int) -> list[tuple[str, int, int]]:
    """The notifiers of a migration, over all its plans."""
    seen: list[tuple[str, int, int]] = []
    end = offset + size
    while True:
        part = host.run(plan_migrate, offset, U64(end - offset))
        assert not isinstance(part, int)
        seen += part
        resume = int(host.state.regs[R_RESUME])
        if not resume:
            return seen
        offset = resume - BASE


def frame(host: Host, offset: int) -> int:
    """The frame behind a page."""
    return int(translate(host.state, U64(BASE + offset)).pa)


def both(start: int, end: int) -> list[tuple[str, int, int]]:
    """One notifier, begun and over."""
    return [("start", start, end), ("end", start, end)]


def test_migration_of_pages_notifies_each_and_keeps_contents() -> None:
    """Mapped pages move one by one; zero pages and holes stay."""
    host = Host(machine(2 * HUGE))
    host.write(0, 2 * PAGE)
    host.touch(3 * PAGE, False)
    before = [frame(host, at * PAGE) for at in range(4)]
    write_memory(host.state, U64(before[1]), U64(77))
    assert whole_migration(host, 0, 8 * PAGE) == both(0, PAGE) + both(PAGE, 2 * PAGE)
    after = [frame(host, at * PAGE) for at in range(4)]
    assert after[0] != before[0]
    assert after[1] != before[1]
    assert after[3] == before[3]
    assert int(read_memory(host.state, U64(after[1]))) == 77
    assert host.run(plan_migrate, 1, U64(PAGE)) == -EINVAL


def test_migration_of_a_huge_page_takes_it_whole() -> None:
    """A part of a huge page in the range moves all of it, in one notifier; a split one, one a VMA."""
    host = Host(machine(2 * HUGE, "thp"))
    host.write(0, HUGE)
    first = frame(host, 0)
    assert whole_migration(host, PAGE, 2 * PAGE) == both(0, HUGE)
    assert translate(host.state, HVA_BASE).size == HUGE
    assert frame(host, 0) != first
    host.mprotect(4 * PAGE, PAGE, "r")
    first = frame(host, 0)
    parts = both(0, 4 * PAGE) + both(4 * PAGE, 5 * PAGE) + both(5 * PAGE, HUGE)
    # The VMA behind reaches beyond the 2M; its notifier ends with it.
    assert whole_migration(host, 0, 2 * PAGE) == parts
    moved = frame(host, 0)
    assert moved != first
    assert moved % HUGE == 0
    assert frame(host, 7 * PAGE) == moved + 7 * PAGE


def test_migration_leaves_hugetlb() -> None:
    """There is no spare hugetlb page to move one to."""
    host = Host(machine(2 * HUGE, "huge"))
    host.write(0, HUGE)
    assert whole_migration(host, 0, HUGE) == []


def test_khugepaged_collapses_what_has_a_page() -> None:
    """A 2M with a page of its own is collapsed, one with zero pages only or without a table is not."""
    host = Host(machine(4 * HUGE))
    host.write(HUGE, PAGE)
    host.touch(2 * HUGE, False)
    assert host.run(plan_khugepaged, 0) == []
    host.run(plan_advise, 0, U64(4 * HUGE), MADV_HUGEPAGE)
    assert host.run(plan_khugepaged, 0) == both(HUGE, 2 * HUGE)
    assert translate(host.state, U64(BASE + HUGE)).size == HUGE
    assert int(host.state.regs[R_RESUME]) == BASE + 2 * HUGE
    assert host.run(plan_khugepaged, 2 * HUGE) == []


def test_khugepaged_that_finds_no_room_says_where_to_go_on() -> None:
    host = Host(machine(4 * HUGE))
    host.write(HUGE, PAGE)
    host.run(plan_advise, 0, U64(4 * HUGE), MADV_HUGEPAGE)
    roomy = host.state
    full = roomy._replace(content=roomy.content[: int(roomy.regs[R_NEXT_DATA])].copy())
    assert plan_khugepaged(full, U64(BASE)) == 0
    assert int(full.regs[R_RESUME]) == BASE + HUGE
    assert host.run(plan_khugepaged, HUGE) == both(HUGE, 2 * HUGE)


def test_numa_hints_notify_once_a_vma_over_whole_blocks() -> None:
    """Parts of VMAs on the 2M grid; what has no access, no page yet, or no VMA is left out."""
    host = Host(machine(4 * HUGE))
    assert host.run(plan_numa_hints, 0, U64(HUGE)) == []
    host.write(HUGE, 2 * PAGE)
    before = frame(host, HUGE)
    assert host.run(plan_numa_hints, HUGE + PAGE, U64(PAGE)) == both(HUGE, 2 * HUGE)
    assert frame(host, HUGE) == before
    host.mprotect(HUGE + PAGE, PAGE, "none")
    host.munmap(3 * HUGE, PAGE)
    assert host.run(plan_numa_hints, HUGE, U64(2 * HUGE + PAGE)) == [
        *both(HUGE, HUGE + PAGE),
        *both(HUGE + 2 * PAGE, 3 * HUGE),
        *both(3 * HUGE + PAGE, 4 * HUGE),
    ]
    assert host.touch(HUGE, True) == []
    assert host.run(plan_numa_hints, 1, U64(PAGE)) == -EINVAL


def test_numa_hints_leave_hugetlb_and_begin_at_the_first_populated_gigabyte() -> None:
    """``change_pud_range`` begins its notifier where the first table hangs."""
    hugetlb = Host(machine(2 * HUGE, "huge"))
    hugetlb.touch(0, True)
    assert hugetlb.run(plan_numa_hints, 0, U64(2 * HUGE)) == []
    giga = 1 << 30
    wide = Host(machine(2 * giga))
    wide.write(giga + HUGE, PAGE)
    assert wide.run(plan_numa_hints, 0, U64(2 * giga)) == both(giga, 2 * giga)


def test_migration_splits_a_huge_page_of_which_some_was_unmapped() -> None:
    """As seen on the rig: the split's notifier, each page that holds something, the first page last."""
    host = Host(machine(3 * HUGE, "thp"))
    for block in (0, HUGE):
        host.write(block, HUGE)
        for page in (0, 2, *range(40, 60)):
            host.store(block + page * PAGE, 100 + page)
        host.dontneed(block + PAGE, PAGE)
    pages = [2, *range(40, 60), 0]
    before = host.at(2 * PAGE).pa
    one = both(0, HUGE) + [row for page in pages for row in both(page * PAGE, (page + 1) * PAGE)]
    assert whole_migration(host, 3 * PAGE, 8 * PAGE) == one
    assert host.at(2 * PAGE).pa != before
    assert (host.read(0), host.read(59 * PAGE), host.read(3 * PAGE)) == (100, 159, 0)
    other = [(kind, HUGE + start, HUGE + end) for kind, start, end in one]
    host.write(2 * HUGE, PAGE)
    assert whole_migration(host, HUGE, 2 * HUGE) == other + both(2 * HUGE, 3 * HUGE)
    # Of zeros alone nothing is left to move.
    host.dontneed(2 * HUGE, PAGE)
    assert whole_migration(host, 2 * HUGE, HUGE) == both(2 * HUGE, 3 * HUGE)
