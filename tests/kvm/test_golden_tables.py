"""The worked tables of the upstream reference, appendices C and D: a row's text is the test's id.

C7 (pool scripts) stands with the pool's tests, C8 (aliases) with the designs'. Not expressed, because the
model has no such thing: memory types other than normal (C3), -ENOMEM of a map (D2), the reset of a vCPU
without FWB and the teardown of a VM (D3).
"""

from __future__ import annotations

from typing import Any

import pytest
from kvm_lab import PAGE, G, K, M, Vm, fault_status, vtcr

from shadowmmu.arch.fault import (
    ACCESS_FLAG,
    ADDRESS_SIZE,
    EXTERNAL_WALK,
    PERMISSION,
    TRANSLATION,
)
from shadowmmu.arch.fault import fault_status as status_of
from shadowmmu.compiled import U64
from shadowmmu.host.layout import HVA_BASE
from shadowmmu.kvm.at_par import par_of_fault
from shadowmmu.kvm.granule import guest_regime
from shadowmmu.kvm.layout import (
    K_RACES,
    S_BASE,
    S_FLAGS,
    S_HVA,
    S_SIZE,
    SLOT_GUEST_MEMFD,
    SLOT_LOG_DIRTY,
    SLOT_READONLY,
)
from shadowmmu.kvm.leaf_size import mapping_size, resolve_vma_size
from shadowmmu.kvm.walk import base_within_limits
from shadowmmu.machine.counters import FAULTS_BOUNCED, FAULTS_INJECTED, MMIO_EXITS
from shadowmmu.machine.state import R_FWB, R_PA_BITS
from shadowmmu.pgtable.attributes import PROT_R, PROT_UX, PROT_W, PROT_X, leaf_descriptor

N = 0x8000_0000
NO_SIZE = 0


def rows(*table: tuple[Any, ...]) -> list[Any]:
    """Parameters whose id is the row's text, its first element."""
    return [pytest.param(*row[1:], id=row[0]) for row in table]


# host granule, pages of the VMA, what the host maps, alignment of the slot, 1: it logs, 2: guest_memfd, L1's
# leaf, level of a permission fault (3: another fault), leaf.
C1 = rows(
    ("hugetlb 1G | 1G | no | 1G | translation | 1G", "4K", G, G, G, 0, G, 3, G),
    ("hugetlb 1G | 1G | no | 2M | translation | 2M", "4K", G, G, G, 0, 2 * M, 3, 2 * M),
    ("hugetlb 1G | 2M only | no | 1G | translation | 2M", "4K", G, G, 2 * M, 0, G, 3, 2 * M),
    ("hugetlb 2M | 2M | no | 1G | translation | 2M", "4K", 2 * M, 2 * M, 2 * M, 0, G, 3, 2 * M),
    ("hugetlb 2M | no | no | 2M | translation | 4K", "4K", 2 * M, 2 * M, PAGE, 0, 2 * M, 3, PAGE),
    ("hugetlb 32M | 2M | no | 2M or more | translation | 2M", "4K", 32 * M, 2 * M, 2 * M, 0, 2 * M, 3, 2 * M),
    ("hugetlb 32M | 2M | no | more than 2M | translation | 2M", "4K", 32 * M, 2 * M, 2 * M, 0, G, 3, 2 * M),
    ("hugetlb 64K | - | no | any | translation | 4K", "4K", 64 * K, PAGE, G, 0, G, 3, PAGE),
    ("THP 2M | 2M | no | >= 2M | translation | 2M (upgrade)", "4K", PAGE, 2 * M, 2 * M, 0, 2 * M, 3, 2 * M),
    ("THP 2M | 2M | no | 4K | translation | 4K", "4K", PAGE, 2 * M, 2 * M, 0, PAGE, 3, PAGE),
    ("THP 2M | 2M | yes | 2M | translation | 4K", "4K", PAGE, 2 * M, 2 * M, 1, 2 * M, 3, PAGE),
    ("4K pages | - | no | 2M | translation | 4K", "4K", PAGE, PAGE, G, 0, 2 * M, 3, PAGE),
    ("any (1G) | any | no | 64K page | translation | 4K", "4K", G, G, G, 0, 64 * K, 3, PAGE),
    ("any (THP) | any | no | 64K page | translation | 4K", "4K", PAGE, 2 * M, G, 0, 64 * K, 3, PAGE),
    ("any 2M | 2M | no | 32M block | translation | 2M", "4K", 2 * M, 2 * M, 2 * M, 0, 32 * M, 3, 2 * M),
    ("THP 2M present | 2M | no | 2M | permission at level 2 | 2M",
     "4K", PAGE, 2 * M, 2 * M, 0, 2 * M, 2, 2 * M),
    ("THP 2M present | 2M | yes | 2M | permission at level 2 | 4K",
     "4K", PAGE, 2 * M, 2 * M, 1, 2 * M, 2, PAGE),
    ("host 16K, 32M hugetlb | 32M | no | 32M | translation | 32M",
     "16K", 32 * M, 32 * M, 32 * M, 0, 32 * M, 3, 32 * M),
    ("host 16K | any | no | 64K page | translation | 16K",
     "16K", 32 * M, 32 * M, 32 * M, 0, 64 * K, 3, 16 * K),
    ("host 16K, 32M hugetlb | 32M | no | 512M block | translation | 32M",
     "16K", 32 * M, 32 * M, 32 * M, 0, 512 * M, 3, 32 * M),
    ("host 64K, 512M hugetlb | 512M | no | 512M | translation | 512M",
     "64K", 512 * M, 512 * M, 512 * M, 0, 512 * M, 3, 512 * M),
    ("guest_memfd | - | - | any | any | one host page", "4K", PAGE, 2 * M, G, 2, G, 3, PAGE),
    ("host 16K, guest_memfd | - | - | any | any | one host page",
     "16K", PAGE, 32 * M, 32 * M, 2, 32 * M, 3, 16 * K),
    ("host 16K, contiguous 1G of 32M | 32M | no | 512M | translation | 32M",
     "16K", G, 32 * M, 32 * M, 0, 512 * M, 3, 32 * M),
    ("host 64K, contiguous 2M of 64K | - | no | any | translation | 64K",
     "64K", 2 * M, 64 * K, 512 * M, 0, 512 * M, 3, 64 * K),
)  # fmt: skip
FLAGS = {0: 0, 1: int(SLOT_LOG_DIRTY), 2: int(SLOT_GUEST_MEMFD)}
MACHINES: dict[str, Any] = {}


def machine_of(granule: str) -> Any:
    """A machine with one memslot, made once."""
    if granule not in MACHINES:
        MACHINES[granule] = Vm(f"mem 64M\ngranule {granule}\nstart base").state
    return MACHINES[granule]


@pytest.mark.parametrize(
    ("granule", "backing", "mapped", "aligned", "flags", "guest", "held_level", "leaf"), C1
)
def test_c1_shadow_leaf_size(
    granule: str, backing: int, mapped: int, aligned: int, flags: int, guest: int, held_level: int, leaf: int
) -> None:
    s = machine_of(granule)
    hva = int(HVA_BASE) + aligned  # base and user address agree modulo ``aligned`` and no more
    s.slots[0, [S_BASE, S_SIZE, S_HVA, S_FLAGS]] = 0, 1 << 43, hva, FLAGS[flags]
    at = U64(hva + (1 << 42) + 3 * 64 * K)
    sizes = resolve_vma_size(s, 0, at, U64(backing), U64(guest), True)
    sizes = type(sizes)(U64(sizes.vma), U64(sizes.limit))
    assert int(mapping_size(s, 0, at, U64(mapped), sizes, held_level)) == leaf


PAGES = "map 0x40200000 0x41000000 64k 3 rw"
BLOCK = "map 0x40200000 0x41000000 2M 2 rw"
FIRST, SECOND = "touch r 0x40200000", "touch r 0x40201000"
ENTER = "touch r 0 8 0"
TTL = "IPAS2E1IS of 0x40201000, TTL="
SPANS = rows(
    (TTL + "0b0110", 0, 0x0000600000040201, (PAGES, SECOND), 0, 0x4020_0000, 2 * M),
    (TTL + "0b0111", 0, 0x0000700000040201, (PAGES, SECOND), 0, 0x4020_1000, PAGE),
    (TTL + "0b1010 (TTL granule beats VTCR)", 0, 0x0000A00000040201, (PAGES, SECOND), 0, 0x4000_0000, 32 * M),
    (TTL + "0, leaf at it tagged 3", 0, 0x40201, (PAGES, SECOND), 0, 0x4020_1000, PAGE),
    (TTL + "0, 4K leaf at it tagged 2", 0, 0x40201, (BLOCK, SECOND), 0, 0x4020_0000, 2 * M),
    (TTL + "0, 4K leaf at 0x40200000 tagged 2", 0, 0x40201, (BLOCK, FIRST), 0, 0x4020_0000, 2 * M),
    (TTL + "0, leaf at 0x40200000 tagged 3: widest", 0, 0x40201, (PAGES, FIRST), 0, 0x4000_0000, G),
    (TTL + "0, nothing found, 4K: 1G", 0, 0x40201, (ENTER,), 0, 0x4000_0000, G),
    (TTL + "0, nothing found, 16K: 32M", 0, 0x40201, (ENTER,), 2, 0x4000_0000, 32 * M),
    (TTL + "0, nothing found, 64K: 512M", 0, 0x40201, (ENTER,), 1, 0x4000_0000, 512 * M),
    ("RIPAS2E1IS TG=1 SCALE=0 NUM=0: 8K", 2, 0x0000400000040000, (ENTER,), 0, 0x4000_0000, 8 * K),
    ("RIPAS2E1IS TG=1 SCALE=3 NUM=31: 8G", 2, 0x00007F8000040000, (ENTER,), 0, 0x4000_0000, 8 * G),
    ("RIPAS2E1IS TG=2 SCALE=1 NUM=15: 16M", 2, 0x0000978000010000, (ENTER,), 0, 0x4000_0000, 16 * M),
    ("RIPAS2E1IS TG=3 SCALE=2 NUM=0: 128M", 2, 0x0000E00000004000, (ENTER,), 0, 0x4000_0000, 128 * M),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "operand", "steps", "tg0", "start", "size"), SPANS)
def test_c2_tlbi_operands_and_spans(
    kind: int, operand: int, steps: tuple[str, ...], tg0: int, start: int, size: int
) -> None:
    control = f"vtcr {vtcr(24, 1, tg0=tg0):#x}" if tg0 else "nop"
    before = "nop" if tg0 else "code"
    lines = ["mem 64M", "start base", control, "s2 new 1", before, *steps, "mark go"]
    vm = Vm("\n".join([*lines, f"tlbi {kind} {operand:#x}"])).to("go")
    vm.forget_log()
    assert vm.end().unmapped() == [(start, size)]


C3 = rows(
    ("page with FWB, guest tag 3", 1, 3, 3, PROT_X, 0x0180_0000_8000_07DB),
    ("2M block with FWB, guest tag 2", 1, 2, 2, PROT_X, 0x0100_0000_8000_07D9),
    ("page without FWB, tag 0", 0, 3, 0, PROT_X, 0x0000_0000_8000_07FF),
    ("XN=0b10 adds 0x0040000000000000", 0, 3, 0, U64(0), 0x0040_0000_8000_07FF),
    ("XN=0b01: no execution at EL1", 0, 3, 0, PROT_UX, 0x0020_0000_8000_07FF),
)


@pytest.mark.parametrize(("fwb", "level", "tag", "execute", "descriptor"), C3)
def test_c3_shadow_leaf_encodings(fwb: int, level: int, tag: int, execute: Any, descriptor: int) -> None:
    s = machine_of("4K")
    s.regs[R_FWB] = fwb
    prot = U64(PROT_R | PROT_W | execute | U64(tag << 55))
    assert int(leaf_descriptor(s, U64(0x8000_0000), level, prot)) == descriptor


C4 = rows(
    ("TRANSLATION 0x04+l", TRANSLATION, 0x04),
    ("ACCESS 0x08+l", ACCESS_FLAG, 0x08),
    ("PERM 0x0c+l", PERMISSION, 0x0C),
    ("ADDRSZ 0x00+l", ADDRESS_SIZE, 0x00),
    ("SEA_TTW 0x14+l", EXTERNAL_WALK, 0x14),
)


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize(("kind", "first"), C4)
def test_c4_fault_codes(kind: int, first: int, level: int) -> None:
    assert int(status_of(kind, level)) == first + level


C5 = rows(
    ("stage-2 translation level 2 in an S12", TRANSLATION, 2, True, False, 0xA0D),
    ("stage-2 permission level 3", PERMISSION, 3, True, False, 0xA1F),
    ("stage-1 permission level 3", PERMISSION, 3, False, False, 0x81F),
    ("S1 walk hit an S2 translation fault at S1 level 1", TRANSLATION, 1, True, True, 0xB0B),
    ("SEA on S1 table read at level 0", EXTERNAL_WALK, 0, False, False, 0x829),
)


@pytest.mark.parametrize(("kind", "level", "stage2", "walk", "par"), C5)
def test_c5_par_on_failure(kind: int, level: int, stage2: bool, walk: bool, par: int) -> None:
    assert int(par_of_fault(status_of(kind, level), stage2, walk)) == par


# host granule, PA bits, T0SZ, SL0, TG0, start level, legal
C6 = rows(
    ("4K: SL0=0 starts at level 2", "4K", 48, 30, 0, 0, 2, True),
    ("4K: SL0=1 starts at level 1", "4K", 48, 25, 1, 0, 1, True),
    ("4K: T0SZ=24 SL0=1, two tables side by side", "4K", 48, 24, 1, 0, 1, True),
    ("4K: T0SZ=16 SL0=2 starts at level 0", "4K", 48, 16, 2, 0, 0, True),
    ("4K: T0SZ=24 SL0=0, start table too large", "4K", 48, 24, 0, 0, 2, False),
    ("4K: T0SZ=32 SL0=2, no start table", "4K", 48, 32, 2, 0, 0, False),
    ("4K: start level 0 needs more than 42 PA bits", "4K", 40, 24, 2, 0, 0, False),
    ("16K: SL0=0 starts at level 3", "4K", 48, 39, 0, 2, 3, True),
    ("16K: SL0=1 starts at level 2, T0SZ=24 legal", "4K", 48, 24, 1, 2, 2, True),
    ("16K: SL0=2 starts at level 1", "4K", 48, 17, 2, 2, 1, True),
    ("64K: SL0=1 starts at level 2, T0SZ=24 legal", "4K", 48, 24, 1, 1, 2, True),
    ("16K on a host of 16K pages: as on one of 4K", "16K", 48, 24, 1, 2, 2, True),
    ("4K on a host of 16K pages is walked as 16K", "16K", 48, 24, 1, 0, 2, True),
    ("4K on a host of 64K pages is walked as 64K", "64K", 48, 24, 1, 0, 2, True),
    ("16K on a host of 64K pages is walked as 64K", "64K", 48, 24, 0, 2, 3, False),
    ("a host of 52 bits shows 48: PS=52 is read as 48", "64K", 52, 16, 2, 1, 1, True),
)


@pytest.mark.parametrize(("granule", "pa_bits", "t0sz", "sl0", "tg0", "level", "legal"), C6)
def test_c6_start_level_legality(
    granule: str, pa_bits: int, t0sz: int, sl0: int, tg0: int, level: int, legal: bool
) -> None:
    s = machine_of(granule)
    s.regs[R_PA_BITS] = pa_bits
    r = guest_regime(s, U64(vtcr(t0sz, sl0, tg0=tg0, ps=6 if pa_bits == 52 else 5)))
    asked = {0: 12, 1: 16, 2: 14}[tg0]
    assert r.page_shift == max(asked, {"4K": 12, "16K": 14, "64K": 16}[granule])
    assert (r.start_level, r.block_level) == (level, 1 if r.page_shift == 12 else 2)
    assert r.oa_bits == min(pa_bits, 48)
    assert base_within_limits(r, pa_bits) == legal


def l2(mapping: str, *steps: str) -> Vm:
    """L1 maps 64K at 0x80000000, then ``steps``; stopped before the last of them."""
    lines = ["mem 64M", "start base", "s2 new 1", "code", "write 0x41000000 64k", mapping, *steps[:-1]]
    return Vm("\n".join([*lines, "mark go", steps[-1]])).to("go")


def outcome(vm: Vm) -> tuple[int | None, int, bool]:
    """Status that L1 was told (None: its L2 ended), MMIO exits, whether the leaf is there."""
    esr = vm.touches()[-1]["esr"]
    return None if esr == 0x5A00_0000 else fault_status(esr), vm.count(MMIO_EXITS), N in vm.leaves(1)


MAP = f"map {N:#x} 0x41000000 64k 3 "
TOUCH = f"touch w {N:#x}"
D1 = rows(
    ("fault | any: inject into L1 with the guest's level", "nop", (TOUCH,), 0, (0x05, 0, False)),
    ("ok | PERM | lacks: inject PERM at the guest's level",
     f"map {N:#x} 0x41000000 2M 2 r", (f"touch r {N:#x}", TOUCH), 0, (0x0E, 0, True)),
    ("ok | PERM | ok | writable RAM: host cause, fix the shadow", MAP + "rw", (TOUCH, "log 1", TOUCH), 0,
     (None, 0, True)),
    ("ok | TRANSLATION | RAM: fill, then PERM is forwarded", MAP + "r", (TOUCH,), 0, (0x0F, 0, True)),
    ("ok | ACCESS | RAM: mkyoung", MAP + "rw", (TOUCH, TOUCH), "young", (None, 0, True)),
    ("ok | any | none: MMIO at the canonical address", f"map {N:#x} 0x9000000 4k 3 rw", (TOUCH,), 0,
     (None, 1, False)),
    ("ok | any | RO write: MMIO at the canonical address", MAP + "rw", (TOUCH,), "readonly",
     (None, 1, False)),
    ("-EAGAIN: re-enter the guest, replay",
     MAP + "rwa", (f"vtcr {vtcr(25, 1, ha=True):#x}", "s2 0x40100000 1",
     TOUCH), "race", (None, 0, True)),
)  # fmt: skip


@pytest.mark.parametrize(("mapping", "steps", "change", "expected"), D1)
def test_d1_who_gets_a_fault_of_l2(
    mapping: str, steps: tuple[str, ...], change: object, expected: tuple[int | None, int, bool]
) -> None:
    vm = l2(mapping, *steps)
    before = vm.count(FAULTS_INJECTED)
    if change == "young":
        vm.state.mem[vm.leaves(1)[N].word] &= ~U64(1 << 10)
    elif change == "readonly":
        vm.state.slots[0, S_FLAGS] |= SLOT_READONLY
    elif change == "race":
        vm.state.regs[K_RACES] = U64(2)
    vm.end()
    assert outcome(vm) == expected
    assert vm.count(FAULTS_INJECTED) - before == (expected[0] is not None)
    assert vm.register(K_RACES) == 0


D2 = rows(
    ("0: resume", ("touch r 0x80000000",), 0),
    ("-EAGAIN (retry): resume", ("dontneed 0x41000000 4k", "touch r 0x80000000", TOUCH), 1),
    ("-EAGAIN (same leaf): resume", (TOUCH, TOUCH), 0),
)


@pytest.mark.parametrize(("steps", "bounced"), D2)
def test_d2_every_result_of_the_map_resumes(steps: tuple[str, ...], bounced: int) -> None:
    vm = l2(MAP + "rw", *steps)
    before = vm.count(FAULTS_BOUNCED)
    assert outcome(vm.end()) == (None, 0, True)
    assert vm.count(FAULTS_BOUNCED) - before == bounced


# What is left of three leaves (A and B of VMID 1, C of VMID 2) under 7.3.4 and at the least.
D3 = rows(
    ("notifier: all / leaves over C", "dontneed 0x41000000 4k", "", "BC"),
    ("slot delete: all / leaves over the slot", "slot 0", "", ""),
    ("ALLE1: all valid", "tlbi 5", "", ""),
    ("VMALLS12E1: the VMID", "tlbi 4", "C", "C"),
    ("RIPAS2: the range", "tlbi 2 0x0000400000080000", "BC", "BC"),
    ("IPAS2: the span", "tlbi 0 0x0000700000080000", "BC", "BC"),
    ("recycle: that MMU", "s2 new 3\ntouch r 0 8 0\nnop", "C", "C"),
)


@pytest.mark.parametrize("design", ["sweep", "reverse_table"])
@pytest.mark.parametrize(("trigger", "today", "least"), D3)
def test_d3_unmap_trigger_and_scope(trigger: str, today: str, least: str, design: str) -> None:
    vm = Vm(
        f"""mem 64M
        start base
        write 0x41000000 64k
        s2 new 1
        code
        map {N:#x} 0x41000000 4k 3 rw
        map 0x80004000 0x41004000 4k 3 rw
        touch w {N:#x} 0x4000 2
        s2 new 2
        code
        map {N:#x} 0x41008000 4k 3 rw
        touch w {N:#x}
        s2 0x40100000 1
        touch r 0 8 0
        """
        + trigger,
        design,
    ).end()
    found = {"A": (1, N), "B": (1, N + 0x4000), "C": (2, N)}
    left = "".join(name for name, (mmu, ipa) in found.items() if ipa in vm.leaves(mmu))
    assert left == (today if design == "sweep" else least)
