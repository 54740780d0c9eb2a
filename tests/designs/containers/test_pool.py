"""The pool: nodes apart from each other, reuse, room, growth, and a check that notices damage."""

from __future__ import annotations

import numpy as np
import pytest
from container_models import content, profile
from hypothesis import given
from hypothesis import strategies as st

from shadowmmu.compiled import U64
from shadowmmu.designs.containers.pool import (
    POOL_HEADER_WORDS,
    SIZE_CLASSES,
    Pool,
    node_alloc,
    node_free,
    pool_check,
    pool_free_nodes,
    pool_has,
    pool_high_water,
    pool_live,
    pool_reset,
    pool_room,
    pool_used,
)

STEPS = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 1000)), max_size=60)


@given(STEPS)
@profile(60, 40)
def test_live_nodes_never_overlap(steps: list[tuple[int, bool, int]]) -> None:
    pool = Pool(600)
    live: list[tuple[int, int]] = []
    for size_class, take, pick in steps:
        if take or not live:
            pool.reserve(1 << size_class)
            node = int(node_alloc(pool.words, U64(size_class)))
            assert node
            pool.words[node : node + (1 << size_class)] = U64(0xAA)
            live.append((node, size_class))
        else:
            node, size_class = live.pop(pick % len(live))
            node_free(pool.words, U64(size_class), U64(node))
        pool.check()
        spans = sorted((node, node + (1 << size_class)) for node, size_class in live)
        assert all(spans[i][1] <= spans[i + 1][0] for i in range(len(spans) - 1))
        assert int(pool_used(pool.words)) == 8 * sum(1 << size_class for _, size_class in live)
        for size_class in range(SIZE_CLASSES):
            expected = sum(c == size_class for _, c in live)
            assert int(pool_live(pool.words, U64(size_class))) == expected


def test_no_room_is_zero_and_changes_nothing() -> None:
    words = np.zeros(POOL_HEADER_WORDS + 40, dtype=np.uint64)
    pool_reset(words)
    five = U64(5)
    first = int(node_alloc(words, five))
    assert first == POOL_HEADER_WORDS
    assert int(pool_room(words)) == 8
    before = content(words)
    assert int(node_alloc(words, five)) == 0
    assert content(words) == before
    assert not pool_has(words, five, U64(1))
    assert pool_has(words, U64(3), U64(1))
    node_free(words, five, U64(first))
    assert pool_has(words, five, U64(1))
    assert int(node_alloc(words, five)) == first, "last in, first out"
    assert int(pool_high_water(words)) == 8 * (POOL_HEADER_WORDS + 32)
    pool_check(words)


def test_indices_survive_growth() -> None:
    pool = Pool(POOL_HEADER_WORDS + 8)
    node = int(node_alloc(pool.words, U64(3)))
    pool.words[node + 1] = U64(77)
    pool.reserve(5000)
    assert len(pool.words) - POOL_HEADER_WORDS - 8 >= 5000
    assert int(pool.words[node + 1]) == 77
    pool.check()


def test_growth_stops_at_the_limit() -> None:
    pool = Pool(400, limit=500)
    pool.reserve(10_000)
    assert len(pool.words) == 500


def test_check_notices_a_node_freed_twice() -> None:
    pool = Pool()
    node = node_alloc(pool.words, U64(3))
    node_alloc(pool.words, U64(3))
    node_free(pool.words, U64(3), U64(node))
    node_free(pool.words, U64(3), U64(node))
    with pytest.raises(AssertionError, match=f"node {int(node)} of class 3 is on its list twice"):
        pool.check()


def test_check_notices_a_node_freed_under_two_sizes() -> None:
    pool = Pool()
    node = node_alloc(pool.words, U64(5))
    other = node_alloc(pool.words, U64(3))
    node_free(pool.words, U64(5), U64(node))
    node_free(pool.words, U64(3), U64(int(node) + 8))
    assert other
    with pytest.raises(AssertionError, match=f"free nodes {int(node)} and {int(node) + 8} overlap"):
        pool.check()


def test_check_notices_a_wild_free_list() -> None:
    pool = Pool()
    node = node_alloc(pool.words, U64(3))
    node_free(pool.words, U64(3), U64(node))
    pool.words[int(node)] = U64(7)
    with pytest.raises(AssertionError, match="free node 7 of class 3 lies outside the pool"):
        pool_free_nodes(pool.words)
