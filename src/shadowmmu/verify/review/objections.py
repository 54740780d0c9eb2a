"""The table: every objection, what it asks for in our words, where it came from, what puts it to a design."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shadowmmu.verify.review import at, costs, failures, locks, ranges, record, source
from shadowmmu.verify.review.result import Result

SAFETY: Final = "safety"
COST: Final = "cost"
FORM: Final = "form"
KINDS: Final = {
    SAFETY: "a design that claims safety must have it",
    COST: "what it costs, what it takes without need, what it leaves behind",
    FORM: "names, surface, provenance of the source",
}


@dataclass(frozen=True)
class Objection:
    """One objection. ``kind`` says what a refutation means; only one of safety ends in exit code 2."""

    number: int
    title: str
    asks: str
    source: str
    kind: str
    put: Callable[[str], Result]
    scenarios: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The function that puts it to a design."""
        return f"{self.put.__module__.rpartition('.')[2]}.{self.put.__name__}"


_RFC: Final = "RFC review, March 2024, point"
_UPTON: Final = "second RFC review, March 2024"
_V1: Final = "v1, 2026: its cover letter and an automatic review"
_V2: Final = "review of v2, April 2026"
_V3: Final = "review of v3, May 2026"
_OCTOBER: Final = "review of October 2025"
_READING: Final = "from reading the source"
OBJECTIONS: Final = (
    Objection(
        1,
        "provenance",
        "a design says which version it was read from, or who proposed it and when",
        f"{_RFC} 1",
        FORM,
        source.provenance,
    ),
    Objection(
        2,
        "AT completes",
        "an AT ends in bounded steps with the answer of the guests' tables, whatever the shadow holds",
        f"{_RFC} 2",
        SAFETY,
        at.at_completes,
        ("02-at",),
    ),
    Objection(
        3,
        "numbers for named workloads",
        "on each of six named workloads the cost is counted and no more than the sweep's",
        f"{_RFC} 3",
        COST,
        costs.workloads,
        tuple(f"03-{name}" for name in costs.WORKLOADS),
    ),
    Objection(
        4,
        "hypervisor context",
        "who runs is decided by registers, never by the MMU that is loaded",
        f"{_RFC} 4",
        SAFETY,
        source.hyp_context,
    ),
    Objection(
        5,
        "overlap",
        "a range query finds every entry that intersects it, and overlapping entries are expected",
        f"{_RFC} 5",
        SAFETY,
        ranges.overlap,
        ("05-overlap",),
    ),
    Objection(
        6,
        "lock of insertions",
        "insertions under mmu_lock held for read exclude each other",
        f"{_RFC} 6",
        SAFETY,
        locks.two_insertions,
    ),
    Objection(
        7,
        "when to record",
        "an entry is made exactly when a shadow leaf is, stage 2 off included, and never for L1's own table",
        f"{_RFC} 7",
        SAFETY,
        record.entered,
        ("07-stage2-off",),
    ),
    Objection(
        8,
        "a key that is there already",
        "the newest owner of a canonical page is found",
        f"{_RFC} 8",
        SAFETY,
        record.moved_page,
        ("08-moved-page",),
    ),
    Objection(9, "surface", "nothing outside the designs calls a lookup", f"{_RFC} 9", FORM, source.surface),
    Objection(
        10,
        "sizes that do not match",
        "an unmap finds what intersects its range, for all stored and queried sizes and places",
        f"{_RFC} 10",
        SAFETY,
        ranges.stored_sizes,
    ),
    Objection(
        11,
        "lookup and removal in one step",
        "the lock of the record is not let go between finding an entry and removing it",
        f"{_RFC} 11",
        SAFETY,
        locks.one_step,
    ),
    Objection(
        12,
        "a query that removes",
        "a lookup for ageing or write protection reaches its range alone and leaves the record as it is",
        f"{_RFC} 12",
        COST,
        record.query_apart_from_removal,
        ("12-aged-then-taken",),
    ),
    Objection(
        13,
        "why L1",
        "whether a shadow leaf goes does not depend on L1's own table",
        f"{_RFC} 13",
        SAFETY,
        ranges.only_l2,
        ("13-only-l2",),
    ),
    Objection(
        14,
        "correctness first",
        "the whole correctness suite holds before anything is measured",
        f"{_RFC} 14",
        SAFETY,
        record.whole_kit,
    ),
    Objection(
        15,
        "one record a VM or an MMU",
        "an unmap takes exactly the leaves of the MMUs it hits, of 2, 4 and 8; its cost is counted",
        _UPTON,
        COST,
        costs.layouts,
    ),
    Objection(
        16,
        "aliases",
        "all nested addresses of a canonical page go, 1 to 5 in each of 1 to 3 MMUs, pages and blocks",
        f"{_UPTON}; {_OCTOBER}",
        SAFETY,
        ranges.aliases,
    ),
    Objection(
        17,
        "allocation",
        "whichever allocation of the record fails, no stale leaf is left",
        _UPTON,
        SAFETY,
        failures.allocations,
    ),
    Objection(
        18,
        "eviction by lookup",
        "as 12: a lookup does not evict",
        _UPTON,
        COST,
        record.query_apart_from_removal,
        ("12-aged-then-taken",),
    ),
    Objection(
        19,
        "the architecture, not Linux",
        "guests that do what the architecture allows and Linux does not are safe too",
        _OCTOBER,
        SAFETY,
        ranges.odd_guests,
        ("19-contiguous", "19-one-vmid-two-roots"),
    ),
    Objection(
        20,
        "nested IPA 0",
        "nested IPA 0 can be recorded and found",
        _V1,
        SAFETY,
        ranges.nested_zero,
        ("20-nested-zero",),
    ),
    Objection(
        21,
        "encoding",
        "every page-aligned nested IPA below 2^48 comes back from the record",
        _V3,
        SAFETY,
        ranges.encodings,
    ),
    Objection(
        22,
        "locks of containers",
        "a tree is changed under the lock it asks for",
        _V1,
        SAFETY,
        locks.container_locks,
    ),
    Objection(
        23,
        "failure stays inside",
        "a record without memory never fails the guest",
        _V1,
        SAFETY,
        failures.guest_goes_on,
    ),
    Objection(
        24,
        "invalidation by L1",
        "what L1 invalidates leaves the record or is harmless: nothing grows or spreads by it",
        _V2,
        COST,
        record.after_tlbi,
    ),
    Objection(
        25,
        "alignment",
        "canonical and nested address agree modulo the size of every leaf, whatever L1 writes",
        _V3,
        SAFETY,
        ranges.misaligned,
        ("25-odd-offsets", "25-block-low-bits"),
    ),
    Objection(
        26,
        "VNCR",
        "taking a canonical page invalidates a VNCR entry over it, with or without shadow leaf",
        _V3,
        SAFETY,
        record.vncr,
        ("26-vncr",),
    ),
    Objection(
        27,
        "names",
        "canonical and nested, and no word that blames the guest",
        f"{_V2}; {_V3}",
        FORM,
        source.names,
    ),
    Objection(
        28,
        "fallbacks are seen",
        "what a record gives up is counted with its reason",
        "review of v4, July 2026",
        COST,
        failures.counted,
    ),
    Objection(
        29,
        "16K host",
        "a notifier's cost does not grow with the address space",
        "a report on v3, May 2026",
        COST,
        costs.wide_space,
    ),
    Objection(
        30,
        "ageing",
        "ageing a canonical page reaches every nested address of it in every MMU",
        "review of the 2022 series",
        COST,
        record.ageing,
        ("30-aged-aliases",),
    ),
    Objection(
        31,
        "state of each MMU",
        "the records of MMUs are independent, and a wiped MMU records again",
        "v1 of 2025, found by its author",
        SAFETY,
        record.tenants,
        ("31-recycled",),
    ),
    Objection(
        32,
        "leaks and doubles",
        "the same leaf has one entry, and no entry outlives all leaves",
        "fixes of s390's vSIE, 2026",
        COST,
        record.freed,
        ("32-filled-again",),
    ),
    Objection(
        33,
        "identity of an MMU",
        "MMUs stay where they are for the VM's life, their tables counted right",
        "fixes of November 2021 and September 2026",
        SAFETY,
        record.stable_mmus,
        ("31-recycled",),
    ),
    Objection(
        34,
        "relaxed permissions",
        "a leaf relaxed in place needs no new entry and is found",
        _READING,
        SAFETY,
        ranges.relaxed,
        ("34-relaxed",),
    ),
    Objection(
        35,
        "pages become a block",
        "entries of pages that became a block are superseded, other nested addresses stay",
        _READING,
        SAFETY,
        ranges.collapsed,
        ("35-collapsed",),
    ),
    Objection(
        36,
        "a block is split",
        "the entry of a split block stays good for its pages",
        _READING,
        SAFETY,
        ranges.split,
        ("36-split",),
    ),
    Objection(
        37,
        "part of a block",
        "a notifier over a part of a block takes the leaf whole, the next finds the rest",
        _READING,
        SAFETY,
        ranges.part_of_block,
        ("37-part-of-block",),
    ),
    Objection(
        38,
        "a fault that lost the race",
        "a fill that met a notifier leaves neither leaf nor entry",
        _READING,
        SAFETY,
        failures.bounced,
        ("38-bounced",),
    ),
    Objection(
        39,
        "the lock is given away",
        "what is filled or taken while an unmap of L1 has given mmu_lock away leaves no stale leaf",
        _READING,
        SAFETY,
        failures.given_away,
        ("39-given-away",),
    ),
    Objection(
        40,
        "recycled, not yet wiped",
        "a notifier takes the leaves of a former tenant before the wipe",
        _READING,
        SAFETY,
        record.recycled_before_wipe,
        ("40-pending",),
    ),
    Objection(
        45,
        "L1's leaf is the larger one",
        "one TLBI takes every shadow piece of a 1G leaf",
        _READING,
        SAFETY,
        ranges.larger_than_the_host,
        ("45-one-gigabyte",),
    ),
    Objection(
        48,
        "dirty log",
        "write protection by the record leaves nothing that may be written unseen",
        _READING,
        SAFETY,
        record.logged,
        ("48-logged",),
    ),
    Objection(
        49,
        "memslot deleted",
        "no leaf over a deleted memslot stays",
        _READING,
        SAFETY,
        record.memslot,
        ("49-memslot",),
    ),
    Objection(
        50,
        "stage 2 off beside on",
        "identity shadows and others of one VMID do not disturb each other",
        _READING,
        SAFETY,
        ranges.stage2_off,
        ("50-stage2-off",),
    ),
)
"""In the order of their numbers in upstream.md, section 4; the gaps need what the model or a script lacks."""
