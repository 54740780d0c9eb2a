"""Who gets a fault of L2 or of L1, and what is filled: table D1 of the upstream reference.

The row ``-EAGAIN`` (replay) needs a second vCPU that fills the same leaf meanwhile: no scenario expresses it,
so the map is called with the abort that lost.
"""

from __future__ import annotations

import pytest
from kvm_lab import PAGE, M, Vm, fault_status

from shadowmmu.arch.fault import TRANSLATION as TRANSLATION_FAULT
from shadowmmu.arch.fault import WRITE
from shadowmmu.arch.stage2 import AF
from shadowmmu.compiled import U64
from shadowmmu.designs.dispatch import design_recorded
from shadowmmu.errors import UndeterminedError
from shadowmmu.host.tables import HostPage
from shadowmmu.kvm.fault import Abort, map_fault
from shadowmmu.kvm.layout import K_IN_PROGRESS, K_SEQ, S_FLAGS, SLOT_READONLY
from shadowmmu.machine.counters import (
    FAULTS_BOUNCED,
    FAULTS_CANONICAL,
    FAULTS_INJECTED,
    FAULTS_SHADOW,
    GUEST_ABORTS,
    LEAVES_MAPPED,
    LEAVES_RELAXED,
    MMIO_EXITS,
    NOTIFIERS,
)

N = 0x8000_0000
DONE = 0x5A00_0000
TRANSLATION, PERMISSION = 0x04, 0x0C


def l2(mapping: str, *steps: str, backing: str = "base", **machine: object) -> Vm:
    """L1 maps, then what ``steps`` say; stopped at mark ``go`` before the last step."""
    lines = "\n".join(steps[:-1])
    return Vm(
        f"""mem 64M
        start {backing}
        s2 new 1
        code
        write 0x41000000 2M
        {mapping}
        {lines}
        mark go
        {steps[-1]}""",
        **machine,
    ).to("go")


PAGES = f"map {N:#x} 0x41000000 64k 3 "


def test_a_fault_of_the_guest_walk_is_l1s() -> None:
    vm = l2("nop", "touch r 0x80001008").end()
    seen = vm.touches()[-1]
    assert fault_status(seen["esr"]) == TRANSLATION + 1
    assert (seen["far"], seen["hpfar"], seen["left"]) == (N + 0x1008, N >> 8 | 0x10 | 1 << 63, 1)
    assert vm.count(FAULTS_INJECTED) == 1
    assert [row["esr"] for row in vm.log("inject_s2")] == [seen["esr"]]


def test_a_fill_that_came_second_maps_and_records_nothing() -> None:
    vm = Vm(f"mem 64M\nstart base\ns2 new 1\ncode\n{PAGES}rw\ntouch w {N:#x}", "reverse_table").end()
    leaves, recorded = vm.leaves(1), design_recorded(vm.state)
    pa = leaves[N].descriptor & 0xFFFF_FFFF_F000
    abort = Abort(U64(N), U64(N), U64(0), U64(0), WRITE, TRANSLATION_FAULT, 3)
    page, prot = HostPage(U64(pa), U64(PAGE), True), U64(leaves[N].descriptor & (0xC0 | 3 << 55))
    assert not map_fault(vm.state, 1, abort, U64(0x4100_0000), U64(PAGE), U64(PAGE), page, prot)
    assert (vm.leaves(1), design_recorded(vm.state)) == (leaves, recorded)


@pytest.mark.parametrize(
    ("letters", "operation", "prot", "status"),
    [
        ("r", "w", "r", PERMISSION + 3),
        ("w", "r", "w", PERMISSION + 3),
        ("rw", "x", "rw", PERMISSION + 3),
        ("r", "r", "r", None),
        ("rw", "w", "rw", None),
        ("rwx", "x", "rwx", None),
        ("x", "x", "x", None),
        ("-", "r", "", PERMISSION + 3),
    ],
)
def test_l1s_permissions_bound_the_leaf_and_what_lacks_is_l1s(
    letters: str, operation: str, prot: str, status: int | None
) -> None:
    vm = l2(PAGES + letters, f"touch {operation} {N:#x}").end()
    seen = vm.touches()[-1]
    assert vm.leaves(1)[N].prot == prot, "filled first: a translation fault does not ask"
    if status is None:
        assert seen["esr"] == DONE
    else:
        assert fault_status(seen["esr"]) == status
        assert vm.count(FAULTS_INJECTED) == 1


def test_a_permission_fault_is_told_at_l1s_level_not_the_shadows() -> None:
    vm = l2(f"map {N:#x} 0x41000000 2M 2 r", f"touch w {N:#x}").end()
    assert vm.leaves(1)[N].level == 3
    assert fault_status(vm.touches()[-1]["esr"]) == PERMISSION + 2


@pytest.mark.parametrize(("xn", "prot"), [(0, 3), (1, 1), (2, 0), (3, 2)])
def test_execution_is_cut_to_l1s_for_each_exception_level(xn: int, prot: int) -> None:
    descriptor = 0x4100_0000 | 0x7C3 | xn << 53
    # The level 3 table of 0x80000000 is L1's fourth page: root, level 2 and 3 of the code, level 2.
    vm = l2(PAGES + "rw", f"touch r {N:#x}", "mark table", f"poke 0x40104000 {descriptor:#x}",
            f"tlbi 0 0x7000000{N >> 12:05x}", f"touch r {N:#x}").end()  # fmt: skip
    filled = [row["prot"] & 15 for row in vm.log("s2map") if row["addr"] == N and row["mmu"] == 1]
    assert filled == [12, 12 | prot]


def test_a_host_cause_is_repaired_without_l1() -> None:
    vm = l2(PAGES + "rw", f"touch w {N:#x}", "log 1", f"touch w {N:#x}")
    assert vm.leaves(1)[N].prot == "r"
    relaxed = vm.count(LEAVES_RELAXED)
    vm.end()
    assert vm.leaves(1)[N].prot == "rw"
    assert vm.count(LEAVES_RELAXED) == relaxed + 1
    assert vm.count(FAULTS_INJECTED) == 0


@pytest.mark.parametrize("mmu", [0, 1])
def test_an_access_flag_fault_makes_the_leaf_young(mmu: int) -> None:
    vm = l2(PAGES + "rw", f"touch r {N:#x}", f"touch r {N:#x}")
    place = N if mmu else 0x4006_0000
    leaf = vm.leaves(mmu)[place]
    vm.state.mem[leaf.word] &= ~AF
    mapped = vm.count(LEAVES_MAPPED)
    vm.end()
    assert vm.leaves(mmu)[place] == leaf
    assert vm.touches()[-1]["esr"] == DONE
    assert vm.count(LEAVES_MAPPED) == mapped


def test_what_no_memslot_backs_leaves_as_mmio_at_the_canonical_address() -> None:
    vm = l2(f"map {N:#x} 0x9000000 4k 3 rw", f"touch w {N:#x} 8 2").end()
    assert vm.touches()[-1]["esr"] == DONE
    assert [row["phys_addr"] for row in vm.log("mmio")] == [0x900_0000] * 2
    assert vm.count(MMIO_EXITS) == 2
    assert N not in vm.leaves(1)


def test_a_read_only_slot_is_read_as_memory_and_written_as_mmio() -> None:
    vm = l2(PAGES + "rw", f"touch r {N:#x}\ntouch w {N:#x}")
    vm.state.slots[0, S_FLAGS] |= SLOT_READONLY
    vm.end()
    assert vm.leaves(1)[N].prot == "r"
    assert [(row["phys_addr"], row["write"]) for row in vm.log("mmio")] == [(0x4100_0000, 1)]


def test_an_address_beyond_the_machines_limit_is_an_address_size_fault() -> None:
    vm = l2("nop", "touch r 0x10000000000").end()
    assert [row["esr"] for row in vm.log("inject_own")] == [0x96000000]
    assert vm.touches()[-1] == {"esr": 0x82000007, "far": 0x200, "hpfar": 1 << 63, "elr": 0x200, "left": 1}
    assert vm.leaves(1).keys() == {0x1_0000}


def test_the_copy_of_a_zero_page_makes_its_own_fault_start_again() -> None:
    vm = Vm(
        f"""mem 64M
        start base
        s2 new 1
        code
        {PAGES}rw
        touch r {N:#x}
        mark go
        touch w {N:#x}"""
    ).to("go")
    assert vm.leaves(1)[N].prot == "r"
    vm.forget_log()
    bounced, sequence, notifiers = vm.count(FAULTS_BOUNCED), vm.register(K_SEQ), vm.count(NOTIFIERS)
    vm.end()
    assert (vm.count(FAULTS_BOUNCED), vm.count(NOTIFIERS)) == (bounced + 1, notifiers + 1)
    assert (vm.register(K_SEQ), vm.register(K_IN_PROGRESS)) == (sequence + 1, 0)
    assert vm.unmapped() == [(0, 1 << 40)]
    faults = [row["ipa"] for row in vm.log("kvm_guest_fault")]
    # The write, then its code page (gone with the rest), then the write again.
    assert faults == [N, 0x1_0000, N]
    assert vm.leaves(1)[N].prot == "rw"


def test_a_fault_during_an_invalidation_bounces_for_ever_and_is_reported() -> None:
    vm = l2(PAGES + "rw", f"touch r {N:#x}")
    vm.state.regs[K_IN_PROGRESS] = U64(1)
    aborts, bounced = vm.count(GUEST_ABORTS), vm.count(FAULTS_BOUNCED)
    with pytest.raises(UndeterminedError, match=r"TOUCH, line 9\) makes no progress"):
        vm.end()
    assert vm.count(GUEST_ABORTS) - aborts == vm.count(FAULTS_BOUNCED) - bounced == 64
    assert vm.leaves(1) == {}


def test_aborts_are_counted_by_the_table_they_hit() -> None:
    vm = l2(PAGES + "rw", f"touch r {N:#x} 4096 16")
    before = [vm.count(index) for index in (GUEST_ABORTS, FAULTS_SHADOW, FAULTS_CANONICAL)]
    vm.end()
    after = [vm.count(index) for index in (GUEST_ABORTS, FAULTS_SHADOW, FAULTS_CANONICAL)]
    assert [b - a for a, b in zip(before, after, strict=True)] == [17, 17, 0]


def test_a_collapse_lets_the_next_fault_put_in_a_block() -> None:
    vm = l2(f"map {N:#x} 0x41000000 2M 2 rw", f"touch w {N:#x} 4096 3", "mark pages",
            "hugepage 0x41000000 2M", "collapse 0x41000000 2M", f"touch w {N:#x}")  # fmt: skip
    assert N not in vm.leaves(1)
    assert vm.end().leaves(1)[N].size == 2 * M


def test_a_permission_fault_under_a_table_of_pages_puts_in_the_block_at_once() -> None:
    # A precise design keeps the pages of the block that the host made huge only where they are stale.
    vm = l2(f"map {N:#x} 0x41000000 2M 2 rw", f"touch r {N + PAGE:#x}", "log 1", "log 0",
            f"touch w {N + PAGE:#x}", backing="thp").end()  # fmt: skip
    assert vm.sizes() == {N: (2 * M, 2)}
    assert vm.leaves(1)[N].prot == "rw"
