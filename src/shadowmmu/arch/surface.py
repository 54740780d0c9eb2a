"""The room for people: descriptors, walks and predictions as plain Python values that print well.

Thin over the kernels: ``predict`` is a batch of one. A million questions are a batch of ``answers`` or of
``batch``, not a loop over this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from shadowmmu.arch import operation, trace
from shadowmmu.arch.answer import ANSWER, answers
from shadowmmu.arch.attributes import NAMES as ATTRIBUTES
from shadowmmu.arch.context import EVERYTHING, Implementation
from shadowmmu.arch.fault import Fault
from shadowmmu.arch.fields import Layout
from shadowmmu.arch.registers import ESR_EL2, PAR_FAULT, PAR_SUCCESS
from shadowmmu.arch.stage1 import STAGE1_LEAF, STAGE1_TABLE
from shadowmmu.arch.stage2 import STAGE2_LEAF, STAGE2_TABLE
from shadowmmu.compiled import U64, Words
from shadowmmu.errors import InputError

LEAVES: Final = {1: STAGE1_LEAF, 2: STAGE2_LEAF}
TABLES: Final = {1: STAGE1_TABLE, 2: STAGE2_TABLE}
SHAREABILITY: Final = {0: "non-shareable", 2: "outer shareable", 3: "inner shareable"}


@dataclass(frozen=True)
class Descriptor:
    """A word of a translation table: what kind it is at its level, and its fields by name."""

    stage: int
    level: int
    word: int
    kind: str
    layout: Layout

    @property
    def fields(self) -> dict[str, int]:
        """Field values by name, highest bits first."""
        return self.layout.decode(self.word)

    def __str__(self) -> str:
        return f"{self.kind}: {self.layout.describe(self.word)}" if self.kind != "invalid" else "invalid"


@dataclass(frozen=True)
class Reading:
    """One descriptor read on a walk: where it stands, and for which input address of its stage."""

    pa: int
    input: int
    descriptor: Descriptor

    def __str__(self) -> str:
        d = self.descriptor
        return f"stage {d.stage} level {d.level} at {self.pa:#x}: {d}"


@dataclass(frozen=True)
class Prediction:
    """What software sees of an operation: PAR_EL1 after an AT, or the exception it takes (``target`` EL)."""

    par: int
    pa: int
    fault: Fault | None
    stage: int
    on_walk: bool
    target: int
    esr: int
    far: int
    hpfar: int

    def __str__(self) -> str:
        if self.fault is None:
            return f"PA {self.pa:#x}" + (f", {self.memory}" if self.par else "")
        where = "stage 2, on a stage-1 walk" if self.on_walk else f"stage {self.stage}"
        taken = f"; taken to EL{self.target}: {ESR_EL2.describe(self.esr)}" if self.target else ""
        return f"{where}: {self.fault}{taken}"

    @property
    def memory(self) -> str:
        """The memory type that PAR_EL1 names. Empty after a fault or where there is no PAR."""
        if self.fault is not None or not self.par:
            return ""
        fields = PAR_SUCCESS.decode(self.par)
        name = ATTRIBUTES.get(fields["ATTR"], f"attribute {fields['ATTR']:#04x}")
        return f"{name}, {SHAREABILITY.get(fields['SH'], 'reserved shareability')}"

    def explain_par(self) -> str:
        """PAR_EL1, field by field."""
        return (PAR_FAULT if self.par & 1 else PAR_SUCCESS).describe(self.par)


def decode(word: int, stage: int, level: int) -> Descriptor:
    """A descriptor read at ``level`` -1..3 of ``stage`` 1 or 2, in the 48-bit format.

    Whether a block may stand at that level depends on the granule, and is not looked at. Raises InputError.
    """
    if stage not in LEAVES or not -1 <= level <= 3 or not 0 <= word < 1 << 64:
        raise InputError(
            f"descriptor {word:#x} of stage {stage}, level {level}: expected 64 bits, 1-2, -1..3"
        )
    if not word & 1 or (level == 3 and not word & 2):
        return Descriptor(stage, level, word, "invalid", LEAVES[stage])
    if level < 3 and word & 2:
        return Descriptor(stage, level, word, "table", TABLES[stage])
    return Descriptor(stage, level, word, "page" if level == 3 else "block", LEAVES[stage])


def _number(name: str) -> int:
    """The number of an operation. Raises InputError."""
    if name not in operation.NAMES:
        raise InputError(f"operation {name!r}: expected one of {', '.join(operation.NAMES)}")
    return operation.NAMES.index(name)


def predict(
    mem: Words, row: Words, name: str, va: int, machine: Implementation = EVERYTHING, update: bool = False
) -> Prediction:
    """What the operation ``name`` on ``va`` does under the registers in ``row``.

    ``name``: as in ``operation.NAMES``, for example "AT S12E1R" or "load at EL0"; ``update``: hardware may
    set access flags and dirty state in ``mem``. Raises InputError for another name.
    """
    out = np.zeros((1, ANSWER), np.uint64)
    number, one = np.array([_number(name)]), np.zeros(1, np.int64)
    answers(mem, row[None], one, number, np.array([va], np.uint64), machine, update, out)
    par, esr, far, hpfar, target, packed, pa, _ = out[0].tolist()
    fault = Fault(packed & 0xFF, (packed >> 8 & 0xFF) - 1) if packed else None
    stage, on_walk = packed >> 16 & 0xFF, bool(packed >> 24 & 1)
    return Prediction(par, pa, fault, stage, on_walk, target, esr, far, hpfar)


def walk(
    mem: Words, row: Words, name: str, va: int, machine: Implementation = EVERYTHING
) -> tuple[Reading, ...]:
    """The descriptors that the operation ``name`` on ``va`` reads, in order. Raises InputError."""
    out = np.zeros((trace.LONGEST, trace.TRACK), np.uint64)
    count = trace.trace(mem, row, machine, _number(name), U64(va), out)
    readings = out[:count, : trace.T_INPUT + 1].tolist()
    return tuple(Reading(pa, ia, decode(word, stage, level - 1)) for stage, level, pa, word, ia in readings)
