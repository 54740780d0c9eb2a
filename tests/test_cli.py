"""The command line: verbs, exit codes, refusals, and how soon it answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest

from shadowmmu import cli
from shadowmmu.lab import compare as lab_compare
from shadowmmu.lab.results import Agreement, Verdict

SCENARIOS = files("shadowmmu") / "data" / "scenarios"
QUICK = 0.4
TINY = (
    "mem 64M\nstart base 0 0\ns2 new 1\ncode\nmap 0x80000000 0x41000000 4k 3 rw\ntouch w 0x80000000 4096 1\n"
)


def shadowmmu(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "shadowmmu", *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def code_of(words: list[str]) -> int:
    """The exit code of a call in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("words", [("--help",), ("nonsense",), ("compare", "--help"), ("--version",)])
def test_help_and_wrong_verbs_answer_at_once(words: tuple[str, ...]) -> None:
    shadowmmu(*words)  # once, so that bytecode is on disk
    fastest = 9.0
    for _ in range(5):
        begun = time.perf_counter()
        shadowmmu(*words)
        fastest = min(fastest, time.perf_counter() - begun)
    assert fastest < QUICK


def test_nothing_heavy_is_imported_for_help() -> None:
    script = (
        "import sys, shadowmmu.cli\n"
        "print([m for m in ('numba', 'numpy', 'rich', 'matplotlib', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nonsense"], "nonsense"),
        (["compare", "--design", "maple"], "one of sweep"),
        (["compare", "no-such-file"], "read 'no-such-file'"),
        (["compare", "--ipa-bits", "a dozen"], "expected a number"),
        (["compare", "mid-block", "--report", "no/such/folder/report.html"], "cannot write"),
        (["run", "no-such-file"], "read 'no-such-file'"),
        (["walk", "mid-block", "0x80000000", "--at", "nowhere"], "expected a line number or one of"),
        (["walk", "mid-block", "0xzz"], "expected a number"),
        (["walk", "mid-block", "0", "--operation", "AT S1E1R"], "expected a context file"),
        (["walk", "--context", "gone.ctx", "0"], "expected a context file"),
        (["compare", "--leaves"], "--leaves"),
    ],
)
def test_bad_input_is_code_4(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(words) == cli.BAD_INPUT
    assert told in capsys.readouterr().err


def test_a_bad_scenario_names_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.scenario"
    path.write_text("mem 64M\nstart base 0 0\ntouch q 0x80000000 4096 1\n")
    assert code_of(["run", str(path)]) == cli.BAD_INPUT
    said = capsys.readouterr().err
    assert f"{path}:3: read 'q', expected" in said


def test_out_of_memory_is_code_4(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 8.00 TiB")

    monkeypatch.setattr(lab_compare, "run_judged", full)
    assert code_of(["compare", "mid-block"]) == cli.BAD_INPUT
    assert "not enough memory: Unable to allocate" in capsys.readouterr().err


def test_an_internal_error_is_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(lab_compare, "run_judged", broken)
    assert code_of(["compare", "mid-block"]) == cli.INTERNAL_ERROR
    assert "internal error: ZeroDivisionError: a bug" in capsys.readouterr().err


def test_an_expected_refutation_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["compare", "mid-block"]) == cli.HOLDS
    assert "rbtree_2024 is refuted" in capsys.readouterr().out


def test_a_design_that_was_named_is_held_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of(["compare", "mid-block", "--design", "rbtree_2024"]) == cli.REFUTED
    assert "0x41005000" in (tmp_path / cli.WITNESS_FILE).read_text()
    assert cli.WITNESS_FILE in capsys.readouterr().err


def test_nobody_looked_is_undetermined() -> None:
    assert code_of(["compare", "mid-block", "--judge", "never"]) == cli.UNDETERMINED


def test_a_disagreement_with_the_kernel_is_code_5(monkeypatch: pytest.MonkeyPatch) -> None:
    def differs(*_: object) -> Agreement:
        return Agreement(3, False, ["made up"])

    monkeypatch.setattr(lab_compare, "compare_with_kernel", differs)
    assert code_of(["compare", "hello", "--design", "sweep"]) == cli.MISMATCH


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["compare", "mid-block", "--json", "--design", "sweep"]) == cli.HOLDS
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema"] == "shadowmmu.comparison/1"
    assert answer["results"][0]["verdict"]["safe"] is True


def test_standard_input_is_a_scenario() -> None:
    done = shadowmmu("run", "-", "--ipa-bits", "40", stdin=TINY + "dump end n\n")
    assert done.returncode == cli.HOLDS, done.stderr
    assert "0x0000000080000000-0x0000000080001000           4K 3   R W PXNUXN AF" in done.stdout


def test_a_host_without_features_can_be_asked_for() -> None:
    done = shadowmmu("run", "-", "--ipa-bits", "40", "--no-fwb", "--no-tlbirange", stdin=TINY)
    assert done.returncode == cli.HOLDS, done.stderr
    assert "no FEAT_TLBIRANGE, no FEAT_S2FWB" in done.stdout
    assert "cache_cleans" in done.stdout


def test_run_saves_its_witness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of(["run", "mid-block", "--design", "rbtree_2024"]) == cli.REFUTED
    assert (tmp_path / cli.WITNESS_FILE).exists()


CONTEXT = """HCR_EL2 0x80000001
SCTLR_EL1 0x30d00805
TCR_EL1 0x500000019
MAIR_EL1 0xff
TTBR0_EL1 0x2000
VTCR_EL2 0x80050059
VTTBR_EL2 0x5000000008000
word 0x2000 0x3003
word 0x3000 0x4003
word 0x4000 0x57c3
word 0x8000 0x7fd
"""


def test_walk_explains_given_registers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = tmp_path / "a.ctx"
    context.write_text(CONTEXT)
    cli.main(["walk", "--context", str(context), "0x123", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["operation"], found["pa"], found["par"]) == ("AT S12E1R", 0x5123, 0xFF00_0000_0000_5B80)
    stages = "".join(str(step["stage"]) for step in found["steps"])
    assert stages == "2121212"
    cli.main(["walk", "--context", str(context), "0x123", "--operation", "store at EL0"])
    printed = capsys.readouterr().out
    assert "stage 1 permission fault, level 3 (FSC 0x0f)" in printed
    assert "exception to EL1" in printed
    cli.main(["walk", "--context", str(context), "0x123", "--set", "HCR_EL2=0x80000000"])
    assert "stage 2: off" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--operation", "AT S1E9R"], "expected one of AT S1E1R"),
        (["--set", "TCR_EL9=1"], "expected REGISTER=VALUE"),
    ],
)
def test_walk_refuses_what_no_context_has(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = tmp_path / "a.ctx"
    context.write_text(CONTEXT)
    with pytest.raises(SystemExit) as caught:
        cli.main(["walk", "--context", str(context), "0", *arguments])
    assert caught.value.code == 4
    assert message in capsys.readouterr().err


def test_walk_prints_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["walk", "mid-block", "2147504128", "--at", "mapped"])
    said = capsys.readouterr().out
    assert "guest stage 2" in said
    assert "shadow stage 2" in said


def test_designs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["designs"])
    assert "rbtree_2024    RFC, March 2024 (a negative control)" in capsys.readouterr().out
    cli.main(["designs", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["name"] == "sweep"


def test_the_report_is_written(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert code_of(["compare", "mid-block", "--report", str(path)]) == cli.HOLDS
    assert "<svg" in path.read_text()


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m shadowmmu costs | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert done.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("text", "value"), [("48", 48), ("0x10", 16), ("4K", 4096), ("2m", 2 << 20), ("1G", 1 << 30)]
)
def test_numbers_are_read_as_kernel_people_write_them(text: str, value: int) -> None:
    assert cli.NUMBER.convert(text, None, None) == value


def test_an_unjudged_verdict_cannot_be_safe() -> None:
    with pytest.raises(ValueError, match="nobody judged"):
        Verdict(True, "x", judged=False)


def test_conform_agrees_on_a_folder_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import lzma

    from shadowmmu.formats.runs import bundled_run

    run = bundled_run("hello/hello")
    text = lzma.decompress(run.answer_path.read_bytes()).decode()
    (tmp_path / "hello.scenario").write_text(run.scenario_text())
    (tmp_path / "hello.kernel.txt").write_text(text)
    assert code_of(["conform", str(tmp_path), "-q"]) == cli.HOLDS
    assert "1 of 1 runs agree" in capsys.readouterr().out
    (tmp_path / "hello.kernel.txt").write_text(text.replace("left=0", "left=1", 1))
    assert code_of(["conform", str(tmp_path), "-q", "--json"]) == cli.MISMATCH
    data = json.loads(capsys.readouterr().out)
    assert data["runs"][0]["differences"][0]["aspect"] == "seen by L1"


def test_without_a_rig_its_verbs_say_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHADOWMMU_RIG", str(tmp_path))
    assert code_of(["rig", "check"]) == cli.UNDETERMINED
    assert "Image (the kernel of L0)" in capsys.readouterr().out
    assert code_of(["conform", "--live", "--runs", "1"]) == cli.UNDETERMINED
    assert "make rig prepares it" in capsys.readouterr().err
    assert code_of(["conform", str(tmp_path)]) == cli.BAD_INPUT
