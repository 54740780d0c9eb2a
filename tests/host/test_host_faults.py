"""Host page faults: what is mapped, with which notifiers."""

from __future__ import annotations

import numpy as np
import pytest
from host_lab import BASE, HUGE, PAGE, Host, host, starts

from shadowmmu.compiled import U64
from shadowmmu.host import layout
from shadowmmu.host.advise import plan_collapse, plan_idle, plan_idle_check
from shadowmmu.host.fault import plan_touch
from shadowmmu.host.layout import EAGAIN, EFAULT, EINVAL, ENOMEM
from shadowmmu.host.reclaim import plan_pageout
from shadowmmu.host.remove import plan_dontneed
from shadowmmu.host.steps import apply_step
from shadowmmu.host.tables import is_idle, set_idle, translate
from shadowmmu.machine.counters import COPIES_ON_WRITE, HOST_FAULTS, TABLES_FREED
from shadowmmu.machine.frames import read_memory
from shadowmmu.machine.state import DATA_BASE, R_NEXT_DATA


def counts(lab: Host) -> tuple[int, int]:
    """Faults and copies so far."""
    return int(lab.state.count[HOST_FAULTS]), int(lab.state.count[COPIES_ON_WRITE])


def test_a_read_maps_the_zero_page_and_a_write_replaces_it_inside_a_notifier() -> None:
    """Run 01: the read sends nothing, the write one notifier of 4K."""
    lab = host()
    assert lab.touch(0x3008, False) == []
    assert lab.touch(0x5000, False) == []
    zero = lab.at(0x3008)
    assert (zero.size, zero.writable) == (PAGE, False)
    assert zero.pa == lab.at(0x5000).pa
    assert lab.touch(0x3010, True) == [("start", 0x3000, 0x4000), ("end", 0x3000, 0x4000)]
    fresh = lab.at(0x3000)
    assert fresh.writable
    assert fresh.pa != zero.pa
    assert lab.touch(0x3000, True) == lab.touch(0x3000, False) == []
    assert counts(lab) == (3, 1)


def test_a_first_write_maps_a_fresh_page_without_a_notifier() -> None:
    """One 4K page each, in frames of their own."""
    lab = host()
    assert lab.touch(0x3000, True) == []
    assert lab.touch(0x4000, True) == []
    assert lab.at(0x3000).pa != lab.at(0x4000).pa
    assert lab.plan(plan_touch, 0x3000, True) == 0


def test_thp_write_maps_an_aligned_2m() -> None:
    """Runs 02 and 04: one fault for 2M; the address inside is kept."""
    lab = host(backing="thp")
    lab.touch(0x1000, False)  # moves the bump pointer off the 2M grid, if anything does
    assert lab.touch(HUGE + 0x5000, True) == []
    page = lab.at(HUGE + 0x7000)
    assert (page.size, page.writable) == (HUGE, True)
    assert page.pa % HUGE == 0x7000
    assert counts(lab) == (2, 0)


def test_thp_read_maps_the_huge_zero_page_which_a_write_replaces_whole() -> None:
    """One notifier of 2M (``do_huge_zero_wp_pmd``)."""
    lab = host(backing="thp")
    assert lab.touch(0x5000, False) == []
    assert (lab.at(0).size, lab.at(0).writable) == (HUGE, False)
    assert lab.touch(HUGE, False) == []
    assert lab.at(0).pa == lab.at(HUGE).pa
    assert lab.touch(0x9000, True) == [("start", 0, HUGE), ("end", 0, HUGE)]
    assert (lab.at(0).size, lab.at(0).writable) == (HUGE, True)
    assert counts(lab) == (3, 1)


def test_a_split_huge_zero_page_becomes_zero_pages() -> None:
    """All the same page (``__split_huge_zero_page_pmd``)."""
    lab = host(backing="thp")
    lab.touch(0, False)
    lab.dontneed(0, PAGE)
    places = {lab.at(page * PAGE).pa for page in range(1, 512)}
    lab.touch(0, False)
    assert places == {lab.at(0).pa}


def test_thp_needs_a_whole_2m_in_the_vma_and_no_table() -> None:
    """Not at the ragged end of the memory, and not where base pages were."""
    lab = host(HUGE + 8 * PAGE, "thp")
    lab.touch(HUGE, True)
    assert lab.at(HUGE).size == PAGE
    lab.touch(0, True)
    lab.dontneed(0x1000, PAGE)
    lab.dontneed(0, 0x1000)
    lab.dontneed(0x2000, HUGE - 0x2000)
    lab.touch(0, True)
    assert lab.at(0).size == PAGE


def test_dropping_a_whole_2m_at_once_frees_its_table() -> None:
    """``PT_RECLAIM``: the next fault may map 2M again (read, not seen)."""
    lab = host(backing="thp")
    lab.touch(0, True)
    lab.dontneed(0x1000, PAGE)
    lab.dontneed(0, HUGE)
    lab.touch(0, True)
    assert lab.at(0).size == HUGE


def test_hugetlb_reads_map_read_only_and_writes_reuse_without_a_notifier() -> None:
    """``hugetlb_no_page`` and ``hugetlb_wp``; mprotect to read-only and back leaves it read-only."""
    lab = host(backing="huge")
    assert lab.touch(0x5000, False) == []
    read = lab.at(0x5000)
    assert (read.size, read.writable) == (HUGE, False)
    assert lab.touch(0x6000, True) == []
    assert lab.at(0x5000) == (read.pa, HUGE, True)
    assert lab.touch(HUGE, True) == []
    assert lab.at(HUGE).writable
    lab.mprotect(0, HUGE, "r")
    assert starts(lab.mprotect(0, HUGE, "rw")) == [(0, HUGE)]
    assert not lab.at(0).writable
    assert lab.touch(0, True) == []
    assert lab.at(0).writable


def test_own_pages_are_writable_at_once_after_mprotect_and_back() -> None:
    """Run 11; the zero page is not."""
    lab = host()
    lab.touch(0, True)
    lab.touch(PAGE, False)
    lab.mprotect(0, 2 * PAGE, "r")
    assert not lab.at(0).writable
    lab.mprotect(0, 2 * PAGE, "rw")
    assert (lab.at(0).writable, lab.at(PAGE).writable) == (True, False)


@pytest.mark.parametrize("offset", [-PAGE, 8 << 20, 0x2000, 0x3000, 0x4000])
def test_no_access_is_efault(offset: int) -> None:
    """Outside the memory, in a hole, read-only, no access, write-only for a read."""
    lab = host()
    lab.munmap(0x2000, PAGE)
    lab.mprotect(0x3000, PAGE, "r")
    lab.mprotect(0x4000, PAGE, "none")
    assert lab.touch(offset, True) == -EFAULT
    assert lab.touch(offset, False) == (-EFAULT if offset != 0x3000 else [])
    if offset != 0x3000:
        assert lab.at(offset).size == 0


def test_a_mapping_that_may_only_be_written_cannot_be_read_by_gup() -> None:
    """And under no access at all an entry translates to nothing."""
    lab = host()
    lab.touch(0, True)
    lab.mprotect(0, PAGE, "w")
    assert lab.touch(0, False) == -EFAULT
    assert lab.touch(0, True) == []
    lab.mprotect(0, PAGE, "none")
    assert lab.at(0).size == 0


def test_frames_are_never_used_twice() -> None:
    """A bump pointer: what is dropped and touched again lies elsewhere."""
    lab = host()
    seen = set()
    for _ in range(20):
        lab.touch(0x1000, True)
        seen.add(lab.at(0x1000).pa)
        lab.dontneed(0x1000, PAGE)
    assert len(seen) == 20
    assert max(seen) < int(DATA_BASE) + (lab.register(R_NEXT_DATA) << 12)


def test_content_goes_with_its_page() -> None:
    """Kept by a split and a collapse, lost by MADV_DONTNEED, and its frame is given back."""
    lab = host(backing="thp")
    lab.touch(0, True)
    for page in (0, 3, 511):
        lab.store(page * PAGE, page + 7)
    lab.dontneed(5 * PAGE, PAGE)
    assert lab.at(0).size == PAGE
    assert lab.read(3 * PAGE) == 10
    old = lab.at(3 * PAGE).pa
    assert starts(lab.collapse(0, HUGE)) == [(0, HUGE)]
    assert (lab.at(0).size, lab.at(0).writable) == (HUGE, True)
    words = [lab.read(page * PAGE) for page in (0, 3, 5, 511)]
    assert words == [7, 10, 0, 518]
    assert read_memory(lab.state, U64(old)) == 0
    freed = int(lab.state.count[TABLES_FREED])
    lab.dontneed(0, HUGE)
    assert lab.state.count[TABLES_FREED] - freed == 3
    assert not lab.state.content.any()


def test_a_fault_during_a_collapse_waits() -> None:
    """Between the notifier's end and the new page nothing is mapped (``-EAGAIN``)."""
    lab = host(backing="thp")
    lab.mprotect(0, PAGE, "r")  # base pages first: the VMA holds no whole 2M
    lab.touch(PAGE, True)
    lab.mprotect(0, PAGE, "rw")
    assert lab.plan(plan_collapse, 0, U64(HUGE)) == 4
    assert [row[0] for row in lab.rows(4)] == ["notify_start", "detach", "notify_end", "collapse"]
    lab.state.regs[layout.R_PLAN_BASE] = 4
    for row in range(3):
        apply_step(lab.state, row)
        waits = row > 0
        assert lab.plan(plan_touch, PAGE, True) == (-EAGAIN if waits else 0)
        assert lab.at(PAGE).size == (0 if waits else PAGE)
    lab.state.regs[layout.R_PLAN_BASE] = 0
    apply_step(lab.state, 3)
    assert lab.at(PAGE).size == HUGE


def test_a_plan_can_stand_behind_another() -> None:
    """``R_PLAN_BASE``: a fault planned while MADV_DONTNEED is being walked."""
    lab = host()
    lab.touch(0, True)
    count = lab.plan(plan_dontneed, 0, U64(PAGE))
    before = lab.state.plan[:count].copy()
    lab.state.regs[layout.R_PLAN_BASE] = count
    assert lab.plan(plan_touch, 0x7000, False) == 1
    apply_step(lab.state, count)
    assert lab.at(0x7000).size == PAGE
    assert np.array_equal(before, lab.state.plan[:count])


def test_translate_outside_the_memory() -> None:
    """Below, above, and the last byte."""
    lab = host()
    lab.touch((8 << 20) - 1, True)
    assert lab.at((8 << 20) - 1).size == PAGE
    assert translate(lab.state, U64(BASE - 1))[1] == translate(lab.state, U64(BASE + (8 << 20)))[1] == 0
    assert translate(lab.state, U64(0))[1] == 0


def test_page_idle_asks_for_the_age_of_mapped_pages() -> None:
    """Run 14: one ageing call for each page marked; a touch clears the mark."""
    lab = host()
    lab.touch(0x3000, True)
    assert lab.run(plan_idle, 0x3008) == [("age", 0x3000, 0x4000)]
    assert is_idle(lab.state, U64(BASE + 0x3000))
    assert lab.run(plan_idle_check, 0x3008) == [("age", 0x3000, 0x4000)]
    assert is_idle(lab.state, U64(BASE + 0x3000))
    assert lab.plan(plan_touch, 0x3000, False) == 1
    assert lab.touch(0x3000, False) == []
    assert not is_idle(lab.state, U64(BASE + 0x3000))
    assert lab.run(plan_idle_check, 0x3008) == []
    lab.run(plan_idle, 0x3000)
    set_idle(lab.state, U64(BASE + 0x3000), False)
    assert not is_idle(lab.state, U64(BASE + 0x3000))


def test_page_idle_sees_neither_holes_nor_the_zero_page_nor_tails() -> None:
    """Nor hugetlb, nor addresses outside."""
    lab = host(backing="thp")
    lab.touch(0, True)
    lab.touch(HUGE, False)
    assert lab.run(plan_idle, 0) == [("age", 0, HUGE)]
    assert lab.run(plan_idle_check, 0) == [("age", 0, HUGE)]
    for offset in (PAGE, HUGE, 2 * HUGE, -PAGE, 8 << 20):
        assert lab.run(plan_idle, offset) == []
        assert lab.run(plan_idle_check, offset) == []
    assert not is_idle(lab.state, U64(BASE - PAGE))
    huge = host(backing="huge")
    huge.touch(0, True)
    assert huge.run(plan_idle, 0) == []


def test_pageout_takes_nothing() -> None:
    """There is no swap."""
    lab = host()
    lab.touch(0, True)
    assert lab.plan(plan_pageout, 0, U64(HUGE)) == 0
    assert lab.plan(plan_pageout, 1, U64(PAGE)) == -EINVAL
    assert lab.plan(plan_pageout, 0, U64(9 << 20)) == -ENOMEM
    assert host(backing="huge").plan(plan_pageout, 0, U64(PAGE)) == -EINVAL
