"""L1's table builder and L2's accesses, seen through L1's memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "kvm"))

from nested_lab import CANONICAL, NESTED, leaves, log, play

from shadowmmu.compiled import U64
from shadowmmu.events.schema import PEEK
from shadowmmu.guest.layout import G_LEFT, G_POOL
from shadowmmu.verify.rules import guest_word

WRITE = f"write {CANONICAL:#x} 64k"
ROOT = 0x4010_0000


def word(executor: object, canonical_ipa: int) -> int:
    return int(guest_word(executor.state, U64(canonical_ipa)).value)  # type: ignore[attr-defined]


def test_a_leaf_stands_where_the_architecture_reads_it() -> None:
    done = play(WRITE, f"map {NESTED:#x} {CANONICAL:#x} 4k 3 rw")
    table = word(done, ROOT + (NESTED >> 30 << 3)) & ~0xFFF
    last = word(done, table) & ~0xFFF
    assert word(done, last) == CANONICAL | 0x7FF & ~0x3F | 0x3F | 2 << 53


def test_a_window_wraps_the_output() -> None:
    done = play(WRITE, f"map {NESTED:#x} {CANONICAL:#x} 16k 3 rw 8k", f"touch r {NESTED:#x} 4096 4")
    pas = [leaves(done)[NESTED + i * 4096][1] for i in range(4)]
    assert pas[0] == pas[2]
    assert pas[1] == pas[3]
    assert pas[0] != pas[1]


def test_clearing_adds_no_tables() -> None:
    done = play(WRITE, f"unmap {NESTED:#x} 64k 3")
    assert int(done.state.regs[G_POOL]) == ROOT + 3 * 4096  # root, and two tables for L2's code


def test_clearing_without_tlbi_leaves_the_shadow() -> None:
    done = play(
        WRITE,
        f"map {NESTED:#x} {CANONICAL:#x} 4k 3 rw",
        f"touch w {NESTED:#x} 4096 1",
        f"unmap {NESTED:#x} 4k 3",
    )
    assert NESTED in leaves(done)


def test_poke_and_peek() -> None:
    done = play(WRITE, f"poke {CANONICAL:#x} 0x1234", f"peek {CANONICAL:#x}")
    assert int(done.scenario.events[-1]["kind"]) == PEEK
    assert word(done, CANONICAL) == 0x1234


def test_memory_the_host_took_reads_as_zeros_again() -> None:
    done = play(WRITE, f"poke {CANONICAL:#x} 0x1234", f"dontneed {CANONICAL:#x} 4k", f"peek {CANONICAL:#x}")
    assert word(done, CANONICAL) == 0


@pytest.mark.parametrize(("stride", "accesses"), [(4096, 4), (8192, 3)])
def test_l2_stops_at_the_first_fault_l1_must_see(stride: int, accesses: int) -> None:
    done = play(WRITE, f"map {NESTED:#x} {CANONICAL:#x} 8k 3 rw", f"touch w {NESTED:#x} {stride} {accesses}")
    reached = 8192 // stride
    assert int(done.state.regs[G_LEFT]) == accesses - reached
    (row,) = log(done, "touch")
    assert row.fields["left"] == accesses - reached
    assert row.fields["far"] == NESTED + 8192


def test_the_code_page_is_fetched_before_the_first_access_and_again_after_a_sweep() -> None:
    done = play(
        f"map {NESTED:#x} {CANONICAL:#x} 4k 3 rw",
        f"touch r {NESTED:#x} 4096 1",
        f"touch w {NESTED:#x} 4096 1",
    )
    ipas = [
        row.fields["ipa"] for row in log(done, "kvm_guest_fault") if row.fields["ipa"] in (0x10000, NESTED)
    ]
    assert ipas == [0x10000, NESTED, NESTED, 0x10000, NESTED]
