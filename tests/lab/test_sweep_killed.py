"""A sweep that is killed: what it stored stays whole, its processes end, and the next one does the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweep_lab import exact, tiny

from shadowmmu.compiled import INTERPRETED
from shadowmmu.lab.store import Store
from shadowmmu.lab.sweep import run_sweep

pytest.importorskip("pyarrow", reason="stores need the extra `lab`")
pytest.importorskip("duckdb", reason="stores need the extra `lab`")

SEEDS = list(range(1, 41))
PROGRAM = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from sweep_lab import tiny
from shadowmmu.lab.store import Store
from shadowmmu.lab.sweep import run_sweep
if __name__ == "__main__":
    run_sweep(tiny(leaves=[40], seed=list(range(1, 41))), Store(Path(sys.argv[2])), jobs=2)
"""


def children_of(pid: int) -> list[int]:
    """The processes that it started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def is_running(pid: int) -> bool:
    """Whether a process is there, and not only waits to be reaped."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def waits_for(done: object, seconds: float = 60.0) -> bool:
    """Whether it comes true."""
    assert callable(done)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(INTERPRETED, reason="once is enough: processes")
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="children are found in /proc")
def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    script = tmp_path / "sweeping.py"
    script.write_text(PROGRAM)
    store = Store(tmp_path / "store")
    words = [sys.executable, str(script), str(Path(__file__).parent), str(store.folder)]
    with subprocess.Popen(words) as process:
        assert waits_for(lambda: len(store.keys()) >= 3)
        children = children_of(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert children
    assert waits_for(lambda: not any(is_running(child) for child in children), 20.0)
    before = {row["key"]: row for row in store.rows()}
    points = tiny(leaves=[40], seed=SEEDS)
    assert 3 <= len(before) < len(points)
    outcome = run_sweep(points, store)
    assert (outcome.stored_before, outcome.done) == (len(before), len(points) - len(before))
    rows = store.rows()
    assert len({row["key"] for row in rows}) == len(rows) == len(points)
    for row in rows:
        if row["key"] in before:
            assert row == before[row["key"]]
    assert {exact(row)["seed"] for row in rows} == set(SEEDS)
