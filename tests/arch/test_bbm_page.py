"""The page docs/break-before-make.md: its table is the declaration, its example runs; docstrings too."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from shadowmmu.arch import bbm_cleaning, bbm_rules

PAGE = Path(__file__).parents[2] / "docs" / "break-before-make.md"


def test_the_rules_on_the_page_are_those_of_the_checker() -> None:
    assert bbm_rules.rules_table() in PAGE.read_text(encoding="utf-8")


def test_the_example_on_the_page_runs() -> None:
    outcome = doctest.testfile(str(PAGE), module_relative=False)
    assert outcome.attempted > 10
    assert outcome.failed == 0


@pytest.mark.parametrize("module", [bbm_rules, bbm_cleaning])
def test_the_examples_of_break_before_make_run(module: object) -> None:
    outcome = doctest.testmod(module)  # type: ignore[arg-type]
    assert outcome.attempted > 0
    assert outcome.failed == 0
