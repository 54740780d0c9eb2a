"""The page radix on its own: against a set, invariants after every step, and in visits."""

from __future__ import annotations

import random

import pytest
from container_models import profile
from hypothesis import given
from hypothesis import strategies as st

from shadowmmu.designs.containers.radix import PageRadix

STEP = st.tuples(
    st.sampled_from(["add", "add", "remove", "look"]),
    st.one_of(st.integers(0, 600), st.sampled_from([0, (1 << 28) - 1, 1 << 27])),
    st.integers(1, 3),
)


@given(st.integers(0, 90), st.lists(STEP, max_size=30))
@profile(60, 40)
def test_agrees_with_a_set(before: int, steps: list[tuple[str, int, int]]) -> None:
    """Several numbers under one page are items of a small leaf, and chains of a full one."""
    radix, model = PageRadix(), set()
    for page in range(before):
        assert radix.add(page, 9)
        model.add((page, 9))
    for kind, page, number in steps:
        place = (page, number)
        if kind == "add":
            assert radix.add(*place) == (place not in model)
            model.add(place)
        elif kind == "remove":
            assert radix.remove(*place) == (place in model)
            model.discard(place)
        else:
            assert (place in radix) == (place in model)
        radix.check()
        assert list(radix) == sorted(model)
        assert len(radix) == len(model)


@pytest.mark.parametrize(("bits", "levels"), [(31, 2), (40, 3), (48, 4)])
def test_visits_of_a_page_are_a_node_a_level_and_its_leaf(bits: int, levels: int) -> None:
    radix = PageRadix(bits)
    pages = random.Random(bits).sample(range(1 << 12), 600)
    for page in pages:
        before = radix.visited
        assert radix.add(page, page + 1)
        # Looking first: a node a level above the leaf, and up to 64 words of a small one; then again.
        assert radix.visited - before <= 2 * (levels - 1) + 8
    radix.check()


def test_a_page_radix_grows_under_what_it_holds() -> None:
    radix, pages = PageRadix(), [number << 18 for number in range(60)]
    for page in pages:
        assert radix.add(page, 1 + page)
    assert list(radix) == [(page, 1 + page) for page in pages]
    radix.check()


def test_what_a_page_radix_refuses() -> None:
    with pytest.raises(ValueError, match="31 to 48 bits"):
        PageRadix(30)
    with pytest.raises(ValueError, match="not below"):
        PageRadix(31).add(1 << 19, 1)
    with pytest.raises(ValueError, match="not in 1"):
        PageRadix().add(1, 0)
