"""The stream of shadow-table events: every source's line, logs and buffers, compression, and refusals."""

from __future__ import annotations

import gzip
import io
import lzma
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmmu.errors import InputError
from shadowmmu.formats.problem import FormatError
from shadowmmu.formats.shadow_trace import ShadowEvent, ShadowTrace, bundled_traces, open_shadow_trace

BODY = (
    "s2map: (kvm_pgtable_stage2_map+0x4/0x138) pgt=0xffff01 vttbr=0x0 addr=0x2000 size=0x1000"
    " phys=0x9000 prot=0xf"
)
FTRACE = f"             vmm-46      [000] ...2.     2.344739: {BODY}"
VALUES = {"pgt": 0xFFFF01, "vttbr": 0, "addr": 0x2000, "size": 0x1000, "phys": 0x9000, "prot": 0xF}
EVENT = ShadowEvent(1, 46, 2_344_739_000, "s2map", VALUES)


def read(text: str) -> tuple[list[ShadowEvent], ShadowTrace]:
    trace = ShadowTrace(text.splitlines(keepends=True), "t")
    return list(trace), trace


@pytest.mark.parametrize(
    "line",
    [
        FTRACE,
        f"           <...>-46      [011] d..2.     2.344739: {BODY}",
        f"         CPU 3/KVM-46      [000] .....     2.344739: {BODY}",
        f"             vmm-46    (     44) [000] ...2.     2.344739: {BODY}",
        f"             vmm-46      [000]     2.344739: {BODY}",
        f"             vmm-46      [000]     2.344739000: {BODY}",
        "vmm    46 [000]     2.344739: rig:"
        + BODY.replace("(kvm_pgtable_stage2_map+0x4/0x138)", "(ffff800080012345)"),
    ],
    ids=["trace", "cmdline-lost", "name-with-space", "tgid", "trace-cmd", "nanoseconds", "perf-script"],
)
def test_a_line_of_each_source_is_the_same_event(line: str) -> None:
    assert read(line)[0] == [EVENT]


def test_a_log_is_read_between_its_marks_and_foreign_lines_are_counted() -> None:
    text = (
        "RIG up\n[    0.1] kvm [1]: IPA Size Limit: 40 bits\nL[    0.1] kvm [1]: IPA Size Limit: 48 bits\n"
        f"{FTRACE}\n--- all /sys/kernel/tracing/trace\n# tracer: nop\n/init: cannot create x\n"
        f"{FTRACE}\n--- end\nVMM done\n"
        f"--- more /sys/kernel/tracing/trace\n{FTRACE}\n--- end\n"
    )
    events, trace = read(text)
    assert [event.line_number for event in events] == [8, 12]
    assert (trace.foreign, trace.ipa_limit_bits, trace.events) == (1, 40, 2)


def test_what_the_kernel_lost_is_counted_from_both_of_its_words() -> None:
    text = f"# entries-in-buffer/entries-written: 100/140   #P:4\n{FTRACE}\nCPU:3 [LOST 7 EVENTS]\n"
    assert read(text)[1].lost == 47


def test_a_last_line_without_its_end_is_left_out_and_counted() -> None:
    """Half a number is a number too."""
    for length in range(1, len(FTRACE) + 1):
        events, trace = read(f"{FTRACE}\n{FTRACE[:length]}")
        assert (events, trace.cut) == ([EVENT], 1) or not FTRACE[:length].strip()
    assert read(f"{FTRACE}\n")[1].cut == 0


def test_other_events_are_counted_by_name_and_older_ones_too() -> None:
    older = FTRACE.replace("2.344739", "2.344738")
    other = FTRACE.replace("s2map", "sched_switch")
    _events, trace = read(f"{FTRACE}\n{other}\n{older}\n{other}\n")
    assert (trace.skipped, trace.backwards) == ({"sched_switch": 2}, 1)


def test_negative_results_are_read() -> None:
    line = FTRACE.replace(BODY, "s2map_ret: (user_mem_abort+0x1/0x2 <- kvm_pgtable_stage2_map) ret=-11")
    assert read(line)[0][0].values == {"ret": -11}


def test_a_value_with_a_leading_zero_is_decimal() -> None:
    assert read(FTRACE.replace("addr=0x2000", "addr=02000"))[0][0].values["addr"] == 2000


@pytest.mark.parametrize(
    ("text", "number", "expected"),
    [
        (f"{FTRACE}\nrubbish\n", 2, "an event"),
        (f"# tracer: nop\n{FTRACE.replace('phys=0x9000', 'phys=')}\n", 2, "s2map with the fields"),
        (f"{FTRACE.replace('prot=0xf', 'prot=0xfg')}\n", 1, "s2map with the fields"),
        (f"RIG up\n{FTRACE}\n", 2, "the lines of a trace buffer"),
        ("", 0, "the lines of a trace buffer"),
        (f"RIG up\n--- t /sys/kernel/tracing/trace\n{FTRACE}\n", 3, "'--- end'"),
        ("RIG up\n--- t /sys/kernel/tracing/trace\nmm-46 [000] s2map: pgt=0x\n--- end\n", 3, "an event"),
    ],
)
def test_what_is_no_trace_is_refused_at_its_line(text: str, number: int, expected: str) -> None:
    with pytest.raises(FormatError) as caught:
        read(text)
    assert caught.value.line_number == number
    assert caught.value.expected.startswith(expected)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_files_are_unpacked_by_their_first_bytes(pack, tmp_path: Path) -> None:
    path = tmp_path / "some-name"
    path.write_bytes(pack(FTRACE.encode() + b"\n"))
    with open_shadow_trace(str(path)) as trace:
        assert list(trace) == [EVENT]


def test_standard_input_is_a_trace_too(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = io.BufferedReader(io.BytesIO(lzma.compress(FTRACE.encode())))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=packed))
    with open_shadow_trace("-") as trace:
        assert list(trace) == [EVENT]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_file_that_is_cut_short_is_refused(pack, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(pack((FTRACE + "\n").encode() * 3000)[:-40])
    with pytest.raises(FormatError, match="a whole gzip or xz file"), open_shadow_trace(str(path)) as trace:
        list(trace)


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"\x01" * 200_000)
    with pytest.raises(FormatError, match="lines of less than"), open_shadow_trace(str(path)) as trace:
        list(trace)


def test_names_that_are_no_trace_are_refused_with_those_that_are() -> None:
    with pytest.raises(InputError, match="l2-boot-khugepaged"), open_shadow_trace("nowhere"):
        pass


def test_the_bundled_traces_are_read_whole() -> None:
    for name in bundled_traces():
        with open_shadow_trace(name) as trace:
            events = list(trace)
        assert (trace.lost, trace.backwards, trace.ipa_limit_bits) == (0, 0, 40)
        assert sum(trace.skipped.values()) + len(events) > 25_000


@given(st.lists(st.tuples(st.integers(0, 130), st.sampled_from(["", "x", "=", "0x", ":", "]"])), max_size=4))
def test_a_damaged_line_is_an_event_or_an_error_and_nothing_else(edits: list[tuple[int, str]]) -> None:
    line = FTRACE
    for at, text in edits:
        line = line[:at] + text + line[at + 1 :]
    with suppress(FormatError):
        for event in read("# tracer: nop\n" + line)[0]:
            assert set(VALUES) <= set(event.values)
