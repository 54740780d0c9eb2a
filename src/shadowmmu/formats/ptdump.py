"""The kernel's stage-2 page-table dump (debugfs ``stage2_page_tables`` and ``nested/nested_mmuN``).

A dump is a header (shadow MMUs only), a banner, and one row for each maximal run of entries with the same
level and the same masked attribute bits; holes are rows without attributes. Output addresses are not
shown. Written and read exactly, trailing blanks included, as Linux 7.3.4 does
(``arch/arm64/kvm/ptdump.c``, ``arch/arm64/mm/ptdump.c``), against which every recorded dump is a test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from shadowmmu.formats.problem import FormatError

BANNER = "---[ Guest IPA ]---"
UNITS = "KMGTPE"

VALID = 1 << 0
TYPE = 3 << 0
BLOCK_TYPE = 1
PAGE_TYPE = 3
READ = 1 << 6
WRITE = 1 << 7
ACCESS_FLAG = 1 << 10
EXECUTE_NEVER = 3 << 53


@dataclass(frozen=True)
class Field:
    """One column of a row: under ``mask``, ``value`` prints ``set_text``, anything else ``clear_text``."""

    mask: int
    value: int
    set_text: str
    clear_text: str = ""

    def text(self, bits: int) -> str:
        """What this column prints for ``bits``, with its leading blank; nothing if it has no text."""
        text = self.set_text if bits & self.mask == self.value else self.clear_text
        return f" {text}" if text else ""


FIELDS = (
    Field(VALID, VALID, " ", "F"),
    Field(READ, READ, "R", " "),
    Field(WRITE, WRITE, "W", " "),
    Field(EXECUTE_NEVER, 0 << 53, "px ux "),
    Field(EXECUTE_NEVER, 1 << 53, "PXNux "),
    Field(EXECUTE_NEVER, 2 << 53, "PXNUXN"),
    Field(EXECUTE_NEVER, 3 << 53, "px UXN"),
    Field(ACCESS_FLAG, ACCESS_FLAG, "AF", "  "),
    Field(TYPE, BLOCK_TYPE, "BLK", "   "),
)
"""``stage2_pte_bits`` of the kernel, in printing order."""

MASK = TYPE | READ | WRITE | ACCESS_FLAG | EXECUTE_NEVER
"""The descriptor bits that a dump shows; runs are merged over these only."""

HIDDEN = TYPE & ~VALID
"""Bit 1 separates the rows of invalid entries, but is not printed there: two such rows can read alike.
A reader takes it as 0, or as 1 where the row before is otherwise the same."""

_HEADER = re.compile(r"VTCR: 0x([0-9a-f]{16}) VTTBR: 0x([0-9a-f]{16}) s2: (enabled|disabled)")
_ROW = re.compile(
    r"0x([0-9a-f]{16})-0x([0-9a-f]{16})   ([ 0-9]{9}[0-9]*)([KMGTPE]) ([0-3])"
    r"(?: ([ F]) ([R ]) ([W ]) (px ux |PXNux |PXNUXN|px UXN) (AF|  ) (BLK|   ))?"
)
_NEVER = {"px ux ": 0 << 53, "PXNux ": 1 << 53, "PXNUXN": 2 << 53, "px UXN": 3 << 53}


@dataclass(frozen=True)
class Header:
    """First line of a valid shadow MMU's dump: L1's VTCR_EL2 and VTTBR_EL2, and HCR_EL2.VM."""

    vtcr: int
    vttbr: int
    enabled: bool

    def text(self) -> str:
        """The line as the kernel prints it."""
        state = "enabled" if self.enabled else "disabled"
        return f"VTCR: 0x{self.vtcr:016x} VTTBR: 0x{self.vttbr:016x} s2: {state}"


@dataclass(frozen=True, order=True)
class Run:
    """Input addresses ``[start, end)`` whose entries share ``level`` and the masked descriptor ``bits``.

    Addresses are nested IPAs in a shadow's dump, canonical IPAs in the canonical one. ``bits`` is 0 for a
    hole. Output addresses are unknown.
    """

    start: int
    end: int
    level: int
    bits: int

    @property
    def valid(self) -> bool:
        """Whether the entries are valid leaves."""
        return bool(self.bits & VALID)

    def text(self) -> str:
        """The row as the kernel prints it."""
        attributes = "".join(f.text(self.bits) for f in FIELDS) if self.bits & MASK else ""
        return (
            f"0x{self.start:016x}-0x{self.end:016x}   {_size(self.end - self.start)} {self.level}{attributes}"
        )


@dataclass(frozen=True)
class PtDump:
    """A dump that was read: its header (None on the canonical table and on an invalid MMU) and its rows."""

    header: Header | None
    rows: tuple[Run, ...]

    @property
    def empty(self) -> bool:
        """Whether the file was empty: the shadow MMU was not valid."""
        return self.header is None and not self.rows

    def leaves(self) -> tuple[Run, ...]:
        """The rows that are mapped."""
        return tuple(row for row in self.rows if row.valid)


def _size(size: int) -> str:
    """The size column: KiB divided by 1024 while it divides, nine columns and a unit."""
    value, unit = size >> 10, 0
    while value % 1024 == 0 and value and unit + 1 < len(UNITS):
        value, unit = value >> 10, unit + 1
    return f"{value:9d}{UNITS[unit]}"


def merge(runs: Iterable[tuple[int, int, int, int]]) -> list[Run]:
    """Maximal runs of ``(start, end, level, descriptor bits)`` given in ascending order; O(runs).

    Bits outside ``MASK`` are dropped. Raises ValueError unless the runs are not empty, 4K aligned, of
    level 0 to 3, start at 0 and each begins where the one before ends, as a walk of a table does.
    """
    merged: list[Run] = []
    expected = 0
    for run in runs:
        start, end, level, masked = int(run[0]), int(run[1]), int(run[2]), int(run[3]) & MASK
        if start != expected:
            raise ValueError(f"run at {start:#x}, expected it at {expected:#x}: a dump has no gaps")
        if end <= start or end >> 64 or end & 0xFFF:
            raise ValueError(f"run {start:#x}-{end:#x} is empty or not 4K aligned")
        if not 0 <= level <= 3:
            raise ValueError(f"run {start:#x}-{end:#x} has level {level}")
        if merged and (merged[-1].level, merged[-1].bits) == (level, masked):
            merged[-1] = Run(merged[-1].start, end, level, masked)
        else:
            merged.append(Run(start, end, level, masked))
        expected = end
    return merged


def render(runs: Iterable[tuple[int, int, int, int] | Run], header: Header | None = None) -> list[str]:
    """The lines of a dump (without newlines) of runs ``(start, end, level, descriptor bits)``; O(runs).

    Runs may be merged already or not; holes are runs with bits 0. No runs and no header give the empty
    dump of an invalid shadow MMU. Raises ValueError as ``merge``.
    """
    rows = merge((r.start, r.end, r.level, r.bits) if isinstance(r, Run) else r for r in runs)
    lines = [header.text()] if header else []
    if rows:
        lines.append(BANNER)
    return lines + [row.text() for row in rows]


def parse(lines: Sequence[str], path: str = "ptdump", first_line: int = 1) -> PtDump:
    """Read the lines of one dump (without newlines); O(lines).

    ``path`` and ``first_line`` name the place in error messages. Raises FormatError unless every line is
    exactly what the kernel prints and the rows follow each other from 0 without gaps.
    """
    at = 0
    header = None
    if lines and (match := _HEADER.fullmatch(lines[0])):
        header = Header(int(match[1], 16), int(match[2], 16), match[3] == "enabled")
        at = 1
    if at < len(lines):
        if lines[at] != BANNER:
            raise FormatError(path, first_line + at, lines[at], "the banner " + BANNER)
        at += 1
        if at == len(lines):
            raise FormatError(path, first_line + at - 1, lines[at - 1], "a row after the banner")
    rows: list[Run] = []
    for number, line in enumerate(lines[at:], first_line + at):
        row = _row(line, path, number)
        start = rows[-1].end if rows else 0
        if row.start != start:
            raise FormatError(path, number, line, f"a row that starts at {start:#x}")
        if rows and _alike(rows[-1], row):
            row = replace(row, bits=row.bits ^ HIDDEN) if row.bits & ~TYPE and not row.valid else row
            if _alike(rows[-1], row):
                raise FormatError(path, number, line, "a row that differs from the one before")
        rows.append(row)
    return PtDump(header, tuple(rows))


def _alike(one: Run, other: Run) -> bool:
    return (one.level, one.bits) == (other.level, other.bits)


def _row(line: str, path: str, number: int) -> Run:
    match = _ROW.fullmatch(line)
    if not match:
        raise FormatError(path, number, line, "a row of a page-table dump")
    bits = 0
    if match[6]:
        bits |= READ if match[7] == "R" else 0
        bits |= WRITE if match[8] == "W" else 0
        bits |= _NEVER[match[9]]
        bits |= ACCESS_FLAG if match[10] == "AF" else 0
        if match[6] == " ":
            bits |= BLOCK_TYPE if match[11] == "BLK" else PAGE_TYPE
        elif not bits:
            bits = HIDDEN  # attributes are printed only if a bit is set, and no other is
    row = Run(int(match[1], 16), int(match[2], 16), int(match[5]), bits)
    if row.end <= row.start or row.start & 0xFFF or row.end & 0xFFF or row.text() != line:
        raise FormatError(path, number, line, "a row whose range, size and attributes agree")
    return row
