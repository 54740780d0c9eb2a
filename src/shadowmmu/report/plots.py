"""The plots of the page, as SVG text: one row for each design, one panel for each condition.

Made offline by matplotlib with text kept as text. Colours are names that the page's style sheet gives a
value, one for light and one for dark, so a plot follows the page; without it, they fall back to black.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from shadowmmu.lab.results import DesignResult
from shadowmmu.report.metrics import BY_KEY, Group, Metric

# Stand-ins that matplotlib writes as they are and no plot uses for itself; replaced by style sheet names.
_INK: Final = "#010203"
_FAINT: Final = "#010204"
_SAFE: Final = "#010205"
_REFUTED: Final = "#010206"
_NAMES: Final = {_INK: "--ink", _FAINT: "--rule", _SAFE: "--safe", _REFUTED: "--refuted"}

SETTINGS: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.edgecolor": _FAINT,
    "grid.color": _FAINT,
}

_ROW_INCHES: Final = 0.36
_DECADES_OF_LABEL: Final = 0.32
"""Share of the axis kept free on the right for the exact values."""


@dataclass(frozen=True)
class Plot:
    """One plot of the page."""

    title: str
    caption: str
    svg: str


PLOTTED: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "modelled_per_notifier",
        "Cost of one notifier",
        "Modelled time of one notifier and of the refaults it causes, logarithmic; shorter is better.",
    ),
    (
        "refaults_caused",
        "Refaults caused",
        "Shadow faults where a notifier had cleared the leaf, logarithmic from 1; 0 is exact.",
    ),
    (
        "over_unmapped_bytes",
        "Over-unmapped bytes",
        "Bytes of shadow leaves torn down outside the notified range, logarithmic from 1; 0 is exact.",
    ),
    (
        "bytes_per_mapping",
        "Memory of the reverse map",
        "Bytes of record at its largest for each shadow leaf at its most.",
    ),
)


def plots(groups: Sequence[Group]) -> list[Plot]:
    """The plots of what the groups (storms, or the sum of the runs) measured; none without results."""
    drawn = []
    for key, title, caption in PLOTTED:
        metric = BY_KEY[key]
        if any(metric.read(result) is not None for group in groups for result in group.results):
            drawn.append(Plot(title, caption, draw(metric, groups, linear=key == "bytes_per_mapping")))
    return drawn


def draw(metric: Metric, groups: Sequence[Group], linear: bool = False) -> str:
    """One metric as SVG: a panel for each group, a row for each design, the exact value beside its mark."""
    rows = max(len(group.results) for group in groups)
    settings: Any = {**SETTINGS, "svg.hashsalt": metric.key}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(9.4, _ROW_INCHES * rows + 0.95), layout="constrained")
        panels = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
        for axes, group in zip(panels, groups, strict=True):
            _panel(axes, metric, group)
        _scale(panels[0], metric, groups, linear)
        panels[0].invert_yaxis()
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return for_the_page(out.getvalue(), BY_KEY[metric.key].label)


def _panel(axes: Axes, metric: Metric, group: Group) -> None:
    results = group.results
    axes.set_yticks(range(len(results)), [result.design for result in results])
    axes.set_ylim(-0.6, len(results) - 0.4)
    axes.set_title(_short(group.title), loc="left", fontsize=10)
    axes.tick_params(length=0)
    axes.grid(axis="x", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    for row, result in enumerate(results):
        _mark(axes, row, metric, result)


def _mark(axes: Axes, row: int, metric: Metric, result: DesignResult) -> None:
    value = metric.read(result)
    if value is None:
        return
    colour = _REFUTED if result.verdict.refuted else _SAFE
    axes.hlines(row, 0, value, color=colour, linewidth=2)
    axes.plot(
        [value],
        [row],
        "o",
        color=colour,
        markersize=8,
        clip_on=False,
        fillstyle="none" if result.verdict.refuted else "full",
    )
    axes.annotate(
        metric.write(value),
        (value, row),
        xytext=(9, 0),
        textcoords="offset points",
        va="center",
        annotation_clip=False,
    )


def _scale(axes: Axes, metric: Metric, groups: Sequence[Group], linear: bool) -> None:
    """Limits and ticks, the same for all panels, with room on the right for the values."""
    values = [
        float(value) for group in groups for one in group.results if (value := metric.read(one)) is not None
    ]
    largest = max(values)
    unit = metric.write
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: unit(value)))
    if linear or largest <= 1:
        axes.set_xlim(0, (largest or 1) * (1 + _DECADES_OF_LABEL))
        return
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.set_xlim(0, largest ** (1 + _DECADES_OF_LABEL) * 3)
    axes.xaxis.set_major_locator(FixedLocator(_log_ticks(largest, metric.key.endswith("bytes"))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: unit(value)))


def _log_ticks(largest: float, sizes: bool) -> list[float]:
    """0 and at most four powers of ten up to ``largest``; powers of 1024 for sizes."""
    base = 1024 if sizes else 10
    powers = math.ceil(math.log(largest, base))
    step = math.ceil(powers / 4)
    return [0.0, *(float(base**power) for power in range(step, powers + 1, step))]


def _short(title: str) -> str:
    """The condition of a panel, without the counts that the caption gives."""
    return title.split(",")[0]


def for_the_page(svg: str, label: str) -> str:
    """Only the ``<svg>`` element, scaling with the page, in the page's font and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    named = f' role="img" aria-label="{escape(label)}"'
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', lambda found: found[1] + named, svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, name in _NAMES.items():
        svg = svg.replace(colour, f"var({name}, #000)")
    return svg.strip()
