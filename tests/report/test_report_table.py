"""The text report: exact figures, plain without a terminal, and every refutation with its witness."""

from __future__ import annotations

import io

import pytest
from made_up import comparison

from shadowmmu.lab.results import Transcript, Verdict
from shadowmmu.report.metrics import METRICS, headline, refuted
from shadowmmu.report.table import WIDTH, console, print_comparison, print_transcript


def printed(agrees: bool = True) -> str:
    stream = io.StringIO()
    print_comparison(comparison(agrees), console(stream))
    return stream.getvalue()


def test_every_metric_has_a_row_and_every_design_a_column() -> None:
    text = printed()
    for metric in METRICS:
        assert metric.label in text
    for design in ("sweep", "rbtree_2024", "spanning", "reverse_table"):
        assert design in text


def test_figures_are_exact() -> None:
    text = printed()
    assert "1,048,575" in text  # refaults of the 48-bit storm
    assert "16T" in text  # over-unmapped bytes


def test_the_first_lines_answer_the_question() -> None:
    lines = printed().splitlines()
    assert lines[0] == "3 of 3 kernel runs agree with Linux 7.3.4, dump by dump."
    assert lines[1] == "No stale translation found: sweep, spanning, reverse_table."
    assert lines[2].startswith("Refuted: rbtree_2024 (3 runs)")


def test_a_disagreement_is_shown_with_both_sides() -> None:
    text = printed(agrees=False)
    assert "2 of 3 kernel runs agree" in text
    assert "NO, of 12 tables" in text
    assert "kernel: 0x80000000" in text
    assert "model: nothing" in text


def test_the_witness_is_printed() -> None:
    text = printed()
    assert "rbtree_2024 is refuted by scenario/09-alias (a negative control: expected)" in text
    assert "rule: A1" in text


def test_nothing_but_plain_text_off_a_terminal() -> None:
    text = printed()
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    tables = [line for line in text.splitlines() if "witness" not in line and "also refuted" not in line]
    assert max(len(line) for line in tables if not line.startswith("  ")) <= WIDTH


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert console(io.StringIO()).no_color


def test_a_stale_leaf_comes_before_a_latent_one() -> None:
    made = comparison()
    runs = refuted(made)["rbtree_2024"]
    assert [run.run for run in runs] == ["scenario/09-alias", "storm", "storm"]


def test_not_judged_is_said() -> None:
    made = comparison()
    unjudged = [r for r in made.results if r.design == "spanning"]
    for result in unjudged:
        object.__setattr__(result, "verdict", Verdict(safe=False, summary="-", judged=False))
    assert any(line.startswith("Not judged in every run: spanning") for line in headline(made))


def test_a_transcript_is_printed_as_it_is() -> None:
    stream = io.StringIO()
    lines = ["0x0000000000000000-0x0001000000000000         256T 0", "x" * 200]
    print_transcript(Transcript(title="a run", lines=lines), console(stream))
    assert stream.getvalue().splitlines() == ["a run", *lines]
