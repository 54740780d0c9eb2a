"""The TLB of sets and ways: never more than the one that keeps all, replacement, and what it counts."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tlb_lab import Held, Tlbi, entries, held, ids, ipas, tlbis, vas

from shadowmmu.arch import fault
from shadowmmu.arch.tlb import TABLE, Entry, Key, entry, key, read_entry
from shadowmmu.arch.tlb_ideal import ideal_entries, ideal_fill, ideal_invalidate, ideal_lookup, ideal_tlb
from shadowmmu.arch.tlb_sets import (
    MISS,
    RANDOM,
    ROUND_ROBIN,
    Sets,
    Shape,
    sets_counts,
    sets_entries,
    sets_fill,
    sets_invalidate,
    sets_lookup,
    sets_tlb,
    sets_walk,
)
from shadowmmu.arch.tlbi_scope import BOTH, EL2, EL20, STAGE1, STAGE2, issuer, scope_of
from shadowmmu.compiled import INTERPRETED, U64
from shadowmmu.errors import InputError

ROOT = Path(__file__).parents[2]
SMALL = Shape(micro=(1, 2), main=(2, 2), stage2=(1, 2), walk1=(1, 1), walk2=(1, 1))
ONE_SET = Shape(micro=(0, 0), main=(1, 2))
shapes = st.sampled_from(
    [
        SMALL,
        SMALL._replace(combined=False, policy=ROUND_ROBIN),
        SMALL._replace(policy=RANDOM, seed=0xBEEF),
        Shape(combined=False),
        ONE_SET,
    ]
)


@st.composite
def lookups(draw: st.DrawFn) -> Key:
    kind = draw(st.sampled_from([STAGE1, STAGE2, BOTH]))
    ia = draw(vas if kind & STAGE1 else ipas)
    regime = draw(st.sampled_from([0, 0, EL20, EL2]))
    return Key(kind | draw(st.sampled_from([0, TABLE])), regime, draw(ids), draw(ids), U64(ia))


@given(
    shape=shapes,
    steps=st.lists(st.one_of(entries(), entries(), tlbis(), lookups(), lookups()), max_size=50),
)
def test_it_holds_nothing_that_the_ideal_one_does_not(shape: Shape, steps: list[Held | Tlbi | Key]) -> None:
    small, all_of_it = sets_tlb(shape), ideal_tlb(64)
    for step in steps:
        if isinstance(step, Held):
            sets_fill(small, step.for_kernels(), fault.NONE)
            ideal_fill(all_of_it, step.for_kernels(), fault.NONE)
        elif isinstance(step, Tlbi):
            sets_invalidate(small, step.scope())
            ideal_invalidate(all_of_it, step.scope())
        else:
            row = sets_walk(small, step, -1) if step.kind & TABLE else sets_lookup(small, step)
            if row != MISS:
                hit = held(read_entry(small.rows[row]))
                assert hit in {held(e) for e in ideal_entries(all_of_it)}
                assert hit.covers(int(step.input))
        assert {held(e) for e in sets_entries(small)} <= {held(e) for e in ideal_entries(all_of_it)}


@given(filled=st.lists(entries(), max_size=12), combined=st.booleans())
def test_a_large_one_holds_what_its_kind_holds_and_finds_it(filled: list[Held], combined: bool) -> None:
    tlb = sets_tlb(
        Shape(micro=(1, 16), main=(4, 16), stage2=(4, 16), walk1=(1, 16), walk2=(1, 16), combined=combined)
    )
    for e in filled:
        kept = sets_fill(tlb, e.for_kernels(), fault.NONE)
        stage1_kind = {1, 2} if combined else {1}
        assert kept == (e.regime != "EL1&0" or e.stages in ({2}, stage1_kind))
        if not kept:
            continue
        kernel_entry = e.for_kernels()
        wanted = Key(kernel_entry.kind, kernel_entry.regime, e.vmid, e.asid, U64(e.input))
        row = sets_walk(tlb, wanted, -1) if e.table else sets_lookup(tlb, wanted)
        assert row != MISS
        assert held(read_entry(tlb.rows[row])).covers(e.input)
    assert sets_counts(tlb)["evictions"] == 0


def leaf(va: int, *, asid: int = 1, output: int = 0x9000_0000, level: int = 3) -> Entry:
    return entry(BOTH, vmid=1, asid=asid, stage1=(12, level), stage2=(12, level), input=va, output=output)


def hit(tlb: Sets, va: int, kind: int = BOTH) -> bool:
    return sets_lookup(tlb, key(kind, va, vmid=1, asid=1)) != MISS


def fill(tlb: Sets, *filled: Entry) -> None:
    for e in filled:
        sets_fill(tlb, e, fault.NONE)


def test_the_least_recently_used_is_replaced() -> None:
    tlb = sets_tlb(ONE_SET)
    fill(tlb, leaf(0x1000), leaf(0x2000))
    assert hit(tlb, 0x1000)
    fill(tlb, leaf(0x3000))
    assert [hit(tlb, va) for va in (0x1000, 0x2000, 0x3000)] == [True, False, True]
    fill(tlb, leaf(0x4000))
    assert [hit(tlb, va) for va in (0x1000, 0x3000, 0x4000)] == [False, True, True]
    assert sets_counts(tlb)["evictions"] == 2


def test_round_robin_does_not_look_at_use() -> None:
    tlb = sets_tlb(ONE_SET._replace(policy=ROUND_ROBIN))
    fill(tlb, leaf(0x1000), leaf(0x2000))
    assert hit(tlb, 0x1000)
    fill(tlb, leaf(0x3000))
    assert [hit(tlb, va) for va in (0x1000, 0x2000, 0x3000)] == [False, True, True]
    fill(tlb, leaf(0x4000))
    assert [hit(tlb, va) for va in (0x2000, 0x3000, 0x4000)] == [False, True, True]
    fill(tlb, leaf(0x5000))
    assert [hit(tlb, va) for va in (0x3000, 0x4000, 0x5000)] == [False, True, True]


def survivors(seed: int) -> list[bool]:
    tlb = sets_tlb(Shape(micro=(0, 0), main=(1, 8), policy=RANDOM, seed=seed))
    pages = [4096 * n for n in range(1, 25)]
    fill(tlb, *(leaf(va) for va in pages))
    return [hit(tlb, va) for va in pages]


def test_random_replacement_follows_its_seed() -> None:
    assert survivors(7) == survivors(7)
    assert len({tuple(survivors(seed)) for seed in range(1, 9)}) > 1
    assert sum(survivors(7)) == 8


def test_sets_are_chosen_by_the_bits_above_the_size() -> None:
    tlb = sets_tlb(Shape(micro=(0, 0), main=(4, 1)))
    fill(tlb, *(leaf(0x1000 * n) for n in range(4)), leaf(0x4000_0000, level=2))
    assert [hit(tlb, 0x1000 * n) for n in range(4)] == [False, True, True, True]
    assert hit(tlb, 0x4010_0000)
    assert sets_counts(tlb)["evictions"] == 1


def test_a_later_fill_for_the_same_input_takes_the_place_of_the_earlier() -> None:
    tlb = sets_tlb(ONE_SET)
    fill(tlb, leaf(0x1000)._replace(xs=True), leaf(0x1000, output=0xA000_0000), leaf(0x2000))
    assert sets_counts(tlb)["evictions"] == 0
    assert not any(e.xs for e in sets_entries(tlb))
    assert {int(e.output) for e in sets_entries(tlb)} == {0xA000_0000, 0x9000_0000}


def test_the_micro_tlb_is_asked_first_and_filled_from_the_main_one() -> None:
    tlb = sets_tlb(Shape(micro=(1, 1), main=(1, 4)))
    fill(tlb, leaf(0x1000), leaf(0x2000))
    assert [hit(tlb, va) for va in (0x2000, 0x1000, 0x1000, 0x5000)] == [True, True, True, False]
    counts = sets_counts(tlb)
    assert (counts["micro hits"], counts["main hits"], counts["misses"]) == (2, 1, 1)
    assert sets_invalidate(tlb, scope_of("VMALLE1", 0)) == 0
    assert sets_invalidate(tlb, scope_of("ALLE1", 0)) == 3
    assert sets_counts(tlb)["invalidated"] == 3
    assert not hit(tlb, 0x1000)


def test_what_is_left_after_a_tlbi_still_hits() -> None:
    tlb = sets_tlb(SMALL)
    fill(tlb, leaf(0x1000), leaf(0x2000))
    assert sets_invalidate(tlb, scope_of("VALE1", 1 << 48 | 1, issuer(vttbr=1 << 48))) == 2
    assert [hit(tlb, 0x1000), hit(tlb, 0x2000)] == [False, True]


def table(level: int, kind: int = BOTH, granule: int = 12) -> Entry:
    stage = (granule, level)
    if kind == STAGE2:
        return entry(kind + TABLE, vmid=1, stage2=stage, input=0x1000, output=0x5000)
    return entry(kind + TABLE, vmid=1, asid=1, stage1=stage, input=0x1000, output=0x5000)


@pytest.mark.parametrize(("kind", "combined"), [(BOTH, True), (STAGE1, False), (STAGE2, True)])
def test_the_deepest_table_saves_the_steps_above_it(kind: int, combined: bool) -> None:
    tlb = sets_tlb(Shape(combined=combined))
    wanted = key(kind + TABLE, 0x1FFF, vmid=1, asid=1)
    assert sets_walk(tlb, wanted, 0) == MISS
    saved = []
    for level in (0, 2, 1):
        fill(tlb, table(level, kind))
        before = sets_counts(tlb)["walk steps saved"]
        assert sets_walk(tlb, wanted, 0) != MISS
        saved.append(sets_counts(tlb)["walk steps saved"] - before)
    assert saved == [1, 3, 3]
    assert sets_walk(tlb, wanted._replace(vmid=2), 0) == MISS
    counts = sets_counts(tlb)
    assert (counts["walk hits"], counts["walk misses"]) == (3, 2)


def test_stage_2_leaves_have_a_place_of_their_own() -> None:
    tlb = sets_tlb(Shape(combined=False))
    fill(tlb, entry(STAGE2, vmid=1, stage2=(12, 2), input=0x8000_0000, output=0x4000_0000))
    fill(tlb, entry(STAGE1, vmid=1, asid=1, stage1=(12, 3), input=0x1000, output=0x8000_0000))
    fill(tlb, leaf(0x2000))
    assert [hit(tlb, 0x8010_0000, STAGE2), hit(tlb, 0x9000_0000, STAGE2)] == [True, False]
    assert [hit(tlb, 0x1000, STAGE1), hit(tlb, 0x2000, BOTH)] == [True, False]
    counts = sets_counts(tlb)
    assert (counts["stage-2 hits"], counts["stage-2 misses"]) == (1, 1)


def test_what_faults_is_not_kept() -> None:
    tlb = sets_tlb()
    for kind in (fault.TRANSLATION, fault.ACCESS_FLAG, fault.ADDRESS_SIZE, fault.EXTERNAL_WALK):
        assert not sets_fill(tlb, leaf(0x1000), kind)
    assert sets_fill(tlb, leaf(0x1000), fault.PERMISSION)
    assert len(sets_entries(tlb)) == 2


def test_a_part_may_be_missing() -> None:
    tlb = sets_tlb(Shape(micro=(4, 0), main=(0, 4), stage2=(0, 0), walk1=(0, 0), walk2=(0, 0)))
    fill(tlb, leaf(0x1000), table(1), table(1, STAGE2))
    assert not hit(tlb, 0x1000)
    assert sets_walk(tlb, key(BOTH + TABLE, 0x1000, vmid=1, asid=1), 0) == MISS
    assert sets_entries(tlb) == []


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        (Shape(main=(-1, 4)), "-1 sets and 4 ways: expected neither"),
        (Shape(walk2=(1, -4)), "1 sets and -4 ways"),
        (Shape(seed=0), "seed 0: expected 1"),
        (Shape(seed=1 << 64), "seed 18446744073709551616"),
    ],
)
def test_shapes_that_cannot_be(shape: Shape, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        sets_tlb(shape)


def digest() -> str:
    """Both TLBs after a long fixed course of fills, lookups and TLBIs, in one number."""
    rng = np.random.default_rng(1)
    small, everything = sets_tlb(SMALL._replace(policy=RANDOM)), ideal_tlb(512)
    rows = np.zeros(16, np.int64)
    names = ("VAE1", "VALE1IS", "ASIDE1", "IPAS2E1", "RVAE1", "RIPAS2LE1OS", "VMALLE1NXS", "VMALLS12E1")
    course = []
    for _ in range(400):
        kind, level, asid, vmid, page, choice = rng.integers([1, 1, 1, 0, 0, 0], [8, 3, 3, 3, 64, 8]).tolist()
        if kind == TABLE:
            operand = asid << 48 | (1 << 46 if "R" in names[choice] else 0) | page
            scope = scope_of(names[choice], operand)
            course += [ideal_invalidate(everything, scope), sets_invalidate(small, scope)]
            continue
        stage = (12, level + (0 if kind & TABLE else 1))
        words = {"input": page << 12, "output": page << 13, "vmid": vmid, "asid": asid}
        e = entry(kind, stage1=stage, stage2=stage, xs=choice == 0, **words)
        wanted = key(kind, page << 12, vmid=vmid, asid=asid)
        course += [ideal_fill(everything, e, fault.NONE), sets_fill(small, e, fault.NONE)]
        course += [ideal_lookup(everything, wanted, rows), sets_lookup(small, wanted)]
    content = [*small, everything.rows[: everything.state[0]], np.array(course, np.int64)]
    return hashlib.sha256(b"".join(part.tobytes() for part in content)).hexdigest()


@pytest.mark.skipif(INTERPRETED, reason="compares compiled with interpreted")
def test_compiled_and_interpreted_do_the_same() -> None:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(ROOT / "src")])
    shown = subprocess.run(
        [sys.executable, "-c", "import test_arch_tlb_sets as t; print(t.digest())"],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == digest()
