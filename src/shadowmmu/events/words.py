"""The words of the scenario language: numbers, attribute letters, and the error that names a line.

Everything here follows the rig's ``num()`` and ``attrs()``; what ``strtoul`` would silently drop (trailing
characters, a sign, more than 64 bits) is an error here.
"""

from __future__ import annotations

import re

from shadowmmu.errors import InputError
from shadowmmu.events.schema import PROT_READ, PROT_WRITE

_NUMBER = re.compile(
    r"(?:0[xX](?P<hex>[0-9a-fA-F]+)|(?P<octal>0[0-7]*)|(?P<decimal>[1-9][0-9]*))(?P<unit>[kKMG]?)"
)
_SHIFT = {"": 0, "k": 10, "K": 10, "M": 20, "G": 30}

S2AP_READ = 1 << 6
S2AP_WRITE = 1 << 7
ACCESS_FLAG = 1 << 10
CONTIGUOUS = 1 << 52
EXECUTE_NEVER = 2 << 53
NORMAL_MEMORY = 0xF << 2 | 3 << 8
"""Normal write-back, inner shareable: what L1 of the rig gives every leaf."""

ATTRIBUTE_LETTERS = "rwxac"
NO_LETTERS = ("0", "-")


class ScenarioError(InputError):
    """A script that cannot be read: where, what was read, and what was expected there."""

    def __init__(self, path: str, line_number: int, line: str, read: str, expected: str) -> None:
        self.path = path
        self.line_number = line_number
        self.line = line
        self.read = read
        self.expected = expected
        super().__init__(f"{path}:{line_number}: read {read!r}, expected {expected}")


class WordError(Exception):
    """A word that does not mean what its place asks for; the parser adds the line."""

    def __init__(self, read: str, expected: str) -> None:
        self.read = read
        self.expected = expected
        super().__init__(f"read {read!r}, expected {expected}")


def number(word: str, what: str = "a number") -> int:
    """The value of ``word``: C notation (0x hexadecimal, leading 0 octal, else decimal) and k, K, M or G.

    Raises WordError unless the whole word is a number below 2^64. Source: ``num()`` of the rig.
    """
    match = _NUMBER.fullmatch(word)
    if not match or len(word) > 64:
        raise WordError(word, f"{what} (0x hexadecimal, 0 octal or decimal, with k, M or G)")
    if match["hex"]:
        value = int(match["hex"], 16)
    elif match["octal"]:
        value = int(match["octal"], 8)
    else:
        value = int(match["decimal"])
    value <<= _SHIFT[match["unit"]]
    if value >> 64:
        raise WordError(word, f"{what} below 2^64")
    return value


def attributes(word: str) -> int:
    """Descriptor bits of the letters ``rwxac``; ``0`` or ``-`` is none of them.

    ``r`` and ``w`` give the stage-2 permissions, no ``x`` sets XN, ``a`` clears the access flag, ``c``
    sets the contiguous bit. Raises WordError for another or a repeated letter. Source: the rig's ``attrs()``.
    """
    letters = _letters(word, ATTRIBUTE_LETTERS)
    bits = NORMAL_MEMORY
    bits |= S2AP_READ if "r" in letters else 0
    bits |= S2AP_WRITE if "w" in letters else 0
    bits |= 0 if "x" in letters else EXECUTE_NEVER
    bits |= 0 if "a" in letters else ACCESS_FLAG
    bits |= CONTIGUOUS if "c" in letters else 0
    return bits


def attribute_letters(bits: int) -> str:
    """The word that ``attributes`` reads as ``bits``. Raises ValueError when there is none."""
    letters = "r" if bits & S2AP_READ else ""
    letters += "w" if bits & S2AP_WRITE else ""
    letters += "" if bits & EXECUTE_NEVER else "x"
    letters += "" if bits & ACCESS_FLAG else "a"
    letters += "c" if bits & CONTIGUOUS else ""
    letters = letters or "-"
    if attributes(letters) != bits:
        raise ValueError(f"no letters for the attribute bits {bits:#x}")
    return letters


def protection(word: str) -> int:
    """PROT bits of a word made of ``r`` and ``w``; ``0`` or ``-`` is no access. Raises WordError."""
    letters = _letters(word, "rw")
    return (PROT_READ if "r" in letters else 0) | (PROT_WRITE if "w" in letters else 0)


def protection_letters(prot: int) -> str:
    """The word that ``protection`` reads as ``prot``."""
    return (("r" if prot & PROT_READ else "") + ("w" if prot & PROT_WRITE else "")) or "-"


def size_word(size: int) -> str:
    """``size`` in the largest unit that divides it: ``64k``, ``2M``, ``1G``, or plain bytes."""
    for unit, shift in (("G", 30), ("M", 20), ("k", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return str(size)


def _letters(word: str, allowed: str) -> str:
    if word in NO_LETTERS:
        return ""
    if not word or any(letter not in allowed for letter in word) or len(set(word)) != len(word):
        raise WordError(word, f"letters of {allowed!r}, each at most once, or '-' for none")
    return word
