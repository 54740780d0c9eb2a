"""Table C8 of the upstream reference: what aliases do to the records, case by case."""

from __future__ import annotations

from typing import Any

import pytest
from design_lab import BLOCK, DATA, NESTED, PAGE, count, leaf_of, run, script
from hypothesis import given
from hypothesis import strategies as st

from shadowmmu.designs.dispatch import design_recorded

OTHER = NESTED + 0x1000_0000
CODE = 1
"""Leaves recorded besides: L2's code page."""


def mapped(nested_ipa: int, size: str, level: int, pages: int = 1) -> str:
    """L1 maps ``size`` onto the data, L2 writes its first pages."""
    return f"map {nested_ipa:#x} {DATA:#x} {size} {level} rw\ntouch w {nested_ipa:#x} {PAGE} {pages}"


def row(text: str, backing: str, records: int, unknown: bool, *lines: str) -> Any:
    """Lines of the script, records the lists hold, whether spanning knows no more than "unmap everything"."""
    return pytest.param(lines, backing, records, unknown, id=text)


L1_64K = (
    f"vtcr 0x80027559\ns2 new 1\ncode\nmap {NESTED:#x} {DATA:#x} 128k 3 rwc\ntouch w {NESTED:#x} {PAGE} 32"
)
REFILL = (mapped(NESTED, "4k", 3), "tlbi 0 0x0000700000080000", f"touch w {NESTED:#x}")
C8 = [
    row("(a) N1, N2 to one C", "base", 2, True, mapped(NESTED, "4k", 3), mapped(OTHER, "4k", 3)),
    row("(b) C 2M at N1, 4K inside at N2", "thp", 2, True, mapped(NESTED, "2M", 2), mapped(OTHER, "4k", 3)),
    row("(c) touching neighbours stay exact", "base", 8, False, mapped(NESTED, "32k", 3, 8)),
    row("(e) contiguous 64K pages of L1: all entries 4K", "base", 32, False, L1_64K),
    row("(f) same (C,N) again after a TLBI", "base", 1, False, *REFILL),
]


@pytest.mark.parametrize(("lines", "backing", "records", "unknown"), C8)
def test_c8_what_aliases_do_to_the_records(
    lines: tuple[str, ...], backing: str, records: int, unknown: bool
) -> None:
    text = script(*lines, f"punch {DATA:#x} 4k", backing=backing)
    before = script(*lines, backing=backing)
    for design in ("gfn_lists", "reverse_table"):
        made = run(design, before)
        assert design_recorded(made.state) == records + CODE
        assert count(run(design, text), "fallbacks_mmu") == 0
    spanning = run("spanning", text)
    assert (count(spanning, "fallbacks_mmu") > 0) == unknown
    assert (count(spanning, "unknown_entries") > 0) == unknown


def test_c8_f_the_stale_entry_of_an_identical_refill_is_taken_for_the_same() -> None:
    """``spanning_v2`` keeps its entry over a TLBI; without its special case it would know no more."""
    made = run("spanning_v2", script(*REFILL, f"punch {DATA:#x} 4k"))
    assert (count(made, "fallbacks_mmu"), count(made, "unknown_entries")) == (0, 0)
    assert leaf_of(made, NESTED) is None


SIZES = st.sampled_from([PAGE, BLOCK, 1 << 30])


@given(st.tuples(SIZES, st.integers(0, 4096)), st.tuples(SIZES, st.integers(0, 4096)))
def test_c8_d_aligned_leaves_are_nested_or_disjoint(one: tuple[int, int], other: tuple[int, int]) -> None:
    ranges: list[Any] = [(n * size, n * size + size) for size, n in (one, other)]
    (a, b), (c, d) = ranges
    overlap = a < d and c < b
    assert not overlap or (a <= c and d <= b) or (c <= a and b <= d)
