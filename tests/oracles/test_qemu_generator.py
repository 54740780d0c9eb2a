"""Random batches: repeatable, comparable, and reaching what the architecture has; what counts as reached."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from shadowmmu.arch import context as c
from shadowmmu.arch import fault as f
from shadowmmu.arch.answer import ANSWER, answers
from shadowmmu.arch.context import EVERYTHING
from shadowmmu.arch.operation import EL2, EL10, EL20
from shadowmmu.compiled import INTERPRETED, Words
from shadowmmu.oracles.qemu import coverage as v
from shadowmmu.oracles.qemu.generator import Batch, Recipe, operations_of, random_batch
from shadowmmu.oracles.qemu.layout import RAM_END, TABLES, TABLES_BYTES, VBAR_EL1
from shadowmmu.oracles.qemu.memory import guest_memory
from shadowmmu.oracles.qemu.tables import WINDOW_BLOCK, WINDOW_LEVELS, root_of

RECIPES = (Recipe(), Recipe(el3=True), Recipe(accesses=True), Recipe(accesses=True, updates=True))


def walked(memory: Words, batch: Batch) -> Words:
    out = np.zeros((len(batch), ANSWER), np.uint64)
    answers(
        memory,
        batch.rows,
        batch.context_of,
        batch.operations,
        batch.va,
        EVERYTHING,
        batch.recipe.updates,
        out,
    )
    return out


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_seed_gives_one_batch(recipe: Recipe) -> None:
    memories = guest_memory(), guest_memory()
    one, two = (random_batch(memory, recipe, seed=5, contexts=16, queries=8) for memory in memories)
    other = random_batch(memories[0], recipe, seed=6, contexts=16, queries=8)
    assert (one.rows == two.rows).all()
    assert (one.va == two.va).all()
    assert (one.operations == two.operations).all()
    assert (one.va != other.va).any()
    assert set(one.operations.tolist()) <= set(operations_of(recipe))


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_registers_keep_to_their_columns(recipe: Recipe) -> None:
    rows = random_batch(guest_memory(), recipe, seed=1, contexts=64, queries=1).rows
    used = len(c.COLUMNS)
    assert not rows[:, used:VBAR_EL1].any()
    assert rows[:, VBAR_EL1:].any() == recipe.accesses


def test_no_walk_can_read_anything_but_tables_and_nothing() -> None:
    memory = guest_memory()
    random_batch(memory, Recipe(), seed=2, contexts=1, queries=1)
    words = memory[TABLES >> 3 : (TABLES + TABLES_BYTES) >> 3]
    pointing = words[words & np.uint64(1) == 1]
    elsewhere = pointing[pointing >> np.uint64(29) & np.uint64(3) != 3]
    assert (elsewhere & np.uint64(0xFFF) == WINDOW_BLOCK).all()  # the window, one to one, and nothing else
    assert 0 < len(elsewhere) < 100


def test_roots_do_not_overlap() -> None:
    places = sorted(
        root_of(shift, level, variant)
        for shift, levels in WINDOW_LEVELS.items()
        for level in levels
        for variant in (0, 1)
    )
    assert len(set(places)) == len(places)
    assert places[-1] < TABLES + TABLES_BYTES < RAM_END


@pytest.mark.skipif(INTERPRETED, reason="a hundred thousand walks")
def test_a_batch_mixes_success_and_every_kind_of_fault() -> None:
    memory = guest_memory()
    batch = random_batch(memory, Recipe(), seed=3, contexts=512, queries=128)
    kinds = Counter((walked(memory, batch)[:, 5] & np.uint64(0xFF)).tolist())
    assert kinds[f.NONE] > 0.1 * len(batch)
    for kind in (f.ADDRESS_SIZE, f.TRANSLATION, f.ACCESS_FLAG, f.PERMISSION, f.EXTERNAL_WALK):
        assert kinds[kind] > 0.002 * len(batch), f.NAMES[kind]


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="a million walks")
def test_nearly_every_possible_case_is_reached() -> None:
    memory = guest_memory()
    seen: Counter[v.Cell] = Counter()
    for el3 in (False, True):
        for seed in range(4):
            batch = random_batch(memory, Recipe(el3=el3), seed=seed, contexts=1024, queries=256)
            out = walked(memory, batch)
            seen += v.cells(batch.rows, batch.context_of, batch.operations, batch.va, out)
    wanted = sum(1 for regime in (EL10, EL20, EL2) for _ in v.possible(regime))
    assert len(v.missing(seen, (EL10, EL20, EL2))) < 0.05 * wanted


def test_possible_cases_follow_the_rules() -> None:
    cells = set(v.possible(EL10))
    assert v.Cell(EL10, 1, 12, True, -1, f.TRANSLATION, -1, False) in cells
    assert v.Cell(EL10, 1, 12, False, 0, f.NONE, 0, False) not in cells  # no 512G block without 52 bits
    assert v.Cell(EL10, 1, 12, True, 0, f.NONE, 0, False) in cells
    assert v.Cell(EL10, 2, 14, False, 0, f.TRANSLATION, 0, False) not in cells
    assert v.Cell(EL10, 2, 14, True, 0, f.TRANSLATION, 0, False) in cells
    assert v.Cell(EL10, 1, 16, True, 1, f.ADDRESS_SIZE, 2, False) not in cells
    assert (
        v.Cell(EL10, 2, 12, False, 3, f.TRANSLATION, 3, True) not in cells
    )  # 25 bits do not reach the tables
    assert not any(cell.stage == 2 for cell in v.possible(EL2))


def test_start_levels_follow_the_sizes() -> None:
    assert v.stage1_starts(12, False) == [0, 1, 2, 3]
    assert v.stage1_starts(12, True) == [-1, 0, 1, 2, 3]
    assert v.stage1_starts(16, False) == [1, 2, 3]


def test_missing_is_what_was_not_seen() -> None:
    everything = list(v.possible(EL20))
    assert v.missing(everything, (EL20,)) == []
    assert v.missing(everything[1:], (EL20,)) == everything[:1]
    assert "EL2&0 stage 1" in str(everything[0])


def test_one_known_query_lands_in_its_cell() -> None:
    memory = guest_memory()
    row = c.context(
        TTBR0_EL1=TABLES, TCR_EL1=25 | 25 << 16 | 2 << 30 | 5 << 32, SCTLR_EL1=0x80805, HCR_EL2=1 << 31
    )[None]
    memory[TABLES >> 3] = 0x401  # a 1G block, EL1 only
    batch = Batch(Recipe(), row, np.zeros(2, np.int64), np.array([0, 2]), np.array([8, 8], np.uint64))
    out = walked(memory, batch)
    cells = v.cells(batch.rows, batch.context_of, batch.operations, batch.va, out)
    assert cells == {
        v.Cell(EL10, 1, 12, False, 1, f.NONE, 1, False): 1,
        v.Cell(EL10, 1, 12, False, 1, f.PERMISSION, 1, False): 1,
    }
    reasons = v.permission_reasons(batch.rows, batch.context_of, batch.operations, out)
    assert reasons == {v.Reason("AT S1E0R", 1, False, True, False): 1}
