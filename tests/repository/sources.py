"""What the repository's own tests read: the modules of the package, parsed once."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "shadowmmu"

ROOMS = (
    "arch",
    "machine",
    "pgtable",
    "designs",
    "host",
    "kvm",
    "guest",
    "events",
    "engine",
    "formats",
    "oracles",
    "verify",
    "lab",
    "report",
    "cli",
)
GROUND = ("compiled", "errors")
"""Modules under all rooms."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def modules() -> dict[Path, ast.Module]:
    """Every module of the package, by its path."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def shown(path: Path) -> str:
    """The path as a reader of the repository knows it."""
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.Module) -> list[Function]:
    """All functions of a module, nested ones too."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def room_of(path: Path) -> str:
    """The room of a module; ``""`` for the package itself."""
    first = path.relative_to(PACKAGE).parts[0]
    if first.endswith("_cli.py"):  # a verb in a module of its own
        return "cli"
    return {"__init__.py": "", "__main__.py": "cli"}.get(first, first.removesuffix(".py"))


@cache
def text_files() -> dict[Path, str]:
    """Every text file that is, or would be, tracked."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    texts = {}
    for name in listed.decode().split("\0"):
        path = ROOT / name
        if not name or not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" not in content:
            texts[path] = content.decode("utf-8")
    return texts
