"""Hosts of 16K and 64K pages: chunks, geometry, leaves of L1's granules, and what L1 is not offered."""

from __future__ import annotations

from typing import Any

import pytest
from kvm_lab import PAGE, G, K, M, Vm, vtcr

from shadowmmu.arch.regime import stage2_start_level
from shadowmmu.compiled import INTERPRETED
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.machine.counters import CHUNKS_SHADOW
from shadowmmu.machine.granule import GRANULES
from shadowmmu.pgtable.context import CANONICAL, context_regime, input_size, largest_block

SIZES = {"4K": (4 * K, 2 * M, G), "16K": (16 * K, 32 * M, 64 * G), "64K": (64 * K, 512 * M, 4096 * G)}
LARGER = ["16K", "64K"]
N = 0x10_0000_0000 - 0x4000_0000
"""A nested IPA aligned to 512M, below 36 bits."""


# Full-range chunk counts, upstream.md 2.6.
CHUNKS = [
    (52, 4_194_304, 134_217_728, 8_388_608),
    (48, 262_144, 8_388_608, 524_288),
    (44, 16_384, 524_288, 32_768),
    (40, 1_024, 32_768, 2_048),
]


@pytest.mark.parametrize("granule", GRANULES)
@pytest.mark.parametrize("row", CHUNKS, ids=lambda row: f"{row[0]} bits")
def test_chunks_of_a_full_range(row: tuple[int, int, int, int], granule: str) -> None:
    s = Vm("mem 64M\nstart base", granule=granule, ipa_limit_bits=row[0]).state
    chunk = int(largest_block(context_regime(s, 1)))
    assert int(input_size(s, 1)) // chunk == row[1 + list(GRANULES).index(granule)]


@pytest.mark.parametrize(
    ("granule", "bits", "level", "tables"),
    [
        ("4K", 40, 1, 2),
        ("4K", 43, 1, 16),
        ("4K", 44, 0, 1),
        ("4K", 48, 0, 1),
        ("16K", 40, 2, 16),
        ("16K", 41, 1, 1),
        ("16K", 48, 1, 2),
        ("16K", 51, 1, 16),
        ("64K", 40, 2, 1),
        ("64K", 46, 2, 16),
        ("64K", 47, 1, 1),
        ("64K", 52, 1, 1),
    ],
)
def test_start_level_and_tables_side_by_side(granule: str, bits: int, level: int, tables: int) -> None:
    shift = GRANULES[granule]
    assert stage2_start_level(shift, bits) == level
    entries = bits - (shift + (shift - 3) * (3 - level))
    assert max(1, 1 << (entries - (shift - 3))) == tables if entries > shift - 3 else tables == 1


def host(granule: str, *lines: str, backing: str = "thp", memory: str = "2G", **machine: Any) -> Vm:
    """A machine of 2G whose L1 has a root."""
    head = (f"mem {memory}", f"granule {granule}", f"start {backing}", "s2 new 1", "code")
    return Vm("\n".join((*head, *lines)), **machine)


def found(vm: Vm, mmu: int = 1) -> dict[int, tuple[int, int]]:
    """Size and tag of the shadow leaves above L2's code."""
    return {ipa: size for ipa, size in vm.sizes(mmu).items() if ipa >= N}


@pytest.mark.parametrize("granule", LARGER)
@pytest.mark.parametrize("backing", ["base", "thp", "huge"])
def test_the_smaller_of_the_hosts_page_and_l1s_leaf(granule: str, backing: str) -> None:
    page, block, _ = SIZES[granule]
    vm = host(
        granule,
        f"map {N:#x} 0x60000000 {block} 2 rw",
        f"map {N + block:#x} 0x80000000 {4 * page} 3 rw",
        f"touch w {N + 5 * page:#x}",
        f"touch w {N + block + page:#x}",
        backing=backing,
    ).end()
    upper = (N + 5 * page, (page, 2)) if backing == "base" else (N, (block, 2))
    assert found(vm) == dict([upper, (N + block + page, (page, 3))])
    assert vm.source(1, N + block + page) == 0x8000_0000 + page


def test_a_64k_granule_of_l1_on_a_host_of_16k() -> None:
    vm = host("16K", f"map {N:#x} 0x60000000 512M 2 rw", f"map {N + 512 * M:#x} 0x80000000 64k 3 rw",
              f"touch w {N + 3 * 32 * M:#x}", f"touch w {N + 512 * M + 16 * K:#x} 0x4000 2")  # fmt: skip
    text = "\n".join(vm.executor.scenario.lines)
    assert "64k 3" in text
    control = vtcr(25, 1, tg0=1)
    vm = Vm(text.replace("start thp", f"vtcr {control:#x}\nstart thp")).end()
    assert found(vm) == {
        N + 3 * 32 * M: (32 * M, 2),
        N + 512 * M + 16 * K: (16 * K, 3),
        N + 512 * M + 32 * K: (16 * K, 3),
    }


def test_a_64k_granule_of_l1_on_a_host_of_4k_takes_tables_of_16_pages() -> None:
    control = vtcr(25, 1, tg0=1)
    vm = Vm(
        f"mem 64M\nvtcr {control:#x}\nstart base\ns2 new 1\ncode\nmap 0x20000 0x41000000 128k 3 rw\n"
        "touch w 0x20000 0x1000 32\nunmap 0x30000 64k 3\ntlbi 0 0x0000f00000000030\ntouch r 0x20000 0x1000 32"
    ).end()
    assert {ipa for ipa in vm.leaves(1) if ipa >= 0x2_0000} == set(range(0x2_0000, 0x3_0000, PAGE))
    assert vm.touches()[-1]["left"] == 16


@pytest.mark.parametrize("granule", LARGER)
def test_a_hint_below_the_hosts_page_warns_and_takes_the_page(granule: str) -> None:
    page = SIZES[granule][0]
    vm = host(granule, f"map {N:#x} 0x60000000 {4 * page} 3 rw", f"touch w {N:#x} {page} 4", "mark go",
              f"tlbi 0 {0x7 << 44 | (N + page + 0x1000) >> 12:#x}").to("go")  # fmt: skip
    vm.forget_log()
    assert found(vm.end()).keys() == {N, N + 2 * page, N + 3 * page}
    assert [row["ipa"] for row in vm.log("efault")] == [N + page + 0x1000]


@pytest.mark.parametrize("granule", LARGER)
@pytest.mark.parametrize("design", ["sweep", "reverse_table"])
def test_a_notifier_of_one_page_costs_sweep_the_whole_range(granule: str, design: str) -> None:
    page, block, _ = SIZES[granule]
    bits = 40 if INTERPRETED else 48
    vm = host(granule, f"map {N:#x} 0x60000000 {8 * page} 3 rw", f"touch w {N:#x} {page} 8", "mark go",
              f"dontneed {0x6000_0000 + page:#x} {page}", backing="base", design=design,
              ipa_limit_bits=bits).to("go")  # fmt: skip
    before = vm.count(CHUNKS_SHADOW)
    chunks = vm.end().count(CHUNKS_SHADOW) - before
    assert chunks == ((1 << bits) // block if design == "sweep" else 0)
    left = set() if design == "sweep" else {N + k * page for k in range(8)} - {N + page}
    assert found(vm).keys() == left


def test_a_machine_of_another_granule_than_the_scenario_is_refused() -> None:
    scenario = parse_scenario("mem 64M\nstart base\n", "plain", granule="16K")
    with pytest.raises(ValueError, match="pages of 16K, the machine has pages of 4K"):
        Executor(scenario)
    with pytest.raises(ValueError, match="granule '8K'"):
        Executor(scenario, machine=Machine(granule="8K"))
    assert (
        int(context_regime(Executor(scenario, machine=Machine(granule="16K")).state, CANONICAL).stride) == 11
    )


@pytest.mark.parametrize("granule", LARGER)
def test_host_memory_moves_under_larger_pages(granule: str) -> None:
    page, block, _ = SIZES[granule]
    data = 0x6000_0000
    vm = host(
        granule,
        f"map {N:#x} {data:#x} {block} 2 rw",
        f"touch w {N:#x}",
        "mark block",
        f"dontneed {data + page:#x} {page}",
        f"touch w {N:#x} {page} 3",
        "mark split",
        f"write {data:#x} {8 * page}",
        f"collapse {data:#x} {block}",
        f"touch w {N:#x}",
        "mark whole",
        "log 1",
        f"touch w {N:#x} {page} 2",
        "getlog",
        ipa_limit_bits=40 if granule == "64K" else 37,
    )
    assert found(vm.to("block")) == {N: (block, 2)}
    assert found(vm.to("split")) == {N + k * page: (page, 2) for k in range(3)}
    assert found(vm.to("whole")) == {N: (block, 2)}
    assert found(vm.end()) == {N + k * page: (page, 2) for k in range(2)}
