"""Answers of the real kernel: every recorded log, what is in it, and what is refused."""

from __future__ import annotations

import lzma
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmmu.formats.answer import Answer, decode_answer, parse_answer, read_answer
from shadowmmu.formats.problem import FormatError
from shadowmmu.formats.records import PageFrame, Printed, Touch, read_record
from shadowmmu.formats.runs import (
    KernelRun,
    bundled_folder,
    bundled_run,
    bundled_runs,
    read_runs,
)

LARGE = Path(__file__).parents[1] / "data" / "kernel_runs"
RUNS = bundled_runs() + read_runs(LARGE)


def test_which_runs_ship() -> None:
    folders = Counter(run.name.split("/")[0] for run in read_runs(LARGE))
    assert folders == {
        "cost": 3,
        "granule64": 7,
        "hugetlb": 4,
        "live": 18,
        "mm": 6,
        "slots": 13,
        "swap": 7,
        "vcpus": 9,
    }
    assert len(bundled_runs()) == 41
    assert len({run.name for run in RUNS}) == len(RUNS) == 41 + folders.total()
    listed = {str(path) for run in RUNS for path in (run.answer_path, run.scenario_path)}
    there = {str(p) for base in (Path(str(bundled_folder())), LARGE) for p in base.glob("*/*")}
    assert listed == there
    with pytest.raises(KeyError):
        bundled_run("nothing")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_recorded_answer(run: KernelRun) -> None:
    answer = run.answer()
    assert answer.ipa_limit_bits == run.ipa_limit_bits
    assert answer.return_code == 0
    assert [step.command for step in answer.steps] == [s for s in run.scenario_text().split("\n") if s]
    assert all(step.trace.lost == 0 for step in answer.steps if step.trace)
    for step in answer.steps:
        name, *words = step.command.split()
        assert (step.touch is not None) == (name == "touch")
        assert len(step.frames) == (int(words[1]) if name == "pagemap" else 0)
        assert bool(step.dump_lines) == (name == "dump")
        assert (step.trace is not None) == (name == "trace")
        assert (step.histogram is not None) == (name == "cat")
        if name == "dump":
            assert step.tag == words[0]
            assert ("stage2_page_tables" in step.dumps) == (len(words) == 1)
            assert list(step.dumps) == list(step.lines_of)
        if name == "touch" and step.touch:
            assert step.touch.operation == words[0]
            assert step.touch.va == int(words[1], 0)


def test_what_the_smallest_answer_says() -> None:
    answer = bundled_run("hello/hello").answer()
    by_command = {step.command: step for step in answer.steps}
    fault = by_command["touch r 0x90000000 4096 1"].touch
    assert fault == Touch(
        "r", 2**31 + 2**28, 4096, 1, 0x93C58006, 0x90000000, 0x8000000000900000, 0x10018, 1, 0, 443983
    )
    assert not fault.finished
    good = by_command["touch w 0x80000000 4096 4"].touch
    assert good is not None
    assert good.finished
    (s2,) = by_command["s2 new 1"].printed("s2")
    assert s2.fields == {"root": 0x40100000, "vttbr": 0x1000040100000, "vtcr": 0x80023559}
    shadow = by_command["dump touched"].dumps["nested/nested_mmu0"]
    assert [(r.start, r.end, r.level) for r in shadow.leaves()] == [
        (0x10000, 0x11000, 3),
        (0x80000000, 0x80004000, 3),
        (0x80004000, 0x80006000, 3),
    ]
    assert by_command["dump touched"].dumps["nested/nested_mmu1"].empty
    assert answer.dumps["after-dontneed", "nested/nested_mmu0"][-1].endswith("256T 0")
    assert len(answer.dumps) == 4 * 3


def test_histograms_marks_warnings_and_dirty_pages() -> None:
    chunks = bundled_run("cost/counted-chunks").answer()
    histogram = chunks.steps[-3].histogram
    assert histogram is not None
    assert (histogram.hits, histogram.entries, histogram.dropped) == (262146, 2, 0)
    assert {(keys["size"], hits) for keys, hits in histogram.rows} == {(4096, 2), (1 << 30, 262144)}
    dirty = bundled_run("scenario/12-dirtylog-slot").answer()
    (printed,) = next(s for s in dirty.steps if s.command == "getlog").printed("dirty")
    assert printed.fields == {"total": 7}
    assert printed.values[-1] == 0x41003000
    trace = dirty.steps[-1].trace
    assert trace is not None
    assert {event.name for event in trace.after("log-on")} >= {"nested_wp"}
    assert len(dirty.events) == 182
    warned = bundled_run("suspicion/ipas2-tlbi-beyond-limit").answer()
    assert any("__unmap_stage2_range" in line for line in warned.warnings)
    assert not dirty.warnings


def test_records_of_single_lines() -> None:
    assert read_record("pagemap cipa=0x41000000 none", "p", 1) == PageFrame(0x41000000, None)
    assert read_record("pagemap cipa=0x41000000 hpa=0x1000", "p", 1) == PageFrame(0x41000000, 0x1000)
    assert read_record("tlbi kind=0 value=4k ns=7", "p", 1) == Printed(
        "tlbi", {"ns": 7, "kind": 0, "value": 4096}
    )
    assert read_record("peek 0x41000000 = 0xff", "p", 1) == Printed("peek", {"at": 0x41000000, "value": 255})
    assert read_record("peek 010 = 0", "p", 1) == Printed("peek", {"at": 8, "value": 0})
    assert read_record("par 0x809", "p", 1) == Printed("par", {"value": 0x809})
    assert read_record("dirty: total=0", "p", 1) == Printed("dirty", {"total": 0})
    assert read_record("munmap cipa=0x41000000 size=0 r=-1 ns=5", "p", 1).fields["r"] == -1  # type: ignore[union-attr]
    assert read_record("MMIO addr=0x9000010 len=8 write=1", "p", 1) == Printed(
        "mmio", {"addr": 0x9000010, "len": 8, "write": 1}
    )
    assert read_record("L1EXC addr=9000008 data=96000045", "p", 1) == Printed(
        "l1exc", {"at": 0x9000008, "data": 0x96000045}
    )
    for line in (
        "",
        "peek x = 0",
        "par x",
        "slot on ns=1",
        "touch r addr=1",
        "DIE CREATE_VM errno=22 (Invalid argument)",
    ):
        with pytest.raises(FormatError, match=r"^p:3: "):
            read_record(line, "p", 3)


SMALL = """RIG up 0.4 7.3.4
[    0.1] kvm [1]: IPA Size Limit: 40 bits
> mem 64M
> dump a n
--- a nested/nested_mmu0
--- end
> cat /x/hist
--- cat /x/hist
{ size:       4096 } hitcount:          1

Totals:
    Hits: 1
    Entries: 1
    Dropped: 0
> nop
VMM done
RIG vmm rc=0
RIG down 0.9
"""


def test_a_small_log() -> None:
    answer = parse_answer(SMALL)
    assert [step.command for step in answer.steps] == ["mem 64M", "dump a n", "cat /x/hist", "nop"]
    assert answer.steps[2].number == 7


@pytest.mark.parametrize(
    ("old", "new", "line_number", "expected"),
    [
        ("[    0.1] kvm [1]: IPA Size Limit: 40 bits\n", "", 1, "IPA Size Limit"),
        ("RIG up", "[    0.0] kvm [1]: IPA Size Limit: 48 bits\nRIG up", 3, "one boot message"),
        ("RIG up", "QEMU: terminating\nRIG up", 1, "a boot message"),
        ("VMM done\n", "", 17, "cut short"),
        ("> ", "", 18, "a command"),
        ("--- end\n", "", 5, "'--- end'"),
        ("> nop\n", "> nop\n--- end\n", 16, "nothing is open"),
        ("> nop\n", "> nop\nhello\n", 16, "the VMM prints"),
        ("--- a nested", "--- a lost", 5, "'--- TAG FILE'"),
        ("--- end", "(cannot open: No such file)\n--- end", 6, "banner"),
        ("--- end", "--- b nested/nested_mmu1\n--- end", 6, "one tag"),
        ("--- end", "--- a nested/nested_mmu0\n--- end", 6, "once"),
        ("--- end", "--- a /x/trace\n--- end", 6, "dumps only"),
        ("--- cat /x/hist", "--- cat /x/format", 8, "histogram"),
        ("    Hits: 1\n", "", 13, "Hits"),
        ("{ size:       4096 }", "{ size: big }", 9, "key: number"),
        ("Totals:", "Total:", 11, "a row or a total"),
        ("rc=0", "rc=0\nlate", 18, "the end of the run"),
        ("RIG vmm rc=0\n", "", 17, "rc="),
    ],
)
def test_logs_that_are_refused(old: str, new: str, line_number: int, expected: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_answer(SMALL.replace(old, new) if old == "> " else SMALL.replace(old, new, 1), "log")
    assert (caught.value.path, caught.value.line_number) == ("log", line_number)
    assert expected in caught.value.expected


def test_files_plain_and_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.kernel.txt").write_text(SMALL)
    packed = lzma.compress(SMALL.encode())
    (tmp_path / "a.kernel.txt.xz").write_bytes(packed)
    assert read_answer(tmp_path / "a.kernel.txt").steps == read_answer(tmp_path / "a.kernel.txt.xz").steps
    for broken in (b"", packed[:-9], b"junk", packed[:40] + b"\xff" + packed[41:]):
        with pytest.raises(FormatError, match="xz"):
            decode_answer(broken, "b.xz")
    with pytest.raises(FormatError, match=r"^b:2: "):
        decode_answer(b"RIG up\n\xff\n", "b")


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ("[[run]", "TOML"),
        ("x = 1", "entries only"),
        ("run = 1", "entries only"),
        ("run = [1]", "the fields"),
        ('[[run]]\nname = "a"', "the fields"),
        ("ipa_limit_bits = true", "type int"),
        ('scenario = "../a.scenario"', "inside"),
        ('scenario = "/a.scenario"', "inside"),
        ('answer = "missing"', "exists"),
        ("twice", "once"),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, manifest: str, expected: str) -> None:
    (tmp_path / "a.scenario").write_text("start base\n")
    (tmp_path / "a.txt").write_text(SMALL)
    fields = {
        "name": '"a"',
        "scenario": '"a.scenario"',
        "answer": '"a.txt"',
        "ipa_limit_bits": "40",
        "icount": "true",
        "note": '""',
    }
    good = "[[run]]\n" + "".join(f"{key} = {value}\n" for key, value in fields.items())
    (tmp_path / "manifest.toml").write_text(good)
    assert read_runs(tmp_path)[0].answer().ipa_limit_bits == 40
    key = manifest.split(" = ")[0]
    bad = good + good if manifest == "twice" else manifest
    if key in fields:
        bad = good.replace(f"{key} = {fields[key]}", manifest)
    (tmp_path / "manifest.toml").write_text(bad)
    with pytest.raises(FormatError, match=expected):
        read_runs(tmp_path)


TEXTS = [
    lzma.decompress(bundled_run(f"scenario/{name}").answer_path.read_bytes()).decode()
    for name in ("10-perms", "14-idle")
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TEXTS), st.data())
def test_mutated_logs_are_read_or_refused(text: str, data: st.DataObject) -> None:
    lines = text.split("\n")
    at = data.draw(st.integers(0, len(lines) - 1))
    where = data.draw(st.integers(0, len(lines[at])))
    change = data.draw(st.one_of(st.text(max_size=3), st.just("\n"), st.sampled_from(lines)))
    lines[at] = lines[at][:where] + change + lines[at][where + data.draw(st.integers(0, 3)) :]
    if data.draw(st.booleans()):
        del lines[data.draw(st.integers(0, len(lines) - 1))]
    mutated = "\n".join(lines)
    try:
        answer = parse_answer(mutated)
    except FormatError as error:
        assert 0 <= error.line_number <= mutated.count("\n") + 1
    else:
        assert isinstance(answer, Answer)


AT = Path(__file__).parents[2] / "rig" / "recorded" / "at"


def par_values(name: str) -> list[int]:
    answer = read_answer(AT / f"{name}.kernel.txt.xz")
    return [record.fields["value"] for step in answer.steps for record in step.printed("par")]


def test_an_at_on_a_shadow_mmu_that_waits_for_its_wipe_was_the_former_tenants() -> None:
    address = 0xFFFF_FFFF_F000
    before, pending, _s12, wiped = par_values("at-on-pending-mmu")
    assert (before & address, pending & address, wiped & address) == (
        0x1_0000_1000,
        0xC000_1000,
        0x1_0000_1000,
    )
    assert not (before | pending | wiped) & 1


def test_every_at_of_the_control_came_back() -> None:
    assert len(par_values("at-control")) == 18


@pytest.mark.parametrize("name", ["at-s12-no-memslot", "at-s12-bad-vtcr"])
def test_an_at_that_was_replayed_has_no_end(name: str) -> None:
    with pytest.raises(FormatError, match="cut short"):
        read_answer(AT / f"{name}.kernel.txt.xz")
