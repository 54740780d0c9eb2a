"""vCPUs that are preempted, wait, leave and are reset: what each keeps, and who wipes a recycled MMU."""

from __future__ import annotations

import random

import pytest
from kvm_lab import PAGE, Vm

from shadowmmu.arch.registers import VTTBR_EL2
from shadowmmu.compiled import U64
from shadowmmu.engine.executor import Executor
from shadowmmu.errors import UndeterminedError
from shadowmmu.kvm.layout import (
    BOOTED,
    IN_GUEST,
    IN_L2,
    IN_WFI,
    IS_OUT,
    NO_MMU,
    V_HW_MMU,
    V_REQUESTS,
    V_STATE,
    V_VTTBR,
)
from shadowmmu.machine.counters import LEAVES_MAPPED, LOCK_WRITE, MMUS_LEAKED, RECYCLED, TABLES_FREED, WIPES
from shadowmmu.pgtable.context import CNP, M_LEAVES, M_PENDING, M_REFCNT, M_VTTBR
from shadowmmu.pgtable.unmap import unmap_range
from shadowmmu.verify.judge import Judge

NESTED = 0x8000_0000
DATA = 0x4100_0000
START = f"""mem 64M
    vcpus 2
    start base
    write {DATA:#x} 16k
    """
TENANT = f"code\nmap {NESTED:#x} {DATA:#x} 16k 3 rw\ntouch w {NESTED:#x} 4096 4\n"


def tenants(*vmids: int) -> str:
    """L1 makes a table for each VMID, one after the other, and L2 fills it."""
    return "".join(f"s2 new {vmid}\n{TENANT}" for vmid in vmids)


def root(nth: int) -> int:
    """Canonical IPA of the n-th table root that L1 takes: five tables a tenant."""
    return 0x4010_0000 + (nth - 1) * 5 * PAGE


def holds(vm: Vm, vcpu: int) -> tuple[int, int]:
    """The vCPU's context, and its state but for having booted."""
    return int(vm.state.vcpus[vcpu, V_HW_MMU]), int(vm.state.vcpus[vcpu, V_STATE] & ~BOOTED)


NONE = int(NO_MMU)
INSIDE = int(IN_L2 | IN_GUEST)
AWAY = int(IN_L2 | IS_OUT)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ("enter", (1, INSIDE)),
        ("enter\npreempt", (1, AWAY)),
        ("enter\npreempt\npreempt", (1, AWAY)),
        ("enter\nwfi", (NONE, AWAY | int(IN_WFI))),
        ("enter\npreempt\nwfi", (NONE, AWAY | int(IN_WFI))),
        ("enter\nwfi\nresume", (1, INSIDE)),
        ("enter\nexit", (NONE, AWAY)),
        ("enter\nexit\npreempt", (NONE, AWAY)),
        ("enter\npreempt\nexit", (NONE, AWAY)),
        ("enter\nexit\nload", (1, int(IN_L2))),
        ("enter\nexit\nload\npreempt", (1, AWAY)),
        ("enter\nexit\nresume", (1, INSIDE)),
        ("enter\nresume", (1, INSIDE)),
        ("preempt", (0, int(IS_OUT))),
        ("wfi", (NONE, int(IS_OUT | IN_WFI))),
        ("exit", (NONE, int(IS_OUT))),
        ("exit\nload", (0, 0)),
    ],
)
def test_what_a_vcpu_holds_after_each_turn(turns: str, expected: tuple[int, int]) -> None:
    vm = Vm(START + tenants(1) + turns).end()
    context, state = holds(vm, 0)
    assert (context, state & ~(int(IN_GUEST) if not state & int(IN_L2) else 0)) == expected
    assert int(vm.state.mmus[1, M_REFCNT]) == (expected[0] == 1)


def test_l1_works_on_after_whatever_its_vcpu_did() -> None:
    for turn in ("enter", "enter\npreempt", "enter\nwfi", "enter\nexit", "wfi", "preempt", "exit"):
        vm = Vm(START + tenants(1) + f"{turn}\npoke {DATA:#x} 0x77\nenter\ntouch r {NESTED:#x} 4096 4").end()
        assert vm.guest_word(DATA) == 0x77
        assert holds(vm, 0) == (0, int(IN_GUEST)) or holds(vm, 0) == (0, 0)
        assert vm.touches()[-1]["left"] == 0
        vm.references()


def test_an_entry_that_l1_does_not_map_ends_in_l1() -> None:
    for script in (
        "s2 new 1\nenter",
        "s2 new 1\ncode\nenter\npreempt\n@1 s2 0x40100000 1\n@1 unmap 0x10000 4k 3\n@1 tlbi 4\nresume",
    ):
        vm = Vm(START + script).end()
        assert int(vm.state.vcpus[0, V_STATE] & IN_L2) == 0
        assert vm.log("inject_s2")[-1]["far"] == 0x1_0044, "where L2 stays in its page"
        vm.references()


def test_an_entry_without_progress_is_told() -> None:
    for turn in ("enter", "resume"):
        before = "vm 0\n" if turn == "enter" else "codeat 0x40050000\nvm 0\nenter\nexit\nslot 0\n"
        vm = Vm(START + f"s2 new 1\n{before}mark here\n{turn}").to("here")
        with pytest.raises(UndeterminedError, match="no progress"):
            vm.end()


def test_l1_boots_on_each_vcpu_once() -> None:
    vm = Vm(START + "nop\nmark one\nvcpu 1\nnop\nnop\nmark two").to("one")
    assert [bool(state & int(BOOTED)) for state in vm.state.vcpus[:, V_STATE].tolist()] == [True, False]
    pool = vm.register(64)
    vm.end()
    assert vm.state.vcpus[:, V_STATE].tolist()[1] & int(BOOTED)
    assert vm.register(64) == pool, "the tables that L1 has given out stay its own"


def test_each_vcpu_has_its_own_stage_2_registers() -> None:
    vm = Vm(START + "s2 new 1\nvcpu 1\ns2 new 2\n").end()
    assert [vttbr >> VTTBR_EL2.lsb("VMID") for vttbr in vm.state.vcpus[:, V_VTTBR].tolist()] == [1, 2]


def both_loaded() -> tuple[Vm, int]:
    """Both vCPUs stand in L2 with one VTTBR, out; its MMU was recycled meanwhile and both load another."""
    script = START + "s2 new 9\ncode\nenter\nexit\n@1 s2 0x40100000 9\n@1 enter\n@1 exit\n"
    script += "mark out\nload\n@1 load\nmark loaded\n@1 resume\nmark second\nresume\nmark both"
    vm = Vm(script).to("out")
    for mmu, vmid in enumerate((9, 1, 2, 3), 1):  # every place is taken by another tenant, with a leaf of it
        vm.state.mmus[mmu, M_VTTBR] = (100 + vmid) << 48
    vm.to("loaded")
    mmu = int(vm.state.vcpus[0, V_HW_MMU])
    return vm, mmu


def test_every_vcpu_that_loads_a_recycled_mmu_waits_for_its_wipe() -> None:
    vm, mmu = both_loaded()
    assert vm.count(RECYCLED) == 1
    assert vm.state.vcpus[:, V_HW_MMU].tolist() == [mmu, mmu]
    assert vm.state.vcpus[:, V_REQUESTS].tolist() == [1, 1], "each is asked"
    assert int(vm.state.mmus[mmu, M_REFCNT]) == 2
    assert vm.state.mmus[mmu, M_PENDING]
    assert vm.count(WIPES) == 0
    vm.to("second")
    assert vm.count(WIPES) == 1
    assert not vm.state.mmus[mmu, M_PENDING]
    assert holds(vm, 0) == (mmu, int(IN_L2)), "the other still waits"
    vm.to("both")
    assert vm.count(WIPES) == 1, "its request is void"
    assert holds(vm, 0) == holds(vm, 1) == (mmu, INSIDE)
    assert vm.state.vcpus[:, V_REQUESTS].tolist() == [0, 0]
    vm.references()


def test_a_wipe_that_lost_the_lock_may_be_finished_by_another_vcpu() -> None:
    vm, mmu = both_loaded()
    vm.forget_log()
    half = U64(1 << 39)
    unmap_range(vm.state, mmu, U64(0), half, True)  # vCPU 0 is here when it loses mmu_lock ...
    vm.to("second")  # ... and the other one wipes it all, and enters
    assert not vm.state.mmus[mmu, M_PENDING]
    unmap_range(vm.state, mmu, half, U64(1 << 40), True)
    vm.to("both")
    judge = Judge()
    judge.look(vm.executor, vm.executor.position - 1)
    assert judge.worst is None, judge.worst
    assert vm.unmapped(mmu) == [(0, 1 << 39), (0, 1 << 40), (1 << 39, 1 << 39)]


def test_a_notifier_before_the_wipe_clears_the_former_tenants_leaves() -> None:
    script = START + tenants(1) + "s2 new 9\ncode\nenter\nexit\nmark out\nload\nmark loaded\n"
    for design in ("sweep", "reverse_table", "spanning"):
        vm = Vm(script + f"dontneed {DATA:#x} 16k\nmark taken\nresume", design).to("out")
        vm.state.mmus[2:, M_VTTBR] = [(100 + n) << 48 for n in range(3)]
        vm.state.regs[41] = 0  # the round robin stands at the first tenant's place
        vm.to("loaded")
        assert int(vm.state.vcpus[0, V_HW_MMU]) == 1
        assert sorted(vm.sizes(1)) == [NESTED + n * PAGE for n in range(4)], "not wiped yet"
        vm.to("taken")
        assert vm.sizes(1) == {}, design
        judge = Judge()
        judge.look(vm.executor, vm.executor.position - 1)
        assert judge.worst is None, judge.worst
        vm.end()
        assert list(vm.leaves(1)) == [0x1_0000]


def test_an_exit_to_the_vmm_gives_up_the_mmu_and_finds_it_again() -> None:
    script = (
        START + f"s2 new 1\ncode\nmap {NESTED:#x} 0x60000000 4k 3 rw\ntouch r {NESTED:#x} 8 0\nmark here\n"
    )
    vm = Vm(script + f"touch r {NESTED:#x}\n").to("here")
    locks = vm.count(LOCK_WRITE)
    vm.end()
    assert len(vm.log("mmio")) == 1
    assert vm.count(LOCK_WRITE) - locks == 2, "one lookup at ERET, one after the exit"
    vm.references()


def test_reset_starts_a_vcpu_anew_and_keeps_the_others() -> None:
    vm = Vm(START + tenants(1) + "enter\nreset\nmark reset\nnop").to("reset")
    assert holds(vm, 0) == (NONE, int(IS_OUT))
    assert not vm.state.vcpus[0, V_STATE] & BOOTED
    assert int(vm.state.vcpus[0, V_VTTBR]) == 0
    assert vm.sizes(1), "with S2FWB nothing is unmapped"
    vm.end()
    assert vm.state.vcpus[0, V_STATE] & BOOTED
    vm.references()


def test_reset_clears_what_l1_reads_of_its_last_abort() -> None:
    """As seen on the rig (``live/reset-clears-far``)."""
    missing = f"touch r {NESTED + 64 * PAGE:#x}\n"
    after = f"touch r {NESTED:#x}\n"
    vm = Vm(START + tenants(1) + missing + after + f"nop\nreset\ns2 {root(1):#x} 1\n" + after).end()
    told = [(row["far"], row["hpfar"] != 0, row["esr"] >> 26) for row in vm.touches()[-3:]]
    assert told == [(NESTED + 64 * PAGE, True, 0x24), (NESTED + 64 * PAGE, True, 0x16), (0, False, 0x16)]


def test_the_end_of_the_vm_frees_every_table() -> None:
    for design in ("sweep", "reverse_table"):
        vm = Vm(START + tenants(1, 2) + "enter\nmark inside\nteardown", design).to("inside")
        freed = vm.count(TABLES_FREED)
        vm.end()
        assert not vm.state.mmus[:, [M_LEAVES, M_REFCNT]].any()
        assert all(vttbr & int(CNP) for vttbr in vm.state.mmus[1:, M_VTTBR].tolist())
        assert vm.count(TABLES_FREED) - freed > 6
        assert vm.count(MMUS_LEAKED) == 0
        assert vm.leaves(0) == {}
        judge = Judge()
        judge.look(vm.executor, vm.executor.position - 1)
        assert judge.worst is None


def test_an_mmu_that_is_still_referenced_is_leaked_on_purpose() -> None:
    vm = Vm(START + tenants(1, 2) + "mark full\nteardown").to("full")
    vm.state.mmus[1, M_REFCNT] = 1
    vm.end()
    assert vm.count(MMUS_LEAKED) == 1
    assert len(vm.sizes(1)) == 4
    assert not vm.state.mmus[1, M_VTTBR] & CNP
    assert vm.leaves(2) == {}


def test_random_turns_keep_every_rule() -> None:
    for seed, design in enumerate(("sweep", "reverse_table", "spanning")):
        pick = random.Random(seed)
        lines = [START, tenants(1, 2, 3, 4, 5)]
        for _ in range(45):
            n = pick.randrange(1, 6)
            lines.append(f"vcpu {pick.randrange(2)}")
            lines.append(
                pick.choice(
                    (
                        "enter",
                        "enter",
                        "preempt",
                        "wfi",
                        "exit",
                        "load",
                        "load",
                        "resume",
                        "reset",
                        f"s2 {root(n):#x} {n}\nenter\nexit",
                        f"s2 {root(n):#x} {n}\ntouch w {NESTED:#x} 4096 4",
                        f"dontneed {DATA + pick.randrange(4) * PAGE:#x} 4k",
                        "tlbi 4",
                    )
                )
            )
        vm = Vm("\n".join(lines), design)
        judge = Judge()

        def look(executor: Executor, judge: Judge = judge) -> None:
            judge.look(executor, executor.position - 1)

        vm.executor.run(after_event=look)
        assert judge.worst is None, (seed, judge.worst)
        assert vm.count(LEAVES_MAPPED) > 20
        assert vm.count(WIPES) > 3
