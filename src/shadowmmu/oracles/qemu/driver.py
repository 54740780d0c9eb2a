"""Starts QEMU with the stub, hands it batches of queries through shared memory, survives its crashes.

    with QemuOracle() as oracle:
        oracle.memory[table >> 3] = descriptor
        answers = oracle.ask(contexts, context_of, operations, va)

The doorbell is a pair of pipes (semihosting console): both sides block, nothing polls. 2 to 5 million AT
queries a second; 50 to 100 ms to start.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import numpy as np

from shadowmmu.arch.registers import HCR_EL2
from shadowmmu.compiled import Counts, Words
from shadowmmu.errors import InputError
from shadowmmu.oracles.qemu.answers import accesses, decode
from shadowmmu.oracles.qemu.install import find_qemu
from shadowmmu.oracles.qemu.layout import (
    ARENA,
    FLAG_DIRTY,
    FLAG_EL2,
    FLAG_PIE,
    FLAGS,
    INVALIDATE,
    MAILBOX,
    RAM_BYTES,
    RAM_END,
    STUB,
    TABLES,
    TAG,
    TAG_CRASHED,
)
from shadowmmu.oracles.qemu.memory import guest_memory
from shadowmmu.oracles.qemu.stub import stub_words
from shadowmmu.oracles.qemu.window import install_window

IDENTIFICATION: Final = (
    "ID_AA64MMFR0_EL1",
    "ID_AA64MMFR1_EL1",
    "ID_AA64MMFR2_EL1",
    "ID_AA64MMFR3_EL1",
    "ID_AA64MMFR4_EL1",
    "ID_AA64PFR0_EL1",
    "ID_AA64ISAR2_EL1",
    "MIDR_EL1",
    "stub EL",
)
BATCH: Final = 1 << 20
"""Queries handed over at once."""
# NS, the RES1 bits, HCE, RW, APK, API, EnSCXT, ATA, FGTEn, HXEn, TCR2En, PIEn: nothing traps to the stub.
SCR_EL3: Final = sum(1 << bit for bit in (0, 4, 5, 8, 10, 16, 17, 25, 26, 27, 38, 43, 45))
_MB_RAM_END: Final = 4
_MB_SCR: Final = 6
_MB_ID: Final = 16
_TCR_HA_HD: Final = 3 << 39
_VTCR_HA_HD: Final = 3 << 21
_TCR_EL1, _VTCR_EL2, _HCR_EL2 = 2, 6, 7
_E2H: Final = HCR_EL2["E2H"].mask


class QemuStoppedError(Exception):
    """QEMU ended, or did not answer in time."""


class QemuOracle:
    """A running QEMU that answers translation queries. Not for use by two threads."""

    def __init__(self, qemu: Path | None = None, *, el3: bool = False, timeout: float = 60.0) -> None:
        """Start ``qemu`` (default: ``find_qemu()``) with the stub at EL2, or EL3 for the regimes of EL2.

        ``timeout`` is in seconds and for one batch. Raises InputError if QEMU cannot be found or started.
        """
        self.qemu = qemu or find_qemu()
        self.version = qemu_version(self.qemu)
        self.el3 = el3
        self.timeout = timeout
        self.crashes = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._fd = os.memfd_create("shadowmmu-guest")
        os.ftruncate(self._fd, RAM_BYTES)
        self.memory: Words = guest_memory(self._fd)
        """Physical memory, index = pa >> 3. Arrays over it stay valid after ``close``."""
        stub = stub_words()
        self.memory[STUB >> 3 : (STUB + len(stub)) >> 3] = np.frombuffer(stub, "<u8")
        install_window(self.memory)
        self._mailbox[_MB_RAM_END] = RAM_END
        self._mailbox[_MB_SCR] = SCR_EL3 if el3 else 0
        try:
            self._start()
        except QemuStoppedError as error:
            self.close()
            raise InputError(f"{self.qemu}: {error}") from error
        self.identification: Mapping[str, int] = dict(
            zip(IDENTIFICATION, map(int, self._mailbox[_MB_ID:]), strict=False)
        )

    @property
    def el(self) -> int:
        """The exception level the stub runs at: 2 or 3."""
        return self.identification["stub EL"]

    @property
    def indirect_permissions(self) -> bool:
        """Whether this QEMU has FEAT_S1PIE, FEAT_TCR2 and FEAT_HCX."""
        mmfr3 = self.identification["ID_AA64MMFR3_EL1"]
        hcx = self.identification["ID_AA64MMFR1_EL1"] >> 40 & 15
        return bool(mmfr3 & 15 and mmfr3 >> 8 & 15 and hcx)

    @property
    def unchecked(self) -> bool:
        """Whether this QEMU has the A forms of AT (FEAT_ATS1A)."""
        return self.identification["ID_AA64ISAR2_EL1"] >> 60 != 0

    def ask(
        self,
        contexts: Words,
        context_of: Words,
        operations: Words | Counts,
        va: Words,
        *,
        invalidate: bool = False,
    ) -> Words:
        """One row of ``answers.COLUMNS`` a query: an operation, a VA, and the row of its context.

        ``invalidate`` does a TLBI before each query (needed once the hardware updates descriptors, and
        for real accesses if the tables are not to be remembered). A query that crashes QEMU gets STATUS
        CRASHED, found by bisection; QEMU is started again. Raises InputError for what the stub cannot
        do where it runs: contexts with HCR_EL2.E2H at EL2, real accesses at EL3.
        """
        if not self.el3 and (contexts[:, _HCR_EL2] & np.uint64(_E2H)).any():
            raise InputError("a context has HCR_EL2.E2H set: the regimes of EL2 need QemuOracle(el3=True)")
        if self.el3 and accesses(operations).any():
            raise InputError("real accesses need the stub at EL2: QemuOracle(el3=False)")
        rows = np.array(contexts, np.uint64)
        rows[:, FLAGS] = self._flags(rows)
        queries = np.empty((len(va), 2), np.uint64)
        queries[:, 0] = va
        queries[:, 1] = np.asarray(operations, np.uint64) | np.asarray(context_of, np.uint64) << np.uint64(32)
        if invalidate:
            queries[:, 1] |= np.uint64(INVALIDATE)
        raw = np.empty((len(va), 4), np.uint64)
        for first in range(0, len(va), BATCH):
            part = slice(first, first + BATCH)
            raw[part] = self._survive(rows, queries[part])
        return decode(raw, operations, self.el)

    def _flags(self, rows: Words) -> Words:
        flags = np.full(len(rows), FLAG_EL2 * self.el3 | FLAG_PIE * self.indirect_permissions, np.uint64)
        dirty1 = rows[:, _TCR_EL1] & np.uint64(_TCR_HA_HD) == np.uint64(_TCR_HA_HD)
        dirty2 = rows[:, _VTCR_EL2] & np.uint64(_VTCR_HA_HD) == np.uint64(_VTCR_HA_HD)
        flags[dirty1 | dirty2] |= np.uint64(FLAG_DIRTY)
        return flags

    def _survive(self, rows: Words, queries: Words) -> Words:
        """``_exchange``, but a batch that ends QEMU is halved until the culprits stand alone."""
        try:
            return self._exchange(rows, queries)
        except QemuStoppedError:
            self.crashes += 1
            self._end()
            self._start()
        if len(queries) == 1:
            return np.array([[TAG << 48 | TAG_CRASHED, 0, 0, 0]], np.uint64)
        half = len(queries) // 2
        return np.concatenate([self._survive(rows, queries[:half]), self._survive(rows, queries[half:])])

    def _exchange(self, rows: Words, queries: Words) -> Words:
        asked = ARENA + rows.nbytes
        answered = asked + queries.nbytes
        if answered + len(queries) * 32 > TABLES:
            raise InputError(f"{len(rows)} contexts are too many for one call")
        self.memory[ARENA >> 3 : asked >> 3] = rows.ravel()
        self.memory[asked >> 3 : answered >> 3] = queries.ravel()
        self._mailbox[:4] = (len(queries), ARENA, asked, answered)
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"g")
        except BrokenPipeError as error:
            raise QemuStoppedError("ended") from error
        self._wait()
        return self.memory[answered >> 3 :][: len(queries) * 4].reshape(-1, 4).copy()

    @property
    def _mailbox(self) -> Words:
        return self.memory[MAILBOX >> 3 :][:64]

    def _start(self) -> None:
        self._process = subprocess.Popen(
            _command(self.qemu, self.version, self.el3, self._fd),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            pass_fds=(self._fd,),
        )
        self._wait()

    def _wait(self) -> None:
        """Block until the stub says that it is idle. Raises QemuStoppedError."""
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], self.timeout)
        if not ready:
            self._process.kill()
            raise QemuStoppedError(f"no answer within {self.timeout} s")
        if self._process.stdout.read(1) != b"R":
            self._process.wait()
            raise QemuStoppedError(f"ended: {self._complaint()}")

    def _complaint(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # it holds no state worth a clean exit
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def close(self) -> None:
        """End QEMU. May be called twice."""
        self._end()
        if self._fd >= 0:
            os.close(self._fd)
            self._stderr.close()
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def qemu_version(qemu: Path) -> tuple[int, int, int]:
    """The version ``qemu`` says it has. Raises InputError if it says none."""
    try:
        said = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError as error:
        raise InputError(f"{qemu}: {error.strerror}") from error
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", said)
    if match is None:
        raise InputError(f"{qemu} --version: {said[:80]!r}, expected QEMU emulator version X.Y.Z")
    return int(match[1]), int(match[2]), int(match[3])


def _command(qemu: Path, version: tuple[int, int, int], el3: bool, fd: int) -> list[str]:
    machine = "virt,virtualization=on,gic-version=3,memory-backend=ram"
    if el3:
        machine += ",secure=on"
    if version >= (8, 0, 0):  # no PCIe windows above RAM: what is beyond RAM aborts
        machine += ",highmem-ecam=off,highmem-mmio=off,highmem-redists=off"
    size = f"{RAM_BYTES >> 20}M"
    backend = f"memory-backend-file,id=ram,size={size},mem-path=/proc/self/fd/{fd},share=on"
    keeper = shutil.which("setpriv")
    return [
        *((keeper, "--pdeathsig", "KILL") if keeper else ()),  # a killed host leaves no QEMU behind
        str(qemu),
        *("-M", machine, "-cpu", "max", "-m", size, "-accel", "tcg,thread=single", "-object", backend),
        *("-nodefaults", "-display", "none", "-net", "none", "-monitor", "none"),
        *("-chardev", "stdio,id=console,signal=off,mux=off"),
        *("-semihosting-config", "enable=on,target=native,chardev=console"),
        *("-device", f"loader,addr={STUB:#x},cpu-num=0"),
    ]
