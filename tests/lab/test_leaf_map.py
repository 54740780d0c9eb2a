"""Leaves by address, against a plain list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmmu.lab.leaf_map import LEAF_SIZES, Held, LeafMap

SPACE = 4 << 30
PAGE = 4096

LEAVES = st.tuples(st.integers(0, SPACE // PAGE - 1), st.sampled_from(LEAF_SIZES)).map(
    lambda drawn: (drawn[0] * PAGE & -drawn[1], drawn[1])
)
RANGES = st.tuples(st.integers(0, SPACE // PAGE), st.integers(1, 4096)).map(
    lambda r: (r[0] * PAGE, r[1] * PAGE)
)


@given(
    st.lists(st.one_of(st.tuples(st.just("put"), LEAVES), st.tuples(st.just("take"), RANGES)), max_size=40)
)
def test_it_holds_what_a_list_holds(steps: list[tuple[str, tuple[int, int]]]) -> None:
    leaves: LeafMap[int] = LeafMap()
    plain: list[Held[int]] = []
    for number, (step, (start, size)) in enumerate(steps):
        meets = [one for one in plain if one.base < start + size and one.base + one.size > start]
        plain = [one for one in plain if one not in meets]
        if step == "put":
            assert sorted(leaves.put(start, size, number)) == sorted(meets)
            plain.append(Held(start, size, number))
        else:
            assert sorted(leaves.over(start, start + size)) == sorted(meets)
            assert sorted(leaves.take(start, start + size)) == sorted(meets)
        assert len(leaves) == len(plain)
    for one in plain:
        assert leaves.find(one.base) == leaves.find(one.base + one.size - 1) == one


def test_a_size_that_no_leaf_has_is_refused() -> None:
    with pytest.raises(KeyError):
        LeafMap[int]().put(0, 8192, 0)
