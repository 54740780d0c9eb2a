"""``sweep``, ``workloads``, ``costs`` and ``compare --workload`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shadowmmu import cli
from shadowmmu.compiled import INTERPRETED

TINY = ["--leaves", "40,80", "--axis", "leaf=4K", "--axis", "notifiers=2", "--mmus", "1", "--ipa-bits", "40"]
DESIGNS = ["--design", "sweep,reverse_table"]


def ended(words: list[str]) -> int:
    """The exit code of a call in this process."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pyarrow", reason="stores need the extra `lab`")
    pytest.importorskip("duckdb", reason="stores need the extra `lab`")
    path = tmp_path_factory.mktemp("cli") / "store"
    assert ended(["sweep", *TINY, *DESIGNS, "--jobs", "1", "--store", str(path)]) == cli.HOLDS
    return path


def test_a_sweep_says_what_it_ran_and_what_it_knew(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["sweep", *TINY, "--designs", "sweep,reverse_table,spanning", "--jobs", "1", "--store", str(kept)]
    assert ended(again) == cli.HOLDS
    captured = capsys.readouterr()
    assert captured.out.startswith("6 points: 4 were stored, 2 run\n")
    assert captured.err == ""  # no terminal, no progress


def test_show_draws_tables_json_markdown_and_curves(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert (
        ended(["sweep", "--show", str(kept), "--report", str(page), "--where", "design=sweep"]) == cli.HOLDS
    )
    assert "modelled time a notifier" in capsys.readouterr().out
    html = page.read_text()
    assert html.count("<svg") == 4
    assert ">sweep</text>" in html
    assert "<script" not in html
    assert ended(["sweep", "--show", str(kept), "--json", "--value", "refaults_per_notifier"]) == cli.HOLDS
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert table["row_values"] == [40, 80]
    assert dict(zip(table["column_values"], table["cells"][0], strict=True))["sweep"] == 41
    assert ended(["sweep", "--show", str(kept), "--markdown", "--value", "refaults_caused"]) == cli.HOLDS
    assert "| 80 | 162 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sweep"], "expected --grid NAME"),
        (["sweep", "--grid", "nowhere"], "expected a TOML file or one of"),
        (["sweep", "--grid", "small", "--leaves", "1"], "beside axes"),
        (["sweep", "--axis", "leaves"], "expected NAME=V"),
        (["sweep", "--axis", "hue=1"], "read 'hue' of workload storm"),
        (["sweep", "--workload", "hue"], "read workload 'hue'"),
        (["sweep", "--leaves", "few"], "read leaves=few"),
        (["compare", "--workload", "hue"], "read workload 'hue'"),
        (["compare", "--workload", "ksm", "--leaves", "5"], "expected NAME:leaves"),
        (["compare", "mid-block", "--workload", "ksm"], "expected one kind"),
        (["costs", "--sensitivity", "--designs", "hue"], "read design 'hue'"),
        (["costs", "--factor", "1"], "--factor"),
        (["sweep", "--leaves", "40", "--axis", "leaves=80"], "read axis leaves twice"),
    ],
)
def test_bad_questions_about_sweeps_are_code_4(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(words) == cli.BAD_INPUT
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--where", "p=1"], "expected values that some stored point has"),
        (["--value", "hue"], "read value 'hue'"),
        (["--along", "hue"], "read axis 'hue'"),
        (["--grid", "scale"], "run it first"),
    ],
)
def test_bad_questions_about_a_store_are_code_4(
    kept: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(["sweep", "--show", str(kept), *words]) == cli.BAD_INPUT
    assert told in capsys.readouterr().err


def test_a_sweep_whose_points_are_all_refused_is_code_4(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for store in (kept, tmp_path):
        words = ["sweep", *TINY, *DESIGNS, "--axis", "seed=-1", "--jobs", "1", "--store", str(store)]
        assert ended(words) == cli.BAD_INPUT
        told = capsys.readouterr().err
        assert "read seed -1, expected 0 or more" in told
        assert "every point was refused" in told


@pytest.mark.parametrize("words", [["--value", "hue"], ["--along", "hue"], ["--where", "hue=1"]])
def test_what_to_show_is_checked_before_anything_is_run(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    assert ended(["sweep", *TINY, *DESIGNS, "--store", str(store), *words]) == cli.BAD_INPUT
    assert "'hue', expected one of" in capsys.readouterr().err
    assert not store.exists()


def test_no_store_is_code_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("duckdb", reason="stores need the extra `lab`")
    assert ended(["sweep", "--show", str(tmp_path / "none")]) == cli.BAD_INPUT
    assert "expected a folder with results" in capsys.readouterr().err


def test_refused_points_are_told(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--leaves", "40", "--mmus", "1", "--ipa-bits", "40", "--designs", "reverse_table"]
    words += ["--store", str(tmp_path), "--jobs", "1", "--axis"]
    assert ended([*words, "granule=4K,8K"]) == cli.UNDETERMINED
    assert "refused: storm:" in capsys.readouterr().err


def test_workloads_are_listed_with_their_knobs(capsys: pytest.CaptureFixture[str]) -> None:
    cli.cli.main(["workloads"], standalone_mode=False)
    listed = capsys.readouterr().out
    cli.cli.main(["workloads", "--json"], standalone_mode=False)
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} >= {"storm", "l2-boot", "ksm"}
    for row in rows:
        assert row["source"]
        for parameter in row["parameters"]:
            assert f"{parameter['name']}={parameter['default']}: {parameter['meaning']}" in listed


def test_compare_takes_workloads(capsys: pytest.CaptureFixture[str]) -> None:
    leaves = 60 if INTERPRETED else 300
    words = ["compare", "--ipa-bits", "40", "--json"]
    for name in ("ksm:rounds=1,merged=2", "thp-collapse:rounds=1"):
        words += ["--workload", f"{name},leaves={leaves}"]
    assert ended(words) == cli.HOLDS
    results = json.loads(capsys.readouterr().out)["results"]
    assert len({result["run"] for result in results}) == 2
    assert all(result["verdict"]["safe"] for result in results if result["claims_safety"])
    assert len(results) == 2 * 12


def test_costs_show_sources_and_agree_with_the_recordings(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(["costs"]) == cli.HOLDS
    assert "kernel_runs/cost" in capsys.readouterr().out
    if INTERPRETED:
        pytest.skip("full unmaps at 48 bits")
    assert ended(["costs", "--calibrate", "--json"]) == cli.HOLDS
    found = json.loads(capsys.readouterr().out)["calibration"]
    assert all(one["agrees"] for one in found)


def test_a_stopped_sweep_says_what_it_has(
    kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    stored = len(list(kept.glob("*.parquet")))
    monkeypatch.setattr("shadowmmu.lab.sweep.run_sweep", stopped)
    assert ended(["sweep", *TINY, *DESIGNS, "--jobs", "1", "--store", str(kept)]) == 130
    assert f"stopped: {kept} has {stored} points; run again to go on" in capsys.readouterr().err


def test_a_damaged_result_is_named(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "half.parquet").write_bytes(next(kept.glob("*.parquet")).read_bytes()[:100])
    assert ended(["sweep", "--show", str(tmp_path)]) == cli.BAD_INPUT
    told = capsys.readouterr().err
    assert "half.parquet" in told
    assert "expected whole files: delete what is not, and sweep again" in told
