"""Notifiers, sequence counts, dirty logging, memslots."""

from __future__ import annotations

from nested_lab import CANONICAL, NESTED, count, leaves, log, play

from shadowmmu.kvm.layout import K_IN_PROGRESS, K_SEQ

WRITE = f"write {CANONICAL:#x} 64k"
MAPPED = (WRITE, f"map {NESTED:#x} {CANONICAL:#x} 64k 3 rw", f"touch w {NESTED:#x} 4096 8")
W = 1 << 7


def test_a_notifier_is_counted_and_over() -> None:
    before, after = play(*MAPPED), play(*MAPPED, f"dontneed {CANONICAL:#x} 4k")
    assert int(after.state.regs[K_IN_PROGRESS]) == 0
    assert int(after.state.regs[K_SEQ]) == int(before.state.regs[K_SEQ]) + 1
    assert count(after)["notifiers"] == count(before)["notifiers"] + 1


def test_sweep_walks_every_valid_mmu_over_its_whole_range() -> None:
    done = play(*MAPPED, f"dontneed {CANONICAL + 0x100000:#x} 4k")
    assert count(done)["chunks_shadow"] == 1 << 10
    assert count(done)["over_unmapped_leaves"] == 9
    assert leaves(done) == {}


def test_a_range_outside_every_memslot_reaches_nobody() -> None:
    before = play(*MAPPED, "slot 0")
    after = play(*MAPPED, "slot 0", f"dontneed {CANONICAL:#x} 4k")
    assert count(after)["notifiers"] == count(before)["notifiers"]


def test_logging_on_write_protects_shadows_without_flushing_them() -> None:
    done = play(*MAPPED, "log 1")
    assert all(not descriptor & W for _s, _p, descriptor in leaves(done).values())
    assert count(done)["tlbi_range_shadow"] == 0
    assert [row.fields["mmu"] for row in log(done, "s2wp")] == [1]


def test_a_harvest_protects_once_a_dirty_word() -> None:
    done = play(*MAPPED, "log 1", f"touch w {NESTED:#x} 4096 4", "getlog")
    assert len(log(done, "s2wp")) >= 2
    assert not done.state.dirty.any()
    assert all(not descriptor & W for _s, _p, descriptor in leaves(done).values())


def test_what_l2_wrote_is_in_the_bitmap() -> None:
    done = play(*MAPPED, "log 1", f"touch w {NESTED:#x} 4096 2")
    page = (CANONICAL - 0x4000_0000) >> 12
    bits = [int(done.state.dirty[(page + i) // 64]) >> ((page + i) % 64) & 1 for i in range(3)]
    assert bits == [1, 1, 0]


def test_logging_off_changes_no_table() -> None:
    done = play(*MAPPED, "log 1", "log 1", "log 0")
    assert all(not descriptor & W for _s, _p, descriptor in leaves(done).values())


def test_a_deleted_slot_leaves_nothing_and_comes_back() -> None:
    gone = play(*MAPPED, "slot 0")
    assert leaves(gone) == {}
    assert leaves(gone, 0) == {}
    back = play(*MAPPED, "slot 0", "slot 1", f"touch r {NESTED:#x} 4096 2")
    assert {NESTED, NESTED + 0x1000} <= set(leaves(back))
