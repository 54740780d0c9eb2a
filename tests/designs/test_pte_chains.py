"""``pte_chains``: descriptors by frame, in blocks of fourteen; a frame is emptied before it has too many."""

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
from shadowmmu.designs import pte_chains as pte
from shadowmmu.designs import reverse_nodes as rn
from shadowmmu.designs.dispatch import design_bytes, design_covers, design_recorded
from shadowmmu.designs.list_checks import check_pte_chains
from shadowmmu.designs.reverse_table_check import shadow_leaves
from shadowmmu.engine.executor import Executor
from shadowmmu.verify.cases import random_script

DESIGN = "pte_chains"
ROOM = int(pte.BLOCK_ROOM)
BLOCK_LEAF = f"map {NESTED:#x} {DATA:#x} 2M 2 rw\ntouch w {NESTED:#x}"


def aliases(number: int) -> str:
    """``number`` nested pages that all lead to the first page of data."""
    maps = "\n".join(f"map {NESTED + k * PAGE:#x} {DATA:#x} 4k 3 rw" for k in range(number))
    return f"{maps}\ntouch w {NESTED:#x} 4096 {number}"


def blocks(made: Executor) -> int:
    """Blocks of descriptors in use."""
    return (int(made.state.rmap[rn.RT_BYTES]) - int(bytes_of_nodes(made))) // (8 * int(pte.BLOCK_WORDS))


def bytes_of_nodes(made: Executor) -> int:
    """Bytes of the radix of a machine with the same pages and no alias."""
    return int(design_bytes(run(DESIGN, script(aliases(1))).state))


@pytest.mark.parametrize(
    ("number", "used"), [(1, 0), (2, 1), (ROOM, 1), (ROOM + 1, 2), (2 * ROOM, 2), (2 * ROOM + 1, 3)]
)
def test_a_block_holds_fourteen_and_all_aliases_go_at_once(number: int, used: int) -> None:
    made = executor(DESIGN, script(aliases(number), f"dontneed {DATA:#x} 4k"))
    made.run(last_event(made))
    check_pte_chains(made.state)
    assert blocks(made) == used
    removed, tlbis, ranges = cost(made, last_event(made), "leaves_removed", "tlbi_vmid", "tlbi_range_shadow")
    assert (removed, tlbis, ranges) == (number, 1, 0)
    check_pte_chains(made.state)
    assert blocks(made) == 0


@pytest.mark.parametrize("gone", [0, 3, ROOM - 1, ROOM, 2 * ROOM])
def test_the_last_of_the_first_block_fills_the_gap_a_tlbi_leaves(gone: int) -> None:
    number = 2 * ROOM + 1
    text = script(aliases(number), f"tlbi 0 {7 << 44 | (NESTED >> 12) + gone:#x}", f"dontneed {DATA:#x} 4k")
    made = executor(DESIGN, text)
    made.run(last_event(made))
    check_pte_chains(made.state)
    assert design_recorded(made.state) == number - 1 + 1
    assert blocks(made) == 2
    assert cost(made, last_event(made), "leaves_removed") == [number - 1]


def test_a_frame_named_too_often_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    number = pte.RECYCLE + 1
    made, violation = judged(DESIGN, script(aliases(number), f"dontneed {DATA:#x} 4k", memory="128M"))
    assert violation is None
    assert count(made, "fallbacks_frame") == 1
    check_pte_chains(made.state)
    assert [leaf.nested_ipa for leaf in shadow_leaves(made.state)] == [0x1_0000]


def test_an_unmap_clears_without_walking_and_invalidates_each_mmu_once() -> None:
    other = f"s2 new 2\ncode\nmap {NESTED:#x} {DATA:#x} 16k 3 rw\ntouch w {NESTED:#x} 4096 4"
    made = executor(DESIGN, script(PAGES_16, other, f"dontneed {DATA:#x} 64k"))
    names = ("leaves_removed", "shadow_mmus_visited", "tlbi_vmid", "chunks_shadow", "over_unmapped_leaves")
    assert cost(made, last_event(made), *names) == [20, 2, 2, 0, 0]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_descriptor_that_is_not_recorded_takes_no_other_off(level: int) -> None:
    """Nothing stands beside it, which reads as canonical 0: at level 1 a node has an entry for that."""
    made = run(DESIGN, script(aliases(3)))
    leaf, recorded = leaf_of(made, NESTED), int(design_recorded(made.state))
    assert leaf is not None
    pte.pte_unlink(made.state, U64(leaf.word + 3), level)
    assert design_recorded(made.state) == recorded
    check_pte_chains(made.state)
    pte.pte_unlink(made.state, U64(leaf.word), 3)
    assert design_recorded(made.state) == recorded - 1


def test_every_word_of_the_range_is_looked_at() -> None:
    made = executor(DESIGN, script(PAGES_16, f"dontneed {DATA:#x} 2M"))
    level_one_two_three = 1 + 1 + 512
    assert cost(made, last_event(made), "nodes_visited") == [level_one_two_three]


def test_a_block_is_found_from_a_page_in_it() -> None:
    made, violation = judged(DESIGN, script(BLOCK_LEAF, f"punch {DATA + 0x5000:#x} 4k", backing="thp"))
    assert violation is None
    assert leaf_of(made, NESTED) is None


def test_its_words_stay_when_a_frame_is_empty() -> None:
    made = run(DESIGN, script(PAGES_16, f"dontneed {DATA:#x} 64k"))
    check_pte_chains(made.state)
    assert int(design_bytes(made.state)) == int(design_bytes(run(DESIGN, script(PAGES_16)).state))


@pytest.mark.parametrize("nth", range(1, 18))
def test_blocks_are_had_before_the_fill_or_the_access_faults_again(nth: int) -> None:
    made, violation = judged(DESIGN, script(PAGES_16, f"dontneed {DATA:#x} 4k"), fail=nth)
    assert violation is None
    assert [count(made, n) for n in ("allocation_failures", "broken", "fallbacks_mmu")] == [1, 0, 0]


def test_a_wiped_mmu_is_taken_off() -> None:
    tenants = [f"s2 new {v}\ncode\ntouch r 0x10000" for v in (2, 3)]
    made = run(DESIGN, script(PAGES_16, *tenants))
    assert count(made, "wipes") == 1
    check_pte_chains(made.state)


def test_it_covers_the_descriptors_it_names() -> None:
    made = run(DESIGN, script(aliases(ROOM + 3)))
    leaf = leaf_of(made, NESTED + 2 * PAGE)
    assert leaf is not None
    s = made.state
    assert design_covers(s, 1, U64(DATA), U64(leaf.nested_ipa), U64(PAGE), 3, U64(leaf.word))
    assert not design_covers(s, 1, U64(DATA), U64(leaf.nested_ipa), U64(PAGE), 3, U64(leaf.word + ROOM + 3))
    assert not design_covers(s, 1, U64(DATA + 64 * BLOCK), U64(NESTED), U64(PAGE), 3, U64(leaf.word))


@pytest.mark.parametrize("backing", ["base", "thp"])
@pytest.mark.parametrize("seed", [51, 52])
def test_the_chains_stay_sound_after_every_event(seed: int, backing: str) -> None:
    every_event(DESIGN, random_script(seed, backing, 40), lambda running: check_pte_chains(running.state))


def test_the_check_of_chains_sees_what_it_looks_for() -> None:
    made = run(DESIGN, script(aliases(2 * ROOM + 1)))
    words = made.state.rmap
    leaf = leaf_of(made, NESTED)
    assert leaf is not None
    held = next(i for i in range(rn.RT_HEADER, len(words)) if int(words[i]) == leaf.word)
    first = held - int(pte.B_FIRST)  # the oldest block: the last of the chain
    for at, value, told in (
        (first + int(pte.B_COUNT), 3, "is behind another and not full"),
        (first + int(pte.B_COUNT), 15, "holds 15 descriptors"),
        (first + int(pte.B_COUNT), ROOM | 1 << 32, "0 descriptors behind a block, 1 counted"),
        (held, leaf.word + 1, "named twice"),
        (held, 1, "differ"),
    ):
        before = words[at]
        words[at] = value
        with pytest.raises(AssertionError, match=told):
            check_pte_chains(made.state)
        words[at] = before
    check_pte_chains(made.state)
