"""The ftrace buffer as text (``/sys/kernel/tracing/trace``), for the events that the rig records.

An event line is ``TASK-PID [CPU] FLAGS TIME: NAME: BODY``. The bodies read here are those of function probes
(``(symbol+offset/size) field=value``, ``(caller+... <- symbol)`` on a return), of the KVM tracepoints
(``ipa 0x..., hsr 0x...``) and of markers. Field values are integers; pointers differ from run to run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from shadowmmu.formats.problem import FormatError

MARK = "mark"
"""Name given to a marker (``tracing_mark_write``); its text is in ``TraceEvent.text``."""

_EVENT = re.compile(
    r"\s*(\S.*?)-([0-9]+)\s+\[([0-9]+)\] (\S{3,8}) +([0-9]+)\.([0-9]{6}): ([A-Za-z_]\w*): ?(.*)"
)
_PROBE = re.compile(
    r"\(([A-Za-z_][\w.]*)\+0x[0-9a-f]+/0x[0-9a-f]+(?: <- ([A-Za-z_][\w.]*))?\)((?: \w+=\S+)*)"
)
_ASSIGNED = re.compile(r"(\w+)=(0x[0-9a-f]+|-?[0-9]+)")
_TOKEN = re.compile(r"([A-Za-z_]\w*):? (0x[0-9a-f]+|[0-9a-f]+)(?=[,\s]|$)")
_MODE = re.compile(r"\(M: (\w+)\)")
_LOST = re.compile(r"CPU:[0-9]+ \[LOST ([0-9]+) EVENTS\]")
_TRACEPOINTS = {
    "kvm_guest_fault": ("ipa", "hsr", "hxfar", "pc"),
    "kvm_nested_eret": ("elr_el2", "spsr_el2", "hcr_el2"),
    "kvm_inject_nested_exception": ("esr_el2", "elr_el2", "spsr_el2", "hcr_el2"),
}


@dataclass(frozen=True)
class TraceEvent:
    """One event of the buffer.

    ``time_us`` is microseconds of the trace clock; ``site`` is the probed function, ``caller`` the function a
    return goes back to; ``text`` is the text of a marker, or the mode of a nested exception.
    """

    time_us: int
    name: str
    fields: dict[str, int] = field(default_factory=dict)
    site: str = ""
    caller: str = ""
    text: str = ""

    @property
    def seconds(self) -> float:
        """The time in seconds."""
        return self.time_us / 1e6


@dataclass(frozen=True)
class Trace:
    """A printed buffer: its events in order, and how many the kernel says it lost."""

    events: tuple[TraceEvent, ...]
    lost: int = 0

    def after(self, mark: str) -> tuple[TraceEvent, ...]:
        """The events from just after marker ``mark`` up to the next one. Raises KeyError without it."""
        found: list[TraceEvent] | None = None
        for event in self.events:
            if event.name == MARK:
                if found is not None:
                    break
                if event.text == mark:
                    found = []
            elif found is not None:
                found.append(event)
        if found is None:
            raise KeyError(mark)
        return tuple(found)


def parse_event(line: str, path: str = "trace", number: int = 1) -> TraceEvent:
    """Read one event line. Raises FormatError (at ``path:number``) if it is none."""
    match = _EVENT.fullmatch(line)
    if not match:
        raise FormatError(path, number, line, "an event of the trace buffer")
    time_us = int(match[5]) * 1_000_000 + int(match[6])
    name, body = match[7], match[8]
    if name == "tracing_mark_write":
        return TraceEvent(time_us, MARK, text=body.strip())
    if name in _TRACEPOINTS:
        mode = _MODE.search(body)
        fields = {key: int(value, 16) for key, value in _TOKEN.findall(_MODE.sub("", body))}
        if tuple(fields) != _TRACEPOINTS[name]:
            raise FormatError(path, number, line, f"the fields {', '.join(_TRACEPOINTS[name])} of {name}")
        return TraceEvent(time_us, name, fields, text=mode[1] if mode else "")
    probe = _PROBE.fullmatch(body.strip())
    if not probe:
        raise FormatError(path, number, line, f"(symbol+offset/size) and fields of the probe {name}")
    fields = {}
    for word in probe[3].split():
        assigned = _ASSIGNED.fullmatch(word)
        if not assigned:
            raise FormatError(path, number, word, "field=number")
        fields[assigned[1]] = int(assigned[2], 16 if assigned[2].startswith("0x") else 10)
    if probe[2]:
        return TraceEvent(time_us, name, fields, site=probe[2], caller=probe[1])
    return TraceEvent(time_us, name, fields, site=probe[1])


def parse_trace(lines: Iterable[str], path: str = "trace", first_line: int = 1) -> Trace:
    """Read a printed buffer, comment lines included; O(lines). Raises FormatError."""
    events = []
    lost = 0
    for number, line in enumerate(lines, first_line):
        if line.startswith("#") or not line.strip():
            continue
        gap = _LOST.fullmatch(line.strip())
        if gap:
            lost += int(gap[1])
        else:
            events.append(parse_event(line, path, number))
    return Trace(tuple(events), lost)
