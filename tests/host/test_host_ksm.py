"""KSM: who is merged with whom, in which scan, with which notifiers, and what breaks it."""

from __future__ import annotations

from host_lab import BASE, HUGE, PAGE, Host, machine, starts

from shadowmmu.compiled import U64
from shadowmmu.host.advise import plan_collapse
from shadowmmu.host.background import plan_migrate
from shadowmmu.host.fault import plan_touch
from shadowmmu.host.folio import holds_zeros, same_content, sharers
from shadowmmu.host.ksm import KSM_SCANS, MAX_SHARING, plan_ksm
from shadowmmu.host.layout import (
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    R_CONTENTS,
    R_MERGE_SCAN,
    R_RESUME,
    R_SWAP,
)
from shadowmmu.host.reclaim import plan_pageout
from shadowmmu.host.setup import Backing
from shadowmmu.machine.frames import drop_content, share_content
from shadowmmu.machine.state import State

Ranges = list[tuple[int, int]]


def keeping(state: State) -> State:
    """The state, made to keep contents and what KSM remembers."""
    state.regs[R_CONTENTS] = 1
    return state._replace(hpte=state.hpte.repeat(2) * 0)


def lab(backing: Backing = "base", huges: int = 4) -> Host:
    """A host that keeps what is stored, with all of its memory mergeable but the last 2M."""
    state = machine(huges * HUGE, backing, 512)
    host = Host(keeping(state))
    host.advise(0, (huges - 1) * HUGE, MADV_MERGEABLE)
    return host


def fill(host: Host, page: int, value: int) -> None:
    """The VMM stores a word to a page."""
    host.touch(page * PAGE, True)
    host.store(page * PAGE, value)


def ksm(host: Host) -> Ranges:
    """All scans of one ``ksm``: the notifiers, in pages."""
    seen: Ranges = []
    offset = 0
    for _ in range(4096):
        part = host.run(plan_ksm, offset)
        assert not isinstance(part, int)
        seen += [(start // PAGE, end // PAGE) for kind, start, end in part if kind == "start"]
        resume = host.register(R_RESUME)
        if not resume:
            assert host.register(R_MERGE_SCAN) == 0
            return seen
        offset = resume - BASE
    raise AssertionError("ksmd does not come to an end")


def single(*pages: int) -> Ranges:
    """A notifier for each page."""
    return [(page, page + 1) for page in pages]


def test_equal_pages_share_the_frame_of_the_second() -> None:
    """As seen on the rig: 1, 0, 0, 2, 2; all read-only; a store copies, and nothing is lost."""
    host = lab()
    for page, value in enumerate((7, 7, 7, 8, 7)):
        fill(host, page, value)
    host.touch(5 * PAGE, False)
    frame = host.at(PAGE).pa
    assert ksm(host) == single(1, 0, 0, 2, 2, 4, 4)
    assert {host.at(page * PAGE).pa for page in (0, 1, 2, 4)} == {frame}
    assert [host.at(page * PAGE).writable for page in range(5)] == [False, False, False, True, False]
    assert host.touch(0, True) == [("start", 0, PAGE), ("end", 0, PAGE)]
    assert (host.at(0).writable, host.read(0), host.read(PAGE)) == (True, 7, 7)
    host.store(0, 9)
    assert (host.read(0), host.read(PAGE)) == (9, 7)
    assert ksm(host) == []
    host.store(0, 7)
    assert ksm(host) == single(0, 0)


def test_a_changing_page_is_left_for_the_next_scan() -> None:
    """The first scan only remembers; where nothing is kept, or nothing is mergeable, nothing happens."""
    host = lab()
    fill(host, 0, 7)
    fill(host, 1, 7)
    host.plan(plan_ksm, 0)
    assert host.register(R_MERGE_SCAN) == 1
    assert host.at(0).writable
    host.state.regs[R_MERGE_SCAN] = 0
    host.state.regs[R_CONTENTS] = 0
    assert ksm(host) == []
    host.state.regs[R_CONTENTS] = 1
    assert ksm(host) == single(1, 0, 0)
    assert int(KSM_SCANS) == 4
    last = 3 * HUGE // PAGE
    fill(host, last, 7)
    fill(host, last + 1, 7)
    assert ksm(host) == []


def test_pages_of_two_huge_pages_split_both() -> None:
    """Pages of one huge page split it and are merged a scan later."""
    host = lab("thp")
    for page in (0, 1, 512, 513):
        fill(host, page, 7)
    fill(host, 600, 8)
    assert ksm(host) == [(0, 512), (512, 1024), *single(512, 0, 0, 513, 513, 1, 1)]
    assert host.at(0).pa == host.at(513 * PAGE).pa == host.at(PAGE).pa
    assert host.read(600 * PAGE) == 8


def test_a_page_of_zeros_in_a_huge_page_becomes_the_zero_page() -> None:
    """Its protection finds nothing to protect; where the other page was made to be shared, that is undone."""
    host = lab("thp")
    host.touch(0, True)
    host.advise(HUGE, HUGE, MADV_NOHUGEPAGE)
    first, second = HUGE // PAGE, HUGE // PAGE + 1
    fill(host, first, 0)
    # Of 512 pages of zeros the first is the candidate, and the second splits the huge page they are in.
    assert ksm(host) == [(0, 512)]
    assert not host.at(0).writable
    assert host.at(0).pa == host.at(PAGE).pa
    fill(host, second, 0)
    assert ksm(host) == single(second, first, first)
    host.run(plan_touch, 2 * HUGE, True)
    assert ksm(host) == [(1024, 1536), (1024, 1025)]
    assert host.at(2 * HUGE).pa == host.at(0).pa


def test_the_one_made_to_be_shared_is_taken_back() -> None:
    """A small page of zeros meets one in a huge page, whose split takes the other away (``break_cow``)."""
    host = Host(keeping(machine(2 * HUGE, "thp")))
    host.touch(0, True)
    host.advise(HUGE, HUGE, MADV_NOHUGEPAGE)
    fill(host, 512, 0)
    host.advise(0, PAGE, MADV_MERGEABLE)
    host.advise(HUGE, PAGE, MADV_MERGEABLE)
    assert ksm(host) == [(512, 513), (0, 1), (1, 512), (0, 1), (512, 513)]
    assert host.at(HUGE).writable
    assert not host.at(0).writable


def test_a_huge_page_is_split_for_a_page_merged_before() -> None:
    """What is in the stable tree takes a page of a huge page too, but for one of zeros."""
    host = lab("thp")
    host.advise(0, HUGE, MADV_NOHUGEPAGE)
    fill(host, 0, 7)
    fill(host, 1, 7)
    assert ksm(host) == single(1, 0, 0)
    fill(host, 512, 7)
    assert ksm(host) == [(512, 1024), (512, 513), (512, 513)]
    assert host.at(HUGE).pa == host.at(0).pa


def test_no_frame_is_shared_more_than_so_often() -> None:
    """After 256 mappings a second frame is shared (``max_page_sharing``)."""
    host = lab()
    for page in range(MAX_SHARING + 3):
        fill(host, page, 7)
    ksm(host)
    frames = [host.at(page * PAGE).pa for page in range(MAX_SHARING + 3)]
    assert [frames.count(frame) for frame in sorted(set(frames), key=frames.index)] == [MAX_SHARING, 3]
    assert sharers(host.state, U64(frames[0])) == MAX_SHARING


def test_merged_pages_through_the_rest_of_the_host() -> None:
    """They do not migrate while shared, do not become writable by mprotect, and survive a collapse."""
    host = lab()
    for page in range(4):
        fill(host, page, 7)
    fill(host, 4, 8)
    ksm(host)
    assert host.run(plan_migrate, 0, U64(4 * PAGE)) == []
    host.mprotect(0, PAGE, "r")
    host.mprotect(0, PAGE, "rw")
    assert not host.at(0).writable
    host.dontneed(PAGE, PAGE)
    host.dontneed(2 * PAGE, PAGE)
    assert host.read(0) == 7
    host.dontneed(0, PAGE)
    assert starts(host.run(plan_migrate, 3 * PAGE, U64(PAGE))) == [(3 * PAGE, 4 * PAGE)]
    assert host.read(3 * PAGE) == 7
    fill(host, 0, 7)
    ksm(host)
    host.advise(0, HUGE, MADV_HUGEPAGE)
    assert not isinstance(host.run(plan_collapse, 0, U64(HUGE)), int)
    assert [host.read(page * PAGE) for page in (0, 3, 4, 5)] == [7, 7, 8, 0]
    host.store(0, 1)
    assert host.read(3 * PAGE) == 7


def test_contents_compare_by_what_they_hold() -> None:
    """Pages without content read as zeros; content shared is the same, and copied at the next store."""
    host = lab()
    for page in range(4):
        host.touch(page * PAGE, True)
    pa = [U64(host.at(page * PAGE).pa) for page in range(4)]
    state = host.state
    assert same_content(state, pa[0], pa[1])
    host.store(0, 0)
    assert same_content(state, pa[0], pa[1])
    assert same_content(state, pa[1], pa[0])
    host.store(0, 5)
    assert not same_content(state, pa[1], pa[0])
    assert not holds_zeros(state, pa[0])
    share_content(state, pa[0], pa[2])
    share_content(state, pa[3], pa[1])
    assert same_content(state, pa[0], pa[2])
    drop_content(state, pa[0])
    assert holds_zeros(state, pa[0])
    assert host.read(2 * PAGE) == 5


def one_of_each(small: int, large: int, value: int) -> Host:
    """Two mergeable pages that hold ``value``: one alone in its folio, one in a huge page of zeros."""
    host = Host(keeping(machine(2 * HUGE, "thp")))
    host.advise(small // 512 * HUGE, HUGE, MADV_NOHUGEPAGE)
    fill(host, small, value)
    fill(host, large, value)
    host.advise(small * PAGE, PAGE, MADV_MERGEABLE)
    host.advise(large * PAGE, PAGE, MADV_MERGEABLE)
    return host


def test_a_small_page_meets_one_of_a_huge_page() -> None:
    """The huge page is split when its page's turn comes, with a notifier for each of its VMAs."""
    host = one_of_each(512, 0, 7)
    assert ksm(host) == [(512, 513), (0, 1), (1, 512), (0, 1), (0, 1)]
    assert host.at(0).pa == host.at(HUGE).pa
    host = one_of_each(0, 512, 0)
    assert ksm(host) == [(512, 513), (513, 1024), (512, 513)]
    assert host.at(0).writable
    assert not host.at(HUGE).writable


def test_a_merged_page_mapped_once_goes_with_notifiers_of_stale_addresses() -> None:
    """One for each address merged later than its own, the last first, until ksmd comes by."""
    host = lab()
    host.state.regs[R_SWAP] = 1
    for page in range(6):
        fill(host, page, 9)
    ksm(host)
    for page in (1, 2, 3, 5):
        fill(host, page, 20 + page)
    host.munmap(3 * PAGE, PAGE)
    host.mmap(3 * PAGE, PAGE)
    assert host.run(plan_pageout, 0, U64(6 * PAGE)) != []
    assert [sharers(host.state, U64(host.at(page * PAGE).pa)) for page in (0, 4)] == [2, 2]
    fill(host, 4, 24)
    assert starts(host.run(plan_migrate, 0, U64(PAGE))) == [
        (p * PAGE, (p + 1) * PAGE) for p in (5, 4, 2, 1, 0)
    ]
    assert starts(host.run(plan_pageout, 0, U64(PAGE))) == [
        (p * PAGE, (p + 1) * PAGE) for p in (5, 4, 2, 1, 0)
    ]
    assert host.touch(0, False) == []
    assert (host.read(0), host.at(0).writable) == (9, False)
    host.mprotect(0, PAGE, "r")
    host.mprotect(0, PAGE, "rw")
    assert not host.at(0).writable
    assert host.touch(0, True) == []
    assert host.at(0).writable


def test_ksmd_forgets_stale_addresses_and_many_take_several_plans() -> None:
    """A scan after the writes leaves none; without it the notifiers of forty come in three plans."""
    for scanned in (False, True):
        host = lab()
        for page in range(41):
            fill(host, page, 9)
        ksm(host)
        for page in range(1, 41):
            fill(host, page, 20 + page)
        if scanned:
            ksm(host)
        seen: Ranges = []
        plans = 0
        resume = BASE
        while resume:
            part = host.run(plan_migrate, 0, U64(PAGE))
            seen += [(start // PAGE, end // PAGE) for start, end in starts(part)]
            plans += 1
            resume = host.register(R_RESUME)
        expected = [] if scanned else [(page, page + 1) for page in range(40, 0, -1)]
        assert seen == [*expected, (0, 1)]
        assert plans == (1 if scanned else 3)
