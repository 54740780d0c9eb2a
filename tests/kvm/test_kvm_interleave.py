"""Faults while the host invalidates: they bounce, are counted, leave nothing, and succeed afterwards."""

from __future__ import annotations

import pytest
from kvm_lab import Vm

from shadowmmu.designs.dispatch import design_recorded
from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.errors import UndeterminedError
from shadowmmu.kvm.layout import K_HOLD_END, K_IN_PROGRESS, K_SEQ
from shadowmmu.machine.counters import FAULTS_BOUNCED, NOTIFIERS, NOTIFIERS_BLOCKABLE
from shadowmmu.verify.judge import Judge

START = (
    "start base 0 0\ns2 new 1\ncode\nwrite 0x41000000 64k\n"
    "map 0x80000000 0x41000000 64k 3 rw\ntouch w 0x80000000 4096 4\nmark start\n"
)
CONTROLS = {name for name, design in CATALOGUE.items() if not design.claims_safety}


def machine(*lines: str, design: str = "reverse_table") -> Vm:
    """L2 has touched four of its sixteen pages; then these lines."""
    return Vm(START + "\n".join(lines) + "\nmark end\n", design)


def judged(vm: Vm) -> set[str]:
    """Rules broken by the rest of the script, looked at after every event."""
    judge = Judge()
    vm.executor.run(after_event=lambda run: judge.look(run, run.position - 1))
    return {violation.rule for violation in judge.found.values()}


@pytest.mark.parametrize("design", CATALOGUE)
def test_faults_of_any_address_bounce_and_complete(design: str) -> None:
    lines = ("hold 0x41003000 4k 3", "mark held", "touch w 0x80008000 4096 2", "touch w 0x80000000 4096 4")
    vm = machine(*lines, design=design).to("start")
    recorded, sequence = int(design_recorded(vm.state)), vm.register(K_SEQ)
    vm.to("held")
    assert vm.register(K_IN_PROGRESS) == 1
    assert int(design_recorded(vm.state)) <= recorded
    vm.forget_log()
    assert judged(vm) <= (set() if design not in CONTROLS else {"A1", "A3"})
    assert vm.count(FAULTS_BOUNCED) == 3
    assert vm.register(K_IN_PROGRESS) == 0
    assert vm.register(K_SEQ) == sequence + 1 + (vm.count(NOTIFIERS) - 1)
    assert [touch["left"] for touch in vm.touches()] == [0, 0]
    shadow_maps = [row["addr"] for row in vm.log("s2map") if row["mmu"] == 1]
    assert len(shadow_maps) == len(set(shadow_maps))  # what bounced mapped nothing: nothing is mapped twice


def test_a_bounced_fault_records_nothing() -> None:
    vm = machine("race 0x41009000 4k", "mark armed", "touch w 0x80008000 4096 1").to("armed")
    sequence = vm.register(K_SEQ)
    vm.forget_log()
    vm.end()
    assert vm.count(FAULTS_BOUNCED) == 1
    assert vm.register(K_SEQ) == sequence + 1
    shadow = [(row["addr"], row["mmu"]) for row in vm.log("s2map") if row["mmu"]]
    assert shadow == [(0x8000_8000, 1)]
    aborts = [row["ipa"] for row in vm.log("kvm_guest_fault")]
    assert aborts == [0x8000_8000, 0x8000_8000]
    assert int(design_recorded(vm.state)) == len(vm.leaves(1))


@pytest.mark.parametrize("design", CATALOGUE)
def test_the_page_of_the_fault_itself_goes_under_its_hands(design: str) -> None:
    vm = machine("race 0x41008000 4k", "touch w 0x80008000 4096 1", design=design)
    assert judged(vm) == set()
    assert vm.count(FAULTS_BOUNCED) >= 1
    assert vm.touches()[-1]["left"] == 0


def test_a_hold_lasts_until_its_release_and_takes_the_pages_then() -> None:
    vm = machine("hold 0x41003000 4k 0 atomic", "mark held", "dontneed 0x41005000 4k", "release", "release")
    vm.to("held")
    blockable = vm.count(NOTIFIERS_BLOCKABLE)
    before = vm.register(K_SEQ)
    assert 0x8000_3000 not in vm.leaves(1)
    assert vm.log("unmap_gfn")[-1] == {"start": 0x41003, "end": 0x41004, "mayblock": 0}
    vm.end()
    assert vm.register(K_HOLD_END) == 0
    assert vm.register(K_SEQ) == before + 2
    assert vm.count(NOTIFIERS_BLOCKABLE) == blockable + 1
    assert vm.register(K_IN_PROGRESS) == 0


def test_without_a_release_the_guest_makes_no_progress() -> None:
    with pytest.raises(UndeterminedError, match="makes no progress"):
        machine("hold 0x41003000 4k", "touch w 0x80008000").end()


def test_a_second_hold_and_a_memslot_change_wait_for_the_first() -> None:
    vm = machine("hold 0x41003000 4k", "hold 0x41004000 4k", "mark second", "slot 0", "slot 1").to("second")
    assert vm.register(K_IN_PROGRESS) == 1
    assert vm.end().register(K_IN_PROGRESS) == 0


def test_what_the_host_cannot_take_is_announced_all_the_same() -> None:
    script = "start huge 0 0\ns2 new 1\ncode\nwrite 0x41000000 2M\nhold 0x41003000 4k\nrelease\n"
    vm = Vm(script + "race 0x41003000 4k\nmap 0x80000000 0x41000000 4k 3 rw\ntouch w 0x80000000\n")
    vm.end()
    assert vm.register(K_IN_PROGRESS) == 0
    assert vm.touches()[-1]["left"] == 0


@pytest.mark.parametrize("place", [1, 2, 5])
def test_a_fault_at_any_gap_of_a_sweep_is_a_fault_while_it_is_open(place: int) -> None:
    """The lock may be lost between chunks; a fault that gets in finds the invalidation open and bounces."""
    vm = machine(f"hold 0x41000000 64k {place}", "mark held", "touch w 0x80000000 4096 16", design="sweep")
    assert judged(vm) == set()
    assert vm.count(FAULTS_BOUNCED) >= place
    assert len(vm.leaves(1)) == 17
