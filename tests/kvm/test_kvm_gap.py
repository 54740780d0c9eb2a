"""A TLBI's sweep gives mmu_lock away between chunks, and L2 on another vCPU gets in, or the host.

What L2 maps behind the cursor stays, what it maps before it goes again: both are right, and every record
must say so. What the host takes must be gone when its notifier returns, swept yet or not.
"""

from __future__ import annotations

import pytest
from kvm_lab import Vm

from shadowmmu.compiled import INTERPRETED, U64
from shadowmmu.designs.dispatch import design_recorded
from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.engine.actions import host_address, touch_in_gap
from shadowmmu.engine.executor import Executor
from shadowmmu.errors import UndeterminedError
from shadowmmu.events.schema import GAP_TAKES
from shadowmmu.guest.vel2 import DONE
from shadowmmu.kvm import shadows
from shadowmmu.kvm.interleave import host_takes
from shadowmmu.kvm.layout import V_GAP
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


WIDE = f"tlbi 2 {1 << 46 | 3 << 44 | 15 << 39 | 0x80000:#x}"
"""RIPAS2E1IS from 2G: TG 4K, SCALE 3, NUM 15, which is 2^20 pages."""
SHAPES = {"whole VMID": "tlbi 4", "every VMID": "tlbi 5", "a range": WIDE}


def looked_at(vm: Vm) -> tuple[Judge, list[list[int]]]:
    """The judge's findings, and the leaves of MMU 1 in each gap."""
    judge, inside = Judge(), []

    def in_gap(run: Executor) -> None:
        judge.look_inside(run)
        inside.append(sorted(vm.leaves(1)))

    vm.executor.run(after_event=lambda run: judge.look(run, run.position - 1), in_gap=in_gap)
    return judge, inside


@pytest.mark.parametrize("design", CATALOGUE)
@pytest.mark.parametrize("tlbi", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("chunks", [1, 2])
def test_a_page_that_the_host_takes_in_the_gap_is_gone_before_the_unmap_goes_on(
    design: str, tlbi: str, chunks: int
) -> None:
    """The page at 4G is not swept yet, and no record knows it any more; it has to go all the same."""
    vm = machine(f"gap {chunks} punch 0x41004000 4k", tlbi, f"touch r {HIGH:#x}", design=design)
    judge, inside = looked_at(vm)
    assert len(inside) == 1, "the host got in"
    assert HIGH - 0x1000 not in inside[0]
    assert judge.found == {}
    assert vm.register(R_GAP_IPA) == 0
    assert HIGH in vm.leaves(1)


@pytest.mark.parametrize("design", CATALOGUE)
@pytest.mark.parametrize("tlbi", SHAPES.values(), ids=SHAPES)
def test_a_page_filled_in_the_gap_goes_off_the_record_with_the_rest_that_the_host_takes(
    design: str, tlbi: str
) -> None:
    """L2 fills what is yet to be swept, then the host takes something else: both in one gap."""
    vm = machine("gap 1 punch 0x42000000 4k", tlbi, f"touch r {HIGH:#x}", design=design)
    judge = Judge()

    def in_gap(run: Executor) -> None:
        run.state.vcpus[1, V_GAP : V_GAP + 3] = HIGH, 1, CODE
        assert touch_in_gap(run.state, 0) == DONE
        assert HIGH in vm.leaves(1)
        start = int(host_address(U64(0x41001000)))
        host_takes(run.state, U64(start), U64(start + 0x1000))
        run.state.vcpus[1, V_GAP + 1] = GAP_TAKES
        judge.look_inside(run)

    vm.executor.run(after_event=lambda run: judge.look(run, run.position - 1), in_gap=in_gap)
    assert judge.found == {}
    if design in EXACT:
        assert int(design_recorded(vm.state)) == len(vm.leaves(1))


@pytest.mark.parametrize("design", CATALOGUE)
def test_the_host_may_take_what_no_leaf_maps_in_the_gap(design: str) -> None:
    """Nothing is mapped there, so nothing is told to L0, and the rest of the sweep still finds its leaves."""
    vm = machine("gap 1 punch 0x42000000 4k", "tlbi 4", design=design)
    judge, inside = looked_at(vm)
    assert len(inside) == 1
    assert judge.found == {}
    assert not {LOW, HIGH} & set(vm.leaves(1))


def test_without_the_rest_of_the_range_a_record_that_forgets_first_is_refuted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Why L0 keeps it: each of these finds nothing, and the page stays mapped while the host has it."""
    if not INTERPRETED:
        pytest.skip("compiled, no function can be replaced")
    monkeypatch.setattr(shadows, "update_unfinished", lambda s, may_block, action: 0)
    refuted = set()
    for design in CATALOGUE:
        judge, _ = looked_at(machine("gap 1 punch 0x41004000 4k", "tlbi 4", design=design))
        if judge.worst is not None:
            assert judge.worst.rule == "A1"
            assert "tlbi 4" in "\n".join(judge.worst.lines)
            refuted.add(design)
    assert refuted == {
        "reverse_table", "spanning", "spanning_v2", "maple_2025", "pte_chains", "pa_keyed", "per_vm_tree"
    }  # fmt: skip
