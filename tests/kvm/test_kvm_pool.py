"""The pool of shadow MMUs: lookup, recycling, references, the wipe. Scripts C7 of the upstream reference."""

from __future__ import annotations

import random

import pytest
from kvm_lab import PAGE, Vm

from shadowmmu.engine.executor import Executor
from shadowmmu.kvm.layout import K_NEXT, V_HW_MMU, V_REQUESTS
from shadowmmu.machine.counters import RECYCLED, WIPES
from shadowmmu.pgtable.context import CNP, M_ENABLED, M_PENDING, M_REFCNT, M_VTCR, M_VTTBR
from shadowmmu.verify.judge import Judge

START = """mem 64M
    vcpus 2
    start base
    write 0x41000000 16k
    """


def tenant(vmid: int, vcpu: int = 0) -> str:
    """L1 makes a table for VMID ``vmid`` and runs L2 with it; ends at the mark ``VMID``."""
    at = f"@{vcpu} "
    return f"""{at}s2 new {vmid}
        {at}code
        {at}map {vmid << 32:#x} 0x41000000 16k 3 rw
        {at}touch r {vmid << 32:#x}
        mark t{vmid}
        """


def vmids(vm: Vm) -> list[int]:
    """VMID of each shadow MMU, 0 for one without tenant."""
    row = vm.state.mmus[1:, M_VTTBR].tolist()
    return [0 if vttbr & int(CNP) else vttbr >> 48 for vttbr in row]


def own(vm: Vm, vmid: int) -> int:
    """The shadow MMU of ``vmid``."""
    return vmids(vm).index(vmid) + 1


def test_the_fifth_tenant_of_four_takes_the_first_ones_place() -> None:
    vm = Vm(START + "".join(tenant(vmid) for vmid in (1, 2, 3, 4, 5)))
    for vmid, expected in ((1, [1, 0, 0, 0]), (2, [1, 2, 0, 0]), (4, [1, 2, 3, 4])):
        assert vmids(vm.to(f"t{vmid}")) == expected
    assert vm.register(K_NEXT) == 0
    assert vm.count(RECYCLED) == vm.count(WIPES) == 0
    vm.forget_log()
    vm.end()
    assert vmids(vm) == [5, 2, 3, 4]
    assert (vm.count(RECYCLED), vm.count(WIPES)) == (1, 1)
    assert vm.unmapped(1) == [(0, 1 << 40)]
    assert sorted(vm.leaves(1)) == [0x1_0000, 5 << 32], "nothing of the former tenant"
    assert not vm.state.mmus[1:, M_PENDING].any()
    vm.references()


@pytest.mark.parametrize(
    ("turn", "expected"),
    [("nop", [5, 6, 3, 4]), ("enter", [1, 5, 6, 4]), ("enter\npreempt", [1, 5, 6, 4])]
    + [(f"enter\n{turn}", [5, 6, 3, 4]) for turn in ("exit", "wfi", "preempt\nexit")],
)
def test_an_mmu_with_a_reference_is_skipped(turn: str, expected: list[int]) -> None:
    vm = Vm(START + tenant(1) + turn + "\n" + "".join(tenant(vmid, 1) for vmid in (2, 3, 4, 5, 6))).end()
    assert vmids(vm) == expected, "script C7 (b)"
    held = 1 in expected
    assert int(vm.state.mmus[1, M_REFCNT]) == held
    assert (int(vm.state.vcpus[0, V_HW_MMU]) == 1) == held


def test_every_vcpu_that_finds_a_recycled_mmu_is_asked_to_wipe_it() -> None:
    vm = Vm(START + tenant(1) + tenant(2) + "@1 s2 0x40100000 1\nmark found\n@1 touch r 0 8 0").to("found")
    vm.state.mmus[1, M_PENDING] = 1
    vm.end()
    assert vm.count(WIPES) == 1
    assert not vm.state.mmus[1, M_PENDING]
    assert vm.leaves(1) == {}


def test_a_request_is_void_once_another_vcpu_did_the_wipe() -> None:
    vm = Vm(START + tenant(1) + "mark late\ntouch r 0x100000000").to("late")
    vm.state.vcpus[0, V_REQUESTS] = 1
    vm.end()
    assert vm.count(WIPES) == 0
    assert vm.state.vcpus[0, V_REQUESTS] == 0


def test_the_whole_vtcr_is_part_of_the_key() -> None:
    vm = Vm(START + tenant(1) + "vtcr 0x80022559\ns2 0x40100000 1\ntouch r 0x100000000").end()
    assert vmids(vm) == [1, 1, 0, 0]
    assert vm.state.mmus[1, M_VTCR] != vm.state.mmus[2, M_VTCR]
    assert vm.source(1, 1 << 32) == vm.source(2, 1 << 32)


def test_with_stage_2_off_the_key_is_the_vmid_alone() -> None:
    script = """mem 64M
        vcpus 2
        start base
        codeat 0x40050000
        s2 new 1
        vm 0
        touch r 0x41000000
        vtcr 0x80022559
        s2 new 1
        touch r 0x41001000
        s2 new 2
        touch r 0x41000000
        vm 1
        touch r 0 8 0"""
    vm = Vm(script).end()
    assert vmids(vm) == [1, 2, 2, 0]
    assert vm.state.mmus[1:4, M_ENABLED].tolist() == [0, 0, 1]
    assert sorted(vm.leaves(1)) == [0x4005_0000, 0x4100_0000, 0x4100_1000]


def test_a_known_tenant_is_found_again_without_a_wipe() -> None:
    vm = Vm(START + tenant(1) + tenant(2) + "s2 0x40100000 1\ntouch r 0x100001000").end()
    assert vmids(vm) == [1, 2, 0, 0]
    assert vm.count(WIPES) == 0
    assert sorted(vm.leaves(1)) == [0x1_0000, 1 << 32, (1 << 32) + PAGE]


def random_script(seed: int) -> str:
    """vCPUs that change tables, VMIDs and HCR.VM at random, touch, invalidate and lose memory."""
    pick = random.Random(seed)
    roots = 6
    lines = [START, *(tenant(vmid) for vmid in range(1, roots + 1))]
    stage2 = [1, 1]
    for _ in range(60):
        vcpu = pick.randrange(2)
        at = f"@{vcpu} "
        root = 0x4010_0000 + 5 * PAGE * pick.randrange(roots)
        va = (pick.randrange(1, roots + 1) << 32) + pick.randrange(4) * PAGE
        switched = pick.randrange(2)
        does = pick.choice(
            (
                [f"{at}s2 {root:#x} {pick.randrange(1, 4)}", f"{at}touch r {va:#x}"],
                [f"{at}touch w {va:#x} 4096 2"],
                [f"{at}vm {switched}", f"{at}touch r {va:#x}"],
                [f"{at}tlbi {pick.choice((4, 5))}"],
                [f"dontneed {0x4100_0000 + pick.randrange(4) * PAGE:#x} 4k"],
            )
        )
        if " vm " in does[0]:
            stage2[vcpu] = switched
        lines += [f"codeat {0x1_0000 if stage2[vcpu] else 0x4005_0000:#x}", *does]
    return "\n".join(lines)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("design", ["sweep", "reverse_table"])
def test_references_and_tenancies_hold_whatever_happens(seed: int, design: str) -> None:
    vm = Vm(random_script(seed), design)
    judge = Judge()

    def look(executor: Executor) -> None:
        judge.look(executor, executor.position - 1)
        vm.references()
        live = [tuple(row) for row in vm.state.mmus[1:, [M_VTTBR, M_VTCR, M_ENABLED]].tolist()]
        live = [row for row in live if not row[0] & int(CNP)]
        keys = [row if row[2] else (row[0] >> 48, 0, 0) for row in live]
        assert len(set(keys)) == len(keys), "A8: two MMUs answer to one name"
        loaded = vm.state.vcpus[:, V_HW_MMU].tolist()
        assert not [m for m in loaded if m and vm.state.mmus[m, M_PENDING]], "A10"

    vm.executor.run(after_event=look)
    assert judge.worst is None, judge.worst
    assert vm.count(RECYCLED) > 2
    assert int(vm.state.mmus[:, M_REFCNT].sum()) == 0
