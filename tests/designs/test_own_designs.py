"""Designs that users bring: the template holds, broken copies are refuted or refused where they are wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from design_lab import DATA, PAGES_16, count, executor, last_event, script

from shadowmmu.compiled import INTERPRETED, OWN_DESIGNS
from shadowmmu.designs import own
from shadowmmu.designs.dispatch import design_footprint, design_recorded
from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.designs.own_file import WORDS, forget_designs, named_design
from shadowmmu.errors import InputError
from shadowmmu.lab.compare import compare
from shadowmmu.lab.results import CompareOptions, ScenarioSource
from shadowmmu.verify.cases import placed_cases
from shadowmmu.verify.conformance import run_case, run_conformance

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "src" / "shadowmmu" / "designs" / "template.py"
Written = Callable[..., str]


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    """Writes a copy of the template with (old, new) changed, as ``mine.py``; its path."""

    def write(*changes: tuple[str, str], name: str = "mine.py") -> str:
        text = TEMPLATE.read_text(encoding="utf-8")
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    if not OWN_DESIGNS:
        pytest.skip("kernels without designs of users: run with SHADOWMMU_OWN_DESIGNS=1, or interpreted")
    yield write
    forget_designs()


def test_the_template_holds_in_every_case_of_the_kit(written: Written) -> None:
    report = run_conformance(written())
    assert report.holds, "\n".join(report.lines())
    assert report.design == "list"
    assert not any(result.over_unmapped_bytes for result in report.results if result.case.exact)


BREAKS = {
    "what L1 takes stays": ("if overlaps(s, node, N_NESTED, start, end):", "if start > end:", "check"),
    "an unmap finds only starts": (
        "if not overlaps(s, node, N_CANONICAL, start, end):",
        "if s.rmap[node + N_CANONICAL] != start:",
        "A1",
    ),
    "no memory, and nobody is told": ("        s.mmus[mmu, M_BROKEN] = ONE\n", "", "A1"),
}


COMPILED_TOO = "no memory, and nobody is told"
"""Every copy costs its own compilation: one of them is enough there."""


@pytest.mark.parametrize("fault", BREAKS if INTERPRETED else [COMPILED_TOO])
def test_a_broken_copy_is_refuted_with_a_witness(written: Written, fault: str) -> None:
    old, new, rule = BREAKS[fault]
    report = run_conformance(written((old, new), ('"list"', '"lossy"')), placed_cases())
    assert rule in report.refuted_by.values()
    text = "\n".join(report.lines())
    assert "refuted by" in text
    assert "  event  " in text if rule == "A1" else "its own check:" in text


def test_two_designs_of_ones_own_side_by_side(written: Written) -> None:
    kept = written()
    lossy = written(('"list"', '"lossy"'), ("        s.mmus[mmu, M_BROKEN] = ONE\n", ""), name="lossy.py")
    names = [named_design(kept), named_design(lossy), named_design(kept)]
    assert names == ["list", "lossy", "list"]
    case = next(case for case in placed_cases() if case.fail_allocation)
    assert [run_case(name, case).holds for name in names] == [True, False, True]


def test_its_functions_do_the_work_and_its_footprint_is_what_is_reported(written: Written) -> None:
    made = executor(named_design(written()), script(PAGES_16, f"dontneed {DATA:#x} 4k"))
    made.run()
    assert count(made, "lookups") > 0
    assert count(made, "nodes_visited") >= 17
    assert design_recorded(made.state) == 16
    assert design_footprint(made.state) == 16 * 32


def test_what_a_file_leaves_out_has_a_meaning(written: Written) -> None:
    """Without init the pool is empty, without covers and recorded the design says nothing of its record."""
    text = TEMPLATE.read_text(encoding="utf-8")
    parts = text.split("\n\n\n@kernel\n")
    left_out = [part for part in parts if part.startswith(("def init(", "def covers(", "def recorded("))]
    assert len(left_out) == 3
    dropped = [(f"\n\n\n@kernel\n{part.partition(chr(10) * 3)[0]}", "") for part in left_out]
    name = named_design(written(*dropped))
    made = executor(name, script(PAGES_16, f"dontneed {DATA:#x} 4k"))
    made.run()
    assert count(made, "over_unmapped_leaves") == 0 < count(made, "leaves_removed")
    assert (design_recorded(made.state), design_footprint(made.state)) == (0, 16 * 32)
    case = next(case for case in placed_cases() if not case.fail_allocation)
    assert run_case(name, case).holds


def test_words_that_a_file_leaves_out_come_from_its_name_and_docstring(written: Written) -> None:
    words = ("NAME", "ORIGIN", "IDEA", "CLAIMS_SAFETY", "USES_SIDE", "WANTS_OUTPUTS")
    text = TEMPLATE.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith(tuple(f"{word}:" for word in words))]
    assert len(lines) == len(words)
    design = CATALOGUE[named_design(written(*((f"{line}\n", "") for line in lines)))]
    assert (design.name, design.origin) == ("mine", "mine.py")
    assert design.idea == text[3:].partition("\n")[0]
    assert (design.claims_safety, design.uses_side) == (True, False)


def test_compare_takes_a_file(written: Written) -> None:
    source = ScenarioSource(name="own", text=script(PAGES_16, f"dontneed {DATA:#x} 4k"))
    path = written()
    found = compare(CompareOptions(scenarios=(source,), designs=("sweep", path), ipa_limit_bits=40))
    assert [(one.design, one.verdict.refuted) for one in found.results] == [("sweep", False), ("list", False)]
    assert (
        found.results[1].counters["over_unmapped_leaves"]
        == 0
        < found.results[0].counters["over_unmapped_leaves"]
    )


def test_a_design_asked_with_output_addresses_gets_them(written: Written) -> None:
    body = "    s.count[LOOKUPS] += 1\n"
    asks = body.replace("1\n", "output_runs(s)\n")
    path = written(
        (body, asks),
        ("WANTS_OUTPUTS: Final = False", "WANTS_OUTPUTS: Final = True"),
        (
            "from shadowmmu.designs.interface",
            "from shadowmmu.designs.outputs import output_runs\nfrom shadowmmu.designs.interface",
        ),
    )
    made = executor(named_design(path), script(PAGES_16, f"dontneed {DATA:#x} 4k"))
    made.run(last_event(made))
    before = count(made, "lookups")
    made.run()
    assert (
        count(made, "lookups") - before == 2
    )  # L0 read one page behind the range, the design counted one run


REFUSED = {
    "no function 'protect', expected '@kernel def protect(": ("def protect(", "def protects("),
    "read 'def age(s: State, end: Word, start: Word, may_block: bool)', expected 'def age(s: State, start": (
        "def age(s: State, start: Word, end: Word,",
        "def age(s: State, end: Word, start: Word,",
    ),
    "a plain function 'footprint', expected '@kernel' in front": (
        "@kernel\ndef footprint",
        "def footprint",
    ),
    "cannot import name 'Finale'": ("from typing import Final\n", "from typing import Finale\n"),
    "read 'changed = 0 +' (invalid syntax), expected Python": ("    changed = 0\n", "    changed = 0 +\n"),
    "read CLAIMS_SAFETY = 1, expected a bool": ("CLAIMS_SAFETY: Final = True", "CLAIMS_SAFETY: Final = 1"),
    "the name 'sweep', expected one that no other design has": ('"list"', '"sweep"'),
    "the name 'my list', expected letters": ('"list"', '"my list"'),
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_file_that_is_no_design_is_refused_with_its_line(written: Written, said: str) -> None:
    path = written(REFUSED[said])
    with pytest.raises(InputError) as error:
        named_design(path)
    assert said in str(error.value)
    line = re.match(re.escape(path) + r":(\d+): read ", str(error.value))
    assert line is not None
    assert int(line[1]) > 1
    assert "list" not in CATALOGUE


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in this mode")
def test_what_does_not_compile_is_refused_with_its_function(written: Written) -> None:
    path = written(("    return I64(pool_used(s.rmap))\n", '    return "many"\n'))
    with pytest.raises(InputError, match=r"mine\.py:\d+: read 'footprint', which does not compile"):
        named_design(path)


@pytest.mark.skipif(not INTERPRETED, reason="compiled code raises nothing")
def test_what_raises_is_refused_with_its_line(written: Written) -> None:
    name = named_design(written(("    s.count[LOOKUPS] += 1\n", "    s.count[10_000] += 1\n")))
    made = executor(name, script(PAGES_16, f"dontneed {DATA:#x} 4k"))
    with pytest.raises(InputError, match=r"mine\.py:\d+: read IndexError: .* in 'unmap', expected a kernel"):
        made.run()


@pytest.mark.skipif(OWN_DESIGNS, reason="these kernels can call designs of users")
def test_kernels_that_cannot_call_a_file_say_what_they_need() -> None:
    with pytest.raises(InputError, match="expected SHADOWMMU_OWN_DESIGNS=1 in the environment"):
        named_design(str(TEMPLATE))


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in this mode")
def test_the_template_holds_compiled_from_the_command_line() -> None:
    """In a process of its own, with the kernels that can call it: a minute where they are not on disk."""
    command = [sys.executable, "-m", "shadowmmu", "designs", "--check", str(TEMPLATE)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("list: holds in ")


@pytest.mark.parametrize("name", ["nothing", "nothing.py"])
def test_a_design_that_is_not_there_is_bad_input(name: str) -> None:
    with pytest.raises(InputError, match=f"read '{name}'|read design '{name}'"):
        named_design(name)


def test_the_page_names_every_function_and_word() -> None:
    page = (ROOT / "docs" / "your-own-design.md").read_text(encoding="utf-8")
    rows = {row[0]: row for row in re.findall(r"^\| `(\w+)\(([^)]*)\)` \| (\w+) \|", page, re.MULTILINE)}
    assert list(rows) == [call.name for call in own.CALLS]
    for call in own.CALLS:
        assert rows[call.name][1] == ", ".join(("s", *call.parameters))
        assert (rows[call.name][2] == "yes") == (call.default is None)
    assert re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE) == list(WORDS)
