"""Which size a shadow leaf gets: the smallest of host mapping, memslot alignment and L1's leaf.

Rows of upstream.md, table C1, for a 4K host. What the model cannot say yet: 1G and contiguous hugetlb,
16K and 64K hosts, guest_memfd, and a memslot out of step with its user address.
"""

from __future__ import annotations

import pytest
from nested_lab import CANONICAL, NESTED, play, sizes

PAGE, BLOCK = 4096, 2 << 20


@pytest.mark.parametrize(
    ("start", "guest_size", "guest_level", "log", "leaf"),
    [
        ("start thp 0 0", "2M", 2, 0, BLOCK),
        ("start thp 0 0", "2M", 3, 0, PAGE),
        ("start thp 0 0", "2M", 2, 1, PAGE),
        ("start base 0 0", "2M", 2, 0, PAGE),
        ("start base 0 0", "2M", 3, 0, PAGE),
        ("start huge 0 0", "2M", 2, 0, BLOCK),
        ("start huge 0 0", "2M", 3, 0, PAGE),
        ("start huge 0 0", "2M", 2, 1, PAGE),
    ],
)
def test_the_smallest_of_host_and_guest(
    start: str, guest_size: str, guest_level: int, log: int, leaf: int
) -> None:
    done = play(
        f"write {CANONICAL:#x} 2M",
        f"map {NESTED:#x} {CANONICAL:#x} {guest_size} {guest_level} rw",
        f"log {log}",
        f"touch w {NESTED:#x} 4096 1",
        start=start,
    )
    assert sizes(done) == {NESTED: leaf}


def test_a_1g_guest_leaf_on_huge_pages_is_2m() -> None:
    done = play(
        "write 0x80000000 4M",
        f"map {NESTED:#x} 0x80000000 1G 1 rw",
        f"touch w {NESTED + 0x201000:#x} 4096 1",
        start="start thp 0 0",
        mem="2G",
    )
    assert sizes(done) == {NESTED + BLOCK: BLOCK}


def test_a_block_that_leaves_the_memslot_is_pages() -> None:
    # 5M of memory: the last 2M block of hva space is cut by the slot's end.
    done = play(
        "write 0x40400000 1M",
        f"map {NESTED:#x} 0x40400000 2M 2 rw",
        f"touch w {NESTED:#x} 4096 1",
        start="start thp 0 0",
        mem="5M",
    )
    assert sizes(done) == {NESTED: PAGE}


def test_a_block_under_dirty_logging_becomes_a_page_when_written() -> None:
    done = play(
        f"write {CANONICAL:#x} 2M",
        f"map {NESTED:#x} {CANONICAL:#x} 2M 2 rw",
        f"touch w {NESTED:#x} 4096 1",
        "log 1",
        f"touch w {NESTED + 0x3000:#x} 4096 1",
        start="start thp 0 0",
    )
    assert sizes(done) == {NESTED + 0x3000: PAGE}


def test_pages_that_became_a_huge_page_become_a_block() -> None:
    done = play(
        f"nohugepage {CANONICAL:#x} 2M",
        f"write {CANONICAL:#x} 2M",
        f"map {NESTED:#x} {CANONICAL:#x} 2M 2 rw",
        f"touch w {NESTED:#x} 4096 2",
        f"hugepage {CANONICAL:#x} 2M",
        f"collapse {CANONICAL:#x} 2M",
        f"touch w {NESTED + 0x5000:#x} 4096 1",
        start="start thp 0 0",
    )
    assert sizes(done) == {NESTED: BLOCK}
