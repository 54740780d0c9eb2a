"""A recorded trace through the break-before-make checker.

A trace shows the registers that its program writes, not those it finds set; ``registers`` says what those
were. Hints that name the owner of a page are not needed: trees are found by walking from their roots.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from shadowmmu.arch.bbm import Checker
from shadowmmu.arch.context import COLUMNS, context
from shadowmmu.arch.registers import HCR_EL2, SCTLR_EL1, TCR_EL2, VTCR_EL2
from shadowmmu.compiled import U64, Words
from shadowmmu.formats.casemate import Record, Trace

_COLUMN: Final = {name.lower(): number for number, name in enumerate(COLUMNS)}
_WORD: Final = 0x0101_0101_0101_0101


def found_registers() -> Words:
    """Both stages on, 4K granule, 48 bits: what a trace is taken to find where it says nothing."""
    return context(
        HCR_EL2=HCR_EL2.encode(VM=1),
        VTCR_EL2=VTCR_EL2.encode(T0SZ=16, SL0=2, PS=5),
        TCR_EL2=TCR_EL2.encode(T0SZ=16, PS=5),
        SCTLR_EL2=SCTLR_EL1.encode(M=1),
    )


class _Threads:
    """The registers of each thread, and the trees they name: only of roots that the trace has written."""

    def __init__(self, checker: Checker, registers: Words) -> None:
        self.checker, self.found = checker, registers
        self.rows: dict[int, Words] = {}

    def row(self, thread: int) -> Words:
        """The registers of ``thread``, as found at first: no root."""
        if thread not in self.rows:
            row = self.found.copy()
            row[[_COLUMN["vttbr_el2"], _COLUMN["ttbr0_el2"]]] = 0
            self.rows[thread] = row
        return self.rows[thread]

    def enter(self, thread: int, stage2: bool = True) -> None:
        """Tell the checker, leaving out a stage whose root is not known, and stage 2 outside guests."""
        row = self.row(thread).copy()
        if not stage2 or row[_COLUMN["vttbr_el2"]] == U64(0):
            row[_COLUMN["hcr_el2"]] &= ~HCR_EL2.mask("VM")
        if row[_COLUMN["ttbr0_el2"]] == U64(0):
            row[_COLUMN["sctlr_el2"]] &= ~SCTLR_EL1.mask("M")
        self.checker.registers(thread, row)


def check_trace(trace: Trace, checker: Checker, registers: Words | None = None) -> Checker:
    """Feed every record of ``trace`` to ``checker`` and give it back; violations carry the record's number.

    ``registers``: a context row, by default ``found_registers``.
    """
    threads = _Threads(checker, found_registers() if registers is None else registers)
    for record in trace.records:
        before = len(checker.violations)
        _feed(record, checker, threads)
        found = [replace(each, event=record.number) for each in checker.violations[before:]]
        checker.violations[before:] = found
    return checker


def _feed(record: Record, checker: Checker, threads: _Threads) -> None:
    thread, integer = record.thread, record.integer
    match record.name:
        case "mem-write":
            release = record.fields["mem-order"] == "release"
            checker.write(thread, integer("address"), integer("value"), release=release)
        case "mem-read":
            checker.read(thread, integer("address"), integer("value"))
        case "mem-init":
            checker.initialise(thread, integer("address"), integer("size"))
        case "mem-free":
            checker.free(thread, integer("address"), integer("size"))
        case "mem-set":
            start = integer("address")
            for pa in range(start, start + integer("size"), 8):
                checker.write(thread, pa, integer("value") * _WORD)
        case "barrier":
            checker.dsb(thread, str(record.fields["kind"])) if record.word == "dsb" else checker.isb(thread)
        case "tlbi":
            checker.tlbi(thread, record.word, int(record.fields.get("value", 0)))
        case "sysreg-write":
            threads.row(thread)[_COLUMN[str(record.fields["sysreg"])]] = integer("value")
            threads.enter(thread)
        case "enter-context" | "exit-context":
            threads.enter(thread, stage2=record.name == "enter-context")
        case "lock" | "trylock":
            checker.lock(thread, integer("address"))
        case "unlock":
            checker.unlock(thread, integer("address"))
        case _:
            _hint(record, checker)


def _hint(record: Record, checker: Checker) -> None:
    where, value = record.integer("location"), record.integer("value")
    match record.fields["kind"]:
        case "set_root_lock":
            checker.protect(record.thread, where, value)
        case "release_table":
            checker.give_up(record.thread, where)
        case "set_pte_thread_owner":
            checker.entrust(record.thread, where, value)
