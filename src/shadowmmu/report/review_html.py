"""The review as one self-contained page: no script, no network."""

from __future__ import annotations

from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.report.review_text import SIGNS, headline, summary
from shadowmmu.verify.review.matrix import Matrix
from shadowmmu.verify.review.objections import KINDS
from shadowmmu.verify.review.result import REFUTED

TEMPLATE: Final = "review.html.jinja"


def render_review(matrix: Matrix) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("shadowmmu.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    rows = [
        (each, [(design, matrix.result(each.number, design)) for design in matrix.designs])
        for each in matrix.objections
    ]
    return environment.get_template(TEMPLATE).render(
        headline=headline(matrix),
        designs=[(name, CATALOGUE[name]) for name in matrix.designs],
        rows=rows,
        signs=SIGNS,
        kinds=KINDS,
        refuted=REFUTED,
        summaries=[summary(matrix, design) for design in matrix.designs],
    )
