"""``review`` from the command line: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shadowmmu.cli import main
from shadowmmu.verify.review import locks


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def code(*words: str) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as ended:
        main(["review", *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_all_designs_as_a_grid_with_the_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert code("--objection", "5,20") == 0
    told = capsys.readouterr().out
    assert told.startswith("No design that claims safety is refuted in it.\n2 objections put to 12 designs")
    assert "  5 overlap                         + X + + X + + + + + + +\n" in told
    assert "refuted, rbtree_2024, maple_2025: A1: a valid shadow leaf" in told
    assert "rbtree_2024 (a negative control): refuted in safety 5\n" in told
    assert not Path("shadowmmu-witness.txt").exists()


def test_a_design_that_is_named_must_not_be_refuted(capsys: pytest.CaptureFixture[str]) -> None:
    assert code("--design", "rbtree_2024", "--objection", "5,20") == 2
    told = capsys.readouterr().out
    assert "  5 refuted: a range query finds every entry" in told
    assert " 20 holds: nested IPA 0 can be recorded" in told
    assert "filled from canonical IPA 0x41000000" in told
    witness = Path("shadowmmu-witness.txt").read_text(encoding="utf-8")
    assert witness.startswith("rbtree_2024: objection 5, overlap: A1")
    assert "05-overlap" in witness
    assert code("--design", "gfn_lists", "--objection", "24") == 2
    assert code("--design", "reverse_table", "--objection", "24") == 0


def test_json_and_page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "EXPLORED", ())
    assert code("--objection", "4,6", "--json", "--html", "review.html", "-q") == 0
    found = json.loads(capsys.readouterr().out)
    fourth = found["objections"][0]
    assert (fourth["number"], fourth["kind"], fourth["function"]) == (4, "safety", "source.hyp_context")
    assert fourth["results"]["rbtree_2024"]["verdict"] == "refuted"
    assert fourth["results"]["rbtree_2024"]["witness"]
    page = Path("review.html").read_text(encoding="utf-8")
    assert "kvm_is_l1_using_shadow_s2() is wrong in" in page
    assert page.count('<td class="undetermined"') == 1


def test_what_nobody_can_tell_ends_in_3_and_bad_input_in_4(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "EXPLORED", ())
    assert code("--design", "reverse_table", "--objection", "6") == 3
    for words, said in (
        (("--objection", "51"), "read objection 51, expected one of 1, 2,"),
        (("--objection", "x"), "read objection 'x', expected a number"),
        (("--design", "none"), "read design 'none', expected a Python file or one of sweep"),
        (("--html", "no/such/folder/x.html"), "cannot write"),
    ):
        assert code(*words) == 4
        assert said in capsys.readouterr().err
