"""``gfn_lists``: every fill in the list of its frame, every entry verified before it is believed."""

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
from shadowmmu.designs import gfn_lists as gfn
from shadowmmu.designs.dispatch import design_bytes, design_covers, design_recorded
from shadowmmu.designs.list_checks import check_gfn_lists, gfn_places
from shadowmmu.designs.reverse_nodes import RT_ENTRIES
from shadowmmu.designs.reverse_table_check import shadow_leaves
from shadowmmu.verify.cases import random_script

DESIGN = "gfn_lists"
BLOCK_LEAF = f"map {NESTED:#x} {DATA:#x} 2M 2 rw\ntouch w {NESTED:#x}"
ALIASES = [
    f"map {NESTED + k * BLOCK:#x} {DATA:#x} 4k 3 rw\ntouch w {NESTED + k * BLOCK:#x}" for k in range(5)
]


def test_every_alias_is_in_the_list_of_its_frame_and_goes_with_it() -> None:
    made = executor(DESIGN, script(*ALIASES, f"dontneed {DATA:#x} 4k"))
    made.run(last_event(made))
    places = [place.nested_ipa for canonical_ipa, place in gfn_places(made.state) if canonical_ipa == DATA]
    assert sorted(places) == [NESTED + k * BLOCK for k in range(5)]
    names = ("leaves_removed", "over_unmapped_leaves", "lookups", "descriptors_scanned")
    levels_read = 3
    assert cost(made, last_event(made), *names) == [5, 0, 1, 5 * levels_read]
    assert check_gfn_lists(made.state) == 0


def test_a_block_is_found_from_any_page_in_it() -> None:
    alias = f"map {NESTED + BLOCK:#x} {DATA + 0x5000:#x} 4k 3 rw\ntouch w {NESTED + BLOCK:#x}"
    made, violation = judged(DESIGN, script(BLOCK_LEAF, alias, f"punch {DATA + 0x5000:#x} 4k", backing="thp"))
    assert violation is None
    assert leaf_of(made, NESTED) is leaf_of(made, NESTED + BLOCK) is None
    assert count(made, "fallbacks_mmu") == 0


def test_the_same_leaf_again_is_one_entry() -> None:
    again = [f"tlbi 0 {7 << 44 | NESTED >> 12:#x}\ntouch w {NESTED:#x}" for _ in range(3)]
    made = run(DESIGN, script(PAGES_16, *again))
    assert design_recorded(made.state) == 16 + 1
    assert check_gfn_lists(made.state) == 0


def test_a_stale_entry_is_dropped_and_what_moved_in_stays() -> None:
    moved = f"map {NESTED:#x} {DATA + BLOCK:#x} 4k 3 rw\ntlbi 0 {NESTED >> 12:#x}\ntouch w {NESTED:#x}"
    made = executor(DESIGN, script(PAGES_16, moved, f"dontneed {DATA:#x} 4k"))
    made.run(last_event(made))
    assert check_gfn_lists(made.state) == 1
    assert cost(made, last_event(made), "leaves_removed") == [0]
    assert check_gfn_lists(made.state) == 0
    assert leaf_of(made, NESTED) is not None


def test_stale_entries_wait_for_the_host() -> None:
    lines = [
        f"map {NESTED:#x} {DATA + k * PAGE:#x} 4k 3 rw\ntlbi 0 {NESTED >> 12:#x}\ntouch w {NESTED:#x}"
        for k in range(24)
    ]
    made = executor(DESIGN, script(*lines, f"dontneed {DATA:#x} 2M"))
    made.run(last_event(made))
    assert check_gfn_lists(made.state) == 23
    made.run()
    assert check_gfn_lists(made.state) == 0
    assert [leaf.nested_ipa for leaf in shadow_leaves(made.state)] == [0x1_0000]


def test_a_recycled_mmu_leaves_entries_that_verify_as_stale() -> None:
    tenants = [f"s2 new {v}\ncode\ntouch r 0x10000" for v in (2, 3)]
    made, violation = judged(DESIGN, script(PAGES_16, *tenants, f"dontneed {DATA:#x} 64k"))
    assert violation is None
    assert count(made, "wipes") == 1
    assert count(made, "over_unmapped_bytes") == 0


@pytest.mark.parametrize("nth", range(1, 18))
def test_memory_is_had_before_the_fill_or_the_access_faults_again(nth: int) -> None:
    made, violation = judged(DESIGN, script(PAGES_16, f"dontneed {DATA:#x} 4k"), fail=nth)
    assert violation is None
    assert [count(made, n) for n in ("allocation_failures", "broken", "fallbacks_mmu")] == [1, 0, 0]
    assert design_recorded(made.state) == 16


def test_it_covers_a_leaf_with_the_frame_it_was_filled_with() -> None:
    made = run(DESIGN, script(PAGES_16))
    leaf = leaf_of(made, NESTED)
    assert leaf is not None
    s, word = made.state, U64(leaf.word)
    assert design_covers(s, 1, U64(DATA), U64(NESTED), U64(PAGE), 3, word)
    assert not design_covers(s, 1, U64(DATA + PAGE), U64(NESTED), U64(PAGE), 3, word)
    assert not design_covers(s, 1, U64(DATA + 64 * BLOCK), U64(NESTED), U64(PAGE), 3, word)
    s.mem[leaf.word] += U64(PAGE)
    assert not design_covers(s, 1, U64(DATA), U64(NESTED), U64(PAGE), 3, word)


def test_an_entry_costs_a_slab_object_and_pages_share_a_node() -> None:
    few = run(DESIGN, script(f"map {NESTED:#x} {DATA:#x} 4k 3 rw\ntouch w {NESTED:#x}"))
    many = run(DESIGN, script(PAGES_16))
    assert int(design_bytes(many.state)) - int(design_bytes(few.state)) == 15 * 32


@pytest.mark.parametrize("backing", ["base", "thp"])
@pytest.mark.parametrize("seed", [41, 42])
def test_the_lists_stay_sound_after_every_event(seed: int, backing: str) -> None:
    every_event(DESIGN, random_script(seed, backing, 40), lambda running: check_gfn_lists(running.state))


def test_the_check_of_lists_sees_what_it_looks_for() -> None:
    made = run(DESIGN, script(*ALIASES))
    words = made.state.rmap
    place = int(gfn.place_of(1, U64(NESTED)))
    entry = next(i for i in range(len(words)) if int(words[i]) == place) - int(gfn.E_PLACE)
    follower = next(
        i for i in range(len(words)) if int(words[i]) == int(gfn.place_of(1, U64(NESTED + BLOCK)))
    )
    for at, value, told in (
        (entry + int(gfn.E_PA), 0, "is not recorded"),
        (entry + int(gfn.E_PLACE), place + 0x800, "is not aligned"),
        (entry + int(gfn.E_PLACE), place & int(gfn.NESTED), "shadow MMU 0"),
        (entry + int(gfn.E_PLACE), int(words[follower]), "stands twice"),
        (RT_ENTRIES, 3, "entries, miscounted"),
    ):
        before = words[at]
        words[at] = value
        with pytest.raises(AssertionError, match=told):
            check_gfn_lists(made.state)
        words[at] = before
    assert check_gfn_lists(made.state) == 0
