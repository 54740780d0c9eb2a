"""Sweeps: the points of a grid that are not stored yet, on this machine's processes or on a Dask cluster.

Each result is stored when it comes, so a sweep that is stopped loses at most the points under way. A point
that the machine or the workload refuses, or that does not fit memory, is told and the others go on.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from shadowmmu.errors import InputError, UndeterminedError
from shadowmmu.lab.point import Point, Row, code_version, run_point
from shadowmmu.lab.store import Store

Progress: TypeAlias = Callable[[str], None]
Refusal: TypeAlias = tuple[Point, str]
Result: TypeAlias = tuple[Point, Row | str]
"""A point with its row, or why there is none."""

WAITING: Final = 2
"""Points handed to each process ahead of time."""


@dataclass
class SweepOutcome:
    """What a sweep came to. ``failed``: points without a result, and why."""

    points: int
    stored_before: int
    done: int = 0
    failed: list[Refusal] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "points": self.points,
            "stored_before": self.stored_before,
            "done": self.done,
            "failed": [{"point": point.described(), "why": why} for point, why in self.failed],
        }


def attempt(point: Point) -> Result:
    """Run a point; a refusal is a result too."""
    try:
        return point, run_point(point)
    except (InputError, UndeterminedError) as error:
        return point, str(error)
    except MemoryError as error:
        return point, f"not enough memory: {error}"


def run_sweep(
    points: Sequence[Point],
    store: Store,
    *,
    jobs: int = 1,
    scheduler: str = "",
    progress: Progress = lambda line: None,
) -> SweepOutcome:
    """Run what is not stored yet and store it. Raises InputError, and UndeterminedError if a worker dies."""
    store.prepare()
    stored = store.keys()
    missing = [point for point in points if point.key(code_version()) not in stored]
    outcome = SweepOutcome(len(points), len(points) - len(missing))
    if scheduler:
        results = on_cluster(missing, scheduler)
    elif jobs == 1 or len(missing) < 2:
        results = map(attempt, missing)
    else:
        results = in_processes(missing, jobs)
    progress(f"{len(missing)} of {len(points)} points to run")
    for point, result in results:
        if isinstance(result, str):
            outcome.failed.append((point, result))
        else:
            store.add(result)
            outcome.done += 1
        ready = outcome.done + len(outcome.failed)
        progress(f"{ready} of {len(missing)} points, {len(outcome.failed)} refused: {point.described()}")
    return outcome


def in_processes(points: Sequence[Point], jobs: int) -> Iterator[Result]:
    """Results as they come, from processes of this machine. Raises UndeterminedError if one dies."""
    context = multiprocessing.get_context("spawn")
    waiting = iter(points)
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=end_with_parent)
    running: set[Future[Result]] = set()
    try:
        while True:
            while len(running) < jobs * WAITING and (point := next(waiting, None)) is not None:
                running.add(pool.submit(attempt, point))
            if not running:
                return
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                yield future.result()
    except BrokenProcessPool:
        told = (
            "a process of the sweep died, for want of memory perhaps; what is stored stays: try fewer --jobs"
        )
        raise UndeterminedError(told) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def end_with_parent() -> None:
    """End this process when the sweep that started it is killed: a pool's would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def on_cluster(points: Sequence[Point], scheduler: str) -> Iterator[Result]:
    """Results as they come, from the workers of a Dask scheduler. Raises InputError if there is none."""
    try:
        from distributed import Client, as_completed
    except ImportError:
        told = "--scheduler needs distributed, expected the extra: pip install 'shadowmmu[cluster]'"
        raise InputError(told) from None
    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"read scheduler '{scheduler}', expected a Dask scheduler: {error}") from None
    with client:
        _same_code(client)
        futures = client.map(attempt, points, pure=False)
        for future in as_completed(futures):
            yield future.result()


def _same_code(client: Any) -> None:
    """Scheduler and workers must run this very program: the stored keys say so. Raises InputError."""
    try:
        found = {"scheduler": client.run_on_scheduler(code_version)}
        found |= {f"worker {name}": code for name, code in client.run(code_version).items()}
    except (ImportError, AttributeError, RuntimeError) as error:
        told = f"the cluster cannot load shadowmmu, expected it on scheduler and workers: {error}"
        raise InputError(told) from None
    if len(found) == 1:
        raise InputError("read a scheduler without workers, expected at least one")
    for name, code in found.items():
        if code != code_version():
            raise InputError(f"{name} runs sources {code}, expected {code_version()} as here")
