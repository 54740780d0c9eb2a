"""What the designs' tests share: scripts, machines driven through the executor, and their shadow leaves."""

from __future__ import annotations

from collections.abc import Callable

from shadowmmu.compiled import U64
from shadowmmu.designs.reverse_table_check import ShadowLeaf, shadow_leaves
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.machine.counters import counter_names
from shadowmmu.machine.state import R_FAIL_ALLOCATION
from shadowmmu.verify.judge import Judge, Violation

DATA = 0x4100_0000
NESTED = 0x8000_0000
PAGE = 4096
BLOCK = 2 << 20
PAGES_16 = f"map {NESTED:#x} {DATA:#x} 64k 3 rw\ntouch w {NESTED:#x} 4096 16"
COUNTER = {name: index for index, name in enumerate(counter_names())}


def script(*lines: str, backing: str = "base", memory: str = "64M") -> str:
    """A machine whose data the host has written, L1 with a root of VMID 1, and the given lines."""
    start = f"mem {memory}\nstart {backing} 0 0\ns2 new 1\ncode\nwrite {DATA:#x} 4M"
    return "\n".join((start, *lines)) + "\n"


def executor(design: str, text: str, *, fail: int = 0, bits: int = 40, **machine: bool) -> Executor:
    """A machine that has not run yet."""
    made = Executor(parse_scenario(text, "lab"), design, Machine(ipa_limit_bits=bits, **machine))
    made.state.regs[R_FAIL_ALLOCATION] = U64(fail)
    return made


def run(design: str, text: str, *, fail: int = 0, **machine: bool) -> Executor:
    """A machine that has run the whole script."""
    made = executor(design, text, fail=fail, **machine)
    made.run()
    return made


def judged(design: str, text: str, *, fail: int = 0) -> tuple[Executor, Violation | None]:
    """The same, with what the judge found."""
    made, judge = executor(design, text, fail=fail), Judge()
    made.run(after_event=lambda running: judge.look(running, running.position - 1))
    return made, judge.worst


def every_event(design: str, text: str, look: Callable[[Executor], object], **machine: bool) -> Executor:
    """Run a script and ``look`` after every event."""
    made = executor(design, text, **machine)
    made.run(after_event=look)
    return made


def count(made: Executor, name: str) -> int:
    """A counter by its public name."""
    return int(made.state.count[COUNTER[name]])


def cost(made: Executor, event: int, *names: str) -> list[int]:
    """Run up to ``event``, then it alone: how much it adds to each counter."""
    made.run(event)
    before = [count(made, name) for name in names]
    made.run(event + 1)
    return [count(made, name) - old for name, old in zip(names, before, strict=True)]


def leaf_of(made: Executor, nested_ipa: int) -> ShadowLeaf | None:
    """The leaf over a nested IPA in any shadow MMU."""
    for leaf in shadow_leaves(made.state):
        if leaf.nested_ipa <= nested_ipa < leaf.nested_ipa + leaf.size:
            return leaf
    return None


def last_event(made: Executor) -> int:
    """Index of the last event."""
    return len(made.scenario.events) - 1
