"""A replayed trace as one self-contained page: no script, no network; the bars are plain boxes."""

from __future__ import annotations

from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from shadowmmu.lab.counterfactual import Counterfactual, DesignAnswer
from shadowmmu.report import counterfactual_rows as rows

TEMPLATE: Final = "counterfactual.html.jinja"
PARTS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("first", "first touches", ("first_touch",)),
    ("needed", "refaults: page was taken", ("refault_needed",)),
    ("over", "refaults: over-unmapped", ("refault_avoidable",)),
    ("l1", "refaults: L1 invalidated", ("refault_after_l1",)),
    ("other", "others that remain", ("refault_unplaced", "permission", "resized", "unjoined", "stale")),
    ("spared", "spared", ("spared",)),
)
"""The boxes of a bar: colour, label, the outcomes in it."""


def shares(answer: DesignAnswer) -> list[tuple[str, str]]:
    """Colour and width in percent of each box that is not empty."""
    total = sum(answer.fills.values())
    sums = [(part, sum(answer.fills[key] for key in keys)) for part, _label, keys in PARTS]
    return [(part, f"{100 * count / total:.3f}") for part, count in sums if count]


def render_counterfactual(found: Counterfactual) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("shadowmmu.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    rules = []
    for exact, rule in rows.RULES.items():
        answers = [one for one in found.answers if one.exact == exact]
        if answers:
            rules.append((rule, answers, rows.rows_for(answers)))
    return environment.get_template(TEMPLATE).render(
        found=found,
        headline=rows.headline(found),
        recorded=rows.recorded(found),
        rules=rules,
        shares=shares,
        parts=[(part, label) for part, label, _keys in PARTS],
        unresolved=rows.unresolved(found),
        agreement=rows.agreement(found),
        glossary=rows.rows_for(found.answers),
    )
