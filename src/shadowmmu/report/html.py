"""The self-contained page: one HTML file with inline style and inline SVG, no script, no network."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from shadowmmu.errors import InputError
from shadowmmu.lab.results import Comparison
from shadowmmu.report import metrics, quantities
from shadowmmu.report.plots import plots

TEMPLATE: Final = "report.html.jinja"


def check_writable(path: Path) -> None:
    """Make sure a report can be written there, before any work is done. Raises InputError.

    Leaves nothing behind and does not touch an existing file.
    """
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder, and a file name was expected")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the page, whole or not at all. Raises InputError where it cannot be written."""
    write_text(path, render(comparison))


def write_text(path: Path, text: str) -> None:
    """Write a file by way of a temporary one beside it. Raises InputError."""
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def render(comparison: Comparison) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("shadowmmu.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(count=quantities.count, plural=_plural)
    kernel = metrics.of_kind(comparison, "kernel")
    scenarios = metrics.of_kind(comparison, "scenario")
    sums = []
    if kernel:
        sums.append(
            metrics.together(f"All {_plural(len(metrics.by_run(kernel)), 'kernel run')}, summed", kernel)
        )
    if scenarios:
        sums.append(
            metrics.together(f"All {_plural(len(metrics.by_run(scenarios)), 'scenario')}, summed", scenarios)
        )
    storms = metrics.storms(comparison)
    return environment.get_template(TEMPLATE).render(
        comparison=comparison,
        headline=metrics.headline(comparison),
        kernel=metrics.by_run(kernel),
        scenarios=metrics.by_run(scenarios),
        agreement=metrics.agreement,
        groups=[*storms, *sums],
        plots=plots(storms or sums) if comparison.results else [],
        metrics=metrics.METRICS,
        refuted=metrics.refuted(comparison),
    )


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"
