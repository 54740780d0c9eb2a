"""``pa_keyed``: the key is in the leaf, the frames are in the host's table, and sharers go together."""

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

from shadowmmu.arch.stage2 import S2AP_W
from shadowmmu.compiled import U64
from shadowmmu.designs import pa_keyed as pa
from shadowmmu.designs.dispatch import design_bytes, design_covers, design_recorded
from shadowmmu.designs.list_checks import check_pa_keyed, pa_places
from shadowmmu.designs.outputs import MOST_RUNS
from shadowmmu.designs.reverse_table_check import shadow_leaves
from shadowmmu.pgtable.context import CANONICAL
from shadowmmu.verify.cases import random_script

DESIGN = "pa_keyed"
BLOCK_LEAF = f"map {NESTED:#x} {DATA:#x} 2M 2 rw\ntouch w {NESTED:#x}"
ALIASES = [
    f"map {NESTED + k * BLOCK:#x} {DATA:#x} 4k 3 rw\ntouch w {NESTED + k * BLOCK:#x}" for k in range(4)
]
PIECES = "\n".join(f"write {DATA + 4 * BLOCK + k * 0x2000:#x} 4k" for k in reversed(range(MOST_RUNS + 1)))
"""Every other page, the last one first, so that no frame continues the one before it."""


def test_a_page_that_only_l2_touched_is_found() -> None:
    """There is no canonical leaf for it, so only the host's own table can say which frame goes."""
    made = executor(DESIGN, script(PAGES_16, f"dontneed {DATA + 0x3000:#x} 8k"))
    names = ("leaves_removed", "over_unmapped_leaves", "fallbacks_vm")
    assert cost(made, last_event(made), *names) == [2, 0, 0]
    check_pa_keyed(made.state)


def test_every_alias_hangs_from_its_frame() -> None:
    made = executor(DESIGN, script(*ALIASES, f"dontneed {DATA:#x} 4k"))
    made.run(last_event(made))
    frames = [place.pa for place in pa_places(made.state) if place.nested_ipa >= NESTED]
    assert len(frames) == 4
    assert len(set(frames)) == 1
    assert cost(made, last_event(made), "leaves_removed") == [4]
    check_pa_keyed(made.state)


@pytest.mark.parametrize("gone", range(4))
def test_what_a_tlbi_takes_is_found_by_the_leaf_itself(gone: int) -> None:
    text = script(*ALIASES, f"tlbi 0 {7 << 44 | NESTED + gone * BLOCK >> 12:#x}", f"dontneed {DATA:#x} 4k")
    made = executor(DESIGN, text)
    made.run(last_event(made))
    check_pa_keyed(made.state)
    assert design_recorded(made.state) == 3 + 1
    assert cost(made, last_event(made), "leaves_removed") == [3]


def test_a_block_is_found_from_a_page_in_it_and_pages_in_a_block() -> None:
    alias = f"map {NESTED + BLOCK:#x} {DATA + 0x5000:#x} 4k 3 rw\ntouch w {NESTED + BLOCK:#x}"
    for taken in (f"punch {DATA + 0x5000:#x} 4k", f"dontneed {DATA:#x} 2M"):
        made, violation = judged(DESIGN, script(BLOCK_LEAF, alias, taken, backing="thp"))
        assert violation is None
        assert leaf_of(made, NESTED) is leaf_of(made, NESTED + BLOCK) is None
        check_pa_keyed(made.state)


def test_pages_that_read_as_zero_share_a_key_and_go_together() -> None:
    zero = f"map {NESTED:#x} {DATA + 4 * BLOCK:#x} 64k 3 rw\ntouch r {NESTED:#x} 4096 16"
    made, violation = judged(DESIGN, script(zero, f"touch w {NESTED + 0x1000:#x}"))
    assert violation is None
    assert count(made, "over_unmapped_leaves") == 15
    exact, _ = judged("reverse_table", script(zero, f"touch w {NESTED + 0x1000:#x}"))
    assert count(exact, "over_unmapped_leaves") == 0


def test_a_range_in_too_many_pieces_takes_the_vm_and_starts_again() -> None:
    text = script(PAGES_16, PIECES, f"dontneed {DATA + 4 * BLOCK:#x} 2M", f"touch w {NESTED:#x} 4096 4")
    made, violation = judged(DESIGN, text)
    assert violation is None
    assert count(made, "fallbacks_vm") == 1
    check_pa_keyed(made.state)
    assert design_recorded(made.state) == 4 + 1


def test_protecting_a_slot_in_too_many_pieces_reaches_every_leaf_and_keeps_the_record() -> None:
    made = executor(DESIGN, script(PAGES_16, PIECES, "log 1"), precise_updates=True)
    made.run(last_event(made))
    before = design_recorded(made.state)
    assert cost(made, last_event(made), "fallbacks_vm", "leaves_removed") == [1, 0]
    assert design_recorded(made.state) == before
    assert all(not int(made.state.mem[leaf.word]) & int(S2AP_W) for leaf in shadow_leaves(made.state))


def test_a_leaf_that_is_not_under_its_frame_takes_no_other_off() -> None:
    made = run(DESIGN, script(*ALIASES))
    leaf = leaf_of(made, NESTED)
    assert leaf is not None
    before = pa_places(made.state)
    pa.pa_unlink(made.state, 2, U64(NESTED), U64(leaf.word), 3)
    assert pa_places(made.state) == before
    pa.pa_unlink(made.state, 1, U64(NESTED), U64(leaf.word), 3)
    assert len(pa_places(made.state)) == len(before) - 1


@pytest.mark.parametrize("nth", range(1, 18))
def test_nodes_are_had_before_the_fill_or_the_access_faults_again(nth: int) -> None:
    made, violation = judged(DESIGN, script(PAGES_16, f"dontneed {DATA:#x} 4k"), fail=nth)
    assert violation is None
    assert [count(made, n) for n in ("allocation_failures", "broken", "fallbacks_vm")] == [1, 0, 0]


def test_a_wiped_mmu_leaves_the_tree() -> None:
    tenants = [f"s2 new {v}\ncode\ntouch r 0x10000" for v in (2, 3)]
    made = run(DESIGN, script(PAGES_16, *tenants))
    assert count(made, "wipes") == 1
    check_pa_keyed(made.state)


def test_a_leaf_costs_a_node_whether_it_is_an_alias_or_not() -> None:
    made = run(DESIGN, script(*ALIASES))
    header = 64
    assert int(design_bytes(made.state)) == (4 + 1) * 64 + header


def test_it_covers_leaves_under_their_own_frame() -> None:
    made = run(DESIGN, script(*ALIASES))
    s = made.state
    for place in (NESTED, NESTED + 3 * BLOCK):
        leaf = leaf_of(made, place)
        assert leaf is not None
        assert design_covers(s, 1, U64(DATA), U64(place), U64(PAGE), 3, U64(leaf.word))
        assert not design_covers(s, 2, U64(DATA), U64(place), U64(PAGE), 3, U64(leaf.word))
        s.mem[leaf.word] += U64(64 * BLOCK)
        assert not design_covers(s, 1, U64(DATA), U64(place), U64(PAGE), 3, U64(leaf.word))


@pytest.mark.parametrize("backing", ["base", "thp"])
@pytest.mark.parametrize("seed", [61, 62])
def test_the_tree_of_frames_stays_sound_after_every_event(seed: int, backing: str) -> None:
    every_event(DESIGN, random_script(seed, backing, 40), lambda running: check_pa_keyed(running.state))


def test_the_check_of_frames_sees_what_it_looks_for() -> None:
    made = run(DESIGN, script(*ALIASES))
    s = made.state
    for array, at, value, told in (
        (s.mmus[CANONICAL], pa.M_ENTRIES, 3, "5 entries, 3 counted"),
        (s.mem, shadow_leaves(s)[0].word, 0, "record and tables differ"),
    ):
        before = array[at]
        array[at] = value
        with pytest.raises(AssertionError, match=told):
            check_pa_keyed(s)
        array[at] = before
    check_pa_keyed(s)
