"""Two CPUs at the locks of a record, interpreted: run as a program of its own, it prints one JSON object.

Two threads take the same canonical page out of one machine. Only one runs at a time; it hands over where it
lets a lock of the record go, or finds it held. All ways to hand over, up to ``CHOICES`` of them, are tried.
mmu_lock is left out on purpose: it is what hides a lookup that is not one step with its removal.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import product
from os import environ
from types import ModuleType
from typing import Any, Final

from shadowmmu.compiled import U64
from shadowmmu.designs.containers.pool import pool_check
from shadowmmu.designs.interface import CAUSE_NOTIFIER, UNMAP
from shadowmmu.designs.own_file import named_design
from shadowmmu.engine.executor import Executor
from shadowmmu.errors import UndeterminedError
from shadowmmu.kvm.shadows import update_shadows
from shadowmmu.machine.state import State
from shadowmmu.verify.conformance import check_of
from shadowmmu.verify.review.trial import DATA, NESTED, PAGE, prepare, script

CHOICES: Final = 4
MUTATORS: Final = ("maple_store", "maple_erase", "maple_destroy", "rb_insert", "rb_erase")
SECONDS: Final = 60


class Broken(Exception):
    """What two CPUs did to a record."""


class Locks:
    """The lock of the record and mmu_lock, as the hooks see them; and who runs."""

    def __init__(self, schedule: tuple[bool, ...] = ()) -> None:
        self.schedule = list(schedule)
        self.turn = threading.Condition()
        self.runs = 0
        self.alive: set[int] = set()
        self.holder: int | None = None
        self.writers = 0
        self.freed: set[int] = set()
        self.unlocked: list[str] = []
        self.calls = 0
        self.threads: dict[int, int] = {}

    def me(self) -> int:
        """Which CPU this thread is; 0 when there is only one."""
        return self.threads.get(threading.get_ident(), 0)

    def hand_over(self) -> None:
        """Let the other CPU run until it hands over or ends."""
        me = self.me()
        with self.turn:
            others = self.alive - {me}
            if not others:
                return
            self.runs = min(others)
            self.turn.notify_all()
            self.turn.wait_for(lambda: self.runs == me or not self.alive - {me}, timeout=SECONDS)

    def lock(self, *_: Any) -> None:
        """tree_lock."""
        while self.holder not in (None, self.me()):
            self.hand_over()
        self.holder = self.me()

    def unlock(self, *_: Any) -> None:
        """tree_unlock: a place to hand over."""
        self.holder = None
        if self.schedule and self.schedule.pop(0):
            self.hand_over()

    def write_lock(self, *_: Any) -> None:
        """mmu_lock for write."""
        self.writers += 1

    def write_unlock(self, *_: Any) -> None:
        """mmu_lock released."""
        self.writers -= 1


def hooked(locks: Locks) -> Callable[[], None]:
    """Put ``locks`` where the kernels call; the way back. Works on interpreted kernels only."""
    before: list[tuple[ModuleType, str, Any]] = []

    def put(module: ModuleType, name: str, new: Any) -> None:
        before.append((module, name, getattr(module, name)))
        setattr(module, name, new)

    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith(("shadowmmu.designs", "shadowmmu.kvm", "shadowmmu_own_")):
            continue
        for name, hook in (
            ("tree_lock", locks.lock),
            ("tree_unlock", locks.unlock),
            ("mmu_lock_write", locks.write_lock),
            ("mmu_unlock_write", locks.write_unlock),
        ):
            if hasattr(module, name):
                put(module, name, hook)
        if hasattr(module, "node_free") and not module_name.endswith(".pool"):
            put(module, "node_free", _watched_free(locks, module.node_free))
            put(module, "node_alloc", _watched_alloc(locks, module.node_alloc))
        if ".containers." not in module_name:
            for name in MUTATORS:
                if hasattr(module, name):
                    put(module, name, _guarded(locks, name, getattr(module, name)))

    def restore() -> None:
        for module, name, old in reversed(before):
            setattr(module, name, old)

    return restore


def _watched_free(locks: Locks, free: Callable[..., Any]) -> Callable[..., Any]:
    def watched(words: Any, size_class: Any, node: Any) -> None:
        if int(node) in locks.freed:
            raise Broken(f"CPU {locks.me()} frees node {int(node)}, which is free already")
        locks.freed.add(int(node))
        free(words, size_class, node)

    return watched


def _watched_alloc(locks: Locks, allocate: Callable[..., Any]) -> Callable[..., Any]:
    def watched(words: Any, size_class: Any) -> Any:
        node = allocate(words, size_class)
        locks.freed.discard(int(node))
        return node

    return watched


def _guarded(locks: Locks, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*arguments: Any) -> Any:
        locks.calls += 1
        if locks.holder is None and not locks.writers:
            locks.unlocked.append(name)
        return call(*arguments)

    return guarded


def _copy(state: State) -> State:
    return State(**{name: array.copy() for name, array in state._asdict().items()})


def race(design: str, state: State, schedule: tuple[bool, ...]) -> str:
    """Two CPUs unmap one page under one schedule; what broke, or nothing."""
    locks = Locks(schedule)
    found: list[str] = []
    restore = hooked(locks)

    def unmap(cpu: int) -> None:
        with locks.turn:
            locks.threads[threading.get_ident()] = cpu
            locks.turn.wait_for(lambda: locks.runs == cpu, timeout=SECONDS)
        try:
            update_shadows(state, U64(DATA), U64(DATA + PAGE), False, CAUSE_NOTIFIER, UNMAP)
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}" if not isinstance(error, Broken) else str(error))
        finally:
            with locks.turn:
                locks.alive.discard(cpu)
                locks.holder = None if locks.holder == cpu else locks.holder
                locks.runs = min(locks.alive, default=0)
                locks.turn.notify_all()

    locks.alive, locks.runs = {1, 2}, 1
    threads = [threading.Thread(target=unmap, args=(cpu,), daemon=True) for cpu in (1, 2)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
    finally:
        restore()
    if any(thread.is_alive() for thread in threads):
        return "a CPU does not come to an end"
    return found[0] if found else unsound(design, state)


def unsound(design: str, state: State) -> str:
    """What the design's own check, or the accounts of its pool, say of a record; nothing if it is sound."""
    try:
        own_check = check_of(design)
        if own_check is not None:
            own_check(state)
        else:
            pool_check(state.rmap)
    except AssertionError as error:
        return str(error)
    return ""


def races(design: str) -> dict[str, Any]:
    """Every schedule of two CPUs that unmap one page: how many, and the first that breaks the record."""
    text = script(f"map {NESTED:#x} {DATA:#x} 24k 3 rw\ntouch w {NESTED:#x} 4096 6", f"dontneed {DATA:#x} 4k")
    trial = prepare(design, text)
    trial.executor.run(trial.last)
    tried = 0
    for schedule in product((True, False), repeat=CHOICES):
        tried += 1
        broken = race(design, _copy(trial.executor.state), schedule)
        if broken:
            names = " ".join("hands over" if over else "goes on" for over in schedule)
            return {"schedules": tried, "broken": broken, "schedule": names}
    return {"schedules": tried, "broken": "", "schedule": ""}


def unguarded(design: str) -> dict[str, Any]:
    """Calls that change a container, and which of them were made without any lock held."""
    locks = Locks()
    restore = hooked(locks)
    try:
        text = script(
            f"map {NESTED:#x} {DATA:#x} 24k 3 rw\ntouch w {NESTED:#x} 4096 6",
            f"map {NESTED + 0x20_0000:#x} {DATA:#x} 4k 3 rw\ntouch w {NESTED + 0x20_0000:#x}",
            f"tlbi 0 {NESTED + PAGE >> 12:#x}\ndontneed {DATA:#x} 4k\ntouch w {NESTED:#x} 4096 6\ntlbi 4",
            f"touch w {NESTED:#x} 4096 6\ns2 new 2\ncode\ntouch r 0x10000\ns2 new 3\ncode\ntouch r 0x10000",
        )
        executor: Executor = prepare(design, text).executor
        executor.run()
    finally:
        restore()
    return {"calls": locks.calls, "unlocked": sorted(set(locks.unlocked))}


def observed(designs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What ``races`` and ``unguarded`` find for each design, by an interpreted process of its own.

    ``designs`` are names of the catalogue and files. Raises UndeterminedError when that process fails.
    """
    command = [sys.executable, "-m", "shadowmmu.verify.review.interleave", *designs]
    ended = subprocess.run(
        command, env={**environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        said = ended.stderr.strip().rpartition("\n")[2]
        raise UndeterminedError(f"the interpreted process ended with {ended.returncode}: {said}")
    found: dict[str, dict[str, Any]] = json.loads(ended.stdout)
    return found


def main() -> None:
    """The program: names or files of designs on the command line."""
    found = {}
    for given in sys.argv[1:]:
        name = named_design(given)
        found[name] = {"race": races(name), "guard": unguarded(name)}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
