"""``per_vm_tree``: one lookup for all MMUs, and what sharing a page between them costs."""

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

from shadowmmu.arch.stage2 import AF
from shadowmmu.compiled import U64
from shadowmmu.designs import per_vm_tree as vm
from shadowmmu.designs.containers.maple import maple_store
from shadowmmu.designs.dispatch import design_covers, design_recorded
from shadowmmu.designs.reverse_table_check import shadow_leaves
from shadowmmu.designs.tree_checks import Range, check_per_vm_tree, ranges_of
from shadowmmu.engine.executor import Executor
from shadowmmu.pgtable.context import CANONICAL
from shadowmmu.verify.cases import random_script

DESIGN = "per_vm_tree"
SECOND = f"s2 new 2\ncode\nmap {NESTED:#x} {DATA + BLOCK:#x} 64k 3 rw\ntouch w {NESTED:#x} 4096 16"
SHARED = f"s2 new 2\ncode\nmap {NESTED:#x} {DATA:#x} 4k 3 rw\ntouch w {NESTED:#x}"
ALIAS = f"map {NESTED + BLOCK:#x} {DATA:#x} 4k 3 rw\ntouch w {NESTED + BLOCK:#x}"


def entries(made: Executor) -> list[Range]:
    """The one map, L2s' code pages left out."""
    check_per_vm_tree(made.state)
    return [entry for entry in ranges_of(made.state, CANONICAL, vm.M_MAP) if entry.first >= DATA]


def test_a_leaf_recorded_again_changes_nothing() -> None:
    made = run(DESIGN, script(PAGES_16))
    before = entries(made), int(design_recorded(made.state)), count(made, "nodes_allocated")
    vm.per_vm_record(made.state, 1, U64(DATA), U64(NESTED), U64(PAGE))
    assert (entries(made), int(design_recorded(made.state)), count(made, "nodes_allocated")) == before


def test_one_lookup_serves_every_mmu_and_reaches_those_concerned() -> None:
    made = executor(DESIGN, script(PAGES_16, SECOND, f"dontneed {DATA + BLOCK:#x} 4k"))
    names = ("lookups", "shadow_mmus_visited", "leaves_removed", "over_unmapped_leaves")
    assert cost(made, last_event(made), *names) == [1, 1, 1, 0]
    assert len(entries(made)) == 16 + 15


def test_a_page_shared_by_two_mmus_takes_both_whole() -> None:
    made = executor(DESIGN, script(PAGES_16, SHARED, f"dontneed {DATA:#x} 4k"))
    made.run(last_event(made))
    assert entries(made)[0].value == int(vm.UNKNOWN | vm.name_of(1) | vm.name_of(2))
    assert cost(made, last_event(made), "fallbacks_mmu", "leaves_removed") == [2, 16 + 1 + 1 + 1]
    assert shadow_leaves(made.state) == []
    assert design_recorded(made.state) == 0
    apart, _ = judged("spanning", script(PAGES_16, SHARED, f"dontneed {DATA:#x} 4k"))
    assert count(apart, "fallbacks_mmu") == 0


def test_an_alias_inside_one_mmu_takes_that_one_alone() -> None:
    made = executor(DESIGN, script(PAGES_16, ALIAS, SECOND, f"dontneed {DATA:#x} 4k"))
    assert cost(made, last_event(made), "fallbacks_mmu", "shadow_mmus_visited") == [1, 1]
    assert {leaf.mmu for leaf in shadow_leaves(made.state)} == {2}


def test_a_wiped_mmu_is_named_no_more() -> None:
    back = "s2 0x40100000 1\ntouch r 0x10000\ntlbi 4"
    made = run(DESIGN, script(PAGES_16, SHARED, back))
    assert entries(made)[0].value == int(vm.UNKNOWN | vm.name_of(2))
    both = run(DESIGN, script(PAGES_16, SHARED, "tlbi 5"))
    assert entries(both) == []
    assert design_recorded(both.state) == 0


def test_a_tlbi_takes_exact_entries_off_and_leaves_unknown_ones() -> None:
    gone = [f"tlbi 0 {7 << 44 | ipa >> 12:#x}" for ipa in (NESTED, NESTED + BLOCK, NESTED + PAGE)]
    made = run(DESIGN, script(PAGES_16, ALIAS, *gone))
    assert [entry.first for entry in entries(made)][:2] == [DATA, DATA + 2 * PAGE]
    assert entries(made)[0].value & int(vm.UNKNOWN)


def test_an_mmu_beyond_those_a_set_can_name_costs_the_vm() -> None:
    assert vm.name_of(vm.NAMED_MMUS) != vm.OTHERS == vm.name_of(vm.NAMED_MMUS + 1)
    tenants = [
        f"s2 new {v}\ncode\nmap {NESTED:#x} {DATA:#x} 4k 3 rw\ntouch w {NESTED:#x}" for v in range(2, 63)
    ]
    made = executor(DESIGN, "vcpus 32\n" + script(PAGES_16, *tenants, f"dontneed {DATA:#x} 4k"))
    made.run(last_event(made))
    assert entries(made)[0].value & int(vm.OTHERS)
    assert cost(made, last_event(made), "fallbacks_vm", "fallbacks_mmu") == [1, 0]
    assert shadow_leaves(made.state) == []
    assert entries(made) == []


def test_ageing_what_a_set_cannot_name_keeps_the_record() -> None:
    made = executor(DESIGN, script(PAGES_16, f"poke {DATA:#x} 1\nidle {DATA:#x} 1"), precise_updates=True)
    made.run(last_event(made))
    tree = made.state.mmus[CANONICAL, vm.M_MAP]
    others = vm.UNKNOWN | vm.OTHERS | vm.name_of(1)
    assert maple_store(made.state.rmap, made.state.count, tree, U64(DATA), U64(DATA + PAGE - 1), others)
    before = entries(made)
    assert cost(made, last_event(made), "fallbacks_vm", "leaves_removed") == [1, 0]
    assert entries(made) == before
    assert all(not int(made.state.mem[leaf.word]) & int(AF) for leaf in shadow_leaves(made.state))


@pytest.mark.parametrize("nodes", [0, 1])
def test_a_map_without_room_breaks_the_record_of_the_mmu(nodes: int) -> None:
    made = executor(DESIGN, script("nop"))
    end = int(made.state.rmap[0]) + 32 * nodes  # the engine never lets a pool run so short
    state = made.state._replace(rmap=made.state.rmap[:end])
    vm.per_vm_record(state, 1, U64(DATA), U64(NESTED), U64(PAGE))
    assert state.mmus[1, vm.M_BROKEN]
    assert [count(made, name) for name in ("broken", "allocation_failures")] == [1, 0]


@pytest.mark.parametrize("nth", range(1, 18))
def test_a_failed_allocation_breaks_one_mmu_until_the_next_unmap(nth: int) -> None:
    text = script(PAGES_16, SECOND, f"dontneed {DATA + 4 * BLOCK:#x} 4k")
    made, violation = judged(DESIGN, text, fail=nth)
    assert violation is None
    assert [count(made, n) for n in ("allocation_failures", "broken", "fallbacks_mmu")] == [1, 1, 1]
    assert not made.state.mmus[1:, vm.M_BROKEN].any()
    assert {leaf.mmu for leaf in shadow_leaves(made.state)} == {2}
    check_per_vm_tree(made.state)


def test_the_same_leaf_again_is_no_overlap() -> None:
    made = run(DESIGN, script(PAGES_16, "tlbi 4", f"touch w {NESTED:#x} 4096 16"))
    assert count(made, "unknown_entries") == 0


def test_it_covers_exact_leaves_and_those_an_unknown_names() -> None:
    made = run(DESIGN, "vcpus 2\n" + script(PAGES_16, SHARED))
    s = made.state
    word = U64(1)
    for mmu, canonical_ipa, nested_ipa, covered in (
        (1, DATA + PAGE, NESTED + PAGE, True),
        (1, DATA + PAGE, NESTED, False),
        (1, DATA + PAGE, NESTED + 2 * PAGE, False),
        (2, DATA + PAGE, NESTED + PAGE, False),
        (1, DATA, NESTED, True),
        (2, DATA, NESTED + 9 * PAGE, True),
        (3, DATA, NESTED, False),
        (1, DATA + 64 * BLOCK, NESTED, False),
    ):
        assert design_covers(s, mmu, U64(canonical_ipa), U64(nested_ipa), U64(PAGE), 3, word) == covered
    s.mmus[1, vm.M_BROKEN] = 1
    assert design_covers(s, 1, U64(DATA + 64 * BLOCK), U64(NESTED), U64(PAGE), 3, word)


@pytest.mark.parametrize("backing", ["base", "thp"])
@pytest.mark.parametrize("seed", [71, 72])
def test_the_one_tree_stays_sound_after_every_event(seed: int, backing: str) -> None:
    every_event(DESIGN, random_script(seed, backing, 40), lambda running: check_per_vm_tree(running.state))


def test_the_check_of_the_one_tree_sees_what_it_looks_for() -> None:
    made = run(DESIGN, script(PAGES_16))
    words = made.state.rmap
    value = int(vm.exact(1, U64(NESTED + PAGE)))
    at = next(i for i in range(len(words)) if int(words[i]) == value)
    for wrong, told in (
        (value + (40 << 52), "is of shadow MMU 41"),
        (int(vm.UNKNOWN), "names no MMU"),
        (value + 4, "has flags 0x5"),
    ):
        words[at] = wrong
        with pytest.raises(AssertionError, match=told):
            check_per_vm_tree(made.state)
    words[at] = value + PAGE
    assert check_per_vm_tree(made.state) == 2
    words[at] = value
    assert check_per_vm_tree(made.state) == 0
    assert leaf_of(made, NESTED) is not None
