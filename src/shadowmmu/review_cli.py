"""The verb ``review``: every objection of the reviews, put to every design."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from shadowmmu.errors import InputError

if TYPE_CHECKING:
    from shadowmmu.verify.review.matrix import Matrix

FILE: Final = click.Path(dir_okay=False, path_type=Path)


def _words(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    words = _words(ctx, param, value)
    for word in words:
        if not word.isdecimal():
            raise InputError(f"read objection '{word}', expected a number")
    return tuple(int(word) for word in words)


@click.command("review")
@click.option("--design", "designs", default="", callback=_words, metavar="NAME|FILE.py[,...]")
@click.option("--objection", "numbers", default="", callback=_numbers, metavar="N[,N]", help="Only these.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the matrix.")
@click.option("--html", type=FILE, help="Write the page here.")
@click.option("-q", "--quiet", is_flag=True, help="No progress line.")
def review(
    designs: tuple[str, ...], numbers: tuple[int, ...], as_json: bool, html: Path | None, quiet: bool
) -> None:
    """Put the objections of the reviews to the designs, and print which hold.

    Exit code 2 where a design that claims safety is refuted in safety; with --design, where any of those
    named is refuted in anything.
    """
    from shadowmmu.cli import end_progress, progress_line
    from shadowmmu.report.html import check_writable, write_text
    from shadowmmu.verify.review.matrix import review as put_all

    if html is not None:
        check_writable(html)
    matrix = put_all(designs, numbers, progress_line(quiet))
    end_progress(quiet)
    if html is not None:
        from shadowmmu.report.review_html import render_review

        write_text(html, render_review(matrix))
    if as_json:
        click.echo(json.dumps(matrix.to_json(), indent=1))
    else:
        from shadowmmu.report.review_text import review_lines

        click.echo("\n".join(review_lines(matrix)))
    sys.exit(_code(matrix, bool(designs)))


def _code(matrix: Matrix, named: bool) -> int:
    from shadowmmu.cli import HOLDS, REFUTED, UNDETERMINED, save_witness
    from shadowmmu.report.review_text import witness_lines
    from shadowmmu.verify.review import result

    bad = matrix.unexpected()
    if named:
        bad = [(each, design) for design in matrix.designs for each in matrix.refuted(design)]
    if bad:
        save_witness(witness_lines(matrix, each, design) for each, design in bad)
        return REFUTED
    if all(one.verdict == result.UNDETERMINED for one in matrix.results.values()):
        return UNDETERMINED
    return HOLDS
