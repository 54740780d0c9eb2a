"""What the tests of break-before-make share: a live tree with one leaf to change, and sequences of events."""

from __future__ import annotations

from typing import Any, NamedTuple

from shadowmmu.arch.bbm import Checker, Violation
from shadowmmu.arch.context import EVERYTHING, context
from shadowmmu.arch.registers import HCR_EL2, SCTLR_EL1, TCR_EL1, TCR_EL2, VTCR_EL2

ROOT = 0x100_0000
VMID, ASID = 5, 9
OLD, NEW = 0x40_0000_0000, 0x80_0000_0000
"""Output addresses, aligned to every block size."""
GRANULE_CODE = {12: 0, 14: 2, 16: 1}
TTL_CODE = {12: 1, 14: 2, 16: 3}
AF = 1 << 10
NG = 1 << 11
WRITE_2 = 1 << 7

Event = tuple[str, tuple[Any, ...]]
"""A method of the checker, and its arguments."""


class Scene(NamedTuple):
    """A tree in which ``leaf`` at ``level`` translates ``ia``: where the descriptor stands, and its kind."""

    checker: Checker
    kind: str
    page_shift: int
    level: int
    ia: int
    pa: int
    table: int
    """The table the leaf stands in."""

    @property
    def span(self) -> int:
        """Bytes the leaf covers."""
        return 1 << self.page_shift + (self.page_shift - 3) * (3 - self.level)

    def leaf(self, output: int, extra: int = 0) -> int:
        """A valid leaf: writable, normal memory, non-global at stage 1."""
        stage2 = self.kind == "stage 2"
        attributes = 0b1111 << 2 | 0b11 << 6 if stage2 else (NG if self.kind == "EL1" else 0)
        return output | attributes | 0b11 << 8 | AF | (3 if self.level == 3 else 1) | extra

    def play(self, *events: Event) -> list[Violation]:
        """Do these; the violations they bring."""
        before = len(self.checker.violations)
        for name, arguments in events:
            getattr(self.checker, name)(*arguments)
        return self.checker.violations[before:]


def registers(kind: str, page_shift: int, base: int, number: int = VMID) -> Any:
    """A row with one stage on: 48 bits of input, ``number`` as VMID or ASID."""
    code = GRANULE_CODE[page_shift]
    stage1_off = {"HCR_EL2": 0, "VTTBR_EL2": VMID << 48}
    if kind == "stage 2":
        vtcr = VTCR_EL2.encode(T0SZ=64 - 44, SL0=2, TG0=code, PS=5)
        return context(HCR_EL2=HCR_EL2.encode(VM=1), VTTBR_EL2=base | number << 48, VTCR_EL2=vtcr)
    if kind == "EL1":
        tcr = TCR_EL1.encode(T0SZ=16, TG0=code, IPS=5, EPD1=1)
        on = SCTLR_EL1.encode(M=1)
        return context(
            TTBR0_EL1=base | number << 48, TCR_EL1=tcr, SCTLR_EL1=on, MAIR_EL1=0x04FF, **stage1_off
        )
    tcr = TCR_EL2.encode(T0SZ=16, TG0=code, PS=5)
    return context(TTBR0_EL2=base, TCR_EL2=tcr, SCTLR_EL2=SCTLR_EL1.encode(M=1), MAIR_EL2=0x04FF)


def scene(
    kind: str = "stage 2",
    page_shift: int = 12,
    level: int = 3,
    *,
    bbm: int = 0,
    extra: int = 0,
    index: int = 1,
) -> Scene:
    """A live tree of ``kind`` ("stage 2", "EL1" or "EL2") with a path of tables to one leaf."""
    checker = Checker(EVERYTHING._replace(pa_bits=48), bbm)
    first = 0 if page_shift == 12 or (page_shift == 14 and kind != "stage 2") else 1
    page = 1 << page_shift
    table, ia = ROOT, 0
    for step in range(first, level):
        at = 0 if step == 0 and page_shift == 14 else index
        following = table + 16 * page
        checker.write(0, table + 8 * at, following | 3)
        ia += at << page_shift + (page_shift - 3) * (3 - step)
        table = following
    ia += index << page_shift + (page_shift - 3) * (3 - level)
    made = Scene(checker, kind, page_shift, level, ia, table + 8 * index, table)
    checker.write(0, made.pa, made.leaf(OLD, extra))
    checker.dsb(0, "ish")
    for thread in (0, 1):
        checker.registers(thread, registers(kind, page_shift, ROOT, VMID if kind == "stage 2" else ASID))
    assert checker.violations == []
    assert checker.state(made.pa) == "valid"
    return made


def by_address(name: str, s: Scene, ttl: bool = False) -> Event:
    """A TLBI by VA or IPA for the leaf, with the ASID; at times with the level hint."""
    operand = s.ia >> 12 | (ASID << 48 if s.kind == "EL1" and "VAA" not in name else 0)
    if ttl:
        operand |= (TTL_CODE[s.page_shift] << 2 | s.level) << 44
    return "tlbi", (name, operand)


def by_range(name: str, s: Scene) -> Event:
    """A ranged TLBI that begins at the leaf: two granules, enough to meet it."""
    operand = s.ia >> s.page_shift | TTL_CODE[s.page_shift] << 46 | (ASID << 48 if s.kind == "EL1" else 0)
    return "tlbi", (name, operand)


def by_thread(thread: int, event: Event) -> Event:
    """The event with the thread that does it as first argument."""
    return event[0], (thread, *event[1])
