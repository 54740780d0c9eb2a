"""The words of the scenario language: numbers, attribute letters, and the error that names a line.

Everything here follows the rig's ``num()`` and ``attrs()``; what ``strtoul`` would silently drop (trailing
characters, a sign, more than 64 bits) is an error here.
"""

from __future__ import annotations

import re

from shadowmmu.arch import context as c
from shadowmmu.arch.operation import NAMES
from shadowmmu.arch.registers import PSTATE
from shadowmmu.errors import InputError
from shadowmmu.events.schema import PROT_READ, PROT_WRITE, SLOT_LOGS, SLOT_READ_ONLY

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

AT_OPERATIONS = {
    name.removeprefix("AT ").lower(): number for number, name in enumerate(NAMES) if name.startswith("AT ")
}
"""The operand of ``at``: ``s1e1r``, ``s12e0w`` and so on."""

S1_REGISTERS = {
    "ttbr0": c.C_TTBR0_EL1,
    "ttbr1": c.C_TTBR1_EL1,
    "tcr": c.C_TCR_EL1,
    "sctlr": c.C_SCTLR_EL1,
    "mair": c.C_MAIR_EL1,
    "tcr2": c.C_TCR2_EL1,
    "pir": c.C_PIR_EL1,
    "pire0": c.C_PIRE0_EL1,
    "ttbr0_el2": c.C_TTBR0_EL2,
    "ttbr1_el2": c.C_TTBR1_EL2,
    "tcr_el2": c.C_TCR_EL2,
    "sctlr_el2": c.C_SCTLR_EL2,
    "mair_el2": c.C_MAIR_EL2,
    "pan": c.C_PSTATE,
}
"""What ``s1`` sets: registers of L2's stage 1, and L1's own PSTATE.PAN."""

EL2_SCOPES = ("all", "va", "vaa", "asid", "rva", "rvaa")
"""The scopes of ``tlbi2``, numbered as ``kvm.vncr`` does."""

PAN_SHIFT = PSTATE["PAN"].lsb


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


def at_operation(word: str) -> int:
    """The number of an AT instruction (``arch.operation``). Raises WordError for another word."""
    if word not in AT_OPERATIONS:
        raise WordError(word, "an AT instruction: " + ", ".join(AT_OPERATIONS))
    return AT_OPERATIONS[word]


def assigned_register(word: str) -> tuple[int, int]:
    """The register (a column of ``arch.context``) and the value of ``name=value``. Raises WordError."""
    name, equals, value = word.partition("=")
    if not equals or name not in S1_REGISTERS:
        raise WordError(word, "REGISTER=VALUE, where the register is one of " + ", ".join(S1_REGISTERS))
    if name == "pan":
        if value not in ("0", "1"):
            raise WordError(word, "pan=0 or pan=1")
        return S1_REGISTERS[name], int(value) << PAN_SHIFT
    return S1_REGISTERS[name], number(value, f"a value of {name}")


def register_word(column: int, value: int) -> str:
    """The word that ``assigned_register`` reads as this. Raises ValueError when there is none."""
    for name, known in S1_REGISTERS.items():
        if known == column:
            word = f"pan={value >> PAN_SHIFT & 1}" if name == "pan" else f"{name}={value:#x}"
            if assigned_register(word) == (column, value):
                return word
    raise ValueError(f"no word sets column {column} to {value:#x}")


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


def slot_flags(word: str) -> int:
    """Flags of a memslot: ``r`` read-only, ``d`` dirty logging; ``0`` or ``-`` is none. Raises WordError."""
    letters = _letters(word, "rd")
    return (SLOT_READ_ONLY if "r" in letters else 0) | (SLOT_LOGS if "d" in letters else 0)


def slot_letters(flags: int) -> str:
    """The word that ``slot_flags`` reads as ``flags``."""
    return (("r" if flags & SLOT_READ_ONLY else "") + ("d" if flags & SLOT_LOGS else "")) or "-"


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
