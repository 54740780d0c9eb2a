"""``rbtree_2024``: each documented fault of the RFC, by name. What is wrong here stays wrong on purpose."""

from __future__ import annotations

import pytest
from design_lab import (
    BLOCK,
    DATA,
    NESTED,
    PAGES_16,
    cost,
    count,
    executor,
    judged,
    last_event,
    leaf_of,
    run,
    script,
)

from shadowmmu.designs.containers.checks import rb_check, rb_nodes
from shadowmmu.designs.containers.rbtree import N_KEY, N_VALUE
from shadowmmu.designs.dispatch import design_bytes, design_recorded
from shadowmmu.designs.rbtree_2024 import M_TREE
from shadowmmu.engine.executor import Executor

DESIGN = "rbtree_2024"
BLOCK_LEAF = f"map {NESTED:#x} {DATA:#x} 2M 2 rw\ntouch w {NESTED:#x}"


def recorded(made: Executor) -> dict[int, int]:
    """Canonical to nested of the first shadow MMU's tree."""
    tree = made.state.mmus[1, M_TREE]
    rb_check(made.state.rmap, tree)
    words = made.state.rmap
    return {int(words[node + int(N_KEY)]): int(words[node + int(N_VALUE)]) for node in rb_nodes(words, tree)}


def stale(text: str, *, fail: int = 0) -> None:
    """The script leaves a stale leaf."""
    _, violation = judged(DESIGN, text, fail=fail)
    assert violation is not None
    assert violation.rule == "A1"


def test_it_is_exact_for_lone_pages() -> None:
    made, _ = judged(DESIGN, script(PAGES_16, f"dontneed {DATA + 0x3000:#x} 8k"))
    assert leaf_of(made, NESTED + 0x3000) is None
    assert leaf_of(made, NESTED + 0x5000) is not None
    assert count(made, "over_unmapped_bytes") == 0
    assert design_recorded(made.state) == len(recorded(made)) == 16 + 1 - 2
    assert design_bytes(made.state) > 15 * 48


def test_fault_a_range_that_begins_inside_a_block_is_missed() -> None:
    stale(script(BLOCK_LEAF, f"punch {DATA + 0x5000:#x} 4k", backing="thp"))


def test_fault_the_second_nested_address_of_a_page_is_dropped() -> None:
    alias = f"map {NESTED + BLOCK:#x} {DATA:#x} 4k 3 rw\ntouch w {NESTED + BLOCK:#x}"
    made = run(DESIGN, script(PAGES_16, alias))
    assert recorded(made)[DATA] == NESTED
    stale(script(PAGES_16, alias, f"dontneed {DATA:#x} 4k"))


def test_fault_a_tlbi_leaves_the_node_so_the_next_owner_is_not_recorded() -> None:
    moved = (
        f"unmap {NESTED:#x} 4k 3\ntlbi 0 {NESTED >> 12:#x}",
        f"map {NESTED + BLOCK:#x} {DATA:#x} 4k 3 rw\ntouch w {NESTED + BLOCK:#x}",
    )
    made = run(DESIGN, script(PAGES_16, *moved))
    assert recorded(made)[DATA] == NESTED
    stale(script(PAGES_16, *moved, f"dontneed {DATA:#x} 4k"))


def test_fault_a_hit_frees_the_node_so_it_serves_no_second_query() -> None:
    made = executor(DESIGN, script(BLOCK_LEAF, f"punch {DATA:#x} 4k", backing="thp"))
    made.run(last_event(made))
    assert DATA in recorded(made)
    made.run()
    assert DATA not in recorded(made)


def test_fault_the_step_after_a_hit_is_its_size_so_a_page_inside_is_skipped() -> None:
    alias = f"map {NESTED + BLOCK:#x} {DATA + 0x5000:#x} 4k 3 rw\ntouch w {NESTED + BLOCK:#x}"
    made, violation = judged(DESIGN, script(BLOCK_LEAF, alias, f"dontneed {DATA:#x} 2M", backing="thp"))
    assert recorded(made)[DATA + 0x5000] == NESTED + BLOCK
    assert violation is not None
    assert violation.rule == "A1"


@pytest.mark.parametrize("nth", [2, 17])
def test_fault_a_failed_allocation_is_silent(nth: int) -> None:
    made = run(DESIGN, script(PAGES_16), fail=nth)
    assert (count(made, "allocation_failures"), count(made, "broken")) == (1, 0)
    assert design_recorded(made.state) == 16
    stale(script(PAGES_16, f"dontneed {DATA:#x} 64k"), fail=nth)


def test_fault_the_address_of_a_deleted_memslot_is_shifted_twice() -> None:
    made = executor(DESIGN, script(PAGES_16, "slot 0"))
    assert cost(made, last_event(made), "leaves_removed") == [0]
    stale(script(PAGES_16, "slot 0"))


def test_fault_a_recycled_mmu_keeps_its_former_tenants_nodes() -> None:
    tenants = [f"s2 new {v}\ncode\ntouch r 0x10000" for v in (2, 3)]
    made = run(DESIGN, script(PAGES_16, *tenants))
    assert count(made, "wipes") == 1
    assert len(recorded(made)) >= 16


def test_fault_a_lock_of_its_own_is_taken_where_mmu_lock_is_held() -> None:
    made = executor(DESIGN, script(PAGES_16, f"dontneed {DATA:#x} 4k"))
    lookups, locks = cost(made, last_event(made), "lookups", "tree_locks")
    assert (lookups, locks) == (1, 2)  # once to look, once more to erase


def test_an_unmap_steps_through_its_range_a_page_at_a_time() -> None:
    text = script(f"map {NESTED:#x} {DATA + BLOCK:#x} 4k 3 rw\ntouch w {NESTED:#x}", f"dontneed {DATA:#x} 8M")
    made = executor(DESIGN, text)
    lookups, removed = cost(made, last_event(made), "lookups", "leaves_removed")
    assert (lookups, removed) == (2048, 1)  # those behind the greatest key are counted at once
