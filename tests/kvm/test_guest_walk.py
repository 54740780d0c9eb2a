"""L0's walk of L1's stage 2, outcome by outcome (upstream.md 2.4)."""

from __future__ import annotations

import pytest
from nested_lab import CANONICAL, NESTED, leaves, log, play

from shadowmmu.arch.fault import ADDRESS_SIZE, EXTERNAL_WALK, TRANSLATION
from shadowmmu.arch.regime import Regime
from shadowmmu.arch.stage2 import CONTIGUOUS
from shadowmmu.compiled import U64
from shadowmmu.kvm.walk import output_mask, set_guest_access_flag, walk_guest_stage2
from shadowmmu.machine.state import image_digest

ROOT = 0x4010_0000
VTCR = 0x8002_3559
WRITE = f"write {CANONICAL:#x} 64k"
PAGE = 0x7FF | 2 << 53
TABLE = 3


def vtcr(**fields: int) -> int:
    """The default VTCR with other field values."""
    places = {"t0sz": (0, 6), "sl0": (6, 2), "tg0": (14, 2), "ps": (16, 3), "ha": (21, 1)}
    value = VTCR
    for name, field in fields.items():
        low, width = places[name]
        value = value & ~(((1 << width) - 1) << low) | field << low
    return value


def fault_of(*lines: str, touch: int = NESTED) -> int:
    """The fault status code L1 gets for a read at ``touch``."""
    done = play(WRITE, *lines, f"touch r {touch:#x} 4096 1")
    row = log(done, "inject_s2")[-1]
    return row.fields["esr"] & 0x3F


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"t0sz": 24, "sl0": 0}, 0x04),  # 40 bits from level 2: too many start tables
        ({"t0sz": 32, "sl0": 2}, 0x04),  # 32 bits from level 0: none
        ({"t0sz": 45}, 0x00),  # 19 bits of input: Linux leaves the code at 0
        ({"t0sz": 10}, 0x00),
    ],
)
def test_what_vtcr_forbids(fields: dict[str, int], code: int) -> None:
    assert fault_of(f"vtcr {vtcr(**fields):#x}", "s2 new 2") == code


def test_a_table_beyond_the_output_size() -> None:
    lines = [f"vtcr {vtcr(ps=0):#x}", "s2 new 2", "code", f"poke {ROOT + 0x3010:#x} {1 << 33 | TABLE:#x}"]
    assert fault_of(*lines) == 0x01


def test_a_leaf_beyond_the_output_size() -> None:
    lines = [f"vtcr {vtcr(ps=0):#x}", "s2 new 2", "code", f"map {NESTED:#x} 0x200000000 4k 3 r"]
    assert fault_of(*lines) == 0x03


def test_a_table_outside_memory_is_an_external_abort() -> None:
    assert fault_of("s2 new 2", "code", f"poke {ROOT + 0x3010:#x} {0x9000000 | TABLE:#x}") == 0x16


def test_a_block_at_level_3_is_invalid() -> None:
    lines = [f"map {NESTED:#x} {CANONICAL:#x} 4k 3 r", f"poke 0x40104000 {CANONICAL | PAGE & ~2:#x}"]
    assert fault_of(*lines) == 0x07


def test_hardware_access_flag_is_set_in_l1s_memory() -> None:
    done = play(
        WRITE,
        f"vtcr {vtcr(ha=1):#x}",
        "s2 new 2",
        "code",
        f"map {NESTED:#x} {CANONICAL:#x} 4k 3 rwa",
        f"touch w {NESTED:#x} 4096 1",
    )
    assert log(done, "inject_s2") == []
    assert NESTED in leaves(done)


def test_the_contiguous_hint_widens_the_output() -> None:
    done = play(WRITE, f"map {NESTED:#x} {CANONICAL:#x} 64k 3 rwc", f"touch w {NESTED + 0x3000:#x} 4096 1")
    plain = play(WRITE, f"map {NESTED:#x} {CANONICAL:#x} 64k 3 rw", f"touch w {NESTED + 0x3000:#x} 4096 1")
    assert leaves(done)[NESTED + 0x3000][1] == leaves(plain)[NESTED + 0x3000][1]


def test_bits_above_t0sz_are_dropped_as_linux_does() -> None:
    alias = NESTED + (1 << 39)
    done = play(WRITE, f"map {NESTED:#x} {CANONICAL:#x} 4k 3 rw", f"touch w {alias:#x} 4096 1", bits=48)
    assert alias in leaves(done)


@pytest.mark.parametrize(("tg0", "root", "index"), [(2, 0x4010_8000, 14), (1, 0x4011_0000, 16)])
def test_larger_guest_granules(tg0: int, root: int, index: int) -> None:
    # Level-3 pages for data and for L2's code, reached from a level-2 start table, built by hand.
    shift = index + (index - 3)
    data = root + (1 << index) * 2
    code = data if 0x1000_0000 >> shift == 0 else data + (1 << index)
    lines = [
        f"poke {root:#x} {code | TABLE:#x}",
        f"poke {root + (0x1000_0000 >> shift << 3):#x} {data | TABLE:#x}",
        f"poke {data + ((0x1000_0000 >> index) % (1 << index - 3) << 3):#x} {CANONICAL | PAGE:#x}",
        f"poke {code + (0x10000 >> index << 3):#x} {0x4005_0000 | 0x77F:#x}",
        f"vtcr {vtcr(t0sz=34, sl0=1, tg0=tg0):#x}",
        f"s2 {root:#x} 3",
        "touch w 0x10001000 4096 1",
    ]
    done = play(WRITE, *lines)
    assert log(done, "inject_s2") == []
    size, _pa, descriptor = leaves(done)[0x1000_1000]
    assert size == 4096
    assert descriptor >> 55 & 3 == 3


def test_a_table_whose_memory_the_host_took_reads_as_zeros() -> None:
    # The page is faulted in again, as zeros: L1 gets a translation fault at that table's level.
    lines = [f"map {NESTED:#x} {CANONICAL:#x} 4k 3 r", f"dontneed {ROOT + 0x4000:#x} 4k"]
    assert fault_of(*lines) == 0x07


def test_a_table_the_vmm_unmapped_is_an_external_abort() -> None:
    lines = [f"map {NESTED:#x} {CANONICAL:#x} 4k 3 r", f"munmap {ROOT + 0x4000:#x} 4k"]
    assert fault_of(*lines) == 0x17


def test_an_access_flag_that_cannot_be_set_is_an_external_abort() -> None:
    lines = [
        f"vtcr {vtcr(ha=1):#x}",
        "s2 0x40100000 1",
        f"map {NESTED:#x} {CANONICAL:#x} 4k 3 ra",
        f"touch r {NESTED:#x} 4096 1",
        f"map {NESTED:#x} {CANONICAL:#x} 4k 3 ra",
        f"tlbi 0 {NESTED >> 12:#x}",
        f"mprotect {ROOT + 0x4000:#x} 4k r",
    ]
    assert fault_of(*lines) == 0x17


def test_a_table_in_no_memslot_when_the_flag_is_due() -> None:
    done = play(WRITE, f"map {NESTED:#x} {CANONICAL:#x} 4k 3 rw")
    assert not set_guest_access_flag(done.state, U64(0x9000000), U64(3))


def test_a_root_beyond_the_output_size_is_an_address_size_fault() -> None:
    done = play(WRITE)
    walk = walk_guest_stage2(done.state, U64(1 << 33), U64(vtcr(ps=0)), U64(NESTED), True)
    assert (walk.fault, walk.level) == (ADDRESS_SIZE, 0)


def test_a_block_above_the_first_block_level_is_a_translation_fault() -> None:
    # A start table at level 0: 44 bits of input, and an entry of block type in it.
    done = play(WRITE, f"poke {CANONICAL:#x} {CANONICAL | 0x7FD:#x}", bits=48)
    control = vtcr(t0sz=20, sl0=2, ps=5)
    walk = walk_guest_stage2(done.state, U64(CANONICAL), U64(control), U64(0), True)
    assert (walk.fault, walk.level) == (TRANSLATION, 0)


def test_a_probe_brings_nothing_in() -> None:
    done = play(WRITE, f"map {NESTED:#x} {CANONICAL:#x} 4k 3 r", f"dontneed {ROOT + 0x4000:#x} 4k")
    before = image_digest(done.state)
    walk = walk_guest_stage2(done.state, U64(ROOT | 1 << 48), U64(VTCR), U64(NESTED), True)
    assert walk.fault == EXTERNAL_WALK
    assert image_digest(done.state) == before


@pytest.mark.parametrize(
    ("page_shift", "level", "bits"), [(12, 2, 25), (12, 3, 16), (16, 3, 21), (14, 2, 30), (14, 3, 21)]
)
def test_what_the_contiguous_hint_spans(page_shift: int, level: int, bits: int) -> None:
    r = Regime(page_shift, page_shift - 3, 1, 48, 48)
    assert int(output_mask(r, level, CONTIGUOUS)) == (1 << bits) - 1
    assert int(output_mask(r, level, U64(0))) == (1 << page_shift + (page_shift - 3) * (3 - level)) - 1
