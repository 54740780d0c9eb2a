"""The HTML report: one file, whole or not at all, readable without a network."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import comparison

from shadowmmu.errors import InputError
from shadowmmu.lab.results import Comparison
from shadowmmu.report.html import check_writable, render, write_report

VOID = {"meta", "link", "br", "hr", "img", "path", "use", "rect", "line", "circle", "stop"}


class Balance(HTMLParser):
    """Notes elements that are closed in another order than they were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def page() -> str:
    return render(comparison())


def test_it_is_well_formed(page: str) -> None:
    balance = Balance()
    balance.feed(page)
    assert balance.wrong == []
    assert balance.open == []


def test_it_needs_nothing_else(page: str) -> None:
    outside = re.findall(r'(?:src|href)="(?!#)([^"]+)"', page)
    assert outside == []
    assert "<script" not in page
    assert "@import" not in page


def test_it_has_the_plots_the_tables_and_the_witness(page: str) -> None:
    assert page.count("<svg") == 4
    for text in ("Cost of one notifier", "Over-unmapped bytes", "reverse_table", "rule: A1"):
        assert text in page


def test_the_same_comparison_gives_the_same_page(page: str) -> None:
    assert render(comparison()) == page


def test_dark_and_light(page: str) -> None:
    assert "prefers-color-scheme" in page


def test_it_is_written_whole(tmp_path: Path, page: str) -> None:
    path = tmp_path / "report.html"
    write_report(comparison(), path)
    assert path.read_text() == page
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        check_writable(tmp_path / "no" / "such" / "report.html")


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        write_report(comparison(), path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_comparison_is_still_a_page() -> None:
    page = render(Comparison(conditions={}, results=[], started="2026-01-01T00:00:00+00:00", elapsed_s=0.0))
    assert "<html" in page
