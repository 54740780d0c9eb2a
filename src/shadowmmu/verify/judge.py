"""The judge: when to look, what to say of what was found.

``Judge.look`` runs the rules on the machine as it stands after an event. The first violation of each kind
is kept; a stale leaf outweighs an incomplete record, which is a stale leaf waiting for its notifier.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shadowmmu.arch.fault import NONE, Fault
from shadowmmu.arch.stage2 import OA_BITS, STAGE2_LEAF
from shadowmmu.compiled import U64
from shadowmmu.engine.executor import Executor
from shadowmmu.events.schema import (
    CLEARLOG,
    DONTNEED,
    DUMP,
    GAP,
    HARVEST,
    HOLD,
    HOST_WRITE,
    LOG,
    MEMSLOT,
    PUNCH,
    RELEASE,
    SLOT,
    TLBI,
    TLBI_EL2,
    Scenario,
)
from shadowmmu.events.script import format_event
from shadowmmu.host.geometry import page_size
from shadowmmu.kvm.slots import NO_SLOT
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import M_ENABLED, M_REFCNT, M_VTTBR
from shadowmmu.verify.pool_rules import judge_pool
from shadowmmu.verify.rules import (
    ALL_RULES,
    HOLDS,
    NOT_COVERED,
    RULES,
    RUNS_UNWIPED,
    STALE_LEAF,
    STALE_VNCR,
    TWO_TENANCIES,
    WRONG_REFERENCES,
    Finding,
    address_chain,
    judge_leaves,
    judge_tables,
    judge_tlbi,
)
from shadowmmu.verify.vncr import NO_VCPU, judge_vncr, vncr_lines

POOL_RULES = (TWO_TENANCIES, WRONG_REFERENCES, RUNS_UNWIPED)


@dataclass(frozen=True)
class Violation:
    """One broken rule: which, after which event, and the chain of addresses that shows it."""

    rule: str
    meaning: str
    event: int
    lines: list[str]

    @property
    def summary(self) -> str:
        """One line."""
        return self.lines[0]


@dataclass
class Judge:
    """Looks at a machine after chosen events; keeps the first violation of every rule."""

    compose: bool = True
    found: dict[int, Violation] = field(default_factory=dict)
    looks: int = 0
    awaiting_tlbi: int = 0
    """Leaves that differed from L1's table at the last look: legal until L1 invalidates them."""

    def look(self, executor: Executor, event: int) -> None:
        """Check every rule after ``event``. O(leaves + words of tables)."""
        self.looks += 1
        state = executor.state
        checks = ALL_RULES
        for rule in self.found:
            checks &= ~(1 << rule)
        finding = judge_leaves(state, checks, self.compose)
        while finding.rule != HOLDS:
            self._note(executor, event, finding)
            checks &= ~(1 << int(finding.rule))
            finding = judge_leaves(state, checks, self.compose)
        self.awaiting_tlbi = int(finding.awaiting)
        finding = judge_tables(state, checks)
        while finding.rule != HOLDS:
            self._note(executor, event, finding)
            checks &= ~(1 << int(finding.rule))
            finding = judge_tables(state, checks)
        finding = judge_pool(state, checks)
        while finding.rule != HOLDS:
            self._note(executor, event, finding)
            checks &= ~(1 << int(finding.rule))
            finding = judge_pool(state, checks)
        self._note(executor, event, survivor(executor, event))
        self._note_vncr(executor, event)

    def look_inside(self, executor: Executor) -> None:
        """``look`` in the middle of the event that is under way: what the host took just now is gone."""
        self.look(executor, executor.position)

    def _note_vncr(self, executor: Executor, event: int) -> None:
        stale = judge_vncr(executor.state)
        if stale.vcpu != NO_VCPU and STALE_VNCR not in self.found:
            name, meaning = RULES[STALE_VNCR]
            finding = Finding(STALE_VNCR, 0, U64(0), U64(0), U64(0), U64(0), 0)
            lines = describe(executor, event, finding) + vncr_lines(executor.state, stale)
            self.found[STALE_VNCR] = Violation(name, meaning, event, lines)

    def _note(self, executor: Executor, event: int, finding: Finding | None) -> None:
        if finding is None:
            return
        rule = int(finding.rule)
        if rule != HOLDS and rule not in self.found:
            name, meaning = RULES[rule]
            lines = describe(executor, event, finding)
            self.found[rule] = Violation(name, meaning, event, lines)

    @property
    def worst(self) -> Violation | None:
        """What decides the verdict: any other rule before an incomplete record."""
        for rule in sorted(self.found, key=lambda r: (r == NOT_COVERED, r)):
            return self.found[rule]
        return None


def survivor(executor: Executor, event: int) -> Finding | None:
    """What rule A7 finds right after a TLBI of L1; None after any other event.

    Nor after one in whose gap L2 ran: what that filled behind the sweep is from L1's table of now.
    """
    row = executor.scenario.events[event]
    if int(row["kind"]) != TLBI or gap_armed(executor.scenario, event):
        return None
    return judge_tlbi(executor.state, int(row["vcpu"]), int(row["a"]), U64(row["b"]))


def gap_armed(scenario: Scenario, event: int) -> bool:
    """Whether a GAP waits for the TLBI that ``event`` is. O(events since the TLBI before)."""
    kinds = scenario.events["kind"]
    for before in range(event - 1, -1, -1):
        if kinds[before] in (GAP, TLBI):
            return bool(kinds[before] == GAP)
    return False


def describe(executor: Executor, event: int, finding: Finding) -> list[str]:
    """What was found, ready to print: the rule, the event, the leaf, the chain of addresses."""
    name, meaning = RULES[int(finding.rule)]
    scenario = executor.scenario
    lines = [f"{name}: {meaning}", f"  event  {scenario.where(event)}"]
    if not scenario.events[event]["line"]:
        lines.append(f"         {format_event(scenario, event)}")
    if int(finding.rule) in POOL_RULES:
        references = int(executor.state.mmus[int(finding.mmu), M_REFCNT])
        return [*lines, f"  pool   {whose(executor.state, int(finding.mmu))}, {references} references"]
    if not int(finding.word):
        return lines
    if not int(finding.size):
        return [*lines, f"  table  descriptors from word {int(finding.word):#x}"]
    return lines + leaf_lines(executor.state, finding) + chain_lines(executor.state, finding)


def whose(state: State, mmu: int) -> str:
    """A shadow MMU by its file's name and its tenant."""
    row = state.mmus[mmu]
    return f"nested_mmu{mmu - 1} (VTTBR {int(row[M_VTTBR]):#018x})"


def leaf_lines(state: State, finding: Finding) -> list[str]:
    """The shadow leaf: where it stands and what it says."""
    mmu = int(finding.mmu)
    descriptor = int(state.mem[finding.word])
    pa = descriptor & int(OA_BITS) & ~(int(finding.size) - 1)
    size = size_text(int(finding.size))
    fields = STAGE2_LEAF.describe(descriptor & ~int(OA_BITS))
    return [
        f"  leaf   {whose(state, mmu)} nested IPA {int(finding.nested_ipa):#x}, {size}, PA {pa:#x}",
        f"         descriptor {descriptor:#018x} at word {int(finding.word):#x}: {fields}",
    ]


def disagreeing_page(state: State, finding: Finding) -> int:
    """Offset in the leaf of the first page that the host no longer maps to the leaf's frame; 0 if none."""
    size = int(finding.size)
    pa = int(state.mem[finding.word]) & int(OA_BITS) & ~(size - 1)
    for offset in range(0, size, int(page_size(state))):
        canonical_ipa = U64(int(finding.canonical_ipa) + offset)
        chain = address_chain(state, int(finding.mmu), U64(finding.nested_ipa), canonical_ipa)
        if not int(chain.size) or int(chain.pa) != pa + offset:
            return offset
    return 0


def chain_lines(state: State, finding: Finding) -> list[str]:
    """Nested IPA, L1's table now, canonical IPA at fill, host address, host frame now."""
    offset = disagreeing_page(state, finding) if finding.rule == STALE_LEAF else 0
    nested_ipa = int(finding.nested_ipa) + offset
    canonical_ipa = int(finding.canonical_ipa) + offset
    chain = address_chain(state, int(finding.mmu), U64(nested_ipa), U64(canonical_ipa))
    lines = [f"  chain  nested IPA {nested_ipa:#x}, filled from canonical IPA {canonical_ipa:#x}"]
    if not state.mmus[int(finding.mmu), M_ENABLED]:
        lines.append("  L1     stage 2 off: nested IPA is canonical IPA")
    elif chain.fault == NONE:
        lines.append(f"  L1     guest stage 2 sends it to {int(chain.output):#x} now, level {chain.level}")
    else:
        lines.append(f"  L1     guest stage 2 has it no more: {Fault(int(chain.fault), int(chain.level))}")
    if chain.slot == NO_SLOT:
        return [*lines, "  host   no memslot holds it any more"]
    where = f"  host   user address {int(chain.hva):#x}"
    if not int(chain.size):
        return [*lines, f"{where} maps nothing"]
    access = "writable" if chain.writable else "read-only"
    return [*lines, f"{where} maps PA {int(chain.pa):#x} ({size_text(int(chain.size))}, {access})"]


def size_text(size: int) -> str:
    """4K, 2M, 1G."""
    for shift, unit in ((30, "G"), (20, "M"), (10, "K")):
        if size >= 1 << shift and not size & ((1 << shift) - 1):
            return f"{size >> shift}{unit}"
    return str(size)


def judge_points(executor: Executor, mode: str) -> list[int]:
    """Events after which to look: ``always`` all of them, ``notifiers`` those that may unmap, ``dumps``.

    The last event is always among them, unless ``mode`` is ``never``.
    """
    kinds = executor.scenario.events["kind"].tolist()
    if mode == "never" or not kinds:
        return []
    if mode == "always":
        return list(range(len(kinds)))
    if mode == "dumps":
        chosen = [i for i, kind in enumerate(kinds) if kind == DUMP]
    else:
        host = set(range(DONTNEED, PUNCH + 1)) - {HOST_WRITE}
        wanted = host | {TLBI, SLOT, LOG, MEMSLOT, CLEARLOG, HARVEST, HOLD, RELEASE, TLBI_EL2}
        chosen = [i for i, kind in enumerate(kinds) if kind in wanted]
    if not chosen or chosen[-1] != len(kinds) - 1:
        chosen.append(len(kinds) - 1)
    return chosen
