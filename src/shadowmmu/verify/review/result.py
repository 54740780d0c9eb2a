"""What came of putting an objection to a design."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

HOLDS: Final = "holds"
REFUTED: Final = "refuted"
NOT_APPLICABLE: Final = "not applicable"
UNDETERMINED: Final = "undetermined"
VERDICTS: Final = (HOLDS, REFUTED, NOT_APPLICABLE, UNDETERMINED)


@dataclass(frozen=True)
class Result:
    """A verdict, the reason or the numbers in a line, and where it is refuted what shows it."""

    verdict: str
    detail: str = ""
    witness: tuple[str, ...] = ()


def holds(detail: str = "") -> Result:
    """The design has the property; ``detail`` says how it was seen."""
    return Result(HOLDS, detail)


def refuted(detail: str, witness: Iterable[str] = ()) -> Result:
    """The design lacks the property; ``witness`` shows it."""
    return Result(REFUTED, detail, tuple(witness) or (detail,))


def not_applicable(why: str) -> Result:
    """The objection has no object here."""
    return Result(NOT_APPLICABLE, why)


def undetermined(why: str) -> Result:
    """Nobody can tell with what there is."""
    return Result(UNDETERMINED, why)


NO_RECORD: Final = not_applicable("keeps no record")
