"""The architecture against QEMU: a million translations a run, ten million where there is time; mutants."""

from __future__ import annotations

import pytest
from qemu_lab import needs_qemu

from shadowmmu.arch.answer import answers
from shadowmmu.compiled import INTERPRETED
from shadowmmu.oracles.qemu.campaign import (
    Campaign,
    Judge,
    all_cells,
    campaign_json,
    campaign_lines,
    run_campaign,
)
from shadowmmu.oracles.qemu.deviations import known
from shadowmmu.oracles.qemu.driver import qemu_version
from shadowmmu.oracles.qemu.install import find_qemu
from shadowmmu.oracles.variants import variant_answers
from shadowmmu.verify.mutants import MUTANTS, hunt

MILLION = 1_000_000
EVERY_CELL = 2
"""A seed whose first million queries reach every cell."""
SUPPORTED = (11, 0, 0)
FALLBACK = (7, 2)
"""Major and minor version of the QEMU that is listed too, without LPA2, indirection and updates."""

compiled_only = pytest.mark.skipif(INTERPRETED, reason="millions of walks are compiled ones")


def _agreement(queries: int, seed: int) -> Campaign:
    version = qemu_version(find_qemu())
    if version < SUPPORTED and version[:2] != FALLBACK:
        pytest.skip(f"the deviations of QEMU {'.'.join(map(str, version))} are not all listed")
    found = run_campaign(queries, seed, attribute=False)
    assert found.total.queries >= queries * (0.85 if found.left_out else 1)
    assert found.agrees, "\n".join(campaign_lines(found))
    return found


@needs_qemu
@compiled_only
def test_a_million_translations_agree_with_qemu_and_reach_every_cell() -> None:
    found = _agreement(MILLION, EVERY_CELL)
    if not found.left_out:
        assert found.missing == []
        assert found.total.updated_words > 1000
        assert sum(found.total.set_aside.values()) < MILLION // 100
    shown = campaign_json(found)
    assert isinstance(shown["cells"], dict)
    assert len(shown["cells"]) == len(all_cells())


@needs_qemu
@compiled_only
@pytest.mark.slow
def test_ten_million_translations_agree_with_qemu() -> None:
    found = _agreement(10 * MILLION, 100)
    assert found.left_out or found.missing == []


@needs_qemu
@compiled_only
def test_mutants_are_caught_and_the_original_is_not() -> None:
    version = qemu_version(find_qemu())
    patches = [patch for one in known(version) for patch in one.patches]
    with Judge(100_000, EVERY_CELL) as judge:
        found = hunt(judge, patches, MUTANTS[:2])
        assert found.survivors == ()
        if version >= SUPPORTED:
            assert judge(variant_answers("original", patches)) == found.baseline < 5
            assert judge(answers) > 1000, "QEMU's deviations must show without being told of"
