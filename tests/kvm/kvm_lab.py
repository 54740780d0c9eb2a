"""What the tests of L0 and of its guests share: a scenario that can be stopped, looked at and tampered with.

Everything runs through the executor's one compiled loop; what is found is read off the arrays by hand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from shadowmmu.compiled import U64
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.observe import read_log
from shadowmmu.engine.setup import Machine
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.events.schema import MARK, Scenario
from shadowmmu.guest.layout import RAM_BASE
from shadowmmu.host.layout import HVA_BASE
from shadowmmu.kvm.layout import K_SLOTS, NO_MMU, S_BASE, S_BY_HVA, S_DIRTY_WORD, S_HVA, S_SIZE, V_HW_MMU
from shadowmmu.machine.state import DATA_BASE, R_LOG_ON, R_LOG_TOP, R_PAGE_SHIFT, R_STRIDE
from shadowmmu.pgtable.context import M_IA_BITS, M_REFCNT, M_ROOT, M_START

K, M, G = 1 << 10, 1 << 20, 1 << 30
PAGE = 4 * K
RAM = int(RAM_BASE)
TEST_BITS = 40
RES1 = 1 << 31
HA = 1 << 21
PS_48 = 5 << 16


def vtcr(t0sz: int, sl0: int, *, tg0: int = 0, ps: int = 5, ha: bool = False) -> int:
    """A value of VTCR_EL2."""
    return RES1 | t0sz | sl0 << 6 | tg0 << 14 | ps << 16 | (HA if ha else 0)


class Leaf(NamedTuple):
    """A leaf of one of L0's tables."""

    size: int
    level: int
    descriptor: int
    word: int

    @property
    def tag(self) -> int:
        """The level of L1's leaf that it came from."""
        return self.descriptor >> 55 & 3

    @property
    def prot(self) -> str:
        """Its permissions: r, w, and x if XN is 0."""
        d = self.descriptor
        return ("r" if d >> 6 & 1 else "") + ("w" if d >> 7 & 1 else "") + ("" if d >> 53 & 3 else "x")


def read_script(script: str, granule: str = "4K") -> Scenario:
    """A scenario; a line that begins with ``@1`` happens on vCPU 1 and so on."""
    plain, placed = [], {}
    for number, line in enumerate(script.splitlines(), 1):
        text = line.strip()
        if text.startswith("@"):
            placed[number], text = int(text[1 : text.index(" ")]), text[text.index(" ") + 1 :]
        plain.append(text)
    scenario = parse_scenario("\n".join(plain) + "\n", "test", granule=granule)
    events = scenario.events.copy()
    for row in events:
        row["vcpu"] = placed.get(int(row["line"]), int(row["vcpu"]))
    return replace(scenario, events=events)


class Vm:
    """A machine in the middle of a script: ``to(mark)`` runs up to a mark, ``end()`` to the end."""

    def __init__(self, script: str, design: str = "sweep", granule: str = "4K", **machine: Any) -> None:
        scenario = read_script(script, granule)
        settings = {"ipa_limit_bits": TEST_BITS, "logged": True, "granule": scenario.granule} | machine
        self.executor = Executor(scenario, design, Machine(**settings))

    @property
    def state(self) -> Any:
        """The arrays."""
        return self.executor.state

    def to(self, mark: str) -> Vm:
        """Run up to and with the line ``mark MARK``."""
        scenario = self.executor.scenario
        for index, event in enumerate(scenario.events):
            if int(event["kind"]) == MARK and scenario.label(index) == mark:
                self.executor.run(index + 1)
                return self
        raise KeyError(mark)

    def end(self) -> Vm:
        """Run what is left."""
        self.executor.run()
        return self

    def leaves(self, mmu: int) -> dict[int, Leaf]:
        """The valid leaves of an MMU by input address, found by reading its tables."""
        s = self.state
        shift, stride = int(s.regs[R_PAGE_SHIFT]), int(s.regs[R_STRIDE])
        start, root, bits = (int(s.mmus[mmu, column]) for column in (M_START, M_ROOT, M_IA_BITS))
        top = shift + stride * (3 - start)
        todo, found = [(start, root >> 3, 0, 1 << (bits - top))], {}
        for level, first, base, entries in todo:
            size = 1 << (shift + stride * (3 - level))
            content = s.mem[first : first + entries]
            for index in np.flatnonzero(content & U64(1)).tolist():
                descriptor, ipa = int(content[index]), base + index * size
                if level < 3 and descriptor & 2:
                    todo.append((level + 1, (descriptor & 0xFFFF_FFFF_F000) >> 3, ipa, 1 << stride))
                else:
                    found[ipa] = Leaf(size, level, descriptor, first + index)
        return dict(sorted(found.items()))

    def sizes(self, mmu: int = 1) -> dict[int, tuple[int, int]]:
        """Size and tag of every leaf, without L2's code page."""
        return {ipa: (x.size, x.tag) for ipa, x in self.leaves(mmu).items() if ipa != 0x1_0000}

    def source(self, mmu: int, nested_ipa: int) -> int:
        """Canonical address that the leaf at ``nested_ipa`` was filled from."""
        return int(self.state.ghost[self.leaves(mmu)[nested_ipa].word]) & ~0xFFF

    def log(self, name: str) -> list[dict[str, int]]:
        """The rows of the observation log called ``name``."""
        return [row.fields for row in read_log(self.state) if row.name == name]

    def forget_log(self) -> None:
        """Empty the log."""
        self.state.regs[R_LOG_TOP] = 0
        self.state.regs[R_LOG_ON] = 1

    def unmapped(self, mmu: int = 1) -> list[tuple[int, int]]:
        """(address, size) of the unmaps of a shadow MMU since the log was emptied."""
        return [(r["addr"], r["size"]) for r in self.log("s2range") if r["mmu"] == mmu]

    def touches(self) -> list[dict[str, int]]:
        """What L1 saw each time L2 left."""
        return self.log("touch")

    def count(self, index: int) -> int:
        """A counter."""
        return int(self.state.count[index])

    def register(self, index: int) -> int:
        """A register of the machine."""
        return int(self.state.regs[index])

    def guest_word(self, canonical_ipa: int) -> int:
        """A word of L1's memory, found through the canonical tables."""
        s = self.state
        page = canonical_ipa & ~(PAGE - 1)
        leaf = self.leaves(0).get(page) or self.leaves(0)[page & ~(2 * M - 1)]
        pa = (leaf.descriptor & 0xFFFF_FFFF_F000 & ~(leaf.size - 1)) | canonical_ipa & (leaf.size - 1)
        holder = int(s.content[(pa - int(DATA_BASE)) >> 12])
        return int(s.mem[(holder << 9) + ((pa & (PAGE - 1)) >> 3)]) if holder else 0

    def add_slot(self, base: int, size: int, offset: int, flags: int = 0) -> int:
        """A second memslot at canonical ``base`` over the VMM's memory from ``offset`` on."""
        s = self.state
        slot = int(s.regs[K_SLOTS])
        s.regs[K_SLOTS] += U64(1)
        s.slots[slot, [S_BASE, S_SIZE, S_HVA]] = base, size, int(HVA_BASE) + offset
        s.slots[slot, 3] = flags
        s.slots[slot, S_BY_HVA] = slot
        s.slots[slot, S_DIRTY_WORD] = 0
        return slot

    def references(self) -> None:
        """A9: every shadow MMU has as many references as vCPUs have it loaded."""
        loaded = self.state.vcpus[:, V_HW_MMU].tolist()
        for mmu in range(1, len(self.state.mmus)):
            assert int(self.state.mmus[mmu, M_REFCNT]) == loaded.count(mmu), f"A9: MMU {mmu}"
        assert int(NO_MMU) not in loaded


def fault_status(esr: int) -> int:
    """The fault status code of a syndrome."""
    return esr & 0x3F
