"""``spanning``: exact until something overlaps, then UNKNOWN until a full unmap; never a stale leaf."""

from __future__ import annotations

import pytest
from design_lab import (
    BLOCK,
    DATA,
    NESTED,
    PAGE,
    PAGES_16,
    cost,
    count,
    every_event,
    executor,
    judged,
    last_event,
    leaf_of,
    run,
    script,
)

from shadowmmu.compiled import U64
from shadowmmu.designs.containers import maple_node
from shadowmmu.designs.dispatch import design_bytes, design_covers, design_recorded
from shadowmmu.designs.spanning import M_BROKEN, M_DIRECT, M_MAP, spanning_record
from shadowmmu.designs.spanning_check import SpanningEntry, check_spanning, spanning_entries
from shadowmmu.engine.executor import Executor
from shadowmmu.verify.cases import random_script

DESIGN = "spanning"
ALIAS = f"map {NESTED + BLOCK:#x} {DATA:#x} 4k 3 rw\ntouch w {NESTED + BLOCK:#x}"
BLOCK_LEAF = f"map {NESTED:#x} {DATA:#x} 2M 2 rw\ntouch w {NESTED:#x}"


def entries(made: Executor, tree: int = M_MAP) -> list[SpanningEntry]:
    """The map (or the direct map) of the first shadow MMU, L2's code page left out."""
    check_spanning(made.state)
    found = spanning_entries(made.state, made.state.mmus[1, tree])
    return [entry for entry in found if max(entry.first, entry.output) >= NESTED or entry.first >= DATA]


def test_a_leaf_is_recorded_in_both_trees() -> None:
    made = run(DESIGN, script(f"map {NESTED:#x} {DATA:#x} 4k 3 rw\ntouch w {NESTED:#x}"))
    assert entries(made) == [(DATA, DATA + PAGE - 1, NESTED, False)]
    assert entries(made, M_DIRECT) == [(NESTED, NESTED + PAGE - 1, DATA, False)]
    assert design_recorded(made.state) == 2  # and L2's code page
    assert design_bytes(made.state) > 0


def test_without_aliases_nothing_falls_back_and_nothing_is_over_unmapped() -> None:
    lines = [f"dontneed {DATA + k * PAGE:#x} 4k\ntouch w {NESTED:#x} 4096 16" for k in range(16)]
    made = every_event(DESIGN, script(PAGES_16, *lines), lambda running: assert_paired(running))
    assert [count(made, n) for n in ("fallbacks_mmu", "unknown_entries", "over_unmapped_bytes")] == [0, 0, 0]
    assert count(made, "refaults_caused") == 16


def assert_paired(made: Executor) -> None:
    assert check_spanning(made.state) == 0


def test_unknown_absorbs_and_takes_the_whole_mmu() -> None:
    more = f"map {NESTED + 2 * BLOCK:#x} {DATA:#x} 4k 3 rw\ntouch w {NESTED + 2 * BLOCK:#x}"
    made = executor(DESIGN, script(PAGES_16, ALIAS, more, f"dontneed {DATA:#x} 4k"))
    made.run(last_event(made))
    assert entries(made)[0] == (DATA, DATA + PAGE - 1, 0, True)
    assert len(entries(made)) == 16
    assert cost(made, last_event(made), "fallbacks_mmu", "leaves_removed") == [1, 16 + 2 + 1]


def test_unknown_outlives_a_tlbi_of_all_that_it_covers() -> None:
    gone = [f"tlbi 0 {7 << 44 | ipa >> 12:#x}" for ipa in (NESTED, NESTED + BLOCK)]
    made = run(DESIGN, script(PAGES_16, ALIAS, *gone))
    assert entries(made)[0].unknown


def test_unknown_grows_to_the_hull_of_what_it_meets() -> None:
    page = f"map {NESTED + 4 * BLOCK:#x} {DATA + 0x7000:#x} 4k 3 rw\ntouch w {NESTED + 4 * BLOCK:#x}"
    made = run(DESIGN, script(page, BLOCK_LEAF, backing="thp"))
    assert entries(made) == [(DATA, DATA + BLOCK - 1, 0, True)]
    made = run(DESIGN, script(BLOCK_LEAF, page, backing="thp"))
    assert entries(made) == [(DATA, DATA + BLOCK - 1, 0, True)]


def test_a_hull_covers_every_page_of_the_block_that_replaces_them() -> None:
    pages = f"map {NESTED:#x} {DATA:#x} 32k 3 rw\ntouch w {NESTED:#x} 4096 8"
    block = f"map {NESTED:#x} {DATA:#x} 2M 2 rw\ntouch w {NESTED + 0x10_0000:#x}"
    made = run(DESIGN, script(pages, f"unmap {NESTED:#x} 2M 2", block, backing="thp"))
    assert entries(made) == [(DATA, DATA + BLOCK - 1, 0, True)]


def test_a_full_unmap_heals() -> None:
    again = f"unmap {NESTED + BLOCK:#x} 4k 3\ntouch w {NESTED:#x} 4096 16\ndontneed {DATA:#x} 4k"
    made = executor(DESIGN, script(PAGES_16, ALIAS, f"dontneed {DATA:#x} 4k", again))
    assert cost(made, last_event(made), "fallbacks_mmu", "over_unmapped_bytes") == [0, 0]


@pytest.mark.parametrize("nth", range(1, 18))
def test_a_failed_allocation_breaks_the_record_until_the_next_unmap(nth: int) -> None:
    text = script(
        PAGES_16, f"dontneed {DATA:#x} 4k", f"touch w {NESTED:#x} 4096 16", f"dontneed {DATA:#x} 4k"
    )
    made, violation = judged(DESIGN, text, fail=nth)
    assert violation is None
    assert [count(made, n) for n in ("allocation_failures", "broken", "fallbacks_mmu")] == [1, 1, 1]
    assert not made.state.mmus[1:, M_BROKEN].any()
    assert check_spanning(made.state) == 0


def test_a_broken_record_covers_everything_and_takes_no_more() -> None:
    made = run(DESIGN, script(PAGES_16), fail=2)
    assert made.state.mmus[1, M_BROKEN]
    assert len(entries(made)) == 0
    assert design_covers(made.state, 1, U64(DATA), U64(NESTED), U64(PAGE), 3, U64(1))


def test_an_entry_covers_its_own_leaf_and_no_other() -> None:
    made = run(DESIGN, script(PAGES_16))

    def covers(page: int, nested_page: int, pages: int) -> bool:
        canonical_ipa, nested_ipa = U64(DATA + page * PAGE), U64(NESTED + nested_page * PAGE)
        return bool(design_covers(made.state, 1, canonical_ipa, nested_ipa, U64(pages * PAGE), 3, U64(1)))

    assert covers(3, 3, 1)
    assert covers(0, 0, 16), "pages that follow each other in both"
    assert not covers(3, 4, 1), "another nested address"
    assert not covers(0, 0, 17), "beyond the last"
    assert not covers(16, 16, 1)


@pytest.mark.parametrize("nodes", [0, 1])
def test_a_tree_without_room_for_a_node_breaks_the_record_too(nodes: int) -> None:
    made = executor(DESIGN, script("nop"))
    end = int(made.state.rmap[0]) + 32 * nodes  # the engine never lets a pool run so short
    state = made.state._replace(rmap=made.state.rmap[:end])
    spanning_record(state, 1, U64(DATA), U64(NESTED), U64(PAGE))
    assert state.mmus[1, M_BROKEN]
    assert [count(made, name) for name in ("broken", "allocation_failures")] == [1, 0]


def test_the_same_leaf_again_does_not_pollute() -> None:
    split = f"log 1\ntouch w {NESTED:#x}\nlog 0"
    made = run(DESIGN, script(BLOCK_LEAF, split, f"touch w {NESTED:#x}", backing="thp"))
    check_spanning(made.state)
    wide = run(DESIGN, script(PAGES_16, "tlbi 4", f"touch w {NESTED:#x} 4096 16"))
    assert count(wide, "unknown_entries") == 0


def test_an_entry_left_by_a_replaced_leaf_is_reused_by_its_refill() -> None:
    moved = [
        f"map {NESTED:#x} {DATA:#x} 4k 3 r\ntouch r {NESTED:#x}",
        f"unmap {NESTED:#x} 2M 2\nmap {NESTED:#x} {DATA + BLOCK:#x} 2M 2 rw\ntouch w {NESTED + 0x10_0000:#x}",
        f"tlbi 0 {6 << 44 | NESTED >> 12:#x}",
        f"unmap {NESTED:#x} 2M 2\nmap {NESTED:#x} {DATA:#x} 4k 3 r\ntouch r {NESTED:#x}",
    ]
    made, violation = judged(DESIGN, script(*moved, f"dontneed {DATA:#x} 4k", backing="thp"))
    assert violation is None
    assert count(made, "unknown_entries") == 0
    assert leaf_of(made, NESTED) is None


def test_a_tlbi_removes_through_the_direct_map() -> None:
    made = run(DESIGN, script(PAGES_16, f"unmap {NESTED:#x} 4k 3\ntlbi 0 {7 << 44 | NESTED >> 12:#x}"))
    assert check_spanning(made.state) == 0
    assert entries(made)[0].first == DATA + PAGE
    assert entries(made, M_DIRECT)[0].first == NESTED + PAGE


def test_a_tlbi_inside_a_block_removes_the_block() -> None:
    made = run(DESIGN, script(BLOCK_LEAF, f"tlbi 0 {7 << 44 | (NESTED >> 12) + 5:#x}", backing="thp"))
    assert entries(made) == entries(made, M_DIRECT) == []
    assert leaf_of(made, NESTED) is None


def test_moving_one_page_around_leaves_no_stale_entries() -> None:
    lines = [
        f"map {NESTED:#x} {DATA + k * PAGE:#x} 4k 3 rw\ntlbi 0 {NESTED >> 12:#x}\ntouch w {NESTED:#x}"
        for k in range(24)
    ]
    made = run(DESIGN, script(*lines))
    assert len(entries(made)) == 1
    assert count(made, "unknown_entries") == 0


@pytest.mark.parametrize("backing", ["base", "thp"])
@pytest.mark.parametrize("seed", [21, 22])
def test_its_own_check_holds_after_every_event(seed: int, backing: str) -> None:
    every_event(DESIGN, random_script(seed, backing, 40), lambda running: check_spanning(running.state))


def test_the_check_sees_what_it_looks_for() -> None:
    made = run(DESIGN, script(PAGES_16))
    words = made.state.rmap
    root = int(words[int(made.state.mmus[1, M_MAP]) + int(maple_node.T_ROOT)])
    while not int(words[root]) & int(maple_node.LEAF):
        root = int(words[root + int(maple_node.SLOT)])
    slots = words[root + int(maple_node.SLOT) : root + int(maple_node.SLOT) + 4]
    at = root + int(maple_node.SLOT) + next(i for i, value in enumerate(slots.tolist()) if value)
    before = words[at]
    words[at] = before + U64(PAGE)
    assert check_spanning(made.state) == 2  # the entry, and its twin in the direct map
    assert not design_covers(made.state, 1, U64(0x4005_0000), U64(0x1_0000), U64(PAGE), 3, U64(1))
    words[at] = before | U64(1 << 9)
    with pytest.raises(AssertionError, match="leads to"):
        check_spanning(made.state)
    words[at] = before | U64(2)
    with pytest.raises(AssertionError, match="UNKNOWN and has an address"):
        check_spanning(made.state)
