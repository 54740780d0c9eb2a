"""The model's observation log against the trace of the real kernel, event for event.

Compared exactly, in one merged order: stage-2 aborts, fills, relaxations, unmaps of canonical ranges, unmaps
of shadow ranges, injected faults; and apart from it what L1 saw each time L2 left. Not compared, because the
model does not make it: host frames, times, L1's registers and program counter in its own aborts, its MMIO
exits to the VMM's doorbell, and which pages the host's page_idle bitmap ages, which depends on its LRU
batches and host frames (``scenario/14-idle``).
"""

from __future__ import annotations

from functools import cache

import pytest

from shadowmmu.compiled import INTERPRETED
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.formats.answer import Answer
from shadowmmu.formats.ftrace import TraceEvent
from shadowmmu.formats.runs import KernelRun, bundled_run, bundled_runs
from shadowmmu.machine.counters import NOTIFIERS
from shadowmmu.machine.log import KINDS
from shadowmmu.machine.state import R_LOG_TOP

Row = tuple[str | int, ...]

COMPARED = {
    "unmap_gfn": ("start", "end", "mayblock"),
    "s2range": ("addr", "size"),
    "s2map": ("addr", "size", "prot"),
    "s2relax": ("addr", "prot"),
    "inject_s2": ("esr",),
}
SYNDROME = 0xFC00_007F
"""Class, S1PTW, WnR and status: what does not depend on the registers of the instruction."""
DOORBELL = 0x900_0000
WORD = (1 << 64) - 1
NAMES = [run.name for run in bundled_runs() if run.name.split("/")[0] in ("scenario", "random", "suspicion")]
QUICK = ("random/seed1", "scenario/09", "scenario/12", "suspicion/")
RUNS = [name for name in NAMES if name.startswith(QUICK)] if INTERPRETED else NAMES


def fault_row(ipa: int, esr: int) -> Row:
    return ("kvm_guest_fault", ipa, esr & SYNDROME)


def kernel_rows(answer: Answer) -> list[Row]:
    """What the kernel did, in order; an unmap of the canonical table is no part of it."""
    canonical = next(event.fields["pgt"] for event in answer.events if event.name == "s2map")
    rows: list[Row] = []
    for event in answer.events:
        fields = event.fields
        if event.name == "kvm_guest_fault" and fields["ipa"] != DOORBELL:
            rows.append(fault_row(fields["ipa"], fields["hsr"]))
        elif event.name == "s2range" and fields["pgt"] == canonical:
            continue
        elif event.name in COMPARED:
            rows.append((event.name, *(fields[name] & WORD for name in COMPARED[event.name])))
    return rows


@cache
def replayed(name: str) -> Executor:
    """The run under ``sweep``, its log kept."""
    run = bundled_run(name)
    machine = Machine(ipa_limit_bits=run.ipa_limit_bits, logged=True)
    executor = Executor(parse_scenario(run.scenario_text(), name), "sweep", machine)
    executor.run()
    return executor


@cache
def recorded(name: str) -> Answer:
    """What the kernel answered."""
    return bundled_run(name).answer()


def model_log(name: str) -> list[tuple[str, dict[str, int], int]]:
    """Name, fields and last operand of each row of the model's log."""
    state = replayed(name).state
    rows = state.log[: int(state.regs[R_LOG_TOP])].tolist()
    named = [(KINDS[row[0]], row) for row in rows]
    return [(kind, dict(zip(fields, row[2:7], strict=False)), row[6]) for (kind, fields), row in named]


def model_rows(name: str) -> list[Row]:
    """What the model did, in order."""
    rows: list[Row] = []
    for kind, fields, _last in model_log(name):
        if kind == "kvm_guest_fault":
            rows.append(fault_row(fields["ipa"], fields["hsr"]))
        elif kind in COMPARED and not (kind == "s2range" and fields["mmu"] == 0):
            rows.append((kind, *(fields[key] for key in COMPARED[kind])))
    return rows


@pytest.mark.parametrize("name", RUNS)
def test_the_model_does_what_the_kernel_did_in_the_same_order(name: str) -> None:
    theirs, ours = kernel_rows(recorded(name)), model_rows(name)
    assert len(theirs) > 10
    for index, (one, other) in enumerate(zip(theirs, ours, strict=False)):
        assert other == one, f"event {index}"
    assert len(ours) == len(theirs)


def l2_faults(events: tuple[TraceEvent, ...]) -> list[Row]:
    """(nested IPA, syndrome, VA, PC) of the aborts between an ERET to L2 and its end."""
    rows: list[Row] = []
    inside = False
    for event in events:
        if event.name in ("kvm_nested_eret", "kvm_inject_nested_exception"):
            inside = event.name == "kvm_nested_eret"
        elif inside and event.name == "kvm_guest_fault":
            rows.append(tuple(event.fields[key] for key in ("ipa", "hsr", "hxfar", "pc")))
    return rows


@pytest.mark.parametrize("name", RUNS)
def test_every_abort_of_l2_is_the_kernels_to_the_last_bit(name: str) -> None:
    ours = [
        tuple(fields[key] for key in ("ipa", "hsr", "hxfar", "pc"))
        for kind, fields, mmu in model_log(name)
        if kind == "kvm_guest_fault" and mmu
    ]
    assert ours == l2_faults(recorded(name).events)


@pytest.mark.parametrize("name", RUNS)
def test_l1_sees_what_it_saw(name: str) -> None:
    theirs = [
        (touch.esr, touch.far, touch.hpfar, touch.elr, touch.left)
        for step in recorded(name).steps
        if (touch := step.touch)
    ]
    ours = [tuple(fields.values()) for kind, fields, _last in model_log(name) if kind == "touch"]
    assert ours == theirs
    assert theirs


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("suspicion/write")])
def test_write_protection_covers_what_the_kernels_did(name: str) -> None:
    theirs = [(e.fields["start"], e.fields["end"]) for e in recorded(name).events if e.name == "wp_range"]
    ours = [(f["addr"], f["addr"] + f["size"]) for kind, f, _last in model_log(name) if kind == "s2wp"]
    assert ours == theirs
    assert len(theirs) == 8


@pytest.mark.parametrize("name", NAMES)
def test_no_event_of_the_trace_was_lost(name: str) -> None:
    assert sum(step.trace.lost for step in recorded(name).steps if step.trace) == 0


def test_the_kernel_warned_where_the_model_notes_an_error() -> None:
    name = "suspicion/ipas2-tlbi-beyond-limit"
    noted = [fields["ipa"] for kind, fields, _last in model_log(name) if kind == "efault"]
    assert noted == [1 << 40, 0xFFFF_C000_0000]
    assert recorded(name).warnings


def test_setting_pages_idle_ages_them_in_the_canonical_table_alone() -> None:
    # The kernel aged eight of the sixteen pages (those on its LRU lists, the rest still waited in a batch),
    # and these again whenever the bitmap was read, a word of 64 host frames at a time.
    run = "scenario/14-idle"
    theirs = [e.fields["start"] for e in recorded(run).events if e.name == "age_gfn"]
    ours = [fields["start"] for kind, fields, _last in model_log(run) if kind == "age_gfn"]
    assert (len(theirs), len(ours)) == (72, 16)
    assert theirs[:8] == ours[:8]
    assert set(theirs) == set(ours[:8])
    assert replayed(run).state.count[NOTIFIERS] == 0


def test_a_run_is_named_once() -> None:
    runs: list[KernelRun] = bundled_runs()
    assert len(NAMES) == 25 == len(set(NAMES)) <= len(runs) == 36
