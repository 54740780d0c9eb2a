"""The tables of ``docs/findings.md``, made from stored results; run as a program, puts them into the page.

    shadowmmu sweep --grid NAME --store STORE        (each grid whose tables are to be made again)
    python tests/lab/findings_page.py STORE [NAME...]

A table stands between ``<!-- grid: NAME -->`` and ``<!-- end -->``. A grid of which the store lacks
a point is left as it is, unless it is named. A test makes the small one again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
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


def lacking(name: str, rows: list[Row]) -> tuple[int, int]:
    """How many points of a grid are not stored, and how many it has."""
    wanted = {point.key(code_version()) for point in read_grid(name).points}
    return len(wanted - {row["key"] for row in rows}), len(wanted)


def renewed(text: str, rows: list[Row], partly: Sequence[str] = ()) -> str:
    """The page with the tables of the stored grids made again, those named also with gaps."""

    def block(match: re.Match[str]) -> str:
        missing, points = lacking(match[1], rows)
        if missing:
            sys.stderr.write(f"{match[1]}: {missing} of {points} points are not in the store\n")
        if missing and match[1] not in partly:
            return match[0]
        return f"<!-- grid: {match[1]} -->\n\n{tables_of(match[1], rows)}\n<!-- end -->"

    return BLOCK.sub(block, text)


if __name__ == "__main__":
    PATH.write_text(
        renewed(PATH.read_text(encoding="utf-8"), Store(Path(sys.argv[1])).rows(), sys.argv[2:]),
        encoding="utf-8",
    )
