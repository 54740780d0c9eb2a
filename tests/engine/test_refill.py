"""The loop over recorded fills: each outcome, each rule of invalidation, and room."""

from __future__ import annotations

import numpy as np
import pytest

from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.engine import refill as driver
from shadowmmu.engine.refill import Refilled, refill
from shadowmmu.engine.refill_step import (
    FILL,
    FIRST_TOUCH,
    INVALIDATE_IPA,
    INVALIDATE_RANGE,
    NARROWER_SPAN,
    NOTIFY,
    OTHER_SPAN,
    OUTPUT,
    PERMISSION,
    PROTECT_ALL,
    REFAULT_AVOIDABLE,
    REFAULT_GUEST,
    REFAULT_NEEDED,
    REFAULT_UNPLACED,
    RELAX_LEAF,
    RESIZED,
    SAME_SPAN,
    SPARED,
    STALE,
    UNJOINED,
)

PAGE = 4096
BLOCK = 2 << 20
GIB = 1 << 30
C, D, N, M, P, Q = 0x4000_0000, 0x4000_5000, 0x8000_0000, 0x8000_7000, 0x9000_0000, 0x9000_3000
PRECISE = ("rbtree_2024", "spanning", "reverse_table")
Row = tuple[int, ...]


def fill(
    nested: int,
    pa: int,
    canonical: int | None,
    *,
    size: int = PAGE,
    prot: int = 0xF,
    tag: int = 3,
    mmu: int = 1,
) -> Row:
    known = canonical is not None
    return (FILL, mmu, nested, nested + size, pa, prot | tag << 55, canonical or 0, int(known), 1 << 48)


def notify(start: int, size: int = PAGE) -> Row:
    return (NOTIFY, 0, start, start + size, 1, 0, 0, 0, 0)


def tlbi(nested: int, start: int, size: int, ttl: int = 0) -> Row:
    return (INVALIDATE_IPA, 1, start, start + size, nested >> 12 | ttl << 44, 0, 0, 0, 0)


def relax(nested: int, prot: int) -> Row:
    return (RELAX_LEAF, 1, nested, nested, 0, prot, 0, 0, 0)


def output(pa: int, size: int, *, first: bool = True) -> Row:
    return (OUTPUT, 0, pa, pa + size, 0, 0, 0, int(first), 0)


def take(start: int, size: int) -> Row:
    return (INVALIDATE_RANGE, 1, start, start + size, 0, 0, 0, 0, 0)


def done(
    design: str, *rows: Row, exact: bool = False, shown: tuple[bool, ...] = (True, True), bits: int = 40
) -> Refilled:
    return refill(design, np.array(rows, np.uint64), list(shown), bits, exact)


def outcomes(design: str, *rows: Row, exact: bool = False) -> list[int]:
    """The outcome of each event but notifiers, which have none."""
    found = done(design, *rows, exact=exact).outcomes
    return [int(value) for value, row in zip(found, rows, strict=True) if row[0] != NOTIFY]


def test_sweep_takes_all_and_a_precise_design_what_the_notifier_names() -> None:
    rows = (fill(N, P, C), fill(M, Q, D), notify(D), fill(N, P, C), fill(M, Q + PAGE, D))
    first = [FIRST_TOUCH, FIRST_TOUCH]
    assert outcomes("sweep", *rows) == [*first, REFAULT_AVOIDABLE, REFAULT_NEEDED]
    for design in PRECISE:
        assert outcomes(design, *rows) == [*first, SPARED, REFAULT_NEEDED]
    found = done("sweep", *rows)
    assert (found.taken, found.notifiers_that_hit, found.peak_leaves) == ((2, 0), 1, 2)
    assert [int(value) for value in found.removed] == [0, 0, 2, 0, 0]


@pytest.mark.parametrize("design", ["pa_keyed", "leaf_scan"])
def test_designs_keyed_by_frames_are_told_them(design: str) -> None:
    fills = (fill(N, P, C), fill(M, Q, D), fill(M + PAGE, Q, D + PAGE))
    told = (NOTIFY, 0, D, D + PAGE, 1, 0, 2, 0, 0)
    rows = (*fills, output(0x5000, PAGE), output(Q, PAGE, first=False), told, *fills)
    assert [value for value in outcomes(design, *rows) if value][3:] == [
        SPARED,
        REFAULT_NEEDED,
        REFAULT_AVOIDABLE,
    ]
    silent = (*fills, output(Q, PAGE), told, *fills, notify(C), *fills)
    assert [value for value in outcomes(design, *silent) if value][6:] == [SPARED] * 3


def test_spanning_falls_back_where_l1_maps_a_page_twice() -> None:
    rows = (fill(N, P, C), fill(M, P, C), fill(M + PAGE, Q, D), notify(C), fill(M + PAGE, Q, D))
    assert outcomes("spanning", *rows)[-1] == REFAULT_AVOIDABLE
    assert outcomes("reverse_table", *rows)[-1] == SPARED


def test_a_leaf_that_a_design_missed_shows_at_the_next_fill() -> None:
    """The RFC's tree drops the second address of a page; the host moves the page; L2 gets another one."""
    rows = (fill(N, P, C), fill(M, P, C), notify(C), fill(M, Q, C))
    assert outcomes("rbtree_2024", *rows)[-1] == STALE
    assert outcomes("reverse_table", *rows)[-1] == REFAULT_NEEDED


def test_fewer_permissions_cost_a_permission_fault_at_most_and_relaxing_ends_it() -> None:
    rows = (fill(N, P, C, prot=0xB), notify(D), fill(N, P, C), notify(D), fill(N, P, C))
    assert outcomes("reverse_table", *rows) == [FIRST_TOUCH, PERMISSION, SPARED]
    rows = (fill(N, P, C, prot=0x8), relax(N, 0xF), fill(N, P, C))
    assert outcomes("reverse_table", *rows)[-1] == SPARED
    rows = (fill(N, P, C), (PROTECT_ALL, *[0] * 8), fill(N, P, C))
    assert outcomes("reverse_table", *rows)[-1] == PERMISSION


@pytest.mark.parametrize("design", sorted(CATALOGUE))
def test_a_leaf_of_another_size_is_told_apart(design: str) -> None:
    into_block = (fill(N, P, C, tag=2), fill(N, P, C, size=BLOCK, tag=2), fill(N, P, C, tag=2))
    assert outcomes(design, *into_block) == [FIRST_TOUCH, RESIZED, SPARED]
    into_page = (fill(N, P, C, size=BLOCK, tag=2), fill(N + PAGE, Q, D, tag=2))
    assert outcomes(design, *into_page) == [FIRST_TOUCH, STALE]


def test_fills_without_canonical_address_are_never_spared() -> None:
    rows = (fill(N, P, None), notify(C), fill(N, P, None))
    assert outcomes("sweep", *rows) == [FIRST_TOUCH, REFAULT_UNPLACED]
    assert outcomes("reverse_table", *rows) == [UNJOINED, UNJOINED]
    rows = (fill(N, P, C), notify(D), fill(N, Q, None))
    assert outcomes("reverse_table", *rows)[-1] == STALE


def test_kvm_spans_an_invalidation_by_what_the_shadow_holds() -> None:
    unmapped = (fill(N, P, C), tlbi(M, N & -GIB, GIB), fill(N, P, C))
    assert outcomes("reverse_table", *unmapped) == [FIRST_TOUCH, SAME_SPAN, REFAULT_GUEST]
    mapped = (fill(N, P, C), fill(M, Q, D), tlbi(M, N & -GIB, GIB), fill(N, P, C))
    assert outcomes("reverse_table", *mapped)[2:] == [NARROWER_SPAN, SPARED]
    found = done("reverse_table", tlbi(M, M, PAGE))
    assert (int(found.outcomes[0]), found.other_spans) == (OTHER_SPAN, 1)


@pytest.mark.parametrize(
    ("tag", "nested", "spared"),
    [(3, M, True), (3, N, False), (2, M, False), (2, N + BLOCK, True), (1, N + BLOCK, False), (0, M, False)],
)
def test_an_exact_invalidation_takes_the_leaves_of_the_l1_leaf_it_names(
    tag: int, nested: int, spared: bool
) -> None:
    rows = (fill(N, P, C, tag=tag), tlbi(nested, N & -GIB, GIB), fill(N, P, C, tag=tag))
    for design in CATALOGUE:
        assert (outcomes(design, *rows, exact=True)[-1] == SPARED) is spared


def test_an_exact_invalidation_follows_its_hint_and_takes_whole_blocks() -> None:
    hint = 0b0110
    rows = (fill(N, P, C), tlbi(M, N, BLOCK, hint), fill(N, P, C))
    assert outcomes("reverse_table", *rows, exact=True)[-1] == REFAULT_GUEST
    rows = (fill(N, P, C, size=BLOCK), tlbi(M, N & -GIB, GIB), fill(N, P, C, size=BLOCK))
    assert outcomes("reverse_table", *rows, exact=True)[-1] == REFAULT_GUEST


def test_ranges_are_taken_as_recorded() -> None:
    rows = (fill(N, P, C), fill(M, Q, D), take(N, PAGE), fill(N, P, C), fill(M, Q, D))
    for design in PRECISE:
        assert outcomes(design, *rows)[3:] == [REFAULT_GUEST, SPARED]
    whole = (fill(N, P, C), fill(M, Q, D), take(0, 1 << 40), fill(N, P, C), fill(M, Q, D))
    for design in PRECISE:
        found = done(design, *whole)
        assert [int(value) for value in found.outcomes[3:]] == [REFAULT_GUEST, REFAULT_GUEST]
        assert found.taken == (0, 2)


def test_tables_that_are_not_shown_are_stepped_but_not_counted() -> None:
    rows = (fill(N, P, C), fill(N, P, C, mmu=2), notify(D))
    found = done("sweep", *rows, shown=(True, False))
    assert (sum(found.fills), found.taken, int(found.removed[2])) == (1, (1, 0), 1)


@pytest.mark.parametrize("design", sorted(CATALOGUE))
def test_room_is_made_and_nothing_is_forgotten_by_it(design: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, least in (("FIRST_FRAMES", 0), ("FIRST_RECORD_WORDS", 1 << 13), ("FIRST_GRAVES", 1 << 10)):
        monkeypatch.setattr(driver, name, least)
    count = 700
    places = [(N + i * BLOCK, P + i * PAGE, C + i * PAGE) for i in range(count)]
    rows = [fill(*place) for place in places]
    found = done(design, *rows, notify(D), *rows[count // 2 :])
    again = REFAULT_AVOIDABLE if design.startswith("sweep") else SPARED
    assert found.fills[FIRST_TOUCH] == count
    assert found.fills[again] == count - count // 2
    assert found.peak_leaves == count
