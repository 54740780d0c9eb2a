"""The page-table dump: every recorded dump there and back, the rules of a row, and mutations."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmmu.formats import ptdump
from shadowmmu.formats.problem import FormatError
from shadowmmu.formats.ptdump import BANNER, Header, PtDump, Run, merge, parse, render
from shadowmmu.formats.runs import KernelRun, bundled_run, bundled_runs, read_runs

RUNS = bundled_runs() + read_runs(Path(__file__).parents[1] / "data" / "kernel_runs")

PAGE_RW = 0x7FF  # what a level 3 leaf looks like: valid, page, attributes, R, W, SH, AF
BLOCK_RW = 0x7FD


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_recorded_dump_there_and_back(run: KernelRun) -> None:
    dumps = [pair for step in run.answer().steps for pair in step.dump_lines]
    assert bool(dumps) == (run.name not in ("cost/counted-chunks", "slots/flushes-clear"))
    for file, lines in dumps:
        dump = parse(lines, file)
        assert render(dump.rows, dump.header) == list(lines)
        assert (dump.header is None) == (file == "stage2_page_tables" or not lines)
        if dump.rows:
            assert dump.rows[-1].end.bit_count() == 1


def test_all_recorded_dumps_are_there() -> None:
    per_run = [len(s.dump_lines) for run in RUNS for s in run.answer().steps]
    assert sum(per_run) == 9930  # counted by a separate script over the originals


def test_rows_as_the_kernel_prints_them() -> None:
    runs = [
        (0x0, 0x40000000, 1, 0),
        (0x40000000, 0x40200000, 2, BLOCK_RW | 0x41000000),
        (0x40200000, 0x40600000, 2, BLOCK_RW | 1 << 54 | 0x51000000),
        (0x40600000, 0x40601000, 3, PAGE_RW & ~0x480 | 1 << 53),
        (0x40601000, 0x40602000, 3, PAGE_RW & ~0x40 | 3 << 53),
        (0x40602000, 0x40603000, 3, 1 << 6),
        (0x40603000, 0x40800000, 3, 0),
        (0x40800000, 1 << 48, 0, 0),
    ]
    assert render(runs, Header(0x80023559, 0x1000040100000, False)) == [
        "VTCR: 0x0000000080023559 VTTBR: 0x0001000040100000 s2: disabled",
        BANNER,
        "0x0000000000000000-0x0000000040000000           1G 1",
        "0x0000000040000000-0x0000000040200000           2M 2   R W px ux  AF BLK",
        "0x0000000040200000-0x0000000040600000           4M 2   R W PXNUXN AF BLK",
        "0x0000000040600000-0x0000000040601000           4K 3   R   PXNux        ",
        "0x0000000040601000-0x0000000040602000           4K 3     W px UXN AF    ",
        "0x0000000040602000-0x0000000040603000           4K 3 F R   px ux        ",
        "0x0000000040603000-0x0000000040800000        2036K 3",
        "0x0000000040800000-0x0001000000000000   268434424M 0",
    ]
    lines = render(runs)
    assert parse(lines) == PtDump(None, tuple(merge(runs)))


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1 << 12, "        4K"),
        (1 << 20, "        1M"),
        (1023 << 20, "     1023M"),
        (3 << 29, "     1536M"),
        (1 << 48, "      256T"),
        (0x1000000000000 - 0x8000000000, "   261632G"),
        (1 << 52, "        4P"),
        ((1 << 52) - 4096, "4398046511100K"),
    ],
)
def test_the_size_column(size: int, text: str) -> None:
    (line,) = render([(0, size, 0, 0)])[1:]
    assert line == f"0x{0:016x}-0x{size:016x}   {text} 0"
    assert parse([BANNER, line]).rows == (Run(0, size, 0, 0),)


def test_merging_looks_at_shown_bits_and_level_only() -> None:
    same = [(0, 4096, 3, PAGE_RW | 0x5000), (4096, 8192, 3, PAGE_RW | 0x9000 | 2 << 55)]
    assert merge(same) == [Run(0, 8192, 3, 0xC3 | 0x400)]
    assert len(merge([(0, 1 << 21, 2, 0), (1 << 21, 1 << 22, 3, 0)])) == 2


def test_invalid_rows_that_read_alike() -> None:
    bits = [200, 226, 200, 2, 0, 2]  # they differ in bit 1 only, which is not printed
    runs = [(4096 * k, 4096 * (k + 1), 3, b) for k, b in enumerate(bits)]
    lines = render(runs)
    assert lines[1].split("   ", 1)[1] == lines[2].split("   ", 1)[1]
    dump = parse(lines)
    assert [row.bits for row in dump.rows] == [b & ptdump.MASK for b in bits]
    assert render(dump.rows) == lines


def test_empty_dumps() -> None:
    assert render([]) == [] == render([], None)
    assert parse([]).empty
    header = Header(1, 2, True)
    assert render([], header) == [header.text()]
    assert parse([header.text()]) == PtDump(header, ())
    assert not parse([header.text()]).empty


@pytest.mark.parametrize(
    "runs",
    [
        [(4096, 8192, 3, 0)],
        [(0, 4096, 3, 0), (8192, 12288, 3, 0)],
        [(0, 8192, 3, 0), (4096, 12288, 3, 0)],
        [(0, 0, 3, 0)],
        [(0, 100, 3, 0)],
        [(0, 4096, 4, 0)],
        [(0, 4096, -1, 0)],
        [(0, 1 << 64, 0, 0)],
    ],
)
def test_runs_that_no_walk_gives(runs: list[tuple[int, int, int, int]]) -> None:
    with pytest.raises(ValueError):
        render(runs)


GOOD = render([(0, 0x1000, 3, PAGE_RW), (0x1000, 1 << 40, 0, 0)], Header(0x80023559, 1 << 48, True))


@pytest.mark.parametrize(
    ("at", "line"),
    [
        (0, "VTCR: 0x80023559 VTTBR: 0x0001000000000000 s2: enabled"),
        (0, GOOD[0] + " "),
        (0, GOOD[0].replace("enabled", "perhaps")),
        (1, "---[ Guest ]---"),
        (2, GOOD[2].rstrip()),
        (2, GOOD[2] + " "),
        (2, GOOD[2].replace("4K", "8K")),
        (2, GOOD[2].replace("4K", "0M")),
        (2, GOOD[2].replace("   R", " F R", 1).replace("AF    ", "AF BLK")),
        (2, GOOD[2].replace("0x0000000000000000-", "0x0000000000001000-")),
        (2, GOOD[2].replace(" 3 ", " 4 ")),
        (3, GOOD[3].replace("0x0000000000001000-", "0x0000000000002000-")),
        (3, GOOD[3] + "     px ux        "),
        (3, ""),
    ],
)
def test_bad_lines_are_named(at: int, line: str) -> None:
    lines = [*GOOD[:at], line, *GOOD[at + 1 :]]
    with pytest.raises(FormatError) as caught:
        parse(lines, "some.dump", 101)
    assert (caught.value.path, caught.value.line_number, caught.value.read) == ("some.dump", 101 + at, line)


def test_rows_that_should_have_been_one() -> None:
    lines = [BANNER, Run(0, 4096, 3, 0).text(), Run(4096, 8192, 3, 0).text()]
    with pytest.raises(FormatError, match="differs"):
        parse(lines)
    with pytest.raises(FormatError, match="after the banner"):
        parse([BANNER])


RUN_LISTS = st.lists(
    st.tuples(st.integers(1, 1 << 20), st.integers(0, 3), st.one_of(st.just(0), st.integers(0, 2**64 - 1))),
    min_size=1,
    max_size=12,
)


@given(
    RUN_LISTS,
    st.one_of(
        st.none(), st.builds(Header, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.booleans())
    ),
)
def test_any_runs_there_and_back(drawn: list[tuple[int, int, int]], header: Header | None) -> None:
    runs, at = [], 0
    for pages, level, bits in drawn:
        runs.append((at, at + 4096 * pages, level, bits))
        at += 4096 * pages
    lines = render(runs, header)
    dump = parse(lines)
    assert render(dump.rows, dump.header) == lines
    assert dump.header == header
    valid = sum(end - start for start, end, _, bits in runs if bits & 1)
    assert sum(row.end - row.start for row in dump.leaves()) == valid
    for row in dump.rows:
        assert row.bits & ~ptdump.MASK == 0


LINES = [
    line for s in bundled_run("scenario/10-perms").answer().steps for _, ls in s.dump_lines for line in ls
]


@settings(max_examples=150)
@given(st.data())
def test_mutated_dumps_are_read_or_refused(data: st.DataObject) -> None:
    lines = list(
        GOOD if data.draw(st.booleans()) else data.draw(st.lists(st.sampled_from(LINES), max_size=4))
    )
    for _ in range(data.draw(st.integers(0, 2)) if lines else 0):
        at = data.draw(st.integers(0, len(lines) - 1))
        where = data.draw(st.integers(0, len(lines[at])))
        lines[at] = (
            lines[at][:where]
            + data.draw(st.text(max_size=2))
            + lines[at][where + data.draw(st.integers(0, 2)) :]
        )
    try:
        dump = parse(lines)
    except FormatError as error:
        assert 1 <= error.line_number <= len(lines)
    else:
        assert render(dump.rows, dump.header) == lines
