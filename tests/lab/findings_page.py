"""The tables of ``docs/findings.md``, made from stored results; run as a program, puts them into the page.

    shadowmmu sweep --grid NAME --store STORE        (each grid that the page names)
    python tests/lab/findings_page.py STORE

A table stands between ``<!-- grid: NAME -->`` and ``<!-- end -->``. A test makes the small one again.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from shadowmmu.lab.grid import read_grid
from shadowmmu.lab.point import Row, code_version
from shadowmmu.lab.store import Store
from shadowmmu.lab.sweep_metrics import pivot
from shadowmmu.report.sweep_table import markdown

PATH = Path(__file__).parents[2] / "docs" / "findings.md"
BLOCK = re.compile(r"<!-- grid: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


def tables_of(name: str, rows: list[Row]) -> str:
    """The tables of a grid as the page has them."""
    grid = read_grid(name)
    keys = {point.key(code_version()) for point in grid.points}
    here = [row for row in rows if row["key"] in keys]
    return "\n\n".join("\n".join(markdown(pivot(here, spec))) for spec in grid.tables) + "\n"


def blocks(text: str) -> dict[str, str]:
    """The tables that stand in the page, by grid."""
    return {match[1]: match[2].strip() + "\n" for match in BLOCK.finditer(text)}


def renewed(text: str, rows: list[Row]) -> str:
    """The page with its tables made again."""

    def block(match: re.Match[str]) -> str:
        return f"<!-- grid: {match[1]} -->\n\n{tables_of(match[1], rows)}\n<!-- end -->"

    return BLOCK.sub(block, text)


if __name__ == "__main__":
    PATH.write_text(
        renewed(PATH.read_text(encoding="utf-8"), Store(Path(sys.argv[1])).rows()), encoding="utf-8"
    )
