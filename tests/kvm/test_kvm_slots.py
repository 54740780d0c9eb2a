"""Memslots that move or are read-only; logs: CLEAR, all dirty at first, eager splitting, rings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kvm_lab import PAGE, K, M, Vm

from shadowmmu.engine.observe import dirty_pages, read_log
from shadowmmu.kvm.layout import K_SPLIT_CACHE
from shadowmmu.machine.counters import LOCK_WRITE, TLBI_IPA, TLBI_RANGE, TLBI_VMID, TLBI_VMID_SHADOW

RAM, DATA, WINDOW, NESTED = 0x4000_0000, 0x4100_0000, 0x8000_0000, 0x9000_0000
WORD = 64 * PAGE
"""Memory that one word of a bitmap is about."""
L2 = "s2 new 1\ncode\n"
BASE = f"mem 64M\nstart base\n{L2}"
HUGE = f"mem 64M\nstart thp\n{L2}write {DATA:#x} 4M\n"
MAPPED = f"map {NESTED:#x} {DATA:#x} 1M 3 rw\ntouch w {NESTED:#x} 4096 8\n"
TWO_WINDOWS = f"{BASE}memslot 1 {WINDOW:#x} 1M {DATA:#x}\nmap {NESTED:#x} {WINDOW:#x} 64k 3 rw\n"


def dirty(vm: Vm, slot: int = 0) -> list[int]:
    """Addresses of the pages in a slot's bitmap that the tests write to."""
    return [page for page in dirty_pages(vm.state, slot).tolist() if page >= DATA]


def writable(vm: Vm, mmu: int, start: int, end: int) -> list[int]:
    """Writable leaves of an MMU in a range."""
    return [ipa for ipa, leaf in vm.leaves(mmu).items() if start <= ipa < end and "w" in leaf.prot]


def pages(first: int, *numbers: int) -> list[int]:
    """Addresses of pages, counted from ``first``."""
    return [first + number * PAGE for number in numbers]


# Memslots


def test_stores_to_a_read_only_slot_leave_as_mmio_and_nothing_of_it_is_writable() -> None:
    script = (
        f"{BASE}memslot 1 {WINDOW:#x} 64k {DATA:#x} r\nmap {NESTED:#x} {WINDOW:#x} 64k 3 rwx\n"
        f"ret {DATA:#x} 8k\npeek {WINDOW:#x}\n"
        f"touch w {NESTED:#x} 4096 2\ntouch r {NESTED:#x} 4096 2\ntouch w {NESTED:#x}\n"
        f"touch x {NESTED:#x} 4096 2\npoke {WINDOW + PAGE:#x} 7"
    )
    vm = Vm(script).end()
    stores = [row["phys_addr"] for row in vm.log("mmio")]
    assert stores == [WINDOW, WINDOW + PAGE, WINDOW, WINDOW + PAGE]
    assert {x.prot for ipa, x in vm.leaves(1).items() if ipa >= NESTED} == {"rx"}
    assert vm.leaves(0)[WINDOW].prot == "rx"
    assert not writable(vm, 0, WINDOW, WINDOW + 64 * K)
    assert all(row["left"] == 0 for row in vm.touches())


def test_a_moved_slot_leaves_nothing_where_it_was() -> None:
    vm = Vm(
        f"{TWO_WINDOWS}touch w {NESTED:#x} 4096 2\npeek {WINDOW:#x}\npeek {WINDOW + 4 * PAGE:#x}\nmark full\n"
        f"memslot 1 {WINDOW + M:#x} 1M {DATA:#x}\nmark moved\ntouch r {NESTED:#x}\npeek {WINDOW + M:#x}\n"
    ).to("full")
    old = vm.leaves(0)
    assert {WINDOW, WINDOW + 4 * PAGE} <= old.keys()
    assert {NESTED, NESTED + PAGE} <= vm.leaves(1).keys()
    vm.to("moved")
    assert not [ipa for ipa in vm.leaves(0) if ipa >= WINDOW]
    assert not vm.leaves(1)  # Linux 7.3.4: a memslot that goes takes every shadow whole
    assert vm.leaves(0).keys() == {ipa for ipa in old if ipa < WINDOW}
    vm.end()
    assert [row["phys_addr"] for row in vm.log("mmio")] == [WINDOW]
    assert vm.leaves(0)[WINDOW + M].descriptor == old[WINDOW].descriptor


@pytest.mark.parametrize("design", ["reverse_table", "spanning"])
def test_a_design_that_knows_where_takes_the_moved_slot_alone(design: str) -> None:
    script = f"{TWO_WINDOWS}map 0xa0000000 {DATA:#x} 16k 3 rw\ntouch r {NESTED:#x}\ntouch r 0xa0000000\n"
    vm = Vm(f"{script}memslot 1 {WINDOW + M:#x} 1M {DATA:#x}", design).end()
    assert vm.sizes().keys() == {0xA000_0000}


def test_what_is_set_as_it_is_already_changes_nothing() -> None:
    script = f"{TWO_WINDOWS}touch w {NESTED:#x} 4096 2\nmark full\nmemslot 1 {WINDOW:#x} 1M {DATA:#x}\nlog 0"
    vm = Vm(script).to("full")
    before = vm.leaves(1), vm.count(LOCK_WRITE)
    vm.end()
    assert (vm.leaves(1), vm.count(LOCK_WRITE)) == before


def test_a_log_goes_on_over_a_move_and_its_end_forgets_it() -> None:
    moved = WINDOW + M
    vm = Vm(
        f"{TWO_WINDOWS}memslot 1 {WINDOW:#x} 1M {DATA:#x} d\ntouch w {NESTED + 2 * PAGE:#x} 4096 2\n"
        f"memslot 1 {moved:#x} 1M {DATA:#x} d\nmark moved\nmemslot 1 {moved:#x} 1M {DATA:#x}\n"
        f"memslot 1 {moved:#x} 1M {DATA:#x} d\nmark again\nmemslot 1\n"
    ).to("moved")
    assert dirty(vm, 1) == pages(moved, 2, 3)
    assert dirty(vm.to("again"), 1) == []
    assert not dirty(vm.end(), 1)


def test_each_slot_has_a_bitmap_of_its_own() -> None:
    vm = Vm(
        f"{TWO_WINDOWS}memslot 1 {WINDOW:#x} 1M {DATA:#x} d\nlog 1\nmap 0xa0000000 {DATA:#x} 64k 3 rw\n"
        f"touch w {NESTED + PAGE:#x}\ntouch w {0xA000_0000 + 2 * PAGE:#x}\nmark both\ngetlog 1"
    ).to("both")
    assert (dirty(vm, 0), dirty(vm, 1)) == (pages(DATA, 2), pages(WINDOW, 1))
    assert (dirty(vm.end(), 0), dirty(vm, 1)) == (pages(DATA, 2), [])
    assert vm.executor.dirty_logs[0].pages.tolist() == pages(WINDOW, 1)


def test_a_notifier_goes_by_user_address_and_then_by_when_a_slot_was_set() -> None:
    """As seen on the rig (``live/notifier-by-hva``)."""
    window = {slot: WINDOW + slot * 16 * M for slot in range(1, 6)}
    script = f"{BASE}write {DATA:#x} 64k\n"
    for slot, memory in (
        (2, DATA + PAGE),
        (5, DATA + PAGE),
        (1, DATA + 2 * PAGE),
        (3, DATA + PAGE),
        (4, DATA),
    ):
        script += f"memslot {slot} {window[slot]:#x} 1M {memory:#x}\n"
    change = f"memslot 5 {window[5]:#x} 1M {DATA + PAGE:#x} d\nmemslot 2\n"
    take = f"dontneed {DATA + 4 * PAGE:#x} 4k\n"
    again = f"memslot 2 {window[2]:#x} 1M {DATA + 3 * PAGE:#x}\n"
    vm = Vm(script + take + change + take + again + take).end()
    orders = [*(0, 4, 2, 5, 3, 1), *(0, 4, 3, 5, 1), *(0, 4, 3, 5, 1, 2)]
    numbers = {base >> 24: slot for slot, base in window.items()} | {DATA >> 24: 0}
    assert [numbers[row["start"] >> 12] for row in vm.log("unmap_gfn")] == orders


def test_a_read_only_slot_that_logs_keeps_its_blocks() -> None:
    window = f"{WINDOW:#x} 2M {DATA:#x}"
    script = f"{HUGE}memslot 1 {window} r\nmap {NESTED:#x} {WINDOW:#x} 2M 2 rw\ntouch r {NESTED:#x}\n"
    vm = Vm(f"{script}memslot 1 {window} rd\ntouch r {NESTED:#x}").end()
    assert vm.sizes() == {NESTED: (2 * M, 2)}


def test_getlog_of_a_clean_slot_flushes_nothing() -> None:
    vm = Vm(f"{BASE}{MAPPED}log 1\ngetlog\nmark clean\ngetlog").to("clean")
    before = vm.leaves(1), vm.count(TLBI_RANGE)
    vm.end()
    assert (vm.leaves(1), vm.count(TLBI_RANGE)) == before
    assert not len(vm.executor.dirty_logs[1].pages)


# KVM_CLEAR_DIRTY_LOG

MANUAL = f"manual\n{BASE}{MAPPED}log 1\ntouch w {NESTED:#x} 4096 8\ntouch w {NESTED + WORD:#x} 4096 2\n"
# L2 fills shadows alone: what the canonical table has, L1 put there.
POKES = "".join(f"poke {DATA + page * PAGE:#x} 1\n" for page in (1, 2, 4, 5))
FIRST = (DATA - RAM) // PAGE


def test_with_manual_protection_getlog_tells_and_changes_nothing() -> None:
    vm = Vm(f"{MANUAL}mark dirty\ngetlog").to("dirty")
    before = vm.leaves(0), vm.leaves(1), dirty(vm), vm.count(TLBI_RANGE), vm.count(LOCK_WRITE)
    vm.end()
    assert (vm.leaves(0), vm.leaves(1), dirty(vm), vm.count(TLBI_RANGE), vm.count(LOCK_WRITE)) == before
    assert set(before[2]) <= set(vm.executor.dirty_logs[0].pages.tolist())


def test_clear_takes_its_pages_and_protects_from_the_first_to_the_last_of_them() -> None:
    vm = Vm(f"{MANUAL}{POKES}mark dirty\nclearlog 0 {FIRST + 2} 3").to("dirty")
    assert writable(vm, 0, DATA, DATA + M) == pages(DATA, 1, 2, 4, 5)
    everything = pages(DATA, *range(8), 64, 65)
    assert dirty(vm) == everything
    flushes, shadows = vm.count(TLBI_RANGE), vm.count(TLBI_VMID_SHADOW)
    vm.end()
    assert dirty(vm) == pages(DATA, 0, 1, 5, 6, 7, 64, 65)
    assert writable(vm, 0, DATA, DATA + M) == pages(DATA, 1, 5)
    assert not writable(vm, 1, 0, 1 << 40)  # every shadow, whole
    assert (vm.count(TLBI_RANGE) - flushes, vm.count(TLBI_VMID_SHADOW) - shadows) == (1, 0)


@pytest.mark.parametrize("design", ["reverse_table", "spanning"])
def test_with_precise_updates_clear_protects_the_shadow_leaves_of_its_pages(design: str) -> None:
    vm = Vm(f"{MANUAL}clearlog 0 {FIRST + 2} 3", design, precise_updates=True).end()
    protected = [ipa for ipa, leaf in vm.leaves(1).items() if ipa >= NESTED and "w" not in leaf.prot]
    assert protected == pages(NESTED, 2, 3, 4)


def test_clear_flushes_the_shadows_where_the_architecture_asks_for_it() -> None:
    vm = Vm(f"{MANUAL}mark dirty\nclearlog", as_architecture=("dirty-log-flush",)).to("dirty")
    flushes = vm.count(TLBI_VMID_SHADOW)
    assert vm.end().count(TLBI_VMID_SHADOW) == flushes + 1


def test_clear_goes_word_by_word_under_one_lock() -> None:
    vm = Vm(f"{MANUAL}mark dirty\nclearlog 0 {FIRST + 7} 59").to("dirty")
    locks = vm.count(LOCK_WRITE)
    vm.forget_log()
    vm.end()
    assert vm.count(LOCK_WRITE) == locks + 1
    assert dirty(vm) == pages(DATA, *range(7))
    protected = [(row["addr"], row["size"]) for row in vm.log("s2wp") if row["mmu"] == 0]
    assert protected == [(DATA + 7 * PAGE, PAGE), (DATA + WORD, 2 * PAGE)]


def test_clear_of_clean_pages_flushes_nothing() -> None:
    vm = Vm(f"{MANUAL}mark dirty\nclearlog 0 {FIRST + 128} 128").to("dirty")
    before = vm.leaves(1), dirty(vm), vm.count(TLBI_RANGE)
    vm.end()
    assert (vm.leaves(1), dirty(vm), vm.count(TLBI_RANGE)) == before


def test_a_page_written_again_after_clear_is_dirty_again() -> None:
    vm = Vm(f"{MANUAL}clearlog\nmark clean\ntouch w {NESTED + 3 * PAGE:#x}").to("clean")
    assert dirty(vm) == []
    assert dirty(vm.end()) == pages(DATA, 3)


def test_a_log_may_begin_with_every_page_dirty_and_nothing_protected() -> None:
    vm = Vm(
        f"manual 1\n{BASE}{MAPPED}memslot 1 {WINDOW:#x} 20k {DATA:#x}\nmark off\nlog 1\nmark on\n"
        f"clearlog 0 {FIRST} 128\n"
        f"memslot 1 {WINDOW:#x} 20k {DATA:#x} d"
    ).to("off")
    before = vm.leaves(0), vm.leaves(1), vm.count(TLBI_RANGE)
    vm.to("on")
    assert (vm.leaves(0), vm.leaves(1), vm.count(TLBI_RANGE)) == before
    assert len(dirty_pages(vm.state, 0)) == 64 * M // PAGE
    vm.end()
    assert len(dirty_pages(vm.state, 0)) == 64 * M // PAGE - 128
    assert not writable(vm, 1, 0, 1 << 40)
    assert dirty_pages(vm.state, 1).tolist() == pages(WINDOW, *range(5))


# Eager splitting

BLOCKS = f"{HUGE}map {NESTED:#x} {DATA:#x} 4M 2 rw\ntouch w {NESTED:#x} 2M 2\nmark blocks\n"


def translations(vm: Vm, mmu: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where each page of a range goes."""
    for ipa, leaf in vm.leaves(mmu).items():
        if start <= ipa < end:
            output = leaf.descriptor & 0xFFFF_FFFF_F000
            yield from ((ipa + at, output + at) for at in range(0, leaf.size, PAGE))


@pytest.mark.parametrize(("chunk", "holds"), [(4 * K, 1024), (2 * M, 2), (1024 * M, 1)])
def test_a_log_that_begins_splits_the_canonical_blocks_alone(chunk: int, holds: int) -> None:
    script = f"memslot 1 {WINDOW:#x} 4M {DATA:#x}\npeek {WINDOW:#x}\npeek {WINDOW + 2 * M:#x}\nmark window\n"
    vm = Vm(f"eager {chunk:#x}\n{BLOCKS}{script}memslot 1 {WINDOW:#x} 4M {DATA:#x} d").to("window")
    before = dict(translations(vm, 0, WINDOW, WINDOW + 4 * M))
    assert len(before) == 1024
    shadow, others = vm.sizes(), [ipa for ipa in vm.leaves(0) if ipa < WINDOW]
    vm.forget_log()
    vm.end()
    assert dict(translations(vm, 0, WINDOW, WINDOW + 4 * M)) == before
    leaves = {ipa: leaf for ipa, leaf in vm.leaves(0).items() if ipa >= WINDOW}
    assert {(x.size, x.level, x.prot) for x in leaves.values()} == {(PAGE, 3, "rx")}
    assert len(vm.log("s2split")) == holds
    assert vm.sizes() == shadow
    assert not writable(vm, 1, 0, 1 << 40)
    assert [ipa for ipa in vm.leaves(0) if ipa < WINDOW] == others


@pytest.mark.parametrize(("chunk", "broken"), [(2 * M, 1 + 512), (1024 * M, 1)])
def test_a_block_of_1g_becomes_pages_at_once_where_there_are_tables_for_all(chunk: int, broken: int) -> None:
    vm = Vm(f"eager {chunk:#x}\nmem 1G\nstart huge-pud\npeek {DATA:#x}\nmark block\nlog 1").to("block")
    block = vm.leaves(0)[RAM]
    assert (block.size, len(vm.leaves(0))) == (1024 * M, 1)
    before = vm.count(TLBI_IPA)
    vm.end()
    assert vm.count(TLBI_IPA) - before == broken
    leaves = vm.leaves(0)
    assert list(leaves) == list(range(RAM, RAM + 1024 * M, PAGE))
    assert {(x.size, x.level, x.prot) for x in leaves.values()} == {(PAGE, 3, block.prot.replace("w", ""))}
    last = leaves[RAM + 1024 * M - PAGE].descriptor
    assert last & 0xFFFF_FFFF_F000 == (block.descriptor & 0xFFFF_C000_0000) + 1024 * M - PAGE


def test_a_block_of_16k_pages_is_split_into_all_of_them() -> None:
    data = 0x4200_0000
    write = f"write {data:#x} 32M\npeek {data:#x}\n"
    script = f"granule 16K\neager 32M\nmem 128M\nstart thp\n{write}mark block\nlog 1"
    vm = Vm(script).to("block")
    block = vm.leaves(0)[data]
    assert block.size == 32 * M
    vm.end()
    leaves = {ipa: leaf for ipa, leaf in vm.leaves(0).items() if ipa >= data}
    assert list(leaves) == list(range(data, data + 32 * M, 16 * K))
    output = block.descriptor & 0xFFFF_FE00_0000
    assert [x.descriptor & 0xFFFF_FFFF_C000 for x in leaves.values()] == [output + i - data for i in leaves]


def test_a_shadow_block_goes_when_l2_writes_to_it() -> None:
    vm = Vm(f"eager 2M\n{BLOCKS}log 1\nmark on\ntouch w {NESTED + 5 * PAGE:#x}").to("on")
    assert vm.sizes() == {NESTED: (2 * M, 2), NESTED + 2 * M: (2 * M, 2)}
    vm.end()
    assert vm.sizes() == {NESTED + 5 * PAGE: (PAGE, 2), NESTED + 2 * M: (2 * M, 2)}
    assert dirty(vm) == pages(DATA, 5)


def test_where_all_begins_dirty_clear_splits_the_blocks_of_its_pages() -> None:
    first = f"clearlog 0 {FIRST + 510} 4"
    vm = Vm(
        f"eager 1G\nmanual 1\n{BLOCKS}peek {DATA:#x}\npeek {DATA + 2 * M:#x}\nmark full\nlog 1\nmark on\n"
        f"{first}"
    ).to("full")
    blocks = vm.sizes(0)
    assert vm.to("on").sizes(0) == blocks
    vm.forget_log()
    vm.end()
    assert {size for ipa, (size, _) in vm.sizes(0).items() if ipa >= DATA} == {PAGE}
    assert vm.sizes() == {NESTED: (2 * M, 2), NESTED + 2 * M: (2 * M, 2)}
    split = [(row["addr"], row["size"]) for row in vm.log("s2split")]
    assert split == [(DATA + 510 * PAGE, 2 * PAGE), (DATA + 512 * PAGE, 2 * PAGE)]


def test_tables_kept_for_splitting_go_when_the_log_ends() -> None:
    vm = Vm(f"eager 2M\n{BLOCKS}log 1\nmark on\nlog 0\n").to("on")
    assert vm.register(K_SPLIT_CACHE)
    assert not vm.end().register(K_SPLIT_CACHE)


# Dirty rings

RING = f"ring 256 bitmap\n{BASE}{MAPPED}log 1\nharvest\nmark on\n"


def harvested(vm: Vm) -> list[int]:
    """Data pages read from the rings, in their order."""
    return [row["ipa"] for row in vm.log("harvested") if row["ipa"] >= DATA]


def test_a_ring_has_the_pages_in_the_order_in_which_they_were_written() -> None:
    order = (5, 4, 70, 3, 1, 65, 150, 213, 149)  # from 149 to 213 is one page too far
    touches = "".join(f"touch w {NESTED + n * PAGE:#x}\n" for n in order)
    vm = Vm(f"{RING}{touches}poke {DATA + 9 * PAGE:#x} 1\nmark written\nharvest\nmark read\nharvest").to(
        "written"
    )
    assert not len(dirty_pages(vm.state, 0))
    vm.forget_log()
    flushes = vm.count(TLBI_VMID), vm.count(TLBI_VMID_SHADOW)
    vm.to("read")
    assert harvested(vm) == pages(DATA, *order, 9)
    assert not writable(vm, 0, DATA, DATA + M)
    assert not writable(vm, 1, 0, 1 << 40)
    assert (vm.count(TLBI_VMID) - flushes[0], vm.count(TLBI_VMID_SHADOW) - flushes[1]) == (1, 0)
    protected = [(row["addr"], row["size"]) for row in vm.log("s2wp") if row["mmu"] == 0]
    assert protected == batches([row["ipa"] // PAGE for row in vm.log("harvested")])
    assert len(protected) < len(vm.log("harvested"))
    vm.forget_log()
    assert not vm.end().log("s2wp")


def batches(order: list[int]) -> list[tuple[int, int]]:
    """Ranges that a reset protects: pages that follow each other and lie within 64 of the batch's base."""
    groups: list[set[int]] = []
    base = 0
    for page in order:
        upwards = bool(groups) and base <= page < base + 64
        if not upwards:
            if not groups or page <= base - 64 or page > base or max(groups[-1]) - page >= 64:
                groups.append(set())
            base = page
        groups[-1].add(page)
    return [(min(group) * PAGE, (max(group) - min(group) + 1) * PAGE) for group in groups]


def test_the_same_page_dirtied_twice_is_two_entries() -> None:
    script = f"ring 256\nvcpus 2\n{BASE}map {NESTED:#x} {DATA:#x} 64k 3 rw\nlog 1\ntouch w {NESTED:#x}\n"
    vm = Vm(f"{script}dontneed {DATA:#x} 4k\n@1 s2 0x40100000 1\n@1 touch w {NESTED:#x}\nharvest").end()
    rows = [(row["vcpu"], row["ipa"]) for row in vm.log("harvested") if row["ipa"] == DATA]
    assert rows == [(0, DATA), (1, DATA)]


def test_a_vcpu_whose_ring_is_full_leaves_until_it_is_reset() -> None:
    vm = Vm(f"{RING}touch w {NESTED:#x} 4096 256\nharvest").end()
    reads = np.array([row["ipa"] for row in vm.log("harvested")])
    (full,) = vm.log("ring_full")
    assert full["vcpu"] == 0
    assert set(pages(DATA, *range(256))) == set(reads[reads >= DATA].tolist())
    names = [row.name for row in read_log(vm.state)]
    first = names[names.index("ring_full") :]
    assert first.count("ring_full") == 1
    # KVM keeps 64 entries back (KVM_DIRTY_RING_RSVD_ENTRIES); all others are read before any is protected.
    assert first[1 : first.index("s2wp")].count("harvested") == 256 - 64


def test_a_slot_that_logs_into_rings_alone_keeps_its_blocks() -> None:
    script = f"{BLOCKS}log 1\nmark on\ntouch w {NESTED + PAGE:#x}\nharvest"
    alone = Vm(f"ring 256\n{script}").end()
    assert alone.sizes() == {NESTED: (2 * M, 2), NESTED + 2 * M: (2 * M, 2)}
    assert harvested(alone) == [DATA]
    both = Vm(f"ring 256 bitmap\n{script}").end()
    assert both.sizes() == {NESTED + PAGE: (PAGE, 2), NESTED + 2 * M: (2 * M, 2)}
    assert harvested(both) == pages(DATA, 1)


def test_entries_of_a_slot_that_went_protect_nothing() -> None:
    script = f"ring 256 bitmap\n{TWO_WINDOWS}memslot 1 {WINDOW:#x} 1M {DATA:#x} d\ntouch w {NESTED:#x}\n"
    vm = Vm(f"{script}memslot 1\nmark gone\nharvest").to("gone")
    vm.forget_log()
    vm.end()
    assert [row["ipa"] for row in vm.log("harvested") if row["ipa"] >= DATA] == [WINDOW]
    assert not vm.log("s2wp")
