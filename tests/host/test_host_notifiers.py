"""Which notifiers an operation sends, in which order, and what becomes of the VMAs."""

from __future__ import annotations

import pytest
from host_lab import BASE, HUGE, PAGE, Host, host, starts

from shadowmmu.compiled import U64
from shadowmmu.host.advise import plan_advise, plan_collapse, plan_mprotect
from shadowmmu.host.layout import (
    EINVAL,
    ENOMEM,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    R_RESULT,
    R_RESUME,
    VM_HUGEPAGE,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
)
from shadowmmu.host.remove import plan_dontneed, plan_mmap, plan_munmap, plan_punch
from shadowmmu.machine.state import R_NEXT_DATA

MEMORY = 8 << 20
GIGA = 1 << 30
RW, R = 3, 1
FIRST = int(VM_NORESERVE)


def flags(lab: Host) -> list[tuple[int, int, int]]:
    """The VMAs without their anon_vmas and the flag that only the first mapping has."""
    return [(start, end, bits & ~FIRST) for start, end, bits, _ in lab.vmas]


def based(*ranges: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """VMAs of a ``base`` host: the advice added."""
    return [(start, end, bits | int(VM_NOHUGEPAGE)) for start, end, bits in ranges]


def huge_host(blocks: int = 4) -> Host:
    """A host on THP with every 2M populated."""
    lab = host(blocks * HUGE, "thp")
    for block in range(blocks):
        lab.touch(block * HUGE, True)
    return lab


def test_dontneed_sends_one_notifier_whether_or_not_anything_is_mapped() -> None:
    """random/*: also over what was never touched."""
    lab = host()
    assert lab.dontneed(0x5000, PAGE) == [("start", 0x5000, 0x6000), ("end", 0x5000, 0x6000)]
    assert lab.plan(plan_dontneed, 0x5000, U64(1)) == 3
    assert lab.rows(3) == [
        ("notify_start", 0x5000, 0x6000, 1),
        ("zap", 0x5000, 0x6000, 1),
        ("notify_end", 0x5000, 0x6000, 0),
    ]
    assert lab.dontneed(0x5000, 0) == []


def test_dontneed_that_cuts_huge_pages_nests_a_notifier_for_each() -> None:
    """Runs 02 and 11; the middle is zapped before the tail's leaf is split."""
    lab = huge_host()
    count = lab.plan(plan_dontneed, HUGE + PAGE, U64(2 * HUGE))
    tail = 3 * HUGE
    assert lab.rows(count) == [
        ("notify_start", HUGE + PAGE, tail + PAGE, 1),
        ("notify_start", HUGE, 2 * HUGE, 1),
        ("split", HUGE, 0, 0),
        ("notify_end", HUGE, 2 * HUGE, 0),
        ("zap", HUGE + PAGE, tail, 1),
        ("notify_start", tail, tail + HUGE, 1),
        ("split", tail, 0, 0),
        ("notify_end", tail, tail + HUGE, 0),
        ("zap", tail, tail + PAGE, 1),
        ("notify_end", HUGE + PAGE, tail + PAGE, 0),
    ]
    lab.dontneed(HUGE + PAGE, 2 * HUGE)
    assert [lab.at(page).size for page in (0, HUGE, HUGE + PAGE, 2 * HUGE, tail, tail + PAGE)] == [
        HUGE,
        PAGE,
        0,
        0,
        0,
        PAGE,
    ]
    assert starts(lab.dontneed(HUGE, PAGE)) == [(HUGE, HUGE + PAGE)]


def test_dontneed_of_whole_huge_pages_splits_nothing() -> None:
    """One notifier."""
    assert starts(huge_host().dontneed(HUGE, 2 * HUGE)) == [(HUGE, 3 * HUGE)]


def test_dontneed_sends_one_notifier_for_each_vma() -> None:
    """random/seed1, step 99."""
    lab = host()
    lab.mprotect(0x2000, PAGE, "r")
    assert starts(lab.dontneed(0x1000, 0x3000)) == [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)]


def test_dontneed_over_a_hole_does_the_rest_and_says_enomem() -> None:
    """As the system call: the errno comes after the work."""
    lab = host()
    lab.munmap(0x2000, PAGE)
    assert starts(lab.dontneed(0x1000, 0x3000)) == [(0x1000, 0x2000), (0x3000, 0x4000)]
    assert lab.register(R_RESULT) == ENOMEM
    assert lab.dontneed(0x2000, PAGE) == -ENOMEM
    assert starts(lab.dontneed(MEMORY - PAGE, 2 * PAGE)) == [(MEMORY - PAGE, MEMORY)]
    assert lab.dontneed(0x1001, PAGE) == -EINVAL
    assert starts(lab.dontneed(0x1000, PAGE)) == [(0x1000, 0x2000)]
    assert lab.register(R_RESULT) == 0


def test_hugetlb_ranges_are_whole_huge_pages() -> None:
    """The start must be one; the end of MADV_DONTNEED is rounded down; VMAs are not cut elsewhere."""
    lab = host(backing="huge")
    lab.touch(0, True)
    assert lab.dontneed(PAGE, HUGE) == -EINVAL
    assert lab.dontneed(0, PAGE) == []
    assert starts(lab.dontneed(0, HUGE + PAGE)) == [(0, HUGE)]
    for refused in (lab.munmap, lab.mmap):
        assert refused(0, PAGE) == refused(PAGE, HUGE - PAGE) == -EINVAL
    assert lab.mprotect(0, PAGE, "r") == -EINVAL
    assert lab.advise(PAGE, HUGE, MADV_HUGEPAGE) == -EINVAL
    assert lab.advise(0, MEMORY, MADV_MERGEABLE) == []
    assert len(lab.vmas) == 1
    assert starts(lab.munmap(0, HUGE)) == [(0, HUGE)]


def test_hugetlb_vmas_do_not_merge_again() -> None:
    """They may not be expanded (``VM_DONTEXPAND``)."""
    lab = host(backing="huge")
    assert starts(lab.mprotect(HUGE, HUGE, "r")) == [(HUGE, 2 * HUGE)]
    assert starts(lab.mprotect(HUGE, HUGE, "rw")) == [(HUGE, 2 * HUGE)]
    assert len(lab.vmas) == 3


def test_mprotect_of_a_page_sends_the_split_once_and_then_the_change() -> None:
    """Run 11: the second cut lies in a VMA that no longer holds the whole 2M."""
    lab = host()
    lab.touch(0, True)
    count = lab.plan(plan_mprotect, 0x2000, U64(PAGE), R)
    bits = R | int(VM_NOHUGEPAGE | VM_NORESERVE)
    assert lab.rows(count) == [
        ("commit_vmas", 0, 0, 0),
        ("notify_start", 0, HUGE, 1),
        ("split", 0, 0, 0),
        ("notify_end", 0, HUGE, 0),
        ("notify_start", 0x2000, 0x3000, 1),
        ("change_access", 0x2000, 0x3000, bits),
        ("notify_end", 0x2000, 0x3000, 0),
    ]
    lab.mprotect(0x2000, PAGE, "r")
    assert flags(lab) == based((0, 0x2000, RW), (0x2000, 0x3000, R), (0x3000, MEMORY, RW))
    assert starts(lab.mprotect(0x5000, PAGE, "r")) == [(0x5000, 0x6000)]
    assert starts(lab.mprotect(0, MEMORY, "rw")) == [(0x2000, 0x3000), (0x5000, 0x6000)]
    assert flags(lab) == based((0, MEMORY, RW))


def test_mprotect_cuts_in_two_blocks_send_two_splits() -> None:
    """One for each border off the 2M grid; none on it."""
    lab = host()
    lab.touch(0, True)
    ends = (HUGE + 0x1000, 3 * HUGE + 0x1000)
    seen = starts(lab.mprotect(ends[0], ends[1] - ends[0], "r"))
    assert seen == [(HUGE, 2 * HUGE), (3 * HUGE, 4 * HUGE), ends]
    lab = host()
    lab.touch(0, True)
    assert starts(lab.mprotect(HUGE, HUGE, "r")) == [(HUGE, 2 * HUGE)]


def test_mprotect_without_a_change_or_without_tables_sends_nothing() -> None:
    """Same protection: no plan at all. Nothing populated: the VMAs change alone."""
    lab = host()
    assert lab.mprotect(0x2000, PAGE, "rw") == []
    assert lab.plan(plan_mprotect, 0x2000, U64(PAGE), RW) == 0
    assert lab.plan(plan_mprotect, 0x2000, U64(PAGE), R) == 1
    assert lab.mprotect(0x2000, PAGE, "r") == []
    assert len(lab.vmas) == 3


def test_the_change_begins_at_the_first_populated_gigabyte() -> None:
    """``change_pud_range`` starts its notifier there, but ends it at the end."""
    lab = host(3 * GIGA)
    lab.touch(2 * GIGA, True)
    assert starts(lab.mprotect(0, 3 * GIGA, "r")) == [(2 * GIGA, 3 * GIGA)]
    assert lab.mprotect(0x1000, PAGE, "rw") == []


def test_a_border_that_moves_splits_like_a_cut() -> None:
    """Merging with the VMA below, or above, moves a border into the middle of a 2M."""
    lab = huge_host()
    lab.mprotect(0, HUGE, "r")
    assert starts(lab.mprotect(HUGE, PAGE, "r")) == [(HUGE, 2 * HUGE), (HUGE, HUGE + PAGE)]
    assert [(start, end) for start, end, _, _ in lab.vmas] == [(0, HUGE + PAGE), (HUGE + PAGE, MEMORY)]
    assert lab.at(HUGE).size == lab.at(HUGE + PAGE).size == PAGE
    lab.mprotect(3 * HUGE, HUGE, "r")
    last = 3 * HUGE - PAGE
    assert starts(lab.mprotect(last, PAGE, "r")) == [(2 * HUGE, 3 * HUGE), (last, 3 * HUGE)]
    assert [(start, end) for start, end, _, _ in lab.vmas] == [
        (0, HUGE + PAGE),
        (HUGE + PAGE, last),
        (last, MEMORY),
    ]


def test_mprotect_stops_at_a_hole() -> None:
    """What lies before it is changed; a hole at the start changes nothing."""
    lab = host()
    lab.touch(0, True)
    lab.munmap(0x2000, PAGE)
    assert starts(lab.mprotect(0x1000, 0x3000, "r")) == [(0x1000, 0x2000)]
    assert lab.register(R_RESULT) == ENOMEM
    assert lab.mprotect(0x2000, 0x2000, "r") == -ENOMEM
    assert lab.mprotect(0x1234, PAGE, "r") == -EINVAL
    assert flags(lab)[-1] == based((0x3000, MEMORY, RW))[0]


def test_munmap_sends_the_splits_and_one_notifier_over_all_vmas() -> None:
    """Whatever is mapped; the VMAs go first, the tables last."""
    lab = host()
    lab.touch(0, True)
    lab.mprotect(2 * HUGE, PAGE, "r")
    start, end = PAGE, 3 * HUGE + PAGE
    count = lab.plan(plan_munmap, start, U64(end - start))
    assert lab.rows(count) == [
        ("commit_vmas", 0, 0, 0),
        ("notify_start", 0, HUGE, 1),
        ("split", 0, 0, 0),
        ("notify_end", 0, HUGE, 0),
        ("notify_start", 3 * HUGE, 4 * HUGE, 1),
        ("split", 3 * HUGE, 0, 0),
        ("notify_end", 3 * HUGE, 4 * HUGE, 0),
        ("notify_start", start, end, 1),
        ("zap", start, end, 0),
        ("notify_end", start, end, 0),
        ("free_tables", start, end, 0),
    ]
    lab.munmap(start, end - start)
    assert flags(lab) == based((0, start, RW), (end, MEMORY, RW))
    assert lab.munmap(start, end - start) == []
    assert lab.plan(plan_munmap, HUGE, U64(HUGE)) == 0


def test_munmap_of_what_was_never_touched_still_sends_its_notifier() -> None:
    """But no split: no table hangs in that gigabyte."""
    assert starts(host().munmap(PAGE, PAGE)) == [(PAGE, 2 * PAGE)]


def test_munmap_and_mmap_refuse_bad_ranges() -> None:
    """Off the grid, empty, outside the memory."""
    lab = host()
    for planner, outside in ((plan_munmap, EINVAL), (plan_mmap, ENOMEM)):
        assert lab.plan(planner, 1, U64(PAGE)) == -EINVAL
        assert lab.plan(planner, 0, U64(0)) == -EINVAL
        assert lab.plan(planner, 0, U64(2**64 - PAGE)) == -EINVAL
        assert lab.plan(planner, 0, U64(MEMORY + PAGE)) == -outside
        assert lab.plan(planner, -PAGE, U64(PAGE)) == -outside


def test_mmap_over_memory_makes_a_vma_of_its_own() -> None:
    """Run 11: no advice, reserved memory: it does not merge with what it was cut from."""
    lab = host()
    lab.touch(0x1000, True)
    assert starts(lab.mmap(0x1000, PAGE)) == [(0, HUGE), (0x1000, 0x2000)]
    assert lab.at(0x1000).size == 0
    assert [bits for _, _, bits, _ in lab.vmas] == [
        RW | FIRST | int(VM_NOHUGEPAGE),
        RW,
        RW | FIRST | int(VM_NOHUGEPAGE),
    ]
    assert starts(lab.mmap(0x2000, PAGE)) == [(0x2000, 0x3000)]
    assert [(start, end) for start, end, bits, _ in lab.vmas if bits == RW] == [(0x1000, 0x3000)]
    lab.mmap(0x4000, PAGE)
    lab.mmap(0x3000, PAGE)
    assert [(start, end) for start, end, bits, _ in lab.vmas if bits == RW] == [(0x1000, 0x5000)]


def test_mmap_into_a_hole_sends_nothing() -> None:
    """There is nothing to take away."""
    lab = host()
    lab.munmap(0x1000, PAGE)
    assert lab.mmap(0x1000, PAGE) == []
    assert lab.touch(0x1000, True) == []


def test_tables_without_a_vma_are_freed() -> None:
    """After munmap and mmap of a whole 2M the next fault may map it by one leaf; a neighbour keeps it."""
    lab = host()
    lab.touch(0, True)
    lab.mmap(0, HUGE)
    lab.advise(0, HUGE, MADV_HUGEPAGE)
    lab.touch(0, True)
    assert lab.at(0).size == HUGE
    lab = host()
    lab.touch(0, True)
    lab.mmap(0, HUGE - PAGE)
    lab.mmap(HUGE - PAGE, PAGE)
    lab.advise(0, HUGE, MADV_HUGEPAGE)
    lab.touch(0, True)
    assert lab.at(0).size == PAGE


def test_a_whole_gigabyte_that_is_unmapped_loses_its_upper_table() -> None:
    """Then a cut there sends no split any more."""
    lab = host(2 * GIGA)
    lab.touch(GIGA, True)
    lab.munmap(GIGA, GIGA)
    lab.mmap(GIGA, GIGA)
    assert lab.mprotect(GIGA + PAGE, PAGE, "r") == []


def test_vmas_with_different_anon_vmas_stay_apart() -> None:
    """``is_mergeable_anon_vma``: each was faulted in by itself before their flags agreed."""
    lab = host()
    lab.touch(0, True)
    lab.munmap(0x1000, PAGE)
    lab.mmap(0x1000, PAGE)
    lab.touch(0x1000, True)
    lab.mmap(0x2000, PAGE)
    assert [(start, end, anon) for start, end, _, anon in lab.vmas] == [
        (0, 0x1000, 1),
        (0x1000, 0x3000, 2),
        (0x3000, MEMORY, 1),
    ]
    apart = host()
    apart.mmap(0x1000, PAGE)
    apart.mmap(0x3000, PAGE)
    apart.touch(0x1000, True)
    apart.touch(0x3000, True)
    apart.mmap(0x2000, PAGE)
    assert [(start, end, anon) for start, end, bits, anon in apart.vmas if bits == RW] == [
        (0x1000, 0x3000, 1),
        (0x3000, 0x4000, 2),
    ]


def test_a_first_page_takes_the_neighbours_anon_vma() -> None:
    """``find_mergeable_anon_vma``: so parts that differ in access only merge again."""
    lab = host()
    lab.mprotect(0x2000, PAGE, "r")
    lab.touch(0x1000, True)
    lab.touch(0x5000, True)
    assert [anon for _, _, _, anon in lab.vmas] == [1, 0, 2]
    lab = host()
    lab.mprotect(0x2000, 0x1000, "none")
    lab.mprotect(0x3000, 0x1000, "r")
    lab.touch(0x5000, True)
    lab.mprotect(0x3000, 0x1000, "none")
    lab.mprotect(0x2000, 0x1000, "rw")
    lab.mprotect(0x3000, 0x1000, "r")
    assert [anon for _, _, _, anon in lab.vmas] == [0, 0, 1]
    lab.touch(0x1000, True)
    lab.mprotect(0, MEMORY, "rw")
    assert len(lab.vmas) == 2


def parts(lab: Host) -> list[tuple[int, int, int]]:
    """Where the VMAs begin and end, in pages, and their anon_vmas."""
    return [(start // PAGE, end // PAGE, anon) for start, end, _, anon in lab.vmas]


@pytest.mark.parametrize("first", [0, 1])
def test_a_first_page_takes_the_anon_vma_of_either_neighbour(first: int) -> None:
    """VMAs that differ in access only, above and below."""
    lab = host(8 * PAGE)
    lab.mprotect(4 * PAGE, 4 * PAGE, "w")
    lab.touch(first * 4 * PAGE, True)
    lab.touch((1 - first) * 4 * PAGE, True)
    assert parts(lab) == [(0, 4, 1), (4, 8, 1)]
    lab.mmap(PAGE, PAGE)
    lab.touch(PAGE, True)
    assert parts(lab)[1] == (1, 2, 2)


@pytest.mark.parametrize("touched", [1, 3, 5])
def test_merged_vmas_keep_the_anon_vma_that_one_of_them_had(touched: int) -> None:
    """Below, in the middle, or above, when all three become one."""
    lab = host(6 * PAGE)
    lab.mprotect(2 * PAGE, 2 * PAGE, "w")
    lab.touch(touched * PAGE, True)
    assert len(lab.vmas) == 3
    lab.mprotect(2 * PAGE, 2 * PAGE, "rw")
    assert parts(lab) == [(0, 6, 1)]


@pytest.mark.parametrize("touched", [1, 4])
def test_a_moved_border_shares_the_anon_vma(touched: int) -> None:
    """The VMA that grows takes it over from the one that shrinks."""
    for first, size, border in ((3 * PAGE, PAGE, 4), (5 * PAGE, PAGE, 5)):
        lab = host(9 * PAGE)
        lab.mprotect(3 * PAGE, 3 * PAGE, "w")
        lab.touch(4 * PAGE if touched == 4 else (PAGE if border == 4 else 7 * PAGE), True)
        lab.mprotect(first, size, "rw")
        grown = parts(lab)[0 if border == 4 else 2]
        assert grown == ((0, 4, 1) if border == 4 else (5, 9, 1))
        assert parts(lab)[1][2] == (1 if touched == 4 else 0)


def test_fresh_memory_takes_the_anon_vma_of_what_it_merges_with() -> None:
    """Below, above, or both."""
    lab = host(8 * PAGE)
    lab.mmap(2 * PAGE, PAGE)
    lab.touch(2 * PAGE, True)
    lab.mmap(PAGE, PAGE)
    lab.mmap(3 * PAGE, PAGE)
    assert parts(lab) == [(0, 1, 0), (1, 4, 1), (4, 8, 0)]


def test_advice_changes_vmas_and_splits_at_borders_only() -> None:
    """Run 11 on the 2M grid: nothing sent; back again: merged."""
    lab = huge_host()
    assert lab.advise(HUGE, HUGE, MADV_NOHUGEPAGE) == []
    assert [bits & ~FIRST for _, _, bits, _ in lab.vmas] == [
        RW | int(VM_HUGEPAGE),
        RW | int(VM_NOHUGEPAGE),
        RW | int(VM_HUGEPAGE),
    ]
    assert lab.advise(HUGE, HUGE, MADV_HUGEPAGE) == []
    assert len(lab.vmas) == 1
    assert starts(lab.advise(PAGE, PAGE, MADV_MERGEABLE)) == [(0, HUGE)]
    assert lab.vmas[1][2] & int(VM_MERGEABLE)
    assert lab.plan(plan_advise, PAGE, U64(PAGE), MADV_MERGEABLE) == 0


def test_advice_passes_over_holes_and_refuses_the_unknown() -> None:
    """ENOMEM comes after the work."""
    lab = host()
    lab.munmap(0x1000, PAGE)
    assert lab.advise(0, MEMORY, MADV_HUGEPAGE) == []
    assert lab.register(R_RESULT) == ENOMEM
    assert all(bits & int(VM_HUGEPAGE) for _, _, bits, _ in lab.vmas)
    assert lab.advise(0x1000, PAGE, MADV_MERGEABLE) == -ENOMEM
    assert lab.advise(0, PAGE, 4) == -EINVAL
    assert lab.advise(1, PAGE, MADV_HUGEPAGE) == -EINVAL


def collapsible(blocks: int = 2) -> Host:
    """A THP host whose blocks are mapped by base pages, few of them there."""
    lab = host(blocks * HUGE, "thp")
    lab.advise(0, blocks * HUGE, MADV_NOHUGEPAGE)
    for block in range(blocks):
        lab.touch(block * HUGE, True)
        lab.touch(block * HUGE + PAGE, False)
    lab.advise(0, blocks * HUGE, MADV_HUGEPAGE)
    return lab


def test_collapse_sends_one_notifier_for_each_2m_of_pages() -> None:
    """Run 11; zero and absent pages may be among them, and what is huge already stays."""
    lab = collapsible()
    assert lab.collapse(0, HUGE) == [("start", 0, HUGE), ("end", 0, HUGE)]
    assert starts(lab.collapse(0, 2 * HUGE)) == [(HUGE, 2 * HUGE)]
    assert lab.collapse(0, 2 * HUGE) == []
    assert lab.register(R_RESULT) == 0
    assert lab.at(HUGE + PAGE).writable


def test_collapse_refuses_what_is_not_eligible() -> None:
    """Advised against, never faulted, no table, less than 2M, hugetlb, a hole."""
    lab = host()
    lab.touch(0, True)
    assert lab.collapse(0, HUGE) == -EINVAL
    never = host()
    never.touch(0, False)
    never.advise(0, HUGE, MADV_HUGEPAGE)
    assert never.collapse(0, HUGE) == -EINVAL
    lab = collapsible()
    lab.munmap(HUGE, HUGE)
    lab.mmap(HUGE, HUGE)
    assert lab.collapse(HUGE, HUGE) == -EINVAL
    assert starts(lab.collapse(0, 2 * HUGE)) == [(0, HUGE)]
    assert lab.register(R_RESULT) == EINVAL
    assert lab.collapse(PAGE, PAGE) == lab.collapse(1, PAGE) == -EINVAL
    lab.munmap(HUGE, HUGE)
    assert lab.collapse(HUGE, HUGE) == lab.collapse(0, 2 * HUGE) == -ENOMEM
    assert host(backing="huge").collapse(0, HUGE) == -EINVAL


def test_collapse_of_a_missing_table_says_so_after_the_rest() -> None:
    """As madvise: the others are done, the call fails."""
    lab = collapsible()
    lab.dontneed(HUGE, HUGE)
    assert starts(lab.collapse(0, 2 * HUGE)) == [(0, HUGE)]
    assert lab.register(R_RESULT) == EINVAL


def test_collapse_passes_over_a_hole_and_says_so_after_the_rest() -> None:
    lab = collapsible()
    lab.munmap(0, HUGE)
    assert starts(lab.collapse(0, 2 * HUGE)) == [(HUGE, 2 * HUGE)]
    assert lab.register(R_RESULT) == ENOMEM
    assert lab.at(HUGE).size == HUGE


def test_a_bare_invalidation_has_the_bounds_it_is_asked_for() -> None:
    lab = host()
    for at in (0, HUGE, MEMORY - PAGE):
        lab.touch(at, True)
    assert starts(lab.run(plan_punch, MEMORY - PAGE, U64(PAGE))) == [(MEMORY - PAGE, MEMORY)]
    assert [lab.at(at).size for at in (0, HUGE, MEMORY - PAGE)] == [PAGE, PAGE, 0]
    for at, size in ((1, PAGE), (MEMORY, 1 << 63)):
        assert lab.run(plan_punch, at, U64(size)) == -EINVAL


def test_a_collapse_that_does_not_fit_goes_on_later() -> None:
    """``R_RESUME`` is where; nothing of it is lost."""
    lab = collapsible(40)
    room = lab.register(R_NEXT_DATA) + 8 * HUGE // PAGE
    lab.state = lab.state._replace(content=lab.state.content[:room].copy())
    done = []
    here, rounds = 0, 0
    while True:
        done += starts(lab.collapse(here, 40 * HUGE - here))
        rounds += 1
        here = lab.register(R_RESUME) - BASE
        if lab.register(R_RESUME) == 0:
            break
    assert done == [(block * HUGE, (block + 1) * HUGE) for block in range(40)]
    assert rounds > 1


def test_collapse_keeps_the_access_of_its_vma() -> None:
    """Read-only memory stays read-only."""
    lab = collapsible()
    lab.mprotect(0, 2 * HUGE, "r")
    lab.collapse(0, HUGE)
    assert (lab.at(0).size, lab.at(0).writable) == (HUGE, False)
    assert lab.plan(plan_collapse, 0, U64(HUGE)) == 0


@pytest.mark.parametrize("backing", ["base", "thp"])
def test_a_page_set_back_merges_whatever_was_between(backing: str) -> None:
    """Many pages to read-only one by one, and back in another order: one VMA again."""
    lab = host(backing=backing)  # type: ignore[arg-type]
    lab.touch(0, True)
    for page in range(0, 64, 2):
        lab.mprotect(page * PAGE, PAGE, "r")
    assert len(lab.vmas) == 64
    for page in range(62, -1, -2):
        lab.mprotect(page * PAGE, PAGE, "rw")
    assert [(start, end) for start, end, _, _ in lab.vmas] == [(0, MEMORY)]
