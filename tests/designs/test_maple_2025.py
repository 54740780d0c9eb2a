"""``maple_2025``: found by range and trimmed by the tree, and each documented fault by name."""

from __future__ import annotations

import pytest
from design_lab import (
    BLOCK,
    DATA,
    NESTED,
    PAGE,
    PAGES_16,
    count,
    every_event,
    executor,
    judged,
    leaf_of,
    run,
    script,
)

from shadowmmu.compiled import U64
from shadowmmu.designs.containers.pool import pool_used
from shadowmmu.designs.dispatch import design_bytes, design_covers, design_recorded
from shadowmmu.designs.maple_2025 import M_TREE, O_NESTED, maple_2025_record
from shadowmmu.designs.tree_checks import Faults, check_maple_2025, ranges_of
from shadowmmu.engine.executor import Executor
from shadowmmu.verify.cases import random_script

DESIGN = "maple_2025"
BLOCK_LEAF = f"map {NESTED:#x} {DATA:#x} 2M 2 rw\ntouch w {NESTED:#x}"
ALIAS = f"map {NESTED + BLOCK:#x} {DATA:#x} 4k 3 rw\ntouch w {NESTED + BLOCK:#x}"
PAGE_ALIAS = f"map {NESTED + BLOCK:#x} {DATA + 0x5000:#x} 4k 3 rw\ntouch w {NESTED + BLOCK:#x}"


def recorded(made: Executor) -> list[tuple[int, int, int]]:
    """(first, last, nested) of the entries of the first shadow MMU, L2's code left out."""
    words = made.state.rmap
    entries = ranges_of(made.state, 1, M_TREE)
    return [(e.first, e.last, int(words[e.value + int(O_NESTED)])) for e in entries if e.first >= DATA]


def test_a_range_is_found_wherever_it_starts() -> None:
    made, violation = judged(DESIGN, script(BLOCK_LEAF, f"punch {DATA + 0x5000:#x} 4k", backing="thp"))
    assert violation is None
    assert leaf_of(made, NESTED) is None
    assert recorded(made) == []


@pytest.mark.parametrize("words", [0, 4])
def test_a_fill_without_room_is_lost_and_leaks_nothing(words: int) -> None:
    """No room for the object, or for the node of the tree: nobody is told, which is one of its faults."""
    made = executor(DESIGN, script("nop"))
    end = int(made.state.rmap[0]) + words  # the engine never lets a pool run so short
    state = made.state._replace(rmap=made.state.rmap[:end])
    used = pool_used(state.rmap)
    maple_2025_record(state, 1, U64(DATA), U64(NESTED), U64(PAGE))
    assert (recorded(made), pool_used(state.rmap)) == ([], used)
    assert count(made, "nodes_allocated") == count(made, "nodes_freed") == (1 if words else 0)


def test_it_is_exact_for_lone_pages() -> None:
    made, violation = judged(DESIGN, script(PAGES_16, f"dontneed {DATA + 0x3000:#x} 8k"))
    assert violation is None
    assert count(made, "over_unmapped_bytes") == 0
    assert design_recorded(made.state) == len(recorded(made)) + 1 == 16 + 1 - 2
    assert check_maple_2025(made.state) == Faults(0, 0)
    assert design_bytes(made.state) >= 15 * 32


def test_fault_the_last_of_two_nested_addresses_wins() -> None:
    made = run(DESIGN, script(PAGES_16, ALIAS))
    assert recorded(made)[0] == (DATA, DATA + PAGE - 1, NESTED + BLOCK)
    _, violation = judged(DESIGN, script(PAGES_16, ALIAS, f"dontneed {DATA:#x} 4k"))
    assert violation is not None
    assert violation.rule == "A1"


def test_fault_the_object_of_an_overwritten_entry_leaks() -> None:
    made = run(DESIGN, script(PAGES_16, ALIAS))
    assert check_maple_2025(made.state) == Faults(leaked=1, dangling=0)


def test_fault_a_page_inside_a_block_leaves_two_pieces_of_one_object() -> None:
    made = run(DESIGN, script(BLOCK_LEAF, PAGE_ALIAS, backing="thp"))
    block, page = NESTED, NESTED + BLOCK
    assert [nested for _first, _last, nested in recorded(made)] == [block, page, block]
    made = run(DESIGN, script(BLOCK_LEAF, PAGE_ALIAS, f"punch {DATA:#x} 4k", backing="thp"))
    assert check_maple_2025(made.state).dangling == 1


def test_fault_a_tlbi_leaves_the_entry_which_unmaps_what_moved_in() -> None:
    moved = f"map {NESTED:#x} {DATA + BLOCK:#x} 4k 3 rw\ntlbi 0 {NESTED >> 12:#x}\ntouch w {NESTED:#x}"
    made, violation = judged(DESIGN, script(PAGES_16, moved, f"dontneed {DATA:#x} 4k"))
    assert violation is None
    assert leaf_of(made, NESTED) is None
    assert count(made, "over_unmapped_bytes") == PAGE


@pytest.mark.parametrize("nth", [1, 2, 17])
def test_without_memory_the_access_faults_again(nth: int) -> None:
    made, violation = judged(DESIGN, script(PAGES_16, f"dontneed {DATA:#x} 64k"), fail=nth)
    assert violation is None
    assert count(made, "allocation_failures") == 1
    assert count(made, "faults_shadow") == count(run(DESIGN, script(PAGES_16)), "faults_shadow") + 1


def test_a_wiped_mmu_takes_records_again_and_keeps_none_of_its_former_tenant() -> None:
    tenants = [f"s2 new {v}\ncode\ntouch r 0x10000" for v in (2, 3)]
    made = run(DESIGN, script(PAGES_16, *tenants))
    assert count(made, "wipes") == 1
    assert recorded(made) == []
    assert design_recorded(made.state) == 2
    assert check_maple_2025(made.state) == Faults(0, 0)


def test_it_covers_a_leaf_only_through_a_live_object_that_has_it() -> None:
    made = run(DESIGN, script(PAGES_16))
    s = made.state
    word = U64(1)
    assert design_covers(s, 1, U64(DATA), U64(NESTED), U64(PAGE), 3, word)
    assert not design_covers(s, 1, U64(DATA), U64(NESTED + BLOCK), U64(PAGE), 3, word)
    assert not design_covers(s, 1, U64(DATA), U64(0), U64(PAGE), 3, word)
    assert not design_covers(s, 1, U64(DATA), U64(NESTED), U64(BLOCK), 2, word)
    assert not design_covers(s, 1, U64(DATA + BLOCK), U64(NESTED), U64(PAGE), 3, word)


@pytest.mark.parametrize("seed", [31, 32])
def test_its_trees_stay_sound_whatever_it_loses(seed: int) -> None:
    every_event(DESIGN, random_script(seed, "thp", 40), lambda running: check_maple_2025(running.state))
