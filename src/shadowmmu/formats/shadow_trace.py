"""What a live host says about its shadow tables: a stream of ftrace lines, read as they come.

Reads the printed trace buffer, ``trace_pipe``, ``trace-cmd report``, ``perf script`` and the console log of
the rig (which holds buffers between ``--- TAG .../trace`` and ``--- end``), plain or compressed with gzip or
xz, from a file or standard input. Only the events of ``FIELDS`` are kept (docs/replay.md says how to record
them); others are counted by name. Strict: inside a buffer a line that is no event is an error.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO, Final, NamedTuple, cast

from shadowmmu.errors import InputError
from shadowmmu.formats.problem import FormatError

FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "s2map": ("pgt", "vttbr", "addr", "size", "phys", "prot"),
    "s2map_ret": ("ret",),
    "s2relax": ("pgt", "addr", "prot"),
    "s2range": ("pgt", "addr", "size"),
    "unmap_gfn": ("start", "end"),
    "unmap_gfn_ret": (),
    "nested_unmap": (),
    "nested_unmap_ret": (),
    "nested_wp": (),
    "tlbi_ipas2": ("val",),
    "tlbi_ripas2": ("val",),
    "tlbi_vmalls12": (),
    "tlbi_alle1": (),
}
"""The events that are read, and the fields each must have."""

STDIN: Final = "-"
SUFFIX: Final = ".txt.xz"
LINE_BYTES: Final = 65536
"""No line of a trace is longer; a longer one means that this is none."""

_EVENT = re.compile(
    r"\s*(\S.*?)[-\s]\s*([0-9]+)\s+(?:\([-\s0-9]+\)\s+)?\[[0-9]+\]\s+(?:\S{3,8}\s+)?([0-9]+)\.([0-9]{6}(?:[0-9]{3})?):"
    r"\s+(?:\w+:)?(\w+):\s*(.*)"
)
_VALUE = re.compile(r"(\w+)=(-?(?:0x[0-9a-f]+|[0-9]+))(?![\w.])")
_LOST = re.compile(r"CPU:\s*[0-9]+ \[LOST ([0-9]+) EVENTS\]")
_ENTRIES = re.compile(r"# entries-in-buffer/entries-written: ([0-9]+)/([0-9]+)\s.*")
_LIMIT = re.compile(r"\[ *[0-9]+\.[0-9]+\] kvm \[[0-9]+\]: IPA Size Limit: ([0-9]+) bits")
_OPEN = re.compile(r"--- \S+ /\S+/trace")
_CLOSE = "--- end"
_PIECE = re.compile(rf"\b(?:{'|'.join(FIELDS)}): ")


class ShadowEvent(NamedTuple):
    """One event: its line, the thread that ran it, nanoseconds of the trace clock, its fields."""

    line_number: int
    thread: int
    time_ns: int
    name: str
    values: dict[str, int]


@dataclass
class ShadowTrace:
    """A trace to be iterated once. The counts are complete when the iteration is.

    ``lost`` is what the kernel says it dropped or overwrote; ``cut`` is 1 if the last line has no end where
    others have one, so that its last number may be half of one: it is left out. ``skipped`` counts the events
    of other names, ``backwards`` events older than the one before them, ``foreign`` lines that other programs
    wrote into a console log. ``ipa_limit_bits`` is 0 where the text does not say it. Iterating raises
    FormatError.
    """

    lines: Iterable[str]
    path: str = "trace"
    line_count: int = 0
    events: int = 0
    lost: int = 0
    cut: int = 0
    backwards: int = 0
    foreign: int = 0
    ipa_limit_bits: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    _last_ns: int = 0
    _line_ends: bool = False

    def __iter__(self) -> Iterator[ShadowEvent]:
        console = False
        inside = False
        found = False
        for number, raw in enumerate(self.lines, 1):
            line = raw.rstrip("\r\n")
            self.line_count = number
            if not line.strip():
                continue
            self._line_ends |= raw.endswith("\n")
            if inside and not console and self._line_ends and not raw.endswith("\n"):
                self.cut = 1
                return
            if not found and not console:  # the first line says what this is
                console = not (line.startswith("#") or _EVENT.fullmatch(line) or _LOST.match(line.strip()))
                inside = found = not console
            if inside and not (console and line == _CLOSE):
                event = self._buffer_line(line, number, console)
                if event is not None:
                    yield event
            elif inside:
                inside = False
            elif _OPEN.fullmatch(line):
                inside = found = True
            elif limit := _LIMIT.fullmatch(line):
                self.ipa_limit_bits = self.ipa_limit_bits or int(limit[1])
        if not found:
            expected = "the lines of a trace buffer, or a log with one after '--- TAG .../trace'"
            raise FormatError(self.path, self.line_count, "end of the text", expected)
        if console and inside:
            raise FormatError(self.path, self.line_count, "end of the log", f"'{_CLOSE}' of the buffer")

    def _buffer_line(self, line: str, number: int, console: bool) -> ShadowEvent | None:
        if line.startswith("#"):
            if entries := _ENTRIES.fullmatch(line + " "):
                self.lost += max(0, int(entries[2]) - int(entries[1]))
            return None
        match = _EVENT.fullmatch(line)
        if match is None:
            if lost := _LOST.fullmatch(line.strip()):
                self.lost += int(lost[1])
                return None
            if console and not _PIECE.search(line):
                self.foreign += 1
                return None
            raise FormatError(self.path, number, line[:200], "an event: TASK-PID [CPU] FLAGS TIME: NAME: ...")
        name = match[5]
        wanted = FIELDS.get(name)
        if wanted is None:
            self.skipped[name] += 1
            return None
        values = {key: int(text, 16 if "x" in text else 10) for key, text in _VALUE.findall(match[6])}
        if any(key not in values for key in wanted):
            raise FormatError(self.path, number, line[:200], f"{name} with the fields {', '.join(wanted)}")
        time_ns = int(match[3]) * 1_000_000_000 + int(match[4].ljust(9, "0"))
        self.backwards += time_ns < self._last_ns
        self._last_ns = time_ns
        self.events += 1
        return ShadowEvent(number, int(match[2]), time_ns, name, values)


def _decompressed(raw: io.BufferedReader) -> IO[bytes]:
    """The stream, through gzip or xz if its first bytes say so."""
    head = raw.peek(6)[:6]
    if head.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if head == b"\xfd7zXZ\0":
        return cast("IO[bytes]", lzma.LZMAFile(raw))
    return raw


def _text_lines(stream: IO[bytes], path: str) -> Iterator[str]:
    number = 0
    try:
        while line := stream.readline(LINE_BYTES):
            number += 1
            if len(line) == LINE_BYTES and not line.endswith(b"\n"):
                raise FormatError(path, number, repr(line[:40]), f"lines of less than {LINE_BYTES} bytes")
            yield line.decode("utf-8", "replace")  # a task's name may be any bytes
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise FormatError(path, number + 1, str(error), "a whole gzip or xz file") from None


def bundled_traces() -> dict[str, Traversable]:
    """The traces that ship with the package, by name."""
    folder = files("shadowmmu") / "data" / "traces"
    found = [path for path in folder.iterdir() if path.name.endswith(SUFFIX)]
    return {path.name.removesuffix(SUFFIX): path for path in sorted(found, key=lambda path: path.name)}


@contextmanager
def open_shadow_trace(name: str) -> Iterator[ShadowTrace]:
    """A trace by file name, the name of a bundled one, or ``-`` for standard input.

    Raises InputError where there is none of that name or it cannot be opened; iterating raises FormatError.
    """
    if name == STDIN:
        yield ShadowTrace(
            _text_lines(_decompressed(cast("io.BufferedReader", sys.stdin.buffer)), "<stdin>"), "<stdin>"
        )
        return
    path: Traversable = Path(name)
    if not path.is_file():
        try:
            path = bundled_traces()[name]
        except KeyError:
            known = ", ".join(bundled_traces())
            raise InputError(f"read '{name}', expected a trace file, '-', or one of {known}") from None
    try:
        raw = cast("io.BufferedReader", path.open("rb"))
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from None
    with raw:
        yield ShadowTrace(_text_lines(_decompressed(raw), name), name)
