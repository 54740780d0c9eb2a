"""The host's plans against the notifiers that the real Linux 7.3.4 sent.

A recorded run's script is replayed: the VMM's own commands go through the plans, and each stage-2 fault
in the trace that was resolved faults its host page in. Every command must begin exactly the
invalidations that the kernel's trace shows for it, in its order, all of them blockable.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from host_lab import HUGE, PAGE, Host, host, starts, well_nested

from shadowmmu.compiled import U64
from shadowmmu.formats.answer import Answer, Step
from shadowmmu.formats.ftrace import MARK, TraceEvent
from shadowmmu.formats.runs import KernelRun, bundled_runs
from shadowmmu.host.layout import EFAULT, MADV_HUGEPAGE, MADV_MERGEABLE, MADV_NOHUGEPAGE
from shadowmmu.host.reclaim import plan_pageout

RAM = 0x4000_0000
MMIO = 0x0900_0000
CODE_IPA, CODE_PA, MAILBOX_PA = 0x10000, RAM + 0x50000, RAM + 0x60000
BINARY_BYTES = 0x8000
DATA_ABORT = 0x24
WRITE_NOT_READ = 1 << 6
PROT_WRITE = 4
L1_COMMANDS = {"s2", "map", "unmap", "code", "touch", "tlbi", "vm", "poke", "peek", "nop"}
ADVICE = {"hugepage": MADV_HUGEPAGE, "nohugepage": MADV_NOHUGEPAGE, "mergeable": MADV_MERGEABLE}
WATCHED = {"kvm_guest_fault", "walk_nested", "s2map", "s2relax", "unmap_gfn", MARK}
NESTED_BITS = 39
"""Input size of L1's guest stage 2; the kernel's walk drops higher bits (suspicion/nested-ipa-above-t0sz)."""


def number(text: str) -> int:
    """A number of the script."""
    shift = {"k": 10, "M": 20, "G": 30}.get(text[-1], 0)
    return int(text[:-1] if shift else text, 0) << shift


@dataclass
class GuestTable:
    """What L1 mapped in one guest stage 2: the newest mapping of an address counts."""

    ranges: list[tuple[int, int, int | None, int]] = field(default_factory=list)

    def canonical(self, nested_ipa: int) -> int | None:
        """The canonical address, None if nothing maps it."""
        nested_ipa &= (1 << NESTED_BITS) - 1
        for base, size, target, window in reversed(self.ranges):
            if base <= nested_ipa < base + size:
                return None if target is None else target + (nested_ipa - base) % window
        return None


@dataclass
class Replay:
    """One run under way."""

    lab: Host
    events: tuple[TraceEvent, ...]
    at: int = 0
    root: int = 0
    tables: dict[int, GuestTable] = field(default_factory=dict)
    compared: int = 0
    faults: int = 0

    def begun(self, count: int) -> list[tuple[int, int]]:
        """The next ``count`` invalidations that the kernel began before the next fault or marker.

        One too many is found by whoever reads the next event.
        """
        seen: list[tuple[int, int]] = []
        while len(seen) < count and self.events[self.at].name not in ("kvm_guest_fault", MARK):
            event = self.events[self.at]
            if event.name == "unmap_gfn":
                assert event.fields["mayblock"] == 1
                seen.append((event.fields["start"] * PAGE - RAM, event.fields["end"] * PAGE - RAM))
            self.at += 1
        return seen

    def compare(self, what: str, seen: int | list[tuple[str, int, int]]) -> None:
        """The plan that was carried out against the kernel's next invalidations."""
        assert well_nested(seen), what
        expected = starts(seen)
        assert expected == self.begun(len(expected)), what
        self.compared += len(expected)

    def mark(self, text: str) -> None:
        """The next event is this marker."""
        event = self.events[self.at]
        assert (event.name, event.text) == (MARK, text), event
        self.at += 1

    def until_mmio(self) -> None:
        """The faults of one L1 command, which ends with a store to the VMM's doorbell."""
        while self.at < len(self.events):
            fault = self.events[self.at]
            self.at += 1
            if fault.name != "kvm_guest_fault":
                assert fault.name not in (MARK, "unmap_gfn"), fault
                continue
            if fault.fields["ipa"] & ~0xFFF == MMIO and not self.is_nested():
                if fault.fields["ipa"] == MMIO:
                    return
                continue
            self.fault(fault)

    def rest_of_fault(self) -> tuple[TraceEvent, ...]:
        """The events up to the next fault or marker; the cursor stays."""
        after = self.at
        while after < len(self.events) and self.events[after].name not in ("kvm_guest_fault", MARK):
            after += 1
        return self.events[self.at : after]

    def is_nested(self) -> bool:
        """Whether the fault just passed was walked through L1's table."""
        return any(event.name == "walk_nested" for event in self.rest_of_fault())

    def fault(self, fault: TraceEvent) -> None:
        """One stage-2 fault: its host page is faulted in if the kernel got that far."""
        rest = self.rest_of_fault()
        ipa = fault.fields["ipa"]
        nested = self.is_nested()
        canonical = self.tables[self.root].canonical(ipa) if nested else ipa
        failed = self.events[self.at + len(rest)] if self.at + len(rest) < len(self.events) else None
        refused = failed is not None and failed.name == MARK and failed.text.startswith("efault")
        filled = [event for event in rest if event.name in ("s2map", "s2relax")]
        if not (filled or refused or any(event.name == "unmap_gfn" for event in rest)):
            self.at += len(rest)
            return
        assert canonical is not None, fault
        write = fault.fields["hsr"] >> 26 == DATA_ABORT and fault.fields["hsr"] & WRITE_NOT_READ != 0
        self.faults += 1
        seen = self.lab.touch(canonical - RAM, write)
        if refused:
            assert seen == -EFAULT, fault
            self.at += len(rest)
            self.mark("efault: mprotect all rw")
            whole = max(end for _, end, _, _ in self.lab.vmas)
            self.compare("efault", self.lab.mprotect(0, whole, "rw"))
            return
        self.compare(str(fault), seen)
        page = self.lab.at(canonical - RAM)
        for event in filled:
            if event.fields["prot"] & PROT_WRITE:
                assert page.writable, event
            if event.fields.get("size") == HUGE:
                assert page.size == HUGE, event

    def start(self) -> None:
        """The VMM loads L1's program and runs it to its first command, then asks for its registers."""
        self.lab.write(0, BINARY_BYTES)
        self.until_mmio()
        self.lab.write(MAILBOX_PA - RAM, PAGE)
        self.until_mmio()

    def host_command(self, name: str, words: list[str]) -> None:
        """One of the VMM's commands on its own memory."""
        offset, size = number(words[0]) - RAM, number(words[1])
        lab = self.lab
        if name in ("write", "ret"):
            for at in range(offset, offset + size, PAGE):
                self.compare(f"{name} {at:#x}", lab.touch(at, True))
        elif name in ADVICE:
            self.compare(name, lab.advise(offset, size, ADVICE[name]))
        elif name == "mprotect":
            self.compare(name, lab.mprotect(offset, size, words[2]))
        elif name == "pageout":
            self.compare(name, lab.run(plan_pageout, offset, U64(size)))
        else:
            self.compare(f"{name} {offset:#x}", getattr(lab, name)(offset, size))

    def l1_command(self, name: str, words: list[str], step: Step) -> None:
        """One of L1's commands: what it does to L1's tables, and the faults it takes."""
        if name == "s2":
            self.root = step.printed("s2")[0].fields["root"]
            self.tables.setdefault(self.root, GuestTable())
        table = self.tables.setdefault(self.root, GuestTable())
        if name == "map":
            nested, canonical, size = (number(word) for word in words[:3])
            window = number(words[5]) if len(words) > 5 else size
            table.ranges.append((nested, size, canonical, window))
        elif name == "unmap":
            table.ranges.append((number(words[0]), number(words[1]), None, 1))
        elif name == "code":
            table.ranges.append((number(words[0]) if words else CODE_IPA, PAGE, CODE_PA, PAGE))
        self.until_mmio()

    def pagemap(self, step: Step) -> None:
        """The kernel's own view of the pages: present or not, and which share a frame (the zero page)."""
        real: dict[int, set[int]] = {}
        ours: dict[int, set[int]] = {}
        for canonical, pa in step.frames.items():
            page = self.lab.at(canonical - RAM)
            assert (pa is None) == (page.size == 0), hex(canonical)
            if pa is not None:
                real.setdefault(pa, set()).add(canonical)
                ours.setdefault(page.pa, set()).add(canonical)
        assert sorted(map(sorted, real.values())) == sorted(map(sorted, ours.values()))

    def step(self, step: Step) -> None:
        """One command of the script."""
        name, *words = step.command.split()
        if name == "start":
            self.start()
        elif name == "mark":
            self.mark(step.command.removeprefix("mark "))
        elif name in L1_COMMANDS:
            self.l1_command(name, words, step)
        elif name == "pagemap":
            self.pagemap(step)
        elif hasattr(Host, name) or name in ADVICE or name in ("ret", "pageout"):
            self.host_command(name, words)


def replay(answer: Answer) -> Replay:
    """Replay a whole run."""
    memory, backing = 64 << 20, "base"
    for step in answer.steps:
        words = step.command.split()
        if words[0] == "mem":
            memory = number(words[1])
        if words[0] == "start":
            backing = words[1]
    events = tuple(event for event in answer.events if event.name in WATCHED)
    run = Replay(host(memory, backing), events)  # type: ignore[arg-type]
    for step in answer.steps:
        run.step(step)
    assert run.at == len(run.events)
    return run


RUNS = [run for run in bundled_runs() if run.name.split("/")[0] in ("scenario", "random", "suspicion")]


@pytest.mark.parametrize("recorded", RUNS, ids=lambda recorded: recorded.name)
def test_plans_send_the_notifiers_that_the_kernel_sent(recorded: KernelRun) -> None:
    """All host actions of a recorded run."""
    answer = recorded.answer()
    run = replay(answer)
    assert run.compared == sum(event.name == "unmap_gfn" for event in answer.events)


def test_the_comparison_is_not_empty() -> None:
    """What the random runs make the host do."""
    runs = [replay(run.answer()) for run in RUNS if run.name.startswith("random/")]
    assert sum(run.compared for run in runs) == 481
    assert sum(run.faults for run in runs) > 2500
