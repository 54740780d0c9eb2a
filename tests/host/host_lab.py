"""What the host's tests share: a small machine, and carrying out plans on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from shadowmmu.compiled import U64
from shadowmmu.host import layout
from shadowmmu.host.advise import plan_advise, plan_collapse, plan_mprotect
from shadowmmu.host.fault import plan_touch
from shadowmmu.host.layout import HVA_BASE
from shadowmmu.host.remove import plan_dontneed, plan_mmap, plan_munmap
from shadowmmu.host.setup import Backing, host_arrays, host_grow, host_reserve, host_setup
from shadowmmu.host.steps import NOTIFY_AGE, NOTIFY_END, NOTIFY_START, OPS, apply_step
from shadowmmu.host.tables import translate
from shadowmmu.machine.frames import read_memory, write_memory
from shadowmmu.machine.state import (
    R_NEXT_FRAME,
    R_PAGE_SHIFT,
    R_STRIDE,
    REGISTERS,
    State,
    empty_counters,
)

PAGE = 4096
HUGE = 2 << 20
BASE = int(HVA_BASE)
PROTECTION = {"none": 0, "r": 1, "w": 2, "rw": 3}
NOTIFY = {int(NOTIFY_START): "start", int(NOTIFY_END): "end", int(NOTIFY_AGE): "age"}


def machine(memory_bytes: int, backing: Backing = "base", table_frames: int = 256) -> State:
    """A machine with nothing but the host's memory manager."""
    arrays: dict[str, Any] = {name: np.zeros(1, np.uint64) for name in State._fields}
    arrays["mem"] = np.zeros(512 * table_frames, np.uint64)
    arrays["frames"] = np.zeros((table_frames, 4), np.uint64)
    arrays["free"] = np.zeros(table_frames, np.uint64)
    for name in ("log", "mmus", "vcpus", "slots"):
        arrays[name] = np.zeros((1, 8), np.uint64)
    arrays["count"] = empty_counters()
    arrays["regs"] = np.zeros(REGISTERS, np.uint64)
    for name, shape in host_arrays(memory_bytes).items():
        arrays[name] = np.zeros(shape, np.uint64)
    state = State(**arrays)
    state.regs[R_PAGE_SHIFT] = 12
    state.regs[R_STRIDE] = 9
    state.regs[R_NEXT_FRAME] = 1
    host_setup(state, memory_bytes, backing)
    return state


class Place(NamedTuple):
    """What ``translate`` answered, as plain numbers."""

    pa: int
    size: int
    writable: bool


@dataclass
class Host:
    """A machine driven by whole operations; offsets are bytes from ``HVA_BASE``."""

    state: State
    dry: bool = False
    """Plan only: ``run`` carries nothing out."""

    def plan(self, planner: Callable[..., int], offset: int, *rest: Any) -> int:
        """Plan one operation at ``offset``: the number of rows or the negative errno."""
        if not host_reserve(self.state):
            self.state = host_grow(self.state)
        return int(planner(self.state, U64(BASE + offset), *rest))

    def rows(self, count: int) -> list[tuple[str, int, int, int]]:
        """The planned rows; addresses as offsets from ``HVA_BASE``."""
        return [readable(row) for row in self.state.plan[:count].tolist()]

    def run(self, planner: Callable[..., int], offset: int, *rest: Any) -> int | list[tuple[str, int, int]]:
        """Plan and carry out: the notifiers in order as (start/end/age, offset, offset), or the errno."""
        count = self.plan(planner, offset, *rest)
        if count < 0:
            return count
        seen = []
        for row in range(0 if self.dry else count):
            kind = NOTIFY.get(int(self.state.plan[row, 0]))
            if kind is not None:
                start, end = self.state.plan[row, 1:3].tolist()
                seen.append((kind, start - BASE, end - BASE))
            apply_step(self.state, row)
        return seen

    def touch(self, offset: int, write: bool) -> int | list[tuple[str, int, int]]:
        """Access one address."""
        return self.run(plan_touch, offset, write)

    def write(self, offset: int, size: int) -> None:
        """Write every page of a range, as the rig's ``write``."""
        for at in range(offset, offset + size, PAGE):
            assert not isinstance(self.touch(at, True), int)

    def dontneed(self, offset: int, size: int) -> int | list[tuple[str, int, int]]:
        """MADV_DONTNEED."""
        return self.run(plan_dontneed, offset, U64(size))

    def munmap(self, offset: int, size: int) -> int | list[tuple[str, int, int]]:
        """Unmap."""
        return self.run(plan_munmap, offset, U64(size))

    def mmap(self, offset: int, size: int) -> int | list[tuple[str, int, int]]:
        """Map fresh memory over what is there."""
        return self.run(plan_mmap, offset, U64(size))

    def mprotect(self, offset: int, size: int, prot: str) -> int | list[tuple[str, int, int]]:
        """Change the protection: none, r, w or rw."""
        return self.run(plan_mprotect, offset, U64(size), PROTECTION[prot])

    def advise(self, offset: int, size: int, advice: int) -> int | list[tuple[str, int, int]]:
        """Madvise of flags."""
        return self.run(plan_advise, offset, U64(size), advice)

    def collapse(self, offset: int, size: int) -> int | list[tuple[str, int, int]]:
        """MADV_COLLAPSE."""
        return self.run(plan_collapse, offset, U64(size))

    def at(self, offset: int) -> Place:
        """Where the host maps an address."""
        page = translate(self.state, U64(BASE + offset))
        return Place(int(page[0]), int(page[1]), bool(page[2]))

    def read(self, offset: int) -> int:
        """The word at an address that is mapped."""
        return int(read_memory(self.state, U64(self.at(offset).pa)))

    def store(self, offset: int, value: int) -> None:
        """Store a word at an address that is mapped."""
        write_memory(self.state, U64(self.at(offset).pa), U64(value))

    def register(self, index: int) -> int:
        """A register of the host."""
        return int(self.state.regs[index])

    @property
    def vmas(self) -> list[tuple[int, int, int, int]]:
        """The VMAs: start, end (offsets), flags, anon_vma."""
        rows = self.state.vmas[: self.register(layout.R_VMAS)].tolist()
        return [(start - BASE, end - BASE, flags, anon) for start, end, flags, anon in rows]


def readable(row: list[int]) -> tuple[str, int, int, int]:
    """A plan row with the name of its op; operands that are addresses as offsets from ``HVA_BASE``."""
    name, operands, _ = OPS[U64(row[0])]
    values = [
        value - BASE if operand in ("start", "end", "hva", "floor", "ceiling") else value
        for operand, value in zip((*operands, "", "", "")[:3], row[1:], strict=True)
    ]
    return (name, values[0], values[1], values[2])


def host(memory_bytes: int = 8 << 20, backing: Backing = "base") -> Host:
    """A host with ``memory_bytes`` of VMM memory."""
    return Host(machine(memory_bytes, backing))


def starts(seen: int | list[tuple[str, int, int]]) -> list[tuple[int, int]]:
    """The ranges of the invalidations that began."""
    assert not isinstance(seen, int), seen
    return [(start, end) for kind, start, end in seen if kind == "start"]


def well_nested(seen: int | list[tuple[str, int, int]]) -> bool:
    """Whether every invalidation that began is over, innermost first."""
    assert not isinstance(seen, int), seen
    opened: list[tuple[int, int]] = []
    for kind, start, end in seen:
        if kind == "start":
            opened.append((start, end))
        elif kind == "end" and (not opened or opened.pop() != (start, end)):
            return False
    return not opened
