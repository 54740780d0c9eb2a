"""The red-black tree: against a dict, invariants after every step, visits, and nodes that stay put."""

from __future__ import annotations

import bisect
import math
import random

import pytest
from container_models import END, content, profile, scaled
from hypothesis import given
from hypothesis import strategies as st

from shadowmmu.compiled import U64
from shadowmmu.designs.containers import rbtree as rb
from shadowmmu.designs.containers.checks import rb_nodes
from shadowmmu.designs.containers.owners import Mapping, RedBlackTree
from shadowmmu.designs.containers.pool import POOL_HEADER_WORDS, Pool, pool_used
from shadowmmu.machine.counters import NODES_ALLOCATED, NODES_FREED

KEY = st.one_of(st.integers(0, 60), st.sampled_from([0, END, END - 1, 1 << 63]))
OPERATION = st.tuples(st.sampled_from(["insert", "insert", "erase", "bound"]), KEY, st.integers(0, END))
OPERATIONS = st.lists(OPERATION, max_size=60)

Model = dict[int, tuple[int, int]]


def apply(tree: RedBlackTree, model: Model, operation: tuple[str, int, int]) -> None:
    """One operation on both; without room the model does nothing and the tree must not either."""
    kind, key, value = operation
    if kind == "insert":
        before = content(tree.pool.words)
        try:
            assert tree.insert(key, value, 4096) == (key not in model)
            model.setdefault(key, (value, 4096))
        except MemoryError:
            assert key not in model
            assert content(tree.pool.words) == before
    elif kind == "erase":
        assert (key in tree) == (key in model)
        if key in model:
            del tree[key]
            del model[key]
        else:
            with pytest.raises(KeyError):
                del tree[key]
    else:
        keys = sorted(model)
        at = bisect.bisect_left(keys, key)
        bound = tree.lower_bound(key)
        assert (bound.key if bound else None) == (keys[at] if at < len(keys) else None)


def test_no_key_and_no_room_are_refused() -> None:
    with pytest.raises(KeyError):
        RedBlackTree()[5]
    with pytest.raises(MemoryError, match="no room for a tree"):
        RedBlackTree(Pool(POOL_HEADER_WORDS, limit=POOL_HEADER_WORDS))


def agree(tree: RedBlackTree, model: Model) -> None:
    """Same mappings in the same order, and every invariant."""
    tree.check()
    expected = [Mapping(key, *model[key]) for key in sorted(model)]
    assert list(tree) == expected
    assert len(tree) == len(model)
    assert tree.first() == (expected[0] if expected else None)
    assert tree.last() == (expected[-1] if expected else None)


@given(OPERATIONS)
@profile(200, 120)
def test_agrees_with_a_dict(operations: list[tuple[str, int, int]]) -> None:
    tree = RedBlackTree(Pool(POOL_HEADER_WORDS))
    model: Model = {}
    for operation in operations:
        apply(tree, model, operation)
        agree(tree, model)
    count = tree.pool.count
    assert int(count[NODES_ALLOCATED] - count[NODES_FREED]) == len(model) == tree.bytes // 64
    tree.clear()
    agree(tree, {})
    assert int(pool_used(tree.pool.words)) == 64


@given(st.integers(0, 12), OPERATIONS)
@profile(80, 60)
def test_without_room_nothing_changes(nodes: int, operations: list[tuple[str, int, int]]) -> None:
    tree = RedBlackTree(Pool(POOL_HEADER_WORDS, limit=POOL_HEADER_WORDS + 8 + 8 * nodes))
    model: Model = {}
    for operation in operations:
        apply(tree, model, operation)
        agree(tree, model)
    assert len(model) <= nodes


def test_long_random_run() -> None:
    rng = random.Random(5)
    tree = RedBlackTree()
    model: Model = {}
    steps = 20_000
    for step in range(steps):
        # The mix drifts, so the tree grows for a while and shrinks for a while.
        kind = "insert" if rng.random() < 0.5 + 0.3 * math.sin(12 * step / steps) else "erase"
        apply(tree, model, (kind, rng.randrange(3000), step))
        if step % (steps // 20) == 0:
            agree(tree, model)
    agree(tree, model)


@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_erasing_every_node(order: str) -> None:
    tree = RedBlackTree()
    model: Model = {}
    keys = list(range(scaled(300, 80)))
    for key in keys:
        apply(tree, model, ("insert", key, key))
        tree.check()
    if order == "down":
        keys.reverse()
    elif order == "random":
        random.Random(2).shuffle(keys)
    for key in keys:
        apply(tree, model, ("erase", key, 0))
        tree.check()
    assert len(tree) == 0


def test_nodes_stay_where_they_are() -> None:
    """A design may keep node indices: erasing one node moves no other."""
    rng = random.Random(8)
    tree = RedBlackTree()
    for key in rng.sample(range(1000), 200):
        tree.insert(key, 1, 1)
    words, count = tree.pool.words, tree.pool.count
    where = {int(words[node + int(rb.N_KEY)]): node for node in rb_nodes(words, tree._tree)}
    for key in rng.sample(sorted(where), 150):
        rb.rb_erase(words, count, tree._tree, U64(where.pop(key)))
        assert all(int(words[node + int(rb.N_KEY)]) == key for key, node in where.items())
        tree.check()


def test_raw_outcomes() -> None:
    pool = Pool(POOL_HEADER_WORDS + 16)
    tree = U64(rb.rb_create(pool.words))
    one, two = U64(1), U64(2)
    assert rb.rb_find(pool.words, pool.count, tree, one) == 0
    assert rb.rb_first(pool.words, pool.count, tree) == 0
    assert rb.rb_insert(pool.words, pool.count, tree, one, two, two) == rb.INSERTED
    assert rb.rb_insert(pool.words, pool.count, tree, one, one, one) == rb.EXISTS
    assert rb.rb_insert(pool.words, pool.count, tree, two, one, one) == rb.NO_MEMORY
    node = U64(rb.rb_find(pool.words, pool.count, tree, one))
    assert int(pool.words[node + rb.N_VALUE]) == int(pool.words[node + rb.N_SIZE]) == 2
    assert rb.rb_next(pool.words, pool.count, node) == 0


def test_visits() -> None:
    """A search enters at most 2 log2(n + 1) nodes, and a walk through all of them O(1) each."""
    rng = random.Random(4)
    tree = RedBlackTree()
    entries = scaled(4000, 500)
    keys = rng.sample(range(1 << 50), entries)
    for number, key in enumerate(keys):
        before = tree.visited
        tree.insert(key, 0, 1)
        # Descent, and at most one uncle for every two levels.
        assert tree.visited - before <= 3 * math.log2(number + 2)
    deepest = 2 * math.log2(entries + 1)
    for key in keys[:300]:
        before = tree.visited
        assert key in tree
        assert 0 < tree.visited - before <= deepest
    before = tree.visited
    assert sum(1 for _ in tree) == entries
    assert tree.visited - before <= 2 * entries
    for key in keys[:300]:
        node = tree._find(key)
        before = tree.visited
        rb.rb_erase(tree.pool.words, tree.pool.count, tree._tree, node)
        assert tree.visited - before <= 5 * deepest


def test_check_names_the_node() -> None:
    tree = RedBlackTree()
    for key in range(20):
        tree.insert(10 * key, 0, 1)
    words, base = tree.pool.words, int(tree._tree)
    root = int(words[base])
    child = int(words[root + int(rb.N_LEFT)])
    for word, value, message in [
        (child + int(rb.N_KEY), 5000, "key out of order"),
        (child, int(words[child]) ^ 1, f"node {child}|black height"),
        (child, int(words[child]) ^ 64, f"node {child}: parent"),
        (root, int(words[root]) & ~1, f"node {root}: red below red, or a red root"),
        (root + int(rb.N_RIGHT), child, "is reached twice"),
        (root + int(rb.N_RIGHT), 9, "node 9 lies outside the pool"),
        (root + int(rb.N_RIGHT), 0, "counted"),
        (base + int(rb.T_ENTRIES), 3, "counted"),
    ]:
        kept = words[word]
        words[word] = U64(value)
        with pytest.raises(AssertionError, match=message):
            tree.check()
        words[word] = kept
        tree.check()
