"""A trace of a real host as events that any design can be put through: whose page is behind each fill?

A shadow fill names a nested address and an output address, a notifier names canonical ones. The join: a
canonical fill of the same output address, not unmapped since. Where pages are shared (KSM, the zero page)
or the canonical table was not filled, what L1 was seen to map at the nested address before stands in, until
L1 invalidates it. With stage 2 off the nested address is the canonical one. All of it is counted.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from shadowmmu.compiled import Counts, Words
from shadowmmu.engine.refill_step import (
    EVENT_COLUMNS,
    FILL,
    INVALIDATE_IPA,
    INVALIDATE_RANGE,
    NOTIFY,
    OUTPUT,
    PROTECT_ALL,
    RELAX_LEAF,
)
from shadowmmu.errors import UndeterminedError
from shadowmmu.formats.problem import FormatError
from shadowmmu.formats.shadow_trace import ShadowEvent, ShadowTrace
from shadowmmu.lab.event_store import EventStore
from shadowmmu.lab.leaf_map import LEAF_SIZES, LeafMap
from shadowmmu.lab.recorded_cost import RecordedCost
from shadowmmu.lab.trace_tables import ShadowTable, TableCensus, tag_of

PAGE_SHIFT: Final = 12
NO_OPERANDS: Final = (0,) * (EVENT_COLUMNS - 1)
OPERAND_IPA: Final = (1 << 36) - 1
"""The bits of an IPAS2E1 operand that KVM reads as the address (48 bits)."""
WIDEST: Final = LEAF_SIZES[-1]
OUTPUT_BITS: Final = 48

BY_IDENTITY: Final = "stage 2 off: nested is canonical"
BY_OUTPUT: Final = "one canonical fill of the same output address"
BY_MEMORY: Final = "no such fill: as L1 mapped the address before"
BY_MEMORY_SHARED: Final = "output address shared: as L1 mapped the address before"
NOT_FOUND: Final = "not joined: no canonical fill"
AMBIGUOUS: Final = "not joined: output address shared"
NOT_JOINED: Final = (NOT_FOUND, AMBIGUOUS)
JOINED: Final = (BY_IDENTITY, BY_OUTPUT, BY_MEMORY, BY_MEMORY_SHARED)
CONTRADICTED: Final = "fills of stage-2-off tables that contradict the canonical table"


class Source(NamedTuple):
    """Where a leaf's page is: canonical address, and the level of L1's leaf."""

    canonical_ipa: int
    tag: int


@dataclass
class Thread:
    """What one thread is in the middle of."""

    in_notifier: bool = False
    by_memslot: bool = False
    """The notifier is none: a memslot goes, and ``kvm_nested_s2_unmap`` was called for that."""
    canonical_range: tuple[int, int] | None = None
    """The canonical range unmapped just before."""
    tlbi: str = ""
    operand: int = 0
    mapping: ShadowEvent | None = None
    """A map that has not returned yet, where the trace has returns."""


@dataclass(frozen=True)
class JoinedTrace:
    """The events, and how much of the trace they are.

    ``joins`` counts the fills of stage-2-on tables by how their canonical address was found; ``notes`` says
    in words and numbers what was not resolved or not carried over. ``fates`` and ``line_numbers`` run
    parallel to ``events``.
    """

    path: str
    events: Words
    fates: Counts
    line_numbers: Counts
    tables: list[ShadowTable]
    canonical: int | None
    ipa_bits: int
    recorded: RecordedCost
    joins: Counter[str]
    notes: list[tuple[str, int]]
    lost: int
    """Events that are known to be missing."""

    @property
    def shown(self) -> list[bool]:
        """For each table, whether it is one with stage 2 on."""
        return [table.stage2_on for table in self.tables]

    @property
    def fills(self) -> int:
        """Fills of tables with stage 2 on."""
        return sum(self.joins.values())

    @property
    def not_joined(self) -> int:
        """Those of them whose canonical address was not found."""
        return sum(self.joins[way] for way in NOT_JOINED)


@dataclass
class Joiner:
    """One pass over the events of a trace whose tables are known."""

    path: str
    canonical: int | None
    tables: list[ShadowTable]
    ipa_bits: int
    returns: bool = False
    """Whether the trace tells how maps end."""
    words: array[int] = field(default_factory=lambda: array("Q"))
    fates: array[int] = field(default_factory=lambda: array("q"))
    line_numbers: array[int] = field(default_factory=lambda: array("q"))
    joins: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    threads: dict[int, Thread] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.number = {table.pgt: index for index, table in enumerate(self.tables)}
        self.recorded = RecordedCost([table.stage2_on for table in self.tables])
        self.host: LeafMap[int] = LeafMap()
        self.behind: dict[int, set[int]] = {}
        self.frames: LeafMap[int] = LeafMap()
        self.memory: list[LeafMap[Source]] = [LeafMap() for _ in self.tables]

    def step(self, event: ShadowEvent) -> None:
        """Take one event. Raises FormatError."""
        thread = self.threads.setdefault(event.thread, Thread())
        name = event.name
        if name == "s2range":
            self._range(event, thread)
            return
        if name == "nested_unmap":
            if not thread.tlbi:  # else ALLE1: L1 asks for it
                self._nested_unmap(event, thread)
            return
        thread.tlbi = ""
        thread.canonical_range = None
        if name == "s2map":
            self._map(event, thread)
        elif name == "s2map_ret":
            self._returned(event, thread)
        elif name == "unmap_gfn":
            start, end = event.values["start"] << PAGE_SHIFT, event.values["end"] << PAGE_SHIFT
            self._begin_notifier(event, thread, start, end)
        elif name == "unmap_gfn_ret" or (name == "nested_unmap_ret" and thread.by_memslot):
            self._end_notifier(event.thread, thread)
        elif name == "s2relax":
            self._relax(event)
        elif name == "nested_wp":
            self._emit(event, (PROTECT_ALL, *NO_OPERANDS))
        elif name.startswith("tlbi_"):
            self._end_notifier(event.thread, thread)
            thread.tlbi, thread.operand = name, event.values.get("val", 0)

    def _emit(self, event: ShadowEvent, row: tuple[int, ...], fate: int = 0) -> None:
        self.words.extend(row)
        self.fates.append(fate)
        self.line_numbers.append(event.line_number)

    # Fills

    def _map(self, event: ShadowEvent, thread: Thread) -> None:
        """``kvm_pgtable_stage2_map`` is entered: a fill, if it succeeds."""
        self._end_notifier(event.thread, thread)
        if not self.returns:
            self._fill(event)
            return
        if thread.mapping is not None:
            self.counts["maps whose return is missing, taken for none"] += 1
        thread.mapping = event

    def _returned(self, event: ShadowEvent, thread: Thread) -> None:
        """It returns; the lock it runs under keeps every unmap out in between."""
        if thread.mapping is None:
            self.counts["returns of maps that were not seen"] += 1
        elif event.values["ret"]:
            self.counts["maps that failed or found the same leaf"] += 1
        else:
            self._fill(thread.mapping)
        thread.mapping = None

    def _fill(self, event: ShadowEvent) -> None:
        values = event.values
        base, size, pa = values["addr"], values["size"], values["phys"]
        if size not in LEAF_SIZES or base % size or pa % size:
            raise FormatError(
                self.path, event.line_number, f"size={size:#x}", "an aligned leaf of 4K, 2M or 1G"
            )
        if (base + size - 1) >> self.ipa_bits or (pa + size - 1) >> OUTPUT_BITS:
            raise FormatError(
                self.path,
                event.line_number,
                f"addr={base:#x} phys={pa:#x}",
                f"a leaf below 2^{self.ipa_bits} that points below 2^{OUTPUT_BITS}",
            )
        if values["pgt"] == self.canonical:
            self._drop_host(base, base + size)
            self.frames.put(base, size, pa)
            self.host.put(base, size, pa)
            self.behind.setdefault(pa, set()).add(base)
            return
        table = self.number[values["pgt"]]
        tag = tag_of(values["prot"])
        way, canonical_ipa = self._source(table, base, size, pa, tag)
        if self.tables[table].stage2_on:
            self.joins[way] += 1
        joined = way in JOINED
        if joined:
            self._note_frame(canonical_ipa, size, pa)
            self.memory[table].put(base, size, Source(canonical_ipa, tag))
        fate = self.recorded.fill(table, base, size)
        self._emit(
            event,
            (FILL, table + 1, base, base + size, pa, values["prot"], canonical_ipa, joined, values["vttbr"]),
            fate,
        )

    def _candidates(self, pa: int, size: int) -> set[int]:
        """Canonical addresses of the leaves that hold the ``size`` bytes at ``pa``."""
        found = set()
        for leaf_size in LEAF_SIZES:
            first = pa & -leaf_size
            for base in self.behind.get(first, ()):
                held = self.host.find(base)
                if held is not None and held.size == leaf_size and held.base + pa - first & size - 1 == 0:
                    found.add(held.base + pa - first)
        return found

    def _source(self, table: int, nested_ipa: int, size: int, pa: int, tag: int) -> tuple[str, int]:
        """How, and where, the canonical page of a fill is found."""
        candidates = self._candidates(pa, size)
        if tag == 0:
            mapped = self.host.find(nested_ipa)
            if mapped is not None and mapped.value + nested_ipa - mapped.base != pa:
                self.counts[CONTRADICTED] += 1
            return BY_IDENTITY, nested_ipa
        before = self.memory[table].find(nested_ipa)
        known = None if before is None else before.value.canonical_ipa + nested_ipa - before.base
        if known is not None and known not in candidates and candidates:
            mapped = self.host.find(known)
            if mapped is None or mapped.value + known - mapped.base == pa:
                return BY_MEMORY_SHARED, known
        if len(candidates) == 1:
            return BY_OUTPUT, candidates.pop()
        if known is not None and (not candidates or known in candidates):
            return (BY_MEMORY_SHARED if candidates else BY_MEMORY), known
        return (AMBIGUOUS if candidates else NOT_FOUND), 0

    def _note_frame(self, canonical_ipa: int, size: int, pa: int) -> None:
        """A joined fill shows which frames the host has behind a canonical range."""
        held = self.frames.find(canonical_ipa)
        if held is None or held.value + canonical_ipa - held.base != pa:
            self.frames.put(canonical_ipa, size, pa)

    def _take_frames(self, event: ShadowEvent, start: int, end: int) -> int:
        """The frames behind a canonical range that the host takes away, an event each; how many."""
        held = sorted(self.frames.take(start, end))
        for number, leaf in enumerate(held):
            first, last = max(start, leaf.base), min(end, leaf.base + leaf.size)
            pa = leaf.value + first - leaf.base
            self._emit(event, (OUTPUT, 0, pa, pa + last - first, 0, 0, 0, int(number == 0), 0))
        return len(held)

    def _drop_host(self, start: int, end: int) -> None:
        for leaf in self.host.take(start, end):
            self.behind[leaf.value].discard(leaf.base)

    def _relax(self, event: ShadowEvent) -> None:
        table = self.number.get(event.values["pgt"])
        if table is not None:
            base = event.values["addr"]
            self._emit(event, (RELAX_LEAF, table + 1, base, base, 0, event.values["prot"], 0, 0, 0))

    # Unmaps

    def _begin_notifier(self, event: ShadowEvent, thread: Thread, start: int, end: int) -> None:
        self._end_notifier(event.thread, thread)
        thread.in_notifier = True
        self.recorded.begin_notifier(event.thread)
        self._drop_host(start, end)
        may_block = event.values.get("mayblock", 1)
        outputs = self._take_frames(event, start, end)
        self._emit(event, (NOTIFY, 0, start, end, may_block, 0, outputs, 0, 0))

    def _end_notifier(self, number: int, thread: Thread) -> None:
        if thread.in_notifier:
            thread.in_notifier = thread.by_memslot = False
            self.recorded.end_notifier(number)

    def _nested_unmap(self, event: ShadowEvent, thread: Thread) -> None:
        """Inside a notifier nothing new; else a memslot goes, and the range before it says which."""
        if thread.in_notifier:
            return
        where = thread.canonical_range
        self.counts["memslot removals" if where else "unmaps of all shadows for an unknown range"] += 1
        start, end = where or (0, 1 << self.ipa_bits)
        self._begin_notifier(event, thread, start, end)
        thread.by_memslot = True

    def _range(self, event: ShadowEvent, thread: Thread) -> None:
        values = event.values
        start, end = values["addr"], values["addr"] + values["size"]
        if values["pgt"] == self.canonical:
            self._drop_host(start, end)
            thread.canonical_range = (start, end)
            return
        table = self.number.get(values["pgt"])
        if table is None:
            self.counts["ranges of tables that were never filled"] += 1
            return
        if end > 1 << self.ipa_bits:
            self.counts["ranges beyond the IPA limit, which the kernel refuses"] += 1
            return
        self.recorded.take(table, start, end, event.thread)
        if not thread.in_notifier:
            self._invalidation(event, thread, table, start, end)

    def _invalidation(self, event: ShadowEvent, thread: Thread, table: int, start: int, end: int) -> None:
        """A range that no notifier asked for: L1's TLBI, or the wipe of a recycled MMU."""
        nested_ipa = (thread.operand & OPERAND_IPA) << PAGE_SHIFT
        by_ipa = thread.tlbi == "tlbi_ipas2" and start <= nested_ipa < end and end - start <= WIDEST
        if by_ipa:
            self._forget(table, nested_ipa)
            row = (INVALIDATE_IPA, table + 1, start, end, thread.operand, 0, 0, 0, 0)
        else:
            if not thread.tlbi:
                self.counts["ranges that neither a notifier nor a TLBI explains (recycling, the end)"] += 1
            self.memory[table].take(start, end)
            row = (INVALIDATE_RANGE, table + 1, start, end, 0, 0, 0, 0, 0)
        self._emit(event, row)

    def _forget(self, table: int, nested_ipa: int) -> None:
        """L1 invalidates one address: what its leaf there mapped is not known any more."""
        memory = self.memory[table]
        base = nested_ipa & -WIDEST
        for leaf in memory.over(base, base + WIDEST):
            span = LEAF_SIZES[3 - leaf.value.tag] if leaf.value.tag else WIDEST
            if leaf.base & -max(span, leaf.size) == nested_ipa & -max(span, leaf.size):
                memory.take(leaf.base, leaf.base + leaf.size)


def join_trace(trace: ShadowTrace, ipa_bits: int | None = None) -> JoinedTrace:
    """Read a trace and join it. Raises FormatError; UndeterminedError where there is nothing to replay."""
    events = EventStore()
    census = TableCensus()
    for event in trace:
        events.append(event)
        census.see(event)
    canonical = census.canonical
    tables = census.shadows(canonical)
    if not any(table.stage2_on for table in tables):
        raise UndeterminedError(
            f"{trace.path}: read {trace.events} events and no fill of a shadow table (s2map of an L2 with"
            " stage 2 on), so there is nothing to replay"
        )
    bits = ipa_bits or census.ipa_bits(trace.ipa_limit_bits)
    joiner = Joiner(trace.path, canonical, tables, bits, census.returns)
    for event in events:
        joiner.step(event)
    open_notifiers = sum(thread.in_notifier for thread in joiner.threads.values())
    joiner.recorded.end()
    off = sum(table.fills for table in tables if not table.stage2_on)
    if joiner.counts[CONTRADICTED] * 2 > off:
        raise UndeterminedError(
            f"{trace.path}: read {joiner.counts[CONTRADICTED]} {CONTRADICTED} of {off}, as if there were"
            " several VMs in it; record one VM at a time"
        )
    return JoinedTrace(
        path=trace.path,
        events=np.array(joiner.words, np.uint64).reshape(-1, EVENT_COLUMNS),
        fates=np.array(joiner.fates, np.int64),
        line_numbers=np.array(joiner.line_numbers, np.int64),
        tables=tables,
        canonical=canonical,
        ipa_bits=joiner.ipa_bits,
        recorded=joiner.recorded,
        joins=joiner.joins,
        notes=_notes(trace, joiner, open_notifiers),
        lost=trace.lost + trace.cut,
    )


def _notes(trace: ShadowTrace, joiner: Joiner, open_notifiers: int) -> list[tuple[str, int]]:
    """What was not resolved or carried over, in words and numbers; only what did occur."""
    found = [
        ("events the kernel lost or overwrote: what follows is not the whole run", trace.lost),
        ("the last line, which has no end: left out", trace.cut),
        ("events older than the one before them", trace.backwards),
        ("lines of other programs inside the buffer", trace.foreign),
        (
            "shadow fills not joined to a canonical address",
            sum(joiner.joins[way] for way in NOT_JOINED),
        ),
        ("notifiers still running at the end of the trace", open_notifiers),
        *joiner.counts.items(),
        *((f"events of no use here: {name}", count) for name, count in sorted(trace.skipped.items())),
    ]
    return [(name, count) for name, count in found if count]
