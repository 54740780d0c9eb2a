"""A TLBI's sweep gives mmu_lock away between chunks, and L2 on another vCPU gets in.

What it maps behind the cursor stays, what it maps before it goes again: both are right, and every record
must say so.
"""

from __future__ import annotations

import pytest
from kvm_lab import Vm

from shadowmmu.designs.dispatch import design_recorded
from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.errors import UndeterminedError
from shadowmmu.machine.counters import RESCHEDULES
from shadowmmu.machine.state import R_GAP, R_GAP_IPA, R_GAP_MMU
from shadowmmu.verify.judge import Judge

START = (
    "vcpus 2\nstart base 0 0\ns2 new 1\ncode\nwrite 0x41000000 64k\n"
    "map 0x80000000 0x41000000 16k 3 rw\nmap 0x100000000 0x41004000 16k 3 rw\n"
    "touch w 0x80000000 4096 4\ntouch w 0x100000000 4096 4\nmark start\n"
)
LOW, HIGH, CODE = 0x8000_1000, 0x1_0000_1000, 0x1_0000
BITS = 39
EXACT = ("reverse_table", "pte_chains", "pa_keyed")


def machine(*lines: str, design: str = "sweep") -> Vm:
    """L2 has touched four pages at 2G and four at 4G."""
    return Vm(START + "\n".join(lines) + "\nmark end\n", design, ipa_limit_bits=BITS)


@pytest.mark.parametrize("design", CATALOGUE)
@pytest.mark.parametrize("tlbi", ["tlbi 4", "tlbi 5"])
@pytest.mark.parametrize("chunks", [1, 3, 5])
def test_a_fault_in_the_gap_stays_behind_the_cursor(design: str, tlbi: str, chunks: int) -> None:
    """Chunks are of 1G: page 2G is behind the cursor after three, page 4G after five."""
    vm = machine(
        f"gap {chunks} w {LOW:#x}", tlbi, "mark swept", f"gap {chunks} w {HIGH:#x}", tlbi, design=design
    )
    judge = Judge()
    vm.executor.run(after_event=lambda run: judge.look(run, run.position - 1))
    assert judge.found == {}
    assert (vm.register(R_GAP), vm.register(R_GAP_MMU), vm.register(R_GAP_IPA)) == (0, 0, 0)
    assert set(vm.leaves(1)) == ({CODE, HIGH} if chunks == 5 else {CODE})
    if design in EXACT:
        assert int(design_recorded(vm.state)) == len(vm.leaves(1))


def test_the_gap_is_where_the_scenario_says() -> None:
    vm = machine(f"gap 3 w {LOW:#x}", "mark armed", "tlbi 4", "mark swept", f"touch w {HIGH:#x}").to("armed")
    vm.forget_log()
    before = vm.count(RESCHEDULES)
    vm.to("swept")
    assert vm.unmapped() == [(0, 1 << BITS), (3 << 30, (1 << BITS) - (3 << 30))]
    assert vm.count(RESCHEDULES) - before == (1 << BITS - 30) - 1
    assert set(vm.leaves(1)) == {CODE, LOW}
    vm.references()


def test_a_notifier_takes_what_was_filled_in_the_gap() -> None:
    for design in CATALOGUE:
        vm = machine(f"gap 4 w {LOW:#x}", "tlbi 4", "punch 0x41001000 4k", design=design).end()
        assert LOW not in vm.leaves(1)


def test_a_tlbi_with_too_few_chunks_has_no_such_gap() -> None:
    vm = machine(f"gap 512 w {LOW:#x}", "tlbi 4", "mark first", "tlbi 4").to("first")
    assert vm.register(R_GAP) == 0
    assert vm.leaves(1) == {}
    assert vm.end().leaves(1) == {}


def test_of_several_wipes_the_first_has_the_gap() -> None:
    other = ("s2 new 2", "code", "map 0x80000000 0x41008000 4k 3 rw", "touch w 0x80000000", "s2 0x40100000 1")
    vm = machine(*other, f"gap 3 w {LOW:#x}", "tlbi 5").end()
    assert set(vm.leaves(1)) == {CODE, LOW}
    assert vm.leaves(2) == {}


def test_l2_that_makes_no_progress_in_the_gap_ends_the_run() -> None:
    with pytest.raises(UndeterminedError, match="makes no progress"):
        machine(f"gap 3 w {LOW:#x}", "hold 0x41008000 4k", "tlbi 4").end()


def test_a_fault_of_l1s_own_table_in_the_gap_is_l1s() -> None:
    vm = machine("unmap 0x80001000 4k 3", f"gap 3 w {LOW:#x}", "tlbi 4").end()
    assert len(vm.log("inject_s2")) == 1
    assert set(vm.leaves(1)) == {CODE}
