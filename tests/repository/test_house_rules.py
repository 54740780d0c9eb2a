"""Sizes, docstrings and names that the house rules of CONTRIBUTING.md ask for."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from sources import ROOT, functions, modules, shown, text_files

MODULE_LINES = 600
FUNCTION_LINES = 60


def public_without_docstring(tree: ast.Module) -> list[str]:
    """Public classes, their public methods, and public functions of a module that say nothing."""
    found = [] if ast.get_docstring(tree) else ["module"]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    surface = [(node.name, node) for node in tree.body if isinstance(node, kinds)]
    for name, node in list(surface):
        if isinstance(node, ast.ClassDef) and not name.startswith("_"):
            surface += [(f"{name}.{inner.name}", inner) for inner in node.body if isinstance(inner, kinds)]
    for name, node in surface:
        if not node.name.startswith("_") and not ast.get_docstring(node):
            found.append(name)
    return found


def unplaced_parameters(tree: ast.Module) -> list[str]:
    """Parameters that are an address and do not say in which space."""
    nameless = {"addr", "address", "addresses", "addrs"}
    found = []
    for function in functions(tree):
        spec = function.args
        names = [argument.arg for argument in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
        found += [f"{function.name}({name})" for name in names if name in nameless]
    return found


def broken(rule: Callable[[Path, ast.Module], list[str]]) -> list[str]:
    """What a rule finds in all modules, each with its place."""
    return [f"{shown(path)}: {found}" for path, tree in modules().items() for found in rule(path, tree)]


def too_long(path: Path, tree: ast.Module) -> list[str]:
    """The module itself and its functions, where they are longer than the house allows."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    found = [f"{lines} lines"] if lines > MODULE_LINES else []
    for node in functions(tree):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES:
            found.append(f"{node.name}: {length} lines")
    return found


def test_modules_and_functions_are_not_too_long() -> None:
    assert broken(too_long) == []


def test_public_names_have_docstrings() -> None:
    assert broken(lambda path, tree: public_without_docstring(tree)) == []


def test_parameters_say_which_space_an_address_is_in() -> None:
    assert broken(lambda path, tree: unplaced_parameters(tree)) == []


def test_no_module_is_a_drawer_for_everything() -> None:
    assert {path.stem for path in modules()} & {"utils", "util", "helpers", "misc", "common"} == set()


def test_the_checks_see_what_they_look_for() -> None:
    tree = ast.parse(
        '"""m"""\nclass C:\n    """c"""\n    def f(self, *, address): ...\ndef g(addr, /): ...\n'
    )
    assert public_without_docstring(tree) == ["g", "C.f"]
    assert sorted(unplaced_parameters(tree)) == ["f(address)", "g(addr)"]


def _forbidden() -> dict[str, re.Pattern[str]]:
    # Put together from pieces, so that this file passes its own test.
    hosts = ("pypi" + ".org", "python" + "hosted", "npm" + "js", "crates" + ".io", "proxy.golang" + ".org")
    registries = "|".join(re.escape(host) for host in (*hosts, "index" + "-url", "registry" + ".yarn"))
    folders = "home|Users|work|root|tmp/exp|mnt|data"
    return {
        "a host of a package registry": re.compile(registries),
        # A path of one machine; not a URL's path, a regular expression's, or a relative one.
        "an absolute path of one machine": re.compile(rf"(?<![\w.:/<>*~$}}\])@-])/(?:{folders})/[\w.]"),
    }


@pytest.mark.parametrize("what", _forbidden())
def test_no_text_file_names(what: str) -> None:
    found = [
        f"{shown(path)}:{number}: {line.strip()[:100]}"
        for path, text in text_files().items()
        for number, line in enumerate(text.splitlines(), 1)
        if _forbidden()[what].search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a host of a package registry", "pip install --index" + "-url https://example.org/x"),
        ("an absolute path of one machine", "see " + "/home" + "/someone/notes"),
        ("an absolute path of one machine", '"' + "/work" + '/shared/x"'),
    ],
)
def test_the_forbidden_patterns_match(what: str, line: str) -> None:
    assert _forbidden()[what].search(line)


@pytest.mark.parametrize(
    "line", ["https://example.org/home/x", "src/data/kernel_runs", "a /sys/kernel/debug/kvm path"]
)
def test_the_forbidden_patterns_spare_what_is_fine(line: str) -> None:
    assert not any(pattern.search(line) for pattern in _forbidden().values())


@pytest.mark.parametrize(
    "name", ["LICENSE", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", ".ci/run", "Makefile"]
)
def test_the_repository_has(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8").strip()
