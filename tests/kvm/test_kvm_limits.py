"""IPA limits of the host, 40 to 52 bits: what a sweep costs, how far a shadow reaches, what lies beyond."""

from __future__ import annotations

import pytest
from kvm_lab import PAGE, Vm

from shadowmmu.compiled import INTERPRETED
from shadowmmu.guest.layout import L1_LOOP_PAGE
from shadowmmu.kvm.layout import V_ELR, V_ESR, V_FAR
from shadowmmu.machine.counters import (
    CHUNKS_SHADOW,
    FAULTS_OWN,
    LOCK_WRITE,
    MMIO_EXITS,
    TLBI_RANGE_SHADOW,
)

NESTED = 0x8000_0000
DATA = 0x4100_0000
TOP = (1 << 39) - PAGE
"""The last page of L1's 39 bits; Linux drops the bits above them (suspicion/nested-ipa-above-t0sz)."""
SCRIPT = f"""mem 64M
    start base
    s2 new 1
    code
    map {NESTED:#x} {DATA:#x} 16k 3 rw
    map {TOP:#x} {DATA + PAGE:#x} 4k 3 rw
    touch w {NESTED:#x} 4096 4
    """
CHUNKS = {40: 1_024, 44: 16_384, 48: 262_144, 52: 4_194_304}
"""Chunks of 1G of a whole shadow, by its IPA bits (2.6 of the upstream reference)."""
SWEPT = [40, 44] if INTERPRETED else list(CHUNKS)
"""Interpreted, a walk takes microseconds: millions of them are for the compiled pass."""


@pytest.mark.parametrize("bits", SWEPT)
def test_a_sweep_visits_every_chunk_of_the_hosts_limit(bits: int) -> None:
    vm = Vm(f"{SCRIPT}mark filled\ndontneed {DATA:#x} 4k", ipa_limit_bits=bits).to("filled")
    before = vm.count(CHUNKS_SHADOW), vm.count(TLBI_RANGE_SHADOW)
    vm.end()
    assert vm.count(CHUNKS_SHADOW) - before[0] == CHUNKS[bits]
    assert vm.count(TLBI_RANGE_SHADOW) - before[1] == CHUNKS[bits], "each with its own range, mapped or not"
    assert vm.leaves(1) == {}


@pytest.mark.parametrize("bits", CHUNKS)
def test_a_shadow_reaches_to_the_limit_and_no_further(bits: int) -> None:
    last = (1 << bits) - PAGE
    vm = Vm(f"{SCRIPT}touch w {last:#x}\ntouch r {last + PAGE:#x} 8 2", ipa_limit_bits=bits).end()
    assert vm.sizes(1)[last] == (PAGE, 3)
    assert vm.source(1, last) == DATA + PAGE
    assert [(row["esr"], row["far"]) for row in vm.log("inject_own")] == [(0x9600_0000, last + PAGE)]
    seen = vm.touches()[-1]
    assert (seen["esr"], seen["far"], seen["elr"], seen["left"]) == (0x8200_0007, 0x200, 0x200, 2)
    assert [row["ipa"] for row in vm.log("kvm_guest_fault")][-1] == 0, "no abort is traced but the vector's"


def l1_loads(canonical_ipa: int, bits: int, vm_bits: int) -> Vm:
    return Vm(
        f"mem 64M\nstart base 0 {vm_bits}\nnop\nmark up\npeek {canonical_ipa:#x}", ipa_limit_bits=bits
    ).to("up")


@pytest.mark.parametrize(
    ("bits", "vm_bits", "canonical_ipa", "esr"),
    [
        (48, 40, (1 << 40) - 8, None),
        (48, 40, 1 << 40, 0x9600_0010),
        (48, 44, 1 << 44, 0x9600_0010),
        (44, 40, (1 << 44) - 8, 0x9600_0010),
        (44, 40, 1 << 44, 0x9600_0000),
        (40, 40, 1 << 40, 0x9600_0000),
    ],
)
def test_an_access_of_l1_beyond_a_limit_is_its_own_fault(
    bits: int, vm_bits: int, canonical_ipa: int, esr: int | None
) -> None:
    """External abort between the VM's limit and the host's, address size beyond; the first as on the rig."""
    vm = l1_loads(canonical_ipa, bits, vm_bits)
    vm.forget_log()
    exits = vm.count(MMIO_EXITS)
    vm.end()
    if esr is None:
        assert (vm.count(FAULTS_OWN), vm.count(MMIO_EXITS) - exits) == (0, 1)
        return
    assert vm.count(FAULTS_OWN) == 1
    assert vm.count(MMIO_EXITS) == exits
    assert [int(vm.state.vcpus[0, column]) for column in (V_ESR, V_FAR, V_ELR)] == [
        esr,
        canonical_ipa,
        int(L1_LOOP_PAGE),
    ]
    assert not [row for row in vm.log("kvm_guest_fault") if row["ipa"] == canonical_ipa & ~0xFFF]


def test_a_nested_address_that_l1_sends_beyond_its_own_limit_is_mmio() -> None:
    """The limits are those of the table that is loaded: the fault is at a legal nested IPA."""
    script = f"map 0x90000000 {1 << 41:#x} 4k 3 rwx\nvtcr 0x80053559\ns2 0x40100000 1\n"
    vm = Vm(f"{SCRIPT}{script}touch r 0x90000000\ntouch x 0x90000000", ipa_limit_bits=48).end()
    assert [row["phys_addr"] for row in vm.log("mmio")] == [1 << 41]
    assert [(row["esr"], row["far"]) for row in vm.log("inject_own")] == [(0x8600_0010, 0x9000_0000)]


def test_a_fetch_from_no_memslot_goes_to_l2_and_then_to_l1() -> None:
    vm = Vm(f"{SCRIPT}map 0x90000000 0x60000000 4k 3 rx\ntouch x 0x90000000").end()
    assert vm.count(FAULTS_OWN) == 1
    assert vm.touches()[-1]["far"] == 0x200


def test_a_code_page_without_memory_behind_it_ends_the_same_way() -> None:
    vm = Vm(f"{SCRIPT}map 0x90000000 0x60000000 4k 3 rx\ncodeat 0x90000000\ntouch r {NESTED:#x}\nenter").end()
    assert vm.count(FAULTS_OWN) == 2
    assert [row["far"] for row in vm.log("inject_s2")][-2:] == [0x200, 0x200]
    vm.references()


def test_a_dirty_log_is_harvested_under_one_lock() -> None:
    script = f"{SCRIPT}log 1\ntouch w {NESTED:#x} 4096 4\npoke 0x43000000 1\nmark dirty\ngetlog"
    vm = Vm(script).to("dirty")
    locks = vm.count(LOCK_WRITE)
    vm.end()
    assert vm.count(LOCK_WRITE) - locks == 1, "two words of the bitmap have bits, and more of L1's own"
