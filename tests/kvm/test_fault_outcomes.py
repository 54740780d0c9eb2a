"""Who gets an abort of L2, and what L1 sees of it (upstream.md, tables D1 and C4)."""

from __future__ import annotations

import pytest
from nested_lab import CANONICAL, NESTED, count, leaves, log, play

from shadowmmu.compiled import U64
from shadowmmu.guest.cpu import DONE, try_access
from shadowmmu.kvm.layout import RESUME
from shadowmmu.kvm.pool import load_shadow
from shadowmmu.pgtable.attributes import clear_bits

R, W = 1 << 6, 1 << 7
WRITE = f"write {CANONICAL:#x} 64k"
HPFAR_MARK = 1 << 63


def injected(*lines: str, **kwargs: str) -> tuple[int, int, int]:
    """(esr, far, hpfar) of the one fault that L1 gets."""
    (row,) = log(play(WRITE, *lines, **kwargs), "inject_s2")
    return row.fields["esr"], row.fields["far"], row.fields["hpfar"]


@pytest.mark.parametrize(
    ("lines", "esr"),
    [
        ((f"touch r {NESTED:#x} 4096 1",), 0x93C58005),
        ((f"touch w {NESTED:#x} 4096 1",), 0x93C48045),
        ((f"touch x {NESTED:#x} 4096 1",), 0x82000005),
        ((f"map {NESTED:#x} {CANONICAL:#x} 4k 3 r", f"touch r {NESTED + 0x1000:#x} 4096 1"), 0x93C58007),
        ((f"map {NESTED:#x} {CANONICAL:#x} 4k 3 rwa", f"touch r {NESTED:#x} 4096 1"), 0x93C5800B),
    ],
)
def test_faults_of_l1s_table_are_given_to_l1(lines: tuple[str, ...], esr: int) -> None:
    got, far, hpfar = injected(*lines)
    assert got == esr
    assert hpfar == HPFAR_MARK | (far >> 12 << 4)


@pytest.mark.parametrize(
    ("attributes", "touch", "esr"), [("r", "w", 0x93C4804F), ("w", "r", 0x93C5800F), ("rw", "x", 0x8200000F)]
)
def test_a_permission_l1_withholds_is_a_permission_fault_at_its_level(
    attributes: str, touch: str, esr: int
) -> None:
    fill = "w" if "w" in attributes else "r"
    got, far, _hpfar = injected(
        f"map {NESTED:#x} {CANONICAL:#x} 4k 3 {attributes}",
        f"touch {fill} {NESTED:#x} 4096 1",
        f"touch {touch} {NESTED:#x} 4096 1",
    )
    assert (got, far) == (esr, NESTED)


def test_a_permission_the_host_withholds_is_the_hosts_business() -> None:
    done = play(
        f"map {NESTED:#x} {CANONICAL:#x} 4k 3 rw",
        f"touch r {NESTED:#x} 4096 1",  # the zero page, read-only
        f"touch w {NESTED:#x} 4096 1",  # copied: a notifier, a bounced fill, a fill
    )
    assert log(done, "inject_s2") == []
    assert count(done)["faults_bounced"] == 1
    assert leaves(done)[NESTED][2] & W


def test_an_upgrade_by_l1_without_tlbi_relaxes_the_leaf() -> None:
    done = play(
        WRITE,
        f"map {NESTED:#x} {CANONICAL:#x} 4k 3 r",
        f"touch r {NESTED:#x} 4096 1",
        f"map {NESTED:#x} {CANONICAL:#x} 4k 3 rw",
        f"touch w {NESTED:#x} 4096 1",
    )
    assert count(done)["leaves_relaxed"] == 1
    assert leaves(done)[NESTED][2] & (R | W) == R | W


def test_no_memslot_is_mmio_at_the_canonical_address() -> None:
    done = play(f"map {NESTED:#x} 0x9000000 4k 3 rw", f"touch w {NESTED + 0x10:#x} 4096 1")
    assert [row.fields["phys_addr"] for row in log(done, "mmio")] == [0x9000000]
    assert NESTED not in leaves(done)


def test_a_nested_address_beyond_the_limit_is_an_address_size_fault() -> None:
    done = play(WRITE, "touch r 0x20000000000 4096 1")
    (row,) = log(done, "inject_s2")
    assert row.fields["esr"] & 0x3F == 0


def test_stage_2_off_maps_one_to_one_into_a_shadow_without_tag() -> None:
    done = play(WRITE, "vm 0", "codeat 0x40050000", f"touch w {CANONICAL:#x} 4096 1")
    shadow = leaves(done, 1)
    assert set(shadow) == {0x40050000, CANONICAL}
    assert all(descriptor >> 55 & 3 == 0 for _size, _pa, descriptor in shadow.values())


def test_the_level_tag_is_l1s() -> None:
    done = play(
        WRITE,
        f"map {NESTED:#x} {CANONICAL:#x} 2M 2 rw",
        f"map {NESTED + 0x200000:#x} {CANONICAL:#x} 4k 3 rw",
        f"touch w {NESTED:#x} 4096 1",
        f"touch w {NESTED + 0x200000:#x} 4096 1",
    )
    tags = {ipa: descriptor >> 55 & 3 for ipa, (_s, _p, descriptor) in leaves(done).items()}
    assert tags == {0x10000: 3, NESTED: 2, NESTED + 0x200000: 3}


def test_a_store_to_memory_the_vmm_protected_ends_in_efault_and_goes_on() -> None:
    done = play(
        WRITE,
        f"map {NESTED:#x} {CANONICAL:#x} 64k 3 rw",
        f"touch w {NESTED:#x} 4096 1",
        f"mprotect {CANONICAL:#x} 4k r",
        f"touch w {NESTED:#x} 4096 1",
    )
    assert len(log(done, "efault")) == 1
    assert leaves(done)[NESTED][2] & W


def test_a_marked_leaf_is_made_young_in_the_canonical_table_only() -> None:
    done = play(WRITE, f"idle {CANONICAL:#x} 1", f"poke {CANONICAL:#x} 7")
    canonical = leaves(done, 0)
    assert canonical[CANONICAL][2] & 1 << 10


def test_a_leaf_without_access_flag_is_made_young_in_place() -> None:
    # Nothing of 7.3.4 clears the flag of a shadow leaf; hardware management off, a design could.
    done = play(WRITE, f"map {NESTED:#x} {CANONICAL:#x} 4k 3 rw", f"touch w {NESTED:#x} 4096 1")
    state = done.state
    clear_bits(state, 1, U64(NESTED), U64(NESTED + 4096), U64(1 << 10))
    load_shadow(state, 0)
    assert try_access(state, 0, U64(NESTED), 0, U64(0x10018)) == RESUME
    assert try_access(state, 0, U64(NESTED), 0, U64(0x10018)) == DONE
    assert leaves(done)[NESTED][2] & 1 << 10


def test_a_permission_fault_on_a_block_keeps_the_block() -> None:
    done = play(
        f"write {CANONICAL:#x} 2M",
        f"map {NESTED:#x} {CANONICAL:#x} 2M 2 r",
        f"touch r {NESTED:#x} 4096 1",
        f"map {NESTED:#x} {CANONICAL:#x} 2M 2 rw",
        f"touch w {NESTED + 0x3000:#x} 4096 1",
        start="start thp 0 0",
    )
    size, _pa, descriptor = leaves(done)[NESTED]
    assert size == 2 << 20
    assert descriptor & W
    assert count(done)["leaves_relaxed"] == 1
