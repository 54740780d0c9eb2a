"""AT as L0 emulates it, against the architecture run on L1's own view: random tables of both stages.

The view: canonical IPAs are the physical addresses, L1's table is the stage 2. What Linux is known to do
otherwise is in ``as_linux`` (the rows of ``docs/at.md``) or kept out by the generator, and shown one by
one in ``test_kvm_at_differences.py``.
"""

from __future__ import annotations

import pytest
from at_lab import Guest, architecture, emulated, make_guest, queries

from shadowmmu.arch.answer import A_FAULT, A_HPFAR, A_PAR, ANSWER
from shadowmmu.arch.fault import EXTERNAL_WALK, NONE, TRANSLATION
from shadowmmu.compiled import INTERPRETED, Words

NS, RES1 = 1 << 9, 1 << 11
SEEDS = range(4) if INTERPRETED else range(24)


def as_linux(g: Guest, operation: str, va: int, answer: Words) -> int:
    """PAR_EL1 that Linux 7.3.4 owes, NS and bit 11 of a success left out."""
    packed, par = int(answer[A_FAULT]), int(answer[A_PAR])
    kind, level, stage, walk = packed & 0xFF, (packed >> 8 & 0xFF) - 1, packed >> 16 & 0xFF, packed >> 24
    if kind == NONE:
        return par & ~(NS | RES1)
    if kind == EXTERNAL_WALK:
        assert stage == 1
        return 1 | RES1 | (0x14 + level) << 1
    if walk:
        page = (int(answer[ANSWER + A_HPFAR]) >> 4) << 12
        return par & ~(3 << 1) | g.levels[page] << 1
    if stage == 1 and kind == TRANSLATION and level == 0:
        return 1 | RES1 | not_walked(g, va) << 1
    return par


def not_walked(g: Guest, va: int) -> int:
    """Fault status where the architecture has a translation fault at level 0."""
    tcr = g.registers["tcr"]
    half = va >> 55 & 1
    extended = va & (1 << 56) - 1 | (0xFF << 56 if half else 0)
    if not tcr >> (38 if half else 37) & 1 and extended != va:
        return 0  # address size, level 0
    bits = 64 - (tcr & 0x3F)
    return 4 + 3 - (bits - 1 - g.granule) // (g.granule - 3)


def compare(seed: int, pan: bool, touched: bool) -> tuple[int, int]:
    """Every query of a random guest; how many walked in software, and how many did not."""
    g = make_guest(seed)
    asked = queries(g)
    if not g.registers["sctlr"] & 1:  # both stages with stage 1 off: L1's stage 2 gets more bits than it has
        asked = [(operation, va) for operation, va in asked if not operation.startswith("s12")]
    owed = architecture(g, asked, pan)
    found = emulated(g, asked, pan, touched)
    assert len(found) == len(asked)
    for (operation, va), row, answer in zip(asked, found, owed, strict=True):
        par = row["par"] if row["par"] & 1 else row["par"] & ~(NS | RES1)
        expected = as_linux(g, operation, va, answer)
        assert par == expected, f"seed {seed} {operation} {va:#x}: {par:#x}, owed {expected:#x}"
        if not row["par"] & 1:
            both = operation.startswith("s12") and g.stage2_on
            assert row["par"] & (NS | RES1) == (0 if both else RES1 if row["slow"] else RES1 | NS)
    slow = sum(row["slow"] for row in found)
    return slow, len(found) - slow


@pytest.mark.parametrize("seed", SEEDS)
def test_at_with_an_empty_shadow_is_the_architecture(seed: int) -> None:
    slow, fast = compare(seed, pan=bool(seed % 2), touched=False)
    assert slow > 0
    assert fast == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_at_through_the_shadow_is_the_architecture(seed: int) -> None:
    compare(seed, pan=False, touched=True)


def test_the_random_guests_reach_both_paths_and_most_faults() -> None:
    fast = slow = 0
    kinds: set[int] = set()
    for seed in SEEDS:
        g = make_guest(seed)
        for row in emulated(g, queries(g), pan=False, touched=True):
            slow += row["slow"]
            fast += 1 - row["slow"]
            kinds.add(row["par"] >> 1 & 0x3C | row["par"] >> 8 & 3 if row["par"] & 1 else -1)
    assert fast > 40
    assert slow > 40
    assert -1 in kinds
    assert len(kinds) >= (5 if INTERPRETED else 9)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1400))
def test_at_is_the_architecture_on_many_guests(seed: int) -> None:
    compare(seed, pan=bool(seed % 2), touched=False)
    compare(seed, pan=False, touched=True)
