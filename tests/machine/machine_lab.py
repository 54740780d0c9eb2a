"""What the machine's tests share: a small machine, and one compiled entry to all of its calls."""

from __future__ import annotations

import ast
import inspect
from enum import IntEnum
from types import ModuleType
from typing import Any

import numpy as np

from shadowmmu.compiled import U64, kernel
from shadowmmu.machine.calls import (
    allocation_fails,
    cond_resched_lock,
    mmu_lock_read,
    mmu_lock_write,
    mmu_unlock_read,
    mmu_unlock_write,
    tree_lock,
    tree_unlock,
    work_done,
)
from shadowmmu.machine.frames import (
    drop_content,
    frame_of,
    frames_left,
    give_frame,
    is_table,
    own_table,
    owner_level,
    owner_mmu,
    read_memory,
    take_adjacent_frames,
    take_frame,
    write_memory,
)
from shadowmmu.machine.ghost import ghost_begin, ghost_birth, ghost_death, ghost_end, grave_rehash
from shadowmmu.machine.log import observe
from shadowmmu.machine.state import (
    R_GHOST_ON,
    R_NEXT_FRAME,
    R_PAGE_SHIFT,
    R_STRIDE,
    REGISTERS,
    State,
    empty_counters,
)


class Op(IntEnum):
    """The calls of the machine, as the tests' one kernel knows them."""

    FRAMES_LEFT = 0
    TAKE = 1
    TAKE_ADJACENT = 2
    GIVE = 3
    OWN = 4
    OWNER_MMU = 5
    OWNER_LEVEL = 6
    IS_TABLE = 7
    FRAME_OF = 8
    READ = 9
    WRITE = 10
    DROP = 11
    LOCK_READ = 12
    UNLOCK_READ = 13
    LOCK_WRITE = 14
    UNLOCK_WRITE = 15
    RESCHED = 16
    TREE_LOCK = 17
    TREE_UNLOCK = 18
    WORK_DONE = 19
    ALLOCATION_FAILS = 20
    OBSERVE = 21
    GHOST_BEGIN = 22
    GHOST_END = 23
    BIRTH = 24
    DEATH = 25
    REHASH = 26


@kernel
def _frames(s: Any, op: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    if op == 0:
        return U64(frames_left(s))
    if op == 1:
        return take_frame(s)
    if op == 2:
        return take_adjacent_frames(s, a)
    if op == 3:
        give_frame(s, U64(a))
    elif op == 4:
        own_table(s, U64(a), b, c, U64(d), U64(e))
    elif op == 5:
        return U64(owner_mmu(s, U64(a)))
    elif op == 6:
        return U64(owner_level(s, U64(a)))
    elif op == 7:
        return U64(is_table(s, U64(a)))
    elif op == 8:
        return frame_of(s, U64(a))
    elif op == 9:
        return read_memory(s, U64(a))
    elif op == 10:
        write_memory(s, U64(a), U64(b))
    elif op == 11:
        drop_content(s, U64(a))
    return U64(0)


@kernel
def _calls(s: Any, op: Any, a: Any) -> Any:
    if op == 12:
        mmu_lock_read(s)
    elif op == 13:
        mmu_unlock_read(s)
    elif op == 14:
        mmu_lock_write(s)
    elif op == 15:
        mmu_unlock_write(s)
    elif op == 16:
        cond_resched_lock(s)
    elif op == 17:
        tree_lock(s)
    elif op == 18:
        tree_unlock(s)
    elif op == 19:
        return U64(work_done(s))
    elif op == 20:
        return U64(allocation_fails(s, a))
    return U64(0)


@kernel
def _call(s: Any, op: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    if op < 12:
        return _frames(s, op, a, b, c, d, e)
    if op < 21:
        return _calls(s, op, a)
    if op == 21:
        observe(s, a, U64(b), U64(c), U64(d), U64(e), U64(e) + U64(1))
    elif op == 22:
        ghost_begin(s, U64(a), U64(b))
    elif op == 23:
        ghost_end(s)
    elif op == 24:
        ghost_birth(s, a, U64(b), U64(c), U64(d), U64(e))
    elif op == 25:
        ghost_death(s, a, U64(b), U64(c), U64(d))
    elif op == 26:
        grave_rehash(s.graves, s.rmap)
    return U64(0)


def call(state: State, op: Op, *operands: int) -> int:
    """One call of the machine."""
    padded = (*operands, 0, 0, 0, 0, 0)[:5]
    return int(_call(state, int(op), *padded))


def machine(frames: int = 32, page_shift: int = 12, data_pages: int = 16, judged: bool = True) -> State:
    """A machine with ``frames`` table frames and nothing in it; frame 0 is never used."""
    words = 1 << (page_shift - 3)
    arrays: dict[str, Any] = {name: np.zeros(1, np.uint64) for name in State._fields}
    for name in ("mmus", "vcpus", "slots", "vmas", "plan"):
        arrays[name] = np.zeros((1, 8), np.uint64)
    arrays |= {
        "mem": np.zeros(frames * words, np.uint64),
        "frames": np.zeros((frames, 4), np.uint64),
        "free": np.zeros(frames, np.uint64),
        "content": np.zeros(data_pages, np.uint64),
        "regs": np.zeros(REGISTERS, np.uint64),
        "count": empty_counters(),
        "log": np.zeros((4, 8), np.uint64),
        "side": np.zeros(frames * words, np.uint64),
        "ghost": np.zeros(frames * words if judged else 1, np.uint64),
        "graves": np.zeros(64 if judged else 1, np.uint64),
        "rmap": np.zeros(256, np.uint64),
    }
    state = State(**arrays)
    state.regs[R_PAGE_SHIFT] = page_shift
    state.regs[R_STRIDE] = page_shift - 3
    state.regs[R_NEXT_FRAME] = 1
    state.regs[R_GHOST_ON] = judged
    return state


def numbers(module: ModuleType) -> dict[str, int]:
    """Integer constants that a module itself declares, by name."""
    body = ast.parse(inspect.getsource(module)).body
    targets = [node.target for node in body if isinstance(node, ast.AnnAssign)]
    declared = {target.id: getattr(module, target.id) for target in targets if isinstance(target, ast.Name)}
    return {name: value for name, value in declared.items() if type(value) is int}
