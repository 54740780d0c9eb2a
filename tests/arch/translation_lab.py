"""What the tests of whole translations share: a machine to fill with tables and to ask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from arch_book import Book, Stage, held_address

from shadowmmu.arch import operation
from shadowmmu.arch.answer import ANSWER, answers
from shadowmmu.arch.context import FEATURES, Implementation, context, implementation
from shadowmmu.compiled import U64

MEM = np.zeros(1 << 20, np.uint64)
"""8M of physical memory, cleared word by word after use."""
END = MEM.size * 8
ALL = frozenset(FEATURES.fields) - {"MTE2"}
FAULTS = ["none", "address size", "translation", "access flag", "permission", "walk abort", "abort"]


class Seen(NamedTuple):
    """An answer in plain numbers."""

    par: int
    esr: int
    far: int
    hpfar: int
    target: int
    kind: int
    level: int
    stage: int
    s1ptw: int
    pa: int
    level1: int
    level2: int

    @property
    def fault(self) -> str:
        """The fault as the tests write it: ``"permission 3"``, with ``"s2 "`` or ``"s2 ptw "`` before it."""
        if self.kind == 0:
            return "none"
        where = "s2 " * (self.stage == 2) + "ptw " * self.s1ptw
        return f"{where}{FAULTS[self.kind]} {self.level}"


@dataclass
class Machine:
    """Registers, features, and the words written to memory."""

    registers: dict[str, int]
    features: frozenset[str] = ALL
    pa_bits: int = 52
    words: dict[int, int] = field(default_factory=dict)

    @property
    def implementation(self) -> Implementation:
        return implementation(self.pa_bits, *self.features)

    def put(self, pa: int, word: int, big: bool = False) -> None:
        """A descriptor at ``pa``."""
        self.words[pa] = int.from_bytes(word.to_bytes(8, "little"), "big" if big else "little")

    def path(self, s: Stage, ia: int, leaf: int, level: int, tables: int, **extra: int) -> None:
        """Tables from a stage's start down to ``leaf`` at ``level``; one table a level, from ``tables`` up.

        ``big``: byte order; ``bits``: what every table descriptor holds besides; ``shift``: what is added to
        an address of the walk to get the physical one.
        """
        at, stride = s.base, s.granule - 3
        below = ia >> (s.granule + stride * (3 - s.start))
        for here in range(s.start, level + 1):
            if here > s.start:
                below = (ia >> (s.granule + stride * (3 - here))) % (1 << stride)
            following = tables + ((here - s.start) << 16)
            word = leaf if here == level else following | 3 | extra.get("bits", 0)
            self.put(at + extra.get("shift", 0) + 8 * below, word, bool(extra.get("big")))
            at = following

    def ask_all(self, queries: list[tuple[str, int]], update: bool = False) -> list[Seen]:
        """Answers to (operation, address) in order; memory is left as the last one left it."""
        for pa, word in self.words.items():
            MEM[pa // 8] = word
        out = np.zeros((len(queries), ANSWER), np.uint64)
        numbers = np.array([operation.NAMES.index(name) for name, _ in queries], np.int64)
        virtual = np.array([va for _, va in queries], np.uint64)
        rows, which = context(**self.registers)[None], np.zeros(len(queries), np.int64)
        answers(MEM, rows, which, numbers, virtual, self.implementation, update, out)
        for pa in self.words:
            self.words[pa] = int(MEM[pa // 8])
            MEM[pa // 8] = U64(0)
        return [seen(row) for row in out.tolist()]

    def ask(self, name: str, va: int, update: bool = False) -> Seen:
        """One answer."""
        return self.ask_all([(name, va)], update)[0]

    def book(self) -> Book:
        """The same machine for the walker of the tests."""
        return Book(self.registers, set(self.features), self.pa_bits, dict(self.words), END)


def seen(words: list[int]) -> Seen:
    """The eight words of an answer, unpacked."""
    par, esr, far, hpfar, target, packed, pa, levels = words
    level = (packed >> 8 & 255) - 1 if packed else 0
    parts = (packed & 255, level, packed >> 16 & 255, packed >> 24 & 1)
    return Seen(par, esr, far, hpfar, target, *parts, pa, (levels & 255) - 2, (levels >> 8) - 2)


def in_descriptor(form: int, pa: int) -> int:
    """The address field for ``pa``: the inverse of ``held_address``."""
    word = pa & ((1 << 48) - 1) & ~0xFFF
    if form == 52:
        word = word & ~0xFFFF | pa >> 48 << 12
    if form == 50:
        word = pa & ((1 << 50) - 1) & ~0xFFF | (pa >> 50) << 8
    assert held_address(form, word) == pa & ~0xFFF
    return word


ROOT1, TABLES1 = 0x30_0000, 0x40_0000
ROOT2, TABLES2 = 0x10_0000, 0x20_0000
DATA = 0x50_0000
"""Where the tests put start tables, the tables below them (64K apart), and the page that is reached."""
VA = 0x7F_8123_4008
IPA = 0x4012_3008
"""An address for stage 1, and one for stage 2 that lies beside the tables' own gigabyte."""
PAGE1 = DATA | 1 << 10 | 3 << 8 | 3
"""A stage-1 page: accessed, inner shareable, EL1 may read and write, everyone execute; AttrIndx 0."""
PAGE2 = 1 << 10 | 3 << 8 | 3 << 6 | 0xF << 2 | 3
"""A stage-2 page: accessed, inner shareable, everything allowed, Write-Back; the address is to be added."""
OPERATIONS = tuple(f"{what} at EL{el}" for el in (1, 0) for what in ("load", "store", "fetch"))


def el10(leaf: int = PAGE1, level: int = 3, va: int = VA, bits: int = 0, **registers: int) -> Machine:
    """Stage 1 of EL1&0, 48 bits in 4K pages from TTBR0, with ``leaf`` at ``level`` for ``va``."""
    values = {
        "TTBR0_EL1": ROOT1,
        "TCR_EL1": 16 | 16 << 16 | 2 << 30 | 5 << 32,
        "SCTLR_EL1": 5,
        "MAIR_EL1": 0xFF,
    }
    machine = Machine(values | registers)
    machine.path(geometry(12, 16, 0, ROOT1), va, leaf, level, TABLES1, bits=bits)
    return machine


def geometry(granule: int, txsz: int, start: int, base: int) -> Stage:
    """A 48-bit stage for ``path``."""
    return Stage(granule, 64 - txsz, 48, 48, start, base)


def nested(
    leaf2: int = PAGE2 | DATA,
    level2: int = 3,
    leaf1: int | None = None,
    tables2: int = PAGE2 & ~2,
    **registers: int,
) -> Machine:
    """``el10`` whose page is IPA, under 40 bits of stage 2: ``leaf2`` maps IPA, ``tables2`` the first 1G."""
    leaf1 = PAGE1 & ~DATA | IPA & ~0xFFF if leaf1 is None else leaf1
    machine = el10(leaf1)
    values = {"VTTBR_EL2": ROOT2, "VTCR_EL2": 24 | 1 << 6 | 5 << 16, "HCR_EL2": 1}
    machine.registers |= values | registers
    machine.path(geometry(12, 24, 1, ROOT2), IPA, leaf2, level2, TABLES2)
    machine.put(ROOT2, tables2)
    return machine


def rights(machine: Machine, va: int = VA, operations: tuple[str, ...] = OPERATIONS) -> str:
    """What is allowed, as in ``"rw- r-x"``: privileged level, then EL0."""
    found = machine.ask_all([(name, va) for name in operations])
    assert {one.fault.rsplit(" ", 1)[0] for one in found} <= {"none", "permission", "s2 permission"}
    letters = ["rwx"[i % 3] if one.kind == 0 else "-" for i, one in enumerate(found)]
    return "".join(letters[:3]) + " " + "".join(letters[3:])
