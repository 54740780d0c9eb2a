"""The trace text of casemate: an S-expression for each write, barrier, TLBI, register write, hint and lock.

A record is ``(NAME (id N) (tid N) FIELDS... (src "FILE:LINE"))``; fields are ``(key value)`` or, in condensed
traces, the bare values in the same order. Numbers are decimal in ``id`` and ``tid`` and hexadecimal
elsewhere, with or without ``0x``: writers of different age differ, readers take both, this one writes it.
A line that begins with ``!`` between records is what the checker said.

Learnt from rems-project/casemate, release 3: the writer ``src/lib/src/trace.c`` at 049c3fef, the reader
``src/casemate-check-c/src/parser.c`` at 0683eed7, and stored logs up to cde6a9d9, which have the context
records. Older forms, ``(addr ..) (level ..)`` of a TLBI and the name ``msr``, are refused.

>>> record = parse_trace('(barrier (id 3) (tid 1) dsb (kind ish) (src "a.c:7"))').records[0]
>>> record.word, record.fields, record.source
('dsb', {'kind': 'ish'}, 'a.c:7')
>>> format_record(record)
'(barrier (id 3) (tid 1) dsb (kind ish) (src "a.c:7"))'
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from shadowmmu.formats.problem import FormatError

HEX: Final = "hex"
_Field = tuple[str, str | tuple[str, ...], int]
"""Key, HEX or the words allowed, and the bits of a number."""

_ADDRESS: Final = ("address", HEX, 64)
_VALUE: Final = ("value", HEX, 64)
_SIZE: Final = ("size", HEX, 64)
SYSTEM_REGISTERS: Final = (
    "vttbr_el2",
    "ttbr0_el2",
    "vtcr_el2",
    "hcr_el2",
    "tcr_el2",
    "sctlr_el2",
    "mair_el2",
)
HINTS: Final = ("set_root_lock", "set_owner_root", "release_table", "set_pte_thread_owner")
BARRIERS: Final = ("ish", "ishst", "nsh", "sy")

_FIELDS: Final[dict[str, tuple[_Field, ...]]] = {
    "mem-write": (("mem-order", ("plain", "release"), 0), _ADDRESS, _VALUE),
    "mem-read": (_ADDRESS, _VALUE),
    "mem-init": (_ADDRESS, _SIZE),
    "mem-free": (_ADDRESS, _SIZE),
    "mem-set": (_ADDRESS, _SIZE, ("value", HEX, 8)),
    "sysreg-write": (("sysreg", SYSTEM_REGISTERS, 0), _VALUE),
    "hint": (("kind", HINTS, 0), ("location", HEX, 64), _VALUE),
    "lock": (_ADDRESS,),
    "trylock": (_ADDRESS,),
    "unlock": (_ADDRESS,),
    "exit-context": (),
    "enter-context": (("el", HEX, 2),),
}
_BARE: Final[dict[str, dict[str, tuple[_Field, ...]]]] = {
    "barrier": {"isb": (), "dsb": (("kind", BARRIERS, 0),)},
    "tlbi": {
        **dict.fromkeys(("vmalls12e1", "vmalls12e1is", "vmalle1", "vmalle1is"), ()),
        **dict.fromkeys(("alle1", "alle1is", "alle2", "alle2is"), ()),
        **dict.fromkeys(("vale2is", "vae2is", "ipas2e1is"), (_VALUE,)),
    },
}
"""Records whose first field is a bare word that decides which follow."""

NAMES: Final = (*_FIELDS, *_BARE)

_TOKEN: Final = re.compile(r'\s+|[()]|"[^"\n]*"|[^\s()"]+')
_HEX: Final = re.compile(r"(?:0x)?[0-9a-fA-F]+")


@dataclass(frozen=True)
class Record:
    """One record.

    ``number``: its place in the run; ``word``: the bare word of a barrier or TLBI; ``fields``: what else it
    has, numbers as int; ``source``: "FILE:LINE", a key into a table kept elsewhere, or None.
    """

    name: str
    number: int
    thread: int
    word: str = ""
    fields: dict[str, int | str] = field(default_factory=dict)
    source: str | int | None = None

    def integer(self, key: str) -> int:
        """The number in field ``key``. Raises KeyError."""
        return int(self.fields[key])


@dataclass(frozen=True)
class Trace:
    """A trace: its records, the line each begins on, and what the checker said, by line."""

    records: tuple[Record, ...]
    lines: tuple[int, ...] = ()
    messages: tuple[tuple[int, str], ...] = ()


class _Reader:
    """The tokens of a text, each with its line."""

    def __init__(self, text: str, path: str) -> None:
        self.text, self.path = text, path
        self.at, self.line = 0, 1
        self._skip()

    def _skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.line += self.text[self.at] == "\n"
            self.at += 1

    def peek(self) -> str:
        """The next token, empty at the end. Raises FormatError for a character that begins none."""
        if self.at == len(self.text):
            return ""
        match = _TOKEN.match(self.text, self.at)
        if not match:
            raise self.error(self.text[self.at : self.at + 20], "a closing quote on the same line")
        return match[0]

    def take(self, expected: str) -> str:
        """The next token, which must not be the end."""
        token = self.peek()
        if not token:
            raise self.error("end of text", expected)
        self.at += len(token)
        self._skip()
        return token

    def accept(self, token: str) -> None:
        """Take exactly ``token``."""
        if self.peek() != token:
            raise self.error(self.peek() or "end of text", repr(token))
        self.take(token)

    def rest_of_line(self) -> str:
        """Everything up to the end of the line."""
        end = self.text.find("\n", self.at)
        end = len(self.text) if end < 0 else end
        found = self.text[self.at : end]
        self.at = end
        self._skip()
        return found

    def error(self, read: str, expected: str) -> FormatError:
        """What is wrong here."""
        return FormatError(self.path, self.line, read, expected)

    def value(self, key: str) -> str:
        """The value of ``key``: ``(key value)``, or the value alone."""
        if self.peek() != "(":
            return self._word(f"({key} ...) or its value")
        self.take("(")
        self.accept(key)
        found = self._word(f"the value of {key}")
        self.accept(")")
        return found

    def _word(self, expected: str) -> str:
        if self.peek() in ("(", ")"):
            raise self.error(self.peek(), expected)
        return self.take(expected)


def _number(reader: _Reader, key: str) -> int:
    line = reader.line
    text = reader.value(key)
    if not text.isdecimal() or not text.isascii():
        raise FormatError(reader.path, line, text, f"{key}: a decimal number")
    return int(text)


def _read_field(reader: _Reader, declared: _Field) -> int | str:
    key, kind, bits = declared
    line = reader.line
    text = reader.value(key)
    if isinstance(kind, tuple):
        if text not in kind:
            raise FormatError(reader.path, line, text, f"{key}: one of {', '.join(kind)}")
        return text
    if not _HEX.fullmatch(text) or int(text, 16) >> bits:
        raise FormatError(reader.path, line, text, f"{key}: a hexadecimal number of {bits} bits")
    return int(text, 16)


def _read_source(reader: _Reader) -> str | int | None:
    if reader.peek() == ")":
        return None
    line = reader.line
    text = reader.value("src")
    if text.startswith('"'):
        return text[1:-1]
    if text.isdecimal() and text.isascii():
        return int(text)
    raise FormatError(reader.path, line, text, 'src: "FILE:LINE" in quotes, or a decimal key')


def _read_record(reader: _Reader) -> Record:
    reader.accept("(")
    name = reader.peek()
    if name not in NAMES:
        raise reader.error(name or "end of text", f"one of {', '.join(NAMES)}")
    reader.take(name)
    number, thread = _number(reader, "id"), _number(reader, "tid")
    word = ""
    if name in _BARE:
        word = reader.peek()
        if word not in _BARE[name]:
            raise reader.error(word or "end of text", f"{name}: one of {', '.join(_BARE[name])}")
        reader.take(word)
    declared = _BARE[name][word] if name in _BARE else _FIELDS[name]
    fields = {each[0]: _read_field(reader, each) for each in declared}
    source = _read_source(reader)
    reader.accept(")")
    return Record(name, number, thread, word, fields, source)


def parse_trace(text: str, path: str = "trace") -> Trace:
    """Read a trace; O(characters). Raises FormatError at ``path`` and line."""
    reader = _Reader(text, path)
    records, lines, messages = [], [], []
    while reader.peek():
        if reader.peek().startswith("!"):
            messages.append((reader.line, reader.rest_of_line().removeprefix("!").strip()))
            continue
        lines.append(reader.line)
        records.append(_read_record(reader))
    return Trace(tuple(records), tuple(lines), tuple(messages))


def format_record(record: Record) -> str:
    """The record on one line, as casemate writes it. Raises ValueError for what the format cannot say."""
    declared = _BARE[record.name].get(record.word) if record.name in _BARE else _FIELDS.get(record.name)
    if declared is None or tuple(record.fields) != tuple(each[0] for each in declared):
        raise ValueError(f"{record.name} {record.word}: fields {list(record.fields)}")
    parts = [record.name, f"(id {record.number})", f"(tid {record.thread})"]
    if record.word:
        parts.append(record.word)
    for key, kind, bits in declared:
        value = record.fields[key]
        fits = 0 <= value < 1 << bits if isinstance(value, int) else value in kind
        if not fits or isinstance(value, int) != (kind == HEX):
            raise ValueError(f"{record.name}: {key} {value!r}")
        parts.append(f"({key} {value:#x})" if isinstance(value, int) else f"({key} {value})")
    if isinstance(record.source, str):
        if '"' in record.source or "\n" in record.source:
            raise ValueError(f"src {record.source!r} has a quote or a line end")
        parts.append(f'(src "{record.source}")')
    elif record.source is not None:
        parts.append(f"(src {record.source})")
    return f"({' '.join(parts)})"


def format_trace(records: Iterable[Record]) -> str:
    """The text of a trace, a record a line."""
    return "".join(f"{format_record(record)}\n" for record in records)
