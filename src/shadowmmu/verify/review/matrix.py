"""Every objection put to every design: the matrix, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.designs.own_file import named_design
from shadowmmu.errors import InputError
from shadowmmu.verify.review.objections import OBJECTIONS, SAFETY, Objection
from shadowmmu.verify.review.result import REFUTED, Result


@dataclass(frozen=True)
class Matrix:
    """Results by (number of the objection, design)."""

    designs: list[str]
    objections: list[Objection]
    results: dict[tuple[int, str], Result]

    def result(self, number: int, design: str) -> Result:
        """One cell. Raises KeyError."""
        return self.results[number, design]

    def refuted(self, design: str) -> list[Objection]:
        """The objections that refute a design."""
        return [each for each in self.objections if self.result(each.number, design).verdict == REFUTED]

    def unexpected(self) -> list[tuple[Objection, str]]:
        """Refutations of safety where the design claims it."""
        return [
            (each, design)
            for design in self.designs
            if CATALOGUE[design].claims_safety
            for each in self.refuted(design)
            if each.kind == SAFETY
        ]

    def to_json(self) -> dict[str, object]:
        """The matrix as plain values."""
        return {
            "designs": [
                {"name": name, "claims_safety": CATALOGUE[name].claims_safety} for name in self.designs
            ],
            "objections": [
                {
                    "number": each.number,
                    "title": each.title,
                    "property": each.asks,
                    "source": each.source,
                    "kind": each.kind,
                    "function": each.where,
                    "scenarios": list(each.scenarios),
                    "results": {
                        design: {
                            "verdict": self.result(each.number, design).verdict,
                            "detail": self.result(each.number, design).detail,
                            "witness": list(self.result(each.number, design).witness),
                        }
                        for design in self.designs
                    },
                }
                for each in self.objections
            ],
        }


def chosen(numbers: Iterable[int]) -> list[Objection]:
    """The objections of these numbers, all if there is none. Raises InputError for one that is not there."""
    known = {each.number: each for each in OBJECTIONS}
    wanted = list(numbers)
    for number in wanted:
        if number not in known:
            raise InputError(f"read objection {number}, expected one of {', '.join(map(str, known))}")
    return [known[number] for number in wanted] or list(OBJECTIONS)


def review(
    designs: Iterable[str] = (),
    numbers: Iterable[int] = (),
    progress: Callable[[str], None] = lambda line: None,
) -> Matrix:
    """Put the objections to the designs, all by default; a design may be a Python file. Raises InputError."""
    objections = chosen(numbers)
    names = [named_design(name) for name in designs] or list(CATALOGUE)
    results = {}
    for each in objections:
        progress(f"{each.number} {each.title}")
        for design in names:
            results[each.number, design] = each.put(design)
    return Matrix(names, objections, results)
