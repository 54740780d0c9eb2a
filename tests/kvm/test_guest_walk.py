"""L0's walk of L1's stage 2, outcome by outcome (upstream.md 2.4)."""

from __future__ import annotations

import pytest
from nested_lab import CANONICAL, NESTED, leaves, log, play

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
