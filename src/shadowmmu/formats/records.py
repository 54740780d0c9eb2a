"""The lines that the rig's VMM prints after a command, as records.

Every line it can print has one pattern here; a line that fits none is an error, so nothing of an answer is
overlooked. Numbers are integers; times in ``ns`` are instructions when the run's clock counted them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from shadowmmu.formats.problem import FormatError


@dataclass(frozen=True)
class Touch:
    """What L1 saw after L2 ran: ``touch`` line of the VMM.

    ``esr`` 0x5a000000 is L2's final HVC; other values are faults injected into L1 with ``far``, ``hpfar``
    (bit 63 set by KVM) and ``elr``. ``left`` counts the accesses not done, ``total`` sums what was read.
    """

    operation: str
    va: int
    stride: int
    count: int
    esr: int
    far: int
    hpfar: int
    elr: int
    left: int
    total: int
    ns: int

    @property
    def finished(self) -> bool:
        """Whether L2 did all its accesses and made its HVC."""
        return self.esr >> 26 == 0x16 and self.left == 0


@dataclass(frozen=True)
class PageFrame:
    """A ``pagemap`` line: the host frame (byte address) behind a canonical page, None if there is none."""

    canonical_ipa: int
    pa: int | None


@dataclass(frozen=True)
class Printed:
    """Any other line: what it is (``map``, ``dontneed``, ``dirty``...), its numbers, its list of numbers."""

    what: str
    fields: dict[str, int] = field(default_factory=dict)
    values: tuple[int, ...] = ()


Record = Touch | PageFrame | Printed

_N = r"(?:0x[0-9a-f]+|-?[0-9]+)"
_TOUCH = re.compile(
    rf"touch (\S+) addr=({_N}) stride=({_N}) count=({_N}) : esr=({_N}) far=({_N}) hpfar=({_N})"
    rf" elr=({_N}) left=({_N}) sum=({_N}) ns=({_N})"
)
_PAGEMAP = re.compile(rf"pagemap cipa=({_N}) (?:hpa=({_N})|none)")
_DIRTY = re.compile(rf"dirty:((?: {_N})*) total=({_N})")
_RING = re.compile(rf"ring ([0-9]+):((?: {_N})*) total=({_N})")
_HOST = "dontneed|munmap|mmap|hugepage|nohugepage|collapse|mergeable|pageout|write|ret|mprotect"
_SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("cap", re.compile(rf"cap ARM_EL2={_N} ARM_EL2_E2H0={_N} VM_IPA_SIZE={_N}")),
    ("l1", re.compile(rf"L1 CurrentEL={_N} hcr={_N}(?: (?:mmfr[0124]|isar0)={_N})+")),
    ("s2", re.compile(rf"s2 root={_N} vttbr={_N} vtcr={_N}")),
    ("map", re.compile(rf"map pool={_N} ns={_N}")),
    ("tlbi", re.compile(r"tlbi kind=\w+ value=\w+ ns=[0-9]+")),
    ("peek", re.compile(rf"peek (?P<at>\w+) = (?P<value>{_N})")),
    ("par", re.compile(rf"par (?P<value>{_N})")),
    ("load2", re.compile(rf"load2 r={_N} errno={_N}")),
    ("", re.compile(rf"(?P<what>{_HOST}) cipa={_N} size={_N} r={_N} ns={_N}")),
    ("ksm", re.compile(rf"ksm shared={_N} sharing={_N}")),
    ("migrate", re.compile(rf"migrate cipa={_N} size={_N} moved={_N}")),
    ("khugepaged", re.compile(rf"khugepaged collapsed={_N}")),
    ("", re.compile(r"(?P<what>log|slot) (?P<on>\w+) ns=[0-9]+")),
    ("getlog", re.compile(r"getlog ns=[0-9]+")),
    ("memslot", re.compile(r"memslot [0-9]+ ns=[0-9]+")),
    ("clearlog", re.compile(r"clearlog ns=[0-9]+")),
    ("ringfull", re.compile(r"RINGFULL")),
    ("reset", re.compile(rf"reset r={_N}")),
    ("idle", re.compile(rf"idle set cipa={_N} r={_N}")),
    ("idleget", re.compile(rf"idle get cipa={_N} r={_N} idle={_N}")),
    ("write_failed", re.compile(r"WRITE FAILED .*")),
    ("efault", re.compile(rf"EFAULT mprotect-all-rw r={_N}")),
    ("mmio", re.compile(rf"MMIO addr={_N} len={_N} write={_N}")),
    ("l1exc", re.compile(r"L1EXC addr=(?P<at>[0-9a-f]+) data=(?P<data>[0-9a-f]+)")),
)
_ASSIGNED = re.compile(rf"(\w+)=({_N})(?![\w])")
_UNITS = {"k": 10, "K": 10, "M": 20, "G": 30}


def read_record(line: str, path: str, number: int) -> Record:
    """The record of one printed line. Raises FormatError if no command prints such a line."""
    if match := _PAGEMAP.fullmatch(line):
        return PageFrame(int(match[1], 16), int(match[2], 16) if match[2] else None)
    if match := _TOUCH.fullmatch(line):
        values = [_integer(text) for text in match.groups()[1:]]
        return Touch(match[1], *values)
    if match := _DIRTY.fullmatch(line):
        places = tuple(_integer(text) for text in match[1].split())
        return Printed("dirty", {"total": _integer(match[2])}, places)
    if match := _RING.fullmatch(line):
        places = tuple(_integer(text) for text in match[2].split())
        return Printed("ring", {"vcpu": int(match[1]), "total": _integer(match[3])}, places)
    for what, shape in _SHAPES:
        if match := shape.fullmatch(line):
            return _printed(what, match, path, number)
    raise FormatError(path, number, line, "a line that the VMM prints")


def _printed(what: str, match: re.Match[str], path: str, number: int) -> Printed:
    named = match.groupdict()
    name = what or named.pop("what")
    if name == "write_failed":
        return Printed(name)
    fields = {key: _integer(text) for key, text in _ASSIGNED.findall(match[0])}
    try:
        if name == "l1exc":
            fields = {key: int(text, 16) for key, text in named.items()}
        else:
            fields |= {key: _typed(text) for key, text in named.items()}
        if name == "tlbi":
            fields |= {key: _typed(text) for key, text in re.findall(r"(kind|value)=(\w+)", match[0])}
    except ValueError:
        raise FormatError(path, number, match[0], "numbers") from None
    return Printed(name, fields)


def _integer(text: str) -> int:
    return int(text, 16) if text.startswith("0x") else int(text)


def _typed(text: str) -> int:
    """A number as the script had it, which the VMM echoes: C notation with k, M, G. Raises ValueError."""
    shift = _UNITS.get(text[-1:], 0)
    digits = text[:-1] if shift else text
    if digits.startswith(("0x", "0X")):
        return int(digits, 16) << shift
    return int(digits, 8 if digits.startswith("0") and digits != "0" else 10) << shift
