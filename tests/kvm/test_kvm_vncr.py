"""The VNCR pseudo-TLB: what fills an entry, what takes it out, which fault L1 gets, and rule A16.

L1's stage 1 of EL2&0 is written here by hand: 39 bits, 4K, three levels, its tables at fixed pages.
"""

from __future__ import annotations

import pytest
from kvm_lab import K, M, Vm, fault_status

from shadowmmu.compiled import U64
from shadowmmu.designs.interface import CATALOGUE, VNCR_ALL, VNCR_BY_DESIGN, VNCR_FORGOTTEN
from shadowmmu.errors import UndeterminedError
from shadowmmu.kvm.layout import K_RACES, K_SEQ, K_VNCR_COUNT, SLOT_READONLY, V_HCR
from shadowmmu.kvm.vncr import T_MAPPED, T_SPAN, T_VALID
from shadowmmu.machine.counters import (
    FAULTS_BOUNCED,
    VNCR_ABORTS,
    VNCR_FILLS,
    VNCR_INVALIDATIONS,
    VNCR_OVER,
)
from shadowmmu.verify.judge import Judge

PAGE = 0x4100_3000
"""Canonical page that VNCR_EL2 leads to."""
VA = 0x3000
UPPER = 0xFFFF_FF80_0000_0000
BLOCK_VA = 0x20_3000
L1_TABLE, L2_TABLE, L3_TABLE = 0x4110_0000, 0x4110_1000, 0x4110_2000
TABLE, LEAF, BLOCK, AF, NG, RO = 3, 3, 1, 1 << 10, 1 << 11, 1 << 7
HUGE = 1 << 21
TCR = 25 | 25 << 16 | 2 << 30 | 5 << 32
START = "start base 0 0\ns2 new 1\ncode\nwrite 0x41000000 64k\n"
EXTERNAL, TRANSLATION_3, PERMISSION_3 = 0x10, 7, 0xF


def stage1(leaf: int = PAGE | AF | LEAF, tcr: int = TCR, asid: int = 0) -> str:
    """L1 writes tables of its own that map VA with ``leaf`` and a 2M block over it, and turns them on."""
    block = 0x4100_0000 | AF | BLOCK
    return (
        f"poke {L1_TABLE:#x} {L2_TABLE | TABLE:#x}\npoke {L2_TABLE:#x} {L3_TABLE | TABLE:#x}\n"
        f"poke {L2_TABLE + 8:#x} {block:#x}\npoke {L3_TABLE + 24:#x} {leaf:#x}\n"
        f"s1 ttbr0_el2={L1_TABLE | asid << 48:#x} ttbr1_el2={L1_TABLE | 0x77 << 48:#x}\n"
        f"s1 tcr_el2={tcr:#x} sctlr_el2=1 mair_el2=0xff\n"
    )


def machine(*lines: str, design: str = "sweep", **settings: bool) -> Vm:
    """A machine whose data pages the host has filled, and these lines."""
    return Vm(START + "\n".join(lines) + "\nmark end\n", design, **settings)


def entry(vm: Vm, column: int, vcpu: int = 0) -> int:
    """A word of a vCPU's entry."""
    return int(vm.state.vcpus[vcpu, column])


def counts(vm: Vm) -> tuple[int, int, int]:
    """Aborts, fills, invalidations."""
    return vm.count(VNCR_ABORTS), vm.count(VNCR_FILLS), vm.count(VNCR_INVALIDATIONS)


def rules_broken(vm: Vm) -> set[str]:
    """The judge's look after every event."""
    judge = Judge()
    vm.executor.run(after_event=lambda run: judge.look(run, run.position - 1))
    return {violation.rule for violation in judge.found.values()}


def test_an_entry_is_filled_once_and_mapped_at_each_entry() -> None:
    vm = machine(f"vncr w {PAGE:#x}", f"vncr r {PAGE:#x}", f"vncr w {PAGE:#x}").end()
    assert counts(vm) == (1, 1, 0)
    assert [(row["gva"], row["writable"]) for row in vm.log("vncr_map")] == [(PAGE, 1)] * 3
    assert len(vm.log("vncr_unmap")) == 3
    assert entry(vm, T_VALID) == 1
    assert entry(vm, T_MAPPED) == 0
    assert vm.register(K_VNCR_COUNT) == 1
    assert int(vm.state.vcpus[0, V_HCR]) >> 42 & 1 == 0
    (fill,) = vm.log("vncr_fill")
    assert fill["ipa"] == PAGE
    assert vm.touches()[-1]["left"] == 0


def test_another_page_takes_the_entrys_place() -> None:
    vm = machine(f"vncr w {PAGE:#x}", f"vncr w {PAGE + 0x1000:#x}").end()
    assert counts(vm) == (2, 2, 1)
    assert vm.register(K_VNCR_COUNT) == 1


def test_l1s_stage_1_leads_to_the_page_and_its_leaf_is_the_span() -> None:
    vm = machine(stage1(), f"vncr w {VA:#x}", "mark one", f"vncr w {BLOCK_VA:#x}").to("one")
    assert vm.log("vncr_fill")[0]["ipa"] == PAGE
    assert entry(vm, T_SPAN) == 4 * K
    vm.end()
    assert vm.log("vncr_fill")[1]["ipa"] == PAGE
    assert entry(vm, T_SPAN) == 2 * M


def test_vncr_el2_is_sign_extended_and_the_upper_half_has_its_own_tables() -> None:
    vm = machine(stage1(), f"vncr w {UPPER + VA:#x}").end()
    assert vm.log("vncr_fill")[0]["gva"] == UPPER + VA


@pytest.mark.parametrize(
    ("setup", "command", "status"),
    [
        ("", "vncr w 0x20000000", EXTERNAL),  # no memslot
        (stage1(), "vncr r 0x4000", TRANSLATION_3),
        (stage1(PAGE | AF | RO | LEAF), f"vncr w {VA:#x}", PERMISSION_3),
        (f"munmap {PAGE:#x} 4k", f"vncr r {PAGE:#x}", EXTERNAL),
    ],
    ids=["no slot", "translation", "permission", "no memory"],
)
def test_l1_gets_the_fault_of_its_own_walk(setup: str, command: str, status: int) -> None:
    vm = machine(setup, command).end()
    (fault,) = vm.log("vncr_fault")
    assert fault["esr"] >> 26 == 0x25
    assert fault["esr"] >> 13 & 1 == 1
    assert fault["esr"] >> 6 & 1 == (" w " in command)
    assert fault_status(fault["esr"]) == status
    assert vm.touches()[-1]["esr"] == fault["esr"]
    assert vm.touches()[-1]["left"] == 1


def test_a_read_only_slot_is_an_external_abort_for_a_write_alone() -> None:
    vm = machine("mark here", f"vncr r {PAGE:#x}", f"vncr w {PAGE:#x}").to("here")
    vm.state.slots[0, 3] = SLOT_READONLY
    vm.end()
    (fill,) = vm.log("vncr_fill")
    assert fill["writable"] == 0
    (fault,) = vm.log("vncr_fault")
    assert fault_status(fault["esr"]) == EXTERNAL


def test_a_page_that_l1_may_not_read_is_not_mapped() -> None:
    # Permission indirection: PIR_EL2 gives the leaf's index 0 write and no read, index 1 nothing.
    vm = machine(stage1(), "mark here", f"vncr r {VA:#x}").to("here")
    base = V_HCR - 7
    vm.state.vcpus[0, base + 16] = 1 << 1  # TCR2_EL2.PIE, and PIR_EL2 = 0: no access by any index
    vm.end()
    assert vm.log("vncr_map") == []
    assert entry(vm, T_VALID) == 1
    assert fault_status(vm.log("vncr_fault")[0]["esr"]) == PERMISSION_3


@pytest.mark.parametrize(
    "change", ["s1 sctlr_el2=0", f"s1 ttbr0_el2={L1_TABLE | 5 << 48:#x}"], ids=["stage 1 off", "ASID"]
)
def test_an_entry_of_other_registers_is_not_mapped(change: str) -> None:
    vm = machine(stage1(PAGE | AF | NG | LEAF, asid=4), f"vncr w {VA:#x}", change, f"vncr r {VA:#x}").end()
    assert vm.count(VNCR_ABORTS) == 2


@pytest.mark.parametrize(
    ("tlbi", "gone"),
    [
        ("all", True),
        (f"va {4 << 48 | 0xC << 44 | 3:#x}", True),  # no leaf of 64K is at level 0: 1G, as without a hint
        (f"va {4 << 48 | 7 << 44 | 3:#x}", True),
        (f"va {5 << 48 | 7 << 44 | 3:#x}", False),
        (f"va {4 << 48 | 7 << 44 | 4:#x}", False),
        (f"vaa {5 << 48 | 7 << 44 | 3:#x}", True),
        ("vaa 0x40000", False),
        ("vaa 0x3ffff", True),  # no hint: 1G
        (f"vaa {7 << 44 | 1 << 36 | 3:#x}", False),  # the upper half
        (f"asid {4 << 48:#x}", True),
        (f"asid {5 << 48:#x}", False),
        (f"rva {4 << 48 | 1 << 46 | 2:#x}", True),
        (f"rva {5 << 48 | 1 << 46 | 2:#x}", False),
        (f"rvaa {1 << 46 | 2:#x}", True),
        (f"rvaa {1 << 46 | 4:#x}", False),
        ("rvaa 1", False),  # reserved granule counts as 64K: it begins above
    ],
)
def test_a_tlbi_of_el2_takes_what_it_names_and_always_counts(tlbi: str, gone: bool) -> None:
    vm = machine(stage1(PAGE | AF | NG | LEAF, asid=4), f"vncr w {VA:#x}", "mark here", f"tlbi2 {tlbi}")
    sequence = vm.to("here").register(K_SEQ)
    vm.end()
    assert (entry(vm, T_VALID) == 0) == gone
    assert vm.register(K_SEQ) == sequence + 1
    assert vm.register(K_VNCR_COUNT) == (0 if gone else 1)


def test_a_global_entry_has_every_asid_and_16_bits_count_where_tcr_says_so() -> None:
    vm = machine(stage1(), f"vncr w {VA:#x}", f"tlbi2 asid {0:#x}", "mark here", f"tlbi2 va {9 << 48 | 3:#x}")
    assert entry(vm.to("here"), T_VALID) == 1
    assert entry(vm.end(), T_VALID) == 0
    wide = stage1(PAGE | AF | NG | LEAF, TCR | 1 << 36 | 1 << 22)
    vm = machine(wide, f"vncr w {VA:#x}", f"tlbi2 asid {0x77 << 48:#x}").end()
    assert entry(vm, T_VALID) == 0


def test_without_entries_a_tlbi_of_el2_is_the_cpus_alone() -> None:
    vm = machine("mark here", "tlbi2 all").to("here")
    sequence = vm.register(K_SEQ)
    assert vm.end().register(K_SEQ) == sequence


def test_only_alle1_of_the_stage_2_tlbis_takes_entries() -> None:
    vm = machine(f"vncr w {PAGE:#x}", "tlbi 4", "tlbi 6", "mark here", "tlbi 5").to("here")
    assert entry(vm, T_VALID) == 1
    assert entry(vm.end(), T_VALID) == 0


@pytest.mark.parametrize("design", CATALOGUE)
def test_a_notifier_reaches_the_entry_without_any_shadow_leaf(design: str) -> None:
    lines = (stage1(), f"vncr w {VA:#x}", f"punch {PAGE + 0x1000:#x} 4k", "mark beside")
    vm = machine(*lines, f"punch {PAGE:#x} 4k", "vncr r 0x3000", design=design).to("beside")
    policy = CATALOGUE[design].vncr
    assert VNCR_BY_DESIGN[CATALOGUE[design].number] == policy
    assert entry(vm, T_VALID) == (policy != VNCR_ALL)
    assert vm.count(VNCR_OVER) == (policy == VNCR_ALL)
    assert rules_broken(vm) == ({"A16"} if policy == VNCR_FORGOTTEN else set())


def test_an_entry_goes_as_large_as_l1s_leaf() -> None:
    beside = f"punch {PAGE + 0x1000:#x} 4k"
    vm = machine(stage1(), f"vncr w {BLOCK_VA:#x}", beside, design="reverse_table").end()
    assert entry(vm, T_VALID) == 0
    assert vm.count(VNCR_OVER) == 1


@pytest.mark.parametrize("precise", [False, True])
def test_write_protection_takes_entries_and_a_fill_marks_the_page_dirty(precise: bool) -> None:
    lines = (f"vncr w {PAGE:#x}", "log 1", "mark on", f"vncr w {PAGE:#x}", "mark dirty")
    vm = machine(*lines, "getlog", design="reverse_table", precise_updates=precise).to("on")
    assert entry(vm, T_VALID) == 0
    vm.to("dirty")
    page = (PAGE - 0x4000_0000) >> 12
    assert int(vm.state.dirty[page >> 6]) >> (page & 63) & 1
    assert entry(vm.end(), T_VALID) == 0


def test_the_memslot_goes_and_the_entry_with_it() -> None:
    for design, broken in (("sweep", set()), ("reverse_table", set()), ("maple_2025", {"A16"})):
        assert rules_broken(machine(f"vncr w {PAGE:#x}", "slot 0", design=design)) == broken


def test_a_forgotten_entry_over_read_only_or_moved_memory_is_found() -> None:
    for line in (f"mprotect {PAGE:#x} 4k r", f"mmap {PAGE:#x} 4k\nwrite {PAGE:#x} 4k"):
        assert rules_broken(machine(f"vncr w {PAGE:#x}", line, design="rbtree_2024")) == {"A16"}


def test_a_fill_bounces_while_the_host_invalidates() -> None:
    access = f"vncr w {PAGE:#x}"
    lines = ("touch x 0x10000", f"hold {PAGE:#x} 4k 3", access, f"race {PAGE:#x} 4k", "tlbi2 all", access)
    vm = machine(*lines, design="reverse_table").end()
    assert vm.count(FAULTS_BOUNCED) == 3 + 1
    assert counts(vm) == (6, 2, 1)


@pytest.mark.parametrize("races", [1, 3])
def test_a_lost_race_for_the_access_flag_walks_again(races: int) -> None:
    vm = machine(stage1(PAGE | LEAF, TCR | 1 << 39), "mark here", f"vncr w {VA:#x}").to("here")
    vm.state.regs[K_RACES] = races
    vm.end()
    assert counts(vm) == (1 + races, 1, 0)
    assert vm.count(FAULTS_BOUNCED) == 0
    assert vm.guest_word(L3_TABLE + 24) == PAGE | AF | LEAF


def test_l2_that_cannot_fetch_never_gets_to_the_page() -> None:
    vm = machine("unmap 0x10000 4k 3", "tlbi 4", f"vncr w {PAGE:#x}").end()
    assert counts(vm) == (0, 0, 0)
    assert vm.touches()[-1]["left"] == 1


def test_an_invalidation_that_stays_open_lets_no_entry_be_filled() -> None:
    with pytest.raises(UndeterminedError, match="makes no progress"):
        machine(f"hold {PAGE:#x} 4k", f"vncr w {PAGE:#x}").end()


def test_two_vcpus_have_an_entry_each() -> None:
    script = f"vncr w {PAGE:#x}\n@1 s2 0x40100000 1\n@1 vncr w {PAGE:#x}\nmark two\ntlbi2 all\n"
    vm = Vm("vcpus 2\n" + START + script).to("two")
    assert vm.register(K_VNCR_COUNT) == 2
    assert (entry(vm, T_VALID, 0), entry(vm, T_VALID, 1)) == (1, 1)
    assert vm.end().register(K_VNCR_COUNT) == U64(0)
