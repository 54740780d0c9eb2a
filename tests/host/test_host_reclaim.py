"""MADV_PAGEOUT: which huge pages it splits, with which notifiers, and what of them is left."""

from __future__ import annotations

from host_lab import BASE, HUGE, PAGE, Host, machine, starts

from shadowmmu.compiled import U64
from shadowmmu.host.layout import EINVAL, ENOMEM, R_RESUME
from shadowmmu.host.reclaim import plan_pageout


def pageout(host: Host, offset: int, size: int) -> list[tuple[int, int]]:
    """All of one MADV_PAGEOUT: its notifiers."""
    seen = []
    end = offset + size
    while True:
        seen += starts(host.run(plan_pageout, offset, U64(end - offset)))
        resume = host.register(R_RESUME)
        if not resume:
            return seen
        offset = resume - BASE


def thp() -> Host:
    """Three huge pages in four; of the first three pages hold something, of the others one."""
    host = Host(machine(4 * HUGE, "thp"))
    host.write(0, 3 * HUGE)
    for page in (0, 1, 511):
        host.store(page * PAGE, page + 1)
    host.store(HUGE + 5 * PAGE, 5)
    host.store(2 * HUGE, 6)
    return host


def test_a_whole_huge_page_is_split() -> None:
    """One notifier; the frames stay, and a second time there is nothing to do."""
    host = thp()
    frame = host.at(0).pa
    assert pageout(host, 0, HUGE) == [(0, HUGE)]
    assert host.at(PAGE) == (frame + PAGE, PAGE, True)
    assert pageout(host, 0, HUGE) == []


def test_every_huge_page_that_the_range_meets_is_split() -> None:
    """Pages of zeros become the zero page; holes and 2M without a table are passed over."""
    host = thp()
    host.dontneed(HUGE, 3 * PAGE)
    assert pageout(host, HUGE - PAGE, 3 * HUGE) == [(0, HUGE), (HUGE, 2 * HUGE), (2 * HUGE, 3 * HUGE)]
    assert host.at(HUGE).size == 0
    assert host.read(HUGE + 5 * PAGE) == 5
    assert not host.at(HUGE + 6 * PAGE).writable
    assert host.at(HUGE + 6 * PAGE).pa == host.at(3 * HUGE - PAGE).pa
    assert not isinstance(host.touch(HUGE + 6 * PAGE, True), int)
    assert host.read(HUGE + 6 * PAGE) == 0


def test_a_split_leaf_has_a_notifier_for_each_vma() -> None:
    """Only for those of its anon_vma: memory mapped anew in its middle has none of its pages."""
    host = thp()
    host.mprotect(4 * PAGE, 4 * PAGE, "r")
    host.munmap(8 * PAGE, 4 * PAGE)
    host.mmap(8 * PAGE, 4 * PAGE)
    assert pageout(host, 6 * PAGE, PAGE) == [(0, 4 * PAGE), (4 * PAGE, 8 * PAGE), (12 * PAGE, HUGE)]
    assert (host.at(4 * PAGE).writable, host.at(0).writable) == (False, True)


def test_pages_stay_and_errors_are_told() -> None:
    """Without swap a base page stays; hugetlb and holes are errors."""
    host = Host(machine(4 * HUGE))
    host.write(0, 4 * PAGE)
    frame = host.at(0).pa
    assert pageout(host, 0, 4 * HUGE) == []
    assert host.at(0).pa == frame
    assert host.run(plan_pageout, 1, U64(PAGE)) == -EINVAL
    host.munmap(2 * PAGE, PAGE)
    assert host.run(plan_pageout, 0, U64(4 * PAGE)) == -ENOMEM
    assert Host(machine(2 * HUGE, "huge")).run(plan_pageout, 0, U64(HUGE)) == -EINVAL
