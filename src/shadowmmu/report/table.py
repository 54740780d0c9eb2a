"""A comparison as text: rich tables on a terminal, the same as plain text elsewhere.

Designs stand in columns and metrics in rows, so that exact figures fit 100 columns; more designs than fit
are continued in a further block.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, TextIO, TypeAlias

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from shadowmmu.lab.results import Agreement, Comparison, DesignResult, Transcript
from shadowmmu.report import metrics, quantities
from shadowmmu.report.metrics import Group

Color: TypeAlias = Literal["auto", "always", "never"]

WIDTH: Final = 100
ABREAST: Final = 4
"""Designs beside each other in one block of a table."""
WITNESS_LINES: Final = 24

_STYLES: Final = {"safe": "green", "REFUTED": "bold red", "not judged": "yellow"}


class _Screen(Console):
    """A console whose reader may leave: that ends the program as it ends any other, not as an error of it."""

    def on_broken_pipe(self) -> None:
        """Let the writer know. Raises BrokenPipeError."""
        raise


def console(stream: TextIO | None = None, color: Color = "auto") -> Console:
    """Where tables are printed. Colours only on a terminal, and none if ``NO_COLOR`` is set or asked."""
    stream = sys.stdout if stream is None else stream
    plain = color == "never" or (color == "auto" and bool(os.environ.get("NO_COLOR")))
    terminal = True if color == "always" else None
    screen = _Screen(file=stream, no_color=plain, force_terminal=terminal, highlight=False, soft_wrap=False)
    if not stream.isatty():
        screen.width = WIDTH
    return screen


def print_comparison(comparison: Comparison, screen: Console) -> None:
    """Print everything: the answer, the runs, the prices, the witnesses, the conditions."""
    _print(_parts(comparison), screen)


def print_transcript(transcript: Transcript, screen: Console) -> None:
    """Print a transcript as it is; its lines are not wrapped."""
    _print(_transcript(transcript), screen)


def _print(parts: Iterable[RenderableType], screen: Console) -> None:
    """Print at once, without the spaces that tables are padded with. Only tables are fitted to the width."""
    with screen.capture() as captured:
        for part in parts:
            screen.print(part, soft_wrap=isinstance(part, Text))
    for line in captured.get().splitlines():
        screen.file.write(line.rstrip() + "\n")


def _transcript(transcript: Transcript) -> Iterator[Text]:
    if transcript.title:
        yield Text(transcript.title, style="bold")
    yield from map(Text, transcript.lines)
    if transcript.verdict is not None:
        yield Text.assemble(_verdict(transcript.verdict.word), ": ", transcript.verdict.summary)
        yield from _indented(transcript.verdict.witness)


def _parts(comparison: Comparison) -> Iterator[RenderableType]:
    for line in metrics.headline(comparison):
        yield Text(line)
    kernel = metrics.of_kind(comparison, "kernel")
    scenarios = metrics.of_kind(comparison, "scenario")
    if kernel:
        yield from _runs("Kernel runs: the model against Linux 7.3.4", kernel)
    if scenarios:
        yield from _runs("Scenarios", scenarios)
    if kernel:
        yield from _prices(metrics.together(f"All {len(metrics.by_run(kernel))} kernel runs, summed", kernel))
    if scenarios:
        yield from _prices(metrics.together("All scenarios, summed", scenarios))
    for storm in metrics.storms(comparison):
        yield from _prices(storm)
    yield from _witnesses(comparison)
    yield from _conditions(comparison)


def _heading(text: str) -> Text:
    return Text("\n" + text, style="bold")


def _indented(lines: Iterable[str]) -> Iterator[Text]:
    return (Text(f"  {line}") for line in lines)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")


def _verdict(text: str) -> Text:
    style = next((style for word, style in _STYLES.items() if text.startswith(word)), "")
    return Text(text, style=style)


def _runs(title: str, results: Sequence[DesignResult]) -> Iterator[RenderableType]:
    """One line for each run: what it is, whether the model agrees, and which designs it refutes."""
    table = _table()
    table.add_column("run", no_wrap=True)
    for heading in ("IPA bits", "leaves"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("as Linux 7.3.4", no_wrap=True)
    table.add_column("refuted", overflow="fold")
    differences: list[tuple[str, list[str]]] = []
    for run in metrics.by_run(results):
        first = run[0]
        agreement = metrics.agreement(run)
        if agreement is not None and not agreement.agrees:
            differences.append((first.run, agreement.first_difference))
        against = ", ".join(one.design for one in run if one.verdict.refuted)
        table.add_row(
            first.run,
            str(first.ipa_limit_bits),
            quantities.count(max(one.leaves for one in run)),
            _agreement(agreement),
            Text(against, style=_STYLES["REFUTED"]),
        )
    yield _heading(title)
    yield table
    for name, lines in differences:
        yield Text(f"first difference in {name}:", style="bold")
        yield from _indented(lines)


def _agreement(agreement: Agreement | None) -> Text:
    if agreement is None:
        return Text("-", style="dim")
    dumps = f"{agreement.compared_dumps} table" + ("" if agreement.compared_dumps == 1 else "s")
    if not agreement.compared_dumps:
        dumps = "counts only"
    if agreement.agrees:
        return Text(f"yes, {dumps}", style=_STYLES["safe"])
    return Text(f"NO, of {dumps}", style=_STYLES["REFUTED"])


def _prices(group: Group) -> Iterator[RenderableType]:
    """Every metric of a group, a column for each design."""
    for start in range(0, len(group.results), ABREAST):
        block = group.results[start : start + ABREAST]
        table = _table()
        table.add_column("", no_wrap=True)
        for result in block:
            table.add_column(result.design, justify="right", no_wrap=True, min_width=15)
        table.add_row("verdict", *(_verdict(group.verdict(result)) for result in block))
        for metric in metrics.METRICS:
            table.add_row(metric.label, *(metric.text(result) for result in block))
        yield _heading(group.title + (" (continued)" if start else ""))
        yield table


def _witnesses(comparison: Comparison) -> Iterator[RenderableType]:
    """For each refuted design its first witness, and where else it fails."""
    for design, against in metrics.refuted(comparison).items():
        first = against[0]
        control = "" if first.claims_safety else " (a negative control: expected)"
        yield _heading(f"{design} is refuted by {first.run}{control}")
        lines = first.verdict.witness[:WITNESS_LINES]
        if len(first.verdict.witness) > WITNESS_LINES:
            lines.append(
                f"... {len(first.verdict.witness) - WITNESS_LINES} more lines in --json and --report"
            )
        yield from _indented(lines)
        if len(against) > 1:
            others = ", ".join(f"{one.run} ({one.ipa_limit_bits}-bit IPA)" for one in against[1:])
            yield Text(f"also refuted by: {others}")


def _conditions(comparison: Comparison) -> Iterator[RenderableType]:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in comparison.conditions.items():
        table.add_row(name, value)
    table.add_row("started", f"{comparison.started}, took {comparison.elapsed_s:.1f} s")
    yield _heading("Conditions")
    yield table
