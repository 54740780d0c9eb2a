"""``reverse_table``: exact, nested by theorem, and as dear for 50,000 leaves as for one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
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

from shadowmmu.compiled import INTERPRETED, U64
from shadowmmu.designs import reverse_nodes as rn
from shadowmmu.designs.dispatch import design_bytes, design_covers, design_recorded
from shadowmmu.designs.reverse_entries import DESCRIPTOR, M_BROKEN, M_RECORDED, side_word
from shadowmmu.designs.reverse_table_check import check_reverse_table, recorded_leaves, shadow_leaves
from shadowmmu.engine.executor import Executor
from shadowmmu.pgtable.context import M_LEAVES
from shadowmmu.verify.cases import random_script

DESIGN = "reverse_table"
LEVELS = 3  # of the canonical table at 40 bits
BLOCK_LEAF = f"map {NESTED:#x} {DATA:#x} 2M 2 rw\ntouch w {NESTED:#x}"
PLACES = [NESTED + k * 0x20_5000 for k in range(5)]
ALIASES = [f"map {ipa:#x} {DATA:#x} 4k 3 rw\ntouch w {ipa:#x}" for ipa in PLACES]

FULL_PAGES = 65
FULL = f"map 0x90000000 {DATA + 0x10_0000:#x} {4 * FULL_PAGES}k 3 rw\ntouch w 0x90000000 4096 {FULL_PAGES}"
"""So many pages of the 2M at DATA that their leaf is full size."""


def check(made: Executor) -> None:
    """Its own check, and one entry a leaf."""
    check_reverse_table(made.state)
    assert design_recorded_of(made) == int(made.state.mmus[1:, M_LEAVES].sum())


def design_recorded_of(made: Executor) -> int:
    return int(made.state.mmus[1:, M_RECORDED].sum())


def assert_nested(ranges: list[tuple[int, int]]) -> None:
    """Ranges (start, size) are equal, disjoint or one inside the other."""
    open_ends: list[int] = []
    for start, size in sorted(ranges, key=lambda r: (r[0], -r[1])):
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        assert not open_ends or start + size <= open_ends[-1]
        open_ends.append(start + size)


@pytest.mark.parametrize("backing", ["base", "thp"])
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_the_record_is_exact_after_every_event(seed: int, backing: str) -> None:
    every_event(DESIGN, random_script(seed, backing, 40), check)


@pytest.mark.parametrize("seed", [31, 32, 33, 34])
def test_canonical_ranges_of_leaves_are_equal_disjoint_or_nested(seed: int) -> None:
    def look(made: Executor) -> None:
        ranges = []
        for leaf in shadow_leaves(made.state):
            canonical_ipa = int(made.state.ghost[leaf.word]) & ~0xFFF  # the judge's record, not the design's
            assert leaf.nested_ipa % leaf.size == canonical_ipa % leaf.size == 0
            ranges.append((canonical_ipa, leaf.size))
        assert_nested(ranges)
        assert sorted(ranges) == sorted((e.canonical_ipa, e.size) for e in recorded_leaves(made.state))

    every_event(DESIGN, random_script(seed, "thp", 40), look)


@pytest.mark.parametrize("before", [(), (FULL,)], ids=["small", "full"])
def test_nodes_are_given_back_when_all_leaves_are_gone(before: tuple[str, ...]) -> None:
    pages = recorded_leaves(run(DESIGN, script(PAGES_16)).state)
    code = next(page.canonical_ipa for page in pages if not DATA <= page.canonical_ipa < DATA + BLOCK)
    gone = (f"dontneed {DATA:#x} 2M", f"dontneed {code:#x} 4k")
    made = run(DESIGN, script(*before, PAGES_16, *ALIASES, *gone))
    assert shadow_leaves(made.state) == []
    assert count(made, "nodes_allocated") - count(made, "nodes_freed") == 1  # the root
    check(made)


@pytest.mark.parametrize(("before", "chained"), [((), 0), ((FULL,), 5)], ids=["small", "full"])
def test_aliases_hang_together_and_go_with_one_notifier(before: tuple[str, ...], chained: int) -> None:
    made = executor(DESIGN, script(*before, *ALIASES, f"dontneed {DATA:#x} 4k"))
    made.run(last_event(made))
    assert int(made.state.rmap[rn.RT_CHAINED]) == chained
    check(made)
    assert cost(made, last_event(made), "leaves_removed", "over_unmapped_bytes") == [5, 0]
    check(made)


@pytest.mark.parametrize("before", [(), (FULL,)], ids=["small", "full"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
def test_a_tlbi_takes_its_own_alias_off(order: tuple[int, ...], before: tuple[str, ...]) -> None:
    gone = [f"tlbi 0 {7 << 44 | PLACES[k] >> 12:#x}" for k in order]
    made = every_event(DESIGN, script(*before, *ALIASES, *gone), check)
    assert all(leaf_of(made, ipa) is None for ipa in PLACES)


def test_a_tlbi_inside_a_block_unlinks_the_block() -> None:
    made = every_event(
        DESIGN, script(BLOCK_LEAF, f"tlbi 0 {7 << 44 | (NESTED >> 12) + 5:#x}", backing="thp"), check
    )
    assert leaf_of(made, NESTED) is None


def test_neighbours_share_one_invalidation() -> None:
    made = executor(DESIGN, script(PAGES_16, f"dontneed {DATA:#x} 32k"))
    removed, ranges = cost(made, last_event(made), "leaves_removed", "tlbi_range_shadow")
    assert (removed, ranges) == (8, 1)


def test_without_range_tlbi_each_leaf_is_invalidated() -> None:
    made = executor(DESIGN, script(PAGES_16, f"dontneed {DATA:#x} 32k"), tlbirange=False)
    removed, ranges, single = cost(made, last_event(made), "leaves_removed", "tlbi_range_shadow", "tlbi_ipa")
    assert (removed, ranges) == (8, 0)
    assert single >= 8


@pytest.mark.parametrize("nth", range(1, 18))
def test_a_failed_allocation_costs_one_whole_mmu_once(nth: int) -> None:
    text = script(
        PAGES_16, f"dontneed {DATA:#x} 4k", f"touch w {NESTED:#x} 4096 16", f"dontneed {DATA:#x} 4k"
    )
    made, violation = judged(DESIGN, text, fail=nth)
    assert violation is None
    assert [count(made, n) for n in ("allocation_failures", "broken", "fallbacks_mmu")] == [1, 1, 1]
    assert not made.state.mmus[1:, M_BROKEN].any()
    check(made)


def test_a_broken_mmu_covers_everything_until_it_is_wiped() -> None:
    made = executor(DESIGN, script(PAGES_16, "tlbi 4"), fail=2)
    made.run(last_event(made))
    assert made.state.mmus[1, M_BROKEN]
    check_reverse_table(made.state)
    assert design_recorded_of(made) == 1  # L2's code page, before the failure; nothing after it
    assert design_covers(made.state, 1, U64(DATA), U64(NESTED), U64(PAGE), 3, U64(1))
    made.run()
    assert not made.state.mmus[1, M_BROKEN]
    check(made)


def test_it_covers_what_it_recorded_and_nothing_else() -> None:
    made = run(DESIGN, script(*ALIASES))
    s = made.state
    leaf = leaf_of(made, PLACES[2])
    assert leaf is not None
    visited = count(made, "nodes_visited")
    assert design_covers(s, 1, U64(DATA), U64(PLACES[2]), U64(PAGE), 3, U64(leaf.word))
    assert not design_covers(s, 1, U64(DATA), U64(PLACES[2]), U64(PAGE), 3, U64(leaf.word + 1))
    assert not design_covers(s, 1, U64(DATA + 64 * BLOCK), U64(NESTED), U64(PAGE), 3, U64(leaf.word))
    assert count(made, "nodes_visited") == visited
    assert design_recorded(s) == 6
    assert design_bytes(s) == int(s.rmap[rn.RT_BYTES])


def filled(pages: int) -> str:
    """One page apart from a run of ``pages``; the host takes the page, L2 comes back to it."""
    run_of = f"map {NESTED:#x} {DATA + 8 * BLOCK:#x} {pages * 4}k 3 rw\ntouch w {NESTED:#x} 4096 {pages}"
    lone = f"map 0x40000000 {DATA:#x} 4k 3 rw\ntouch w 0x40000000"
    return script(run_of, lone, f"dontneed {DATA:#x} 4k", "touch w 0x40000000", memory="512M")


@pytest.mark.parametrize("pages", [1_000, 4_000 if INTERPRETED else 50_000])
def test_one_page_costs_a_node_a_level_whatever_else_is_mapped(pages: int) -> None:
    made = executor(DESIGN, filled(pages))
    refault = last_event(made)
    removed, visited = cost(made, refault - 1, "leaves_removed", "nodes_visited")
    assert (removed, visited) == (1, LEVELS)
    mapped, visited = cost(made, refault, "leaves_mapped", "nodes_visited")
    assert mapped == 1
    assert visited <= LEVELS + 1
    assert design_recorded_of(made) == pages + 2


@pytest.mark.parametrize(
    ("before", "removed", "words"),
    [((), 16, 16 // 8), ((FULL,), 16 + FULL_PAGES, BLOCK // PAGE)],
    ids=["small", "full"],
)
def test_a_range_costs_the_path_to_it_once_and_its_words(
    before: tuple[str, ...], removed: int, words: int
) -> None:
    """Of a small leaf, here of 16 words, a node each cache line."""
    made = executor(DESIGN, script(*before, PAGES_16, f"dontneed {DATA:#x} 2M"))
    assert cost(made, last_event(made), "leaves_removed", "nodes_visited") == [removed, LEVELS - 1 + words]


def test_a_page_that_is_not_mapped_costs_a_look_at_its_word() -> None:
    filled = f"map {NESTED:#x} {DATA:#x} 2M 3 rw\ntouch w {NESTED:#x} 4096 300"
    made = executor("reverse_table", script(filled, f"dontneed {DATA + 400 * PAGE:#x} 4k"))
    assert cost(made, last_event(made), "leaves_removed", "tlbi_range_shadow", "nodes_visited") == [0, 0, 3]
    check_reverse_table(made.state)


def test_the_check_sees_what_it_looks_for() -> None:
    pages = f"map {NESTED:#x} {DATA:#x} 16k 3 rw\ntouch w {NESTED:#x} 4096 4"
    made = run(DESIGN, script(FULL, *ALIASES, pages))
    check(made)
    words, side = made.state.rmap, made.state.side
    entry = recorded_leaves(made.state)[-1]
    held = words & DESCRIPTOR == U64(entry.word)
    node = int(np.flatnonzero(held)[-1])  # what a promotion has left behind lies before
    for array, at, value, told in (
        (made.state.mmus[1], M_RECORDED, 3, "entries, 3 counted"),
        (words, rn.RT_CHAINED, 3, "chain nodes, miscounted"),
        (words, rn.RT_BYTES, 3, "bytes, miscounted"),
        (words, rn.RT_BUMP, 0, "words are lost"),
        (words, node, 0, "entries, [0-9]+ counted"),
        (words, node, words[node] + U64(1), "side and record differ"),
        (side, entry.word, 0, "side and record differ"),
        (made.state.mem, entry.word, 0, "no leaf"),
        (made.state.mmus[1], M_BROKEN, 0, ""),
    ):
        before = array[at]
        array[at] = value
        if told:
            with pytest.raises(AssertionError, match=told):
                check_reverse_table(made.state)
        array[at] = before
    check(made)


def test_the_check_sees_a_leaf_that_is_not_recorded() -> None:
    made = run(DESIGN, script(PAGES_16), fail=5)
    check_reverse_table(made.state)
    made.state.mmus[1, M_BROKEN] = 0
    with pytest.raises(AssertionError, match="is not recorded"):
        check_reverse_table(made.state)


@pytest.mark.parametrize("whole_node", [False, True])
def test_a_tlbi_over_a_lost_entry_harms_nothing_else(whole_node: bool) -> None:
    made = executor(
        DESIGN, script(*ALIASES[:1], PAGES_16.replace("64k", "8k").replace(" 16", " 2"), "tlbi 4")
    )
    made.run(last_event(made))
    leaf = leaf_of(made, NESTED)
    assert leaf is not None
    words = made.state.rmap
    if whole_node:
        made.state.side[leaf.word] = side_word(
            U64(DATA + 64 * BLOCK), 3, U64(2)
        )  # where the radix has no node
    else:
        items = (int(i) for i in np.flatnonzero(words & DESCRIPTOR == U64(leaf.word)) if i >= rn.RT_HEADER)
        words[next(items)] = 0
    made.run()
    assert shadow_leaves(made.state) == []
    assert design_recorded_of(made) == 0


@pytest.mark.parametrize(
    ("ranges", "holds"), [([(0, 8), (0, 8), (4, 2), (8, 8)], True), ([(0, 8), (4, 8)], False)]
)
def test_the_nesting_test_can_fail(ranges: list[tuple[int, int]], holds: bool) -> None:
    crossing = any(a[0] < b[0] < a[0] + a[1] < b[0] + b[1] for a, b in pairwise(sorted(ranges)))
    assert crossing != holds
    if holds:
        assert_nested(ranges)
    else:
        with pytest.raises(AssertionError):
            assert_nested(ranges)
