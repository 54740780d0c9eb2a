"""Swap space: what MADV_PAGEOUT takes, with which notifiers, and how it comes back.

What the tests expect is what ``tests/data/kernel_runs/swap`` shows of the running kernel.
"""

from __future__ import annotations

import pytest
from host_lab import BASE, HUGE, PAGE, Host, machine, starts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadowmmu.compiled import U64
from shadowmmu.host.advise import plan_idle
from shadowmmu.host.background import plan_khugepaged, plan_migrate
from shadowmmu.host.layout import MADV_MERGEABLE, R_RESUME
from shadowmmu.host.reclaim import PAGES_PER_PLAN, plan_pageout, plan_swap
from shadowmmu.host.setup import Backing
from shadowmmu.host.steps import apply_step
from shadowmmu.host.tables import is_idle
from shadowmmu.machine.counters import HOST_FAULTS


def swap(host: Host, on: bool) -> None:
    """Swapon or swapoff, which send no notifier."""
    assert int(plan_swap(host.state, on)) == 1
    apply_step(host.state, 0)


def taken(host: Host, offset: int, size: int) -> list[tuple[int, int]]:
    """All of one MADV_PAGEOUT: its notifiers."""
    seen = []
    here, end = offset, offset + size
    while True:
        seen += starts(host.run(plan_pageout, here, U64(end - here)))
        resume = host.register(R_RESUME)
        if not resume:
            return seen
        here = resume - BASE


def swapping(memory: int = 4 * HUGE, backing: Backing = "base") -> Host:
    """A host with swap space."""
    host = Host(machine(memory, backing))
    swap(host, True)
    return host


def pages(first: int, last: int) -> list[tuple[int, int]]:
    """A notifier for each page."""
    return [(page * PAGE, (page + 1) * PAGE) for page in range(first, last)]


def test_written_pages_go_in_order_and_come_back_in_other_frames() -> None:
    """More than one plan holds; the content comes back, and the frame that was left holds nothing."""
    host = swapping()
    count = PAGES_PER_PLAN + 3
    host.write(0, count * PAGE)
    for page in range(count):
        host.store(page * PAGE, page + 1)
    frames = [host.at(page * PAGE).pa for page in range(count)]
    assert taken(host, 0, HUGE) == pages(0, count)
    assert all(host.at(page * PAGE).size == 0 for page in range(count))
    assert taken(host, 0, HUGE) == []
    faults = int(host.state.count[HOST_FAULTS])
    for page in range(count):
        assert host.touch(page * PAGE, bool(page & 1)) == []
        assert host.read(page * PAGE) == page + 1
        assert host.at(page * PAGE).writable
    assert int(host.state.count[HOST_FAULTS]) == faults + count
    assert not set(frames) & {host.at(page * PAGE).pa for page in range(count)}


def test_zero_pages_and_holes_stay_and_references_do_not_matter() -> None:
    """Idle pages go as others do, and have lost the mark when they are back."""
    host = swapping()
    host.write(0, 2 * PAGE)
    assert host.touch(2 * PAGE, False) == []
    host.run(plan_idle, PAGE)
    assert is_idle(host.state, U64(BASE + PAGE))
    assert taken(host, 0, 8 * PAGE) == pages(0, 2)
    assert host.run(plan_idle, PAGE) == []
    assert host.touch(PAGE, False) == []
    assert not is_idle(host.state, U64(BASE + PAGE))
    assert host.at(2 * PAGE).size == PAGE


def test_access_is_that_of_the_vma_when_the_page_comes_back() -> None:
    """Mprotect leaves a page on swap space there."""
    host = swapping()
    host.write(0, 3 * PAGE)
    assert taken(host, 0, 3 * PAGE) == pages(0, 3)
    host.mprotect(0, PAGE, "r")
    host.mprotect(PAGE, PAGE, "none")
    assert host.touch(0, False) == []
    assert (host.at(0).size, host.at(0).writable) == (PAGE, False)
    assert isinstance(host.touch(PAGE, False), int)
    swap(host, False)
    assert (host.at(PAGE).size, host.at(2 * PAGE).size) == (0, PAGE)
    host.mprotect(0, 2 * PAGE, "rw")
    assert host.at(PAGE).writable


def test_after_swapoff_pages_are_read_only_until_written() -> None:
    """Each belongs to the process alone, so writing needs no notifier; a second swapoff does nothing."""
    host = swapping()
    host.write(0, 2 * PAGE)
    host.store(PAGE, 7)
    taken(host, 0, 2 * PAGE)
    swap(host, False)
    assert (host.read(PAGE), host.at(PAGE).writable) == (7, False)
    assert host.touch(PAGE, True) == []
    assert host.at(PAGE).writable
    swap(host, False)
    assert host.at(PAGE).writable
    assert taken(host, 0, 2 * PAGE) == []


def test_a_huge_page_goes_whole_or_is_split() -> None:
    """Whole inside the range: one notifier. In part, or partly unmapped: split first, then page by page."""
    host = swapping(5 * HUGE, "thp")
    host.write(0, 4 * HUGE)
    for page in (0, 3, 512, 513, 600):
        host.store(page * PAGE, page + 1)
    assert taken(host, 0, HUGE) == [(0, HUGE)]
    assert host.touch(3 * PAGE, False) == []
    assert (host.read(3 * PAGE), host.at(3 * PAGE).size, host.at(4 * PAGE).size) == (4, PAGE, 0)
    assert taken(host, HUGE, 4 * PAGE) == [(HUGE, 2 * HUGE), *pages(512, 514)]
    assert host.at(HUGE + 2 * PAGE).size == PAGE
    host.dontneed(2 * HUGE + 8 * PAGE, HUGE - 8 * PAGE)
    host.store(2 * HUGE, 9)
    assert taken(host, 2 * HUGE, HUGE) == [(2 * HUGE, 3 * HUGE), *pages(1024, 1025)]
    host.mprotect(3 * HUGE, PAGE, "r")
    host.mprotect(3 * HUGE, PAGE, "rw")
    assert host.at(3 * HUGE).size == PAGE
    assert taken(host, 3 * HUGE, HUGE) == [(3 * HUGE, 4 * HUGE)]
    assert host.touch(4 * HUGE, False) == []
    assert taken(host, 4 * HUGE, HUGE) == []


def test_a_split_comes_after_the_pages_of_the_2m_before_it() -> None:
    """The kernel reclaims when it has gone over a 2M, in which it splits at once."""
    host = swapping(2 * HUGE, "thp")
    host.write(0, 2 * HUGE)
    host.dontneed(0, HUGE - 2 * PAGE)
    for page in (510, 511, 512, 513):
        host.store(page * PAGE, 1)
    assert taken(host, HUGE - 4 * PAGE, 5 * PAGE) == [
        (0, HUGE),
        *pages(510, 512),
        (HUGE, 2 * HUGE),
        *pages(512, 513),
    ]


@pytest.mark.parametrize(
    ("gone", "out", "collapses"), [(0, 64, True), (0, 65, False), (247, 10, False), (246, 10, True)]
)
def test_khugepaged_brings_some_back(gone: int, out: int, collapses: bool) -> None:
    """At most 64 pages on swap space, beside 256 that are mapped; MADV_COLLAPSE brings back any number."""
    host = Host(machine(HUGE, "thp", 600))
    swap(host, True)
    host.write(0, HUGE)
    for page in range(512):
        host.store(page * PAGE, page + 1)
    if gone:
        host.dontneed((512 - gone) * PAGE, gone * PAGE)
    taken(host, 0, out * PAGE)
    assert starts(host.run(plan_khugepaged, 0)) == ([(0, HUGE)] if collapses else [])
    if not collapses:
        assert starts(host.collapse(0, HUGE)) == [(0, HUGE)]
    assert host.at(0).size == HUGE
    assert [host.read(page * PAGE) for page in (0, out - 1, out)] == [1, out, out + 1]


def test_what_is_on_swap_space_neither_moves_nor_merges() -> None:
    """It is no page of the process; taking the range away takes it too."""
    host = swapping()
    host.write(0, 4 * PAGE)
    host.advise(0, 4 * PAGE, MADV_MERGEABLE)
    host.store(0, 5)
    taken(host, 0, 2 * PAGE)
    assert starts(host.run(plan_migrate, 0, U64(4 * PAGE))) == pages(2, 3)
    assert starts(host.dontneed(0, PAGE)) == pages(0, 1)
    assert host.touch(0, True) == []
    assert host.read(0) == 0


OFFSETS = (0, 1, 2, 510, 511, 512, 513, 1023)
ACTIONS = st.tuples(
    st.sampled_from(("write", "read", "out", "out", "dontneed", "swap", "collapse", "protect")),
    st.sampled_from(OFFSETS),
    st.sampled_from((1, 2, 3, 512)),
)


@given(st.lists(ACTIONS, max_size=25))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_random_swapping_keeps_what_was_stored(actions: list[tuple[str, int, int]]) -> None:
    """Each page reads as last stored, whatever went and came; no frame is mapped again after it was left."""
    host = swapping(2 * HUGE, "thp")
    words: dict[int, int] = {}
    on = True
    for number, (action, page, count) in enumerate(actions, 1):
        count = min(count, 1024 - page)
        if action == "write":
            assert not isinstance(host.touch(page * PAGE, True), int)
            words[page] = number
            host.store(page * PAGE, number)
        elif action == "read":
            assert not isinstance(host.touch(page * PAGE, False), int)
            assert host.read(page * PAGE) == words.get(page, 0)
        elif action == "out":
            before = {place: host.at(place * PAGE).pa for place in words}
            taken(host, page * PAGE, count * PAGE)
            for place in words:
                if on and page <= place < page + count:
                    assert host.at(place * PAGE).size == 0
                elif host.at(place * PAGE).size:
                    assert host.at(place * PAGE).pa == before[place]
        elif action == "dontneed":
            host.dontneed(page * PAGE, count * PAGE)
            words = {place: word for place, word in words.items() if not page <= place < page + count}
        elif action == "swap":
            on = not on
            swap(host, on)
        elif action == "collapse":
            host.collapse(0, 2 * HUGE)
        else:
            host.mprotect(page * PAGE, count * PAGE, "r")
            host.mprotect(page * PAGE, count * PAGE, "rw")
    for place, word in words.items():
        assert not isinstance(host.touch(place * PAGE, False), int)
        assert host.read(place * PAGE) == word
