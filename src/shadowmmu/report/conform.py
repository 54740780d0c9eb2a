"""The agreement with the real kernel as text: a row a run, totals, the first difference with both sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from shadowmmu.lab.conform.compare import ASPECT_NAMES, Conformity, ConformReport

HEADS: Final = {
    "shadow dumps": "shadow",
    "canonical dumps": "canon.",
    "events": "events",
    "L2 aborts": "aborts",
    "seen by L1": "L1",
    "MMIO exits": "MMIO",
    "EFAULT exits": "EFAULT",
    "write protection": "wp",
    "dirty bitmaps": "dirty",
    "dirty rings": "rings",
    "splits": "split",
    "TLB invalidations": "TLBI",
    "warnings": "warn",
    "VNCR page": "VNCR",
    "counters": "counts",
}
NAME_WIDTH: Final = 46


def _cell(run: Conformity, aspect: str) -> str:
    if any(difference.aspect == aspect for difference in run.differences):
        return "DIFFER"
    return str(run.compared[aspect]) if aspect in run.compared else "-"


def _row(name: str, bits: str, cells: list[str]) -> str:
    return f"{name:{NAME_WIDTH}}{bits:>5}" + "".join(f"{cell:>7}" for cell in cells)


def mode_line(as_architecture: Sequence[str]) -> str:
    """Which differences from Linux 7.3.4 are switched to what the architecture asks."""
    return f"as the architecture asks: {', '.join(as_architecture) or 'nothing'}; else as Linux 7.3.4"


def conform_lines(report: ConformReport) -> Iterator[str]:
    """The whole report, line by line; how many of each sort were compared, ``-`` where a run shows none."""
    agreeing = sum(run.agrees for run in report.runs)
    yield f"{agreeing} of {len(report.runs)} runs agree with the kernel in all that they show."
    yield mode_line(report.as_architecture)
    yield ""
    yield _row("run", "bits", [HEADS[name] for name in ASPECT_NAMES])
    for run in report.runs:
        yield _row(run.name, str(run.ipa_limit_bits), [_cell(run, name) for name in ASPECT_NAMES])
    totals = report.totals()
    yield _row("all", "", [str(totals[name]) for name in ASPECT_NAMES])
    found = report.first()
    if found is not None:
        run, _difference = found
        yield ""
        yield f"first difference, in {run.name}:"
        for difference in run.differences:
            yield from difference.lines()
