"""The stub, the shared memory and the batches: what QEMU must answer whatever the model says."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from qemu_lab import READ_ONLY, READABLE, UNMAPPED, needs_qemu, oracle, small_space

from shadowmmu.errors import InputError
from shadowmmu.oracles.qemu import answers as a
from shadowmmu.oracles.qemu.driver import QemuOracle
from shadowmmu.oracles.qemu.install import PROGRAM, VARIABLE, debian_mirror, find_qemu
from shadowmmu.oracles.qemu.layout import RAM, RAM_END, STUB, TABLES
from shadowmmu.oracles.qemu.memory import guest_memory
from shadowmmu.oracles.qemu.stub import as_hex, assemble, can_assemble, stub_words

__all__ = ["oracle"]

AT_READ, AT_WRITE = 0, 1
LOAD, STORE, FETCH, LOAD_EL0, STORE_EL0, FETCH_EL0, ATOMIC, ATOMIC_EL0 = range(12, 20)
TRANSLATION_L3, PERMISSION_L3 = 7, 15


def ask_one(oracle: QemuOracle, operation: int, va: int) -> dict[str, int]:
    row = small_space(oracle.memory)
    zero = np.zeros(1, np.uint64)
    answer = oracle.ask(row, zero, np.array([operation]), np.array([va], np.uint64), invalidate=True)
    return dict(zip(a.COLUMNS, map(int, answer[0]), strict=True))


@pytest.mark.skipif(not can_assemble(), reason="no arm64 cross assembler: the kept words cannot be checked")
def test_kept_words_are_the_assembled_source() -> None:
    assert stub_words() == assemble()


def test_kept_words_read_back() -> None:
    assert bytes.fromhex(as_hex(stub_words())) == stub_words()


@needs_qemu
def test_memory_is_shared_with_the_guest(oracle: QemuOracle) -> None:
    kept = np.frombuffer(stub_words(), "<u8")
    assert oracle.memory.size == RAM_END >> 3
    assert (oracle.memory[STUB >> 3 :][: kept.size] == kept).all()
    assert ask_one(oracle, AT_READ, READABLE)["PAR"] & 1 == 0
    oracle.memory[(TABLES + 0x2000) >> 3] = 0  # the host takes the page away
    again = oracle.ask(*batch(oracle, AT_READ, READABLE))
    assert int(again[0, a.PAR]) & 1 == 1


def batch(oracle: QemuOracle, operation: int, va: int) -> tuple[np.ndarray, ...]:
    """The query of ``ask_one`` without building the tables anew."""
    tables = oracle.memory[TABLES >> 3 : (TABLES + 0x3000) >> 3].copy()
    row = small_space(oracle.memory)
    oracle.memory[TABLES >> 3 : (TABLES + 0x3000) >> 3] = tables
    return row, np.zeros(1, np.uint64), np.array([operation]), np.array([va], np.uint64)


def test_memory_outlives_its_driver_and_reads_as_zero_below_ram() -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, RAM_END - RAM)
    shared, view = guest_memory(fd), guest_memory(fd)
    os.close(fd)
    shared[RAM >> 3] = 7
    assert view[RAM >> 3] == 7
    assert not view[:4096].any()
    del shared
    assert view[RAM >> 3] == 7


@needs_qemu
def test_translation_tells_the_page(oracle: QemuOracle) -> None:
    par = ask_one(oracle, AT_READ, READABLE + 8)["PAR"]
    assert par & 0xF_FFFF_FFFF_F000 == TABLES + 0x5000
    assert par >> 56 == 0xFF


@needs_qemu
@pytest.mark.parametrize(
    ("operation", "va", "status"),
    [(AT_READ, UNMAPPED, TRANSLATION_L3), (AT_WRITE, READ_ONLY, PERMISSION_L3)],
)
def test_translation_tells_the_fault(oracle: QemuOracle, operation: int, va: int, status: int) -> None:
    answer = ask_one(oracle, operation, va)
    assert answer["PAR"] & 0x7F == status << 1 | 1
    assert answer["FAULT"] >> 8 & 0xFF == 3 + 1


@needs_qemu
@pytest.mark.parametrize(
    ("operation", "va", "target", "status"),
    [
        (LOAD, READABLE, 0, 0),
        (STORE, READABLE, 0, 0),
        (ATOMIC_EL0, READABLE, 0, 0),
        (LOAD_EL0, READ_ONLY, 0, 0),
        (FETCH_EL0, READ_ONLY, 0, 0),
        (FETCH, READABLE, 1, PERMISSION_L3),
        (STORE_EL0, READ_ONLY, 1, PERMISSION_L3),
        (ATOMIC, READ_ONLY, 1, PERMISSION_L3),
        (LOAD_EL0, UNMAPPED, 1, TRANSLATION_L3),
        (FETCH, UNMAPPED, 1, TRANSLATION_L3),
    ],
)
def test_accesses_are_made_for_real(
    oracle: QemuOracle, operation: int, va: int, target: int, status: int
) -> None:
    answer = ask_one(oracle, operation, va)
    assert (answer["STATUS"], answer["TARGET_EL"]) == (a.ANSWERED, target)
    assert answer["ESR"] & 0x3F == status
    assert answer["FAR"] == (va if target else 0)


@needs_qemu
def test_a_store_leaves_the_byte_it_found(oracle: QemuOracle) -> None:
    word = (TABLES + 0x5000) >> 3
    oracle.memory[word] = 0xA5
    assert ask_one(oracle, STORE, READABLE)["TARGET_EL"] == 0
    assert oracle.memory[word] == 0xA5


@needs_qemu
def test_what_the_stub_cannot_do_is_refused(oracle: QemuOracle) -> None:
    row = small_space(oracle.memory)
    row[0, 7] |= np.uint64(1 << 34)
    one = np.zeros(1, np.uint64)
    with pytest.raises(InputError, match="E2H"):
        oracle.ask(row, one, one, one)
    with QemuOracle(el3=True) as above:
        assert above.el == 3
        with pytest.raises(InputError, match="EL2"):
            above.ask(small_space(above.memory), one, np.array([LOAD]), one)
        assert above.ask(row, one, np.array([10]), one)[0, a.STATUS] == a.ANSWERED


class Crashing(QemuOracle):
    """Ends QEMU whenever a batch asks for one VA, as its bugs do."""

    poison = 0xDEAD_B000

    def _exchange(self, rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
        if (queries[:, 0] == self.poison).any():
            assert self._process is not None
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        return super()._exchange(rows, queries)


@needs_qemu
def test_a_crash_is_pinned_on_its_query() -> None:
    with Crashing() as crashing:
        row = small_space(crashing.memory)
        va = np.full(37, READABLE, np.uint64)
        va[11] = Crashing.poison
        answer = crashing.ask(row, np.zeros(37, np.uint64), np.zeros(37, np.int64), va)
    assert np.flatnonzero(answer[:, a.STATUS] == a.CRASHED).tolist() == [11]
    assert (np.delete(answer[:, a.PAR], 11) == answer[0, a.PAR]).all()
    assert answer[0, a.PAR] & np.uint64(1) == 0


@needs_qemu
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv: QEMU cannot be tied to its host")
def test_a_killed_host_leaves_no_qemu_behind() -> None:
    program = (
        "import time; from shadowmmu.oracles.qemu.driver import QemuOracle; "
        "oracle = QemuOracle(); print(oracle._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        qemu = int(host.stdout.readline())
        host.kill()
    for _ in range(100):
        if not Path(f"/proc/{qemu}/cmdline").exists() or not Path(f"/proc/{qemu}/cmdline").read_bytes():
            return  # gone, or dead and not yet collected
        time.sleep(0.05)
    pytest.fail("QEMU outlived its host")


def test_a_qemu_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / PROGRAM))
    with pytest.raises(InputError, match="expected an executable"):
        find_qemu()
    script = tmp_path / PROGRAM
    script.write_text("#!/bin/sh\necho hello\n")
    script.chmod(0o755)
    with pytest.raises(InputError, match="expected QEMU emulator version"):
        QemuOracle(find_qemu())


def test_the_mirror_is_the_one_of_apt(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Debian mirror"):
        debian_mirror(tmp_path)
    (tmp_path / "sources.list").write_text(
        "# deb http://old.example/debian x\ndeb [signed-by=/k] http://a.example/ubuntu x main\n"
        "deb [signed-by=/k] http://b.example/debian/ x main\n"
    )
    assert debian_mirror(tmp_path) == "http://b.example/debian"
