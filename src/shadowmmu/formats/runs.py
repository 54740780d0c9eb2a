"""The recorded runs of the real kernel that ship with the package, and how to read a folder of them.

A folder has a ``manifest.toml`` with one ``[[run]]`` a run: its name, scenario, answer, the host's IPA limit,
whether the clock counted instructions, and a note. Paths in it are relative to the folder.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from shadowmmu.formats.answer import Answer, decode_answer
from shadowmmu.formats.problem import FormatError

MANIFEST = "manifest.toml"

_FIELDS = {
    "name": str,
    "scenario": str,
    "answer": str,
    "ipa_limit_bits": int,
    "icount": bool,
    "note": str,
}


@dataclass(frozen=True)
class KernelRun:
    """One recorded run: a script, and what the real kernel answered.

    ``ipa_limit_bits`` is the host's IPA limit; with ``icount`` the run's clock counted instructions
    (1 ns = 1 instruction), without it times mean nothing.
    """

    name: str
    scenario_path: Traversable
    answer_path: Traversable
    ipa_limit_bits: int
    icount: bool
    note: str

    def scenario_text(self) -> str:
        """The script."""
        return self.scenario_path.read_text(encoding="utf-8")

    def answer(self) -> Answer:
        """The answer, read. Raises FormatError."""
        return decode_answer(self.answer_path.read_bytes(), str(self.answer_path))


def bundled_folder() -> Traversable:
    """The folder of the bundled runs."""
    return files("shadowmmu") / "data" / "kernel_runs"


def bundled_runs() -> list[KernelRun]:
    """The runs that ship with the package, in the order of their manifest."""
    return read_runs(bundled_folder())


def bundled_run(name: str) -> KernelRun:
    """The bundled run called ``name`` (``scenario/01-base4k``). Raises KeyError."""
    for run in bundled_runs():
        if run.name == name:
            return run
    raise KeyError(name)


def read_runs(folder: Traversable) -> list[KernelRun]:
    """The runs of a folder (a ``Path`` will do). Raises OSError, and FormatError for a bad manifest."""
    path = str(folder / MANIFEST)
    try:
        manifest = tomllib.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FormatError(path, 0, str(error), "a TOML file") from None
    entries = manifest.get("run")
    if set(manifest) != {"run"} or not isinstance(entries, list):
        raise FormatError(path, 0, ", ".join(manifest), "[[run]] entries only")
    runs = [_run(entry, folder, path) for entry in entries]
    if len({run.name for run in runs}) != len(runs):
        raise FormatError(path, 0, "a name twice", "each run once")
    return runs


def _run(entry: Any, folder: Traversable, path: str) -> KernelRun:
    if not isinstance(entry, dict) or set(entry) != set(_FIELDS):
        raise FormatError(path, 0, repr(entry), "a run with the fields " + ", ".join(_FIELDS))
    for name, kind in _FIELDS.items():
        if type(entry[name]) is not kind:
            raise FormatError(path, 0, repr(entry[name]), f"{name} of type {kind.__name__}")
    paths = {}
    for name in ("scenario", "answer"):
        parts = entry[name].split("/")
        if not all(parts) or ".." in parts:
            raise FormatError(path, 0, entry[name], "a path inside the folder")
        paths[name] = folder.joinpath(*parts)
        if not paths[name].is_file():
            raise FormatError(path, 0, entry[name], "a file that exists")
    return KernelRun(
        entry["name"],
        paths["scenario"],
        paths["answer"],
        entry["ipa_limit_bits"],
        entry["icount"],
        entry["note"],
    )
