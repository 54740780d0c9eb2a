"""Imports go up the table of rooms only, wherever in a module they stand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from sources import GROUND, PACKAGE, ROOMS, ROOT, modules, room_of, shown


def imported_rooms(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and first name below ``shadowmmu`` of every import of the package; ``""`` for the package."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] != "shadowmmu":
                continue
            below = parts[1] if len(parts) > 1 else ""
            yield node.lineno, below if below in (*ROOMS, *GROUND) else ""


def misplaced(room: str, tree: ast.Module) -> list[tuple[int, str]]:
    """The imports that a module of this room may not make."""
    if room in GROUND or room == "":
        allowed = {"", *GROUND}
    else:
        allowed = {"", *GROUND, *ROOMS[: ROOMS.index(room) + 1]}
    return [(line, name) for line, name in imported_rooms(tree) if name not in allowed]


def test_every_module_is_in_a_room_of_the_table() -> None:
    homeless = [shown(path) for path in modules() if room_of(path) not in ("", *GROUND, *ROOMS)]
    assert homeless == []


def test_imports_only_from_rooms_above() -> None:
    found = [
        f"{shown(path)}:{line}: imports {name or 'the package'}"
        for path, tree in modules().items()
        for line, name in misplaced(room_of(path), tree)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("arch", "from shadowmmu.machine.state import State"),
        ("kvm", "import shadowmmu.engine.step"),
        ("kvm", "from shadowmmu import guest"),
        ("designs", "def f():\n    from shadowmmu.kvm import pool"),
        ("compiled", "from shadowmmu.arch import fields"),
    ],
)
def test_the_check_sees_an_import_of_a_room_below(room: str, source: str) -> None:
    assert misplaced(room, ast.parse(source))


def test_the_check_allows_rooms_above_and_the_ground() -> None:
    source = "from shadowmmu import __version__, arch\nimport shadowmmu.errors\nimport shadowmmu"
    assert misplaced("machine", ast.parse(source)) == []


def test_every_room_has_a_docstring_paragraph() -> None:
    entries = [PACKAGE / room / "__init__.py" for room in ROOMS if (PACKAGE / room).is_dir()]
    for path in (*entries, PACKAGE / "cli.py"):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        summary, _, paragraph = text.partition("\n\n")
        assert summary, shown(path)
        assert len(paragraph.split()) >= 12, f"{shown(path)}: what it mirrors, and what it must not know?"


def test_documented_table_has_the_same_order() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("## The rooms")[1].split("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == ROOMS
