"""The real kernel's answer to a scenario: the console log of the rig, read into steps.

A log is the boot messages, then for each command ``> COMMAND`` and what it printed, then ``VMM done`` and the
kernel's last words. ``--- TAG FILE`` opens a printed file (a page-table dump, the trace buffer, a histogram)
and ``--- end`` closes a group of them. Reading is strict: a line that belongs to nothing is an error.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from shadowmmu.formats.ftrace import Trace, TraceEvent, parse_trace
from shadowmmu.formats.problem import FormatError
from shadowmmu.formats.ptdump import PtDump, parse
from shadowmmu.formats.records import PageFrame, Printed, Record, Touch, read_record

CANONICAL_FILE = "stage2_page_tables"

_OPEN = re.compile(r"--- (\S+) (stage2_page_tables|nested/nested_mmu[0-9]+|/\S+)")
_LIMIT = re.compile(r".*kvm \[[0-9]+\]: IPA Size Limit: ([0-9]+) bits")
_HIST_ROW = re.compile(r"\{ (.*?) \} hitcount: +([0-9]+)")
_HIST_KEY = re.compile(r"(\w+): +([0-9]+)")
_HIST_TOTAL = re.compile(r"    (Hits|Entries|Dropped): ([0-9]+)")
_BOOT = re.compile(r"RIG up .*|\[ *[0-9]+\.[0-9]+\] .*|PROBE FAILED .*")
_LAST = re.compile(r"RIG vmm rc=(-?[0-9]+)|RIG down .*|\[ *[0-9]+\.[0-9]+\] .*")
_WARNING = re.compile(r"\[ *[0-9]+\.[0-9]+\] (?:WARNING|BUG|Tainted|.*Oops).*")
DONE = "VMM done"


@dataclass(frozen=True)
class Histogram:
    """A printed event histogram: rows of (keys, hits) in file order, and its totals."""

    path: str
    rows: tuple[tuple[dict[str, int], int], ...]
    hits: int
    entries: int
    dropped: int


@dataclass(frozen=True)
class Step:
    """One command and everything it printed.

    ``number`` is its line in the log. ``dumps`` are keyed by file: ``stage2_page_tables`` (canonical) or
    ``nested/nested_mmuN``; ``dump_lines`` holds the same as the raw lines. ``tag`` is the tag of a dump.
    """

    number: int
    command: str
    output: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    tag: str = ""
    dump_lines: tuple[tuple[str, tuple[str, ...]], ...] = ()
    parsed_dumps: tuple[tuple[str, PtDump], ...] = ()
    trace: Trace | None = None
    histogram: Histogram | None = None

    @property
    def dumps(self) -> dict[str, PtDump]:
        """The dumps by file name."""
        return dict(self.parsed_dumps)

    @property
    def lines_of(self) -> dict[str, tuple[str, ...]]:
        """The raw lines of the dumps by file name."""
        return dict(self.dump_lines)

    @property
    def touch(self) -> Touch | None:
        """The result of a touch command."""
        return next((r for r in self.records if isinstance(r, Touch)), None)

    @property
    def frames(self) -> dict[int, int | None]:
        """Canonical IPA to host PA (None: no page) of a pagemap command."""
        return {r.canonical_ipa: r.pa for r in self.records if isinstance(r, PageFrame)}

    def printed(self, what: str) -> tuple[Printed, ...]:
        """The other records of one sort, in order."""
        return tuple(r for r in self.records if isinstance(r, Printed) and r.what == what)


@dataclass(frozen=True)
class Answer:
    """A whole log. ``ipa_limit_bits`` is the host's; ``warnings`` are what the kernel complained about."""

    path: str
    steps: tuple[Step, ...]
    ipa_limit_bits: int
    boot: tuple[str, ...]
    warnings: tuple[str, ...]
    return_code: int

    @property
    def dumps(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """Raw lines of every dump by (tag, file); of two with the same tag the later one."""
        return {(s.tag, file): lines for s in self.steps for file, lines in s.dump_lines}

    @property
    def events(self) -> tuple[TraceEvent, ...]:
        """Every traced event of the run, markers among them, in the order printed."""
        return tuple(event for step in self.steps if step.trace for event in step.trace.events)


@dataclass
class _Section:
    number: int
    tag: str
    file: str
    lines: list[str]


def parse_answer(text: str, path: str = "answer") -> Answer:
    """Read a whole log; O(length). Raises FormatError at the first line that does not belong."""
    lines = text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    first = next((i for i, line in enumerate(lines) if line.startswith("> ")), None)
    if first is None:
        raise FormatError(path, len(lines), "end of the log", "a command, '> ...'")
    end = next((i for i in range(first, len(lines)) if lines[i] == DONE), None)
    if end is None:
        raise FormatError(path, len(lines), "end of the log", f"'{DONE}': the run was cut short")
    limit = _boot(lines[:first], path)
    starts = [i for i in range(first, end) if lines[i].startswith("> ")] + [end]
    steps = tuple(_step(lines[here:after], path, here + 1) for here, after in pairwise(starts))
    warnings, code = _last_words(lines[end + 1 :], path, end + 2)
    return Answer(path, steps, limit, tuple(lines[:first]), warnings, code)


def read_answer(path: str | Path) -> Answer:
    """Read a log from a file, plain or ``.xz``. Raises OSError, FormatError."""
    return decode_answer(Path(path).read_bytes(), str(path))


def decode_answer(content: bytes, path: str) -> Answer:
    """Read a log from the bytes of the file ``path``, compressed if that ends in .xz. Raises FormatError."""
    if path.endswith(".xz"):
        try:
            content = lzma.decompress(content)
        except lzma.LZMAError as error:
            raise FormatError(path, 0, str(error), "an xz file") from None
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise FormatError(path, number, repr(content[error.start : error.start + 8]), "UTF-8 text") from None
    return parse_answer(text, path)


def _boot(lines: list[str], path: str) -> int:
    limits = []
    for number, line in enumerate(lines, 1):
        if not _BOOT.fullmatch(line):
            raise FormatError(path, number, line, "a boot message or a command, '> ...'")
        if match := _LIMIT.fullmatch(line):
            limits.append(int(match[1]))
    if len(limits) != 1:
        raise FormatError(
            path, len(lines), f"{len(limits)} of them", "one boot message with the IPA Size Limit"
        )
    return limits[0]


def _last_words(lines: list[str], path: str, first: int) -> tuple[tuple[str, ...], int]:
    warnings = []
    codes = []
    for number, line in enumerate(lines, first):
        match = _LAST.fullmatch(line)
        if not match:
            raise FormatError(path, number, line, "the end of the run")
        if match[1]:
            codes.append(int(match[1]))
        if _WARNING.fullmatch(line):
            warnings.append(line)
    if len(codes) != 1:
        raise FormatError(path, first - 1 + len(lines), f"{len(codes)} of them", "one line 'RIG vmm rc=...'")
    return tuple(warnings), codes[0]


def _step(lines: list[str], path: str, number: int) -> Step:
    command = lines[0][2:]
    output: list[str] = []
    records: list[Record] = []
    sections: list[_Section] = []
    is_open = False
    for at, line in enumerate(lines[1:], number + 1):
        if line == "--- end":
            if not is_open:
                raise FormatError(path, at, line, "no end: nothing is open")
            is_open = False
        elif line.startswith("--- "):
            sections.append(_opened(line, path, at, is_open, sections))
            is_open = True
        elif is_open:
            sections[-1].lines.append(line)
        else:
            output.append(line)
            records.append(read_record(line, path, at))
    if is_open and command.split()[:1] != ["cat"]:
        raise FormatError(path, number + len(lines) - 1, lines[-1], "'--- end' of the printed files")
    return _assembled(Step(number, command, tuple(output), tuple(records)), sections, path)


def _opened(line: str, path: str, at: int, is_open: bool, sections: list[_Section]) -> _Section:
    match = _OPEN.fullmatch(line)
    if not match:
        raise FormatError(path, at, line, "'--- TAG FILE' or '--- end'")
    if sections and (not is_open or sections[0].tag != match[1]):
        raise FormatError(path, at, line, "one group of files with one tag for each command")
    if any(section.file == match[2] for section in sections):
        raise FormatError(path, at, line, "each file once")
    return _Section(at, match[1], match[2], [])


def _assembled(step: Step, sections: list[_Section], path: str) -> Step:
    if not sections:
        return step
    tables = [s for s in sections if not s.file.startswith("/")]
    others = [s for s in sections if s.file.startswith("/")]
    trace = histogram = None
    if others and (tables or len(others) > 1):
        raise FormatError(path, others[0].number, others[0].file, "dumps only, or one other file")
    for section in others:
        if section.file.endswith("/trace"):
            trace = parse_trace(section.lines, path, section.number + 1)
        elif section.file.endswith("/hist"):
            histogram = _histogram(section, path)
        else:
            raise FormatError(path, section.number, section.file, "the trace buffer or a histogram")
    return Step(
        step.number,
        step.command,
        step.output,
        step.records,
        sections[0].tag,
        tuple((s.file, tuple(s.lines)) for s in tables),
        tuple((s.file, parse(s.lines, path, s.number + 1)) for s in tables),
        trace,
        histogram,
    )


def _histogram(section: _Section, path: str) -> Histogram:
    rows: list[tuple[dict[str, int], int]] = []
    totals: dict[str, int] = {}
    for number, line in _content(section):
        if match := _HIST_ROW.fullmatch(line):
            keys = [_HIST_KEY.fullmatch(part) for part in match[1].split(", ")]
            if None in keys:
                raise FormatError(path, number, line, "key: number pairs")
            rows.append(({key[1]: int(key[2]) for key in keys if key}, int(match[2])))
        elif match := _HIST_TOTAL.fullmatch(line):
            totals[match[1]] = int(match[2])
        elif line != "Totals:":
            raise FormatError(path, number, line, "a row or a total of a histogram")
    if set(totals) != {"Hits", "Entries", "Dropped"}:
        raise FormatError(
            path, section.number + len(section.lines), section.file, "Hits, Entries and Dropped"
        )
    return Histogram(section.file, tuple(rows), totals["Hits"], totals["Entries"], totals["Dropped"])


def _content(section: _Section) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(section.lines, section.number + 1):
        if line and not line.startswith("#"):
            yield number, line
