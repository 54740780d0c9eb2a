"""How large a shadow leaf is: the decision table C1 of the upstream reference, for a host of 4K pages.

Hosts of 16K and 64K pages, and guest_memfd, are elsewhere (``test_kvm_granules``, ``test_golden_tables``).
"""

from __future__ import annotations

import pytest
from kvm_lab import PAGE, G, M, Vm, vtcr

from shadowmmu.host.layout import HVA_BASE
from shadowmmu.kvm.layout import S_HVA, S_SIZE
from shadowmmu.machine.counters import LEAVES_RELAXED

N = 0x8000_0000
LINUX_16K = vtcr(24, 1, tg0=2)
LINUX_64K = vtcr(24, 1, tg0=1)


def mapped(backing: str, level: int, *, write: str = "", extra: str = "", size: str = "") -> Vm:
    """L1 maps 0x80000000 at ``level`` onto ``backing`` memory; L2 writes one page."""
    canonical = 0x8000_0000 if level == 1 else 0x4100_0000
    span = size or {1: "1G", 2: "4M", 3: "64k"}[level]
    fill = f"write {canonical:#x} {write}" if write else "nop"
    return Vm(
        f"""mem {"2G" if level == 1 or backing == "huge-pud" else "64M"}
        start {backing}
        s2 new 1
        code
        {fill}
        map {N:#x} {canonical:#x} {span} {level} rwx
        {extra}
        mark before
        touch w 0x80003000
        mark after"""
    )


@pytest.mark.parametrize(
    ("backing", "level", "leaf", "tag"),
    [
        ("huge", 1, 2 * M, 1),
        ("huge", 2, 2 * M, 2),
        ("huge", 3, PAGE, 3),
        ("huge-pud", 1, G, 1),
        ("huge-pud", 2, 2 * M, 2),
        ("huge-pud", 3, PAGE, 3),
        ("huge-cont-pmd", 1, 2 * M, 1),
        ("huge-cont-pmd", 2, 2 * M, 2),
        ("huge-cont-pmd", 3, PAGE, 3),
        ("huge-cont-pte", 1, PAGE, 1),
        ("huge-cont-pte", 2, PAGE, 2),
        ("huge-cont-pte", 3, PAGE, 3),
        ("thp", 1, 2 * M, 1),
        ("thp", 2, 2 * M, 2),
        ("thp", 3, PAGE, 3),
        ("base", 1, PAGE, 1),
        ("base", 2, PAGE, 2),
        ("base", 3, PAGE, 3),
    ],
)
def test_the_smaller_of_the_host_page_and_of_the_guest_leaf(
    backing: str, level: int, leaf: int, tag: int
) -> None:
    vm = mapped(backing, level).end()
    assert vm.sizes() == {N + (0x3000 & ~(leaf - 1)): (leaf, tag)}
    canonical = 0x8000_0000 if level == 1 else 0x4100_0000
    assert vm.source(1, next(iter(vm.sizes()))) == canonical + (0x3000 & ~(leaf - 1))


@pytest.mark.parametrize("backing", ["huge", "thp"])
def test_a_slot_out_of_step_with_the_hosts_blocks_gets_pages(backing: str) -> None:
    vm = mapped(backing, 2)
    vm.state.slots[0, S_HVA] = int(HVA_BASE) + PAGE
    vm.state.slots[0, S_SIZE] -= PAGE
    assert vm.end().sizes() == {N + 0x3000: (PAGE, 2)}


def test_a_slot_in_step_with_blocks_of_2m_only_gets_these() -> None:
    vm = mapped("huge-pud", 1)
    vm.state.slots[0, S_HVA] = int(HVA_BASE) + 2 * M
    vm.state.slots[0, S_SIZE] -= 2 * M
    assert vm.end().sizes() == {N: (2 * M, 1)}


def test_a_leaf_of_1g_goes_with_a_notifier_inside_it_and_comes_back() -> None:
    vm = Vm(
        f"""mem 2G
        start huge-pud
        s2 new 1
        code
        map {N:#x} 0x80000000 1G 1 rw
        touch w 0x80003000
        mark filled
        tlbi 0 {0x90000:#x}
        mark invalidated
        touch w 0xa0003000
        mark again
        mprotect 0x80000000 1G r
        mark protected
        touch r 0xa0003000"""
    ).to("filled")
    assert vm.sizes() == {N: (G, 1)}
    assert vm.to("invalidated").sizes() == {}
    assert vm.to("again").sizes() == {N: (G, 1)}
    assert vm.to("protected").sizes() == {}
    vm.end()
    assert (vm.sizes(), vm.leaves(1)[N].prot) == ({N: (G, 1)}, "r")


@pytest.mark.parametrize("backing", ["huge", "thp"])
def test_a_block_that_sticks_out_of_the_slot_is_not_mapped_whole(backing: str) -> None:
    vm = mapped(backing, 2).to("before")
    vm.state.slots[0, S_SIZE] = 0x0100_0000 + 1 * M
    assert vm.end().sizes() == {N + 0x3000: (PAGE, 2)}


@pytest.mark.parametrize("backing", ["huge", "thp"])
def test_a_block_that_begins_before_the_slot_is_not_mapped_whole(backing: str) -> None:
    vm = Vm(
        f"""mem 64M
        start {backing}
        s2 new 1
        code
        map {N:#x} 0x80000000 4M 2 rw
        mark before
        touch w 0x80100000
        touch w 0x80200000"""
    ).to("before")
    vm.add_slot(0x8010_0000, 3 * M, 17 * M)
    assert vm.end().sizes() == {N + 0x10_0000: (PAGE, 2), N + 2 * M: (2 * M, 2)}


@pytest.mark.parametrize("backing", ["huge", "thp"])
def test_a_logging_slot_gets_pages(backing: str) -> None:
    assert mapped(backing, 2, extra="log 1").end().sizes() == {N + 0x3000: (PAGE, 2)}


def relaxed(logging: str) -> Vm:
    """A 2M leaf made read-only by the log, then written: a permission fault at level 2."""
    return Vm(
        f"""mem 64M
        start thp
        s2 new 1
        code
        write 0x41000000 2M
        map {N:#x} 0x41000000 2M 2 rwx
        touch w {N:#x}
        log 1
        {logging}
        mark before
        touch w 0x80005000"""
    )


def test_a_permission_fault_keeps_the_block_that_is_there() -> None:
    vm = relaxed("log 0").to("before")
    before = vm.leaves(1)[N]
    assert (before.size, before.prot) == (2 * M, "rx")
    after = vm.end().leaves(1)[N]
    assert (after.size, after.prot, after.word) == (2 * M, "rwx", before.word)
    assert vm.count(LEAVES_RELAXED) == 1


def test_a_permission_fault_while_logging_replaces_the_block() -> None:
    vm = relaxed("nop").to("before")
    assert vm.leaves(1)[N].size == 2 * M
    vm.end()
    assert vm.sizes() == {N + 0x5000: (PAGE, 2)}
    assert vm.leaves(1)[N + 0x5000].prot == "rwx"
    assert [r["size"] for r in vm.log("s2map") if r["mmu"] == 1 and r["addr"] >= N] == [2 * M, PAGE]


def other_granule(control: int, pokes: str, backing: str, code: int) -> Vm:
    """L2 executes one instruction at ``code``, through tables of another granule poked into L1's memory."""
    return Vm(
        f"""mem 128M
        start {backing}
        vtcr {control:#x}
        write 0x44000000 4M
        {pokes}
        s2 0x42000000 1
        codeat {code:#x}
        touch x {code:#x} 4 1"""
    )


def test_a_64k_page_of_l1_becomes_4k_pages() -> None:
    # Levels 2 (512M an entry) and 3.
    pokes = """poke 0x42000000 0x42010003
        poke 0x42010008 0x440107c3"""
    for backing in ("thp", "base"):
        vm = other_granule(LINUX_64K, pokes, backing, 0x1_3000)
        assert {n: (x.size, x.tag) for n, x in vm.end().leaves(1).items()} == {0x1_3000: (PAGE, 3)}
        assert vm.source(1, 0x1_3000) == 0x4401_3000


def test_a_32m_block_of_a_16k_granule_becomes_2m_blocks() -> None:
    # Levels 2 (32M an entry, 16 tables side by side) and 3.
    poke = "poke 0x42000008 0x440007c1"
    vm = other_granule(LINUX_16K, poke, "thp", 0x0220_0000).end()
    assert {n: (x.size, x.tag) for n, x in vm.leaves(1).items()} == {0x0220_0000: (2 * M, 2)}
    assert vm.source(1, 0x0220_0000) == 0x4420_0000
    vm = other_granule(LINUX_16K, poke, "base", 0x0220_3000).end()
    assert {n: (x.size, x.tag) for n, x in vm.leaves(1).items()} == {0x0220_3000: (PAGE, 2)}


def test_stage_2_off_fills_one_to_one_without_a_tag() -> None:
    vm = Vm(
        """mem 64M
        start thp
        s2 new 1
        vm 0
        codeat 0x40050000
        touch w 0x41003000"""
    ).end()
    found = {n: (x.size, x.tag, x.prot) for n, x in vm.leaves(1).items()}
    assert found == {0x4000_0000: (2 * M, 0, "rwx"), 0x4100_0000: (2 * M, 0, "rwx")}
    assert vm.source(1, 0x4100_0000) == 0x4100_0000
