"""L0 held against the kernel: what is told of a difference, generated scenarios, shrinking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmmu.errors import InputError
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.formats.answer import Answer, parse_answer
from shadowmmu.formats.runs import KernelRun, bundled_run
from shadowmmu.lab.conform import live
from shadowmmu.lab.conform.compare import ConformReport, conform, conform_run
from shadowmmu.lab.conform.generate import GENERATION, random_script
from shadowmmu.lab.conform.live import LiveOptions, run_live
from shadowmmu.lab.conform.places import PLACES
from shadowmmu.lab.conform.precondition import broken_precondition
from shadowmmu.lab.conform.recorded import runs_of_folder
from shadowmmu.lab.conform.shrink import Lines, shrink
from shadowmmu.oracles.rig import Rig, RigRun
from shadowmmu.report.conform import conform_lines

RUN = "scenario/09-alias"


@dataclass(frozen=True)
class Changed:
    """A recorded run whose answer says something else."""

    run: KernelRun
    old: str
    new: str

    @property
    def name(self) -> str:
        """As the run's."""
        return self.run.name

    @property
    def ipa_limit_bits(self) -> int:
        """As the run's."""
        return self.run.ipa_limit_bits

    def scenario_text(self) -> str:
        """As the run's."""
        return self.run.scenario_text()

    def text(self) -> str:
        """The answer as printed, changed once."""
        import lzma

        text = lzma.decompress(self.run.answer_path.read_bytes()).decode()
        assert self.old in text
        return text.replace(self.old, self.new, 1)

    def answer(self) -> Answer:
        """The changed answer."""
        return parse_answer(self.text(), self.name)


def changed(old: str, new: str) -> Changed:
    return Changed(bundled_run(RUN), old, new)


def test_a_run_that_agrees_says_how_much_was_compared() -> None:
    conformity = conform_run(bundled_run(RUN))
    assert conformity.agrees
    assert conformity.compared["shadow dumps"] == 6
    assert conformity.compared["canonical dumps"] == 3
    assert conformity.compared["events"] > 100
    assert "write protection" not in conformity.compared


@pytest.mark.parametrize(
    ("old", "new", "aspect"),
    [
        ("128K 3   R W PXNUXN AF", "128K 3   R   PXNUXN AF", "shadow dumps"),
        ("4K 3   R W px ux  AF    ", "4K 3   R   px ux  AF    ", "canonical dumps"),
        ("mayblock=1", "mayblock=0", "events"),
        ("hxfar 0x8000", "hxfar 0x9000", "L2 aborts"),
        ("left=0", "left=1", "seen by L1"),
        ("RIG vmm rc=0\n", "RIG vmm rc=0\n[    1.000000] WARNING: at x+0x1/0x2\n", "warnings"),
    ],
)
def test_a_difference_is_seen_in_its_aspect_with_both_sides(old: str, new: str, aspect: str) -> None:
    conformity = conform_run(changed(old, new))
    assert aspect in {difference.aspect for difference in conformity.differences}
    difference = next(d for d in conformity.differences if d.aspect == aspect)
    assert difference.kernel != difference.model
    assert any(line.startswith("  kernel: ") for line in difference.lines())


def test_a_report_tells_the_first_difference_and_totals() -> None:
    report = conform([bundled_run(RUN), changed("mayblock=1", "mayblock=0")])
    lines = list(conform_lines(report))
    assert lines[0] == "1 of 2 runs agree with the kernel in all that they show."
    assert any("DIFFER" in line for line in lines)
    assert f"first difference, in {RUN}:" in lines
    data = report.to_json()
    assert (data["schema"], data["agrees"]) == ("shadowmmu.conform/1", False)
    assert data["compared"]["shadow dumps"] == 12
    assert ConformReport(()).agrees


def test_a_folder_of_loose_runs_takes_the_limit_from_the_boot_messages(tmp_path: Path) -> None:
    run = changed("left=0", "left=0")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.scenario").write_text(run.scenario_text())
    (tmp_path / "a" / "x.kernel.txt").write_text(run.text())
    (tmp_path / "no-answer.scenario").write_text(run.scenario_text())
    (found,) = runs_of_folder(tmp_path)
    assert (found.name, found.ipa_limit_bits) == ("a/x", 48)
    assert conform_run(found).agrees
    (tmp_path / "a" / "x.kernel.txt").unlink()
    with pytest.raises(InputError, match="expected manifest"):
        runs_of_folder(tmp_path)
    with pytest.raises(InputError, match="expected a folder"):
        runs_of_folder(tmp_path / "nowhere")


@given(st.integers(0, 1 << 32), st.integers(0, 1 << 16))
def test_generated_scenarios_are_of_the_language_and_keep_the_precondition(seed: int, number: int) -> None:
    script = random_script(seed, number, 30)
    assert broken_precondition(parse_scenario(script, "generated")) == ""
    assert script == random_script(seed, number, 30)


def test_generated_scenarios_have_every_backing_and_keep_l1_out_of_what_the_host_takes() -> None:
    seen = set()
    for number in range(80):
        lines = [line.split() for line in random_script(2, number, 40).splitlines()]
        backing = next(words[1] for words in lines if words[0] == "start")
        seen.add(backing)
        for name, start, *_rest in (w for w in lines if w[0] in ("dontneed", "munmap", "mprotect")):
            assert int(start, 16) >= min(PLACES[backing].code, PLACES[backing].data), name
    assert seen == set(PLACES)


def test_generated_scenarios_do_not_migrate_what_was_mapped_anew_in_a_huge_page() -> None:
    migrated = 0
    for number in range(40):
        lines = [line.split() for line in random_script(4, number, 60).splitlines()]
        if ["start", "thp"] not in [words[:2] for words in lines]:
            continue
        anew: set[int] = set()
        for words in (words for words in lines if words[0] in ("mmap", "migrate")):
            start, size = int(words[1], 16), int(words[2], 16)
            blocks = set(range(start >> 21, (start + size - 1 >> 21) + 1))
            migrated += words[0] == "migrate"
            assert words[0] == "mmap" or not blocks & anew
            anew |= blocks if words[0] == "mmap" else set()
    assert migrated


def test_generated_scenarios_let_vcpus_take_turns() -> None:
    scripts = [random_script(3, number, 60).splitlines() for number in range(40)]
    several = [script for script in scripts if any(line.startswith("vcpus") for line in script)]
    words = {line.split()[0] for script in several for line in script}
    assert {"vcpu", "enter", "preempt", "exit", "wfi", "resume", "reset"} <= words
    for script in scripts:
        for at in (n for n, line in enumerate(script) if line == "preempt"):
            back = [n for n, line in enumerate(script) if line.startswith("vcpu ") and n > at][1]
            assert not any(line.endswith(" 300") for line in script[at:back]), "the rig would let it run"
    assert not any(line.split()[0] in ("vcpu", "enter") for s in scripts if s not in several for line in s)


def test_a_tlbi_of_one_pe_is_enough_for_one_vcpu_alone() -> None:
    lines = "unmap 0x80000000 4k 3\ntlbi 7 0x80000\nmap 0x80000000 0x41008000 4k 3 rw\n"
    assert broken_precondition(parse_scenario(BEGIN + lines, "x")) == ""
    several = BEGIN.replace("start", "vcpus 2\nstart")
    assert "changes without a TLBI" in broken_precondition(parse_scenario(several + lines, "x"))
    other = lines.replace("tlbi 7 0x80000", "vcpu 1\ns2 0x40100000 1\ntlbi 0 0x80000\nvcpu 0")
    assert broken_precondition(parse_scenario(several + other, "x")) == ""
    assert "L2 runs before" in broken_precondition(parse_scenario(several + "vcpu 1\nenter\n", "x"))
    reset = "reset\ntouch r 0x80000000\n"
    assert "L2 runs before" in broken_precondition(parse_scenario(several + reset, "x"))


def test_generated_scenarios_make_move_and_delete_memslots_and_log_in_every_manner() -> None:
    scripts = [random_script(1, number, 60) for number in range(120)]
    lines = [line for script in scripts for line in script.splitlines()]
    words = {line.split()[0] for line in lines}
    assert {"memslot", "getlog", "clearlog", "harvest", "eager"} <= words
    assert {"manual", "manual 1", "ring 256", "ring 256 bitmap"} <= set(lines)
    assert not any("eager 4k" in script and "huge-pud" in script for script in scripts)
    told = [
        [line for line in script.splitlines() if line.split()[0] in ("manual", "ring")] for script in scripts
    ]
    assert ["manual 1", "ring 256"] in told
    made = [line.split() for line in lines if line.startswith("memslot")]
    assert {len(line) for line in made} == {2, 5, 6}
    assert {line[5] for line in made if len(line) == 6} == {"d", "r", "rd"}
    places = [{line.split()[2] for line in s.splitlines() if line.startswith("memslot 1 ")} for s in scripts]
    assert any(len(place) > 1 for place in places)
    guest = [int(line.split()[2], 16) for line in lines if line.startswith("map ")]
    assert any(canonical_ipa >= 0xC000_0000 for canonical_ipa in guest)


BEGIN = "mem 64M\nstart base 0 0\ns2 new 1\nmap 0x80000000 0x41000000 64k 3 rw\n"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("map 0x80000000 0x41008000 4k 3 rw\n", "the output of 0x80000000-0x80001000 changes without a TLBI"),
        ("unmap 0x80000000 4k 3\nmap 0x80000000 0x41008000 4k 3 rw\n", "changes without a TLBI"),
        ("unmap 0x80000000 4k 3\ntlbi 0 0x80001\nmap 0x80000000 0x41008000 4k 3 rw\n", "without a TLBI"),
        ("unmap 0x80000000 4k 3\ntlbi 0 0x80000\nmap 0x80000000 0x41008000 4k 3 rw\n", ""),
        ("unmap 0x80000000 4k 3\ntlbi 2 0x400000080000\nmap 0x80000000 0x41008000 4k 3 rw\n", ""),
        ("unmap 0x80000000 64k 3\ntlbi 4 0\nmap 0x80000000 0x41000000 2M 2 rw\n", ""),
        ("map 0x80000000 0x41000000 64k 3 r\n", ""),
        ("s2 new 1\n", "VMID 1 changes its table"),
        ("s2 0x40103000 2\n", "no root table is there"),
        ("munmap 0x41000000 4k\nnop\n", "the guest's memory is not all there"),
        ("munmap 0x41000000 4k\nmmap 0x41000000 4k\nnop\n", ""),
        ("slot 0\nnop\nslot 1\n", "the guest's memory is not all there"),
        ("slot 0\n", "the memslot is left out"),
        ("slot 0\nlog 1\nslot 1\n", "the memslot is left out"),
        ("getlog\n", "memslot 0 logs nothing"),
        ("log 1\nslot 0\nslot 1\ngetlog\nlog 0\n", ""),
        ("memslot 1 0x90000000 1M 0x41000000 r\ngetlog 1\n", "memslot 1 logs nothing"),
        ("memslot 1 0x90000000 1M 0x41000000 rd\ngetlog 1\n", ""),
    ],
)
def test_the_precondition_is_what_the_architecture_asks(lines: str, told: str) -> None:
    said = broken_precondition(parse_scenario(BEGIN + lines, "x"))
    assert told in said
    assert bool(told) == bool(said)


def test_l2_runs_only_after_l1_wrote_its_stage_2() -> None:
    scenario = parse_scenario("start base\ntouch r 0x80000000\n", "x")
    assert broken_precondition(scenario) == "x:2: touch r 0x80000000: L2 runs before L1 wrote VTTBR_EL2"


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=24), st.sets(st.integers(0, 9), min_size=1, max_size=3)
)
def test_a_shrunk_script_fails_and_no_line_of_it_can_go(numbers: list[int], needed: set[int]) -> None:
    lines = [str(number) for number in [*numbers, *needed]]
    tried: list[Lines] = []

    def fails(candidates: Sequence[Lines]) -> list[bool]:
        tried.extend(candidates)
        return [needed <= {int(line) for line in candidate} for candidate in candidates]

    smallest = shrink(lines, fails)
    assert sorted(smallest) == sorted(str(number) for number in needed)
    assert len(tried) == len(set(tried))


class FakeRig(Rig):
    """Answers as the model would, but that a script with a ``poke`` of 7 leaves one access undone."""

    def run_many(self, scripts: object) -> list[RigRun]:
        """The answers to scripts by name."""
        assert isinstance(scripts, dict)
        return [RigRun(name, text, "\nVMM done\n", 40) for name, text in scripts.items()]


def test_live_runs_shrink_the_first_difference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    agreeing = conform_run(bundled_run(RUN))
    differing = conform_run(changed("left=0", "left=1"))

    def compare(run: RigRun) -> object:
        found = differing if "0x41000007" in run.script or "peek 0x41000008" in run.script else agreeing
        return replace(found, name=run.name)

    def script(seed: int, number: int, steps: int) -> str:
        return BEGIN + "nop\n" * 5 + ("peek 0x41000008\n" if number == 2 else "") + "nop\n" * 6

    monkeypatch.setattr(live, "compare_live", compare)
    monkeypatch.setattr(live, "random_script", script)
    found = run_live(FakeRig(tmp_path), LiveOptions(runs=4))
    assert [run.agrees for run in found.report.runs] == [True, True, False, True]
    assert found.witness is not None
    assert found.witness.script == "mem 64M\nstart base 0 0\npeek 0x41000008\n"
    saved = found.witness.save(tmp_path / "out")
    assert [path.suffix for path in saved] == [".scenario", ".txt", ".txt"]
    assert found.to_json()["generation"] == GENERATION
    assert found.to_json()["witness"] == found.witness.script.splitlines()
    assert run_live(FakeRig(tmp_path), LiveOptions(runs=2)).witness is None
