"""AT as L1 executes it: which answers of the CPU stand, when the tables are walked, when L1 is stuck."""

from __future__ import annotations

from importlib.resources import files

import pytest
from kvm_lab import Vm

from shadowmmu.arch import context as c
from shadowmmu.compiled import U64
from shadowmmu.errors import UndeterminedError
from shadowmmu.guest.cpu import TRIES
from shadowmmu.kvm.layout import K_RACES, SLOT_READONLY, V_PAR, V_VIRTUAL
from shadowmmu.kvm.pool import lookup_shadow
from shadowmmu.machine.counters import (
    AT_REPLAYED,
    AT_SLOW,
    AT_TRAPPED,
    GUEST_DESCRIPTORS_READ,
    LOCK_WRITE,
    WIPES,
)
from shadowmmu.pgtable.context import M_PENDING, M_VTTBR

GUEST = """mem 64M
start base 0 0
s2 new 1
code
map 0x80000000 0x41000000 16k 3 rw
map 0x90000000 0x41100000 16k 3 r
poke 0x41000000 0x80001003
poke 0x41001000 0x80002003
poke 0x41002000 0x0060000090000743
poke 0x41002008 0x0060000090001703
poke 0x41002010 0x0060000090002343
s1 ttbr0=0x80000000 tcr=0x580803519 sctlr=0x30d00805 mair=0xff
"""
"""L2's VA 0 leads through three tables to nested 0x90000000, open to EL0; VA 0x1000 is EL1's; 0x2000 was
never accessed."""
TOUCH = "touch r 0x80000000 4096 3\n"
OK = 0xFF00_0000_9000_0980
OK_BY_CPU = OK | 1 << 9
S1_PERMISSION, S1_ACCESS, S1_TRANSLATION = 0x81F, 0x817, 0x80F
S2_PERMISSION = 0xA1F
WALK_TRANSLATION_1 = 0xB0B


def asked(script: str, at: str = "linux-7.3.4", **machine: object) -> list[tuple[int, int]]:
    """(PAR_EL1, whether the tables were walked) of each AT."""
    vm = Vm(GUEST + script, at=at, **machine).end()
    return [(row["par"], row["slow"]) for row in vm.log("at")]


def test_an_empty_shadow_is_no_reason_to_fail() -> None:
    assert asked("at s1e1r 0x123\nat s12e1r 0x123") == [(OK, 1), (0xFF00_0000_4110_0180, 1)]


def test_the_cpu_answers_once_the_tables_are_in_the_shadow() -> None:
    assert asked(TOUCH + "at s1e1r 0x123") == [(OK_BY_CPU, 0)]


def test_a_part_of_the_tables_in_the_shadow_is_not_enough() -> None:
    assert asked("touch r 0x80000000 4096 2\nat s1e1r 0x123") == [(OK, 1)]


def test_stage_1_permission_and_access_faults_of_the_cpu_stand() -> None:
    assert asked(TOUCH + "at s1e0r 0x1000\nat s1e1r 0x2000") == [(S1_PERMISSION, 0), (S1_ACCESS, 0)]


def test_any_other_fault_of_the_cpu_is_walked_again() -> None:
    assert asked(TOUCH + "at s1e1r 0x3000") == [(S1_TRANSLATION, 1)]


def test_at_of_el1a_checks_no_permission() -> None:
    lines = "at s1e1w 0x1000\nat s1e1a 0x1000\npoke 0x41002000 0x00600000900007c3\nat s1e1w 0x0\nat s1e1a 0x0"
    found = [par & 1 for par, _ in asked(lines)]
    assert found == [0, 0, 1, 0]


def test_the_fast_path_takes_the_lock_for_write_and_the_walk_reads_l1s_memory() -> None:
    vm = Vm(GUEST + "mark before\nat s1e1r 0x0\nmark after").to("before")
    locks, reads = vm.count(LOCK_WRITE), vm.count(GUEST_DESCRIPTORS_READ)
    vm.to("after")
    assert vm.count(LOCK_WRITE) == locks + 1
    assert vm.count(GUEST_DESCRIPTORS_READ) == reads + 3 * (3 + 1)
    assert (vm.count(AT_TRAPPED), vm.count(AT_SLOW), vm.count(AT_REPLAYED)) == (1, 1, 0)
    assert int(vm.state.vcpus[0, V_PAR]) == OK


def test_without_a_shadow_mmu_the_tables_are_walked() -> None:
    vm = Vm(GUEST + TOUCH + "s2 new 2\nmark other\nat s1e1r 0x0").to("other")
    assert lookup_shadow(vm.state, 0) == 0
    assert [row["par"] for row in vm.end().log("at")] == [WALK_TRANSLATION_1]


def test_a_wiped_shadow_is_an_empty_one() -> None:
    script = TOUCH + "at s1e1r 0x0\ntlbi 4\nat s1e1r 0x0\ndontneed 0x41800000 4k\n"
    assert asked(script) == [(OK_BY_CPU, 0), (OK, 1)]
    notified = TOUCH + "at s1e1r 0x0\ndontneed 0x41800000 4k\nat s1e1r 0x0"
    assert asked(notified)[1][0] & ~(1 << 9) == OK


def test_at_makes_no_shadow_leaf() -> None:
    vm = Vm(GUEST + "at s1e1r 0x0\nat s12e1w 0x0").end()
    assert vm.leaves(1) == {}


@pytest.mark.parametrize("repeated", [1, 5])
def test_the_fast_path_alone_never_gets_there(repeated: int) -> None:
    wrong = asked("at s1e1r 0x0\n" * repeated, at="fast-only")
    assert wrong == [(1, 0)] * repeated
    part = asked("touch r 0x80000000\n" + "at s1e1r 0x0\n" * repeated, at="fast-only")
    assert {par & 1 for par, _ in part} == {1}
    assert {par >> 8 & 3 for par, _ in part} == {3}
    assert asked("at s1e1r 0x0\n" * repeated) == [(OK, 1)] * repeated


def test_bundled_scenario_linux_answers_before_the_first_touch_as_after_it() -> None:
    name = files("shadowmmu").joinpath("data/scenarios/at-before-first-touch.scenario")
    script = name.read_text()

    def run(at: str) -> list[int]:
        return [row["par"] & ~(1 << 9) for row in Vm(script, at=at).end().log("at")]

    linux, before = run("linux-7.3.4"), run("fast-only")
    assert linux[:6] == [OK & ~(1 << 9), 0x81F & ~(1 << 9), *linux[2:6]]
    assert linux[:6] == linux[6:12]
    assert before[:6] == [1] * 6
    assert before[6:11] == linux[6:11]


def test_a_write_needs_stage_2_to_allow_it() -> None:
    found = [par for par, _ in asked("at s12e1w 0x0\nat s12e1r 0x0\nat s12e0w 0x0\nat s12e1r 0x3000")]
    assert found == [S2_PERMISSION, 0xFF00_0000_4110_0180, S2_PERMISSION, S1_TRANSLATION]


def test_stage_2_translation_faults_are_reported_at_their_level() -> None:
    leaves = "poke 0x41002018 0x0060000098000743\npoke 0x41002020 0x00600000d0000743\n"
    found = asked(leaves + "at s12e1r 0x3000\nat s12e1r 0x4000")
    assert [par for par, _ in found] == [0xA0D, 0xA0B]


def test_a_table_that_stage_2_hides_is_a_fault_on_the_walk() -> None:
    unmapped = asked("unmap 0x80000000 4k 3\nat s1e1r 0x0\nunmap 0x80002000 4k 3\nat s1e1r 0x0")
    assert [par for par, _ in unmapped] == [0xB0B, 0xB0B]
    unread = asked("map 0x80001000 0x41001000 4k 3 w\nat s12e1r 0x0")
    assert [par for par, _ in unread] == [0xB1D]
    beyond = asked("map 0x80002000 0x50000000 4k 3 rw\nat s1e1r 0x0")
    assert [par for par, _ in beyond] == [0x82F]


def test_hierarchical_permissions_count_unless_hpd_says_no() -> None:
    table = "poke 0x41000000 0x2000000080001003\n"  # APTable: nothing for EL0 below
    assert [par for par, _ in asked(table + "at s1e0r 0x0\nat s1e1r 0x0")] == [S1_PERMISSION, OK]
    disabled = table + "s1 tcr=0x20580803519\nat s1e0r 0x0\n"
    assert asked(disabled + TOUCH + "at s1e0r 0x0") == [(OK, 1), (OK_BY_CPU, 0)]


def swapped(word: int) -> int:
    return int.from_bytes(word.to_bytes(8, "little"), "big")


def test_tables_of_the_other_byte_order() -> None:
    words = {0x4100_0000: 0x8000_1003, 0x4100_1000: 0x8000_2003, 0x4100_2000: 0x9000_0343}
    tables = "".join(f"poke {at:#x} {swapped(word):#x}\n" for at, word in words.items())
    script = tables + "s1 sctlr=0x32d00805 tcr=0x8580803519\nat s1e1r 0x0\n"
    assert asked(script + TOUCH + "at s1e1r 0x0") == [(OK, 1), (OK_BY_CPU, 0)]
    assert Vm(GUEST + script).end().guest_word(0x4100_2000) == swapped(0x9000_0743)


def test_a_root_beyond_the_output_size_is_refused_though_the_shadow_maps_it() -> None:
    beyond = "map 0x180000000 0x41000000 16k 3 rw\ntouch r 0x180000000\ns1 ttbr0=0x180000000 "
    assert asked(beyond + "tcr=0x580803519\n" + TOUCH + "at s1e1r 0x0") == [(OK_BY_CPU, 0)]
    assert asked(beyond + "tcr=0x80803519\n" + TOUCH + "at s1e1r 0x0") == [(0x801, 1)]


def test_with_stage_2_off_nested_addresses_are_canonical() -> None:
    script = "vm 0\npoke 0x41000000 0x41001003\npoke 0x41001000 0x41002003\ns1 ttbr0=0x41000000\n"
    shadowed = "codeat 0x40050000\ntouch r 0x41000000 4096 3\nat s12e1r 0x0\n"
    assert asked(script + "at s12e1r 0x0\n" + shadowed) == [(OK, 1), (OK_BY_CPU, 0)]


def test_pan_counts_on_the_slow_path_only() -> None:
    """The CPU is asked with PAN off: seen on the running kernel."""
    slow = asked("at s1e1rp 0x0\ns1 pan=1\nat s1e1rp 0x0\nat s1e1r 0x0\nat s1e1wp 0x0")
    assert [par for par, _ in slow] == [OK, S1_PERMISSION, OK, S1_PERMISSION]
    assert asked(TOUCH + "s1 pan=1\nat s1e1rp 0x0") == [(OK_BY_CPU, 0)]


@pytest.mark.parametrize("operation", ["s1e2r", "s1e2w", "s1e2a"])
@pytest.mark.parametrize("e2h0", [0, 1])
def test_el2s_own_regime_with_stage_1_off_is_flat(operation: str, e2h0: int) -> None:
    vm = Vm(GUEST.replace("base 0 0", f"base {e2h0} 0") + f"at {operation} 0x41000123").end()
    assert [(row["par"], row["slow"]) for row in vm.log("at")] == [(0x4100_0B00, 0)]


L1_TABLES = """poke 0x41200000 0x41201003
poke 0x41201000 0x41202003
poke 0x41202000 0x0060000041100703
poke 0x41202008 0x0060000041100303
poke 0x41202010 0x0060000041100783
"""


def of_el2(script: str, e2h0: int, **registers: int) -> list[tuple[int, int]]:
    """L1 with a stage 1 of its own: its registers are set behind its back, at ``mark on``."""
    vm = Vm(GUEST.replace("base 0 0", f"base {e2h0} 0") + L1_TABLES + "mark on\n" + script).to("on")
    tcr = 0x8080_3519 | 5 << 16 if e2h0 else 0x5_8080_3519
    wanted = {
        "TTBR0_EL2": 0x4120_0000,
        "TCR_EL2": tcr,
        "MAIR_EL2": 0xFF,
        "SCTLR_EL2": 0x30C5_0835 & ~(1 << 25),
    }
    for name, value in (wanted | registers).items():
        vm.state.vcpus[0, V_VIRTUAL + c.COLUMNS.index(name)] = value
    return [(row["par"], row["slow"]) for row in vm.end().log("at")]


@pytest.mark.parametrize("e2h0", [0, 1])
def test_el2s_own_regime_is_walked_through_the_canonical_stage_2(e2h0: int) -> None:
    found = of_el2("at s1e2r 0x0\nat s1e2w 0x2000\nat s1e2a 0x2000\nat s1e2r 0x5000", e2h0)
    assert found == [(0xFF00_0000_4110_0B80, 0), (S1_PERMISSION, 0), (0xFF00_0000_4110_0B80, 0), (0x80F, 1)]


@pytest.mark.parametrize("e2h0", [0, 1])
def test_an_access_flag_fault_of_el2s_regime_is_walked_again(e2h0: int) -> None:
    assert of_el2("at s1e2r 0x1000", e2h0) == [(S1_ACCESS, 1)]


def test_el2_takes_no_upper_half_without_e2h() -> None:
    assert of_el2(f"at s1e2r {1 << 55:#x}", 1) == [(0x801, 1)]


def test_el2_with_e2h_has_an_upper_half() -> None:
    upper = {"TTBR1_EL2": 0x4120_0000, "TCR_EL2": 0x5_8019_3519}
    assert of_el2("at s1e2r 0xffffff8000000000", 0, **upper) == [(0xFF00_0000_4110_0B80, 0)]


def test_a_host_at_el2_and_el0_is_one_stage() -> None:
    host = 1 << 34 | 1 << 27 | 1
    script = "at s1e1r 0x0\nat s12e1r 0x0\nat s12e0r 0x0\nat s1e0w 0x1000\nat s1e1r 0x5000"
    found = of_el2(script, 0, HCR_EL2=host)
    ok = (0xFF00_0000_4110_0B80, 0)
    assert found == [ok, ok, (S1_PERMISSION, 0), (S1_ACCESS, 0), (0x80F, 1)]


def racing(races: int, script: str) -> Vm:
    """A guest whose next ``races`` compare-and-swaps of descriptors lose."""
    vm = Vm(GUEST + "mark go\n" + script).to("go")
    vm.state.regs[K_RACES] = U64(races)
    return vm


@pytest.mark.parametrize("races", [1, 3, TRIES - 1])
def test_a_lost_race_replays_the_instruction(races: int) -> None:
    vm = racing(races, "s1 tcr=0x8580803519\nat s1e1r 0x2000").end()
    assert vm.count(AT_REPLAYED) == races
    assert [row["replayed"] for row in vm.log("at")] == [1] * races + [0]
    assert vm.log("at")[-1]["par"] == OK & ~0xFFF | 0x2000 | 0x980
    assert vm.guest_word(0x4100_2010) == 0x0060_0000_9000_2743


def test_a_race_that_is_always_lost_is_no_progress() -> None:
    vm = racing(TRIES, "s1 tcr=0x8580803519\nat s1e1r 0x2000")
    with pytest.raises(UndeterminedError, match="AT"):
        vm.end()
    assert vm.count(AT_REPLAYED) == TRIES


def test_a_race_about_l1s_own_leaf_replays_too() -> None:
    accessed = "map 0x90000000 0x41100000 4k 3 rwa\nvtcr 0x80223559\ns2 0x40100000 1\nat s12e1r 0x0"
    vm = racing(2, accessed).end()
    assert vm.count(AT_REPLAYED) == 2
    assert vm.log("at")[-1]["par"] == 0xFF00_0000_4110_0180
    table = "map 0x80001000 0x41001000 4k 3 rwa\nvtcr 0x80223559\ns2 0x40100000 1\nat s1e1r 0x0"
    vm = racing(2, table).end()
    assert vm.count(AT_REPLAYED) == 2
    assert vm.log("at")[-1]["par"] == OK


def test_an_abort_that_loses_the_race_is_taken_again() -> None:
    vm = racing(
        2, "map 0x80001000 0x41001000 4k 3 rwa\nvtcr 0x80223559\ns2 0x40100000 1\ntouch r 0x80001000"
    ).end()
    assert vm.touches()[-1]["left"] == 0
    assert vm.register(K_RACES) == 0


@pytest.mark.parametrize(
    ("vtcr", "why"),
    [("0x80023550", "48 bits with SL0 for 39"), ("0x8002357f", "1 bit"), ("0x800235c0", "64 bits")],
)
def test_a_vtcr_that_cannot_be_walked_replays_at_s12_for_ever(vtcr: str, why: str) -> None:
    """Stage 1 is off, so only the last walk meets the VTCR: Linux returns its error number to the trap."""
    vm = Vm(GUEST + f"s1 sctlr=0x30d00804\nvtcr {vtcr}\ns2 0x40100000 1\nat s1e1r 0x0\nat s12e1r 0x0")
    with pytest.raises(UndeterminedError, match="AT"):
        vm.end()
    assert vm.count(AT_REPLAYED) == TRIES, why
    assert [row["replayed"] for row in vm.log("at")] == [0] + [1] * TRIES


def test_a_vtcr_that_cannot_be_walked_is_a_fault_for_at_s1() -> None:
    illegal = asked("vtcr 0x80023550\ns2 0x40100000 1\nat s1e1r 0x0")
    assert [par for par, _ in illegal] == [0xB0B]
    size = asked("vtcr 0x8002357f\ns2 0x40100000 1\nat s1e1r 0x0\n")
    assert [par for par, _ in size] == [0xB03]


def test_a_stage_2_table_outside_l1s_memory_replays_at_s12_for_ever() -> None:
    vm = Vm(GUEST + "s1 sctlr=0x30d00804\npoke 0x40100000 0x50000003\nat s12e1r 0x0")
    with pytest.raises(UndeterminedError):
        vm.end()
    assert vm.count(AT_REPLAYED) == TRIES


def test_access_flags_that_l1s_memory_refuses_are_external_aborts() -> None:
    vm = Vm(GUEST + "s1 tcr=0x8580803519\nmark go\nat s1e1r 0x2000").to("go")
    vm.state.slots[0, 3] = SLOT_READONLY
    assert [row["par"] for row in vm.end().log("at")] == [0x82F]


def test_a_recycled_mmu_answers_with_its_former_tenants_tables() -> None:
    """As Linux 7.3.4: the new tenant's name is on it before the wipe; the switch does not ask it."""

    def recycled(*switches: str) -> tuple[int, int]:
        vm = Vm(GUEST + TOUCH + "mark go\nat s1e1r 0x0", as_architecture=switches).to("go")
        other = int(vm.state.mmus[1, M_VTTBR]) ^ 3 << 48
        vm.state.mmus[1, M_VTTBR] = U64(other)
        vm.state.mmus[1, M_PENDING] = U64(1)
        vm.state.vcpus[0, V_VIRTUAL + c.C_VTTBR_EL2] = U64(0x4011_0000 | 2 << 48)
        vm.state.mmus[1, M_VTTBR] = U64(0x4011_0000 | 2 << 48)
        row = vm.end().log("at")[0]
        return row["par"], row["slow"]

    assert recycled() == (OK_BY_CPU, 0)
    assert recycled("at-recycled-mmu") == (WALK_TRANSLATION_1, 1)
    assert asked(TOUCH + "at s1e1r 0x0", as_architecture=("at-recycled-mmu",)) == [(OK_BY_CPU, 0)]


def test_the_wipe_makes_a_recycled_mmu_honest() -> None:
    roots = "".join(f"s2 new {vmid}\ncode\ntouch r 0x10000\n" for vmid in (2, 3))
    vm = Vm(GUEST + TOUCH + roots + "at s1e1r 0x0").end()
    assert vm.count(WIPES) == 1
    assert vm.log("at")[0]["par"] & 1


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(KeyError):
        Vm(GUEST, at="2019")
