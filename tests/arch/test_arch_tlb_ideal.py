"""The TLB that keeps all: against the naive one, and the sequences the architecture's text tells of."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tlb_lab import Held, Pe, Tlbi, entries, held, ids, ipas, tlbis, vas

from shadowmmu.arch import fault, tlb_ideal
from shadowmmu.arch.tlb import TABLE, Key, entry, key
from shadowmmu.arch.tlb_ideal import (
    END,
    FULL,
    NOT_KEPT,
    Ideal,
    ideal_entries,
    ideal_fill,
    ideal_grow,
    ideal_invalidate,
    ideal_lookup,
    ideal_tlb,
)
from shadowmmu.arch.tlbi_scope import BOTH, EL2, EL20, STAGE1, STAGE2, as_scope, issuer, scope_of
from shadowmmu.compiled import U64

K4, K16, K64 = 12, 14, 16
KINDS = [STAGE1, STAGE2, BOTH, STAGE1 + TABLE, STAGE2 + TABLE, BOTH + TABLE]


def contents(tlb: Ideal) -> set[Held]:
    return {held(e) for e in ideal_entries(tlb)}


def found(tlb: Ideal, wanted: Key) -> set[Held]:
    rows = np.zeros(64, np.int64)
    hits = ideal_lookup(tlb, wanted, rows)
    all_entries = ideal_entries(tlb)
    distinct = {held(all_entries[row]) for row in rows[:hits].tolist()}
    assert len(distinct) == hits
    return distinct


@st.composite
def keys(draw: st.DrawFn) -> Key:
    kind = draw(st.sampled_from(KINDS))
    regime = draw(st.sampled_from([0, 0, EL20, EL2]))
    ia = draw(vas if kind & STAGE1 else ipas)
    return Key(kind, regime, draw(ids), draw(ids), U64(ia))


def answers(e: Held, wanted: Key) -> bool:
    """Whether an entry may be used, from the list of what distinguishes entries (R_NWYRD)."""
    stages = {bit for bit in (STAGE1, STAGE2) if wanted.kind & bit}
    return (
        e.stages == stages
        and e.table == bool(wanted.kind & TABLE)
        and e.regime == ("EL1&0", "EL2&0", "EL2")[wanted.regime]
        and (e.regime != "EL1&0" or e.vmid == wanted.vmid)
        and e.matches_asid(wanted.asid)
        and e.covers(int(wanted.input))
    )


@given(
    steps=st.lists(st.one_of(entries(), entries(), tlbis(), keys(), keys()), max_size=40),
    chains=st.sampled_from([1, 128]),
)
def test_it_holds_and_finds_what_the_naive_one_does(steps: list[Held | Tlbi | Key], chains: int) -> None:
    tlb = ideal_tlb(64)._replace(heads=np.full(chains, END, np.int64))
    naive: set[Held] = set()
    for step in steps:
        if isinstance(step, Held):
            ideal_fill(tlb, step.for_kernels(), fault.NONE)
            naive.add(step.normal())
        elif isinstance(step, Tlbi):
            gone = {e for e in naive if step.removes(e)}
            assert ideal_invalidate(tlb, step.scope()) == len(gone)
            naive -= gone
        else:
            assert found(tlb, step) == {e for e in naive if answers(e, step)}
        assert contents(tlb) == naive
        assert tlb.state[0] == len(naive)


def page(**how: object) -> Held:
    """A 4K page of both stages in VMID 1, ASID 1."""
    plain = {"stages": frozenset({1, 2}), "table": False, "regime": "EL1&0", "vmid": 1, "asid": 1}
    plain |= {"is_global": False, "xs": False, "stage1": ("4K", 3), "stage2": ("4K", 3)}
    plain |= {"input": 0x40_0000, "output": 0x9000_0000, "ipa": 0x8000_0000, "attributes": 0}
    return Held(**(plain | how))  # type: ignore[arg-type]


def after(filled: list[Held], *executed: Tlbi) -> set[Held]:
    """What is left of entries after TLBIs."""
    tlb = ideal_tlb()
    for e in filled:
        ideal_fill(tlb, e.for_kernels(), fault.NONE)
    for each in executed:
        ideal_invalidate(tlb, each.scope())
    return contents(tlb)


def test_stage_2_needs_its_whole_sequence() -> None:
    """D8.17.6.1: by IPA, then all of stage 1."""
    combined = page()
    alone = page(stages=frozenset({2}), stage1=None, input=0x8000_0000, asid=0, ipa=0)
    by_ipa = Tlbi("IPAS2E1IS", {"IPA": 0x80000, "TTL": 0})
    assert after([combined, alone], by_ipa) == {combined}
    assert after([combined, alone], Tlbi("VMALLE1IS")) == {alone}
    assert after([combined, alone], by_ipa, Tlbi("VMALLE1IS")) == set()
    assert after([combined, alone], by_ipa, Tlbi("VAE1IS", {"VA": 0x400, "ASID": 1, "TTL": 0})) == set()
    assert after([combined, alone], Tlbi("VMALLS12E1IS")) == set()


def test_vmids_and_what_reaches_all_of_them() -> None:
    mine, other = page(), page(vmid=2)
    for name in ("VMALLE1", "VMALLS12E1OS", "ASIDE1"):
        fields = {"ASID": 1} if name == "ASIDE1" else {}
        assert after([mine, other], Tlbi(name, fields)) == {other}
    assert after([mine, other], Tlbi("ALLE1")) == set()


def test_a_block_cut_into_pages_goes_by_any_of_its_vas() -> None:
    """R_LGSCG: all entries with the stage-1 information of one block."""
    block = {"stage1": ("4K", 2), "input": 0x40_0000}
    pieces = [page(**(block | {"input": 0x40_0000 + 4096 * n})) for n in range(3)]
    beside = page(input=0x60_0000)
    assert after([*pieces, beside], Tlbi("VALE1", {"VA": 0x5FF, "ASID": 1, "TTL": 0b0110})) == {beside}


@pytest.mark.parametrize(
    ("ttl", "kept"),
    [
        (0b0000, False),
        (0b0110, False),
        (0b0101, True),
        (0b0111, True),
        (0b1010, True),
        (0b0100, False),
        (0b0011, False),
    ],
)
def test_a_wrong_hint_may_leave_the_entry(ttl: int, kept: bool) -> None:
    block = page(stage1=("4K", 2), stage2=("4K", 2))
    assert bool(after([block], Tlbi("VAE1", {"VA": 0x400, "ASID": 1, "TTL": ttl}))) == kept


def test_hints_of_stage_2_are_about_its_own_leaf() -> None:
    block = page(stages=frozenset({2}), stage1=None, stage2=("4K", 2), input=0x8000_0000, ipa=0).normal()
    for ttl, kept in ((0b0110, False), (0b0111, True), (0b1010, True), (0, False)):
        assert bool(after([block], Tlbi("IPAS2E1IS", {"IPA": 0x80010, "TTL": ttl}))) == kept
    for tg, ttl, kept in ((1, 0, False), (1, 2, False), (1, 3, True), (3, 0, True)):
        fields = {"BaseADDR": 0x8000_0000 >> (12, 12, 14, 16)[tg], "NUM": 0, "SCALE": 0, "TG": tg, "TTL": ttl}
        assert bool(after([block], Tlbi("RIPAS2LE1IS", fields))) == kept


@pytest.mark.parametrize(("ttl", "left"), [(0b0111, set()), (0b0110, {2}), (0b0101, {1, 2}), (0, set())])
def test_a_hint_is_good_for_tables_above_the_leaf(ttl: int, left: set[int]) -> None:
    tables = [page(table=True, stage1=("4K", n), stage2=("4K", 3), input=0) for n in (0, 1, 2)]
    kept = after(tables, Tlbi("VAE1", {"VA": 0x1, "ASID": 1, "TTL": ttl}))
    assert {e.stage1[1] for e in kept if e.stage1} == left


def test_last_level_forms_leave_walk_entries_and_asids_tag_them() -> None:
    table = page(table=True, stage1=("4K", 2), is_global=False)
    leaf = page(is_global=True, asid=0)
    other_asid = {"VA": 0x400, "ASID": 2, "TTL": 0}
    assert after([table, leaf], Tlbi("VALE1", other_asid | {"ASID": 1})) == {table.normal()}
    assert after([table, leaf], Tlbi("VAE1", other_asid)) == {table.normal()}
    assert after([table, leaf], Tlbi("ASIDE1", {"ASID": 1})) == {leaf}
    assert after([table, leaf], Tlbi("VAAE1", {"VA": 0x400, "TTL": 0})) == set()


def test_a_tlbi_by_ipa_does_not_take_a_va_for_one() -> None:
    same = page(input=0x8000_0000)
    assert after([same], Tlbi("IPAS2E1", {"IPA": 0x80000, "TTL": 0})) == {same}


def test_neighbours_of_a_range_stay() -> None:
    pages = [page(input=0x40_0000 + 4096 * n) for n in range(6)]
    fields = {"BaseADDR": 0x402, "NUM": 0, "SCALE": 0, "TG": 1, "ASID": 1, "TTL": 0}
    assert after(pages, Tlbi("RVAE1", fields)) == {*pages[:2], *pages[4:]}
    assert after(pages, Tlbi("VAE1", {"VA": 0x402, "ASID": 1, "TTL": 0})) == {*pages[:2], *pages[3:]}


def test_nxs_forms_may_leave_what_has_the_attribute() -> None:
    slow, fast = page(xs=True), page(xs=False, input=0x40_1000)
    assert after([slow, fast], Tlbi("VMALLE1NXS")) == {slow}
    assert after([slow, fast], Tlbi("VMALLE1", {}, Pe(el=1, force_nxs=True))) == {slow}
    assert after([slow, fast], Tlbi("VMALLE1", {}, Pe(el=2, force_nxs=True))) == set()


@pytest.mark.parametrize("kind", range(1, 6))
def test_only_permission_faults_are_cached(kind: int) -> None:
    tlb = ideal_tlb()
    row = ideal_fill(tlb, page().for_kernels(), kind)
    assert (row == NOT_KEPT) == (kind != fault.PERMISSION)
    assert len(ideal_entries(tlb)) == (kind == fault.PERMISSION)


def test_stale_and_fresh_entries_stand_side_by_side() -> None:
    tlb = ideal_tlb()
    old, new = page(), page(output=0xA000_0000)
    bigger = page(stage1=("4K", 2), stage2=("4K", 2), output=0xB000_0000)
    for e in (old, new, old, bigger):
        ideal_fill(tlb, e.for_kernels(), fault.NONE)
    wanted = key(BOTH, 0x40_0008, vmid=1, asid=1)
    assert found(tlb, wanted) == {old, new, bigger.normal()}
    first = np.zeros(1, np.int64)
    assert ideal_lookup(tlb, wanted, first) == 3
    assert held(ideal_entries(tlb)[first[0]]) == new
    assert found(tlb, wanted._replace(asid=2)) == set()


def test_sizes_that_share_a_chain_are_found_once() -> None:
    tlb = ideal_tlb(8)._replace(heads=np.full(1, END, np.int64))
    sizes = [page(input=0, stage1=("4K", level), stage2=("4K", level)) for level in (1, 2, 3)]
    for e in sizes:
        ideal_fill(tlb, e.for_kernels(), fault.NONE)
    assert found(tlb, key(BOTH, 0x123, vmid=1, asid=1)) == {e.normal() for e in sizes}


def test_entries_that_differ_in_any_word_are_kept_apart() -> None:
    variants = [page(), page(output=0xA000_0000), page(ipa=0x8100_0000), page(attributes=1), page(xs=True)]
    assert after(variants) == set(variants)


def test_what_is_left_after_a_tlbi_is_still_found() -> None:
    tlb = ideal_tlb(16)
    pages = [page(input=4096 * n) for n in range(16)]
    blocks = [page(input=0x20_0000 * n, stage1=("4K", 2), stage2=("4K", 2)) for n in range(16)]
    for e in (*pages[:8], *blocks[:8]):
        ideal_fill(tlb, e.for_kernels(), fault.NONE)
    assert ideal_invalidate(tlb, Tlbi("VAE1", {"VA": 2, "ASID": 1, "TTL": 0b0111}).scope()) == 1
    for n in range(8):
        both = {pages[n], blocks[0]} - {pages[2]}
        assert found(tlb, key(BOTH, 4096 * n, vmid=1, asid=1)) == both
    for n in range(1, 8):
        assert found(tlb, key(BOTH, 0x20_0000 * n, vmid=1, asid=1)) == {blocks[n]}


def test_the_top_byte_of_a_va_is_no_part_of_it() -> None:
    tlb = ideal_tlb()
    ideal_fill(tlb, page(input=0x5A00_0000_0040_0000).for_kernels(), fault.NONE)
    assert len(found(tlb, key(BOTH, 0xA500_0000_0040_0123, vmid=1, asid=1))) == 1
    assert ideal_entries(tlb)[0].input == 0x40_0000


def test_it_says_when_it_is_full_and_grows() -> None:
    tlb = ideal_tlb(2)
    pages = [page(input=4096 * n) for n in range(5)]
    for e in pages:
        while ideal_fill(tlb, e.for_kernels(), fault.NONE) == FULL:
            tlb = ideal_grow(tlb)
    assert len(tlb.rows) == 9
    assert contents(tlb) == set(pages)
    assert ideal_fill(tlb, pages[1].for_kernels(), fault.NONE) == 1
    assert found(tlb, key(BOTH, 0x3000, vmid=1, asid=1)) == {pages[3]}


def test_a_reserved_granule_and_an_unaligned_base_guarantee_nothing() -> None:
    fields = {"BaseADDR": 0x400, "NUM": 0, "SCALE": 0, "ASID": 1, "TTL": 0}
    assert after([page()], Tlbi("RVAE1", fields | {"TG": 1})) == set()
    assert after([page()], Tlbi("RVAE1", fields | {"TG": 0})) == {page()}
    block = page(stage1=("4K", 2))
    assert after([block], Tlbi("RVAE1", fields | {"TG": 1, "TTL": 2})) == set()
    assert after([block], Tlbi("RVAE1", fields | {"TG": 1, "TTL": 2, "BaseADDR": 0x401})) == {block}


def test_the_regimes_of_el2() -> None:
    host = entry(STAGE1, regime=EL20, asid=1, stage1=(K4, 3), input=0x1000, output=0x2000)
    alone = entry(STAGE1, regime=EL2, asid=9, stage1=(K4, 3), input=0x1000, output=0x2000)
    vhe, nvhe = issuer(hcr=1 << 34), issuer()

    def left(name: str, operand: int, pe: object) -> list[int]:
        tlb = ideal_tlb()
        ideal_fill(tlb, host, fault.NONE)
        ideal_fill(tlb, alone, fault.NONE)
        ideal_invalidate(tlb, as_scope(scope_of(name, operand, pe)))  # type: ignore[arg-type]
        return [e.regime for e in ideal_entries(tlb)]

    assert left("VAE2", 1, nvhe) == [EL20]
    assert left("VAE2", 1, vhe) == [EL20, EL2]
    assert left("VAE2", 1 << 48 | 1, vhe) == [EL2]
    assert left("ALLE2IS", 0, vhe) == [EL2]
    assert left("VMALLE1", 0, issuer(hcr=1 << 34 | 1 << 27)) == [EL2]
    assert left("VMALLS12E1", 0, issuer(hcr=1 << 34 | 1 << 27)) == [EL20, EL2]


def test_the_example_in_the_docstring() -> None:
    outcome = doctest.testmod(tlb_ideal)
    assert outcome.attempted > 0
    assert outcome.failed == 0
