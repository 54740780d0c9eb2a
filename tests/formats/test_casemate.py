"""casemate's trace text: round trip, both spellings of fields, errors with their line."""

from __future__ import annotations

import doctest
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmmu.formats import casemate
from shadowmmu.formats.casemate import (
    _BARE,
    _FIELDS,
    HEX,
    NAMES,
    Record,
    format_record,
    format_trace,
    parse_trace,
)
from shadowmmu.formats.problem import FormatError

SOURCES = (
    st.none() | st.integers(0, 10**9) | st.from_regex(r"[a-zA-Z0-9_./ ()-]{0,30}:[0-9]{1,6}", fullmatch=True)
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    name = draw(st.sampled_from(NAMES))
    word, declared = "", _FIELDS.get(name, ())
    if name in _BARE:
        word = draw(st.sampled_from(sorted(_BARE[name])))
        declared = _BARE[name][word]
    fields: dict[str, int | str] = {}
    for key, kind, bits in declared:
        fields[key] = draw(st.integers(0, (1 << bits) - 1)) if kind == HEX else draw(st.sampled_from(kind))
    number, thread = draw(st.integers(0, 10**12)), draw(st.integers(0, 63))
    return Record(name, number, thread, word, fields, draw(SOURCES))


@given(st.lists(records(), max_size=8))
def test_what_is_written_reads_back(made: list[Record]) -> None:
    text = format_trace(made)
    trace = parse_trace(text)
    assert trace.records == tuple(made)
    assert trace.lines == tuple(range(1, len(made) + 1))
    assert format_trace(trace.records) == text


@given(st.lists(records(), min_size=1, max_size=4))
def test_condensed_and_spread_out_traces_say_the_same(made: list[Record]) -> None:
    text = format_trace(made)
    plain = re.sub(r'"[^"]*"', '"a.c:1"', text)
    condensed = re.sub(r"\((?:[a-z-]+) ((?:\"[^\"]*\")|[^\s()]+)\)", r"\1", plain)
    spread = plain.replace(" (", "\n  (").replace("))", ") )")
    bare = plain.replace(" 0x", " ")
    expected = parse_trace(plain).records
    assert "(id" not in condensed
    assert parse_trace(condensed).records == expected
    assert parse_trace(spread).records == expected
    assert parse_trace(bare).records == expected


def test_hexadecimal_without_its_prefix_is_hexadecimal() -> None:
    (record,) = parse_trace("(mem-init (id 10) (tid 2) (address 23f000) (size 1000))").records
    assert (record.number, record.thread) == (10, 2)
    assert record.fields == {"address": 0x23F000, "size": 0x1000}
    assert record.integer("size") == 0x1000


def test_what_the_checker_said_is_kept_with_its_line() -> None:
    text = '(lock (id 0) (tid 0) (address 0x10) (src "a.c:1"))\n! no such thing: (\n(isb'
    with pytest.raises(FormatError) as caught:
        parse_trace(text, "run.log")
    assert caught.value.line_number == 3
    trace = parse_trace(text[: text.rindex("(")])
    assert trace.messages == ((2, "no such thing: ("),)
    assert [record.name for record in trace.records] == ["lock"]


@pytest.mark.parametrize("empty", ["", "\n \t\n"])
def test_an_empty_trace_has_no_records(empty: str) -> None:
    assert parse_trace(empty).records == ()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("msr (id 0) (tid 0) (sysreg vttbr_el2) (value 0)", "sysreg-write"),
        ("tlbi (id 0) (tid 0) ipas2e1is (addr 0x0) (level 0x3)", "'value'"),
        ("tlbi (id 0) (tid 0) vae1is (value 0x0)", "vae2is"),
        ("tlbi (id 0) (tid 0) vmalle1is (value 0x0)", "src"),
        ("barrier (id 0) (tid 0) dmb", "dsb"),
        ("barrier (id 0) (tid 0) dsb (kind outer)", "ishst"),
        ("lock (tid 0) (id 0) (address 0x0)", "'id'"),
        ("lock (id 0x10) (tid 0) (address 0x0)", "decimal"),
        ("lock (id 1) (tid -1) (address 0x0)", "decimal"),
        ("lock (id 1) (tid 1) (address 0x1ffffffffffffffff)", "64 bits"),
        ("mem-set (id 1) (tid 1) (address 0x0) (size 0x8) (value 0x100)", "8 bits"),
        ("mem-write (id 1) (tid 1) (mem-order acquire) (address 0x0) (value 0x1)", "release"),
        ("mem-read (id 1) (tid 1) (address 0y1) (value 0x1)", "hexadecimal"),
        ("mem-read (id 1) (tid 1) (address 0x1)", "value"),
        ("lock (id 1) (tid 1) (address 0x1) (src a.c:1)", "quotes"),
        ('lock (id 1) (tid 1) (address 0x1) (src "a.c:1") (more 1)', "')'"),
        ('lock (id 1) (tid 1) (address 0x1) (src "a.c:1', "quote"),
        ("lock (id 1) (tid 1) (address (0x1))", "value of address"),
    ],
)
def test_what_is_no_record_is_refused_with_its_line(line: str, expected: str) -> None:
    good = "(unlock (id 0) (tid 0) (address 0x0))\n"
    with pytest.raises(FormatError, match=re.escape(expected)) as caught:
        parse_trace(f"{good}{good}({line})\n{good}", "run.log")
    assert (caught.value.path, caught.value.line_number) == ("run.log", 3)


@given(st.lists(records(), min_size=1, max_size=3), st.data())
def test_damage_is_refused_or_changes_the_record(made: list[Record], data: st.DataObject) -> None:
    text = format_trace(made)
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:at] + data.draw(st.sampled_from(["", "(", ")", '"', "x", "\n"])) + text[at + 1 :]
    try:
        trace = parse_trace(damaged)
    except FormatError as error:
        assert error.line_number >= 1
    else:
        assert trace.messages == ()
        assert parse_trace(format_trace(trace.records)).records == trace.records


@pytest.mark.parametrize(
    "record",
    [
        Record("lock", 0, 0),
        Record("lock", 0, 0, fields={"address": 1 << 64}),
        Record("lock", 0, 0, fields={"address": "0x1"}),
        Record("barrier", 0, 0, "dmb"),
        Record("hint", 0, 0, fields={"kind": "other", "location": 0, "value": 0}),
        Record("nothing", 0, 0),
        Record("lock", 0, 0, fields={"address": 1}, source='a"b:1'),
    ],
)
def test_what_the_format_cannot_say_is_not_written(record: Record) -> None:
    with pytest.raises(ValueError, match=record.name if record.source is None else "src"):
        format_record(record)


def test_the_example_of_the_format_runs() -> None:
    outcome = doctest.testmod(casemate)
    assert outcome.attempted > 0
    assert outcome.failed == 0
