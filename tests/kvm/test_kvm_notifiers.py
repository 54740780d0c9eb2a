"""Notifiers, memslots, aging, dirty logging: what the host's actions do to the tables."""

from __future__ import annotations

import pytest
from kvm_lab import PAGE, M, Vm

from shadowmmu.arch.stage2 import AF
from shadowmmu.kvm.layout import K_IN_PROGRESS, K_SEQ, S_DIRTY_WORD, S_SIZE
from shadowmmu.machine.counters import (
    CHUNKS,
    CHUNKS_SHADOW,
    LEAVES_RELAXED,
    MMUS_VALID,
    NOTIFIERS,
    NOTIFIERS_BLOCKABLE,
    TLBI_RANGE,
    TLBI_RANGE_SHADOW,
)
from shadowmmu.verify.judge import Judge

N = 0x8000_0000
PER_SWEEP = 1 << (40 - 30)
START = f"""mem 64M
    start base
    write 0x41000000 64k
    s2 new 1
    code
    map {N:#x} 0x41000000 64k 3 rw
    touch w {N:#x} 4096 16
    mark go
    """
COUNTED = (NOTIFIERS, NOTIFIERS_BLOCKABLE, MMUS_VALID, CHUNKS, CHUNKS_SHADOW, TLBI_RANGE_SHADOW)


def counted(vm: Vm) -> list[int]:
    """What one notifier is made of."""
    return [vm.count(index) for index in COUNTED]


def difference(vm: Vm, before: list[int]) -> list[int]:
    """What was counted since."""
    return [now - then for now, then in zip(counted(vm), before, strict=True)]


def test_one_notifier_sweeps_every_valid_shadow_once() -> None:
    vm = Vm(START + "dontneed 0x41003000 8k").to("go")
    vm.forget_log()
    before, sequence = counted(vm), vm.register(K_SEQ)
    vm.end()
    assert difference(vm, before) == [1, 1, 1, PER_SWEEP + 1, PER_SWEEP, PER_SWEEP]
    assert (vm.register(K_SEQ), vm.register(K_IN_PROGRESS)) == (sequence + 1, 0)
    assert vm.log("unmap_gfn") == [{"start": 0x41003, "end": 0x41005, "mayblock": 1}]
    assert vm.leaves(1) == {}


@pytest.mark.parametrize("design", ["spanning", "reverse_table"])
def test_a_precise_design_takes_no_more_than_the_range(design: str) -> None:
    vm = Vm(START + "dontneed 0x41003000 8k", design).end()
    gone = {N + 3 * PAGE, N + 4 * PAGE}
    assert set(vm.leaves(1)) == {0x1_0000} | {N + i * PAGE for i in range(16)} - gone


def test_two_slots_over_one_range_of_the_vmm_cost_two_unmaps_in_one_section() -> None:
    alias = "map 0x90000000 0x80000000 64k 3 rw\ntouch r 0x90000000 4096 16\n"
    vm = Vm(START + alias + "mark aliased\ndontneed 0x41003000 4k").to("go")
    slot = vm.add_slot(0x8000_0000, 1 * M, 16 * M)
    assert slot == 1
    vm.to("aliased")
    assert vm.source(1, 0x9000_3000) == 0x8000_3000
    assert vm.leaves(1)[0x9000_3000].descriptor >> 12 & 0xFFFFFF == (
        vm.leaves(1)[N + 3 * PAGE].descriptor >> 12 & 0xFFFFFF
    )
    vm.forget_log()
    before, sequence = counted(vm), vm.register(K_SEQ)
    vm.end()
    assert difference(vm, before) == [2, 2, 2, 2 * PER_SWEEP + 2, 2 * PER_SWEEP, 2 * PER_SWEEP]
    assert (vm.register(K_SEQ), vm.register(K_IN_PROGRESS)) == (sequence + 1, 0)
    assert [row["start"] for row in vm.log("unmap_gfn")] == [0x41003, 0x80003]


def test_a_range_that_only_the_second_slot_sees() -> None:
    vm = Vm(START + "dontneed 0x41800000 4k\nwrite 0x41800000 4k\nidle 0x41800000 1").to("go")
    vm.add_slot(0x8000_0000, 1 * M, 24 * M)
    vm.state.slots[0, S_SIZE] = 20 * M
    vm.forget_log()
    sequence = vm.register(K_SEQ)
    vm.end()
    assert [row["start"] for row in vm.log("unmap_gfn")] == [0x80000]
    assert [row["start"] for row in vm.log("age_gfn")] == [0x80000]
    assert vm.register(K_SEQ) == sequence + 1


def test_a_range_outside_every_slot_is_nobodys_business() -> None:
    vm = Vm(START + "write 0x41900000 4k\ndontneed 0x41900000 4k").to("go")
    vm.state.slots[0, S_SIZE] = 20 * M
    before, sequence = counted(vm), vm.register(K_SEQ)
    vm.end()
    assert difference(vm, before) == [0] * len(COUNTED)
    assert vm.register(K_SEQ) == sequence


def test_aging_looks_at_the_canonical_table_alone() -> None:
    vm = Vm(START + "poke 0x41002000 1\nmark poked\nidle 0x41002000 2\nmark aged\nnop").to("poked")
    place = 0x4100_2000
    canonical, shadow = vm.leaves(0)[place], vm.leaves(1)
    assert canonical.descriptor & int(AF)
    vm.forget_log()
    vm.to("aged")
    assert vm.leaves(0)[place].descriptor == canonical.descriptor & ~int(AF)
    assert vm.leaves(1) == shadow
    assert [row["start"] for row in vm.log("age_gfn")] == [0x41002, 0x41003]


def test_deleting_a_slot_empties_every_table_and_closes_the_window() -> None:
    vm = Vm(START + f"slot 0\nmark gone\nslot 1\ntouch r {N:#x}").to("go")
    vm.forget_log()
    vm.to("gone")
    assert [(row["addr"], row["size"], row["mmu"]) for row in vm.log("s2range")] == [
        (0x4000_0000, 64 * M, 0),
        (0, 1 << 40, 1),
    ]
    assert vm.leaves(0) == vm.leaves(1) == {}
    assert vm.state.slots[0, S_SIZE] == 0
    assert vm.count(NOTIFIERS) == 0
    vm.end()
    assert N in vm.leaves(1)
    assert vm.state.slots[0, S_SIZE] == 64 * M


def dirty_pages(vm: Vm) -> list[int]:
    """Canonical pages in the dirty bitmap."""
    words = vm.state.dirty.tolist()
    return [
        0x4000_0000 + (64 * w + b) * PAGE for w, word in enumerate(words) for b in range(64) if word >> b & 1
    ]


LOGGED = START + f"""log 1
    mark logged
    touch w {N + PAGE:#x} 4096 2
    map 0x90000000 0x41005000 4k 3 rw
    touch r 0x90000000
    mark written
    getlog
    mark harvested
    log 1
    mark twice
    log 0
    mark off
    touch w {N + PAGE:#x}
    mark end"""  # fmt: skip


def test_logging_write_protects_and_collects_what_is_written() -> None:
    vm = Vm(LOGGED).to("go")
    flushes = vm.count(TLBI_RANGE)
    vm.forget_log()
    vm.to("logged")
    assert {leaf.prot for leaf in vm.leaves(1).values()} <= {"r", "rx"}
    assert {leaf.prot for leaf in vm.leaves(0).values()} <= {"r", "rx"}
    shown = [(row["mmu"], row["addr"], row["size"]) for row in vm.log("s2wp")]
    assert shown == [(0, 0x4000_0000, 64 * M), (1, 0, 1 << 40)]
    assert vm.count(TLBI_RANGE) == flushes + 1, "the slot's range, for the canonical VMID alone"
    assert dirty_pages(vm) == []
    vm.to("written")
    assert set(dirty_pages(vm)) >= {0x4100_1000, 0x4100_2000}
    assert 0x4100_5000 not in dirty_pages(vm)
    for leaf_ipa, leaf in vm.leaves(1).items():
        assert "w" not in leaf.prot or vm.source(1, leaf_ipa) in dirty_pages(vm), "A13"


def test_a_harvest_protects_from_the_first_dirty_page_of_a_word_to_its_last() -> None:
    vm = Vm(LOGGED).to("written")
    dirty = dirty_pages(vm)
    words: dict[int, list[int]] = {}
    for page in dirty:
        words.setdefault(page >> 18, []).append(page)
    vm.forget_log()
    flushes = vm.count(TLBI_RANGE)
    vm.to("harvested")
    shown = [(row["mmu"], row["addr"], row["size"]) for row in vm.log("s2wp")]
    expected = []
    for pages in words.values():
        expected += [(0, pages[0], pages[-1] + PAGE - pages[0]), (1, 0, 1 << 40)]
    assert shown == expected
    assert dirty_pages(vm) == []
    assert vm.leaves(1)[N + PAGE].prot == "r"
    assert vm.count(TLBI_RANGE) == flushes + 1
    vm.forget_log()
    vm.to("off")
    assert vm.log("s2wp") == [], "switching on what is on, and off, changes no table"
    assert vm.leaves(1)[N + PAGE].prot == "r"
    relaxed = vm.count(LEAVES_RELAXED)
    vm.to("end")
    assert vm.leaves(1)[N + PAGE].prot == "rw"
    assert vm.count(LEAVES_RELAXED) == relaxed + 1
    assert dirty_pages(vm) == []


def test_a_harvest_of_nothing_flushes_nothing() -> None:
    vm = Vm(START + "getlog\nmark end").to("go")
    flushes = vm.count(TLBI_RANGE)
    vm.forget_log()
    vm.end()
    assert vm.log("s2wp") == []
    assert vm.count(TLBI_RANGE) == flushes


def test_the_bitmap_of_a_slot_starts_at_its_own_word() -> None:
    vm = Vm(START + "log 1\nmap 0x90000000 0x80000000 8k 3 rw\ntouch w 0x90001000\nmark end").to("go")
    slot = vm.add_slot(0x8000_0000, 1 * M, 16 * M, 1)
    vm.state.slots[slot, S_DIRTY_WORD] = 200
    vm.end()
    assert int(vm.state.dirty[200]) == 2


@pytest.mark.parametrize("design", ["sweep", "spanning", "reverse_table"])
@pytest.mark.parametrize("backing", ["base", "thp", "huge"])
def test_no_stale_leaf_outlives_a_host_action(design: str, backing: str) -> None:
    actions = ["dontneed 0x41000000 2M", "munmap 0x41000000 2M\nmmap 0x41000000 2M", "mmap 0x41000000 2M",
               "mprotect 0x41000000 2M r", "mprotect 0x41000000 2M rw", "punch 0x41000000 2M"]  # fmt: skip
    if backing != "huge":
        actions += ["collapse 0x41000000 2M", "hugepage 0x41000000 2M", "dontneed 0x41003000 4k"]
    steps = "\n".join(f"{action}\ntouch r {N:#x} 0x80000 8" for action in actions)
    vm = Vm(
        f"""mem 64M
        start {backing}
        write 0x41000000 4M
        s2 new 1
        code
        map {N:#x} 0x41000000 4M 2 rwx
        touch r {N:#x} 0x80000 8
        {steps}
        nop""",
        design,
    )
    judge = Judge()
    vm.executor.run(after_event=lambda executor: judge.look(executor, executor.position - 1))
    assert judge.worst is None, judge.worst


def test_numa_hints_take_the_shadow_leaves_of_their_blocks_which_come_back_with_their_frames() -> None:
    vm = Vm(
        """mem 64M
        start base
        s2 new 1
        code
        map 0x80000000 0x41000000 4M 3 rw
        write 0x41000000 4M
        touch w 0x80000000
        touch w 0x80200000
        poke 0x41000000 1
        poke 0x41200000 1
        mark filled
        numahint 0x41000000 4k
        mark hinted
        touch w 0x80000000"""
    ).to("filled")
    before, canonical = vm.leaves(1), vm.leaves(0)
    vm.to("hinted")
    assert vm.leaves(1) == {}  # 7.3.4 takes every shadow leaf at every notifier
    assert {c for c in canonical if not 0x4100_0000 <= c < 0x4120_0000} == set(vm.leaves(0))
    assert {0x4100_0000, 0x4120_0000} & set(canonical) == {0x4100_0000, 0x4120_0000}
    assert vm.end().leaves(1)[0x8000_0000].descriptor == before[0x8000_0000].descriptor
