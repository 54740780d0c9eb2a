"""hugetlb pages of every size: faulted in, made writable and taken away whole.

What the tests expect is what ``tests/data/kernel_runs/hugetlb`` shows of the running kernel, or reading.
"""

from __future__ import annotations

import pytest
from host_lab import BASE, HUGE, PAGE, Host, host, machine, starts

from shadowmmu.compiled import U64
from shadowmmu.host.advise import plan_idle
from shadowmmu.host.layout import EINVAL, HVA_BASE, R_RESULT
from shadowmmu.host.remove import plan_punch
from shadowmmu.host.setup import Backing, host_setup
from shadowmmu.host.tables import populated
from shadowmmu.machine.granule import hugetlb_bytes
from shadowmmu.machine.state import R_PAGE_SHIFT, R_STRIDE

SIZES: list[tuple[Backing, int]] = [
    ("huge", HUGE),
    ("huge-cont-pte", 64 << 10),
    ("huge-cont-pmd", 32 << 20),
    ("huge-pud", 1 << 30),
]
each_size = pytest.mark.parametrize(("backing", "size"), SIZES)


def two_pages(backing: Backing, size: int) -> Host:
    return host(2 * max(size, HUGE), backing)


@each_size
def test_a_hugetlb_page_comes_whole_and_becomes_writable_whole(backing: Backing, size: int) -> None:
    lab = two_pages(backing, size)
    assert lab.touch(size - PAGE, False) == []
    first, last = lab.at(0), lab.at(size - PAGE)
    assert (first.size, first.writable, last.writable) == (size, False, False)
    assert last.pa - first.pa == size - PAGE
    assert first.pa % size == 0
    assert lab.at(size).size == 0
    assert lab.touch(PAGE, True) == []
    assert (lab.at(0).pa, lab.at(0).writable, lab.at(size - PAGE).writable) == (first.pa, True, True)
    assert lab.touch(size, True) == []
    assert lab.at(size).writable


@each_size
def test_a_part_of_a_hugetlb_page_cannot_go(backing: Backing, size: int) -> None:
    lab = two_pages(backing, size)
    lab.touch(0, True)
    assert lab.dontneed(PAGE, size) == -EINVAL
    assert lab.dontneed(0, size - PAGE) == []
    assert lab.munmap(0, size - PAGE) == -EINVAL
    assert lab.mprotect(PAGE, size, "r") == -EINVAL
    assert lab.run(plan_punch, 0, U64(PAGE)) == -EINVAL
    assert lab.at(0).size == size
    lab.store(8, 77)
    assert starts(lab.dontneed(0, size + PAGE)) == [(0, size)]
    assert lab.at(size - PAGE).size == 0
    assert lab.touch(0, True) == []
    assert lab.read(8) == 0


@each_size
def test_a_bare_invalidation_takes_whole_hugetlb_pages(backing: Backing, size: int) -> None:
    lab = two_pages(backing, size)
    lab.touch(0, True)
    assert starts(lab.run(plan_punch, 0, U64(size))) == [(0, size)]
    assert lab.at(0).size == 0
    assert starts(lab.run(plan_punch, 0, U64(size))) == [(0, size)]


def test_a_mapping_that_would_end_inside_a_hugetlb_page_leaves_the_cut_at_its_start() -> None:
    lab = two_pages("huge", HUGE)
    lab.mmap(0, HUGE)
    lab.touch(PAGE, True)
    frame = lab.at(PAGE)
    assert starts(lab.mmap(PAGE, HUGE)) == [(0, HUGE)], "of the cut alone"
    assert lab.register(R_RESULT) == EINVAL
    assert lab.at(PAGE) == frame
    assert [vma[:2] for vma in lab.vmas] == [(0, PAGE), (PAGE, HUGE), (HUGE, 2 * HUGE)]
    assert lab.mmap(HUGE, PAGE) == -EINVAL, "no cut at the start"


@each_size
def test_protection_changes_whole_and_is_given_back_by_the_next_write(backing: Backing, size: int) -> None:
    lab = two_pages(backing, size)
    lab.touch(0, True)
    assert (0, size) in starts(lab.mprotect(0, size, "r"))
    assert not lab.at(size - PAGE).writable
    assert (0, size) in starts(lab.mprotect(0, size, "rw"))
    assert not lab.at(0).writable
    assert lab.touch(0, True) == []
    assert lab.at(size - PAGE).writable


@each_size
def test_no_page_of_hugetlb_can_be_marked_idle(backing: Backing, size: int) -> None:
    lab = two_pages(backing, size)
    lab.touch(0, True)
    assert lab.run(plan_idle, 0) == []


def test_no_table_hangs_under_a_leaf_of_1g() -> None:
    """The next mapping of that memory starts without one: no notifier of mprotect before the first page."""
    lab = two_pages("huge-pud", 1 << 30)
    lab.touch(0, True)
    assert not populated(lab.state, HVA_BASE)
    assert starts(lab.mmap(0, 1 << 30)) == [(0, 1 << 30)]
    assert starts(lab.mprotect(0, HUGE, "r")) == []
    assert lab.touch(HUGE, True) == []
    assert populated(lab.state, HVA_BASE)
    assert lab.at(HUGE).size == PAGE


def test_a_cut_inside_the_table_of_contiguous_pages_is_announced() -> None:
    """``split_huge_pmd_if_needed`` asks for no kind of VMA: seen on the rig."""
    lab = two_pages("huge-cont-pte", HUGE)
    lab.touch(0, True)
    assert starts(lab.munmap(64 << 10, 64 << 10)) == [(0, HUGE), (64 << 10, 128 << 10)]
    assert lab.at(0).size == 64 << 10


@pytest.mark.parametrize(
    ("granule", "backing", "size"),
    [
        ("16K", "huge-cont-pte", 2 << 20),
        ("16K", "huge-cont-pmd", 1 << 30),
        ("64K", "huge-cont-pte", 2 << 20),
        ("64K", "huge-cont-pmd", 16 << 30),
        ("64K", "huge", 512 << 20),
        ("16K", "huge-pud", 0),
        ("4K", "thp", 0),
    ],
)
def test_sizes_of_other_granules(granule: str, backing: str, size: int) -> None:
    """Powers of two of ``CONT_PTE_SHIFT`` and ``CONT_PMD_SHIFT``; a PUD leaf only with the 4K granule."""
    assert hugetlb_bytes(granule, backing) == size


def test_a_backing_that_the_granule_has_not_is_refused() -> None:
    state = machine(HUGE)
    state.regs[R_PAGE_SHIFT] = 14
    state.regs[R_STRIDE] = 11
    with pytest.raises(ValueError, match="16K pages has none"):
        host_setup(state, 1 << 30, "huge-pud")
    with pytest.raises(ValueError, match="multiple"):
        host_setup(machine(HUGE), HUGE, "huge-pud")


def test_hugetlb_addresses_begin_aligned() -> None:
    assert all(BASE % size == 0 for _, size in SIZES)
