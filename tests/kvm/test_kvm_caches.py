"""Hosts without FEAT_S2FWB or FEAT_TLBIRANGE: what is cleaned, emptied, invalidated, and how often."""

from __future__ import annotations

import pytest
from kvm_lab import PAGE, K, M, Vm

from shadowmmu.designs.dispatch import design_recorded
from shadowmmu.kvm.layout import CACHES_ON, TRAPS_VM, V_STATE
from shadowmmu.machine.counters import (
    CACHE_BYTES,
    CACHE_CLEANS,
    CHUNKS_SHADOW,
    LEAVES_REMOVED,
    TLBI_IPA,
    TLBI_RANGE_SHADOW,
    TLBI_VMID,
)

NESTED = 0x8000_0000
DATA = 0x4100_0000
SCRIPT = f"""mem 64M
    start base
    s2 new 1
    code
    map {NESTED:#x} {DATA:#x} 16k 3 rw
    mark before
    touch w {NESTED:#x} 4096 4
    mark filled
    """
FEATURES = [(tlbirange, fwb) for tlbirange in (True, False) for fwb in (True, False)]


def lab(script: str, tlbirange: bool = True, fwb: bool = False, design: str = "sweep", **machine: int) -> Vm:
    """A machine with these features."""
    return Vm(SCRIPT + script, design, tlbirange=tlbirange, fwb=fwb, **machine)


def counted(vm: Vm, mark: str, *counters: int) -> list[int]:
    """How much each counter grows up to ``mark``."""
    before = [vm.count(counter) for counter in counters]
    vm.to(mark)
    return [vm.count(counter) - old for counter, old in zip(counters, before, strict=True)]


@pytest.mark.parametrize(("tlbirange", "fwb"), FEATURES)
def test_fills_and_unmaps_clean_the_caches_only_without_fwb(tlbirange: bool, fwb: bool) -> None:
    vm = lab(f"dontneed {DATA:#x} 4k\nmark taken", tlbirange, fwb).to("before")
    filled = counted(vm, "filled", CACHE_CLEANS, CACHE_BYTES)
    # L2's code page and four of data, in the shadow; the data through L2 alone.
    assert filled == ([0, 0] if fwb else [5, 5 * PAGE])
    taken = counted(vm, "taken", CACHE_CLEANS, CACHE_BYTES)
    assert taken == ([0, 0] if fwb else [5, 5 * PAGE]), (
        "the sweep takes the shadow's five; L1 never had the page"
    )


@pytest.mark.parametrize("design", ["reverse_table", "pte_chains", "leaf_scan", "spanning"])
def test_a_precise_unmap_cleans_what_it_clears(design: str) -> None:
    vm = lab(f"dontneed {DATA:#x} 4k\nmark taken", design=design).to("filled")
    assert counted(vm, "taken", CACHE_CLEANS, LEAVES_REMOVED) == [1, 1]


def test_a_block_is_cleaned_as_a_whole() -> None:
    script = f"mem 64M\nstart thp\ns2 new 1\ncode\nwrite {DATA:#x} 2M\nmap {NESTED:#x} {DATA:#x} 2M 2 rw\n"
    vm = Vm(f"{script}mark before\ntouch w {NESTED:#x}\nmark filled", fwb=False).to("before")
    cleans, cleaned = counted(vm, "filled", CACHE_CLEANS, CACHE_BYTES)
    assert (cleans, cleaned) == (2, 2 * M + PAGE)


@pytest.mark.parametrize(("tlbirange", "fwb"), FEATURES)
def test_when_a_sweep_may_leave_its_tlbis_to_the_end_of_each_chunk(tlbirange: bool, fwb: bool) -> None:
    vm = lab(f"dontneed {DATA:#x} 4k\nmark taken", tlbirange, fwb).to("filled")
    chunks, ranges, by_ipa, vmids = counted(
        vm, "taken", CHUNKS_SHADOW, TLBI_RANGE_SHADOW, TLBI_IPA, TLBI_VMID
    )
    assert chunks == 1024
    assert vmids == 0
    if tlbirange and fwb:
        assert ranges == 1024, "one a chunk, mapped or not"
        assert by_ipa == 4, "the tables that go: three of the code page's and the data's branches"
    else:
        assert ranges == 0
        assert by_ipa == 4 + 5, "each leaf at once"


def test_a_table_under_a_new_block_costs_a_whole_vmid_without_ranges() -> None:
    script = f"mem 64M\nstart thp\ns2 new 1\ncode\nwrite {DATA:#x} 2M\nmap {NESTED:#x} {DATA:#x} 2M 2 rw\n"
    script += f"log 1\ntouch w {NESTED:#x}\nlog 0\nmark before\ntouch w {NESTED + PAGE:#x}\nmark after"
    for tlbirange in (True, False):
        vm = Vm(script, tlbirange=tlbirange).to("before")
        assert vm.sizes(1)[NESTED] == (PAGE, 2)
        ranges, vmids, cleans = counted(vm, "after", TLBI_RANGE_SHADOW, TLBI_VMID, CACHE_CLEANS)
        assert vm.sizes(1)[NESTED] == (2 * M, 2)
        assert (ranges, vmids, cleans) == ((1, 0, 0) if tlbirange else (0, 1, 0))


def test_the_table_that_a_block_replaces_is_not_cleaned() -> None:
    script = f"mem 64M\nstart thp\ns2 new 1\ncode\nwrite {DATA:#x} 2M\nmap {NESTED:#x} {DATA:#x} 2M 2 rw\n"
    script += f"log 1\ntouch w {NESTED:#x}\nlog 0\nmark before\ntouch w {NESTED + PAGE:#x}\nmark after"
    vm = Vm(script, fwb=False).to("before")
    assert counted(vm, "after", CACHE_CLEANS, CACHE_BYTES) == [1, 2 * M], "the new block alone"


@pytest.mark.parametrize("design", ["sweep", "reverse_table"])
def test_reset_empties_every_table_without_fwb(design: str) -> None:
    for fwb in (True, False):
        vm = lab("reset\nmark reset\nnop", fwb=fwb, design=design).to("filled")
        canonical, shadow = len(vm.leaves(0)), len(vm.leaves(1))
        vm.to("reset")
        assert (len(vm.leaves(0)), len(vm.leaves(1))) == ((canonical, shadow) if fwb else (0, 0))
        assert bool(vm.state.vcpus[0, V_STATE] & TRAPS_VM) is not fwb
        vm.end()
        assert len(vm.leaves(0)) > 0, "L1 boots again"


def test_reset_passes_over_a_slot_that_is_gone() -> None:
    window = 0x8000_0000
    script = f"memslot 1 {window:#x} 1M {DATA:#x}\npeek {window:#x}\nmark open\nmemslot 1\n"
    vm = lab(f"{script}touch w {NESTED:#x}\nreset\nmark reset", design="pa_keyed").to("open")
    assert window in vm.leaves(0)
    vm.to("reset")
    assert (vm.leaves(0), vm.leaves(1)) == ({}, {})
    assert design_recorded(vm.state) == 0


def test_a_first_init_empties_nothing() -> None:
    vm = Vm("mem 64M\nvcpus 2\nstart base\nnop\nmark here\nvcpu 1\nreset", fwb=False).to("here")
    present = vm.leaves(0).keys()
    assert vm.end().leaves(0).keys() == present, "vCPU 1 never ran"


def test_unmapping_the_vm_follows_the_vmas_under_a_slot() -> None:
    holes = f"munmap {DATA + M:#x} 1M\nmprotect {DATA + 4 * M:#x} 4k r\n"
    vm = lab(f"{holes}mark cut\nreset\nmark reset").to("cut")
    vm.forget_log()
    vm.to("reset")
    ranges = [(row["addr"], row["size"]) for row in vm.log("s2range") if row["mmu"] == 0]
    end = 0x4000_0000 + 64 * M
    assert ranges == [
        (0x4000_0000, DATA + M - 0x4000_0000),
        (DATA + 2 * M, 2 * M),
        (DATA + 4 * M, 4 * K),
        (DATA + 4 * M + PAGE, end - (DATA + 4 * M + PAGE)),
    ]


def test_unmapping_a_vm_whose_memory_ends_in_a_hole() -> None:
    vm = lab("munmap 0x43000000 16M\nmark cut\nreset\nmark reset").to("cut")
    vm.forget_log()
    vm.to("reset")
    ranges = [(row["addr"], row["size"]) for row in vm.log("s2range") if row["mmu"] == 0]
    assert ranges == [(0x4000_0000, 48 * M)]


def test_set_and_way_flushes_once_after_the_caches_were_on() -> None:
    vm = lab(
        "mark m0\nsetway\nmark m1\ncaches 1\nmark m2\ncaches 1\nmark m3\nsetway\nmark m4\nsetway\nmark m5\n"
        "caches 0\nmark m6\ncaches 0\nmark m7\ncaches 1\nmark m8\ncaches 0\nmark m9"
    ).to("m0")
    leaves = len(vm.leaves(0)) + len(vm.leaves(1))
    flushes = [counted(vm, f"m{n}", CACHE_CLEANS)[0] / leaves for n in range(1, 10)]
    # Trapped since reset; on flushes and ends the trap; set/way flushes and traps; then each switch flushes.
    assert flushes == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert not vm.state.vcpus[0, V_STATE] & (CACHES_ON | TRAPS_VM)


def test_with_fwb_the_guests_caches_are_its_own_affair() -> None:
    vm = lab("setway\ncaches 1\nsetway\ncaches 0\ncaches 0", fwb=True).end()
    assert vm.count(CACHE_CLEANS) == 0


def test_leaves_without_fwb_carry_write_back_memory() -> None:
    """C3 of the upstream reference: MemAttr 0xf without FWB, 6 with it."""
    for fwb, kind in ((True, 6), (False, 0xF)):
        leaf = lab("", fwb=fwb).end().leaves(1)[NESTED]
        assert leaf.descriptor >> 2 & 0xF == kind
        assert leaf.tag == 3


def test_a_flush_reaches_the_last_page_of_a_slot() -> None:
    vm = lab("poke 0x43fff000 1\nmark last\ncaches 1\nmark after").to("last")
    assert max(vm.leaves(0)) == 0x43FF_F000
    assert counted(vm, "after", CACHE_CLEANS) == [len(vm.leaves(0)) + len(vm.leaves(1))]
