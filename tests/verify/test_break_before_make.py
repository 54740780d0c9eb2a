"""Traces in the format of casemate through the checker: what its own examples are about, written anew."""

from __future__ import annotations

import pytest

from shadowmmu.arch.bbm import Checker, Violation
from shadowmmu.arch.registers import VTCR_EL2
from shadowmmu.formats.casemate import Record, format_trace, parse_trace
from shadowmmu.verify.break_before_make import check_trace, found_registers

ROOT, TABLE, OTHER, LOCK = 0x4000_0000, 0x4000_1000, 0x4000_2000, 0x5000_0000
LEAF = 0x8000_07FD
"""A level-1 block: write-back, read and write, inner shareable, accessed."""


def line(name: str, word: str = "", thread: int = 0, **fields: int | str) -> Record:
    return Record(name, 0, thread, word, {key.replace("_", "-"): value for key, value in fields.items()})


def write(pa: int, value: int, order: str = "plain", thread: int = 0) -> Record:
    return line("mem-write", thread=thread, mem_order=order, address=pa, value=value)


def dsb(kind: str = "ish", thread: int = 0) -> Record:
    return line("barrier", "dsb", thread, kind=kind)


def register(name: str, value: int, thread: int = 0) -> Record:
    return line("sysreg-write", thread=thread, sysreg=name, value=value)


def hint(kind: str, location: int, value: int = 0) -> Record:
    return line("hint", kind=kind, location=location, value=value)


START = [
    *(line("mem-init", address=page, size=0x1000) for page in (ROOT, TABLE, OTHER)),
    hint("set_root_lock", ROOT, LOCK),
    hint("set_owner_root", TABLE, ROOT),
    write(ROOT, TABLE | 3),
    write(TABLE, LEAF),
    dsb(),
    register("vttbr_el2", ROOT),
    line("barrier", "isb"),
]
BREAK = [line("lock", address=LOCK), write(TABLE, 0), dsb()]
MAKE = [write(TABLE, LEAF | 1 << 32), line("unlock", address=LOCK)]
BY_IPA = [line("tlbi", "ipas2e1is", value=0), dsb(), line("tlbi", "vmalle1is"), dsb()]


def check(*records: Record, start: list[Record] = START) -> list[Violation]:
    """The violations of a trace, after a way through text."""
    every = [*start, *records]
    numbered = [
        Record(each.name, number, each.thread, each.word, each.fields, f"test.c:{number}")
        for number, each in enumerate(every)
    ]
    return check_trace(parse_trace(format_trace(numbered)), Checker()).violations


def rules(*records: Record, start: list[Record] = START) -> list[str]:
    """The names of the rules broken."""
    return [violation.rule.name for violation in check(*records, start=start)]


@pytest.mark.parametrize("by_id", [False, True])
def test_good_sequences(by_id: bool) -> None:
    cleaning = [line("tlbi", "vmalls12e1is"), dsb()] if by_id else BY_IPA
    assert rules(*BREAK, *cleaning, *MAKE) == []


def test_a_missing_tlbi() -> None:
    (found,) = check(*BREAK, dsb(), *MAKE)
    assert found.rule.name == "unfinished sequence"
    assert found.event == len(START) + len(BREAK) + 1  # the record's number
    assert (found.pa, found.old, found.new) == (TABLE, 0, LEAF | 1 << 32)


def test_no_break_at_all() -> None:
    assert rules(line("lock", address=LOCK), *MAKE) == ["output address"]


def test_the_wrong_vmid() -> None:
    switch, back = register("vttbr_el2", OTHER | 1 << 48), register("vttbr_el2", ROOT)
    cleaning = [switch, dsb(), *BY_IPA, back, dsb()]
    assert rules(*BREAK, *cleaning, *MAKE) == ["unfinished sequence"]
    assert rules(*BREAK, *BY_IPA, switch, dsb(), back, *MAKE) == []


def test_writing_without_the_lock() -> None:
    assert rules(write(TABLE, 0)) == ["lock"]
    assert rules(line("lock", address=LOCK, thread=1), write(TABLE, 0)) == ["lock"]
    entrusted = hint("set_pte_thread_owner", TABLE, 1)
    assert rules(entrusted, write(TABLE, 0, thread=1)) == []


def test_a_table_page_reused_before_it_is_clean() -> None:
    out = [line("lock", address=LOCK), write(ROOT, 0), dsb()]
    reuse = [register("vttbr_el2", OTHER | 1 << 48), write(OTHER, TABLE | 3, "release")]
    assert rules(*out, *reuse) == ["unclean table"]
    assert rules(*out, line("tlbi", "vmalls12e1is"), dsb(), *reuse) == []
    assert rules(*out, line("mem-free", address=TABLE, size=0x1000)) == ["table freed"]


def test_one_vmid_for_two_trees() -> None:
    assert rules(register("vttbr_el2", OTHER)) == ["identifier reused"]


def test_a_tree_given_up() -> None:
    empty = [*START[:3], register("vttbr_el2", ROOT)]
    leave = [line("exit-context"), hint("release_table", ROOT)]
    assert rules(hint("release_table", ROOT), start=empty) == ["root in use"]
    assert rules(*leave, start=empty) == []
    again = [line("mem-init", address=ROOT, size=0x1000), line("enter-context", el=1)]
    assert rules(*leave, *again, write(ROOT, TABLE | 3), start=empty) == []


def test_stage_1_of_el2() -> None:
    start = [
        *START[:3],
        write(ROOT, TABLE | 3),
        write(TABLE, 0x8000_0701),
        dsb(),
        register("ttbr0_el2", ROOT),
    ]
    change = write(TABLE, 0xC000_0701)
    assert rules(change, start=start) == ["output address"]
    sequence = [write(TABLE, 0), dsb(), line("tlbi", "vae2is", value=0), dsb(), change]
    assert rules(*sequence, start=start) == []


def test_registers_that_the_trace_finds_are_given() -> None:
    registers = found_registers()
    registers[6] = VTCR_EL2.encode(T0SZ=25, SL0=1, PS=5)  # start at level 1: the root's entry is a block
    trace = parse_trace(
        format_trace([line("mem-init", address=ROOT, size=0x1000), register("vttbr_el2", ROOT)])
    )
    checker = check_trace(trace, Checker(), registers)
    checker.write(0, ROOT, LEAF)
    assert checker.state(ROOT) == "valid"
    assert check_trace(trace, Checker()).state(ROOT) == "invalid"


def test_memory_set_and_read_back() -> None:
    fill = line("mem-set", address=TABLE, size=0x1000, value=0)
    lock = line("lock", address=LOCK)
    assert rules(lock, fill, *BREAK[2:], *BY_IPA, *MAKE) == []
    assert rules(line("mem-read", address=TABLE, value=LEAF)) == []
    assert rules(line("mem-read", address=TABLE, value=LEAF | 1 << 32)) == ["unseen write"]
    assert rules(line("trylock", address=LOCK), write(TABLE, 0)) == []
