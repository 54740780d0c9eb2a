"""The maple tree: against a sorted list, at the ends of the key space, without room, and in visits."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from container_models import END, RangeModel, content, profile, scaled
from hypothesis import given
from hypothesis import strategies as st

from shadowmmu.compiled import U64
from shadowmmu.designs.containers import maple_node as layout
from shadowmmu.designs.containers.checks import maple_check, maple_nodes
from shadowmmu.designs.containers.maple import (
    MAPLE_RESERVE_WORDS,
    maple_bytes,
    maple_create,
    maple_entries,
    maple_erase,
    maple_find,
    maple_height,
    maple_store,
)
from shadowmmu.designs.containers.owners import MapleTree, RangeEntry
from shadowmmu.designs.containers.pool import POOL_HEADER_WORDS, Pool, pool_room, pool_used
from shadowmmu.machine.counters import COUNTERS, NODES_ALLOCATED, NODES_FREED

FANOUTS = pytest.mark.parametrize("fanout", [16, 10])

SPAN = 4000
KEY = st.one_of(
    st.integers(0, SPAN),
    st.sampled_from([0, 1, END - 1, END, 1 << 63, END - 40]),
)
LENGTH = st.sampled_from([0, 0, 1, 3, 7, 60, 400, SPAN, END])
VALUE = st.sampled_from([0, 0, 1, 2, 3, END])
OPERATION = st.one_of(
    st.tuples(st.just("store"), KEY, LENGTH, VALUE),
    st.tuples(st.just("erase"), KEY, st.just(0), st.just(0)),
    st.tuples(st.sampled_from(["find", "walk", "back"]), KEY, LENGTH, st.just(0)),
)
OPERATIONS = st.lists(OPERATION, max_size=25)
FILL = st.tuples(
    st.sampled_from([0, 5, 40, 200, 900]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["up", "down", "random"]),
)


def fill(tree: MapleTree, model: RangeModel, plan: tuple[int, int, str]) -> None:
    """Many small entries, ``step`` apart (1: no gaps), so that the tree has several levels."""
    entries, step, order = plan
    keys = [step * i for i in range(min(entries, scaled(900, 500)))]
    if order == "down":
        keys.reverse()
    elif order == "random":
        random.Random(entries).shuffle(keys)
    for key in keys:
        tree.store(key, key, key % 7 + 1)
    model.entries = sorted((key, key, key % 7 + 1) for key in keys)


def apply(tree: MapleTree, model: RangeModel, operation: tuple[str, int, int, int]) -> None:
    """One operation on both; the tree may say that it has no room, and then the model does nothing."""
    kind, first, length, value = operation
    last = min(first + length, END)
    if kind == "find":
        assert tree.find(first, last) == model.find(first, last)
        return
    if kind in ("walk", "back"):
        met = [entry for entry in model.entries if entry[1] >= first and entry[0] <= last]
        if kind == "walk":
            assert list(tree.entries(first, last)) == met
        else:
            assert list(tree.entries_back(last, first)) == met[::-1]
            assert tree.find_back(last, first) == (met[-1] if met else None)
        return
    before = content(tree.pool.words)
    try:
        if kind == "store":
            tree.store(first, last, value)
            model.store(first, last, value)
        else:
            erased = tree.erase(first)
            assert erased == model.erase(first)
    except MemoryError:
        assert tree.pool.limit is not None
        assert content(tree.pool.words) == before, "a refused store changed the tree"


@FANOUTS
@given(FILL, OPERATIONS)
@profile(200, 120)
def test_agrees_with_a_sorted_list(
    fanout: int, plan: tuple[int, int, str], operations: list[tuple[str, int, int, int]]
) -> None:
    tree, model = MapleTree(fanout, Pool(POOL_HEADER_WORDS)), RangeModel()
    fill(tree, model, plan)
    tree.check()
    for operation in operations:
        apply(tree, model, operation)
        tree.check()
        assert list(tree) == model.entries
        assert len(tree) == len(model.entries)
    words, count = tree.pool.words, tree.pool.count
    assert int(count[NODES_ALLOCATED] - count[NODES_FREED]) * 256 == tree.bytes
    tree.clear()
    tree.check()
    assert int(pool_used(words)) == 64, "only the header of the tree is left"


@FANOUTS
@given(st.integers(0, 30), OPERATIONS)
@profile(100, 60)
def test_without_room_nothing_changes(
    fanout: int, nodes: int, operations: list[tuple[str, int, int, int]]
) -> None:
    limit = POOL_HEADER_WORDS + 8 + 32 * nodes
    tree, model = MapleTree(fanout, Pool(POOL_HEADER_WORDS, limit=limit)), RangeModel()
    for key in random.Random(nodes).sample(range(0, SPAN, 5), 120):
        apply(tree, model, ("store", key, 1, key + 1))
    for operation in operations:
        apply(tree, model, operation)
        tree.check()
        assert list(tree) == model.entries


@FANOUTS
def test_long_random_run(fanout: int) -> None:
    rng = random.Random(fanout)
    tree, model = MapleTree(fanout), RangeModel()
    steps = 20_000
    for step in range(steps):
        first = rng.randrange(SPAN)
        length = rng.choice([0, 0, 1, 1, 2, 5, 12]) if rng.random() < 0.99 else rng.randrange(SPAN // 3)
        value = 0 if rng.random() < 0.2 else rng.randrange(1, 9)
        apply(tree, model, (rng.choice(["store", "store", "store", "erase", "find"]), first, length, value))
        if step % (steps // 40) == 0:
            tree.check()
            assert list(tree) == model.entries
    tree.check()
    assert list(tree) == model.entries
    assert tree.height >= 3


@FANOUTS
@pytest.mark.parametrize("first_slot", [1, 5, 40, 200])
@pytest.mark.parametrize("slots", [1, 15, 16, 17, 100, 390])
def test_one_store_over_many_leaves(fanout: int, first_slot: int, slots: int) -> None:
    """A span that starts and ends at every kind of place: inside a leaf, at its ends, over subtrees."""
    for value in (0, 5):
        tree, model = MapleTree(fanout), RangeModel()
        fill(tree, model, (600, 2, "random"))
        first = 2 * first_slot
        last = first + 2 * slots
        tree.store(first, last, value)
        model.store(first, last, value)
        tree.check()
        assert list(tree) == model.entries


@FANOUTS
def test_cuts_everywhere(fanout: int) -> None:
    """The head, the tail and a middle part of a tree of three levels, cut off at many places.

    What is left of a leaf may then have its nearest neighbour under another parent, on either side.
    """
    tree, filled = MapleTree(fanout), RangeModel()
    fill(tree, filled, (500, 2, "random"))
    assert tree.height >= 3
    saved = tree.pool.words
    for number, key in enumerate(range(1, 1000, 7)):
        value = 5 if number % 4 < 2 else 0
        for first, last in ((key, END), (0, key), (key, key + 333)):
            tree.pool.words = saved.copy()
            model = RangeModel()
            model.entries = filled.entries
            tree.store(first, last, value)
            model.store(first, last, value)
            tree.check()
            assert list(tree) == model.entries


@FANOUTS
@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_erasing_every_entry_leaves_nothing(fanout: int, order: str) -> None:
    tree, model = MapleTree(fanout), RangeModel()
    fill(tree, model, (scaled(900, 400), 1, "random"))
    keys = [entry[0] for entry in model.entries]
    if order == "down":
        keys.reverse()
    elif order == "random":
        random.Random(3).shuffle(keys)
    for key in keys:
        assert tree.erase(key) == model.erase(key)
        tree.check()
    assert (len(tree), tree.height, tree.bytes) == (0, 0, 0)


def test_the_ends_of_the_key_space() -> None:
    tree = MapleTree()
    assert tree.find(0) is None
    assert tree.erase(END) is None
    tree.store(0, END, 3)
    assert list(tree) == [(0, END, 3)]
    tree.store(0, 0, 4)
    tree.store(END, END, 5)
    tree.check()
    assert list(tree) == [(0, 0, 4), (1, END - 1, 3), (END, END, 5)]
    assert tree.erase(END) == (END, END, 5)
    assert tree.find(END) is None
    assert tree.erase(5) == (1, END - 1, 3)
    assert list(tree) == [(0, 0, 4)]
    tree.store(0, END, 0)
    tree.check()
    assert tree.bytes == 0


def test_equal_neighbours_stay_apart_and_gaps_merge() -> None:
    tree = MapleTree()
    for key in (10, 11, 12):
        tree[key] = 6
    assert len(tree) == 3
    del tree[11]
    del tree[12]
    tree.check()  # two gaps in a row would fail here
    assert list(tree) == [(10, 10, 6)]


def test_a_store_trims_what_it_overlaps() -> None:
    tree = MapleTree()
    tree.store(100, 199, 1)
    tree.store(300, 399, 2)
    tree.store(150, 349, 3)
    assert list(tree) == [(100, 149, 1), (150, 349, 3), (350, 399, 2)]
    tree.store(200, 250, 0)
    assert list(tree) == [(100, 149, 1), (150, 199, 3), (251, 349, 3), (350, 399, 2)]
    assert tree.find(200, 250) is None
    assert tree.find(200, 251) == RangeEntry(251, 349, 3)
    with pytest.raises(KeyError):
        del tree[220]
    with pytest.raises(KeyError):
        tree[220]
    assert tree[199] == 3
    assert 220 not in tree
    del tree[199]
    assert 150 not in tree
    with pytest.raises(ValueError, match="ends before it starts"):
        tree.store(2, 1, 1)
    with pytest.raises(ValueError, match="not in 0"):
        tree.store(-1, 1, 1)


@FANOUTS
def test_visits_and_height(fanout: int) -> None:
    """Find and a store that fits enter one node a level; the height is logarithmic."""
    rng = random.Random(1)
    tree = MapleTree(fanout)
    entries = scaled(6000, 700)
    keys = rng.sample(range(1 << 40), entries)
    least = 7 if fanout == 16 else 5
    for number, key in enumerate(keys, 1):
        tree.store(key << 12, (key << 12) + 0xFFF, number)
        if number % 100 == 0:
            assert tree.height <= math.ceil(math.log(number) / math.log(least)) + 1
    for key in keys[:200]:
        before = tree.visited
        assert tree.find((key << 12) - 1 if key else 0) is not None
        assert tree.visited - before == tree.height
        before = tree.visited
        assert tree[(key << 12) + 5]
        assert tree.visited - before == tree.height
        before = tree.visited
        tree.store(key << 12, (key << 12) + 0xFFF, 1)
        assert tree.visited - before == tree.height


@FANOUTS
def test_visits_of_a_wide_erasure_are_the_nodes_it_frees(fanout: int) -> None:
    tree, model = MapleTree(fanout), RangeModel()
    fill(tree, model, (900, 1, "up"))
    before, freed = tree.visited, int(tree.pool.count[NODES_FREED])
    tree.store(1, model.entries[-2][0], 0)
    freed = int(tree.pool.count[NODES_FREED]) - freed
    assert freed <= tree.visited - before <= freed + 2 * layout.MAX_HEIGHT
    tree.check()


@FANOUTS
@pytest.mark.parametrize("step", [1, 2])
def test_visits_of_a_walk_are_a_descent_a_leaf(fanout: int, step: int) -> None:
    """Inside a leaf no node is entered: starting anew at each entry would enter ``height`` each."""
    tree, model = MapleTree(fanout), RangeModel()
    fill(tree, model, (900, step, "random"))
    leaves = sum(
        1
        for node, *_ in maple_nodes(tree.pool.words, tree._tree)
        if int(tree.pool.words[node]) & int(layout.LEAF)
    )
    for walk in (tree.entries, tree.entries_back):
        before = tree.visited
        assert sum(1 for _ in walk()) == len(model.entries)
        # Backwards a leaf that starts with a gap is not entered twice: its neighbour ends in an entry.
        assert leaves <= tree.visited - before <= leaves * tree.height
    assert leaves * tree.height < len(model.entries)


@FANOUTS
@pytest.mark.parametrize("keys", [5, 40, 400])
def test_erasing_the_whole_key_space_frees_every_node(fanout: int, keys: int) -> None:
    tree = MapleTree(fanout)
    empty = pool_used(tree.pool.words)
    for key in range(keys):
        tree.store(7 * key, 7 * key + 3, key + 1)
    tree.store(0, END, 0)
    assert (len(tree), tree.height, tree.bytes, list(tree)) == (0, 0, 0, [])
    assert pool_used(tree.pool.words) == empty


@FANOUTS
def test_looking_back_from_every_place_between_entries(fanout: int) -> None:
    tree, keys = MapleTree(fanout), [3 * number + 2 for number in range(60)]
    for key in random.Random(1).sample(keys, len(keys)):
        tree[key] = key
    for index in range(keys[-1] + 3):
        found = tree.find_back(index)
        assert (found.first if found else None) == max((key for key in keys if key <= index), default=None)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="16 or 10 slots, not 12"):
        MapleTree(12)
    with pytest.raises(MemoryError, match="no room for a tree"):
        MapleTree(16, Pool(POOL_HEADER_WORDS, limit=POOL_HEADER_WORDS))


def test_an_erasure_without_room_is_refused_and_names_the_range() -> None:
    """Merging leaves replaces nodes, so it asks for room first: a full pool refuses it."""
    tree = MapleTree(16, Pool(POOL_HEADER_WORDS, limit=POOL_HEADER_WORDS + 8 + 32 * 5))
    for key in range(20):
        tree[key] = 1
    words, count, head = tree.pool.words, tree.pool.count, tree._tree
    refused = 0
    for key in range(20):
        before = content(words)
        entry = maple_erase(words, count, head, U64(key))
        if not entry.value:
            assert tuple(map(int, entry)) == (key, key, 0)
            assert content(words) == before
            refused += 1
        tree.check()
    assert 0 < refused == len(tree)
    with pytest.raises(MemoryError, match="erasure"):
        tree.erase(next(iter(tree)).first)


def test_bytes_of_adjacent_entries() -> None:
    """Entries stored in ascending order fill their leaves to all slots but one, as in the kernel."""
    tree = MapleTree()
    entries = scaled(5000, 600)
    for key in range(entries):
        tree[key] = 1
    assert 16 <= tree.bytes / entries <= 20


def test_trees_share_a_pool() -> None:
    pool = Pool(POOL_HEADER_WORDS)
    trees = [MapleTree(16, pool), MapleTree(10, pool), MapleTree(16, pool)]
    models = [RangeModel() for _ in trees]
    rng = random.Random(9)
    for _ in range(scaled(1500, 300)):
        which = rng.randrange(3)
        apply(trees[which], models[which], ("store", rng.randrange(900), rng.randrange(9), rng.randrange(4)))
    trees[1].clear()
    models[1].entries = []
    in_use: set[int] = set()
    for tree, model in zip(trees, models, strict=True):
        tree.check()
        assert list(tree) == model.entries
        nodes = {node for node, *_ in maple_nodes(pool.words, tree._tree)}
        assert not in_use & nodes
        in_use |= nodes


def test_kernels_on_raw_arrays() -> None:
    words = Pool(POOL_HEADER_WORDS + MAPLE_RESERVE_WORDS).words
    count = np.zeros(COUNTERS, dtype=np.int64)
    tree = U64(maple_create(words, U64(16)))
    assert int(pool_room(words)) == MAPLE_RESERVE_WORDS - 8
    assert maple_store(words, count, tree, U64(5), U64(9), U64(2))
    entry = maple_find(words, count, tree, U64(0), U64(END))
    assert tuple(map(int, entry)) == (5, 9, 2)
    none = maple_find(words, count, tree, U64(0), U64(4))
    assert int(none.value) == 0
    assert int(none.first) > int(none.last)
    assert int(maple_entries(words, tree)) == int(maple_height(words, tree)) == 1
    assert int(maple_bytes(words, tree)) == 256
    assert int(maple_erase(words, count, tree, U64(7)).value) == 2
    maple_check(words, tree)


def test_check_names_the_node() -> None:
    """Damage of each kind is found; what a checker never finds it does not check."""
    tree, model = MapleTree(), RangeModel()
    fill(tree, model, (100, 2, "up"))
    root, leaf = (maple_nodes(tree.pool.words, tree._tree)[i][0] for i in (0, 1))
    words = tree.pool.words
    base = int(tree._tree)
    for word, value, message in [
        (leaf + 1, 1 << 40, f"node {leaf}: slot 0"),
        (leaf, 3 | int(layout.LEAF), f"node {leaf}: 3 slots"),
        (leaf, int(words[leaf]) | 1 << 20, f"node {leaf}: still chained"),
        (leaf, int(words[leaf]) & 0xFF, "outside the pool|reached twice|at depth"),
        (leaf + 16, 0, f"node {leaf}: second gap|miscounted"),
        (root + 17, leaf, f"node {leaf} is reached twice"),
        (root + 17, 3, "node 3 lies outside the pool"),
        (base + int(layout.T_ENTRIES), 5, "miscounted"),
        (base + int(layout.T_NODES), 5, "miscounted"),
        (base + int(layout.T_HEIGHT), 1, f"node {root}: leaf False at depth 0 of 1"),
        (base + int(layout.T_FANOUT), 12, "fan-out 12"),
    ]:
        kept = words[word]
        words[word] = U64(value)
        with pytest.raises(AssertionError, match=message):
            tree.check()
        words[word] = kept
        tree.check()
