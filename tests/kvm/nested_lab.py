"""A nested machine for the tests of L0: a few lines of scenario, then the arrays to look at."""

from __future__ import annotations

import numpy as np

from shadowmmu.arch.stage2 import OA_BITS, VALID
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.observe import Observed, read_log
from shadowmmu.engine.setup import Machine
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.machine.counters import counter_names
from shadowmmu.pgtable.context import M_IA_BITS, M_ROOT, M_START

NESTED = 0x8000_0000
CANONICAL = 0x4100_0000
CODE_LEAVES = 1


def script(*lines: str, start: str = "start base 0 0", mem: str = "64M") -> str:
    """A script with the usual first lines: memory, start, one root with L2's code."""
    return "\n".join([f"mem {mem}", start, "s2 new 1", "code", *lines]) + "\n"


def play(*lines: str, bits: int = 40, design: str = "sweep", **kwargs: str) -> Executor:
    """Execute ``lines`` after the usual ones; the log is on."""
    scenario = parse_scenario(script(*lines, **kwargs), "lab")
    executor = Executor(scenario, design, Machine(ipa_limit_bits=bits, logged=True))
    executor.run()
    return executor


def count(executor: Executor) -> dict[str, int]:
    """Counters by name."""
    return dict(zip(counter_names(), executor.state.count.tolist(), strict=True))


def log(executor: Executor, name: str) -> list[Observed]:
    """The rows of one kind."""
    return [row for row in read_log(executor.state) if row.name == name]


def leaves(executor: Executor, mmu: int = 1) -> dict[int, tuple[int, int, int]]:
    """Every leaf of an MMU by input address: (size, output address, descriptor). Read naively."""
    state = executor.state
    found: dict[int, tuple[int, int, int]] = {}

    def visit(table: int, level: int, base: int, entries: int) -> None:
        shift = 12 + 9 * (3 - level)
        words = state.mem[table >> 3 : (table >> 3) + entries]
        for index in np.flatnonzero(words & VALID):
            descriptor = int(words[index])
            ipa = base + (int(index) << shift)
            if level < 3 and descriptor & 2:
                visit(descriptor & int(OA_BITS), level + 1, ipa, 512)
            else:
                found[ipa] = (1 << shift, descriptor & int(OA_BITS), descriptor)

    row = state.mmus[mmu]
    level = int(row[M_START])
    visit(int(row[M_ROOT]), level, 0, 1 << (int(row[M_IA_BITS]) - 12 - 9 * (3 - level)))
    return found


def sizes(executor: Executor, mmu: int = 1) -> dict[int, int]:
    """Leaf sizes by nested IPA, L2's code page left out."""
    return {ipa: size for ipa, (size, _pa, _d) in leaves(executor, mmu).items() if ipa != 0x10000}
