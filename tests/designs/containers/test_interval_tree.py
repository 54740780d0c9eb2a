"""The interval tree: against a list, invariants after every step, and in visits."""

from __future__ import annotations

import math
import random

import pytest
from container_models import END, content, profile, scaled
from hypothesis import given
from hypothesis import strategies as st

from shadowmmu.compiled import U64
from shadowmmu.designs.containers import rbtree as rb
from shadowmmu.designs.containers.checks import rb_nodes
from shadowmmu.designs.containers.owners import Interval, IntervalTree
from shadowmmu.designs.containers.pool import POOL_HEADER_WORDS, Pool, pool_used

KEY = st.one_of(st.integers(0, 60), st.sampled_from([0, END, END - 1, 1 << 63]))
LENGTH = st.sampled_from([0, 0, 1, 4, 30, END])
OPERATION = st.tuples(st.sampled_from(["insert", "insert", "remove", "look"]), KEY, LENGTH)
Model = dict[int, tuple[int, int, int]]


def apply(tree: IntervalTree, model: Model, operation: tuple[str, int, int], number: int) -> None:
    """One operation on both; without room the model does nothing and the tree must not either."""
    kind, first, length = operation
    last = min(first + length, END)
    if kind == "insert":
        before = content(tree.pool.words)
        try:
            node = tree.insert(first, last, number)
        except MemoryError:
            assert content(tree.pool.words) == before
            return
        assert node not in model
        model[node] = (first, last, number)
    elif kind == "remove" and model:
        node = sorted(model)[first % len(model)]
        tree.remove(node)
        del model[node]
    else:
        found = list(tree.overlaps(first, last))
        assert [entry.first for entry in found] == sorted(entry.first for entry in found)
        expected = [Interval(*entry, node) for node, entry in model.items() if overlap(entry, first, last)]
        assert sorted(found) == sorted(expected)


def overlap(entry: tuple[int, int, int], first: int, last: int) -> bool:
    return entry[0] <= last and entry[1] >= first


@given(st.lists(OPERATION, max_size=60))
@profile(200, 100)
def test_agrees_with_a_list_of_intervals(operations: list[tuple[str, int, int]]) -> None:
    tree = IntervalTree(Pool(POOL_HEADER_WORDS))
    model: Model = {}
    for number, operation in enumerate(operations):
        apply(tree, model, operation, number)
        tree.check()
        assert len(tree) == len(model) == tree.bytes // 64
    apply(tree, model, ("look", 0, END), 0)
    tree.clear()
    tree.check()
    assert int(pool_used(tree.pool.words)) == 64


@given(st.integers(0, 12), st.lists(OPERATION, max_size=40))
@profile(60, 40)
def test_without_room_no_interval_changes(nodes: int, operations: list[tuple[str, int, int]]) -> None:
    tree = IntervalTree(Pool(POOL_HEADER_WORDS, limit=POOL_HEADER_WORDS + 8 + 8 * nodes))
    model: Model = {}
    for number, operation in enumerate(operations):
        apply(tree, model, operation, number)
        tree.check()
    assert len(model) <= nodes


def test_long_random_run_of_intervals() -> None:
    rng = random.Random(6)
    tree = IntervalTree()
    model: Model = {}
    steps = scaled(6000, 1500)
    for step in range(steps):
        kind = "insert" if rng.random() < 0.5 + 0.3 * math.sin(9 * step / steps) else "remove"
        length = rng.choice([0, 3, 50]) if rng.random() < 0.98 else 2000
        apply(tree, model, (kind, rng.randrange(3000), length), step)
        if step % 25 == 0:
            apply(tree, model, ("look", rng.randrange(3000), rng.choice([0, 40])), step)
        if step % (steps // 20) == 0:
            tree.check()
    tree.check()
    apply(tree, model, ("look", 0, END), 0)


def test_intervals_at_one_key_come_in_the_order_they_were_inserted() -> None:
    tree = IntervalTree()
    for value in range(40):
        tree.insert(5, 5 + (value * 7) % 11, value)
    assert [found.value for found in tree] == list(range(40))


def test_an_interval_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(ValueError, match="ends before it starts"):
        IntervalTree().insert(2, 1)


def test_a_node_that_is_not_in_the_tree_is_refused_and_nothing_changes() -> None:
    tree, other = IntervalTree(), IntervalTree()
    node = tree.insert(1, 2)
    other.insert(3, 4)
    stranger = other.insert(5, 6)
    for wrong in (0, 99, -1, stranger + 1000):
        with pytest.raises(KeyError):
            tree.remove(wrong)
    tree.remove(node)
    with pytest.raises(KeyError):
        tree.remove(node)
    other.clear()
    with pytest.raises(KeyError):
        other.remove(stranger)
    tree.check()
    other.check()
    assert (len(tree), len(other)) == (0, 0)


def test_an_interval_tree_without_room_is_refused() -> None:
    with pytest.raises(MemoryError, match="no room for a tree"):
        IntervalTree(Pool(POOL_HEADER_WORDS, limit=POOL_HEADER_WORDS))


def test_visits_of_interval_searches() -> None:
    """A search enters O(log n) nodes for the first hit and for each further one; a miss O(log n)."""
    rng = random.Random(4)
    tree = IntervalTree()
    entries = scaled(4000, 500)
    nodes = []
    for number, key in enumerate(rng.sample(range(1 << 30), entries)):
        before = tree.visited
        nodes.append(tree.insert(key << 20, (key << 20) + rng.randrange(1 << 21), number))
        assert tree.visited - before <= 3 * math.log2(number + 2)
    deepest = 2 * math.log2(entries + 1)
    for _ in range(200):
        first = rng.randrange(1 << 50)
        before = tree.visited
        hits = len(list(tree.overlaps(first, first + (1 << 42))))
        assert tree.visited - before <= (hits + 1) * 2 * deepest
    for node in nodes[:200]:
        before = tree.visited
        tree.remove(node)
        assert tree.visited - before <= 6 * deepest


def test_the_check_of_intervals_names_the_node() -> None:
    tree = IntervalTree()
    for key in range(20):
        tree.insert(10 * key, 10 * key + 25, 1)
    words = tree.pool.words
    node = rb_nodes(words, tree._tree)[7]
    for word, value, message in [
        (node + int(rb.N_LAST), 0, "ends before it starts|greatest end"),
        (node + int(rb.N_END), 3, "greatest end"),
        (node + int(rb.N_KEY), 5000, "out of order"),
    ]:
        kept = words[word]
        words[word] = U64(value)
        with pytest.raises(AssertionError, match=message):
            tree.check()
        words[word] = kept
        tree.check()
