"""``differences`` and ``--as-architecture``: what is printed, and exit codes."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from shadowmmu import cli

SUSPICION = files("shadowmmu") / "data" / "kernel_runs" / "suspicion"


def ended(words: list[str]) -> int:
    """The exit code of a call in this process."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    return int(stopped.value.code or 0)


def test_a_named_difference_is_refuted_under_linux(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(["differences", "dirty-log-flush"]) == cli.REFUTED
    out = capsys.readouterr().out
    assert "lost dirty page: canonical 0x41000000" in out
    assert out.splitlines()[1].split("  ")[0] == "dirty-log-flush"
    assert "at-pan" not in out


def test_all_differences_as_declared_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(["differences", "--json"]) == cli.HOLDS
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "shadowmmu.differences/1"
    assert len(data["differences"]) == 6
    for one in data["differences"]:
        assert one["as_declared"]
        assert one["as_linux"]["consequences"]
        assert not one["as_architecture"]["consequences"]


def test_an_unknown_difference_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["differences", "nothing"], ["conform", "--as-architecture", "nothing"]):
        assert ended(words) == cli.BAD_INPUT
        assert (
            "read difference 'nothing', expected 'all' or one of dirty-log-flush," in capsys.readouterr().err
        )


def test_conform_says_what_is_switched_and_differs(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(["conform", str(SUSPICION), "-q"]) == cli.HOLDS
    assert "as the architecture asks: nothing; else as Linux 7.3.4" in capsys.readouterr().out
    words = ["conform", str(SUSPICION), "-q", "--as-architecture", "nested-ipa-size", "--json"]
    assert ended(words) == cli.MISMATCH
    data = json.loads(capsys.readouterr().out)
    assert data["as_architecture"] == ["nested-ipa-size"]
    differing = [run["run"] for run in data["runs"] if not run["agrees"]]
    assert differing == ["nested-ipa-above-t0sz"]
    assert ended(["conform", "--live", "--as-architecture", "all"]) == cli.BAD_INPUT


def test_run_takes_the_switches(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "differences/at-replay", "--ipa-bits", "40"]
    assert ended(words) == cli.UNDETERMINED
    capsys.readouterr()
    assert ended([*words, "--as-architecture", "at-replay", "--json"]) == cli.HOLDS
    data = json.loads(capsys.readouterr().out)
    assert data["as_architecture"] == ["at-replay"]
    assert ended(["run", "differences/at-pan", "--as-architecture", "at-pan"]) == cli.HOLDS
    assert "as the architecture asks: at-pan" in capsys.readouterr().out.replace("\n", " ")


def test_compare_says_what_is_switched(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "differences/tlbi-beyond-limit", "--ipa-bits", "40", "--design", "sweep", "-q"]
    assert ended([*words, "--as-architecture", "all", "--json"]) == cli.HOLDS
    data = json.loads(capsys.readouterr().out)
    assert data["conditions"]["as the architecture"].startswith("dirty-log-flush, nested-ipa-size")
    assert ended(words) == cli.HOLDS
    assert "nothing; all as Linux 7.3.4" in capsys.readouterr().out
