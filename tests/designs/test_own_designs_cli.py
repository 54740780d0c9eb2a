"""``designs``: the template, and the conformance kit of a file from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowmmu.cli import main
from shadowmmu.compiled import OWN_DESIGNS
from shadowmmu.designs.own_file import forget_designs


@pytest.fixture(autouse=True)
def forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not OWN_DESIGNS:
        pytest.skip("kernels without designs of users: run with SHADOWMMU_OWN_DESIGNS=1, or interpreted")
    monkeypatch.setenv("SHADOWMMU_OWN_DESIGNS", "1")  # main() sets it; put back afterwards
    monkeypatch.chdir(tmp_path)
    yield
    forget_designs()


def code(*words: str) -> int:
    """The exit code of a command line."""
    try:
        main(list(words))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def template(capsys: pytest.CaptureFixture[str]) -> str:
    assert code("designs", "--template") == 0
    return capsys.readouterr().out


def test_the_template_as_printed_passes_its_check(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mydesign.py").write_text(template(capsys), encoding="utf-8")
    assert code("designs", "--check", "mydesign.py") == 0
    told = capsys.readouterr().out
    assert told.startswith("list: holds in ")
    assert "  alias-2: holds" in told


def test_a_refuted_design_ends_in_2_and_leaves_a_witness(capsys: pytest.CaptureFixture[str]) -> None:
    text = template(capsys).replace("        s.mmus[mmu, M_BROKEN] = ONE\n", "").replace('"list"', '"lossy"')
    Path("lossy.py").write_text(text, encoding="utf-8")
    assert code("designs", "--check", "lossy.py", "--json") == 2
    found = json.loads(capsys.readouterr().out)
    refuted = {case["case"]: case["rule"] for case in found["cases"] if not case["holds"]}
    assert set(refuted.values()) == {"A1"}
    witness = Path("shadowmmu-witness.txt").read_text(encoding="utf-8")
    assert all(name in witness for name in refuted)
    assert "nested IPA" in witness


def test_a_file_that_is_no_design_ends_in_4(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.py").write_text("pass\n", encoding="utf-8")
    for words in (("designs", "--check", "empty.py"), ("compare", "--design", "sweep,empty.py")):
        assert code(*words) == 4
        assert "empty.py:1: read no function 'record', expected" in capsys.readouterr().err
    assert code("run", "alias", "--design", "none.py") == 4


def test_run_names_the_design_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mydesign.py").write_text(template(capsys), encoding="utf-8")
    Path("one.scenario").write_text(
        "mem 64M\nstart base\ns2 new 1\ncode\ntouch r 0x10000\n", encoding="utf-8"
    )
    assert code("run", "one.scenario", "--design", "mydesign.py", "--ipa-bits", "40") == 0
    assert "under list, 40-bit" in capsys.readouterr().out


def test_a_file_is_reviewed_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mydesign.py").write_text(template(capsys), encoding="utf-8")
    assert code("review", "--design", "mydesign.py,sweep,reverse_table", "--objection", "1,5,9,27") == 0
    told = capsys.readouterr().out
    assert "  9 surface                         . + +" in told
    assert "list: not refuted" in told
