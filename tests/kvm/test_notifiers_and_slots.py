"""Notifiers, sequence counts, dirty logging, memslots."""

from __future__ import annotations

from nested_lab import CANONICAL, NESTED, count, leaves, log, play, script

from shadowmmu.compiled import U64
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.kvm.layout import K_IN_PROGRESS, K_SEQ, K_SLOTS, S_BASE, S_DIRTY_WORD, S_HVA, S_SIZE
from shadowmmu.kvm.slots import huge_mapping_fits

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
    assert [row.fields["mmu"] for row in log(done, "s2wp")] == [0, 1]


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


def second_slot(executor: Executor, canonical_ipa: int, offset: int, size: int) -> None:
    """Another memslot onto the VMM's memory, ``offset`` bytes into it."""
    slots = executor.state.slots
    slots[1, S_BASE] = canonical_ipa
    slots[1, S_SIZE] = size
    slots[1, S_HVA] = int(slots[0, S_HVA]) + offset
    slots[1, S_DIRTY_WORD] = 0
    executor.state.regs[K_SLOTS] = 2


def staged(*lines: str) -> Executor:
    """A machine that has run all but the last line."""
    scenario = parse_scenario(script(*lines), "lab")
    executor = Executor(scenario, "sweep", Machine(ipa_limit_bits=40, logged=True))
    executor.run(len(scenario.events) - 1)
    return executor


def test_memory_seen_through_two_slots_is_swept_twice() -> None:
    done = staged(*MAPPED, f"dontneed {CANONICAL:#x} 4k")
    second_slot(done, 0x80_0000_0000, 0, 64 << 20)
    before = count(done)["notifiers"]
    done.run()
    assert count(done)["notifiers"] == before + 2
    starts = [row.fields["start"] for row in log(done, "unmap_gfn")][-2:]
    assert starts == [CANONICAL >> 12, (0x80_0000_0000 + CANONICAL - 0x4000_0000) >> 12]
    assert int(done.state.regs[K_IN_PROGRESS]) == 0


def test_ageing_goes_through_both_slots_too() -> None:
    done = staged(*MAPPED, f"poke {CANONICAL:#x} 1", f"idle {CANONICAL:#x} 1")
    second_slot(done, 0x80_0000_0000, 0, 64 << 20)
    done.run()
    assert len(log(done, "age_gfn")) == 2


def test_a_slot_out_of_step_with_its_user_address_takes_no_block() -> None:
    done = staged(*MAPPED, "nop")
    second_slot(done, 0x80_0000_0000, 4096, 32 << 20)
    state = done.state
    block = U64(2 << 20)
    assert huge_mapping_fits(state, 0, U64(int(state.slots[0, S_HVA])), block)
    assert not huge_mapping_fits(state, 1, U64(int(state.slots[1, S_HVA]) + (4 << 20)), block)
