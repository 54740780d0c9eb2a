"""L1 as a hypervisor: the tables it builds in its own memory, and what its accesses cost."""

from __future__ import annotations

import pytest
from kvm_lab import PAGE, Vm

from shadowmmu.errors import UndeterminedError
from shadowmmu.events.words import attributes
from shadowmmu.guest.layout import G_POOL
from shadowmmu.machine.counters import GUEST_ABORTS
from shadowmmu.machine.state import DATA_BASE

ROOT = 0x4010_0000
POOL = ROOT + PAGE
ADDRESS = 0xFFFF_FFFF_F000


def guest(*lines: str, **machine: object) -> Vm:
    """An L1 that made its root table, then what ``lines`` say."""
    text = "\n".join(lines)
    return Vm(f"mem 64M\nstart base\ns2 new 1\n{text}\n", **machine)


def tables_taken(vm: Vm) -> int:
    """Pages L1 took from its pool, the root among them."""
    return (vm.register(G_POOL) - ROOT) // PAGE


@pytest.mark.parametrize(("level", "shift", "kind"), [(1, 30, 1), (2, 21, 1), (3, 12, 3)])
def test_a_leaf_stands_at_its_level_behind_one_table_a_level(level: int, shift: int, kind: int) -> None:
    nested, canonical = 5 << 30 | 7 << 21 | 9 << 12, 0x4000_0000
    nested = nested >> shift << shift
    vm = guest(f"map {nested:#x} {canonical:#x} {1 << shift} {level} rw").end()
    assert tables_taken(vm) == level
    table, indices = ROOT, (5, 7, 9)
    for step, index in enumerate(indices[:level], 1):
        word = vm.guest_word(table + 8 * index)
        if step < level:
            assert word & ~ADDRESS == 3
            table = word & ADDRESS
            assert table == ROOT + step * PAGE
        else:
            assert word == canonical | attributes("rw") | kind


def test_leaves_of_a_run_share_their_tables_and_follow_each_other() -> None:
    vm = guest("map 0x801ff000 0x41000000 12k 3 rw").end()
    # Level 2, and two level 3 tables: the run crosses a 2M boundary.
    assert tables_taken(vm) == 4
    first = vm.guest_word(POOL) & ADDRESS
    second = vm.guest_word(POOL + 8) & ADDRESS
    words = [vm.guest_word(first + 511 * 8), vm.guest_word(second), vm.guest_word(second + 8)]
    assert [word & ADDRESS for word in words] == [0x4100_0000, 0x4100_1000, 0x4100_2000]
    assert vm.guest_word(second + 16) == 0


def test_a_window_wraps_the_output() -> None:
    vm = guest("map 0x80000000 0x41000000 20k 3 rw 8k").end()
    table = vm.guest_word(POOL) & ADDRESS
    outputs = [vm.guest_word(table + 8 * i) & ADDRESS for i in range(5)]
    assert outputs == [0x4100_0000, 0x4100_1000, 0x4100_0000, 0x4100_1000, 0x4100_0000]


def test_an_unmap_clears_the_leaves_and_keeps_the_tables() -> None:
    vm = guest("map 0x80000000 0x41000000 16k 3 rw", "unmap 0x80001000 8k 3").end()
    table = vm.guest_word(POOL) & ADDRESS
    assert [bool(vm.guest_word(table + 8 * i)) for i in range(4)] == [True, False, False, True]
    assert vm.guest_word(POOL) & 3 == 3


def test_an_unmap_of_nothing_adds_no_table() -> None:
    vm = guest("unmap 0x80000000 4k 3", "unmap 0x80000000 2M 2", "unmap 0x80000000 1G 1").end()
    assert tables_taken(vm) == 1
    assert vm.guest_word(ROOT + 16) == 0


def test_a_block_where_a_table_stood_replaces_it() -> None:
    vm = guest("map 0x80000000 0x41000000 4k 3 rw", "map 0x80000000 0x40000000 1G 1 rw").end()
    assert vm.guest_word(ROOT + 16) & 3 == 1
    vm = guest("map 0x80000000 0x40000000 1G 1 rw", "map 0x80000000 0x41000000 4k 3 rw").end()
    assert vm.guest_word(ROOT + 16) & 3 == 3


def test_a_page_of_the_pool_that_is_not_zero_is_cleared_before_it_is_a_table() -> None:
    vm = guest(f"poke {POOL + 0x18:#x} 0xdead0003", "map 0x80000000 0x41000000 2M 2 rw", "nop")
    assert vm.end().guest_word(POOL + 0x18) == 0


def test_poke_is_seen_through_peek_and_lost_where_nothing_backs_it() -> None:
    vm = guest(
        "poke 0x41000008 0x1234", "mark poked", "peek 0x41000008", "poke 0x9000000 7", "peek 0x9000000"
    )
    vm.to("poked")
    assert vm.guest_word(0x4100_0008) == 0x1234
    content = int((vm.state.content != 0).sum())
    vm.end()
    assert int((vm.state.content != 0).sum()) == content
    assert [(row["phys_addr"], row["write"]) for row in vm.log("mmio")] == [(0x900_0000, 1), (0x900_0000, 0)]


def test_peek_faults_like_any_access_of_l1() -> None:
    vm = guest("mark go", "peek 0x41005000").to("go")
    vm.forget_log()
    aborts = vm.count(GUEST_ABORTS)
    vm.end()
    assert [row["ipa"] for row in vm.log("kvm_guest_fault")] == [0x4100_5000]
    assert vm.count(GUEST_ABORTS) == aborts + 1
    assert vm.leaves(0)[0x4100_5000].descriptor & ADDRESS >= int(DATA_BASE)


def test_l1s_first_accesses_come_in_the_order_of_the_rigs() -> None:
    vm = guest("nop").end()
    assert [row["ipa"] for row in vm.log("kvm_guest_fault")][:6] == [
        0x4000_0000,  # fetch of its first page
        0x4000_1000,  # its loop
        0x4003_F000,  # its stack
        0x4005_0000,  # L2's payload
        0x4006_0000,  # its mailbox
        0x4010_0000,  # the root table
    ]


def test_memory_the_vmm_took_away_is_given_back_by_its_answer_to_efault() -> None:
    vm = guest("mprotect 0x41000000 8k", "mprotect 0x42000000 4k r", "mark go", "poke 0x41000000 5").to("go")
    vm.forget_log()
    vm.end()
    assert len(vm.log("efault")) == 1
    assert vm.guest_word(0x4100_0000) == 5
    assert [row["ipa"] for row in vm.log("kvm_guest_fault")] == [0x4100_0000] * 2


def test_memory_that_is_unmapped_stops_l2_for_good() -> None:
    vm = guest(
        "code",
        "map 0x80000000 0x41000000 4k 3 rw",
        "munmap 0x41000000 4k",
        "mark go",
        "touch r 0x80000000",
    ).to("go")
    with pytest.raises(UndeterminedError, match="no progress"):
        vm.end()
    assert len(vm.log("efault")) == 1, "the VMM's mprotect fails, so the vCPU is not run again"


def test_the_state_after_no_progress_can_be_looked_at() -> None:
    vm = guest("munmap 0x40050000 4k", "code", "touch r 0x80000000")
    with pytest.raises(UndeterminedError) as stopped:
        vm.end()
    assert "event 3 (TOUCH, line 6)" in str(stopped.value)
    assert vm.executor.position == 3
    vm.references()
