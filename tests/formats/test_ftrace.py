"""The trace buffer: each sort of body, times, markers, lost events, and mutations."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmmu.formats.ftrace import Trace, TraceEvent, parse_event, parse_trace
from shadowmmu.formats.problem import FormatError

HEAD = "             vmm-46      [000] ...3.     0.741938: "
MAP = (
    HEAD + "s2map: (kvm_pgtable_stage2_map+0x4/0x138) pgt=0xffff00000199b180 vttbr=0x0 addr=0x40000000"
    " size=0x1000 phys=0x40aba000 prot=0xf"
)

FAULT = (
    "           <...>-46      [000] .....    10.000021: kvm_guest_fault: ipa 0x40000000, hsr 0x82000005,"
    " hxfar 0x40000000, pc 0x00000040000000"
)
INJECT = (
    HEAD + "kvm_inject_nested_exception: SYNC: esr_el2 0x5a000000 elr_el2: 0x10040"
    " spsr_el2: 0x000003c5 (M: EL1h) hcr_el2: 488000001"
)


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (
            MAP,
            TraceEvent(
                741938,
                "s2map",
                {
                    "pgt": 0xFFFF00000199B180,
                    "vttbr": 0,
                    "addr": 0x40000000,
                    "size": 4096,
                    "phys": 0x40ABA000,
                    "prot": 15,
                },
                "kvm_pgtable_stage2_map",
            ),
        ),
        (
            HEAD + "s2map_ret: (kvm_s2_fault_map+0x1ac/0x3b8 <- kvm_pgtable_stage2_map) ret=-11",
            TraceEvent(741938, "s2map_ret", {"ret": -11}, "kvm_pgtable_stage2_map", "kvm_s2_fault_map"),
        ),
        (
            FAULT,
            TraceEvent(
                10000021,
                "kvm_guest_fault",
                {"ipa": 0x40000000, "hsr": 0x82000005, "hxfar": 0x40000000, "pc": 0x40000000},
            ),
        ),
        (
            HEAD
            + "kvm_inject_nested_exception: SYNC: esr_el2 0x5a000000 elr_el2: 0x10040 spsr_el2: 0x000003c5 "
            "(M: EL1h) hcr_el2: 488000001",
            TraceEvent(
                741938,
                "kvm_inject_nested_exception",
                {"esr_el2": 0x5A000000, "elr_el2": 0x10040, "spsr_el2": 0x3C5, "hcr_el2": 0x488000001},
                text="EL1h",
            ),
        ),
        (
            HEAD + "nested_unmap: (kvm_nested_s2_unmap+0x4/0xb0)",
            TraceEvent(741938, "nested_unmap", {}, "kvm_nested_s2_unmap"),
        ),
        (HEAD + "tracing_mark_write: 3 touch r 0x0", TraceEvent(741938, "mark", text="3 touch r 0x0")),
    ],
    ids=["probe", "return", "tracepoint", "exception", "no fields", "mark"],
)
def test_one_line(line: str, event: TraceEvent) -> None:
    assert parse_event(line) == event
    assert parse_event(line).seconds == pytest.approx(event.time_us / 1e6)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        HEAD,
        HEAD + "s2map: no symbol",
        HEAD + "s2map: (f+0x4/0x8) a=b",
        HEAD + "s2map: (f+0x4/0x8) a=1 b",
        HEAD + "kvm_guest_fault: ipa 0x1, hsr 0x2",
        MAP.replace("0.741938", "0.74"),
    ],
)
def test_what_is_no_event(line: str) -> None:
    with pytest.raises(FormatError, match=r"^t:7: "):
        parse_event(line, "t", 7)


def test_a_buffer_with_marks_and_lost_events() -> None:
    lines = [
        "# tracer: nop",
        "",
        HEAD + "tracing_mark_write: one",
        MAP,
        "CPU:0 [LOST 17 EVENTS]",
        MAP,
        HEAD + "tracing_mark_write: two",
        "CPU:3 [LOST 4 EVENTS]",
    ]
    trace = parse_trace(lines)
    assert (len(trace.events), trace.lost) == (4, 21)
    assert [event.name for event in trace.after("one")] == ["s2map", "s2map"]
    assert trace.after("two") == ()
    with pytest.raises(KeyError):
        trace.after("three")
    with pytest.raises(FormatError, match=r"^x:12: "):
        parse_trace([*lines[:2], "junk"], "x", 10)
    assert parse_trace([]) == Trace(())


@settings(max_examples=150)
@given(st.integers(0, len(MAP)), st.integers(0, 6), st.text(max_size=3))
def test_mutated_lines_are_read_or_refused(at: int, removed: int, inserted: str) -> None:
    with suppress(FormatError):
        parse_event(MAP[:at] + inserted + MAP[at + removed :])


def test_decimal_fields_with_leading_zeros_are_decimal() -> None:
    assert parse_event(HEAD + "s2map: (f+0x4/0x8) a=010 b=0x010").fields == {"a": 10, "b": 16}
