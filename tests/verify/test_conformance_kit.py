"""The conformance kit itself: it covers what it promises, says what it found, and can refute."""

from __future__ import annotations

import pytest

from shadowmmu.compiled import U64
from shadowmmu.designs import reverse_nodes as rn
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.step import STOPPED
from shadowmmu.errors import InputError
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.verify.cases import placed_cases, random_cases, random_script
from shadowmmu.verify.conformance import Case, conformance_cases, run_case, run_conformance
from shadowmmu.verify.judge import Judge

CASES = {case.name: case for case in conformance_cases()}


def test_names_are_unique_and_each_case_says_what_it_shows() -> None:
    cases = conformance_cases()
    assert len(CASES) == len(cases) == len(placed_cases()) + len(random_cases())
    assert all(case.shows for case in cases)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_case_is_a_script_of_the_language(case: Case) -> None:
    assert len(parse_scenario(case.script, case.name).events) > 5


def test_random_scripts_repeat_and_differ() -> None:
    assert random_script(5) == random_script(5)
    assert random_script(5) != random_script(6)
    assert "start thp" in random_script(5, "thp")
    words = {line.split()[0] for seed in range(12) for line in random_script(seed).splitlines() if line}
    assert words >= {
        *("map", "unmap", "touch", "tlbi", "s2", "vm", "codeat", "dontneed", "punch", "munmap", "mmap"),
        *("mprotect", "collapse", "hugepage", "pageout", "write", "log", "getlog", "slot"),
    }


def test_a_report_of_a_design_that_holds() -> None:
    chosen = [CASES["mid-block"], CASES["nested-zero"]]
    report = run_conformance("reverse_table", chosen)
    assert report.holds
    assert report.refuted_by == {}
    assert report.lines()[0] == "reverse_table: holds in 2 cases"
    assert report.lines()[1].startswith("  mid-block: holds (")
    assert "bytes over-unmapped" in run_conformance("sweep", chosen).lines()[1]


def test_a_report_of_a_design_that_is_refuted() -> None:
    report = run_conformance("rbtree_2024", [CASES["mid-block"], CASES["nested-zero"]])
    assert not report.holds
    assert report.refuted_by == {"mid-block": "A1"}
    lines = report.lines()
    assert lines[0] == "rbtree_2024: refuted by 1 cases of 2"
    assert lines[1] == f"  mid-block: {CASES['mid-block'].shows}"
    assert lines[2].startswith("    A1: ")
    assert report.result("nested-zero").holds
    with pytest.raises(KeyError):
        report.result("no such case")


def test_without_cases_the_whole_kit_runs() -> None:
    report = run_conformance("spanning")
    assert report.holds
    assert [result.case.name for result in report.results] == list(CASES)


def test_an_unknown_design_is_refused() -> None:
    with pytest.raises(InputError):
        run_conformance("no_such_design")


class Saboteur(Judge):
    """A judge that miscounts the record once, behind the back of the rules."""

    def look(self, executor: Executor, event: int) -> None:
        super().look(executor, event)
        if event == 5:
            executor.state.rmap[rn.RT_CHAINED] += U64(1)


def test_a_broken_record_is_reported_though_every_rule_holds() -> None:
    result = run_case("reverse_table", CASES["nested-zero"], Saboteur())
    assert result.violation is None
    assert not result.holds
    assert result.rule == "check"
    assert result.lines()[1].startswith("  its own check: 0 chain nodes, miscounted (after nested-zero:")


def test_no_progress_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shadowmmu.engine.executor.run_events", lambda *_: STOPPED)
    result = run_case("sweep", CASES["nested-zero"])
    assert result.broken_check.startswith("A14: event 0 (SET_STAGE2")
    assert result.rule == "check"
