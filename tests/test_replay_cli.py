"""The verb ``replay``: what it prints and writes, its exit codes, and the example of its document."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from shadowmmu import cli
from shadowmmu.designs.interface import CATALOGUE

DOCUMENT = (Path(__file__).parents[1] / "docs" / "replay.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The document's trace, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.trace"
    path.write_text(block("trace"), encoding="utf-8")
    return path


def replay(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["replay", *words])
    return int(ended.value.code or 0)


def test_the_example_of_the_document_prints_what_it_says(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *told = block("console").splitlines()
    words = command.removeprefix("$ shadowmmu replay ").split()
    assert replay(*words) == cli.HOLDS
    printed = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    for line in told:
        if line == "...":
            continue
        assert line in printed, line
        del printed[: printed.index(line) + 1]


def test_the_table_of_the_document_is_what_replay_finds(capsys: pytest.CaptureFixture[str]) -> None:
    rows = re.findall(r"^\| (l2-\S+) \| (.*) \|$", DOCUMENT, re.MULTILINE)
    assert len(rows) == 3
    for name, cells in rows:
        assert replay(name, "--design", "reverse_table", "--json") == cli.HOLDS
        found = json.loads(capsys.readouterr().out)
        books = found["recorded"]
        spared = [one["fills"]["spared"] for one in found["answers"]]
        values = [books["fills"], books["refaults_after_notifiers"], books["refaults_after_l1"], *spared]
        assert [f"{value:,}" for value in values] == cells.split(" | ")


def test_the_probes_of_the_document_are_those_the_reader_knows() -> None:
    from shadowmmu.formats.shadow_trace import FIELDS

    probes = dict(re.findall(r"^ev '(\w+) (.*)'$", DOCUMENT, re.MULTILINE))
    assert set(probes) == set(FIELDS)
    for name, wanted in FIELDS.items():
        assert all(f" {field}=" in probes[name] for field in wanted)


@pytest.mark.usefixtures("small")
def test_json_page_and_list_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    written = ("--report", "page.html", "--fills", "fills.csv", "--unmaps", "unmaps.csv")
    assert replay("small.trace", "--json", "--tlbi", "exact", *written) == cli.HOLDS
    found = json.loads(capsys.readouterr().out)
    assert [one["design"] for one in found["answers"]] == list(CATALOGUE)
    assert all(one["exact"] for one in found["answers"])
    with Path("fills.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pages = ["0x40000000", "0x40001000"]
    assert [row["canonical_ipa"] for row in rows] == [*pages, *pages, pages[1]]
    assert sum(row["reverse_table/exact"] == "spared" for row in rows) == 2
    with Path("unmaps.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["cause"], row["start"], row["size"]) for row in rows] == [
        ("notifier", "0x40001000", "0x2000"),
        ("tlbi", "0x80000000", "0x40000000"),
    ]
    assert [row["sweep/exact"] for row in rows] == ["2", "0"]
    assert [row["reverse_table/exact"] for row in rows] == ["1", "0"]
    assert "small.trace" in Path("page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("edit", "code", "told"),
    [
        (lambda text: text.replace("addr=0x80000000 size=0x1000", "addr="), 4, ":6: read"),
        (lambda text: text.split(" vmm-46")[0], 3, "nothing to replay"),
        (lambda text: text + "CPU:0 [LOST 12 EVENTS]\n", 3, ""),
        (lambda text: text.rstrip("\n"), 3, ""),
        (lambda text: "".join(line for line in text.splitlines(True) if " addr=0x40" not in line), 3, ""),
        (lambda text: "".join(line for line in text.splitlines(True) if " s2range:" not in line), 5, ""),
    ],
    ids=["bad-line", "no-fill", "lost", "cut", "not-joined", "no-ranges"],
)
def test_exit_codes(small: Path, capsys: pytest.CaptureFixture[str], edit, code: int, told: str) -> None:
    small.write_text(edit(small.read_text()))
    assert replay("small.trace", "--design", "sweep", "-q") == code
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nowhere",), "expected a trace file"),
        (("small.trace", "--design", "magic"), "one of"),
        (("small.trace", "--report", "missing/page.html"), "cannot write"),
        (("small.trace", "--ipa-bits", "99"), "99"),
        (("small.trace", "--ipa-bits", "32"), "below 2^32"),
    ],
)
def test_refusals(small: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str) -> None:
    small.write_text(small.read_text().replace("addr=0x80001000", "addr=0x180001000"))
    assert replay(*words) == cli.BAD_INPUT
    assert told in capsys.readouterr().err
