"""Variants of ``shadowmmu.arch``: the same sources with a few lines changed, as a package of their own.

An oracle that leaves the architecture at one place, or a mutant that a test must kill, is a change of one
place of the source. The sources are copied under another package name, patched, and compiled like the
original; both run side by side in one process.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

from shadowmmu.arch.context import Implementation
from shadowmmu.compiled import Counts, Words, cache_base, kernel_fingerprint
from shadowmmu.errors import InputError

Answers: TypeAlias = Callable[
    [Words, Words, Counts, Counts, Words, Implementation, bool, Words],
    None,
]
"""``shadowmmu.arch.answer.answers``, or a variant of it."""

_ARCH = re.compile(r"\bshadowmmu\.arch\b")


@dataclass(frozen=True)
class Patch:
    """One change: in a module of ``shadowmmu.arch`` the text ``old``, which occurs once, becomes ``new``."""

    module: str
    old: str
    new: str


def arch_sources() -> dict[str, str]:
    """The modules of ``shadowmmu.arch`` by name, as they stand."""
    folder = files("shadowmmu.arch")
    return {
        entry.name.removesuffix(".py"): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".py")
    }


def patched(sources: Mapping[str, str], name: str, patches: Sequence[Patch]) -> dict[str, str]:
    """``sources`` with all ``patches`` applied, in their order.

    Raises InputError, with the name and the text, for a patch whose module is missing or whose old text
    does not occur exactly once.
    """
    result = dict(sources)
    for patch in patches:
        if patch.module not in result:
            raise InputError(f"variant {name}: shadowmmu.arch has no module {patch.module}")
        found = result[patch.module].count(patch.old)
        if found != 1:
            raise InputError(
                f"variant {name}: expected once in shadowmmu/arch/{patch.module}.py, "
                f"found {found} times: {patch.old!r}"
            )
        result[patch.module] = result[patch.module].replace(patch.old, patch.new)
    return result


def load_variant(name: str, patches: Sequence[Patch], *, module: str = "answer") -> ModuleType:
    """Module ``module`` of the variant of ``shadowmmu.arch`` that ``patches`` make: with ``answers`` and all.

    Kept in the cache folder under a hash of its text, so that its kernels are compiled once. Raises
    InputError as ``patched`` does.
    """
    sources = patched(arch_sources(), name, patches)
    digest = hashlib.sha256(kernel_fingerprint().encode())
    for key in sorted(sources):
        digest.update(f"{key}\0{sources[key]}\0".encode())
    package = f"shadowmmu_{re.sub(r'[^0-9a-z]', '_', name.lower())}_{digest.hexdigest()[:12]}"
    if package not in sys.modules:
        folder = cache_base() / "variants" / package
        if not folder.is_dir():
            _write(folder, package, sources)
        _adopt(package, folder)
    return importlib.import_module(f"{package}.arch.{module}")


def variant_answers(name: str, patches: Sequence[Patch]) -> Answers:
    """``answers`` of a variant, for whoever has the original's ``Implementation``: classes are not shared."""
    module = load_variant(name, patches)

    def answers(
        mem: Words,
        contexts: Words,
        context_of: Counts,
        operations: Counts,
        va: Words,
        machine: Implementation,
        update: bool,
        out: Words,
    ) -> None:
        own = module.Implementation(*machine)
        module.answers(mem, contexts, context_of, operations, va, own, update, out)

    return answers


def _write(folder: Path, package: str, sources: Mapping[str, str]) -> None:
    """Write the package; whoever finishes first, of several processes, leaves it there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=folder.parent))
    (building / "arch").mkdir()
    (building / "__init__.py").write_text('"""A variant of shadowmmu."""\n', encoding="utf-8")
    for key, text in sources.items():
        (building / "arch" / f"{key}.py").write_text(_ARCH.sub(f"{package}.arch", text), encoding="utf-8")
    try:
        os.replace(building, folder)  # noqa: PTH105 - the rename that replaces an empty folder only
    except OSError:
        shutil.rmtree(building)


def _adopt(package: str, folder: Path) -> None:
    """Import the package from its folder, which is on no search path."""
    entry = folder / "__init__.py"
    spec = importlib.util.spec_from_file_location(package, entry, submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None:
        raise InputError(f"{entry}: cannot be imported")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[package] = loaded
    spec.loader.exec_module(loaded)
