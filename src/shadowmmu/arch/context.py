"""The registers that decide a translation, as one row of words; what the machine implements.

A *context row* holds the translation registers of one PE: stage 1 of EL1&0 and of EL2 or EL2&0, stage 2,
and the bits of PSTATE that count. Batches are arrays of rows; oracles load the same rows into their own
registers. Which register stands where is declared once, in ``COLUMNS``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from shadowmmu.arch.fields import Field, Layout
from shadowmmu.compiled import U64, Word, Words

COLUMNS: Final = (
    "TTBR0_EL1",
    "TTBR1_EL1",
    "TCR_EL1",
    "SCTLR_EL1",
    "MAIR_EL1",
    "VTTBR_EL2",
    "VTCR_EL2",
    "HCR_EL2",
    "TTBR0_EL2",
    "TTBR1_EL2",
    "TCR_EL2",
    "MAIR_EL2",
    "SCTLR_EL2",
    "TCR2_EL1",
    "PIR_EL1",
    "PIRE0_EL1",
    "TCR2_EL2",
    "PIR_EL2",
    "PIRE0_EL2",
    "HCRX_EL2",
    "PSTATE",
)
"""Registers of a row by position; the words behind them are reserved and 0."""

ROW: Final = 32
"""Words in a context row."""

C_TTBR0_EL1: Final = COLUMNS.index("TTBR0_EL1")
C_TTBR1_EL1: Final = COLUMNS.index("TTBR1_EL1")
C_TCR_EL1: Final = COLUMNS.index("TCR_EL1")
C_SCTLR_EL1: Final = COLUMNS.index("SCTLR_EL1")
C_MAIR_EL1: Final = COLUMNS.index("MAIR_EL1")
C_VTTBR_EL2: Final = COLUMNS.index("VTTBR_EL2")
C_VTCR_EL2: Final = COLUMNS.index("VTCR_EL2")
C_HCR_EL2: Final = COLUMNS.index("HCR_EL2")
C_TTBR0_EL2: Final = COLUMNS.index("TTBR0_EL2")
C_TTBR1_EL2: Final = COLUMNS.index("TTBR1_EL2")
C_TCR_EL2: Final = COLUMNS.index("TCR_EL2")
C_MAIR_EL2: Final = COLUMNS.index("MAIR_EL2")
C_SCTLR_EL2: Final = COLUMNS.index("SCTLR_EL2")
C_TCR2_EL1: Final = COLUMNS.index("TCR2_EL1")
C_PIR_EL1: Final = COLUMNS.index("PIR_EL1")
C_PIRE0_EL1: Final = COLUMNS.index("PIRE0_EL1")
C_TCR2_EL2: Final = COLUMNS.index("TCR2_EL2")
C_PIR_EL2: Final = COLUMNS.index("PIR_EL2")
C_PIRE0_EL2: Final = COLUMNS.index("PIRE0_EL2")
C_HCRX_EL2: Final = COLUMNS.index("HCRX_EL2")
C_PSTATE: Final = COLUMNS.index("PSTATE")

FEATURES: Final = Layout(
    "features",
    "Arm ARM A2; the ID registers say which of them a machine has",
    Field("LVA", 0, 1, "FEAT_LVA: 52-bit virtual addresses with the 64K granule"),
    Field("LPA2", 1, 1, "FEAT_LPA2: 52-bit addresses with the 4K and 16K granules"),
    Field("TTST", 2, 1, "FEAT_TTST: small translation tables"),
    Field("HAF", 3, 1, "FEAT_HAFDBS: hardware access flag"),
    Field("HDBS", 4, 1, "FEAT_HAFDBS: hardware dirty state"),
    Field("HPDS", 5, 1, "FEAT_HPDS: hierarchical permissions can be disabled"),
    Field("XNX", 6, 1, "FEAT_XNX: execution at stage 2 by exception level"),
    Field("PAN", 7, 1, "FEAT_PAN: privileged access never"),
    Field("EPAN", 8, 1, "FEAT_PAN3: PAN covers execute-only"),
    Field("E0PD", 9, 1, "FEAT_E0PD: a half can be kept from EL0"),
    Field("FWB", 10, 1, "FEAT_S2FWB: stage 2 type wins"),
    Field("S1PIE", 11, 1, "FEAT_S1PIE: permission indirection at stage 1"),
    Field("MTE2", 12, 1, "FEAT_MTE2: tagged memory"),
)


class Implementation(NamedTuple):
    """What the machine has: log2 of its physical address space, and its features (bits of FEATURES).

    52 address bits stand for FEAT_LPA: 52-bit output with the 64K granule.
    """

    pa_bits: int
    features: Word


def implementation(pa_bits: int, *names: str) -> Implementation:
    """A machine with these features. Raises KeyError for an unknown name."""
    return Implementation(pa_bits, U64(FEATURES.encode(**dict.fromkeys(names, 1))))


ARMV8_0: Final = implementation(48)
"""No optional feature, 48 address bits."""

EVERYTHING: Final = implementation(52, *(name for name in FEATURES.fields if name != "MTE2"))
"""Every feature this room models, but for tagged memory; 52 address bits."""


def context(**registers: int) -> Words:
    """A row with these registers, all others 0. Raises KeyError for a name that no column has.

    >>> int(context(HCR_EL2=1)[C_HCR_EL2])
    1
    """
    row = np.zeros(ROW, np.uint64)
    for name, value in registers.items():
        if name not in COLUMNS:
            raise KeyError(name)
        row[COLUMNS.index(name)] = value
    return row
