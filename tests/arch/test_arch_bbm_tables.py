"""Tables that are hooked in, taken out and given away; identifiers, locks, reads."""

from __future__ import annotations

import pytest
from bbm_lab import AF, ASID, NEW, OLD, ROOT, VMID, Event, Scene, by_address, registers, scene
from hypothesis import given
from hypothesis import strategies as st

from shadowmmu.arch.bbm import Checker
from shadowmmu.arch.bbm_cleaning import hardware_update
from shadowmmu.arch.bbm_rules import a_tree
from shadowmmu.arch.bbm_trees import trees_of
from shadowmmu.arch.context import EVERYTHING, context
from shadowmmu.arch.registers import HCR_EL2, TCR_EL1
from shadowmmu.errors import InputError

ALL = (("dsb", (0, "ish")), ("tlbi", (0, "VMALLS12E1IS")), ("dsb", (0, "ish")))
FRESH = 0x900_0000


def names(s: Scene, *events: Event) -> list[str]:
    """The names of the rules broken by these."""
    return [each.rule.name for each in s.play(*events)]


def parent(s: Scene) -> int:
    """The entry that leads to the table of the leaf: the lab builds tables 16 pages apart."""
    return s.pa - (16 << s.page_shift)


@pytest.mark.parametrize("kind", ["stage 2", "EL1"])
@pytest.mark.parametrize("page_shift", [12, 14, 16])
def test_a_table_is_followed_as_long_as_it_can_be_walked(kind: str, page_shift: int) -> None:
    s = scene(kind, page_shift)
    beside = s.table + (8 << page_shift - 3) - 8  # its last entry
    assert s.checker.state(beside) == "invalid"
    s.play(("write", (0, parent(s), 0)))
    assert (s.checker.state(parent(s)), s.checker.state(beside)) == ("unclean", "taken out")
    s.play(*ALL)
    assert (s.checker.state(parent(s)), s.checker.state(beside)) == ("invalid", "untracked")
    assert names(s, ("write", (0, s.pa, s.leaf(NEW)))) == []
    assert names(s, ("dsb", (0, "ishst")), ("write", (0, parent(s), s.table | 3))) == []
    assert s.checker.state(s.pa) == "valid"


@pytest.mark.parametrize("kind", ["stage 2", "EL1", "EL2"])
def test_a_tlbi_for_one_address_does_not_free_a_table_with_other_leaves(kind: str) -> None:
    s = scene(kind)
    name = {"stage 2": "IPAS2E1IS", "EL1": "VAE1IS", "EL2": "VAE2IS"}[kind]
    s.play(("write", (0, s.pa + 8, s.leaf(NEW))), ("dsb", (0, "ish")), ("write", (0, parent(s), 0)))
    s.play(("dsb", (0, "ish")), by_thread0(by_address(name, s)), ("dsb", (0, "ish")))
    if kind == "stage 2":
        s.play(("tlbi", (0, "VMALLE1IS")), ("dsb", (0, "ish")))
    assert s.checker.state(s.pa) == "taken out"
    assert names(s, ("write", (0, parent(s), FRESH | 3))) == ["unfinished sequence"]


def by_thread0(event: Event) -> Event:
    return event[0], (0, *event[1])


@pytest.mark.parametrize(("name", "frees"), [("IPAS2E1IS", True), ("IPAS2LE1IS", False)])
def test_a_tlbi_for_the_last_level_spares_the_table_entry(name: str, frees: bool) -> None:
    s = scene()
    s.play(("write", (0, s.pa, 0)), *ALL, ("write", (0, parent(s), 0)), ("dsb", (0, "ish")))
    s.play(
        by_thread0(by_address(name, s)), ("dsb", (0, "ish")), ("tlbi", (0, "VMALLE1IS")), ("dsb", (0, "ish"))
    )
    assert (s.checker.state(parent(s)) == "invalid") == frees


def test_a_leaf_invalidated_before_its_table_may_come_back() -> None:
    s = scene()
    other = s.ia + 0x5000 >> 12
    s.play(("write", (0, parent(s), 0)), ("dsb", (0, "ish")))
    s.play(by_thread0(by_address("IPAS2LE1IS", s)), ("dsb", (0, "ish")))
    s.play(
        ("tlbi", (0, "IPAS2E1IS", other)), ("dsb", (0, "ish"))
    )  # the table's entry; the leaf was read again
    s.play(("tlbi", (0, "VMALLE1IS")), ("dsb", (0, "ish")))
    assert s.checker.state(parent(s)) == "unclean"


def test_a_table_that_is_out_may_be_emptied_but_not_filled() -> None:
    s = scene()
    s.play(("write", (0, parent(s), 0)))
    assert names(s, ("write", (0, s.pa, 0))) == []
    assert names(s, ("write", (0, s.pa + 8, s.leaf(NEW)))) == ["table still reachable"]


def test_a_table_that_is_out_must_not_be_hooked_in_before_it_is_clean() -> None:
    s = scene()
    s.play(("write", (0, parent(s), 0)))
    beside = parent(s) + 8
    assert names(s, ("dsb", (0, "ish")), ("write", (0, beside, s.table | 3))) == ["unclean table"]


def test_a_table_stays_with_the_entry_that_is_still_unclean_in_it() -> None:
    s = scene()
    s.play(("write", (1, s.pa, 0)), ("write", (0, parent(s), 0)), *ALL)  # thread 1 has had no DSB
    assert s.checker.state(parent(s)) == "unclean"
    assert any("below" in step for step in s.checker.unclean()[parent(s)])
    s.play(("dsb", (1, "ish")), ("tlbi", (1, "VMALLS12E1IS")), ("dsb", (1, "ish")))
    assert s.checker.state(parent(s)) == "invalid"


def test_two_entries_must_not_lead_to_one_table() -> None:
    s = scene()
    assert names(s, ("write", (0, parent(s) + 8, s.table | 3))) == ["shared table"]


def test_a_table_named_twice_goes_once() -> None:
    s = scene()
    grand = parent(s) - (16 << s.page_shift)
    assert names(s, ("write", (0, parent(s) + 8, s.table | 3))) == ["shared table"]
    assert names(s, ("write", (0, grand, 0)), *ALL) == []
    assert {s.checker.state(pa) for pa in (parent(s), parent(s) + 8, s.pa)} == {"untracked"}


@pytest.mark.parametrize(("order", "barrier"), [(False, False), (True, False), (False, True)])
def test_a_table_is_filled_before_it_is_hooked_in(order: bool, barrier: bool) -> None:
    s = scene()
    s.play(("write", (0, FRESH, s.leaf(NEW))))
    if barrier:
        s.play(("dsb", (0, "ishst")))
    s.checker.write(0, parent(s) + 8, FRESH | 3, release=order)
    assert (s.checker.violations == []) == (order or barrier)


def test_another_table_in_place_needs_a_break_and_leaves_the_old_one_unclean() -> None:
    s = scene()
    assert names(s, ("write", (0, parent(s), FRESH | 3))) == ["next table"]
    assert s.checker.state(FRESH) == "invalid"
    assert s.checker.state(s.pa) == "taken out"
    assert names(s, ("write", (0, parent(s), FRESH | 3 | 1 << 59))) == []


@given(st.integers(1, 2), st.sampled_from([12, 14, 16]), st.lists(st.integers(0, 60), max_size=5))
def test_whole_subtrees_come_and_go(level: int, page_shift: int, entries: list[int]) -> None:
    """A subtree of random shape hooked in, taken out, cleaned: nothing of it is followed any more."""
    s = scene("EL1", page_shift, level if page_shift == 12 else 2)
    top = s.pa + 8
    tables, at = [FRESH], s.level + 1
    for number, entry in enumerate(entries):
        if at == 3:
            s.checker.write(0, tables[-1] + 8 * entry, s.leaf(OLD) | 3)
        else:
            tables.append(FRESH + (number + 1 << 20))
            s.checker.write(0, tables[-2] + 8 * entry, tables[-1] | 3)
            at += 1
    s.checker.dsb(0, "ishst")
    s.checker.write(0, top, FRESH | 3)
    live = tables[: 4 - s.level - 1]
    assert {s.checker.state(table) != "untracked" for table in live} == {True}
    s.play(("write", (0, top, 0)))
    assert {s.checker.state(table) for table in live} <= {"taken out"}
    s.play(("dsb", (0, "ish")), ("tlbi", (0, "VMALLE1IS")), ("dsb", (0, "ish")))
    assert {s.checker.state(table) for table in tables} == {"untracked"}
    assert s.checker.violations == []


def test_a_root_is_given_up_when_no_register_names_it_and_free_when_clean() -> None:
    s = scene()
    assert names(s, ("give_up", (0, ROOT))) == ["root in use"]
    s = scene()
    other = registers("stage 2", 12, 0x700_0000, VMID + 1)
    s.play(("registers", (0, other)), ("registers", (1, other)))
    assert names(s, ("give_up", (0, ROOT))) == []
    assert names(s, ("free", (0, ROOT, 0x1000)))[:1] == ["table freed"]
    s.play(("tlbi", (0, "VMALLS12E1IS")), ("dsb", (0, "ish")))
    assert s.checker.state(ROOT) == "taken out"  # the TLBI was for the VMID of another tree
    s.play(("tlbi", (0, "ALLE1IS")), ("dsb", (0, "ish")))
    assert s.checker.state(ROOT) == "untracked"
    assert names(s, ("free", (0, ROOT, 0x1000))) == []


def test_a_root_that_maps_nothing_is_free_at_once() -> None:
    s, empty = scene(), 0x700_0000
    s.play(("registers", (0, registers("EL1", 12, empty, ASID))))
    assert s.checker.state(empty) == "invalid"
    s.play(("registers", (0, registers("stage 2", 12, ROOT))))
    assert names(s, ("give_up", (0, empty)), ("free", (0, empty, 0x1000))) == []
    assert s.checker.state(empty) == "untracked"


def test_a_root_under_two_names_is_followed_and_given_up_under_the_first() -> None:
    s = scene("EL1")
    assert names(s, ("registers", (0, registers("EL2", 12, ROOT)))) == ["shared table"]
    elsewhere = registers("EL1", 12, 0x700_0000, ASID + 1)
    s.play(("registers", (0, elsewhere)), ("registers", (1, elsewhere)))
    assert names(s, ("give_up", (0, ROOT))) == []
    assert s.checker.state(ROOT) == "taken out"
    s.play(("tlbi", (0, "VMALLE1IS")), ("dsb", (0, "ish")))
    assert s.checker.state(ROOT) == "untracked"


@pytest.mark.parametrize("host", [False, True])
def test_a_host_in_el2_has_no_tree_of_el1(host: bool) -> None:
    row = context(
        HCR_EL2=HCR_EL2.encode(E2H=1, TGE=int(host)),
        SCTLR_EL1=1,
        SCTLR_EL2=1,
        TTBR0_EL1=ROOT,
        TTBR0_EL2=FRESH,
        TCR_EL1=TCR_EL1.encode(T0SZ=16, IPS=5, EPD1=1),
        TCR_EL2=TCR_EL1.encode(T0SZ=16, IPS=5, EPD1=1),
    )
    assert {tree.base for tree in trees_of(row, EVERYTHING)} == ({FRESH} if host else {ROOT, FRESH})


def test_one_vmid_stands_for_one_tree() -> None:
    s = scene()
    s.play(("write", (0, 0x700_0000, 3 | FRESH)))
    assert names(s, ("registers", (1, registers("stage 2", 12, 0x700_0000)))) == ["identifier reused"]


def test_a_tree_used_under_two_vmids_is_clean_when_both_are() -> None:
    s = scene()
    second = registers("stage 2", 12, ROOT, VMID + 1)
    s.play(("registers", (1, second)), ("write", (0, s.pa, 0)), *ALL)
    assert s.checker.state(s.pa) == "unclean"
    s.play(("tlbi", (1, "VMALLS12E1IS")), ("dsb", (1, "ish")))
    assert s.checker.state(s.pa) == "invalid"


def test_the_holder_of_the_lock_writes_and_a_trusted_thread_its_own_entry() -> None:
    s = scene()
    s.checker.protect(0, ROOT, 0xAA)
    assert names(s, ("write", (0, s.pa, 0))) == ["lock"]
    assert names(s, ("lock", (1, 0xAA)), ("write", (0, s.pa, 0))) == ["lock"]
    assert names(s, ("write", (1, s.pa, 0)), ("unlock", (1, 0xAA))) == []
    assert names(s, ("entrust", (0, s.pa, 3)), ("write", (3, s.pa, 0))) == []
    assert names(s, ("unlock", (1, 0xAA))) == ["locking"]
    assert names(s, ("lock", (1, 0xAA)), ("lock", (0, 0xAA))) == ["locking"]


def test_a_read_shows_the_last_write_or_an_update_by_hardware() -> None:
    s = scene()
    assert names(s, ("read", (0, s.pa, s.leaf(OLD)))) == []
    assert names(s, ("read", (0, s.pa, s.leaf(NEW)))) == ["unseen write"]
    managed = scene()
    row = registers("stage 2", 12, ROOT)
    row[6] |= 1 << 21  # VTCR_EL2.HA
    managed.play(("registers", (0, row)), ("write", (0, managed.pa + 8, managed.leaf(NEW) & ~AF)))
    assert names(managed, ("read", (0, managed.pa + 8, managed.leaf(NEW)))) == []


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(("manages", "modifier"), [(True, True), (True, False), (False, True)])
def test_hardware_sets_dirty_state_where_it_may_and_never_takes_it_back(
    stage: int, manages: bool, modifier: bool
) -> None:
    tree = a_tree(stage=stage)
    tree.hardware_af = tree.hardware_dirty = manages
    plain = 0x8000_0003 | AF | modifier << 51
    clean, dirty = (plain, plain | 1 << 7) if stage == 2 else (plain | 1 << 7, plain)
    assert hardware_update(clean, dirty, tree) == (manages and modifier)
    assert not hardware_update(dirty, clean, tree)


def test_zeroed_memory_is_an_empty_table_when_it_is_hooked_in() -> None:
    s = scene()
    s.play(("write", (0, FRESH, s.leaf(NEW))), ("initialise", (0, FRESH, 1 << 12)))
    assert names(s, ("dsb", (0, "ishst")), ("write", (0, parent(s) + 8, FRESH | 3))) == []
    assert s.checker.state(FRESH) == "invalid"


def test_zeroing_a_live_table_is_writing_it() -> None:
    s = scene()
    s.play(("initialise", (0, s.table, 1 << 12)))
    assert s.checker.state(s.pa) == "unclean"


def test_a_violation_says_what_where_and_what_was_missing() -> None:
    s = scene()
    s.play(("write", (0, s.pa, 0)), ("dsb", (0, "ish")))
    (found,) = s.play(("write", (1, s.pa, s.leaf(NEW))))
    text = str(found)
    for part in ("thread 1", hex(s.pa), "stage 2", "level 3", hex(s.ia), "R_DDMVT", "IPA " + hex(s.ia)):
        assert part in text


def test_bad_names_are_refused() -> None:
    checker = Checker(EVERYTHING)
    with pytest.raises(InputError, match="VAE9"):
        checker.tlbi(0, "VAE9")
    with pytest.raises(InputError, match="DSB"):
        checker.dsb(0, "inner")
