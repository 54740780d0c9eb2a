"""Reading a design of the user's own from a Python file: checked, compiled, and put in the catalogue.

The file has the functions of ``designs.own.CALLS``, each marked ``@kernel``, and may have the words of
``WORDS`` and a plain function ``check(state)``. ``shadowmmu designs --template`` prints one that works.
Whatever is wrong is an InputError that says where, what was read and what was expected.
"""

from __future__ import annotations

import ast
import ctypes
import hashlib
import importlib.util
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from shadowmmu.compiled import INTERPRETED, KEPT_NAME, OWN_DESIGNS, compile_alone, kept_copy
from shadowmmu.designs import own
from shadowmmu.designs.interface import CATALOGUE, OWN, Design
from shadowmmu.designs.own import CALLS, TABLES, WANTS_OUTPUTS, Call
from shadowmmu.errors import InputError

WORDS: Final[dict[str, type]] = {
    "NAME": str,
    "ORIGIN": str,
    "IDEA": str,
    "CLAIMS_SAFETY": bool,
    "USES_SIDE": bool,
    "WANTS_OUTPUTS": bool,
}
"""What a file may say of its design, at top level: how it is called, where it is from, what it asks for."""

MODULES: Final[dict[str, ModuleType]] = {}
"""The modules of the designs read so far, by name of the design."""
_READ: Final[dict[tuple[str, str], str]] = {}
"""Names by path and content."""
_KEPT: Final[list[Any]] = []
"""Compiled functions and tables: they must outlive every machine that has their address."""


def named_design(name: str) -> str:
    """The name in the catalogue of a design given by name or as a Python file.

    Raises InputError for a name that is not there, or a file that is no design.
    """
    if name in CATALOGUE:
        return name
    if name.endswith(".py"):
        return read_design(Path(name))
    raise InputError(f"read design '{name}', expected a Python file or one of {', '.join(CATALOGUE)}")


def read_design(path: Path) -> str:
    """Read, check and compile the design of ``path``; its name in the catalogue. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"read '{path}', expected a design in Python: {error}") from None
    if not OWN_DESIGNS:  # only compiled
        raise InputError(
            f"read '{path}', expected SHADOWMMU_OWN_DESIGNS=1 in the environment of this process"
        )
    key = (str(path.resolve()), text)
    if key not in _READ:
        tree = _parsed(path, text)
        _check_functions(path, tree)
        module = _executed(path, text)
        words = _words(path, tree, module)
        name = str(words.get("NAME", path.stem))
        if name in CATALOGUE and not (name in MODULES and MODULES[name].__file__ == str(path)):
            line = _lines_of_words(tree).get("NAME", 1)
            raise _problem(path, line, f"the name '{name}'", "one that no other design has (NAME = ...)")
        number = _table(path, tree, module, bool(words.get("WANTS_OUTPUTS", False)))
        MODULES[name] = module
        CATALOGUE[name] = Design(
            number,
            name,
            str(words.get("ORIGIN", path.name)),
            str(words.get("IDEA", (ast.get_docstring(tree) or "").partition("\n")[0])),
            claims_safety=bool(words.get("CLAIMS_SAFETY", True)),
            uses_side=bool(words.get("USES_SIDE", False)),
        )
        _READ[key] = name
    return _READ[key]


def forget_designs() -> None:
    """Take every design that came from a file out of the catalogue again."""
    for name in MODULES:
        del CATALOGUE[name]
    MODULES.clear()
    _READ.clear()


def _problem(path: Path, line: int, read: str, expected: str) -> InputError:
    return InputError(f"{path}:{line}: read {read}, expected {expected}")


def _parsed(path: Path, text: str) -> ast.Module:
    try:
        return ast.parse(text, str(path))
    except SyntaxError as error:
        read = f"'{(error.text or '').strip()}' ({error.msg})"
        raise _problem(path, error.lineno or 1, read, "Python") from None


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def _check_functions(path: Path, tree: ast.Module) -> None:
    """Every function that a design must have is there, is a kernel, and takes what it will be given."""
    functions = _functions(tree)
    for call in CALLS:
        node = functions.get(call.name)
        if node is None:
            if call.default is None:
                last = len(path.read_text(encoding="utf-8").splitlines())
                raise _problem(path, last, f"no function '{call.name}'", f"'@kernel {call.signature}'")
            continue
        _check_function(path, node, call)


def _check_function(path: Path, node: ast.FunctionDef, call: Call) -> None:
    given = node.args
    names = tuple(argument.arg for argument in (*given.posonlyargs, *given.args))
    plain = not (given.vararg or given.kwarg or given.kwonlyargs or given.defaults)
    if not plain or names != ("s", *call.parameters):
        raise _problem(path, node.lineno, f"'def {node.name}({ast.unparse(given)})'", f"'{call.signature}'")
    marks = {ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list}
    if "kernel" not in marks:
        raise _problem(
            path,
            node.lineno,
            f"a plain function '{node.name}'",
            "'@kernel' in front of it (shadowmmu.compiled)",
        )


def _line_in(files: tuple[str, ...], error: BaseException) -> int:
    """The last line of one of ``files`` on the way to an exception."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return (lines[-1] if lines else None) or 1


def _executed(path: Path, text: str) -> ModuleType:
    name = "shadowmmu_own_" + hashlib.sha256(f"{path.resolve()}\0{text}".encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    copy = path
    try:
        copy = kept_copy(path, text)
        exec(compile(text, str(copy), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        read = f"{type(error).__name__}: {error}"
        raise _problem(
            path, _line_in((str(path), str(copy)), error), read, "a module that can be imported"
        ) from None
    return module


def _lines_of_words(tree: ast.Module) -> dict[str, int]:
    """Where each name is assigned at top level."""
    return {
        target.id: node.lineno
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }


def _words(path: Path, tree: ast.Module, module: ModuleType) -> dict[str, object]:
    lines = _lines_of_words(tree)
    found: dict[str, object] = {}
    for name, kind in WORDS.items():
        if not hasattr(module, name) or name not in lines:
            continue
        value = getattr(module, name)
        if not isinstance(value, kind) or (kind is str and not value):
            raise _problem(path, lines[name], f"{name} = {value!r}", f"a {kind.__name__}")
        found[name] = value
    shown = found.get("NAME", path.stem)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", str(shown)):
        raise _problem(path, lines.get("NAME", 1), f"the name '{shown}'", "letters, digits, '_' and '-'")
    return found


def _table(path: Path, tree: ast.Module, module: ModuleType, outputs: bool) -> int:
    """Make the table of the functions, which each have an address where they are compiled; its number."""
    flags = WANTS_OUTPUTS if outputs else 0
    functions: list[Any] = [getattr(module, call.name, None) or call.default for call in CALLS]
    if not INTERPRETED:  # only compiled
        return _compiled(path, tree, flags, functions)
    number = OWN + len(TABLES)
    TABLES[number] = (flags, *functions)
    return number


def _compiled(path: Path, tree: ast.Module, flags: int, functions: list[Any]) -> int:  # only compiled
    """Compile the functions and lay their addresses out; the address of the table."""
    made = []
    for call, function in zip(CALLS, functions, strict=True):
        try:
            made.append(compile_alone(function, own.signature_of(call)))
        except Exception as error:
            line = _functions(tree)[call.name].lineno
            raise _not_compiled(path, line, call, error) from None
    table = (ctypes.c_uint64 * (len(made) + 1))(flags, *(function.address for function in made))
    _KEPT.extend((made, table))
    return ctypes.addressof(table)


def _not_compiled(path: Path, line: int, call: Call, error: Exception) -> InputError:  # only compiled
    """What Numba could not compile, at the last line of the file that it names."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    places = re.findall(rf'{KEPT_NAME}"?[ ,:(]+(?:line )?(\d+)', text)
    told = [part.strip() for part in text.splitlines() if part.strip()]
    said = next((part for part in told if not part.startswith("Failed in")), type(error).__name__)
    return _problem(
        path,
        int(places[-1]) if places else line,
        f"'{call.name}', which does not compile ({said})",
        "kernel code: arrays and scalars, no exceptions, no allocation (shadowmmu.compiled)",
    )
