"""``reverse_table``: a wiped MMU is done at once, and what it leaves behind is never acted on."""

from __future__ import annotations

import pytest
from design_lab import (
    DATA,
    NESTED,
    PAGES_16,
    cost,
    every_event,
    executor,
    last_event,
    leaf_of,
    script,
)

from shadowmmu.compiled import INTERPRETED
from shadowmmu.designs import reverse_nodes as rn
from shadowmmu.designs.dispatch import design_footprint
from shadowmmu.designs.reverse_entries import GENERATION, M_GENERATION, M_RECORDED
from shadowmmu.designs.reverse_table_check import check_reverse_table, recorded_leaves, shadow_leaves
from shadowmmu.engine.executor import Executor
from shadowmmu.pgtable.context import M_LEAVES
from shadowmmu.verify.cases import random_script
from shadowmmu.verify.judge import Judge

DESIGN = "reverse_table"
WIPE = "tlbi 4"  # VMALLS12E1IS
AGAIN = f"touch w {NESTED:#x} 4096 16"


def stale(made: Executor) -> int:
    return int(made.state.rmap[rn.RT_STALE])


@pytest.mark.parametrize("pages", [16, 300 if INTERPRETED else 3000])
def test_a_wipe_looks_at_no_node_however_many_leaves_there_are(pages: int) -> None:
    run_of = f"map {NESTED:#x} {DATA:#x} {4 * pages}k 3 rw\ntouch w {NESTED:#x} 4096 {pages}"
    made = executor(DESIGN, script(f"write {DATA:#x} 16M", run_of, WIPE))
    made.run(last_event(made))
    leaves = int(made.state.mmus[1, M_LEAVES])
    size = design_footprint(made.state)
    removed, visited = cost(made, last_event(made), "leaves_removed", "nodes_visited")
    assert (removed, visited) == (leaves, 0)
    assert stale(made) == leaves == pages + 1
    assert recorded_leaves(made.state) == []
    assert design_footprint(made.state) > size // 3  # only words beside freed tables went
    check_reverse_table(made.state)


def test_stale_entries_do_not_pile_up() -> None:
    """A descriptor that is filled again drops its old entry first, so there is at most one a descriptor."""
    rounds = 8
    held: list[int] = []

    def look(made: Executor) -> None:
        check_reverse_table(made.state)
        held.append(stale(made) + int(made.state.mmus[1:, M_RECORDED].sum()))

    made = every_event(DESIGN, script(PAGES_16, *(WIPE, AGAIN) * rounds), look)
    assert len(recorded_leaves(made.state)) == 17
    assert max(held) == max(held[: len(held) // 2]) < 17 * rounds // 2


@pytest.mark.parametrize("pages", [16, 300])  # in a small leaf, and in a full one
def test_an_unmap_drops_the_stale_entries_it_meets_and_clears_nothing_for_them(pages: int) -> None:
    filled = f"map {NESTED:#x} {DATA:#x} {4 * pages}k 3 rw\ntouch w {NESTED:#x} 4096 {pages}"
    made = executor(DESIGN, script(filled, WIPE, f"dontneed {DATA:#x} {4 * pages}k"))
    made.run(last_event(made))
    assert stale(made) == pages + 1
    removed, written, tlbis = cost(
        made, last_event(made), "leaves_removed", "descriptors_written", "tlbi_range_shadow"
    )
    assert (removed, written, tlbis) == (0, 0, 0)
    assert stale(made) == 1
    check_reverse_table(made.state)


def test_a_descriptor_that_maps_another_page_now_is_safe_from_its_old_entry() -> None:
    moved = f"map {NESTED:#x} {DATA + 0x20_0000:#x} 64k 3 rw\n{AGAIN}"
    made = executor(
        DESIGN, script(PAGES_16, f"unmap {NESTED:#x} 64k 3", WIPE, moved, f"dontneed {DATA:#x} 64k")
    )
    removed, over = cost(made, last_event(made), "leaves_removed", "over_unmapped_bytes")
    assert (removed, over) == (0, 0)
    assert leaf_of(made, NESTED) is not None
    check_reverse_table(made.state)


def near_the_end(made: Executor, left: int) -> None:
    """As if so many wipes had been that ``left`` numbers are left; ``GENERATION`` is the last one."""
    made.state.rmap[rn.RT_GENERATION] = int(GENERATION) - left


@pytest.mark.parametrize("left", [1, 2, 3])
def test_the_numbers_wrap_without_confusing_old_and_new(left: int) -> None:
    steps = (PAGES_16, WIPE, AGAIN.replace(" 16", " 8"), WIPE, AGAIN, f"dontneed {DATA:#x} 32k", WIPE, AGAIN)
    made, judge = executor(DESIGN, script(*steps)), Judge()
    near_the_end(made, left)

    def look(running: Executor) -> None:
        judge.look(running, running.position - 1)
        check_reverse_table(running.state)

    made.run(after_event=look)
    assert judge.worst is None
    assert int(made.state.rmap[rn.RT_GENERATION]) < 10
    assert 1 < int(made.state.mmus[1, M_GENERATION]) < 10
    assert len(recorded_leaves(made.state)) == len(shadow_leaves(made.state))


@pytest.mark.parametrize("seed", [41, 42, 43])
def test_random_scripts_hold_while_the_numbers_wrap(seed: int) -> None:
    made, judge = executor(DESIGN, random_script(seed, "thp", 40)), Judge()

    def look(running: Executor) -> None:
        near_the_end(running, 1)
        judge.look(running, running.position - 1)
        check_reverse_table(running.state)

    made.run(after_event=look)
    assert judge.worst is None
