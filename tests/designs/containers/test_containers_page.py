"""The examples of ``docs/containers.md`` and of the owners' docstrings are true."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from shadowmmu.designs.containers import owners, pool, radix

PAGE = Path(__file__).parents[3] / "docs" / "containers.md"


def test_the_examples_of_the_containers_page_are_true() -> None:
    outcome = doctest.testfile(str(PAGE), module_relative=False)
    assert outcome.failed == 0
    assert outcome.attempted >= 30


@pytest.mark.parametrize("module", [owners, pool, radix])
def test_the_examples_of_the_owners_are_true(module: object) -> None:
    outcome = doctest.testmod(module)  # type: ignore[arg-type]
    assert outcome.failed == 0
    assert outcome.attempted >= 3
