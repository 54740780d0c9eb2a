"""Does the model print what the real kernel printed? Dump by dump, line by line, and count by count."""

from __future__ import annotations

from difflib import unified_diff
from typing import Final

from shadowmmu.engine.executor import Executor
from shadowmmu.engine.observe import Dump, TableDump
from shadowmmu.formats.answer import Answer, Histogram, Step
from shadowmmu.formats.ptdump import Header, render
from shadowmmu.lab.conform.rows import canonical_table
from shadowmmu.lab.results import Agreement
from shadowmmu.machine.counters import CHUNKS, CHUNKS_SHADOW, TLBI_RANGE, TLBI_RANGE_SHADOW
from shadowmmu.pgtable.context import CANONICAL, context_regime, largest_block

DIFF_LINES: Final = 12
COUNTED: Final = {"s2unmap": (CHUNKS, CHUNKS_SHADOW), "tlbrange": (TLBI_RANGE, TLBI_RANGE_SHADOW)}
"""Probes whose histograms are compared, each with the model's counters: all, and those of shadows."""


def table_lines(table: TableDump) -> list[str]:
    """The ptdump text of one table of the model; empty for a shadow MMU without tenant."""
    if table.runs is None:
        return []
    header = Header(table.vtcr, table.vttbr, table.enabled) if table.is_shadow else None
    runs = [(int(a), int(b), int(level), int(bits)) for a, b, level, bits in table.runs]
    return render(runs, header)


def dump_lines(dump: Dump) -> list[str]:
    """All tables of a dump as the rig prints them."""
    lines = []
    for table in dump.tables:
        lines += [f"--- {dump.label} {table.file}", *table_lines(table)]
    return [*lines, "--- end"]


def compare_with_kernel(executor: Executor, answer: Answer) -> Agreement:
    """Compare every dump, canonical and shadow, and the counts of the run's histograms, if it has any."""
    recorded = [step for step in answer.steps if step.command.split()[:1] == ["dump"]]
    if len(recorded) != len(executor.dumps):
        told = f"the kernel dumped {len(recorded)} times, the model {len(executor.dumps)} times"
        return Agreement(0, False, [told])
    compared = 0
    for step, dump in zip(recorded, executor.dumps, strict=True):
        for table in dump.tables:
            compared += 1
            theirs = _kernel_lines(step, table.file)
            ours = table_lines(table)
            if ours != theirs:
                name = f"{dump.label} {table.file}"
                diff = list(unified_diff(theirs, ours, "Linux 7.3.4", "model", name, name, 0, ""))
                return Agreement(compared, False, [name, *diff[2:DIFF_LINES]])
    wrong = compare_counts(executor, answer)
    return Agreement(compared, not wrong, wrong)


def _kernel_lines(step: Step, file: str) -> list[str]:
    for name, lines in step.dump_lines:
        if name == file:
            return list(lines)
    return []


def last_histogram(answer: Answer, probe: str) -> Histogram | None:
    """The last histogram of a rig probe that the run printed."""
    for step in reversed(answer.steps):
        if step.histogram is not None and f"/{probe}/" in step.histogram.path:
            return step.histogram
    return None


def kernel_counts(answer: Answer, probe: str, block: int) -> tuple[int, int] | None:
    """(canonical, shadow) hits of a probe's last histogram; None if the run shows none.

    Its rows carry the pointer of the table or of the MMU; a trace of the run says which are the shadows'.
    Without one they are told apart by the size of a chunk.
    """
    histogram = last_histogram(answer, probe)
    if histogram is None:
        return None
    canonical = canonical_table(answer.events)
    ranges = [event.fields for event in answer.events if event.name == "s2range"]
    shadows = {fields["mmu"] for fields in ranges if fields["pgt"] != canonical}
    hits = [0, 0]
    for key, count in histogram.rows:
        if canonical is None:
            is_shadow = key.get("size") == block
        else:
            is_shadow = key["pgt"] != canonical if "pgt" in key else key["mmu"] in shadows
        hits[is_shadow] += count
    return hits[0], hits[1]


def compare_counts(executor: Executor, answer: Answer) -> list[str]:
    """What differs between the kernel's histograms and the model's counters, at the end of the run."""
    state = executor.state
    block = int(largest_block(context_regime(state, CANONICAL)))
    wrong = []
    for probe, (total, shadow) in COUNTED.items():
        theirs = kernel_counts(answer, probe, block)
        ours = (int(state.count[total] - state.count[shadow]), int(state.count[shadow]))
        if theirs is not None and theirs != ours:
            wrong.append(f"{probe}: Linux 7.3.4 counted {theirs} (canonical, shadow), the model {ours}")
    return wrong
