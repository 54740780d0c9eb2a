"""Makes ``docs/review.md`` from the table of objections and a run of the whole review.

``python tests/verify/review_page.py`` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shadowmmu.report.review_text import grid, summary
from shadowmmu.verify.review.matrix import Matrix, review
from shadowmmu.verify.review.objections import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "review.md"
HEAD = """\
# The review, as a program

The ways to unmap shadow stage-2 tables have been reviewed on the list since March 2024. `shadowmmu review`
puts each numbered objection, as a property, to each design, and prints which hold. Nothing is decided
beforehand: a verdict comes from a run of the model under the judge, from counters, from two CPUs interleaved
at the locks of a record, or, where the objection is about the source, from reading ours.

```sh
shadowmmu review                                # every objection, every design
shadowmmu review --design mydesign.py           # one, told in full, with its witnesses
shadowmmu review --objection 10,11 --json
shadowmmu review --html review.html             # a page that needs nothing else
```

Exit code 0: no design that claims safety is refuted in safety. 2: one is; with `--design`, one of those named
is refuted in anything. 3: nothing asked for can be determined.

The properties are in our words. They say what the objection asks for in general, not how the version that was
reviewed fails; that it fails, the model of that version shows. *Not applicable* is a design without a record
asked about its record. *Undetermined* is what the model cannot answer, with the reason.

This page is made by `tests/verify/review_page.py`, and a test holds it against the program.
"""


def page(matrix: Matrix) -> str:
    """The page as text."""
    return "\n".join((HEAD, *_verdicts(matrix), *_objections(matrix)))


def _verdicts(matrix: Matrix) -> Iterator[str]:
    yield "## Verdicts\n\n```text"
    yield from (line.rstrip() for line in list(grid(matrix))[:-1])
    yield "```\n"
    yield from (f"- {summary(matrix, design)}" for design in matrix.designs)
    yield ""


def _objections(matrix: Matrix) -> Iterator[str]:
    yield "## The objections\n"
    yield from (f"- *{kind}*: {meaning}" for kind, meaning in KINDS.items())
    yield "\nScenarios are in `src/shadowmmu/data/review`, functions in `src/shadowmmu/verify/review`.\n"
    for each in matrix.objections:
        made = ", ".join(f"`{name}.scenario`" for name in each.scenarios)
        yield f"{each.number}. **{each.title}** ({each.kind}): {each.asks}."
        yield f"   *{each.source[0].upper()}{each.source[1:]}.* `{each.where}`{', ' if made else ''}{made}"


if __name__ == "__main__":
    PAGE.write_text(page(review()), encoding="utf-8")
