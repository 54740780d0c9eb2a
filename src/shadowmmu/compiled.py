"""How kernels are compiled: three decorators, a hint to the processor, one cache, one interpreted mode.

A *kernel* is a plain function over arrays and scalars. ``kernel`` marks entry points and every
routine called as a function; ``inline`` marks building blocks that are folded into their callers;
``apart`` marks what a frequent path seldom needs, so that it stays a call and costs that path nothing.
With ``NUMBA_DISABLE_JIT=1`` both return the function unchanged, so the same source runs interpreted
on the same arrays: there is no second implementation to test the first against.

Rules for kernels (each one learnt the hard way):

- addresses, descriptors and table words are ``U64``; levels, indices and counters are ``I64``;
  conversions are written out, because mixing them silently gives int64 or float64;
- constants are module-level ``U64`` values; never shift by 64;
- faults are returned values, never exceptions; kernels never allocate;
- no closures and no functions as arguments: neither is found again in the disk cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

U64 = np.uint64
if TYPE_CHECKING:
    I64 = int  # to the type checker a count or level is an int, whichever mode runs
else:
    I64 = np.int64

Word: TypeAlias = np.uint64
Words: TypeAlias = npt.NDArray[np.uint64]
Counts: TypeAlias = npt.NDArray[np.int64]

Function = TypeVar("Function", bound=Callable[..., Any])

INTERPRETED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")

OWN_DESIGNS = INTERPRETED or os.environ.get("SHADOWMMU_OWN_DESIGNS", "0") not in ("", "0")
"""Whether kernels can call designs that users bring. Such a call takes the whole ``State``, so no routine on
the way to it may drop an argument that it does not use: a storm takes 2.6 times as long. These are kernels
of their own, compiled once for all such designs; the command line asks for them when it is given a file."""

_PACKAGE = Path(__file__).parent
_KERNEL_ROOMS = (
    "arch",
    "machine",
    "pgtable",
    "designs",
    "host",
    "kvm",
    "guest",
    "engine",
    "verify",
)
_NO_KERNELS = "verify/review"
"""A package in one of them that has none."""
_FINISHED = ".compiled"
KEPT_NAME = "design_of_a_user.py"
"""How the kept copy of a user's design is called."""
_KEPT = 4
"""Cache folders of other versions that are left alone, so that two checkouts do not fight."""


def _kernel_sources() -> list[Path]:
    rooms = (path for room in _KERNEL_ROOMS for path in sorted((_PACKAGE / room).rglob("*.py")))
    return [Path(__file__), *(path for path in rooms if _PACKAGE / _NO_KERNELS not in path.parents)]


def kernel_fingerprint() -> str:
    """Hash of every kernel source and of what else decides the machine code.

    Numba does not notice an edited helper in another module, so the cache folder carries this name.
    """
    digest = hashlib.sha256()
    for path in _kernel_sources():
        digest.update(path.relative_to(_PACKAGE).as_posix().encode())
        digest.update(path.read_bytes())
    digest.update(b"own designs" if OWN_DESIGNS else b"")
    for setting in ("NUMBA_BOUNDSCHECK", "NUMBA_OPT", "NUMBA_CPU_NAME"):
        digest.update(os.environ.get(setting, "").encode())
    digest.update(f"{sys.version}{np.__version__}".encode())
    return digest.hexdigest()[:16]


def cache_base() -> Path:
    """Where kernels are kept: ``$SHADOWMMU_CACHE``, or a folder in the user's cache directory."""
    chosen = os.environ.get("SHADOWMMU_CACHE")
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "shadowmmu"


def cache_folder() -> Path:
    """The folder of these very kernels, made if need be; a temporary one where that is not allowed.

    Folders of other versions are cleared away but for the ``_KEPT`` newest.
    """
    for base in (cache_base(), Path(tempfile.gettempdir()) / f"shadowmmu-{os.getuid()}"):
        folder = base / kernel_fingerprint()
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True)
                _forget_old_folders(base)
            if os.access(folder, os.W_OK):
                return folder
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="shadowmmu-"))


def _forget_old_folders(base: Path) -> None:
    folders = sorted((f for f in base.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime)
    for folder in folders[:-_KEPT]:
        shutil.rmtree(folder, ignore_errors=True)


if INTERPRETED:

    def kernel(function: Function) -> Function:
        """Mark an entry point or routine; interpreted, so the function itself."""
        return function

    inline = kernel
    apart = kernel

    def prefetch(words: Words, at: Word) -> None:
        """A hint to the processor; interpreted, there is none to hint at."""

    def kept_copy(path: Path, text: str) -> Path:
        """Interpreted, a file is read where it stands."""
        return path

    def compile_alone(function: Callable[..., Any], signature: Any) -> Any:
        """Nothing is ever compiled in this mode."""
        raise NotImplementedError

    def compilation_pending() -> bool:
        """Nothing is ever compiled in this mode."""
        return False

    def compilation_finished() -> None:
        """Nothing to remember in this mode."""

else:
    import numba
    from llvmlite import ir
    from numba.core.codegen import CPUCodeLibrary
    from numba.extending import intrinsic

    # Kernels never allocate, so they run without Numba's reference counting (``_nrt=False``): with
    # it the same map costs six times as much. The option is private, hence the pinned Numba range.
    _OPTIONS: dict[str, Any] = {
        "cache": True,
        "nogil": True,
        "error_model": "numpy",
        "_nrt": False,
    }
    _FOLDER = cache_folder()
    _settings: Any = numba.config
    _unliteral: Any = numba.types.unliteral

    _ROUTINES: set[Any] = set()
    _APART: set[Any] = set()

    def _keep_routines_private(optimize: Callable[[Any], None]) -> Callable[[Any], None]:
        """Before a module is optimised, hide the routines linked into it.

        As private functions they can be inlined where they have one caller, and lose the arguments they
        do not use; a ``State`` passed by value is 133 words.
        """

        def optimize_final_module(self: Any) -> None:
            for library in self._linking_libraries:
                if library in _ROUTINES:
                    for routine in library._final_module.functions:
                        # The linker leaves out what no call reaches.
                        with contextlib.suppress(NameError):
                            if not routine.is_declaration:
                                linked = self._final_module.get_function(routine.name)
                                linked.linkage = "internal"
                                if library in _APART:
                                    linked.add_function_attribute("noinline")
            optimize(self)

        return optimize_final_module

    _library: Any = CPUCodeLibrary
    _library._optimize_final_module = _keep_routines_private(_library._optimize_final_module)

    def _compile(function: Function, stays_apart: bool = False, **extra: Any) -> Function:
        # The locator reads CACHE_DIR while decorating; restoring it leaves other users of Numba alone.
        before = _settings.CACHE_DIR
        _settings.CACHE_DIR = str(_FOLDER)
        try:
            outer = numba.njit(**_OPTIONS, **extra)(function)
        finally:
            _settings.CACHE_DIR = before
        inner = numba.njit(**{**_OPTIONS, "cache": False}, **extra)(function)
        _serve_callers(outer, inner, stays_apart, bool(extra))
        return outer  # type: ignore[no-any-return]

    def _serve_callers(outer: Any, inner: Any, stays_apart: bool, folds: bool) -> None:
        """Let kernels that call ``outer`` take their code from ``inner``, made for being linked in.

        Numba would optimise, translate and cache every routine on its own, and all that it calls again
        in each caller: a call tree ten deep compiles ten times. ``inner`` is typed and lowered once for
        all constants it is called with (as literals they would each be a specialisation), gets no
        wrappers and no machine code; the routine that Python calls links it and optimises once. What
        Python calls is ``outer``, whole. Leans on Numba's internals, hence the pinned range.
        """
        customize = inner._compiler._customize_flags

        def no_machine_code(flags: Any) -> Any:
            flags = customize(flags)
            flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
            flags.forceinline = folds  # not that of the caller, which is inherited otherwise
            return flags

        def lower_once(args: tuple[Any, ...]) -> None:
            if args in inner.overloads:
                return
            result = inner._compiler.compile(args, None)
            library = result.library
            library._finalized = True  # its callees are linked where it is, once, not into it
            _ROUTINES.add(library)
            if stays_apart:
                _APART.add(library)
            needed = dict.fromkeys([library, *library._linking_libraries])
            key = object()
            result.target_context.insert_user_function(key, result.fndesc, list(needed))
            inner.overloads[args] = result._replace(entry_point=key)

        def template_for(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
            plain = tuple(_unliteral(a) for a in args)
            return of_inner(plain, {k: _unliteral(a) for k, a in kws.items()})

        of_inner = inner.get_call_template
        inner._compiler._customize_flags = no_machine_code
        inner.compile = lower_once
        outer.get_call_template = template_for
        outer.get_overload = inner.get_overload

    def kernel(function: Function) -> Function:
        """Mark an entry point or routine: compiled, cached on disk, called as a function."""
        return _compile(function)

    def inline(function: Function) -> Function:
        """Mark a building block: compiled and folded into each caller."""
        return _compile(function, forceinline=True)

    def apart(function: Function) -> Function:
        """Mark a routine off the frequent path: never folded in, so its callers stay short.

        The processor looks ahead a few hundred instructions; the misses of two operations overlap only if
        both fit, spilled registers included.
        """
        return _compile(function, stays_apart=True)

    @intrinsic
    def prefetch(typing_context: Any, words: Any, at: Any) -> Any:
        """Start fetching ``words[at]``, which will soon be read or written, and not again after that.

        Nothing else happens. ``at`` may lie outside of the array: no fault is taken.
        """

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
            form = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
            hint = builder.module.declare_intrinsic("llvm.prefetch", [byte], form)
            place = builder.bitcast(builder.gep(array.data, [arguments[1]]), byte)
            builder.call(hint, [place, number(0), number(0), number(1)])  # to read, once, data
            return context.get_dummy_value()

        return numba.types.none(words, at), emit

    def kept_copy(path: Path, text: str) -> Path:
        """A copy of a user's file beside the kernels, in a folder named by its content.

        What is compiled from it is found again wherever the same text lies and whenever it was written.
        Raises OSError.
        """
        folder = _FOLDER / f"own-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        copy = folder / KEPT_NAME
        if not copy.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, delete=False) as file:
                file.write(text)
            Path(file.name).replace(copy)
        return copy

    def compile_alone(function: Callable[..., Any], signature: Any) -> Any:
        """A kernel compiled for ``signature``, to be called by its ``address``. Raises Numba's errors."""
        before = _settings.CACHE_DIR
        _settings.CACHE_DIR = str(_FOLDER)
        try:
            plain: Any = getattr(function, "py_func", function)
            return numba.cfunc(signature, **_OPTIONS)(plain)
        finally:
            _settings.CACHE_DIR = before

    def compilation_pending() -> bool:
        """Whether no earlier process has finished a run with these kernels."""
        return not (_FOLDER / _FINISHED).exists()

    def compilation_finished() -> None:
        """Remember that the kernels are on disk. A cache that cannot be written is not an error."""
        with contextlib.suppress(OSError):
            (_FOLDER / _FINISHED).touch()
