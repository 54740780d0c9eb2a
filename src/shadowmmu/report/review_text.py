"""The review in text: the matrix of verdicts, what each sign means, and the reasons of what does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap
from typing import Final

from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.verify.review.matrix import Matrix
from shadowmmu.verify.review.objections import KINDS, Objection
from shadowmmu.verify.review.result import HOLDS, NOT_APPLICABLE, REFUTED, UNDETERMINED

SIGNS: Final = {HOLDS: "+", REFUTED: "X", NOT_APPLICABLE: ".", UNDETERMINED: "?"}
WIDTH: Final = 110
TITLE: Final = 32
FEW: Final = 2
"""Up to so many designs are told in full."""


def plural(number: int, noun: str) -> str:
    """1 leaf, 2 leafs: only for nouns that take an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def headline(matrix: Matrix) -> list[str]:
    """What the review comes to."""
    bad = matrix.unexpected()
    if bad:
        told = ", ".join(f"{design} by {each.number}" for each, design in bad)
        first = f"Refuted though they claim safety: {told}."
    else:
        first = "No design that claims safety is refuted in it."
    count = len(matrix.objections) * len(matrix.designs)
    asked = f"{plural(len(matrix.objections), 'objection')} put to {plural(len(matrix.designs), 'design')}"
    return [first, f"{asked}: {plural(count, 'verdict')}, each from a run or from the source."]


def review_lines(matrix: Matrix) -> Iterator[str]:
    """The whole report."""
    yield from headline(matrix)
    yield ""
    if len(matrix.designs) <= FEW:
        for design in matrix.designs:
            yield from one_design(matrix, design)
    else:
        yield from grid(matrix)
        yield from reasons(matrix)
    for design in matrix.designs:
        yield summary(matrix, design)


def grid(matrix: Matrix) -> Iterator[str]:
    """A sign a verdict."""
    for row in range(max(map(len, matrix.designs))):
        letters = (design.rjust(max(map(len, matrix.designs)))[row] for design in matrix.designs)
        yield " " * (TITLE + 4) + " ".join(letters)
    for each in matrix.objections:
        signs = " ".join(SIGNS[matrix.result(each.number, design).verdict] for design in matrix.designs)
        yield f"{each.number:3} {each.title[: TITLE - 1]:{TITLE}}{signs}"
    yield ""
    yield "  ".join(f"{sign} {verdict}" for verdict, sign in SIGNS.items())
    yield ""


def reasons(matrix: Matrix) -> Iterator[str]:
    """Why something is refuted or undetermined, once where it is the same for several designs."""
    for each in matrix.objections:
        told: dict[tuple[str, str], list[str]] = {}
        for design in matrix.designs:
            result = matrix.result(each.number, design)
            if result.verdict in (REFUTED, UNDETERMINED):
                told.setdefault((result.verdict, result.detail), []).append(design)
        if told:
            yield f"{each.number} {each.title} ({each.kind}): {each.asks}"
        for (verdict, detail), designs in told.items():
            names = "all" if designs == matrix.designs else ", ".join(designs)
            yield from _wrapped(f"{verdict}, {names}: {detail}", "    ")
    yield ""


def one_design(matrix: Matrix, design: str) -> Iterator[str]:
    """Every verdict of one design in words, with its witness."""
    yield design
    for each in matrix.objections:
        result = matrix.result(each.number, design)
        yield from _wrapped(f"{each.number:3} {result.verdict}: {each.asks}", "  ")
        if result.detail:
            yield from _wrapped(result.detail, "      ")
        if result.verdict == REFUTED:
            yield from (f"        {line}" for line in result.witness if line != result.detail)
    yield ""


def summary(matrix: Matrix, design: str) -> str:
    """One line a design: what refutes it, by kind."""
    control = "" if CATALOGUE[design].claims_safety else " (a negative control)"
    refuted = matrix.refuted(design)
    if not refuted:
        return f"{design}{control}: not refuted"
    parts = []
    for kind in KINDS:
        numbers = [str(each.number) for each in refuted if each.kind == kind]
        if numbers:
            parts.append(f"{kind} {', '.join(numbers)}")
    return f"{design}{control}: refuted in {'; '.join(parts)}"


def witness_lines(matrix: Matrix, each: Objection, design: str) -> list[str]:
    """What a saved witness says of one refutation."""
    result = matrix.result(each.number, design)
    return [
        f"{design}: objection {each.number}, {each.title}: {result.detail}",
        *result.witness,
        f"scenarios: {', '.join(each.scenarios) or 'made by ' + each.where}",
    ]


def _wrapped(text: str, indent: str) -> list[str]:
    return wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")
