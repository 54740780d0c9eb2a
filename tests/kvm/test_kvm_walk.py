"""The guest stage-2 walk: every outcome, by what L1 is told or by where the leaf leads.

L1's tables are poked into its memory by hand; L2's first instruction is the access that is translated.
"""

from __future__ import annotations

import pytest
from kvm_lab import PAGE, M, Vm, fault_status, vtcr

from shadowmmu.kvm.layout import S_FLAGS, SLOT_READONLY
from shadowmmu.machine.counters import FAULTS_INJECTED, GUEST_DESCRIPTORS_READ
from shadowmmu.machine.state import image_digest
from shadowmmu.verify.judge import Judge

V39 = vtcr(25, 1)
ROOT, SECOND, THIRD = 0x4200_0000, 0x4201_0000, 0x4202_0000
TABLE, BLOCK, PAGE_TYPE = 3, 1, 3
RWX = 0x7C0
AF = 1 << 10
CONTIGUOUS = 1 << 52
CODE = 0x80_2000
DONE = 0x5A00_0000
ADDRESS_SIZE, TRANSLATION, ACCESS, EXTERNAL = 0x00, 0x04, 0x08, 0x14
TO_THIRD = {ROOT: SECOND | TABLE, SECOND + 4 * 8: THIRD | TABLE}


def translated(
    pokes: dict[int, int],
    control: int = V39,
    *,
    code: int = CODE,
    root: int = ROOT,
    memory: str = "64M",
    before: str = "nop",
    bits: int = 48,
    backing: str = "base",
) -> Vm:
    """L2's first fetch, at ``code``, through the tables poked; stopped before it at mark ``go``."""
    lines = "\n".join(f"poke {place:#x} {value:#x}" for place, value in pokes.items())
    return Vm(
        f"""mem {memory}
        start {backing}
        vtcr {control:#x}
        {lines}
        s2 {root:#x} 1
        codeat {code:#x}
        {before}
        mark go
        touch x {code:#x} 4 1
        mark gone""",
        ipa_limit_bits=bits,
    ).to("go")


def status(vm: Vm) -> int:
    """The fault L1 got for the fetch; what else it was told is checked."""
    seen = vm.end().touches()[-1]
    code = int(vm.executor.scenario.events[-2]["a"])
    assert seen["esr"] >> 26 == 0x20
    assert seen["far"] == seen["elr"] == code
    assert seen["hpfar"] == code >> 12 << 4 | 1 << 63
    assert vm.count(FAULTS_INJECTED) == 1
    assert vm.leaves(1) == {}
    return fault_status(seen["esr"])


def reaches(vm: Vm, canonical_ipa: int) -> None:
    """L2's fetch was done, from ``canonical_ipa``."""
    vm.end()
    code = int(vm.executor.scenario.events[-2]["a"])
    assert vm.touches()[-1]["esr"] == DONE
    (base, leaf), *others = vm.leaves(1).items()
    assert not others
    assert vm.source(1, base) + (code - base) == canonical_ipa
    assert leaf.size <= 2 * M


def test_a_page_is_reached_through_three_levels() -> None:
    vm = translated({**TO_THIRD, THIRD + 2 * 8: 0x4100_3000 | RWX | PAGE_TYPE})
    reaches(vm, 0x4100_3000)
    assert vm.count(GUEST_DESCRIPTORS_READ) == 3


@pytest.mark.parametrize(
    ("pokes", "status_code"),
    [
        ({}, TRANSLATION + 1),
        ({ROOT: SECOND | TABLE}, TRANSLATION + 2),
        (TO_THIRD, TRANSLATION + 3),
        ({**TO_THIRD, THIRD + 16: 0x4100_0000 | RWX | BLOCK}, TRANSLATION + 3),
        ({**TO_THIRD, THIRD + 16: 0x4100_0000 | RWX ^ AF | PAGE_TYPE}, ACCESS + 3),
        ({ROOT: SECOND | TABLE, SECOND + 32: 0x4100_0000 | RWX ^ AF | BLOCK}, ACCESS + 2),
        ({ROOT: 0x4000_0000 | RWX ^ AF | BLOCK}, ACCESS + 1),
        ({ROOT: 0x2000_0000 | TABLE}, EXTERNAL + 2),
        ({ROOT: SECOND | TABLE, SECOND + 32: 0x2000_0000 | TABLE}, EXTERNAL + 3),
    ],
)
def test_a_table_that_ends_early_faults_at_its_level(pokes: dict[int, int], status_code: int) -> None:
    assert status(translated(pokes)) == status_code


@pytest.mark.parametrize(
    ("pokes", "level"),
    [
        ({ROOT: 1 << 33 | TABLE}, 1),
        ({ROOT: SECOND | TABLE, SECOND + 32: 1 << 32 | TABLE}, 2),
        ({ROOT: 1 << 35 | RWX | BLOCK}, 1),
        ({ROOT: SECOND | TABLE, SECOND + 32: 1 << 32 | RWX | BLOCK}, 2),
        ({**TO_THIRD, THIRD + 16: 1 << 32 | RWX | PAGE_TYPE}, 3),
        ({**TO_THIRD, THIRD + 16: 1 << 32 | RWX ^ AF | PAGE_TYPE}, 3),  # before the access flag
    ],
)
def test_an_output_beyond_ps_is_an_address_size_fault(pokes: dict[int, int], level: int) -> None:
    assert status(translated(pokes, vtcr(25, 1, ps=0))) == ADDRESS_SIZE + level


def test_an_output_beyond_the_machine_is_an_address_size_fault_whatever_ps_says() -> None:
    pokes = {ROOT: SECOND | TABLE, SECOND + 32: 1 << 40 | RWX | BLOCK}
    assert status(translated(pokes, vtcr(25, 1, ps=5), bits=40)) == ADDRESS_SIZE + 2


def test_a_root_beyond_ps_is_an_address_size_fault_at_level_0() -> None:
    vm = translated({}, vtcr(25, 1, ps=0), root=1 << 32, memory="4G")
    assert status(vm) == ADDRESS_SIZE


@pytest.mark.parametrize("t0sz", [0, 15, 40, 63])
def test_an_input_size_outside_25_to_48_faults_with_status_0(t0sz: int) -> None:
    assert status(translated({}, vtcr(t0sz, 1))) == ADDRESS_SIZE


@pytest.mark.parametrize(
    ("control", "bits"),
    [
        (vtcr(24, 0), 48),  # 40 bits from level 2: 19 bits of start table
        (vtcr(32, 2), 48),  # 32 bits from level 0: none
        (vtcr(25, 3), 48),  # 4K has no level -1
        (vtcr(24, 2), 40),  # level 0 needs more than 42 bits
        (vtcr(20, 1), 40),  # input larger than the machine's addresses
        (vtcr(24, 3, tg0=2), 48),  # 16K from level 0
        (vtcr(24, 2, tg0=2), 40),  # 16K from level 1 needs more than 40 bits
        (vtcr(24, 3, tg0=1), 48),  # 64K from level 0
        (vtcr(24, 2, tg0=1), 40),  # 64K from level 1 needs more than 42 bits
    ],
)
def test_a_start_level_that_does_not_fit_is_a_translation_fault_at_level_0(control: int, bits: int) -> None:
    assert status(translated({}, control, bits=bits)) == TRANSLATION


@pytest.mark.parametrize(
    ("control", "pokes", "level"),
    [
        (vtcr(16, 2), {ROOT: 0x4000_0000 | RWX | BLOCK}, 0),
        (vtcr(17, 2, tg0=2), {ROOT: 0x4000_0000 | RWX | BLOCK}, 1),
        (vtcr(16, 2, tg0=1), {ROOT: 0x4000_0000 | RWX | BLOCK}, 1),
    ],
)
def test_a_block_above_the_granules_largest_is_a_translation_fault(
    control: int, pokes: dict[int, int], level: int
) -> None:
    assert status(translated(pokes, control)) == TRANSLATION + level


@pytest.mark.parametrize(
    ("control", "pokes", "code", "canonical"),
    [
        # 4K: from level 0, from level 2, a 1G block, 2M blocks.
        (vtcr(16, 2), {ROOT: SECOND | TABLE, SECOND: 0x4000_0000 | RWX | BLOCK}, 0x123_4000, 0x4123_4000),
        (vtcr(34, 0), {ROOT + 8: 0x4120_0000 | RWX | BLOCK}, 0x21_2000, 0x4121_2000),
        (V39, {ROOT + 8: 0x4000_0000 | RWX | BLOCK}, 0x4123_4000, 0x4123_4000),
        # 40 bits from level 1: two start tables side by side, the input is in the second.
        (vtcr(24, 1), {ROOT + 4096: 0x4000_0000 | RWX | BLOCK}, 0x80_0123_4000, 0x4123_4000),
        # 16K: levels 2, 3; a page of the second 16K.
        (vtcr(28, 1, tg0=2), {ROOT: SECOND | TABLE, SECOND + 8: 0x4100_4000 | RWX | PAGE_TYPE},
         0x6000, 0x4100_6000),
        (vtcr(28, 1, tg0=2), {ROOT + 8: 0x4200_0000 | RWX | BLOCK}, 0x212_3000, 0x4212_3000),
        # 64K: levels 2, 3; and one 512M block.
        (vtcr(25, 1, tg0=1), {ROOT: SECOND | TABLE, SECOND + 8: 0x4101_0000 | RWX | PAGE_TYPE},
         0x1_9000, 0x4101_9000),
        (vtcr(25, 1, tg0=1), {ROOT: 0x4000_0000 | RWX | BLOCK}, 0x123_4000, 0x4123_4000),
    ],
)  # fmt: skip
def test_where_a_walk_leads(control: int, pokes: dict[int, int], code: int, canonical: int) -> None:
    reaches(translated(pokes, control, code=code), canonical)


def test_the_low_bits_of_vttbr_below_the_start_table_are_ignored() -> None:
    # Two tables side by side stand on 8K: the 4K bit of the base does not count.
    vm = translated({ROOT: 0x4000_0000 | RWX | BLOCK}, vtcr(24, 1), root=ROOT + PAGE)
    reaches(vm, 0x4080_2000)


def test_input_bits_above_t0sz_are_dropped_as_linux_does() -> None:
    vm = translated({ROOT: 0x4000_0000 | RWX | BLOCK}, V39, code=(1 << 39) + 0x123_4000)
    reaches(vm, 0x4123_4000)


@pytest.mark.parametrize(
    ("control", "pokes", "code", "canonical"),
    [
        # The output's bits below the run of 16 entries come from the input.
        (V39, {**TO_THIRD, THIRD + 16: 0x4100_9000 | CONTIGUOUS | RWX | PAGE_TYPE}, CODE, 0x4100_2000),
        (V39, {ROOT: SECOND | TABLE, SECOND + 32: 0x4240_0000 | CONTIGUOUS | RWX | BLOCK},
         CODE, 0x4280_2000),
        (vtcr(28, 1, tg0=2),
         {ROOT: SECOND | TABLE, SECOND + 8: 0x411B_C000 | CONTIGUOUS | RWX | PAGE_TYPE},
         0x6000, 0x4100_6000),
        (vtcr(28, 1, tg0=2), {ROOT + 8: 0x4400_0000 | CONTIGUOUS | RWX | BLOCK}, 0x212_3000, 0x4212_3000),
        (vtcr(25, 1, tg0=1),
         {ROOT: SECOND | TABLE, SECOND + 8: 0x410D_0000 | CONTIGUOUS | RWX | PAGE_TYPE},
         0x1_9000, 0x4101_9000),
    ],
)  # fmt: skip
def test_the_contiguous_hint_widens_what_the_input_decides(
    control: int, pokes: dict[int, int], code: int, canonical: int
) -> None:
    vm = translated(pokes, control, code=code)
    reaches(vm, canonical)


HA = vtcr(25, 1, ha=True)
YOUNG = {**TO_THIRD, THIRD + 16: 0x4100_0000 | RWX ^ AF | PAGE_TYPE}


def test_ha_sets_the_access_flag_in_l1s_table_and_dirties_its_page() -> None:
    vm = translated(YOUNG, HA, before="log 1")
    page = (THIRD - 0x4000_0000) >> 12
    assert not vm.state.dirty[page >> 6] >> (page & 63) & 1
    assert vm.guest_word(THIRD + 16) & AF == 0
    vm.to("gone")
    assert vm.touches()[-1]["esr"] == DONE
    assert vm.guest_word(THIRD + 16) == YOUNG[THIRD + 16] | AF
    assert vm.state.dirty[page >> 6] >> (page & 63) & 1
    assert vm.source(1, CODE) == 0x4100_0000


def test_ha_on_a_table_the_vmm_may_not_write_is_an_external_abort() -> None:
    assert status(translated(YOUNG, HA, before=f"mprotect {THIRD:#x} 4k r")) == EXTERNAL + 3


def test_ha_on_a_table_in_a_read_only_slot_is_an_external_abort() -> None:
    vm = translated(YOUNG, HA)
    vm.state.slots[0, S_FLAGS] |= SLOT_READONLY
    assert status(vm) == EXTERNAL + 3
    assert vm.guest_word(THIRD + 16) & AF == 0


def test_a_table_the_vmm_may_not_read_is_an_external_abort() -> None:
    assert status(translated(YOUNG, before=f"mprotect {THIRD:#x} 4k")) == EXTERNAL + 3


def test_a_table_whose_page_the_host_dropped_reads_as_zeros() -> None:
    assert status(translated(YOUNG, before=f"dontneed {THIRD:#x} 4k")) == TRANSLATION + 3


def test_looking_changes_nothing() -> None:
    # The judge composes L1's table with the host's by probing: here L1 cleared an access flag, which a walk
    # would set, and then a page of the table is gone.
    vm = Vm(
        f"""mem 64M
        start base
        vtcr {HA:#x}
        poke {ROOT:#x} {0x4000_0000 | RWX ^ AF | BLOCK:#x}
        s2 {ROOT:#x} 1
        codeat 0x1234000
        touch x 0x1234000 4 1
        mark kept
        poke {ROOT:#x} {0x4000_0000 | RWX ^ AF | BLOCK:#x}
        mark cleared
        dontneed {ROOT:#x} 4k
        mark lost""",
        "reverse_table",
    )
    for mark, awaiting in (("kept", 0), ("cleared", 0), ("lost", 1)):
        before, leaves = image_digest(vm.to(mark).state), vm.leaves(1)
        judge = Judge()
        judge.look(vm.executor, vm.executor.position - 1)
        assert (judge.worst, judge.awaiting_tlbi, len(leaves)) == (None, awaiting, 1)
        assert image_digest(vm.state) == before
