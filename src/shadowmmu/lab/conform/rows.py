"""What the kernel did and what the model did, in the same words: rows to be compared one by one.

Not compared, because the model does not make it: host frames, times, L1's registers and program counter
in its own aborts, its exits to the VMM's doorbell, and which pages the host's page_idle bitmap ages, which
depends on its LRU batches and host frames (``scenario/14-idle``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from shadowmmu.engine.executor import Executor
from shadowmmu.formats.answer import Answer
from shadowmmu.formats.ftrace import MARK, TraceEvent
from shadowmmu.formats.records import Printed, Touch
from shadowmmu.machine.log import FLUSH_NAMES, FLUSH_RANGE, KINDS
from shadowmmu.machine.state import R_LOG_TOP
from shadowmmu.pgtable.context import CANONICAL

COMPARED: Final[dict[str, tuple[str, ...]]] = {
    "unmap_gfn": ("start", "end", "mayblock"),
    "s2range": ("addr", "size"),
    "s2map": ("addr", "size", "prot"),
    "s2relax": ("addr", "prot"),
    "inject_s2": ("esr",),
}
"""Fields compared of each event of the merged order; stage-2 aborts of all levels are part of it too."""

ABORT: Final = ("ipa", "hsr", "hxfar", "pc")
SYNDROME: Final = 0xFC00_007F
"""Class, S1PTW, WnR and status of ESR: what does not depend on the registers of the instruction."""

DOORBELL: Final = 0x900_0000
PAGE: Final = ~0xFFF
L2_RUNS: Final = "(L2)"
LEVELS: Final = ("(L1)", L2_RUNS)
"""Marks of the rig where another vCPU goes on, at its own level."""
PAGE_BYTES: Final = 4096
INVALIDATIONS: Final = "TLB invalidations"
LISTED: Final = 64
"""Dirty pages that the VMM lists."""
VNCR_PAGE: Final = "VNCR page"
VNCR_ABORT: Final = 0x9400_2000
"""Class 0x25 and bit VNCR of ESR_EL2."""
READ_ONLY: Final = 1 << 7
"""AP[2] of L0's own stage 1."""
WORD: Final = (1 << 64) - 1


@dataclass(frozen=True)
class Row:
    """One thing that happened: its words (compared), and where (shown): a mark or a command."""

    words: tuple[str | int, ...]
    where: str = ""

    def text(self) -> str:
        """Ready to print."""
        return " ".join(word if isinstance(word, str) else f"{word:#x}" for word in self.words)


@dataclass(frozen=True)
class Aspect:
    """One kind of observation: its name, and how to read it from each side."""

    name: str
    kernel: Callable[[Answer], list[Row]]
    model: Callable[[Executor], list[Row]]


@dataclass(frozen=True)
class Logged:
    """One row of the model's log; ``where`` is the command that caused it."""

    where: str
    name: str
    fields: dict[str, int]
    mmu: int


def model_log(executor: Executor) -> Iterator[Logged]:
    """The model's log, row by row."""
    state, scenario = executor.state, executor.scenario
    places = [scenario.where(index) for index in range(len(scenario.events))]
    places.append(places[-1] if places else "")  # a dirty log is harvested after its event
    for row in state.log[: int(state.regs[R_LOG_TOP])].tolist():
        name, names = KINDS[row[0]]
        yield Logged(places[row[1]], name, dict(zip(names, row[2:7], strict=False)), row[6])


def canonical_table(events: Iterable[TraceEvent]) -> int | None:
    """The pointer of the canonical table: L1's first fetch, the first fill of all, goes into it."""
    return next((event.fields["pgt"] for event in events if event.name == "s2map"), None)


def kernel_events(answer: Answer) -> list[Row]:
    """Aborts, fills, relaxations, unmaps of canonical and of shadow ranges, injections, in their order."""
    canonical = canonical_table(answer.events)
    rows: list[Row] = []
    mark = ""
    for event in answer.events:
        fields = event.fields
        if event.name == MARK:
            mark = event.text
        elif event.name == "kvm_guest_fault":
            if fields["ipa"] != DOORBELL:
                rows.append(_abort(fields, mark))
        elif event.name in COMPARED and not (event.name == "s2range" and fields["pgt"] == canonical):
            values = (fields[name] & WORD for name in COMPARED[event.name])
            rows.append(Row((event.name, *values), mark))
    return rows


def _abort(fields: dict[str, int], where: str) -> Row:
    return Row(("kvm_guest_fault", fields["ipa"], fields["hsr"] & SYNDROME), where)


def model_events(executor: Executor) -> list[Row]:
    """The same from the model's log."""
    rows: list[Row] = []
    for logged in model_log(executor):
        if logged.name == "kvm_guest_fault":
            rows.append(_abort(logged.fields, logged.where))
        elif logged.name in COMPARED and not (logged.name == "s2range" and logged.fields["mmu"] == CANONICAL):
            values = (logged.fields[key] for key in COMPARED[logged.name])
            rows.append(Row((logged.name, *values), logged.where))
    return rows


def kernel_l2_aborts(answer: Answer) -> list[Row]:
    """(nested IPA, syndrome, VA, PC), every bit, of the aborts between an ERET to L2 and its end."""
    rows: list[Row] = []
    inside = False
    mark = ""
    for event in answer.events:
        if event.name == MARK and event.text in LEVELS:
            inside = event.text == L2_RUNS
        elif event.name == MARK:
            mark = event.text
        elif event.name in ("kvm_nested_eret", "kvm_inject_nested_exception"):
            inside = event.name == "kvm_nested_eret"
        elif inside and event.name == "kvm_guest_fault":
            rows.append(Row(tuple(event.fields[key] for key in ABORT), mark))
    return rows


def model_l2_aborts(executor: Executor) -> list[Row]:
    """The same from the model's log."""
    return [
        Row(tuple(logged.fields[key] for key in ABORT), logged.where)
        for logged in model_log(executor)
        if logged.name == "kvm_guest_fault" and logged.mmu != CANONICAL
    ]


def kernel_touches(answer: Answer) -> list[Row]:
    """What L1 saw each time L2 left: ESR, FAR, HPFAR, ELR, and how many accesses were not made."""
    return [
        Row(("touch", r.esr, r.far, r.hpfar, r.elr, r.left), step.command)
        for step in answer.steps
        for r in step.records
        if isinstance(r, Touch)
    ]


def model_touches(executor: Executor) -> list[Row]:
    """The same from the model's log."""
    return _logged(executor, "touch", lambda fields: ("touch", *fields.values()))


def kernel_mmio(answer: Answer) -> list[Row]:
    """Accesses that left to the VMM because no memslot is there: canonical page, and whether to store."""
    rows = []
    for step in answer.steps:
        for record in step.printed("mmio"):
            words = ("mmio", record.fields["addr"] & PAGE, record.fields["write"])
            rows.append(Row(words, step.command))
    return rows


def model_mmio(executor: Executor) -> list[Row]:
    """The same from the model's log."""
    return _logged(executor, "mmio", lambda f: ("mmio", f["phys_addr"] & PAGE & WORD, int(f["write"] == 1)))


def kernel_refused_stores(answer: Answer) -> list[Row]:
    """KVM_RUN failing with EFAULT, which the VMM answers by making all its memory writable."""
    return [
        Row(("efault",), step.command)
        for step in answer.steps
        for r in step.records
        if isinstance(r, Printed) and r.what == "efault"
    ]


def model_refused_stores(executor: Executor) -> list[Row]:
    """The same from the model's log."""
    return [
        Row(("efault",), row.where)
        for row in model_log(executor)
        if row.name == "efault" and row.fields["ipa"] == 0
    ]


def kernel_warned(answer: Answer) -> list[Row]:
    """Whether the kernel complained: an unmap beyond the table's end trips its warning."""
    return [Row(("warned",), answer.warnings[0])] if answer.warnings else []


def model_warned(executor: Executor) -> list[Row]:
    """Whether the model noted such an unmap."""
    noted = [row for row in model_log(executor) if row.name == "efault" and row.fields["ipa"] != 0]
    return [Row(("warned",), noted[0].where)] if noted else []


def kernel_protections(answer: Answer) -> list[Row]:
    """Ranges write-protected for dirty logging, if the run has the probe for it."""
    rows: list[Row] = []
    mark = ""
    for event in answer.events:
        if event.name == MARK:
            mark = event.text
        elif event.name == "wp_range":
            rows.append(Row(("wp_range", event.fields["start"], event.fields["end"]), mark))
    return rows


def model_protections(executor: Executor) -> list[Row]:
    """The same from the model's log."""
    return _logged(executor, "s2wp", lambda f: ("wp_range", f["addr"], f["addr"] + f["size"]))


def kernel_dirty(answer: Answer) -> list[Row]:
    """What the dirty bitmap showed each time: its first pages, and how many there were."""
    return [
        Row(("dirty", record.fields["total"], *record.values), step.command)
        for step in answer.steps
        for record in step.printed("dirty")
    ]


def model_dirty(executor: Executor) -> list[Row]:
    """The same, of the model's bitmaps."""
    return [
        Row(("dirty", len(log.pages), *log.pages[:LISTED].tolist()), executor.scenario.where(log.event))
        for log in executor.dirty_logs
    ]


def kernel_rings(answer: Answer) -> list[Row]:
    """Pages read from dirty rings in their order, and each exit because of a full one."""
    rows = []
    for step in answer.steps:
        for record in step.records:
            if isinstance(record, Printed) and record.what == "ringfull":
                rows.append(Row(("ring full",), step.command))
            elif isinstance(record, Printed) and record.what == "ring":
                vcpu = record.fields["vcpu"]
                rows += [Row(("ring", vcpu, page), step.command) for page in record.values]
    return rows


def model_rings(executor: Executor) -> list[Row]:
    """The same from the model's log."""
    rows = []
    for logged in model_log(executor):
        if logged.name == "ring_full":
            rows.append(Row(("ring full",), logged.where))
        elif logged.name == "harvested":
            rows.append(Row(("ring", logged.fields["vcpu"], logged.fields["ipa"]), logged.where))
    return rows


def kernel_splits(answer: Answer) -> list[Row]:
    """Chunks of the canonical table whose blocks are split eagerly, if the run has the probe for it."""
    return [
        Row(("s2split", event.fields["addr"], event.fields["size"]))
        for event in answer.events
        if event.name == "s2split"
    ]


def model_splits(executor: Executor) -> list[Row]:
    """The same from the model's log."""
    return _logged(executor, "s2split", lambda f: ("s2split", f["addr"], f["size"]))


def kernel_invalidations(answer: Answer) -> list[Row]:
    """TLB invalidations by IPA, range and VMID: whose, where and how much, if the run has the probes."""
    rows: list[Row] = []
    mark = ""
    for event in answer.events:
        if event.name == MARK:
            mark = event.text
        elif event.name in FLUSH_NAMES and "vttbr" in event.fields:
            start = event.fields.get("start", event.fields.get("ipa", 0))
            shadow = event.fields["vttbr"] != 0
            _add_flush(rows, event.name, start, event.fields.get("pages", 0) * PAGE_BYTES, shadow, mark)
    return rows


def model_invalidations(executor: Executor) -> list[Row]:
    """The same from the model's log, which must have them (``Machine.tlb_logged``)."""
    rows: list[Row] = []
    for logged in model_log(executor):
        if logged.name == "flush":
            f = logged.fields
            shadow = f["mmu"] != CANONICAL
            _add_flush(rows, FLUSH_NAMES[f["scope"]], f["addr"], f["size"], shadow, logged.where)
    return rows


def _add_flush(rows: list[Row], name: str, start: int, size: int, shadow: bool, where: str) -> None:
    """Append an invalidation; a range that goes on where the last one ended is added to it."""
    whose = "shadow" if shadow else "canonical"
    words: tuple[str | int, ...] = (name, whose, start, size)
    if rows and size and rows[-1].words[:2] == words[:2]:
        first, length = (int(word) for word in rows[-1].words[2:])
        if first + length == start:
            rows[-1] = Row((name, whose, first, length + size), rows[-1].where)
            return
    rows.append(Row(words, where))


def _logged(
    executor: Executor, name: str, words: Callable[[dict[str, int]], tuple[str | int, ...]]
) -> list[Row]:
    return [Row(words(row.fields), row.where) for row in model_log(executor) if row.name == name]


def kernel_vncr(answer: Answer) -> list[Row]:
    """The page of VNCR_EL2: fills of its entry, what goes into the fixmap and out, aborts that L1 gets.

    A fill is read when its abort is over, so one that ends in a fault for L1 stands before that fault.
    A frame is compared by whether it is the one of the last fill.
    """
    rows: list[Row] = []
    mark, frame, slots, injected = "", -1, set(), 0
    for event in answer.events:
        fields = event.fields
        if event.name == MARK and event.text not in LEVELS:
            mark = event.text
        elif event.name == "vncr_abort":
            injected = len(rows)
        elif event.name == "kvm_inject_nested_exception" and fields["esr_el2"] & VNCR_ABORT == VNCR_ABORT:
            rows.append(Row(("vncr_fault", fields["esr_el2"]), mark))
        elif event.name == "vncr_tlb" and fields["valid"]:
            frame = fields["hpa"]
            faults = (at for at in range(injected, len(rows)) if rows[at].words[0] == "vncr_fault")
            filled = ("vncr_fill", fields["gva"], fields["ipa"], fields["writable"])
            rows.insert(next(faults, len(rows)), Row(filled, mark))
        elif event.name == "fixmap" and fields["phys"] == frame:
            slots.add(fields["idx"])
            rows.append(Row(("vncr_map", int(fields["prot"] & READ_ONLY == 0)), mark))
        elif event.name == "fixmap" and fields["idx"] in slots and fields["phys"] == 0:
            rows.append(Row(("vncr_unmap",), mark))
    return rows


def model_vncr(executor: Executor) -> list[Row]:
    """The same from the model's log."""
    rows: list[Row] = []
    frame = -1
    for logged in model_log(executor):
        fields = logged.fields
        if logged.name == "vncr_fill":
            frame = fields["hpa"]
            words: tuple[str | int, ...] = (logged.name, fields["gva"], fields["ipa"], fields["writable"])
        elif logged.name == "vncr_map" and fields["hpa"] == frame:
            words = (logged.name, fields["writable"])
        elif logged.name == "vncr_unmap":
            words = (logged.name,)
        elif logged.name == "vncr_fault":
            words = (logged.name, fields["esr"])
        else:
            continue
        rows.append(Row(words, logged.where))
    return rows


ASPECTS: Final = (
    Aspect("events", kernel_events, model_events),
    Aspect("L2 aborts", kernel_l2_aborts, model_l2_aborts),
    Aspect("seen by L1", kernel_touches, model_touches),
    Aspect("MMIO exits", kernel_mmio, model_mmio),
    Aspect("EFAULT exits", kernel_refused_stores, model_refused_stores),
    Aspect("write protection", kernel_protections, model_protections),
    Aspect("dirty bitmaps", kernel_dirty, model_dirty),
    Aspect("dirty rings", kernel_rings, model_rings),
    Aspect("splits", kernel_splits, model_splits),
    Aspect(INVALIDATIONS, kernel_invalidations, model_invalidations),
    Aspect("warnings", kernel_warned, model_warned),
    Aspect(VNCR_PAGE, kernel_vncr, model_vncr),
)
"""What is compared row by row; dumps and counts have their own comparison (``lab.agreement``)."""

NEEDS_PROBE: Final = {
    "events": "s2map",
    "L2 aborts": "kvm_guest_fault",
    "write protection": "wp_range",
    "splits": "s2split",
    INVALIDATIONS: FLUSH_NAMES[FLUSH_RANGE],
    VNCR_PAGE: "vncr_tlb",
}
"""An aspect that a run shows only if its trace has this probe."""
