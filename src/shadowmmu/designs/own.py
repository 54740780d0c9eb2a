"""A design of the user's own: how the one dispatch kernel reaches functions it was not compiled with.

The number of such a design is the address of a table of its functions, each compiled by itself with the
signature that ``CALLS`` gives it (``designs.own_file``); the kernels here read an address in the table and
call it. So a new file costs only its own compilation; the kernels that can make such calls are compiled once
for all files (``compiled.OWN_DESIGNS``). Interpreted, the number names a tuple of the plain functions.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from shadowmmu.compiled import INTERPRETED, OWN_DESIGNS, Word, kernel
from shadowmmu.designs.containers.pool import pool_reset
from shadowmmu.errors import InputError
from shadowmmu.machine.state import State

TWO_DIMENSIONS: Final = frozenset(("frames", "log", "mmus", "vcpus", "slots", "vmas", "plan"))
"""Arrays of ``State`` that are tables."""


@dataclass(frozen=True)
class Call:
    """One function of a design: its name, its parameters after ``s``, what it returns."""

    name: str
    parameters: tuple[str, ...]
    returns: str
    default: Callable[..., Any] | None = None
    """What stands for it where the design has none; None: the design must have it."""

    @property
    def signature(self) -> str:
        """As it is written in the file."""
        kinds = ", ".join(["s: State", *(f"{name}: {KINDS[name]}" for name in self.parameters)])
        return f"def {self.name}({kinds}) -> {self.returns}"


KINDS: Final = {
    "mmu": "int",
    "level": "int",
    "cause": "int",
    "may_block": "bool",
    **dict.fromkeys(("canonical_ipa", "nested_ipa", "size", "word", "start", "end"), "Word"),
}
"""What each parameter is."""


@kernel
def no_init(s: State) -> None:
    """An empty pool is all there is to prepare."""
    pool_reset(s.rmap)


@kernel
def no_preparation(s: State) -> bool:
    """Nothing is allocated before a fill."""
    return True


@kernel
def no_coverage(
    s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word, level: int, word: Word
) -> bool:
    """The design cannot say; an incomplete record shows when its stale leaf does."""
    return True


@kernel
def no_entries(s: State) -> int:
    """The design does not count its entries."""
    return 0


_LEAF: Final = ("mmu", "canonical_ipa", "nested_ipa", "size", "level", "word")
_RANGE: Final = ("start", "end", "may_block")

CALLS: Final = (
    Call("init", (), "None", no_init),
    Call("prepare", (), "bool", no_preparation),
    Call("record", _LEAF, "None"),
    Call("forget", ("mmu", "start", "end", "cause"), "None"),
    Call("forget_mmu", ("mmu",), "None"),
    Call("unmap", (*_RANGE, "cause"), "int"),
    Call("age", _RANGE, "int"),
    Call("protect", _RANGE, "int"),
    Call("covers", _LEAF, "bool", no_coverage),
    Call("recorded", (), "int", no_entries),
    Call("footprint", (), "int"),
)
"""The functions of a design, in the order of its table; the word in front of them holds its flags."""

WANTS_OUTPUTS: Final = 1
"""Flag: the design is asked with output addresses (``designs.outputs``)."""

TABLES: Final[dict[int, tuple[Any, ...]]] = {}
"""Interpreted, the flags and functions of each design by its number."""


def _fault(function: Callable[..., Any], error: Exception) -> InputError:
    """What a design's function ran into, at the line of its file."""
    file = function.__code__.co_filename
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    read = f"{type(error).__name__}: {error} in '{function.__name__}'"
    return InputError(
        f"{file}:{lines[-1] if lines else 1}: read {read}, expected a kernel that raises nothing"
    )


if INTERPRETED or TYPE_CHECKING:

    def _caller(index: int) -> Callable[..., Any]:
        def call(number: int, s: State, *arguments: Any) -> Any:
            function = TABLES[number][index + 1]
            try:
                return function(s, *arguments)
            except Exception as error:
                raise _fault(function, error) from error

        return call

    def own_flags(number: int) -> int:
        """The flags of a design of the user's own."""
        return int(TABLES[number][0])

    def signature_of(call: Call) -> Any:  # only compiled
        """Nothing is compiled in this mode."""
        raise NotImplementedError

else:  # only compiled
    import numba
    from llvmlite import ir
    from numba.extending import intrinsic

    _WORDS = numba.types.Array(numba.types.uint64, 1, "C")
    _TABLE = numba.types.Array(numba.types.uint64, 2, "C")
    _COUNTS = numba.types.Array(numba.types.int64, 1, "C")
    _TYPES = {
        "int": numba.types.int64,
        "bool": numba.types.boolean,
        "Word": numba.types.uint64,
        "None": numba.types.none,
    }
    STATE_TYPE = numba.types.NamedTuple(
        [
            _COUNTS if name == "count" else _TABLE if name in TWO_DIMENSIONS else _WORDS
            for name in State._fields
        ],
        State,
    )
    _ADDRESS = ir.IntType(64)

    def signature_of(call: Call) -> Any:
        """The signature a design's function is compiled with."""
        return _TYPES[call.returns](STATE_TYPE, *(_TYPES[KINDS[name]] for name in call.parameters))

    def _word_of_table(builder: Any, number: Any, index: int) -> Any:
        table = builder.inttoptr(number, _ADDRESS.as_pointer())
        return builder.load(builder.gep(table, [ir.Constant(_ADDRESS, index)]))

    def _caller(index: int) -> Any:
        wanted = signature_of(CALLS[index])

        def typed(_context: Any, number: Any, *arguments: Any) -> Any:
            if arguments[0] != STATE_TYPE:
                raise numba.errors.TypingError("State has a table that TWO_DIMENSIONS does not name")

            def code(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
                kinds = [context.get_value_type(kind) for kind in wanted.args]
                result = context.get_value_type(wanted.return_type)
                if not OWN_DESIGNS:
                    return ir.Constant(result, None)
                place = _word_of_table(builder, values[0], index + 1)
                function = builder.inttoptr(place, ir.FunctionType(result, kinds).as_pointer())
                return builder.call(function, list(values[1:]))

            return wanted.return_type(numba.types.int64, *wanted.args), code

        names = ("context", "number", "s", *CALLS[index].parameters)
        places = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names]
        setattr(typed, "__signature__", inspect.Signature(places))  # noqa: B010
        return intrinsic(typed)

    @intrinsic
    def own_flags(_context: Any, number: Any) -> Any:
        """The flags of a design of the user's own."""

        def code(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            return _word_of_table(builder, values[0], 0) if OWN_DESIGNS else ir.Constant(_ADDRESS, 0)

        return numba.types.int64(numba.types.int64), code


own_init = _caller(0)
own_prepare = _caller(1)
own_record = _caller(2)
own_forget = _caller(3)
own_forget_mmu = _caller(4)
own_unmap = _caller(5)
own_age = _caller(6)
own_protect = _caller(7)
own_covers = _caller(8)
own_recorded = _caller(9)
own_footprint = _caller(10)
