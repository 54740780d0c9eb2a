"""Small leaves of ``reverse_table``: against a list, their order, their bytes, and what a fill costs."""

from __future__ import annotations

import random

import numpy as np
import pytest
from design_lab import BLOCK, DATA, NESTED, PAGE, cost, executor, last_event, run, script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadowmmu.arch.stage2 import S2AP_W
from shadowmmu.compiled import I64, INTERPRETED, U64, kernel
from shadowmmu.designs import reverse_nodes as rn
from shadowmmu.designs.containers.owners import MapleTree
from shadowmmu.designs.interface import PROTECT
from shadowmmu.designs.radix_check import SMALL_SIZES, walk_radix
from shadowmmu.designs.reverse_entries import DESCRIPTOR, M_BROKEN
from shadowmmu.designs.reverse_leaves import COUNT_SHIFT, MOST_ALIASED, leaf_link, leaf_names, leaf_unlink
from shadowmmu.designs.reverse_table import reverse_record
from shadowmmu.designs.reverse_table_check import check_reverse_table
from shadowmmu.designs.reverse_update import reverse_update
from shadowmmu.machine.counters import NODES_VISITED
from shadowmmu.machine.state import State, grow
from shadowmmu.pgtable.context import CANONICAL, context_regime

DESIGN = "reverse_table"
BASE = 0x4000_0000
ROOMS = [1 << size for size in SMALL_SIZES]


@kernel
def act(s: State, kind: int, canonical_ipa: int, descriptor: int) -> bool:
    """One entry point for all, so that they are compiled once."""
    r = context_regime(s, CANONICAL)
    if kind == 0:
        return leaf_link(s, r, U64(canonical_ipa), U64(descriptor))
    if kind == 1:
        return leaf_unlink(s, r, U64(canonical_ipa), U64(descriptor))
    if kind == 3:
        reverse_record(s, 1, U64(canonical_ipa), I64(3), U64(descriptor))
        return True
    return leaf_names(s, r, U64(canonical_ipa), U64(descriptor))


def machine() -> State:
    """An empty record with room for a test."""
    state = executor(DESIGN, script()).state
    while len(state.rmap) < 1 << 19:
        state = grow(state, "rmap")
    return state


def named(state: State) -> list[tuple[int, int]]:
    """(canonical page, entry) of everything named, chains included; the shape is asserted on the way."""
    found = []
    for head in walk_radix(state, sized_leaves=True).heads:
        content = head.content
        while content & int(rn.CHAIN):
            node = content & ~int(rn.CHAIN)
            found.append((head.canonical_ipa, int(state.rmap[node])))
            content = int(state.rmap[node + 1])
        if content:
            found.append((head.canonical_ipa, content))
    return sorted(found)


STEP = st.tuples(
    st.sampled_from(["link", "link", "link", "unlink", "names"]), st.integers(0, 700), st.integers(1, 400)
)


@given(st.integers(0, 150), st.lists(STEP, max_size=40))
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_leaves_agree_with_a_list(before: int, steps: list[tuple[str, int, int]]) -> None:
    """Pages 0 to 700 lie in two leaves; a descriptor stands under one page only, as in the product."""
    state = machine()
    model: dict[int, int] = {}
    plan = [("link", page, 1000 + page) for page in range(before)] + steps
    for number, (kind, page, descriptor) in enumerate(plan):
        here = BASE + page * PAGE
        if kind == "link":
            if descriptor in model:
                continue
            assert act(state, 0, here, descriptor)
            model[descriptor] = here
        elif kind == "unlink":
            gone = act(state, 1, model.get(descriptor, here), descriptor)
            assert gone == (model.pop(descriptor, None) is not None)
        else:
            assert act(state, 2, here, descriptor) == (model.get(descriptor) == here)
        if number >= before:
            assert named(state) == sorted((ipa, word) for word, ipa in model.items())
    for descriptor, ipa in model.items():
        act(state, 1, ipa, descriptor)
    assert walk_radix(state, sized_leaves=True).nodes == 1, "the root is left"


@pytest.mark.parametrize("pages", [1, *ROOMS, *(room + 1 for room in ROOMS), 128, 256, 512])
@pytest.mark.parametrize("kind", ["scattered", "together"])
def test_bytes_are_at_most_four_times_the_maple_trees(pages: int, kind: str) -> None:
    """The same pages of each 2M in the record and in a maple tree; at half density at most 0.8 of it."""
    rng = random.Random(pages)
    state, tree = machine(), MapleTree()
    blocks = max(16, (1500 if INTERPRETED else 8000) // pages)
    empty = int(state.rmap[rn.RT_BYTES])
    keys = []
    for block in range(blocks):
        places = rng.sample(range(512), pages) if kind == "scattered" else range(pages)
        keys += [block * 512 + place for place in places]
    rng.shuffle(keys)
    for number, key in enumerate(keys, 1):
        act(state, 0, key * PAGE, number)
        tree[key] = number
    # Nodes of 8 KiB stand over 512 leaves each; here they are not full, so their share is counted.
    nodes = blocks * (2 * 512 + 2) * 8 / 512
    over = -(-blocks // 512) * (2 * 512 + 2) * 8
    size = int(state.rmap[rn.RT_BYTES]) - empty - over + nodes
    assert size <= 4 * tree.bytes
    if pages == 256 and kind == "scattered":
        assert size <= 0.8 * tree.bytes


def test_a_fill_costs_a_node_a_level_however_full_the_leaf_is() -> None:
    """Promotion moves items but enters no other node."""
    state = machine()
    pages = list(range(512))
    random.Random(5).shuffle(pages)
    for number, page in enumerate(pages, 1):
        before = int(state.count[NODES_VISITED])
        assert act(state, 0, BASE + page * PAGE, number)
        assert int(state.count[NODES_VISITED]) - before == 2
    assert len(named(state)) == 512


def test_a_leaf_takes_no_more_aliases_than_it_can_count() -> None:
    """The fill is told, and goes on without a record as after a failed allocation."""
    state = machine()
    for page in range(200):
        assert act(state, 0, BASE + page * PAGE, 1 + page)
    place = int(np.flatnonzero(state.rmap >> COUNT_SHIFT == U64(200))[-1])
    state.rmap[place] += (MOST_ALIASED - U64(200)) << COUNT_SHIFT
    assert not act(state, 0, BASE, 1000)
    assert act(state, 0, BASE + 300 * PAGE, 1001), "a page without an entry still gets its first"
    assert not act(state, 2, BASE, 1000)
    assert act(state, 2, BASE + 300 * PAGE, 1001)
    act(state, 3, BASE, 1002)
    assert state.mmus[1, M_BROKEN] == 1


def test_neighbours_filled_out_of_order_share_one_invalidation() -> None:
    touches = [f"touch w {NESTED + page * PAGE:#x}" for page in (5, 2, 7, 0, 3, 6, 1, 4)]
    made = executor(
        DESIGN, script(f"map {NESTED:#x} {DATA:#x} 64k 3 rw", *touches, f"dontneed {DATA:#x} 32k")
    )
    removed, ranges = cost(made, last_event(made), "leaves_removed", "tlbi_range_shadow")
    assert (removed, ranges) == (8, 1)
    check_reverse_table(made.state)


@pytest.mark.parametrize("pages", [20, 64, 80])
def test_protection_reaches_what_small_and_full_leaves_name(pages: int) -> None:
    alias = f"map 0xa0000000 {DATA:#x} 4k 3 rw\ntouch w 0xa0000000"
    run_of = f"map {NESTED:#x} {DATA:#x} {4 * pages - 4}k 3 rw\ntouch w {NESTED:#x} 4096 {pages - 1}"
    made = run(DESIGN, script(alias, run_of))
    s = made.state
    assert reverse_update(s, U64(DATA + PAGE), U64(DATA + BLOCK), False, PROTECT) == pages - 2
    assert reverse_update(s, U64(DATA), U64(DATA + BLOCK), False, PROTECT) == 2
    assert reverse_update(s, U64(DATA), U64(DATA + BLOCK), False, PROTECT) == 0
    words = [entry & int(DESCRIPTOR) for ipa, entry in named(s) if DATA <= ipa < DATA + BLOCK]
    assert len(words) == pages
    assert not any(int(s.mem[word]) & int(S2AP_W) for word in words)
    check_reverse_table(s)
