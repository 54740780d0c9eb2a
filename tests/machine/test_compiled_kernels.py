"""How kernels are compiled and kept: the fingerprint, the cache folder, the modes, the code itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machine_lab import Op, _call, call, machine

from shadowmmu import compiled
from shadowmmu.compiled import INTERPRETED, U64, kernel

PACKAGE = Path(compiled.__file__).parent
COMPILED_ONLY = pytest.mark.skipif(INTERPRETED, reason="there is no machine code in interpreted mode")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that the fingerprint is taken from."""
    copy = tmp_path / "shadowmmu"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(compiled, "_PACKAGE", copy)
    monkeypatch.setattr(compiled, "__file__", str(copy / "compiled.py"))
    return copy


def test_a_copy_of_the_sources_has_the_same_fingerprint(package: Path) -> None:
    taken = compiled.kernel_fingerprint()
    assert re.fullmatch(r"[0-9a-f]{16}", taken)
    assert taken == compiled.kernel_fingerprint()
    (package / "lab" / "results.py").write_text("# no kernel\n")
    assert compiled.kernel_fingerprint() == taken


@pytest.mark.parametrize(
    "path",
    ["compiled.py", "arch/stage2.py", "machine/frames.py", "pgtable/unmap.py", "designs/containers/pool.py"],
)
def test_an_edited_kernel_changes_the_fingerprint(package: Path, path: str) -> None:
    before = compiled.kernel_fingerprint()
    with (package / path).open("a") as source:
        source.write("# edited\n")
    assert compiled.kernel_fingerprint() != before


def test_a_new_and_a_renamed_module_change_the_fingerprint(package: Path) -> None:
    before = compiled.kernel_fingerprint()
    (package / "kvm" / "vgic.py").touch()
    added = compiled.kernel_fingerprint()
    (package / "kvm" / "vgic.py").rename(package / "kvm" / "vncr.py")
    assert len({before, added, compiled.kernel_fingerprint()}) == 3


@pytest.mark.parametrize("setting", ["NUMBA_BOUNDSCHECK", "NUMBA_OPT", "NUMBA_CPU_NAME"])
def test_what_else_decides_the_machine_code_changes_the_fingerprint(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = compiled.kernel_fingerprint()
    monkeypatch.setenv(setting, "another")
    assert compiled.kernel_fingerprint() != before


def test_kernels_outside_the_fingerprint_are_called_from_python_alone() -> None:
    # Numba notices an edited entry point by its file, but no edited routine in another module.
    texts = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    marked = re.compile(r"^@(?:kernel|inline)\ndef (\w+)", re.MULTILINE)
    assert len(marked.findall("@kernel\ndef f() -> int: ...\n@inline\ndef g(): ...")) == 2
    for path, text in texts.items():
        if path.relative_to(PACKAGE).parts[0] not in compiled._KERNEL_ROOMS:
            for name in marked.findall(text):
                assert not [p for p in texts if p != path and re.search(rf"\b{name}\b", texts[p])], name


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHADOWMMU_CACHE", str(tmp_path / "chosen"))
    assert compiled.cache_base() == tmp_path / "chosen"
    monkeypatch.delenv("SHADOWMMU_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compiled.cache_base() == tmp_path / "xdg" / "shadowmmu"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert compiled.cache_base() == Path.home() / ".cache" / "shadowmmu"


def test_the_folder_of_these_kernels_is_made_in_the_chosen_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHADOWMMU_CACHE", str(tmp_path / "chosen"))
    folder = compiled.cache_folder()
    assert folder == tmp_path / "chosen" / compiled.kernel_fingerprint()
    (folder / "kept").touch()
    assert compiled.cache_folder() == folder
    assert (folder / "kept").exists()


def test_folders_of_older_kernels_are_cleared_away_but_for_the_newest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHADOWMMU_CACHE", str(tmp_path))
    now = time.time()
    for age in range(6):
        (tmp_path / f"old{age}").mkdir()
        (tmp_path / f"old{age}" / "index").touch()
        os.utime(tmp_path / f"old{age}", (now - 100 * (age + 1),) * 2)
    (tmp_path / "not a folder").touch()
    folder = compiled.cache_folder()
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "old0", "old1", "old2", "not a folder"}


def test_a_cache_that_cannot_be_made_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SHADOWMMU_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert compiled.cache_folder() == tmp_path / f"shadowmmu-{os.getuid()}" / compiled.kernel_fingerprint()
    monkeypatch.setattr(compiled.os, "access", lambda *_: False)
    last = compiled.cache_folder()
    assert last.parent == tmp_path
    assert last.is_dir()


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_interpreted_kernels_are_the_functions_themselves() -> None:
    code = (
        "import sys; from shadowmmu import compiled as c\n"
        "def f(x): return x\n"
        "print(c.INTERPRETED, c.kernel(f) is f, c.inline(f) is f)\n"
        "print(c.compilation_pending(), c.compilation_finished(), 'numba' in sys.modules)"
    )
    assert python(code, NUMBA_DISABLE_JIT="1") == "True True True\nFalse None False"


def test_a_finished_compilation_is_remembered_on_disk(tmp_path: Path) -> None:
    code = (
        "from shadowmmu import compiled as c\n"
        "print(c.INTERPRETED, c.compilation_pending(), end=' ')\n"
        "c.compilation_finished(); print(c.compilation_pending())"
    )
    settings = {"NUMBA_DISABLE_JIT": "0", "SHADOWMMU_CACHE": str(tmp_path)}
    assert python(code, **settings) == "False True False"
    assert python(code, **settings) == "False False False"
    (folder,) = tmp_path.iterdir()
    assert [path.name for path in folder.iterdir()] == [".compiled"]


@kernel
def _scaled(words: Any, factor: Any) -> Any:
    """A routine to be called with several constants."""
    return words[0] * U64(factor)


@kernel
def _calls_with_constants(words: Any, factor: Any) -> Any:
    return _scaled(words, 2) + _scaled(words, 3) + _scaled(words, 5) + _scaled(words, factor)


def lowered(routine: Any) -> int:
    """How many times a routine was lowered for kernels that call it."""
    return len(routine.get_overload.__self__.overloads)


def test_a_routine_called_with_different_constants_gives_what_python_gives() -> None:
    assert int(_calls_with_constants(np.full(1, 7, np.uint64), 11)) == 7 * (2 + 3 + 5 + 11)


def reference_counting(dispatcher: Any) -> list[str]:
    """Lines of the compiled functions, wrappers for Python apart, that count references."""
    found = []
    for text in dispatcher.inspect_llvm().values():
        for body in re.findall(r"^define [^\n]*\{\n.*?^\}", text, re.DOTALL | re.MULTILINE):
            name = body.split("(")[0]
            if "cpython" not in name and "cfunc" not in name:
                found += [
                    line for line in body.splitlines() if re.search(r"call .*@NRT_(incref|decref)", line)
                ]
    return found


FRESH = """
import sys; sys.path[:0] = [{here!r}, {source!r}]
import test_compiled_kernels as t
{body}
"""


def fresh(body: str, cache: Path) -> str:
    """What this module prints in a process that finds nothing in its cache: cached code shows no IR."""
    here, source = str(Path(__file__).parent), str(PACKAGE.parent)
    return python(FRESH.format(here=here, source=source, body=body), SHADOWMMU_CACHE=str(cache))


@COMPILED_ONLY
def test_a_routine_called_with_different_constants_is_lowered_once(tmp_path: Path) -> None:
    body = (
        "import numpy as np\n"
        "t._calls_with_constants(np.ones(1, np.uint64), 4)\n"
        "print(t.lowered(t._scaled), len(t._scaled.overloads))"
    )
    assert fresh(body, tmp_path) == "1 0", "nor compiled for Python, which does not call it here"


@COMPILED_ONLY
def test_kernels_count_no_references(tmp_path: Path) -> None:
    body = "t.call(t.machine(), t.Op.TAKE); print(t.reference_counting(t._call), len(t._call.inspect_llvm()))"
    assert fresh(body, tmp_path) == "[] 1"


@COMPILED_ONLY
def test_the_check_sees_reference_counting(tmp_path: Path) -> None:
    body = (
        "import numba, numpy as np\n"
        "@numba.njit\n"
        "def f(a, n):\n"
        "    kept = [a]\n"
        "    for _ in range(n): kept.append(a)\n"
        "    return kept\n"
        "f(np.ones(1), 2); print(len(t.reference_counting(f)) > 0)"
    )
    assert fresh(body, tmp_path) == "True"


@COMPILED_ONLY
@pytest.mark.slow
def test_the_executor_counts_no_references(tmp_path: Path) -> None:
    body = (
        "from shadowmmu.engine.executor import Executor\n"
        "from shadowmmu.engine.step import run_events\n"
        "import numba, numpy as np\n"
        "s = t.machine()\n"
        "words = np.zeros((1, 7), np.uint64)\n"
        "run_events.compile(tuple(numba.typeof(x) for x in (s, words[0], words, 0, 0)))\n"
        "print(t.reference_counting(run_events), len(run_events.inspect_llvm()))"
    )
    assert fresh(body, tmp_path) == "[] 1"


def test_the_same_call_in_both_modes() -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from machine_lab import Op, call, machine\n"
        "from shadowmmu.machine.state import image_digest\n"
        "s = machine()\n"
        "print([call(s, op, 3, 1, 2, 4, 5) for op in list(Op)[:9] + [Op.WORK_DONE]], image_digest(s))"
    )
    s = machine()
    own = [call(s, op, 3, 1, 2, 4, 5) for op in [*list(Op)[:9], Op.WORK_DONE]]
    assert python(code, NUMBA_DISABLE_JIT=str(int(not INTERPRETED))).startswith(str(own))
    assert _call is not None
