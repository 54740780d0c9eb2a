"""``docs/findings.md``: its small tables are made again, the others are whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from findings_page import PATH, blocks, tables_of

from shadowmmu.compiled import INTERPRETED
from shadowmmu.lab.grid import bundled_grids, read_grid
from shadowmmu.lab.store import Store
from shadowmmu.lab.sweep import run_sweep


@pytest.mark.skipif(INTERPRETED, reason="the figures are the same in both modes; once is enough")
def test_the_small_tables_are_what_the_model_says(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="stores need the extra `lab`")
    pytest.importorskip("duckdb", reason="stores need the extra `lab`")
    store = Store(tmp_path)
    run_sweep(read_grid("small").points, store)
    assert blocks(PATH.read_text(encoding="utf-8"))["small"] == tables_of("small", store.rows())


def test_every_bundled_grid_has_its_tables_on_the_page() -> None:
    found = blocks(PATH.read_text(encoding="utf-8"))
    assert sorted(found) == bundled_grids()
    for name, text in found.items():
        for spec in read_grid(name).tables:
            assert f"**{spec.title}**" in text
