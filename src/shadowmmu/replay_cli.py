"""The verb ``replay``: a trace of a real host, and what every design would have done with it."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from shadowmmu.lab.counterfactual import Counterfactual

FILE: Final = click.Path(dir_okay=False, path_type=Path)
RULES: Final = {"both": (False, True), "kvm": (False,), "exact": (True,)}


def _names(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


@click.command("replay")
@click.argument("trace")
@click.option("--design", "designs", default="", callback=_names, metavar="NAME|FILE.py[,...]")
@click.option(
    "--tlbi",
    type=click.Choice(list(RULES)),
    default="both",
    show_default=True,
    help="How far an invalidation by L1 reaches: as KVM spans it, or exactly what it names.",
)
@click.option(
    "--ipa-bits", type=click.IntRange(32, 52), help="Input bits of the shadows, if the trace hides them."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--report", type=FILE, help="Write the page here.")
@click.option("--fills", type=FILE, help="Write every fill here, as CSV.")
@click.option("--unmaps", type=FILE, help="Write every unmap here, as CSV.")
@click.option("-q", "--quiet", is_flag=True, help="No progress line.")
def replay(
    trace: str,
    designs: tuple[str, ...],
    tlbi: str,
    ipa_bits: int | None,
    as_json: bool,
    report: Path | None,
    fills: Path | None,
    unmaps: Path | None,
    quiet: bool,
) -> None:
    """Ask of a TRACE which recorded shadow fills each unmapping design would have spared.

    TRACE is ftrace text of a live host (docs/replay.md: how to record it), plain, gzip or xz, '-' for
    standard input, or the name of a bundled trace: l2-boot-khugepaged, l2-boot-prefaulted, l2-workload-ksm.
    """
    from shadowmmu.cli import end_progress, progress_line
    from shadowmmu.formats.shadow_trace import open_shadow_trace
    from shadowmmu.lab.counterfactual import fill_rows, replay_trace, unmap_rows
    from shadowmmu.lab.trace_join import join_trace
    from shadowmmu.report.html import check_writable, write_text

    for path in (report, fills, unmaps):
        if path is not None:
            check_writable(path)
    progress = progress_line(quiet)
    progress(f"reading {trace}")
    with open_shadow_trace(trace) as opened:
        joined = join_trace(opened, ipa_bits)
    found = replay_trace(joined, designs, RULES[tlbi], progress)
    end_progress(quiet)
    for path, rows in ((fills, fill_rows(found)), (unmaps, unmap_rows(found))):
        if path is not None:
            table = io.StringIO()
            csv.writer(table, lineterminator="\n").writerows(rows)
            write_text(path, table.getvalue())
    if report is not None:
        from shadowmmu.report.counterfactual_html import render_counterfactual

        write_text(report, render_counterfactual(found))
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
    else:
        from shadowmmu.report.counterfactual_table import print_counterfactual
        from shadowmmu.report.table import console

        print_counterfactual(found, console())
    sys.exit(_code(found))


def _code(found: Counterfactual) -> int:
    """5 where sweep is not what was recorded; 3 where events or canonical addresses are missing, or a safe
    design looks stale."""
    from shadowmmu.cli import HOLDS, MISMATCH, UNDETERMINED

    if found.trace.lost:
        return UNDETERMINED
    if found.disagreeing:
        return MISMATCH
    return UNDETERMINED if found.trace.not_joined or found.stale() else HOLDS
