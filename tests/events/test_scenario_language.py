"""The scenario language: every recorded script, every rule, and every line of its documentation."""

from __future__ import annotations

import ctypes
import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmmu.arch.operation import NAMES
from shadowmmu.events import schema
from shadowmmu.events.commands import COMMANDS
from shadowmmu.events.scenario import parse_scenario, read_scenario
from shadowmmu.events.schema import Scenario, same_events
from shadowmmu.events.script import format_event, write_script
from shadowmmu.events.words import (
    AT_OPERATIONS,
    S1_REGISTERS,
    ScenarioError,
    WordError,
    attribute_letters,
    attributes,
    number,
    protection,
    protection_letters,
    register_word,
    size_word,
)
from shadowmmu.formats.runs import KernelRun, bundled_runs, read_runs

ROOT = Path(__file__).parents[2]
RUNS = bundled_runs() + read_runs(ROOT / "tests" / "data" / "kernel_runs")
DOCUMENT = (ROOT / "docs" / "scenario-language.md").read_text()
MACHINE = "mem 64M\nvcpus 2\nstart base 0 0\ns2 new 1\ncode\n"
WINDOW = MACHINE + "memslot 1 0x80000000 1M 0x41000000\n"


def rows(script: str) -> list[tuple[int, ...]]:
    """The events of a script without vCPU and line, as plain tuples."""
    return [(row[0], *row[3:]) for row in parse_scenario(script, "test").events.tolist()]


def after_start(line: str) -> tuple[int, ...]:
    """The one event of ``line`` in a started machine with a root."""
    return rows(MACHINE + line + "\n")[-1]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_recorded_scripts_are_read_unchanged_and_written_back(run: KernelRun) -> None:
    text = run.scenario_text()
    scenario = parse_scenario(text, run.name)
    assert same_events(scenario, parse_scenario(write_script(scenario), "again"))
    acting = [line for line in text.split("\n") if line.split() and COMMANDS[line.split()[0]].kind >= 0]
    assert len(acting) == len(scenario.events)
    for i, line in enumerate(acting):
        assert scenario.where(i).endswith(": " + line)


def test_how_l0_logs_is_said_before_start_and_written_back() -> None:
    text = (
        "eager 2M\nmanual 1\nring 512 bitmap\nmem 64M\nstart thp\nmemslot 1 0x80000000 1M 0x41000000 d\n"
        "clearlog 1 3 64\nclearlog\nharvest\ngetlog 1\nmemslot 1\nmemslot 1 0x90000000 1M 0x41000000\n"
    )
    scenario = parse_scenario(text, "logs")
    assert [(row[0], *row[3:]) for row in scenario.events.tolist()] == [
        (schema.CAPABILITY, 0, 2 << 20, 0, 0, 0, 0),
        (schema.CAPABILITY, 1, 1, 0, 0, 0, 0),
        (schema.CAPABILITY, 2, 512, 1, 0, 0, 0),
        (schema.MEMSLOT, 1, 0x80000000, 1 << 20, 0x41000000, schema.SLOT_LOGS, 0),
        (schema.CLEARLOG, 1, 3, 64, 0, 0, 0),
        (schema.CLEARLOG, 0, 0, 0, 0, 0, 0),
        (schema.HARVEST, 0, 0, 0, 0, 0, 0),
        (schema.GETLOG, 1, 0, 0, 0, 0, 0),
        (schema.MEMSLOT, 1, 0, 0, 0x40000000, 0, 0),
        (schema.MEMSLOT, 1, 0x90000000, 1 << 20, 0x41000000, 0, 0),
    ]
    assert same_events(scenario, parse_scenario(write_script(scenario), "again"))


def test_the_events_of_a_whole_script() -> None:
    text = (
        "# a comment\nmem 1280M\n\nvcpus 3\nstart thp 1 44\ns2 new 7\nvtcr 0x80000\ns2 0x40100000 9\n"
        "code\ncode 0x20000\n\ttouch  x 0x20004 4\nmprotect 0x41000000 4k w\nquit\nnonsense\n"
    )
    scenario = parse_scenario(text, "whole")
    machine = (scenario.memory_bytes, scenario.vcpus, scenario.backing, scenario.e2h0, scenario.vm_ipa_bits)
    assert machine == (1280 << 20, 3, "thp", True, 44)
    rx = 0xF << 2 | 3 << 8 | 1 << 10 | 1 << 6
    assert [(row[0], *row[3:]) for row in scenario.events.tolist()] == [
        (schema.SET_STAGE2, 0, 7, 0x80023559, 0, 0, 0),
        (schema.SET_STAGE2, 0x40100000, 9, 0x80000, 0, 0, 0),
        (schema.MAP_GUEST, 0x10000, 0x40050000, 4096, 3, rx, 0),
        (schema.MAP_GUEST, 0x20000, 0x40050000, 4096, 3, rx, 0),
        (schema.TOUCH, 0x20004, 4, 1, schema.EXECUTE, 0x20000, 0),
        (schema.MPROTECT, 0x41000000, 4096, 2, 0, 0, 0),
    ]
    assert same_events(scenario, parse_scenario(write_script(scenario), "again"))
    assert scenario.events["line"].tolist() == [6, 8, 9, 10, 11, 12]


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (
            "map 0x80000000 0x41000000 64k 3",
            (schema.MAP_GUEST, 2**31, 0x41000000, 65536, 3, attributes("-"), 0),
        ),
        ("map 0 0 1G 1 rwxac 1G", (schema.MAP_GUEST, 0, 0, 1 << 30, 1, attributes("rwxac"), 1 << 30)),
        ("unmap 0x200000 4M 2", (schema.UNMAP_GUEST, 0x200000, 4 << 20, 2, 0, 0, 0)),
        ("touch r 0x80000000", (schema.TOUCH, 2**31, 0, 1, schema.READ, 0x10000, 0)),
        ("touch w 8 8 0", (schema.TOUCH, 8, 8, 0, schema.WRITE, 0x10000, 0)),
        ("tlbi", (schema.TLBI, 0, 0, 0, 0, 0, 0)),
        ("tlbi 8 0xffffffffffffffff", (schema.TLBI, 8, 2**64 - 1, 0, 0, 0, 0)),
        ("vm", (schema.VM, 0, 0, 0, 0, 0, 0)),
        ("poke 0x41000008 0x10", (schema.POKE, 0x41000008, 16, 0, 0, 0, 0)),
        ("peek 0x41000008", (schema.PEEK, 0x41000008, 0, 0, 0, 0, 0)),
        ("nop", (schema.NOP, 0, 0, 0, 0, 0, 0)),
        ("ret 0x41000000 4k", (schema.HOST_WRITE, 0x41000000, 4096, 1, 0, 0, 0)),
        ("mprotect 0x41000000 4k", (schema.MPROTECT, 0x41000000, 4096, 0, 0, 0, 0)),
        ("log 1", (schema.LOG, 1, 0, 0, 0, 0, 0)),
        ("getlog", (schema.GETLOG, 0, 0, 0, 0, 0, 0)),
        ("slot 0", (schema.SLOT, 0, 0, 0, 0, 0, 0)),
        (
            "memslot 7 0x80001000 1M 0x41000000 dr",
            (schema.MEMSLOT, 7, 0x80001000, 1 << 20, 0x41000000, 3, 0),
        ),
        ("memslot 1 0x44000000 4k 0x40000000", (schema.MEMSLOT, 1, 0x44000000, 4096, 0x40000000, 0, 0)),
        ("idle 0x41000000 16", (schema.IDLE, 0x41000000, 16, 0, 0, 0, 0)),
        ("idleget 0x41000000 16", (schema.IDLEGET, 0x41000000, 16, 0, 0, 0, 0)),
        ("pagemap 0x41000000 16", (schema.PAGEMAP, 0x41000000, 16, 0, 0, 0, 0)),
        ("dump x n", (schema.DUMP, 0, 1, 0, 0, 0, 0)),
        ("s2", (schema.SET_STAGE2, 0, 0, schema.DEFAULT_VTCR, 0, 0, 0)),
    ],
)
def test_operands_and_defaults(line: str, event: tuple[int, ...]) -> None:
    assert after_start(line) == event


def test_where_l2_runs_from() -> None:
    script = MACHINE + "touch r 0\ncode 0x20000\ntouch r 0\ncode\ntouch r 0\ncodeat 0x30000\ntouch r 0\n"
    assert [row[5] for row in rows(script) if row[0] == schema.TOUCH] == [0x10000, 0x20000, 0x10000, 0x30000]


@pytest.mark.parametrize("name", ["dontneed", "munmap", "mmap", "hugepage", "nohugepage", "collapse"])
def test_host_ranges(name: str) -> None:
    assert after_start(f"{name} 0x43fff000 4k")[1:3] == (0x43FFF000, 4096)


WRONG = [
    ("start base\nat s1e3r 0x0", 2, "s1e3r", "s12e0w"),
    ("start base\nat s1e1r", 2, "at s1e1r", "at OP VA"),
    ("start base\nat s1e1r x", 2, "x", "a VA"),
    ("at s1e1r 0x0", 1, "at", "'start' first"),
    ("start base\ns1", 2, "s1", "s1 REGISTER=VALUE"),
    ("start base\ns1 ttbr2=1", 2, "ttbr2=1", "ttbr0, ttbr1"),
    ("start base\ns1 tcr", 2, "tcr", "REGISTER=VALUE"),
    ("start base\ns1 tcr=", 2, "", "a value of tcr"),
    ("start base\ns1 pan=2", 2, "pan=2", "pan=0 or pan=1"),
    ("start base\ns1 tcr=1 tcr=1", 2, "tcr=1", "each register once"),
    ("vcpus 2\nstart base\nvcpu 2", 3, "2", "a vCPU below 2"),
    ("start base\nvcpu x", 2, "x", "a vCPU"),
    ("vcpu 0", 1, "vcpu", "'start' first"),
    ("start base\ncaches 2", 2, "2", "0 or 1"),
    ("start base\nenter 0x10000", 2, "0x10000", "nothing more"),
    ("start base\nteardown\nnop", 3, "nop", "nothing more: 'teardown' ended the VM"),
    ("start base\ns2 new 1\nteardown\ncode", 4, "code", "nothing more"),
    ("start base\nstart base", 2, "start", "described before"),
    ("start base\nmem 64M", 2, "mem", "described before"),
    ("start base\nvcpus 2", 2, "vcpus", "described before"),
    ("touch r 0x0", 1, "touch", "'start' first"),
    ("mem 64M", 1, "end of the script", "'start'"),
    ("", 1, "end of the script", "'start'"),
    ("mem 1M\nstart base", 1, "1M", "2M"),
    ("mem 4097\nstart base", 1, "4097", "aligned"),
    ("vcpus 0\nstart base", 1, "0", "vCPUs"),
    ("vcpus 65\nstart base", 1, "65", "vCPUs"),
    ("start", 1, "start", "start BACKING"),
    ("start hugh", 1, "hugh", "base, thp, huge, huge-pud, huge-cont-pte or huge-cont-pmd"),
    ("start base 2", 1, "2", "0 or 1"),
    ("start base 0 31", 1, "31", "IPA bits"),
    ("mem 2052k\nstart huge", 2, "huge", "2M"),
    ("mem 512M\nstart huge-pud", 2, "huge-pud", "1G"),
    ("mem 48M\nstart huge-cont-pmd", 2, "huge-cont-pmd", "32M"),
    ("mem 64G\ngranule 16K\nstart huge-pud", 3, "huge-pud", "16K"),
    ("mem 8G\nstart base 0 32", 2, "32", "reach"),
    ("start base\nmap 0 0 4k 3", 2, "map", "'s2' first"),
    ("start base\ncode", 2, "code", "'s2' first"),
    ("plain", 1, "plain", "needs a real kernel"),
    ("linux a b c thp", 1, "linux", "needs a real kernel"),
    ("sync x", 1, "sync", "needs a real kernel"),
    (MACHINE + "frobnicate 1", 6, "frobnicate", "a command"),
    (MACHINE + "map 0x1000 0 2M 2", 6, "0x1000", "aligned to the leaf size 0x200000"),
    (MACHINE + "map 0 0x1000 2M 2", 6, "0x1000", "aligned to the leaf size"),
    (MACHINE + "map 0 0 6k 3", 6, "6k", "aligned to the leaf size"),
    (MACHINE + "map 0 0 0 3", 6, "0", "above 0"),
    (MACHINE + "map 0 0 4k 0", 6, "0", "a level, 1 to 3"),
    (MACHINE + "map 0 0 4k 4", 6, "4", "a level, 1 to 3"),
    (MACHINE + "map 0 0 4k 3 rq", 6, "rq", "letters"),
    (MACHINE + "map 0 0 4k 3 rr", 6, "rr", "each at most once"),
    (MACHINE + "map 0 0 8k 3 r 6k", 6, "6k", "a window"),
    (MACHINE + "map 0 0 8k 3 r 4k 1", 6, "1", "nothing more"),
    (MACHINE + "map 0xfffffffff000 0 8k 3", 6, "0xfffffffff000", "below"),
    (MACHINE + "map 0 0xfffffffff000 8k 3", 6, "0xfffffffff000", "below"),
    (MACHINE + "map 0 0 4k", 6, "map 0 0 4k", "map L2IPA"),
    (MACHINE + "unmap 0 4k 2", 6, "4k", "aligned"),
    (MACHINE + "touch q 0", 6, "q", "r, w or x"),
    (MACHINE + "touch rw 0", 6, "rw", "r, w or x"),
    (MACHINE + "touch r 4", 6, "4", "aligned to 8"),
    (MACHINE + "touch x 2", 6, "2", "aligned to 4"),
    (MACHINE + "touch r 0xfffffffffffff000 4096 2", 6, "0xfffffffffffff000", "2^64"),
    (MACHINE + "tlbi 9 0", 6, "9", "0 to 8"),
    ("start base 1\nvncr r 0x41000000", 2, "vncr", "E2H0 0"),
    (MACHINE + "vncr x 0x41000000", 6, "x", "r or w"),
    (MACHINE + "vncr r 0x41000800", 6, "0x41000800", "aligned"),
    (MACHINE + "tlbi2 ipa", 6, "ipa", "all, va, vaa, asid, rva, rvaa"),
    (MACHINE + "hold 0x41000000 4k 1 lazy", 6, "lazy", "atomic"),
    (MACHINE + "hold 0x41000000 4k x", 6, "x", "a number of faults"),
    ("start base\ngap 3 r 0x0", 2, "gap", "two vCPUs"),
    ("vcpus 2\nstart base\ngap 0 r 0x0", 3, "0 r", "above 0"),
    ("vcpus 2\nstart base\ngap 3 q 0x0", 3, "3 q", "r, w, x or punch"),
    ("start base\ngap 3 punch 0x41000000", 2, "punch", "a size"),
    ("vcpus 2\nstart base\ngap 3 r 0x0 4k", 3, "4k", "nothing after the VA"),
    ("vcpus 2\nstart base\ngap 3 x 0x2", 3, "0x2", "aligned to 4"),
    (MACHINE + "race 0x41000001 4k", 6, "0x41000001", "aligned"),
    (MACHINE + "vm 2", 6, "2", "0 or 1"),
    (MACHINE + "poke 0x41000004 1", 6, "0x41000004", "aligned to 8"),
    (MACHINE + "s2 0x1000 1", 6, "0x1000", "inside the memory"),
    (MACHINE + "s2 0x40100800 1", 6, "0x40100800", "aligned"),
    (MACHINE + "s2 new 65536", 6, "65536", "16 bits"),
    (MACHINE + "code 0x1001", 6, "0x1001", "aligned"),
    (MACHINE + "dontneed 0x3ffff000 4k", 6, "0x3ffff000", "inside the memory"),
    (MACHINE + "dontneed 0x43fff000 8k", 6, "0x43fff000", "inside the memory"),
    (MACHINE + "dontneed 0x41000000 0", 6, "0", "above 0"),
    (MACHINE + "dontneed 0x41000001 4k", 6, "0x41000001", "aligned"),
    (MACHINE + "dontneed 0x41000000 4K 1", 6, "1", "nothing more"),
    (MACHINE + "mprotect 0x41000000 4k x", 6, "x", "letters"),
    (MACHINE + "pagemap 0x41000000 0xffffffffffffffff", 6, "0xffffffffffffffff", "size"),
    (MACHINE + "dump", 6, "dump", "dump TAG"),
    (MACHINE + "dump x y", 6, "y", "n (shadow"),
    (MACHINE + "getlog now", 6, "now", "a memslot"),
    (MACHINE + "getlog 1", 6, "1", "a memslot that was made"),
    (MACHINE + "getlog 0 1", 6, "1", "nothing more"),
    ("eager 8k\nstart base", 1, "8k", "a chunk of 0x1000 or 0x200000 or 0x40000000"),
    ("granule 16K\neager 1G\nstart base", 2, "1G", "a chunk of 0x4000 or 0x2000000"),
    ("manual 2\nstart base", 1, "2", "0 or 1"),
    ("manual\nmanual 1\nstart base", 2, "manual", "once"),
    ("ring 128\nstart base", 1, "128", "from 256"),
    ("ring 384\nstart base", 1, "384", "a power of two"),
    ("ring 256 both\nstart base", 1, "both", "bitmap or nothing"),
    ("ring 256\nstart base\ngetlog", 3, "0", "rings with a bitmap"),
    (MACHINE + "ring 256", 6, "ring", "before 'start'"),
    (MACHINE + "harvest", 6, "harvest", "'ring' before"),
    (MACHINE + "clearlog", 6, "clearlog", "'manual' before"),
    ("manual\nmem 64M\nstart base\nclearlog 0 16384", 4, "16384 0", "which has 16384"),
    ("manual\nmem 64M\nstart base\nclearlog 0 1 16384", 4, "1 16384", "which has 16384"),
    (MACHINE + "memslot 0", 6, "0", "'slot 0'"),
    (MACHINE + "memslot 2", 6, "2", "a memslot that was made"),
    (MACHINE + "memslot 8 0x80000000 1M 0x41000000", 6, "8", "from 1 to 7"),
    (MACHINE + "memslot 1 0x80000000 1M", 6, "1 0x80000000 1M", "memslot SLOT"),
    (MACHINE + "memslot 1 0x80000800 1M 0x41000000", 6, "0x80000800", "a multiple of 4096"),
    (MACHINE + "memslot 1 0x80000000 0 0x41000000", 6, "0", "above 0"),
    (MACHINE + "memslot 1 0x43000000 1M 0x41000000", 6, "0x43000000", "from 0x44000000"),
    (MACHINE + "memslot 1 0xfffffff000 8k 0x41000000", 6, "0xfffffff000", "to 0x10000000000"),
    (MACHINE + "memslot 1 0x80000000 8M 0x43c00000", 6, "0x43c00000", "inside the memory"),
    (MACHINE + "memslot 1 0x80000000 1M 0x41000000 w", 6, "w", "letters"),
    (WINDOW + "memslot 1 0x80000000 2M 0x41000000", 7, "2M 0x41000000", "the size and the memory"),
    (WINDOW + "memslot 1 0x80000000 1M 0x42000000", 7, "1M 0x42000000", "the size and the memory"),
    (WINDOW + "memslot 1 0x80000000 1M 0x41000000 r", 7, "r", "as when"),
    (WINDOW + "memslot 2 0x800ff000 8k 0x41000000", 7, "0x800ff000", "beside memslot 1"),
    (WINDOW + "memslot 1\nmemslot 1", 8, "1", "a memslot that was made"),
    (MACHINE + "vm 1\r", 6, "\r", "printable"),
    (MACHINE + "nop 1 2 3 4 5 6 7 8 9 10 11 12 13", 6, "1", "nothing more"),
    (MACHINE + "mark " + "x" * 600, 6, "mark " + "x" * 15 + "...", "510 bytes"),
]


@pytest.mark.parametrize(("script", "line_number", "read", "expected"), WRONG)
def test_errors_say_where_what_and_why(script: str, line_number: int, read: str, expected: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(script, "name", "some.scenario")
    error = caught.value
    assert (error.path, error.line_number, error.read) == ("some.scenario", line_number, read)
    assert expected in error.expected
    assert str(error).startswith(f"some.scenario:{line_number}: read {read!r}, expected ")
    assert error.line == script.split("\n")[line_number - 1]


C_LIBRARY = ctypes.CDLL(None)
C_LIBRARY.strtoul.restype = ctypes.c_ulong


def num_of_the_rig(word: str) -> tuple[int, bytes]:
    """``num()`` of vmm.c with the C library's own strtoul, and what it left unread."""
    buffer = ctypes.create_string_buffer(word.encode())
    end = ctypes.c_char_p()
    value = C_LIBRARY.strtoul(buffer, ctypes.byref(end), 0)
    rest = end.value or b""
    return value << {b"k": 10, b"M": 20, b"G": 30}.get(rest[:1], 0), rest


@given(st.from_regex(r"(0x[0-9a-f]{1,13}|0[0-7]{0,12}|[1-9][0-9]{0,9})[kMG]?", fullmatch=True))
def test_numbers_are_what_strtoul_reads(word: str) -> None:
    value, rest = num_of_the_rig(word)
    assert len(rest) <= 1
    if value >> 64:
        with pytest.raises(WordError):
            number(word)
    else:
        assert number(word) == value


@pytest.mark.parametrize(
    "word", ["", "-1", "+1", "08", "0x", "1kk", "1m", "k", "1 ", " 1", "1_0", "٣", "0b1"]
)
def test_what_is_no_number(word: str) -> None:
    with pytest.raises(WordError):
        number(word)


def test_letters_and_sizes_there_and_back() -> None:
    for mask in range(32):
        letters = "".join(letter for k, letter in enumerate("rwxac") if mask >> k & 1) or "-"
        assert attribute_letters(attributes(letters)) == letters
    assert attributes("rx") == 0x77C | 0  # Normal WB, inner shareable, AF, S2AP read
    assert attributes("w") == 2 << 53 | 0x7BC
    assert [protection_letters(protection(word)) for word in ("0", "-", "r", "w", "rw", "wr")] == [
        *("-", "-", "r", "w", "rw", "rw")
    ]
    with pytest.raises(ValueError, match="no letters"):
        attribute_letters(0)
    for size in (0, 1, 4096, 65536, 3 << 20, 1 << 30, 4097):
        assert number(size_word(size)) == size


def test_registers_and_at_instructions_there_and_back() -> None:
    script = "start base\ns1 ttbr0=0x80000000 tcr=0x580803519 sctlr=1 pan=1\ns1 pir=0xffffffffffffffff\n"
    ops = [word for word, _ in sorted(AT_OPERATIONS.items(), key=lambda item: item[1])]
    scenario = parse_scenario(script + "".join(f"at {op} 0xffff000000001000\n" for op in ops), "at")
    first, second = scenario.events[:2].tolist()
    assert first[3:] == (1 << 20 | 0b1101, 2 << 30, 0x5_8080_3519, 1, 1 << 22, 0)
    assert second[3:] == (1 << 14, 2**64 - 1, 0, 0, 0, 0)
    assert [NAMES[int(row["a"])] for row in scenario.events[2:]] == [f"AT {op.upper()}" for op in ops]
    assert len(ops) == 14
    assert same_events(scenario, parse_scenario(write_script(scenario), "again"))
    for column, value in ((1 << 5, 0), (20, 1 << 23), (20, 5)):
        with pytest.raises(ValueError, match="no word"):
            register_word(column, value)


def test_more_registers_than_an_event_holds() -> None:
    names = [name for name in S1_REGISTERS if name != "pan" and not name.endswith("_el2")]
    words = [f"{name}={value}" for value, name in enumerate(names)] + ["pan=1"]
    scenario = parse_scenario(f"start base\ns1 {' '.join(words)}\n", "all")
    assert [row[3:] for row in scenario.events.tolist()] == [
        (0b11111, 0, 1, 2, 3, 4),
        (1 << 20 | 7 << 13, 5, 6, 7, 1 << 22, 0),
    ]
    assert same_events(scenario, parse_scenario(write_script(scenario), "again"))


VCPUS = """vcpus 3
start base
s2 new 1
code
vcpu 1
codeat 0x20000
enter
preempt
vcpu 2
codeat 0x10000
touch r 0x0
enter
wfi
vcpu 1
load
resume
exit
reset
setway
caches 1
caches 0
teardown
echo the end
"""


def test_a_line_happens_on_the_vcpu_that_the_script_speaks_to() -> None:
    scenario = parse_scenario(VCPUS, "vcpus")
    assert scenario.events["vcpu"].tolist() == [0, 0, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    entered = scenario.events[scenario.events["kind"] == schema.ENTER]
    assert entered["a"].tolist() == [0x20000, 0x10000], "each with L2's code where the script has it"
    assert same_events(scenario, parse_scenario(write_script(scenario), "again"))


def test_the_host_at_work_between_faults_is_written_back() -> None:
    script = (
        MACHINE + "codeat 0x20000\ngap 3 w 0x80000000\ngap 2 punch 0x41000000 4K\n"
        "vncr w 0x41003000\nvncr r 0xffffff8000003000\ntlbi2 vaa 0x3\nrelease\n"
        "hold 0x41000000 8k\nhold 0x41000000 8k 3 atomic\nrace 0x41000000 4k\ns1 tcr_el2=1 sctlr_el2=1\n"
    )
    scenario = parse_scenario(script, "host")
    assert same_events(scenario, parse_scenario(write_script(scenario), "again"))
    assert [row[0] for row in rows(script)][-6:-1] == [71, 73, 72, 72, 74]


def test_labels_keep_every_character_but_the_blanks_around_them() -> None:
    scenario = parse_scenario("start base\n \tmark \t a  b\u2028 \t\nmark\nmark mark\n", "labels")
    assert scenario.labels == ("a  b\u2028", "", "mark")
    assert same_events(scenario, parse_scenario(write_script(scenario), "again"))


def test_unsayable_events_are_refused() -> None:
    table = schema.EventTable()
    table.append(schema.MAP_GUEST, 0, 0, 4096, 3, 1)
    with pytest.raises(ValueError, match="no letters"):
        format_event(Scenario("x", 2 << 20, table.finish()), 0)


def examples() -> list[tuple[str, str]]:
    """(usage, example) of every row of the documentation's tables."""
    found = re.findall(r"^\| `(.*?)` \|.*\| `(.*?)` \|$", DOCUMENT, re.MULTILINE)
    return [(usage.replace("\\|", "|"), example) for usage, example in found]


def test_the_documentation_shows_every_command_as_declared() -> None:
    runnable = {c.name: c.usage for c in COMMANDS.values() if c.when != "kernel"}
    assert {usage.split()[0]: usage for usage, _ in examples()} == runnable
    for command in COMMANDS.values():
        assert f"`{command.usage}`" in DOCUMENT.replace("\\|", "|")
    for spec in schema.KINDS:
        assert f"- {spec.describe()}\n" in DOCUMENT


NEEDS = {"clearlog": "manual\n", "harvest": "ring 256\n"}
"""What must stand before ``start`` for a command."""


@pytest.mark.parametrize(("usage", "example"), examples(), ids=lambda text: text.split()[0])
def test_every_documented_example_is_read(usage: str, example: str) -> None:
    name = usage.split()[0]
    assert example.split()[0] == name
    when = COMMANDS[name].when
    script = (
        f"{example}\nstart base\n"
        if when == "before"
        else f"{example}\n"
        if when == "start"
        else f"{NEEDS.get(name, '')}{MACHINE}{example}"
    )
    scenario = parse_scenario(script, "example")
    if COMMANDS[name].kind >= 0:
        assert int(scenario.events["kind"][-1]) == COMMANDS[name].kind


def test_the_documented_scenario_is_read() -> None:
    (script,) = re.findall(r"```scenario\n(.*?)```", DOCUMENT, re.DOTALL)
    acting = [line for line in script.split("\n") if line and COMMANDS[line.split()[0]].kind >= 0]
    assert len(parse_scenario(script, "document").events) == len(acting) == 10


def test_reading_files_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.scenario"
    path.write_text("start base\nnop\n")
    assert read_scenario(path).name == "small"
    stdin = SimpleNamespace(buffer=io.BytesIO(b"start base\nbad\n"))
    monkeypatch.setattr("sys.stdin", stdin)
    with pytest.raises(ScenarioError, match=r"<stdin>:2: read 'bad'"):
        read_scenario("-")
    path.write_bytes(b"start base\nmark \xff\n")
    with pytest.raises(ScenarioError, match=r":2: .*UTF-8"):
        read_scenario(path)
    with pytest.raises(OSError, match="missing"):
        read_scenario(tmp_path / "missing")


SCRIPTS = [run.scenario_text().split("\n") for run in RUNS if not run.name.startswith("random/")]
WORDS = st.one_of(
    st.sampled_from(
        [*COMMANDS, "0", "1", "-1", "4k", "2M", "0x41000000", "0xffffffffffffffff", "new", "rwx", "n", "#"]
    ),
    st.text(max_size=6),
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_scripts_are_read_or_refused(data: st.DataObject) -> None:
    lines = list(data.draw(st.sampled_from(SCRIPTS)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        words = lines[at].split(" ")
        where = data.draw(st.integers(0, len(words)))
        words[where : where + data.draw(st.integers(0, 1))] = [data.draw(WORDS)]
        lines[at] = " ".join(words)
    try:
        scenario = parse_scenario("\n".join(lines), "mutated")
    except ScenarioError as error:
        assert 1 <= error.line_number <= "\n".join(lines).count("\n") + 1
        return
    assert same_events(scenario, parse_scenario(write_script(scenario), "again"))


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(ScenarioError):
        parse_scenario(text, "any")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("granule 8K", "8K"),
        ("start base\ngranule 16K", "granule"),
        ("mem 4100k\ngranule 16K\nstart base", "base"),
        ("granule 16K\nstart huge\nmem 64M", "mem"),
        ("mem 48M\ngranule 16K\nstart huge", "huge"),
        ("granule 16K\nstart base\ns2 new 1\nmap 0x40000000 0x40000000 64G 1", "1"),
        ("granule 16K\nstart base\ns2 new 1\nmap 0x80001000 0x41000000 16k 3", "0x80001000"),
        ("granule 64K\nstart base\ns2 new 1\ncode 0x14000", "0x14000"),
        ("granule 64K\nstart base\ndontneed 0x41001000 64k", "0x41001000"),
    ],
)
def test_what_a_larger_granule_refuses(text: str, read: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, "granule")
    assert caught.value.read == read


def test_the_granule_sets_l1s_default_unless_the_script_said_its_own() -> None:
    def control(text: str, granule: str = "4K") -> int:
        scenario = parse_scenario(text + "\nstart base\ns2 new 1", "granule", granule=granule)
        return int(scenario.events[0]["c"])

    assert control("granule 16K") == control("", "16K") == 0x8002_B55C
    assert control("granule 64K", "16K") == 0x8002_7559
    assert control("vtcr 0x80023559\ngranule 16K") == 0x8002_3559
    assert parse_scenario("start base", "x", granule="64K").granule == "64K"
