"""The page docs/tlb.md: its table is the declaration's, its example runs."""

from __future__ import annotations

import doctest
from pathlib import Path

from shadowmmu.arch.tlbi_operations import scope_table

PAGE = Path(__file__).parents[2] / "docs" / "tlb.md"


def test_the_table_of_the_page_is_the_declaration() -> None:
    assert f"\n{scope_table()}\n" in PAGE.read_text(encoding="utf-8")


def test_the_example_of_the_page_runs() -> None:
    outcome = doctest.testfile(str(PAGE), module_relative=False)
    assert outcome.attempted > 10
    assert outcome.failed == 0
