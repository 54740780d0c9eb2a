"""QEMU against a model, query by query: PAR, exceptions and descriptor updates, bit for bit.

A query that cannot be compared is set aside by a rule with a reason, and counted. What differs is asked again
of the model with QEMU's known deviations (``deviations``) built in: where that one agrees, the difference is
explained, and attributed to single deviations; the rest is a mismatch, with all that is needed to replay it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from shadowmmu.arch import registers as r
from shadowmmu.arch.context import COLUMNS, FEATURES, Implementation
from shadowmmu.arch.fault import NAMES as FAULT_NAMES
from shadowmmu.arch.operation import ATOMIC_EL0, FETCH_EL0, LOAD_EL0, LOAD_EL1
from shadowmmu.arch.operation import NAMES as OPERATION_NAMES
from shadowmmu.arch.regime import output_bits
from shadowmmu.compiled import U64, Counts, Words
from shadowmmu.errors import InputError
from shadowmmu.oracles.qemu import answers as a
from shadowmmu.oracles.qemu.driver import QemuOracle
from shadowmmu.oracles.qemu.generator import Batch
from shadowmmu.oracles.qemu.layout import RAM, TABLES, TABLES_BYTES
from shadowmmu.oracles.qemu.memory import guest_memory
from shadowmmu.oracles.variants import Answers

SEVERAL: Final = "several"
AF: Final = 1 << 10
PEEKED: Final = "descriptor accessed while preparing a declined store"
AFTER_PEEKED: Final = "agrees once such a descriptor has its access flag"
"""The stub's AT lets QEMU set AF of stage-2 leaves that its stage-1 walk goes through."""
ESR_COMPARED: Final = sum(
    r.ESR_EL2[name].mask for name in ("EC", "IL", "FnV", "EA", "CM", "S1PTW", "WnR", "FSC")
)
"""ISV, SAS, SSE, SRT, SF and AR describe the instruction, which the model does not have."""
PCIE_WINDOW: Final = (0x80_0000_0000, 0x100_0000_0000)
"""Answers reads with all ones instead of aborting, in QEMU before 8.0 (later it is switched off)."""
PCIE_GONE: Final = (8, 0, 0)
_OF_EL0: Final = (LOAD_EL0, LOAD_EL0 + 1, FETCH_EL0, ATOMIC_EL0)
_EXTERNAL_STATUS: Final = (0x10, 0x13, 0x14, 0x15, 0x16, 0x17)

# Feature, register, lowest bit of its field, smallest value that has it.
_FEATURE_FIELDS: Final = (
    ("LVA", "ID_AA64MMFR2_EL1", 16, 1),
    ("TTST", "ID_AA64MMFR2_EL1", 28, 1),
    ("FWB", "ID_AA64MMFR2_EL1", 40, 1),
    ("E0PD", "ID_AA64MMFR2_EL1", 60, 1),
    ("HAF", "ID_AA64MMFR1_EL1", 0, 1),
    ("HDBS", "ID_AA64MMFR1_EL1", 0, 2),
    ("HPDS", "ID_AA64MMFR1_EL1", 12, 1),
    ("PAN", "ID_AA64MMFR1_EL1", 20, 1),
    ("EPAN", "ID_AA64MMFR1_EL1", 20, 3),
    ("XNX", "ID_AA64MMFR1_EL1", 28, 1),
    ("S1PIE", "ID_AA64MMFR3_EL1", 8, 1),
    ("LPA2", "ID_AA64MMFR0_EL1", 28, 1),
)


def machine_of(identification: Mapping[str, int]) -> Implementation:
    """What the identification registers of a PE say it has. TGRAN4 of 15 means no 4K granule."""
    present = []
    for name, register, lsb, least in _FEATURE_FIELDS:
        value = identification[register] >> lsb & 15
        if least <= value and not (name == "LPA2" and value == 15):
            present.append(name)
    pa_range = identification["ID_AA64MMFR0_EL1"] & 15
    features = U64(FEATURES.encode(**dict.fromkeys(present, 1)))
    return Implementation(int(output_bits(U64(pa_range))), features)


@dataclass(frozen=True)
class Mismatch:
    """One query that QEMU and the model answer differently."""

    number: int
    """Of the query in its batch."""
    row: Words
    operation: int
    va: int
    qemu: Words
    model: Words

    @property
    def signature(self) -> str:
        """Operation and both answers without addresses: mismatches of one cause have one signature."""
        return f"{OPERATION_NAMES[self.operation]}: QEMU {_outcome(self.qemu)}, model {_outcome(self.model)}"

    def describe(self) -> str:
        """Query, context and both answers, in full."""
        registers = " ".join(
            f"{name}={int(value):#x}" for name, value in zip(COLUMNS, self.row, strict=False) if value
        )
        lines = [f"query {self.number}: {OPERATION_NAMES[self.operation]} of VA {self.va:#x}", registers]
        for name, words in (("QEMU", self.qemu), ("model", self.model)):
            shown = " ".join(f"{k}={int(v):#x}" for k, v in zip(a.COLUMNS, words, strict=True) if v)
            lines.append(f"{name}: {_outcome(words)} [{shown}]")
        return "\n  ".join(lines)


@dataclass(frozen=True)
class MemoryMismatch:
    """A descriptor that QEMU and the model leave different."""

    pa: int
    before: int
    qemu: int
    model: int

    def describe(self) -> str:
        """Place and the three words."""
        return f"descriptor at PA {self.pa:#x}: {self.before:#x}, QEMU {self.qemu:#x}, model {self.model:#x}"


@dataclass
class Comparison:
    """What came of one batch, or of several added together."""

    queries: int = 0
    compared: int = 0
    set_aside: Counter[str] = field(default_factory=Counter)
    explained: Counter[str] = field(default_factory=Counter)
    mismatches: list[Mismatch] = field(default_factory=list)
    memory: list[MemoryMismatch] = field(default_factory=list)
    updated_words: int = 0
    qemu_seconds: float = 0.0
    model_seconds: float = 0.0

    @property
    def agrees(self) -> bool:
        """Nothing unexplained."""
        return not self.mismatches and not self.memory

    def add(self, other: Comparison) -> None:
        """Take another batch in."""
        self.queries += other.queries
        self.compared += other.compared
        self.set_aside += other.set_aside
        self.explained += other.explained
        self.mismatches += other.mismatches
        self.memory += other.memory
        self.updated_words += other.updated_words
        self.qemu_seconds += other.qemu_seconds
        self.model_seconds += other.model_seconds

    def signatures(self) -> Counter[str]:
        """Mismatches by kind."""
        return Counter(mismatch.signature for mismatch in self.mismatches)


@dataclass(frozen=True)
class Deviants:
    """Models that answer as the QEMU at hand does: with all its deviations, and with each one alone."""

    together: Answers
    alone: Mapping[str, Callable[[], Answers]]
    """Loaded when first needed: each is a compilation."""


class Comparer:
    """Runs batches on a QEMU and on a model, and keeps the model's memory."""

    def __init__(self, oracle: QemuOracle, model: Answers, deviants: Deviants | None = None) -> None:
        """``model`` answers as the architecture says; ``deviants`` as this QEMU is known to."""
        self.oracle = oracle
        self.model = model
        self.deviants = deviants
        self.machine = machine_of(oracle.identification)
        self.before = np.empty(TABLES_BYTES >> 3, np.uint64)
        self._private = guest_memory()

    def compare(self, batch: Batch) -> Comparison:
        """Both sides' answers to ``batch`` (its tables stand in the oracle's memory), and what differs.

        After a batch with hardware updates the tables are as QEMU left them.
        """
        started = time.perf_counter()
        qemu = self.ask(batch)
        asked = time.perf_counter()
        executed = qemu[:, a.STATUS] != a.DECLINED
        model = np.zeros_like(qemu)
        model[executed] = self._run(self.model, batch, executed)
        result = Comparison(
            len(batch), qemu_seconds=asked - started, model_seconds=time.perf_counter() - asked
        )
        aside = self._set_aside(batch, qemu, model, result)
        different = differs(batch, qemu, model) & ~aside
        result.compared = int(np.count_nonzero(~aside))
        words = self._different_words(batch, result)
        if different.any() or len(words):
            different, words = self._explain(batch, qemu, different, words, executed, result)
        left = [self._memory_mismatch(int(i)) for i in words]
        if not executed.all():
            accessed = [word for word in left if word.qemu == word.model | AF]
            result.set_aside[PEEKED] += len(accessed)
            left = [word for word in left if word not in accessed]
            if different.any():
                different = self._without_peeked(batch, qemu, different, executed, result)
        for i in np.flatnonzero(different):
            result.mismatches.append(_mismatch(batch, qemu, model, int(i)))
        result.memory += left
        return result

    def _without_peeked(
        self,
        batch: Batch,
        qemu: Words,
        different: npt.NDArray[np.bool_],
        executed: npt.NDArray[np.bool_],
        result: Comparison,
    ) -> npt.NDArray[np.bool_]:
        """Mismatches but for those that agree once what declined stores walk has its access flag.

        The stub set it at some time during the batch, before it declined a store; which of the two states a
        later query saw is not known, and either answer may be QEMU's. Those set aside are counted.
        """
        model = self.model if self.deviants is None else self.deviants.together
        kept = self.before.copy()
        loads = np.where(np.isin(batch.operations, _OF_EL0), LOAD_EL0, LOAD_EL1).astype(
            batch.operations.dtype
        )
        self._run(model, replace(batch, operations=loads), ~executed)
        walked = _tables(self._private) == kept | U64(AF)
        self.before[walked] |= U64(AF)
        again = np.zeros_like(qemu)
        again[executed] = self._run(model, batch, executed)
        self.before[:] = kept
        agree = different & ~differs(batch, qemu, again)
        result.set_aside[AFTER_PEEKED] += int(np.count_nonzero(agree))
        result.set_aside = +result.set_aside
        return different & ~agree

    def ask(self, batch: Batch) -> Words:
        """QEMU's answers; the tables as they were before are kept in ``before``."""
        self.before[:] = _tables(self.oracle.memory)
        return self.oracle.ask(
            batch.rows,
            batch.context_of.astype(np.uint64),
            batch.operations,
            batch.va,
            invalidate=batch.recipe.accesses,
        )

    def disagreements(self, model: Answers, batch: Batch, qemu: Words) -> int:
        """How many of QEMU's answers to ``batch``, and descriptors left by it, ``model`` has otherwise.

        To be called before the next batch, whose tables replace these.
        """
        executed = qemu[:, a.STATUS] != a.DECLINED
        answers = np.zeros_like(qemu)
        answers[executed] = self._run(model, batch, executed)
        aside = self._set_aside(batch, qemu, answers, Comparison())
        different = int(np.count_nonzero(differs(batch, qemu, answers) & ~aside))
        return different + len(self._different_words(batch, Comparison()))

    def _run(self, model: Answers, batch: Batch, which: npt.NDArray[np.bool_]) -> Words:
        """The model's answers to some queries, in order, from the tables as they were before.

        Without updates it walks the very memory that QEMU walks.
        """
        mem = self.oracle.memory
        if batch.recipe.updates:
            mem = self._private
            _tables(mem)[:] = self.before
        out = np.zeros((np.count_nonzero(which), len(a.COLUMNS)), np.uint64)
        context_of = np.ascontiguousarray(batch.context_of[which])
        operations = np.ascontiguousarray(batch.operations[which])
        va = np.ascontiguousarray(batch.va[which])
        model(mem, batch.rows, context_of, operations, va, self.machine, batch.recipe.updates, out)
        return out

    def _set_aside(
        self, batch: Batch, qemu: Words, model: Words, result: Comparison
    ) -> npt.NDArray[np.bool_]:
        """The queries that say nothing about the model, counted by reason."""
        status = qemu[:, a.STATUS]
        aside = np.isin(status, (a.DECLINED, a.UNREACHABLE, a.CRASHED))
        for code in (a.DECLINED, a.UNREACHABLE, a.CRASHED):
            result.set_aside[a.STATUS_NAMES[code]] += int(np.count_nonzero(status == code))
        device = self._of_devices(batch, model)
        result.set_aside["device memory"] += int(np.count_nonzero(device & ~aside))
        result.set_aside = +result.set_aside
        aside |= device
        return aside

    def _of_devices(self, batch: Batch, model: Words) -> npt.NDArray[np.bool_]:
        """Accesses that ``model`` sends to devices, which answer as they please."""
        pa = model[:, a.PA]
        device = (pa < RAM) & (pa != 0)
        if self.oracle.version < PCIE_GONE:
            low, high = PCIE_WINDOW
            device |= (pa >= low) & (pa < high)
        found: npt.NDArray[np.bool_] = a.accesses(batch.operations) & device
        return found

    def _different_words(self, batch: Batch, result: Comparison) -> Counts:
        """Where QEMU's tables are not what the model left (word numbers in ``TABLES``)."""
        if not batch.recipe.updates:
            return np.empty(0, np.int64)
        shared, private = _tables(self.oracle.memory), _tables(self._private)
        result.updated_words = int(np.count_nonzero(shared != self.before))
        return np.flatnonzero(shared != private)

    def _memory_mismatch(self, word: int) -> MemoryMismatch:
        qemu, model = _tables(self.oracle.memory), _tables(self._private)
        return MemoryMismatch(TABLES + 8 * word, int(self.before[word]), int(qemu[word]), int(model[word]))

    def _explain(
        self,
        batch: Batch,
        qemu: Words,
        different: npt.NDArray[np.bool_],
        words: Counts,
        executed: npt.NDArray[np.bool_],
        result: Comparison,
    ) -> tuple[npt.NDArray[np.bool_], Counts]:
        """What is left when QEMU's deviations are taken for granted; the explained part is counted.

        With updates a query depends on the ones before it, so the whole batch runs again.
        """
        if self.deviants is None:
            return different, words
        which = executed if batch.recipe.updates else different

        def agrees(model: Answers) -> tuple[npt.NDArray[np.bool_], Counts]:
            again = np.zeros_like(qemu)
            again[which] = self._run(model, batch, which)
            same = different & (~differs(batch, qemu, again) | self._of_devices(batch, again))
            return same, self._different_words(batch, Comparison())

        explained, left = agrees(self.deviants.together)
        left = np.intersect1d(words, left)
        remaining = explained.copy()
        for name, load in self.deviants.alone.items():
            if not remaining.any():
                break
            mine, _ = agrees(load())
            mine &= remaining
            result.explained[name] += int(np.count_nonzero(mine))
            remaining &= ~mine
        result.explained[SEVERAL] += int(np.count_nonzero(remaining))
        if len(words) > len(left):
            result.explained["descriptors"] += len(words) - len(left)
        result.explained = +result.explained
        if len(left):  # what is reported is the pure model's word
            self._run(self.model, batch, executed)
        return different & ~explained, left

    def save(self, path: Path, batch: Batch, numbers: npt.ArrayLike) -> None:
        """Write the queries ``numbers`` of ``batch``, with the tables before it, for ``load_case``."""
        chosen = np.asarray(numbers, np.int64)
        np.savez_compressed(
            path,
            tables=self.before,
            rows=batch.rows[batch.context_of[chosen]],
            operations=batch.operations[chosen],
            va=batch.va[chosen],
            version=np.array(self.oracle.version),
            el3=np.array(batch.recipe.el3),
            updates=np.array(batch.recipe.updates),
        )


def load_case(path: Path, memory: Words, recipe: Batch) -> Batch:
    """Put the tables of a saved case into ``memory`` and return its queries; ``recipe`` as it was made with.

    Raises InputError for a file that is no saved case.
    """
    try:
        with np.load(path) as kept:
            _tables(memory)[:] = kept["tables"]
            rows, operations, va = kept["rows"], kept["operations"], kept["va"]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: not a saved case of QEMU against the model: {error}") from error
    return Batch(recipe.recipe, rows, np.arange(len(va)), operations, va)


def differs(batch: Batch, qemu: Words, model: Words) -> npt.NDArray[np.bool_]:
    """Which queries the two answer differently, in anything that the architecture determines.

    The stub takes an AT's own exception at its EL, the model at EL2. HPFAR_EL2 counts for stage-2 faults.
    An access that the model sends beyond memory must be aborted from outside.
    """
    compared = U64(ESR_COMPARED)
    access = a.accesses(batch.operations)
    taken = (qemu[:, a.TARGET_EL] != 0) | (model[:, a.TARGET_EL] != 0)
    different: npt.NDArray[np.bool_] = qemu[:, a.STATUS] == a.UNEXPECTED
    different |= (qemu[:, a.PAR] != model[:, a.PAR]) & ~access
    same_level = np.where(
        access,
        qemu[:, a.TARGET_EL] == model[:, a.TARGET_EL],
        (qemu[:, a.TARGET_EL] != 0) == (model[:, a.TARGET_EL] != 0),
    )
    different |= ~same_level
    different |= taken & ((qemu[:, a.ESR] ^ model[:, a.ESR]) & compared != 0)
    different |= taken & (qemu[:, a.FAR] != model[:, a.FAR])
    external = np.isin(qemu[:, a.ESR] & U64(0x3F), _EXTERNAL_STATUS)
    second = access & (qemu[:, a.TARGET_EL] == 2) & ~external
    different |= second & (qemu[:, a.HPFAR] != model[:, a.HPFAR])
    return different


def _tables(memory: Words) -> Words:
    return memory[TABLES >> 3 : (TABLES + TABLES_BYTES) >> 3]


def _mismatch(batch: Batch, qemu: Words, model: Words, number: int) -> Mismatch:
    return Mismatch(
        number,
        batch.rows[batch.context_of[number]].copy(),
        int(batch.operations[number]),
        int(batch.va[number]),
        qemu[number].copy(),
        model[number].copy(),
    )


def _outcome(words: Words) -> str:
    """An answer in words, without addresses."""
    fault, target = int(words[a.FAULT]), int(words[a.TARGET_EL])
    where = f" to EL{target}" if target else ""
    if fault:
        level = (fault >> 8 & 0xFF) - 1
        walk = " on a stage 1 walk" if fault >> 24 else ""
        return f"{FAULT_NAMES[fault & 0xFF]} L{level} stage {fault >> 16 & 0xFF}{walk}{where}"
    if target:
        return f"exception{where}, fault status {int(words[a.ESR]) & 0x3F:#04x}"
    return f"success, attributes {int(words[a.PAR]) >> 56:#04x}, SH {int(words[a.PAR]) >> 7 & 3}"
