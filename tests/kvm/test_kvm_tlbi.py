"""L1's TLBIs: what each takes out of the shadows. Table C2 of the upstream reference, and the scopes."""

from __future__ import annotations

import pytest
from kvm_lab import PAGE, G, K, M, Vm, vtcr

from shadowmmu.compiled import U64
from shadowmmu.machine.counters import (
    CHUNKS_SHADOW,
    TLBI_RANGE_SHADOW,
    TLBI_STAGE1,
    TLBI_VMID,
    TLBIS_TRAPPED,
    WIPES,
)

WHOLE = (0, 1 << 40)
PAGES = "map 0x40200000 0x41000000 64k 3 rw"
BLOCK = "map 0x40200000 0x41000000 2M 2 rw"
ENTER = "touch r 0 8 0"
FIRST, SECOND = "touch r 0x40200000", "touch r 0x40201000"


def after_tlbi(kind: int, operand: int, *setup: str, control: int = 0, **machine: object) -> Vm:
    """A machine whose L2 did what ``setup`` says before L1 executed one TLBI; the log begins there."""
    lines = "\n".join(setup)
    vm = Vm(
        f"""mem 64M
        start base
        {f"vtcr {control:#x}" if control else "nop"}
        s2 new 1
        {"nop" if control else "code"}
        {lines}
        mark before
        tlbi {kind} {operand:#x}""",
        **machine,
    ).to("before")
    vm.forget_log()
    return vm.end()


@pytest.mark.parametrize("kind", [0, 1, 7])
@pytest.mark.parametrize(
    ("operand", "setup", "start", "size"),
    [
        (0x0000600000040201, (PAGES, SECOND), 0x4020_0000, 2 * M),
        (0x0000700000040201, (PAGES, SECOND), 0x4020_1000, PAGE),
        (0x0000A00000040201, (PAGES, SECOND), 0x4000_0000, 32 * M),
        (0x0000D00000040201, (PAGES, SECOND), 0x4020_1000, PAGE),  # 64K level 1: no such leaf
        (0x0000900000040201, (PAGES, SECOND), 0x4020_1000, PAGE),  # 16K level 1: no such leaf
        (0x0000400000040201, (PAGES, SECOND), 0x4020_1000, PAGE),  # 4K level 0: no such leaf
        (0x0000000000040201, (PAGES, SECOND), 0x4020_1000, PAGE),
        (0x0000000000040201, (BLOCK, SECOND), 0x4020_0000, 2 * M),
        (0x0000000000040201, (BLOCK, FIRST), 0x4020_0000, 2 * M),
        (0x0000000000040201, (PAGES, FIRST), 0x4000_0000, 1 * G),
        (0x0000000000040201, (ENTER,), 0x4000_0000, 1 * G),
        (0x8000000000040201, (BLOCK, FIRST), 0x4020_0000, 2 * M),  # the NS bit is not part of the IPA
    ],
)
def test_an_ipas2_takes_its_span(
    kind: int, operand: int, setup: tuple[str, ...], start: int, size: int
) -> None:
    vm = after_tlbi(kind, operand, *setup)
    assert vm.unmapped() == [(start, size)]
    assert [row["val"] for row in vm.log("tlbi")] == [operand]
    assert not [ipa for ipa in vm.leaves(1) if start <= ipa < start + size]
    assert 0x1_0000 in vm.leaves(1) or ENTER in setup


def test_a_leaf_filled_with_stage_2_off_has_no_tag_and_costs_the_widest_span() -> None:
    vm = after_tlbi(0, 0x41003, "vm 0", "codeat 0x40050000", "touch w 0x41003000")
    assert vm.unmapped() == [(0x4000_0000, 1 * G)]
    assert vm.leaves(1) == {}


def test_the_tag_of_a_1g_leaf_reaches_every_address_in_it() -> None:
    setup = ("map 0x40000000 0x40000000 1G 1 rw", "touch r 0x40000000")
    vm = after_tlbi(0, 0x7_0201, *setup)
    assert vm.unmapped() == [(0x4000_0000, 1 * G)]


@pytest.mark.parametrize(("tg0", "size"), [(2, 32 * M), (1, 512 * M)])
def test_the_widest_span_follows_the_guests_granule(tg0: int, size: int) -> None:
    vm = after_tlbi(0, 0x40201, ENTER, control=vtcr(24, 1, tg0=tg0))
    assert vm.unmapped() == [(0x4000_0000, size)]


def test_a_leaf_without_tag_is_passed_over_for_a_larger_one() -> None:
    vm = Vm(
        f"""mem 64M
        start base
        s2 new 1
        code
        {BLOCK}
        touch r 0x40200000 4096 2
        mark before
        tlbi 0 0x40201"""
    ).to("before")
    vm.state.mem[vm.leaves(1)[0x4020_1000].word] &= ~U64(3 << 55)
    vm.forget_log()
    vm.end()
    assert vm.unmapped() == [(0x4020_0000, 2 * M)]


def test_a_tag_that_the_guests_granule_does_not_have_is_no_hint() -> None:
    # A level 1 tag with a 16K granule: KVM accepts no such leaf, so the widest span goes.
    vm = Vm(
        f"""mem 64M
        start base
        vtcr {vtcr(28, 1, tg0=2):#x}
        poke 0x42000008 0x420007c1
        s2 0x42000000 1
        codeat 0x2120000
        touch x 0x2120000 4 1
        mark before
        tlbi 0 0x2120"""
    ).to("before")
    leaf = vm.leaves(1)[0x212_0000]
    assert leaf.tag == 2
    vm.state.mem[leaf.word] ^= U64(3 << 55)
    vm.forget_log()
    vm.end()
    assert vm.unmapped() == [(0x200_0000, 32 * M)]


@pytest.mark.parametrize("kind", [2, 3])
@pytest.mark.parametrize(
    ("operand", "start", "size"),
    [
        (0x0000400000040000, 0x4000_0000, 8 * K),
        (0x00007F8000040000, 0x4000_0000, 8 * G),
        (0x0000978000010000, 0x4000_0000, 16 * M),
        (0x0000E00000004000, 0x4000_0000, 128 * M),
        (0x00007F800FFFFFFF, (1 << 40) - PAGE, PAGE),  # capped to the limit
    ],
)
def test_a_ripas2_takes_its_range(kind: int, operand: int, start: int, size: int) -> None:
    assert after_tlbi(kind, operand, ENTER).unmapped() == [(start, size)]


def test_a_ripas2_beyond_the_limit_is_ignored() -> None:
    vm = after_tlbi(2, 0x407F90000000, ENTER)
    assert vm.unmapped() == []
    assert vm.log("efault") == []


@pytest.mark.parametrize("tlbirange", [True, False])
def test_an_ipas2_beyond_the_limit_trips_a_warning_and_is_flushed(tlbirange: bool) -> None:
    vm = after_tlbi(0, 0x1000_0000, PAGES, FIRST, tlbirange=tlbirange)
    assert vm.unmapped() == [(1 << 40, 1 * G)]
    assert [row["ipa"] for row in vm.log("efault")] == [1 << 40]
    assert vm.count(CHUNKS_SHADOW) == 1
    assert vm.count(TLBI_RANGE_SHADOW) == int(tlbirange)
    assert vm.count(TLBI_VMID) == 0
    assert 0x4020_0000 in vm.leaves(1)


def test_a_partly_covered_block_goes_whole() -> None:
    vm = Vm(
        """mem 64M
        start thp
        s2 new 1
        code
        map 0x40200000 0x41000000 4M 2 rw
        touch w 0x40200000 0x200000 2
        mark before
        tlbi 0 0x700000040201"""
    ).end()
    assert [ipa for ipa in vm.leaves(1) if ipa >= 0x4000_0000] == [0x4040_0000]


TENANTS = """mem 64M
    vcpus 2
    start base
    s2 new 1
    code
    map 0x80000000 0x41000000 16k 3 rw
    touch r 0x80000000
    vm 0
    codeat 0x40050000
    touch r 0x41000000
    vm 1
    codeat 0x10000
    s2 new 2
    code
    map 0x80000000 0x41000000 16k 3 rw
    touch r 0x80000000
    mark before
    tlbi {} {}"""


@pytest.mark.parametrize(
    ("kind", "wiped", "stage1"),
    [(4, [3], 0), (8, [3], 0), (5, [1, 2, 3], 0), (6, [], 1)],
)
def test_the_scope_of_a_tlbi_is_the_vmid_of_the_moment(kind: int, wiped: list[int], stage1: int) -> None:
    vm = Vm(TENANTS.format(kind, 0)).to("before")
    vm.forget_log()
    before, trapped = vm.count(TLBI_STAGE1), vm.count(TLBIS_TRAPPED)
    vm.end()
    assert [mmu for mmu in range(1, 5) if vm.unmapped(mmu)] == wiped
    assert all(vm.unmapped(mmu) == [WHOLE] for mmu in wiped)
    assert [mmu for mmu in range(1, 4) if not vm.leaves(mmu)] == wiped
    assert vm.count(WIPES) == len(wiped)
    assert vm.count(TLBIS_TRAPPED) == trapped + 1
    assert vm.count(TLBI_STAGE1) - before >= stage1


def test_stage_2_on_and_off_share_the_tlbis_of_their_vmid() -> None:
    script = TENANTS.replace("s2 new 2", "s2 new 1").format(4, 0)
    vm = Vm(script).to("before")
    vm.forget_log()
    vm.end()
    assert [mmu for mmu in range(1, 5) if vm.unmapped(mmu)] == [1, 2, 3]
    script = TENANTS.replace("s2 new 2", "s2 new 1").format(0, 0x80000)
    vm = Vm(script).to("before")
    vm.forget_log()
    vm.end()
    assert [vm.unmapped(mmu) for mmu in (1, 2, 3)] == [
        [(0x8000_0000, PAGE)],
        [(0x8000_0000, 1 * G)],
        [(0x8000_0000, PAGE)],
    ]


def test_a_range_tlbi_leaves_other_vmids_alone() -> None:
    vm = Vm(TENANTS.format(2, 0x0000400000080000)).to("before")
    vm.forget_log()
    vm.end()
    assert [vm.unmapped(mmu) for mmu in (1, 2, 3)] == [[], [], [(0x8000_0000, 8 * K)]]
    assert 0x8000_0000 in vm.leaves(1)
    assert 0x8000_0000 not in vm.leaves(3)
