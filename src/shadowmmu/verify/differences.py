"""Where Linux 7.3.4 differs from the architecture, declared once, and what follows from each, executed.

Every difference has a switch of L0 (``kvm.differences``), off by default, and a scenario that is run both
ways, with two ideal TLBs beside it (``verify.tlb_witness``). ``docs/differences.md`` is this table as text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from shadowmmu.engine.executor import Executor
from shadowmmu.engine.observe import Observed, read_log
from shadowmmu.engine.setup import Machine
from shadowmmu.errors import InputError, UndeterminedError
from shadowmmu.events.schema import AT, Scenario
from shadowmmu.verify.tlb_witness import Consequence, Witness, place

WRONG_ANSWER: Final = "wrong answer"
NO_PROGRESS: Final = "no progress"
HOST_WARNING: Final = "host warning"


@dataclass(frozen=True)
class Difference:
    """One item of the table. ``seen``: what the rig showed, and the recorded run; empty: by reading only."""

    name: str
    linux: str
    architecture: str
    rule: str
    consequence: str
    seen: str
    read: str

    @property
    def scenario(self) -> str:
        """Name of the bundled scenario that shows it."""
        return f"differences/{self.name}"


DIFFERENCES: Final = (
    Difference(
        name="dirty-log-flush",
        linux="write-protects every shadow MMU when the dirty log starts and at each harvest, then "
        "invalidates the canonical VMID only",
        architecture="a TLB may keep the writable translation until the shadow's VMID is invalidated",
        rule="Arm ARM D8.17: a cached translation stays usable until maintenance that hits it",
        consequence="L2 writes a page and the log does not have it",
        seen="suspicion/write-protect-without-shadow-flush; tests/data/difference_runs/dirty-log-flush, with "
        "every invalidation by IPA, range and VMID",
        read="a lost write: the emulated CPU's TLB does not keep such entries",
    ),
    Difference(
        name="nested-ipa-size",
        linux="drops the bits of a nested IPA above L1's T0SZ and walks with the rest",
        architecture="stage-2 translation fault, level 0",
        rule="Arm ARM VTCR_EL2.T0SZ and D8.2: an input address beyond the configured size",
        consequence="L2 reaches L1's memory at an address that L1 never mapped, also after L1 has unmapped "
        "and invalidated the page",
        seen="suspicion/nested-ipa-above-t0sz; tests/data/difference_runs/nested-ipa-size",
        read="",
    ),
    Difference(
        name="tlbi-beyond-limit",
        linux="hands an IPAS2E1IS beyond the shadow's input size to the unmap, which refuses it with a WARN",
        architecture="completes; no translation has such an input, so nothing must be invalidated",
        rule="Arm ARM C5.5, TLBI IPAS2E1IS, and D8.17: entries for the IPA",
        consequence="L1 trips a warning of the host at will; no translation is wrong",
        seen="suspicion/ipas2-tlbi-beyond-limit; tests/data/difference_runs/tlbi-beyond-limit",
        read="that at a 48-bit limit the operand cannot exceed it; the host of the runs has its limit "
        "lowered to 40 bits",
    ),
    Difference(
        name="at-recycled-mmu",
        linux="asks the CPU for an AT through a recycled shadow MMU that still holds the former tenant's "
        "leaves (pending_unmap)",
        architecture="the answer of L1's tables for the VMID in VTTBR_EL2",
        rule="Arm ARM C5.4, AT: translation under the current VMID; D8.17: entries are tagged with it",
        consequence="L1 is told what another L2's tables say",
        seen="rig/recorded/at/at-on-pending-mmu: AT S1E1R for the new tenant gives 0x100001000, then "
        "0xc0001000 (the former tenant's) while the recycled MMU is not wiped, then 0x100001000 again",
        read="that two running vCPUs come to it: in the run the second one is loaded, and put before it "
        "enters",
    ),
    Difference(
        name="at-replay",
        linux="replays an AT S12 for every error number of the walk of L1's stage 2, also where it will be "
        "the same the next time",
        architecture="the AT ends with a fault in PAR_EL1",
        rule="Arm ARM C5.4, AT S12E1R, and VTCR_EL2.T0SZ: a size out of range gives a translation fault",
        consequence="L1 never gets past the instruction",
        seen="rig/recorded/at/at-s12-bad-vtcr and at-s12-no-memslot: killed after 3 s of the guest's clock, "
        "with 8,557 and 279,661 walks of L1's table in the buffer; "
        "before VTCR_EL2 or the table is spoilt it ends",
        read="that it is replayed for the error number; nothing bounds it",
    ),
    Difference(
        name="at-pan",
        linux="executes AT S1E1RP and WP without L1's PSTATE.PAN where the CPU answers",
        architecture="a page open to EL0 gives a permission fault",
        rule="Arm ARM C5.4, AT S1E1RP: PSTATE.PAN determines permission",
        consequence="L1 is told that a privileged access is allowed which faults",
        seen="tests/data/at_runs/differences",
        read="",
    ),
)
"""In the order of the switches."""

NAMES: Final = tuple(item.name for item in DIFFERENCES)


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """The differences named, in the order of the table; ``all`` is every one. Raises InputError."""
    wanted = set(names)
    for name in sorted(wanted - {"all", *NAMES}):
        raise InputError(f"read difference '{name}', expected 'all' or one of {', '.join(NAMES)}")
    return tuple(name for name in NAMES if name in wanted or "all" in wanted)


@dataclass(frozen=True)
class Answers:
    """A run of the scenario in one mode: what L1 and the host saw, and what the TLBs make of it."""

    lines: tuple[str, ...]
    consequences: tuple[Consequence, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "answers": list(self.lines),
            "consequences": [{"kind": c.kind, "event": c.event, "text": c.text} for c in self.consequences],
        }


@dataclass(frozen=True)
class Shown:
    """A difference with both answers."""

    item: Difference
    linux: Answers
    architecture: Answers

    @property
    def as_declared(self) -> bool:
        """Linux shows a consequence, the architecture none."""
        return bool(self.linux.consequences) and not self.architecture.consequences

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "difference": self.item.name,
            "linux": self.item.linux,
            "architecture": self.item.architecture,
            "rule": self.item.rule,
            "consequence": self.item.consequence,
            "scenario": self.item.scenario,
            "seen": self.item.seen or None,
            "only_read": self.item.read or None,
            "as_declared": self.as_declared,
            "as_linux": self.linux.to_json(),
            "as_architecture": self.architecture.to_json(),
        }


@dataclass
class _Run:
    """One execution: the machine at its end (or where it stuck), its log, its witness."""

    executor: Executor
    witness: Witness
    stuck: str = ""
    unknown_vmid: frozenset[int] = frozenset()
    """Events at which no translation of L1's VMID could be held by any TLB."""


def _execute(scenario: Scenario, ipa_limit_bits: int, as_architecture: tuple[str, ...]) -> _Run:
    machine = Machine(
        ipa_limit_bits=ipa_limit_bits, logged=True, tlb_logged=True, as_architecture=as_architecture
    )
    run = _Run(Executor(scenario, "sweep", machine), Witness())
    unknown: set[int] = set()

    def look(executor: Executor) -> None:
        run.witness.look(executor)
        event = executor.position - 1
        if int(scenario.events[event]["kind"]) == AT and not run.witness.guest.holds_vmid(executor.state, 0):
            unknown.add(event)

    try:
        run.executor.run(after_event=look)
    except UndeterminedError as error:
        run.stuck = str(error)
    run.unknown_vmid = frozenset(unknown)
    return run


def show_difference(item: Difference, scenario: Scenario, ipa_limit_bits: int = 40) -> Shown:
    """Run the scenario as Linux 7.3.4 and as the architecture asks, and hold the two against each other."""
    linux = _execute(scenario, ipa_limit_bits, ())
    architecture = _execute(scenario, ipa_limit_bits, (item.name,))
    owed = {row.event: row.fields["par"] for row in read_log(architecture.executor.state) if row.name == "at"}
    return Shown(item, _answers(linux, owed), _answers(architecture, owed))


def _answers(run: _Run, owed: dict[int, int]) -> Answers:
    lines, more = [], []
    executor = run.executor
    for row in read_log(executor.state):
        if row.event >= len(executor.scenario.events):
            continue
        where = place(executor, row.event)
        if row.name == "touch":
            left = row.fields["left"]
            done = "all accesses made" if not left else f"{left} not made, ESR_EL2 {row.fields['esr']:#x}"
            lines.append(f"{where}: {done}")
        elif row.name == "at" and not row.fields["replayed"]:
            lines.append(f"{where}: PAR_EL1 {row.fields['par']:#x}")
            if row.fields["par"] != owed.get(row.event, row.fields["par"]):
                more.append(_wrong_answer(run, row, owed[row.event], where))
        elif row.name == "efault" and row.fields["ipa"]:
            lines.append(f"{where}: the host warns")
            text = (
                f"{where}: the unmap of {row.fields['ipa']:#x} is beyond the table and trips the host's WARN"
            )
            more.append(Consequence(HOST_WARNING, text, row.event))
    if run.stuck:
        lines.append(run.stuck)
        text = f"{place(executor, executor.position)}: executed again and again"
        more.append(Consequence(NO_PROGRESS, text, executor.position))
    return Answers(tuple(lines), (*run.witness.found, *more))


def _wrong_answer(run: _Run, row: Observed, owed: int, where: str) -> Consequence:
    """An AT that tells L1 something else than its tables do; whether a TLB could is said, if none can."""
    text = f"{where}: PAR_EL1 {row.fields['par']:#x}, by L1's tables {owed:#x}"
    if row.event in run.unknown_vmid:
        text += "; L2 never ran under this VMID, so that no TLB may hold a translation of it"
    return Consequence(WRONG_ANSWER, text, row.event)


def markdown_table() -> str:
    """The table of ``docs/differences.md``."""
    lines = [
        "| difference | Linux 7.3.4 | the architecture asks | consequence | seen on the rig | only read |",
        "|---|---|---|---|---|---|",
    ]
    for item in DIFFERENCES:
        asked = f"{item.architecture} ({item.rule})"
        cells = (f"`{item.name}`", item.linux, asked, item.consequence, item.seen or "-", item.read or "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
