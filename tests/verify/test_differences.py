"""Differences of Linux 7.3.4 from the architecture: both answers, their consequences, their recorded runs."""

from __future__ import annotations

import lzma
import re
from functools import cache
from pathlib import Path

import pytest

from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.errors import InputError
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.formats.runs import bundled_run, bundled_runs
from shadowmmu.kvm.differences import SWITCHES
from shadowmmu.lab.compare import difference_scenarios
from shadowmmu.lab.conform.compare import Run, conform_run
from shadowmmu.lab.conform.recorded import runs_of_folder
from shadowmmu.machine.log import FLUSH
from shadowmmu.machine.state import R_LOG_TOP
from shadowmmu.verify.differences import DIFFERENCES, NAMES, Shown, chosen, markdown_table, show_difference
from shadowmmu.verify.tlb_witness import (
    LOST_DIRTY_PAGE,
    NEVER_MAPPED,
    STALE_TRANSLATION,
    USE_AFTER_UNMAP,
    CpuTlb,
    Witness,
)

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "data" / "difference_runs"
KERNEL_RUNS = Path("src", "shadowmmu", "data", "kernel_runs")
BOTH = ("dirty-log-flush", "nested-ipa-size")
CONSEQUENCES = {
    "dirty-log-flush": {LOST_DIRTY_PAGE},
    "nested-ipa-size": {NEVER_MAPPED, USE_AFTER_UNMAP},
    "tlbi-beyond-limit": {"host warning"},
    "at-recycled-mmu": {"wrong answer"},
    "at-replay": {"no progress"},
    "at-pan": {"wrong answer"},
}
ASPECTS = {
    "dirty-log-flush": {"TLB invalidations"},
    "nested-ipa-size": {"shadow dumps", "events", "L2 aborts", "seen by L1"},
    "tlbi-beyond-limit": {"events", "TLB invalidations", "warnings"},
}
SUSPICIONS = {
    "dirty-log-flush": "suspicion/write-protect-without-shadow-flush",
    "nested-ipa-size": "suspicion/nested-ipa-above-t0sz",
    "tlbi-beyond-limit": "suspicion/ipas2-tlbi-beyond-limit",
}
START = "mem 64M\nstart base 0 0\ns2 new 1\ncode\nwrite 0x41000000 64k\nmap 0x80000000 0x41000000 64k 3 rw\n"


@cache
def shown(name: str) -> Shown:
    """A difference, run both ways."""
    texts = {source.name: source.text for source in difference_scenarios()}
    item = next(item for item in DIFFERENCES if item.name == name)
    return show_difference(item, parse_scenario(texts[item.scenario], item.scenario))


def watched(text: str, bits: int = 40, as_architecture: tuple[str, ...] = ()) -> tuple[Executor, Witness]:
    """A scenario with both TLBs beside it."""
    machine = Machine(ipa_limit_bits=bits, logged=True, tlb_logged=True, as_architecture=as_architecture)
    executor, witness = Executor(parse_scenario(text, "watched"), "sweep", machine), Witness()
    executor.run(after_event=witness.look)
    return executor, witness


def kinds(witness: Witness) -> set[str]:
    return {consequence.kind for consequence in witness.found}


def differing(run: Run, *names: str) -> set[str]:
    """Aspects in which a recorded run differs with some switches on."""
    return {difference.aspect for difference in conform_run(run, names).differences}


@pytest.mark.parametrize("name", NAMES)
def test_a_difference_has_its_consequence_under_linux_alone(name: str) -> None:
    result = shown(name)
    assert {consequence.kind for consequence in result.linux.consequences} == CONSEQUENCES[name]
    assert not result.architecture.consequences
    assert result.as_declared


def test_pages_written_after_arming_and_missing_from_the_harvest_are_named() -> None:
    lost = [c.text for c in shown("dirty-log-flush").linux.consequences]
    first, again = "line 12, getlog", "line 14, getlog"
    assert [(text.split(":")[0], first in text, again in text) for text in lost] == [
        ("canonical 0x41000000", True, False),
        ("canonical 0x41001000", True, False),
        ("canonical 0x41001000", False, True),
    ]


def test_the_alias_reaches_memory_before_and_after_l1_took_it_back() -> None:
    before, after = shown("nested-ipa-size").linux.consequences
    assert "0x8080000000 reaches canonical 0x41000000" in before.text
    assert "0x8080000000 still reaches canonical 0x41000000" in after.text


def test_ats_answer_as_the_architecture_by_their_switches() -> None:
    answered = {name: shown(name).architecture.lines[-1].split()[-1] for name in NAMES if name[:3] == "at-"}
    assert answered == {"at-recycled-mmu": "0xb0b", "at-replay": "0xa09", "at-pan": "0x81f"}
    (wrong,) = shown("at-recycled-mmu").linux.consequences
    assert wrong.text.endswith("no TLB may hold a translation of it")
    assert "no TLB" not in shown("at-pan").linux.consequences[0].text


def test_the_table_the_switches_and_the_scenarios_are_one_list() -> None:
    assert tuple(SWITCHES) == NAMES
    assert sorted(SWITCHES.values()) == list(range(len(NAMES)))
    assert {source.name for source in difference_scenarios()} == {item.scenario for item in DIFFERENCES}
    assert markdown_table() in (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")


def test_what_was_seen_names_its_recording() -> None:
    for item in DIFFERENCES:
        words = re.findall(r"[a-z0-9_-]+(?:/[a-z0-9_-]+)+", item.seen)
        assert words, item.name
        for word in words:
            folder, name = ROOT / Path(word).parent, Path(word).name
            bundled = ROOT / KERNEL_RUNS / Path(word).parent
            assert [*folder.glob(f"{name}*"), *bundled.glob(f"{name}.kernel.txt*")], word


@pytest.mark.parametrize(("name", "walks"), [("at-s12-bad-vtcr", 8557), ("at-s12-no-memslot", 279_661)])
def test_the_recorded_ats_that_never_ended(name: str, walks: int) -> None:
    log = lzma.decompress((ROOT / "rig" / "recorded" / "at" / f"{name}.kernel.txt.xz").read_bytes()).decode()
    assert "Killed" in log
    assert "VMM done" not in log
    assert "> echo passed" not in log
    assert f"{walks} walk_nested\n" in log
    assert log.count("\npar ") == 1  # the AT before
    (item,) = (item for item in DIFFERENCES if item.name == "at-replay")
    assert f"{walks:,}" in item.seen


def test_names_of_differences() -> None:
    assert chosen(["at-pan", "nested-ipa-size"]) == ("nested-ipa-size", "at-pan")
    assert chosen(["all"]) == NAMES
    with pytest.raises(InputError, match="read difference 'sweep'"):
        chosen(["at-pan", "sweep"])


@pytest.mark.parametrize("name", SUSPICIONS)
def test_recorded_suspicions_differ_where_the_switch_is_and_nowhere_else(name: str) -> None:
    run = bundled_run(SUSPICIONS[name])
    assert differing(run) == set()
    assert differing(run, name) == ASPECTS[name]
    assert differing(run, *(other for other in NAMES if other != name)) == set()


@pytest.mark.parametrize("run", runs_of_folder(RECORDED), ids=lambda run: run.name)
def test_recorded_scenarios_of_the_differences(run: Run) -> None:
    conformity = conform_run(run)
    assert conformity.agrees
    assert conformity.compared["TLB invalidations"] > 0
    assert differing(run, run.name) == ASPECTS[run.name]
    assert differing(run, *(other for other in NAMES if other != run.name)) == set()


def test_the_recorded_scenarios_are_the_bundled_ones_with_probes() -> None:
    bundled = {source.name.partition("/")[2]: source.text for source in difference_scenarios()}
    for run in runs_of_folder(RECORDED):
        lines = run.scenario_text().splitlines()
        kept = [line for line in lines if line.split()[0] not in ("w", "trace")]
        assert kept == bundled[run.name].splitlines()


def test_both_tlbs_find_nothing_in_recorded_runs_but_where_linux_differs() -> None:
    expected = {
        "scenario/12-dirtylog-slot": {LOST_DIRTY_PAGE},
        SUSPICIONS["dirty-log-flush"]: {LOST_DIRTY_PAGE},
        SUSPICIONS["nested-ipa-size"]: {NEVER_MAPPED, USE_AFTER_UNMAP},
    }
    named = [run for run in bundled_runs() if run.name.split("/")[0] in ("hello", "scenario", "suspicion")]
    runs = [run for run in named if "granule" not in run.scenario_text()]  # the machine here has 4K pages
    assert len(runs) > 15
    for run in runs:
        text, bits = run.scenario_text(), min(run.ipa_limit_bits, 42)
        assert kinds(watched(text, bits)[1]) == expected.get(run.name, set()), run.name
        if run.name in expected:
            assert kinds(watched(text, bits, BOTH)[1]) == set()


def test_a_missing_invalidation_is_seen() -> None:
    script = START + "touch w 0x80000000 4096 4\ndontneed 0x41001000 4k\ntouch r 0x80000000 4096 4\n"
    executor, witness = watched(script)
    assert not witness.found
    deaf = CpuTlb()
    for row in executor.state.log[: int(executor.state.regs[R_LOG_TOP])].tolist():
        if row[0] != FLUSH:
            deaf.row(executor, row)
    assert {c.kind for c in deaf.found} == {STALE_TRANSLATION}
    told = "".join(c.text for c in deaf.found)
    assert all(f"nested IPA {0x80000000 + 4096 * page:#x}: L2's read" in told for page in range(4))


def test_what_l1_has_not_invalidated_may_still_be_reached() -> None:
    script = START + "touch w 0x80000000 4096 2\nunmap 0x80000000 4k 3\ntouch w 0x80000000 4096 2\n"
    executor, witness = watched(script)
    assert not witness.found
    witness.guest.invalidated(executor.state, 0, 0, 0x80001)  # another page
    witness.guest.touched(executor, len(executor.scenario.events) - 1, 2)
    assert not witness.found
    witness.guest.invalidated(executor.state, 0, 0, 0x80000)
    witness.guest.touched(executor, len(executor.scenario.events) - 1, 2)
    assert [(c.kind, "0x80000000 still reaches canonical 0x41000000" in c.text) for c in witness.found] == [
        (USE_AFTER_UNMAP, True)
    ]


def test_a_page_that_something_else_marks_is_not_lost() -> None:
    """L1 writes the page that L2 wrote unheard: the bitmap has it."""
    script = START + "touch w 0x80000000 4096 1\nlog 1\ntouch w 0x80000000\npoke 0x41000000 1\ngetlog\n"
    assert LOST_DIRTY_PAGE not in kinds(watched(script)[1])
    assert LOST_DIRTY_PAGE in kinds(
        watched(script.replace("poke", "peek").replace(" 1\ngetlog", "\ngetlog"))[1]
    )
