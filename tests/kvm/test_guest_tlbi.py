"""What a TLBI of L1 takes from its shadows (upstream.md, table C2; kernel run 16)."""

from __future__ import annotations

import pytest
from nested_lab import CANONICAL, NESTED, log, play, sizes

WRITE = f"write {CANONICAL:#x} 4M"
PAGE, BLOCK, GIGA = 4096, 2 << 20, 1 << 30


def ranges(*lines: str, **kwargs: str) -> list[tuple[int, int]]:
    """(start, size) of what the last line unmapped in shadows."""
    done = play(WRITE, *lines, **kwargs)
    last = len(done.scenario.events) - 1
    rows = [row for row in log(done, "s2range") if row.event == last and row.fields["mmu"] != 0]
    return [(row.fields["addr"], row.fields["size"]) for row in rows]


def mapped(level: int, *touched: int) -> list[str]:
    return [
        f"map {NESTED:#x} {CANONICAL:#x} 2M {level} rw",
        *(f"touch w {NESTED + offset:#x} 4096 1" for offset in touched),
    ]


@pytest.mark.parametrize(
    ("level", "touched", "operand", "expected"),
    [
        (3, 0x1000, NESTED + 0x1000 >> 12 | 0b0110 << 44, (NESTED, BLOCK)),
        (3, 0x1000, NESTED + 0x1000 >> 12 | 0b0111 << 44, (NESTED + 0x1000, PAGE)),
        (3, 0x1000, NESTED + 0x1000 >> 12 | 0b1010 << 44, (NESTED, 32 << 20)),
        (3, 0x1000, NESTED + 0x1000 >> 12, (NESTED + 0x1000, PAGE)),
        (2, 0x1000, NESTED + 0x1000 >> 12, (NESTED, BLOCK)),
        (2, 0x0000, NESTED + 0x1000 >> 12, (NESTED, BLOCK)),
        (3, 0x0000, NESTED + 0x1000 >> 12, (NESTED, GIGA)),
        (2, 0x8000, NESTED + 0x1000 >> 12, (NESTED, GIGA)),
    ],
)
def test_ipas2_takes_what_ttl_or_tag_says_else_the_widest(
    level: int, touched: int, operand: int, expected: tuple[int, int]
) -> None:
    assert ranges(*mapped(level, touched), f"tlbi 0 {operand:#x}") == [expected]


@pytest.mark.parametrize("form", [0, 1, 7])
def test_leaf_only_and_local_forms_act_alike(form: int) -> None:
    operand = NESTED >> 12
    assert ranges(*mapped(3, 0), f"tlbi {form} {operand:#x}") == [(NESTED, PAGE)]


@pytest.mark.parametrize(
    ("operand", "size"),
    [(1 << 46 | NESTED >> 12, 8 << 10), (1 << 46 | 3 << 44 | 31 << 39 | NESTED >> 12, 8 << 30)],
)
def test_ripas2_takes_exactly_its_range(operand: int, size: int) -> None:
    assert ranges(*mapped(3, 0), f"tlbi 2 {operand:#x}") == [(NESTED, size)]


def test_ripas2_is_cut_at_the_limit_and_ignored_beyond() -> None:
    top = (1 << 40) - (1 << 13)
    assert ranges(*mapped(3, 0), f"tlbi 2 {1 << 46 | 31 << 39 | top >> 12:#x}") == [(top, 1 << 13)]
    assert ranges(*mapped(3, 0), f"tlbi 2 {1 << 46 | 1 << 40 - 12:#x}") == []


def test_ipas2_beyond_the_limit_trips_the_warning_and_unmaps_nothing() -> None:
    done = play(WRITE, *mapped(3, 0), f"tlbi 0 {1 << 40 - 12:#x}")
    assert len(log(done, "efault")) == 1
    assert sizes(done) == {NESTED: PAGE}


def test_vmalls12_takes_its_vmid_alle1_takes_all_vmalle1_none() -> None:
    two = [
        *mapped(3, 0),
        "s2 new 2",
        "code",
        f"map {NESTED:#x} {CANONICAL:#x} 4k 3 rw",
        f"touch w {NESTED:#x} 4096 1",
    ]
    for form, left in ((6, [1, 1]), (4, [1, 0]), (8, [1, 0]), (5, [0, 0])):
        done = play(WRITE, *two, f"tlbi {form}")
        assert [len(sizes(done, mmu)) for mmu in (1, 2)] == left


def test_two_roots_that_share_a_vmid_are_both_hit() -> None:
    done = play(
        WRITE,
        *mapped(3, 0),
        "s2 new 1",
        "code",
        f"map {NESTED:#x} {CANONICAL:#x} 4k 3 rw",
        f"touch w {NESTED:#x} 4096 1",
        f"tlbi 0 {NESTED >> 12:#x}",
    )
    assert [len(sizes(done, mmu)) for mmu in (1, 2)] == [0, 0]


def test_a_block_goes_whole() -> None:
    done = play(
        WRITE,
        *mapped(2, 0x1000),
        f"tlbi 0 {NESTED + 0x5000 >> 12 | 0b0111 << 44:#x}",
        start="start thp 0 0",
    )
    assert sizes(done) == {}
