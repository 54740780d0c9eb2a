"""The trees of tables that the translation registers of one PE name.

Source: Arm ARM D8.1 (regimes and stages), D24 (TTBRs, VTTBR_EL2: base, ASID, VMID).
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch import context as c
from shadowmmu.arch.bbm_rules import Tree
from shadowmmu.arch.context import Implementation
from shadowmmu.arch.controls import Stage1, Stage2, stage1_controls, stage2_controls
from shadowmmu.arch.operation import EL10, EL20, HOST, regime_el2
from shadowmmu.arch.regime import Regime
from shadowmmu.arch.registers import TCR_EL1, TTBR_EL1, VTCR_EL2, VTTBR_EL2
from shadowmmu.compiled import U64, Words, kernel

_COLUMNS: Final = {
    EL10: (c.C_TTBR0_EL1, c.C_TTBR1_EL1, c.C_TCR_EL1),
    EL20: (c.C_TTBR0_EL2, c.C_TTBR1_EL2, c.C_TCR_EL2),
}


@kernel
def _stage1(row: Words, machine: Implementation, regime: int, upper: bool) -> Stage1:
    return stage1_controls(row, machine, regime, upper)


@kernel
def _stage2(row: Words, machine: Implementation, regime: int) -> Stage2:
    return stage2_controls(row, machine, regime)


def _vmid(row: Words) -> int:
    """VTTBR_EL2.VMID, 8 bits of it unless VTCR_EL2.VS."""
    vmid = VTTBR_EL2["VMID"].get(int(row[c.C_VTTBR_EL2]))
    return vmid if VTCR_EL2["VS"].get(int(row[c.C_VTCR_EL2])) else vmid & 0xFF


def _asid(row: Words, regime: int) -> int:
    """The ASID in force, 8 bits of it unless TCR.AS. Source: TCR_ELx.A1."""
    if regime not in _COLUMNS:
        return 0
    lower, upper, tcr = _COLUMNS[regime]
    word = int(row[upper if TCR_EL1["A1"].get(int(row[tcr])) else lower])
    asid = TTBR_EL1["ASID"].get(word)
    return asid if TCR_EL1["AS"].get(int(row[tcr])) else asid & 0xFF


def _stage1_tree(row: Words, machine: Implementation, regime: int, upper: bool) -> Tree | None:
    s1 = _stage1(row, machine, regime, upper)
    if not s1.enabled or s1.refused:
        return None
    geometry = Regime(*(int(number) for number in s1.regime))
    return Tree(
        1,
        regime,
        geometry,
        int(s1.root),
        (1 << 64) - (1 << geometry.ia_bits) if upper else 0,
        bool(s1.ha),
        bool(s1.hd),
        int(s1.mair),
        identifiers={(_vmid(row) if regime == EL10 else 0, _asid(row, regime))},
    )


def trees_of(row: Words, machine: Implementation) -> list[Tree]:
    """The trees that may be walked under the registers of ``row``: stage 2, then stage 1 by regime."""
    hcr = U64(row[c.C_HCR_EL2])
    host = hcr & HOST == HOST
    found: list[Tree | None] = []
    s2 = _stage2(row, machine, EL10)
    if s2.enabled and not s2.refused:
        geometry = Regime(*(int(number) for number in s2.regime))
        ids = {(_vmid(row), 0)}
        found.append(
            Tree(
                2,
                EL10,
                geometry,
                int(s2.root),
                0,
                bool(s2.ha),
                bool(s2.hd),
                fwb=bool(s2.fwb),
                identifiers=ids,
            )
        )
    if not host:
        found += [_stage1_tree(row, machine, EL10, upper) for upper in (False, True)]
    second = int(regime_el2(hcr))
    halves = (False, True) if second == EL20 else (False,)
    found += [_stage1_tree(row, machine, second, upper) for upper in halves]
    return [tree for tree in found if tree is not None]
