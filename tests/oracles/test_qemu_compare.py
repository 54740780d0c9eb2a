"""QEMU against the model, variants of the model, and that a wrong answer does not pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from qemu_lab import needs_qemu

from shadowmmu.arch.answer import A_LEVELS, A_PAR, A_TARGET, answers
from shadowmmu.arch.context import Implementation
from shadowmmu.compiled import INTERPRETED, Counts, Words
from shadowmmu.errors import InputError
from shadowmmu.oracles.qemu import answers as a
from shadowmmu.oracles.qemu.compare import Comparer, differs, load_case
from shadowmmu.oracles.qemu.deviations import DEVIATIONS, deviants, known
from shadowmmu.oracles.qemu.driver import QemuOracle
from shadowmmu.oracles.qemu.generator import Batch, Recipe, random_batch
from shadowmmu.oracles.variants import Patch, arch_sources, load_variant, patched

FIRST_COMPARABLE = (11, 0, 0)
"""The QEMU whose deviations are all listed; older ones run, but unexplained differences are left."""


def recipe_for(oracle: QemuOracle, **choice: bool) -> Recipe:
    new = oracle.version >= (8, 0, 0)
    return Recipe(wide=new, newer=new, indirect=oracle.indirect_permissions, **choice)


@needs_qemu
@pytest.mark.skipif(INTERPRETED, reason="walks in bulk")
@pytest.mark.parametrize("choice", [{}, {"el3": True}, {"accesses": True}], ids=["el1", "el2", "accesses"])
def test_nothing_unexplained(choice: dict[str, bool]) -> None:
    with QemuOracle(el3=choice.get("el3", False)) as oracle:
        if oracle.version < FIRST_COMPARABLE:
            pytest.skip(f"QEMU {oracle.version}: not all its deviations are listed")
        comparer = Comparer(oracle, answers, deviants(oracle.version))
        batch = random_batch(oracle.memory, recipe_for(oracle, **choice), seed=9, contexts=256, queries=32)
        result = comparer.compare(batch)
    assert [mismatch.describe() for mismatch in result.mismatches] == []
    assert result.compared == result.queries == len(batch)
    assert sum(result.explained.values()) > 0


def mutated(
    mem: Words,
    contexts: Words,
    context_of: Counts,
    operations: Counts,
    va: Words,
    machine: Implementation,
    update: bool,
    out: Words,
) -> None:
    """The model with one bit of one answer wrong."""
    answers(mem, contexts, context_of, operations, va, machine, update, out)
    out[CANARY, A_PAR] ^= np.uint64(1 << 12)


CANARY = 137


@needs_qemu
def test_one_wrong_bit_is_reported_and_can_be_replayed(tmp_path: Path) -> None:
    path = tmp_path / "case.npz"
    with QemuOracle() as oracle:
        batch = random_batch(oracle.memory, recipe_for(oracle), seed=4, contexts=16, queries=32)
        right = {m.number for m in Comparer(oracle, answers).compare(batch).mismatches}
        comparer = Comparer(oracle, mutated)
        found = comparer.compare(batch).mismatches
        assert {m.number for m in found} ^ right == {CANARY}
        text = next(m for m in found if m.number == CANARY).describe()
        assert f"{int(batch.va[CANARY]):#x}" in text
        assert "TCR_EL1=" in text
        comparer.save(path, batch, [CANARY])
        again = load_case(path, oracle.memory, batch)
        assert len(again) == 1
        assert again.va[0] == batch.va[CANARY]
        first, second = (oracle.ask(b.rows, b.context_of, b.operations, b.va) for b in (batch, again))
        assert (first[CANARY] == second[0]).all()


def test_a_file_that_is_no_case_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "case.npz"
    path.write_text("nothing")
    with pytest.raises(InputError, match="not a saved case"):
        load_case(path, np.zeros(0, np.uint64), Batch(Recipe(), *np.zeros((4, 1), np.uint64)))


def test_what_the_architecture_leaves_open_does_not_count() -> None:
    batch = Batch(Recipe(), np.zeros((1, 32), np.uint64), np.zeros(1, np.int64), np.array([12]), np.zeros(1))
    qemu = np.zeros((1, 8), np.uint64)
    qemu[0, [a.ESR, a.TARGET_EL]] = (0x9300_0007, 2)
    model = qemu.copy()
    model[0, a.ESR] &= ~np.uint64(0x100_0000)  # ISV
    model[0, A_LEVELS] = 5
    assert not differs(batch, qemu, model).any()
    for column, bit in ((a.ESR, 0x40), (a.FAR, 1), (a.HPFAR, 0x10), (A_TARGET, 3)):
        wrong = model.copy()
        wrong[0, column] ^= np.uint64(bit)
        assert differs(batch, qemu, wrong).all(), column


def test_every_deviation_fits_the_sources_alone_and_together() -> None:
    sources = arch_sources()
    for deviation in DEVIATIONS:
        assert patched(sources, deviation.name, deviation.patches) != sources
        assert deviation.rule
    for version in ((7, 2, 22), (10, 0, 13), (11, 1, 3)):
        patches = [patch for deviation in known(version) for patch in deviation.patches]
        assert patched(sources, "all", patches) != sources


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (Patch("regimen", "a", "b"), "no module regimen"),
        (Patch("regime", "surely not in there", "b"), "found 0 times"),
        (Patch("regime", "return", "b"), "expected once"),
    ],
)
def test_a_patch_that_does_not_fit_is_named(patch: Patch, said: str) -> None:
    with pytest.raises(InputError, match=f"variant broken: .*{said}"):
        load_variant("broken", [patch])


def test_a_variant_stands_beside_the_original() -> None:
    variant = load_variant(
        "names", [Patch("operation", '"AT S12E1W",', '"AT S12E1W, changed",')], module="operation"
    )
    assert variant.NAMES[5] == "AT S12E1W, changed"
    assert load_variant("same", [], module="operation").NAMES[5] == "AT S12E1W"
