"""The context file: the registers of a translation and the memory behind them, as text.

One thing a line; ``#`` starts a comment::

    pa-bits 48
    features LPA2 HAF XNX
    TCR_EL1 0x00000005b5503510
    image tables.bin 0x40000000
    word 0x40001000 0x0000000040002003

A register that is not named is 0. ``image`` loads a file of little-endian bytes at a physical address, its
path relative to the context file; ``word`` sets 8 bytes. Without ``features`` the machine has them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from shadowmmu.arch.context import COLUMNS, EVERYTHING, FEATURES, Implementation, context, implementation
from shadowmmu.compiled import Words
from shadowmmu.errors import InputError
from shadowmmu.formats.problem import FormatError

MEMORY_LIMIT: Final = 1 << 42
"""Physical addresses an image may reach: memory is one array, filled lazily by the operating system."""
PA_BITS: Final = (32, 36, 40, 42, 44, 48, 52)


@dataclass(frozen=True)
class TranslationContext:
    """Registers, memory (index = pa >> 3) and machine of one translation."""

    row: Words
    memory: Words
    machine: Implementation


@dataclass
class _Draft:
    registers: dict[str, int]
    words: dict[int, int]
    images: list[tuple[bytes, int]]
    pa_bits: int = 52
    features: tuple[str, ...] | None = None


class Place(NamedTuple):
    """A line of a text."""

    path: str
    line_number: int

    def expected(self, read: str, expected: str) -> FormatError:
        """The error of this line."""
        return FormatError(self.path, self.line_number, read, expected)


def _number(text: str, place: Place) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise place.expected(text, "a number below 2^64, decimal or 0x")
    return value


def _pa(text: str, size: int, place: Place) -> int:
    pa = _number(text, place)
    if pa % 8 or pa + size > MEMORY_LIMIT:
        raise place.expected(text, f"a physical address, aligned to 8 bytes, below {MEMORY_LIMIT:#x}")
    return pa


def _image(draft: _Draft, operands: list[str], place: Place, folder: Path) -> None:
    if len(operands) != 2:
        raise place.expected(" ".join(operands), "image FILE PA")
    try:
        content = (folder / operands[0]).read_bytes()
    except OSError as error:
        raise place.expected(operands[0], f"a file: {error.strerror}") from None
    content += bytes(-len(content) % 8)
    draft.images.append((content, _pa(operands[1], len(content), place)))


def _word(draft: _Draft, operands: list[str], place: Place) -> None:
    if len(operands) != 2:
        raise place.expected(" ".join(operands), "word PA VALUE")
    draft.words[_pa(operands[0], 8, place) >> 3] = _number(operands[1], place)


def _pa_bits(draft: _Draft, operands: list[str], place: Place) -> None:
    if len(operands) != 1 or _number(operands[0], place) not in PA_BITS:
        raise place.expected(" ".join(operands), f"pa-bits and one of {', '.join(map(str, PA_BITS))}")
    draft.pa_bits = int(operands[0], 0)


def _features(draft: _Draft, operands: list[str], place: Place) -> None:
    for name in operands:
        if name not in FEATURES.fields:
            raise place.expected(name, f"some of {', '.join(FEATURES.fields)}")
    draft.features = tuple(operands)


def _register(draft: _Draft, name: str, operands: list[str], place: Place) -> None:
    if name not in COLUMNS or len(operands) != 1:
        raise place.expected(" ".join([name, *operands]), "a register and its value, or image, word, ...")
    if name in draft.registers:
        raise place.expected(name, "each register once")
    draft.registers[name] = _number(operands[0], place)


def _line(draft: _Draft, line: str, place: Place, folder: Path) -> None:
    words = line.split("#")[0].replace("=", " ").split()
    if not words:
        return
    name, operands = words[0], words[1:]
    if name == "image":
        _image(draft, operands, place, folder)
    elif name == "word":
        _word(draft, operands, place)
    elif name == "pa-bits":
        _pa_bits(draft, operands, place)
    elif name == "features":
        _features(draft, operands, place)
    else:
        _register(draft, name, operands, place)


def read_setting(text: str) -> tuple[str, int]:
    """A register and its value from ``REGISTER=VALUE``. Raises InputError."""
    register, _equals, value = text.partition("=")
    if register not in COLUMNS:
        raise InputError(f"read '{text}', expected REGISTER=VALUE with one of {', '.join(COLUMNS)}")
    return register, _number(value, Place("--set", 0))


def _memory(draft: _Draft) -> Words:
    ends = [pa + len(content) for content, pa in draft.images] + [(index + 1) << 3 for index in draft.words]
    try:
        memory: Words = np.zeros(max(ends, default=0) >> 3, np.uint64)
    except MemoryError:
        raise InputError(f"memory up to {max(ends):#x} does not fit this machine") from None
    for content, pa in draft.images:
        memory[pa >> 3 : (pa + len(content)) >> 3] = np.frombuffer(content, "<u8")
    for index, value in draft.words.items():
        memory[index] = value
    return memory


def read_context(text: str, name: str, folder: Path, overrides: dict[str, int]) -> TranslationContext:
    """Parse a context file; ``overrides`` replace its registers. Raises FormatError with file:line."""
    draft = _Draft({}, {}, [])
    for at, line in enumerate(text.splitlines(), 1):
        _line(draft, line, Place(name, at), folder)
    machine = (
        Implementation(draft.pa_bits, EVERYTHING.features)
        if draft.features is None
        else implementation(draft.pa_bits, *draft.features)
    )
    return TranslationContext(context(**{**draft.registers, **overrides}), _memory(draft), machine)
