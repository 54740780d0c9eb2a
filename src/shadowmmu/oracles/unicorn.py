"""Unicorn as a translation oracle: a CPU emulator in this process, whose page-table walks nobody here wrote.

    with UnicornOracle() as oracle:
        oracle.memory[table >> 3] = descriptor
        answers = oracle.ask(contexts, context_of, operations, va)

The machine's memory is one array that Unicorn and ``arch`` both walk. A few instructions at the end of it run
at EL3, stage 1 off, and execute AT instructions in a loop; a fetch is a return to EL1 or EL0 at the VA; loads
and stores are what the emulator's memory access makes of a VA at that level (``uc_vmem_translate``).
Unicorn starts at EL1 and takes no exceptions; it lets PSTATE be set to anything, so an ERET gets to EL3.

Unicorn 2.1 descends from QEMU 5.0: what it lacks is in ``UNSUPPORTED``, where it is wrong in ``DEVIATIONS``,
what its CPU implements in ``MACHINE``. Needs the optional package ``unicorn`` (the extra ``oracle``).
"""

from __future__ import annotations

import ctypes
import mmap
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from shadowmmu.arch import context as c
from shadowmmu.arch import operation as op
from shadowmmu.arch.answer import A_FAULT, A_HPFAR, A_PA, A_PAR, A_TARGET, ANSWER
from shadowmmu.arch.context import implementation
from shadowmmu.arch.fault import ADDRESS_SIZE, EXTERNAL_WALK, TRANSLATION
from shadowmmu.arch.registers import HCR_EL2, PAR_FAULT, PAR_SUCCESS, PSTATE, TCR_EL1, TCR_EL2, VTCR_EL2
from shadowmmu.compiled import U64, Counts, Words
from shadowmmu.errors import InputError

MACHINE: Final = implementation(48, "PAN", "HPDS")
"""What Unicorn's ``max`` CPU does. Its ID registers say 44 address bits and no 16K granule; the walks have
48 bits and all granules."""


class Remark(NamedTuple):
    """Something Unicorn does not do, or does otherwise, and how that is known."""

    name: str
    text: str
    reason: str


UNSUPPORTED: Final = (
    Remark("indirection", "TCR2, PIR and PIRE0", "the registers do not exist (FEAT_S1PIE is of 2022)"),
    Remark("52 bits", "DS, 52-bit addresses", "FEAT_LPA and FEAT_LPA2 came with QEMU 7.0"),
    Remark("hardware updates", "HA, HD: descriptors are never written", "FEAT_HAFDBS came with QEMU 8.0"),
    Remark("FWB", "HCR_EL2.FWB", "FEAT_S2FWB came with QEMU 7.0"),
    Remark("AT S1E1A, S1E2A", "AT without permission checks", "FEAT_ATS1A is of 2022"),
    Remark("syndromes", "ESR and FAR of an access; HPFAR of a load or store", "no exception is delivered"),
    Remark("atomics", "load and store in one instruction", "loads and stores are translated, not executed"),
    Remark("EL2&0", "HCR_EL2.E2H", "AT of QEMU 5.0 does not know the regime"),
    Remark("TLB", "stale entries are no evidence", "the emulator's TLB caches whole translations, untagged"),
)
"""What is refused, or must not be asked."""

DEVIATIONS: Final = (
    Remark("walk fault", "a stage-2 fault on a stage-1 walk: Translation, stage 1's level", "until QEMU 8"),
    Remark("block level", "a block is taken at every level below 3", "QEMU 7.2 does the same"),
    Remark("beyond memory", "a walk reads 0 where no memory is: no external abort", "Unicorn's own"),
    Remark("stage 1 off", "addresses of more than 44 bits give an Address size fault", "ID_AA64MMFR0"),
    Remark("shareability", "not forced to Outer for Device and Non-cacheable", "QEMU 7.2 does the same"),
    Remark("reserved type", "stage-2 MemAttr with a reserved low half: another choice", "unpredictable"),
    Remark("device type", "Normal of one stage strengthens the other's Device type", "all QEMU do the same"),
)
"""Where an answer differs from the architecture, by the name that ``explain`` gives."""

_SCR: Final = 0x5B1
"""SCR_EL3: Non-secure below, HVC, AArch64 at EL2, the RES1 bits."""
_EL3H: Final = 0x3CD
_EL2H, _EL1H, _EL0 = 0x3C9, 0x3C5, 0x3C0
"""SPSR of the level to return to, interrupts masked."""
_MODES: Final = {op.FETCH_EL1: _EL1H, op.FETCH_EL0: _EL0}
_READ, _WRITE = 1, 2
_ACCESSES: Final = {
    op.LOAD_EL1: (_EL1H, _READ),
    op.LOAD_EL1 + 1: (_EL1H, _WRITE),
    op.LOAD_EL0: (_EL0, _READ),
    op.LOAD_EL0 + 1: (_EL0, _WRITE),
    op.LOAD_EL2: (_EL2H, _READ),
    op.LOAD_EL2 + 1: (_EL2H, _WRITE),
}
"""Level and kind of the loads and stores."""
_FRAME: Final = 0x1000
_OWN: Final = 12 << 20
_LOOP, _QUERIES, _RESULTS = 0x1000, 1 << 20, 9 << 20
"""What is where in the oracle's own memory; the entry stands at its begin."""
_BATCH: Final = 1 << 18
_NO_IPA: Final = 0xFFF << 32
"""A value of HPFAR_EL2 that no fault leaves: there is no memory there."""
_UNREAD: Final = -1
_NOWHERE: Final = 0xDEAD_0000
"""A VA at which nothing is executed."""

_AT: Final = {
    **{op.AT_S1E1R + i: (0, 8, i) for i in range(4)},
    **{op.AT_S12E1R + i: (4, 8, 4 + i) for i in range(4)},
    op.AT_S1E1RP: (0, 9, 0),
    op.AT_S1E1WP: (0, 9, 1),
    op.AT_S1E2R: (4, 8, 0),
    op.AT_S1E2W: (4, 8, 1),
}
"""op1, CRm and op2 of the AT instructions, by operation."""

_REGISTERS: Final = {
    "TTBR0_EL1": (3, 0, 2, 0, 0),
    "TTBR1_EL1": (3, 0, 2, 0, 1),
    "TCR_EL1": (3, 0, 2, 0, 2),
    "SCTLR_EL1": (3, 0, 1, 0, 0),
    "MAIR_EL1": (3, 0, 10, 2, 0),
    "VTTBR_EL2": (3, 4, 2, 1, 0),
    "VTCR_EL2": (3, 4, 2, 1, 2),
    "HCR_EL2": (3, 4, 1, 1, 0),
    "TTBR0_EL2": (3, 4, 2, 0, 0),
    "TTBR1_EL2": (3, 4, 2, 0, 1),
    "TCR_EL2": (3, 4, 2, 0, 2),
    "MAIR_EL2": (3, 4, 10, 2, 0),
    "SCTLR_EL2": (3, 4, 1, 0, 0),
    "SCR_EL3": (3, 6, 1, 1, 0),
    "SPSR_EL3": (3, 6, 4, 0, 0),
    "ELR_EL1": (3, 0, 4, 0, 1),
    "ELR_EL2": (3, 4, 4, 0, 1),
    "ELR_EL3": (3, 6, 4, 0, 1),
    "HPFAR_EL2": (3, 4, 6, 0, 4),
}
"""op0, op1, CRn, CRm, op2 of the system registers that are set."""
_ABSENT: Final = ("TCR2_EL1", "PIR_EL1", "PIRE0_EL1", "TCR2_EL2", "PIR_EL2", "PIRE0_EL2", "HCRX_EL2")

_ERET: Final = 0xD69F03E0
_NEXT: Final = 0xA8C11003  # ldp x3, x4, [x0], #16: the VA and where its instruction stands
_JUMP: Final = 0xD61F0080  # br x4
_TAIL: Final = (
    0xD5033FDF,  # isb
    0xD5387405,  # mrs x5, PAR_EL1
    0xF8008445,  # str x5, [x2], #8
    0xF1000421,  # subs x1, x1, #1
)
_ENTRY: Final = (_ERET, 0xD50C879F, 0xD50C871F)
"""eret; tlbi ALLE1, tlbi ALLE2. Only after an ERET does the translator know the level it is at."""


def _program() -> tuple[list[int], dict[int, int], int]:
    """The loop: instructions, the byte offset of each operation's AT, and that of the end.

    x0 is the next query, x1 how many are left, x2 where PAR goes.
    """
    tail = 2 + 2 * len(_AT)
    code = [_NEXT, _JUMP]
    places = {}
    for operation, (op1, crm, op2) in _AT.items():
        places[operation] = 4 * len(code)
        code.append(0xD5087003 | op1 << 16 | crm << 8 | op2 << 5)
        code.append(0x14000000 | tail - len(code))
    code += _TAIL
    code.append(0x54000001 | (-len(code) & 0x7FFFF) << 5)  # b.ne to the first
    return code, places, 4 * len(code)


def _unknown_to(row: Words) -> str:
    """The first thing in a context row that Unicorn does not know, or nothing."""
    for name in _ABSENT:
        if row[c.COLUMNS.index(name)]:
            return name
    forbidden = {
        c.C_HCR_EL2: ("HCR_EL2", (HCR_EL2, ("E2H", "FWB"))),
        c.C_TCR_EL1: ("TCR_EL1", (TCR_EL1, ("HA", "HD", "DS"))),
        c.C_TCR_EL2: ("TCR_EL2", (TCR_EL2, ("HA", "HD", "DS"))),
        c.C_VTCR_EL2: ("VTCR_EL2", (VTCR_EL2, ("HA", "HD", "DS", "SL2"))),
    }
    for column, (register, (layout, fields)) in forbidden.items():
        for field in fields:
            if int(row[column]) & layout[field].mask:
                return f"{register}.{field}"
    return ""


def _import() -> Any:
    try:
        import unicorn
    except ImportError as error:
        raise InputError("the package unicorn is not installed: pip install 'shadowmmu[oracle]'") from error
    return unicorn


def _vmem_translate() -> Any:
    """The C function of that name: engine, VA, kind of access, where to put the PA; 0 or an error.

    The Python binding of 2.1.4 has no method for it, so this is bound to its library. Raises InputError.
    """
    from unicorn.unicorn_py3.unicorn import uclib

    try:
        function = uclib.uc_vmem_translate
    except AttributeError as error:
        raise InputError("this Unicorn has no uc_vmem_translate: expected 2.1.2 or newer") from error
    pointer = ctypes.POINTER(ctypes.c_uint64)
    function.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, pointer)
    function.restype = ctypes.c_int
    return function


def fault_of_par(par: Words) -> Words:
    """The FAULT column that PAR_EL1 tells: kind, level + 1 << 8, stage << 16, s1ptw << 24; 0 for none."""
    status = par >> PAR_FAULT.lsb("FST") & PAR_FAULT.low_mask("FST")
    kinds = np.array([1, 2, 3, 4, 0, 5, *[0] * 10], np.uint64)
    kind = kinds[(status >> U64(2)).astype(np.int64) & 15]
    level = np.where(status == 0, U64(0), status & U64(3))
    stage = np.where(par & PAR_FAULT.mask("S") != 0, U64(2), U64(1))
    walk = (par & PAR_FAULT.mask("PTW") != 0).astype(np.uint64)
    word = kind | (level + U64(1)) << U64(8) | stage << U64(16) | walk << U64(24)
    return np.where(par & U64(1) != 0, word, U64(0))


_KIND, _LEVEL, _WALK = 0xFF, 8, 24
_STAGE1_OFF_BITS: Final = 44


def explain(wanted: Words, got: Words, va: int, descriptor: int) -> str:
    """The deviation by which Unicorn's answer differs from the architecture's, "" for none, "?" if unknown.

    For AT instructions. ``descriptor``: the last one the architecture's walk read, at the stage where it
    ended.
    """
    if got[A_PAR] == wanted[A_PAR] and not wanted[A_TARGET]:
        return ""
    want, have = int(wanted[A_FAULT]), int(got[A_FAULT])
    kind, had = want & _KIND, have & _KIND
    if not want and not have:
        differ = int(wanted[A_PAR] ^ got[A_PAR])
        attribute = int(wanted[A_PAR]) >> PAR_SUCCESS["ATTR"].lsb
        uncached = attribute < 0x10 or attribute & 0xF == 4 or attribute >> 4 == 4
        if not differ & ~PAR_SUCCESS["SH"].mask and uncached:
            return "shareability"
        both = not differ & ~(PAR_SUCCESS["SH"].mask | PAR_SUCCESS["ATTR"].mask)
        if both and descriptor >> 4 & 3 and not descriptor >> 2 & 3:
            return "reserved type"
        return "device type" if both and attribute < 0x10 else "?"
    if kind == EXTERNAL_WALK and had == TRANSLATION:
        return "beyond memory"
    if kind == TRANSLATION and descriptor & 3 == 1:
        return "block level"
    if want >> _WALK and have >> _WALK and had == TRANSLATION:
        return "walk fault"
    if had == ADDRESS_SIZE and have >> _LEVEL & 0xFF == 1 and va >> _STAGE1_OFF_BITS:
        return "stage 1 off"
    return "?"


class UnicornOracle:
    """A CPU of this process that answers translation queries. Not for use by two threads."""

    def __init__(self, memory_bytes: int = 64 << 20) -> None:
        """A machine with this much memory, from physical address 0; its last 12 MiB are the oracle's own.

        Raises InputError without the package, or with too little memory.
        """
        if memory_bytes < 16 << 20 or memory_bytes % _FRAME:
            raise InputError(f"{memory_bytes} bytes of memory: expected whole pages, 16 MiB or more")
        self._unicorn = _import()
        from unicorn import arm64_const

        self._names = arm64_const
        self._buffer = mmap.mmap(-1, memory_bytes)
        self.memory: Words = np.frombuffer(self._buffer, np.uint64)
        """Physical memory, index = pa >> 3; the oracle's own words lie behind ``free_bytes``."""
        self.free_bytes = memory_bytes - _OWN
        self._uc = self._unicorn.Uc(self._unicorn.UC_ARCH_ARM64, self._unicorn.UC_MODE_ARM)
        self._uc.ctl_set_cpu_model(arm64_const.UC_CPU_ARM64_MAX)
        self._uc.mem_map_ptr(0, memory_bytes, self._unicorn.UC_PROT_ALL, self.memory.ctypes.data)
        self._fetched = False
        self._ipa = _UNREAD
        self._uc.hook_add(self._unicorn.UC_HOOK_INTR, self._on_exception)
        code, self._places, self._end = _program()
        words = self.memory.view(np.uint32)
        words[self.free_bytes >> 2 :][: len(_ENTRY)] = _ENTRY
        words[self.free_bytes + _LOOP >> 2 :][: len(code)] = code
        self._set("SCR_EL3", _SCR)
        self._vmem_translate = _vmem_translate()

    def ask(
        self, contexts: Words, context_of: Words | Counts, operations: Words | Counts, va: Words
    ) -> Words:
        """One row as ``arch.answer`` has it for each query: an operation on a VA under a row of ``contexts``.

        An AT gives PAR and FAULT. An access gives TARGET_EL, 0 where it is translated: of a fetch 2 and HPFAR
        for a stage-2 fault, else 1; of a load or store 1, or at EL2 2, whatever the stage, and PA where it is
        translated. Raises InputError for what is ``UNSUPPORTED``.
        """
        for number, row in enumerate(contexts):
            unknown = _unknown_to(row)
            if unknown:
                raise InputError(f"context {number}: Unicorn does not have {unknown}")
        known = np.isin(operations, [*_AT, *_MODES, *_ACCESSES])
        if not known.all():
            name = op.NAMES[int(np.asarray(operations)[~known][0])]
            raise InputError(f"Unicorn cannot be asked for: {name}")
        answers = np.zeros((len(va), ANSWER), np.uint64)
        fetches = np.isin(operations, list(_MODES))
        if (va[fetches] & U64(3)).any():
            raise InputError("a fetch is from a multiple of 4")
        order = np.lexsort((operations, context_of))
        changes = np.flatnonzero(np.diff(np.asarray(context_of)[order])) + 1
        for mine in np.split(order, changes):
            if len(mine):
                self._load(contexts[int(context_of[mine[0]])])
                self._answer(mine, np.asarray(operations, np.int64), va, answers)
        at = np.isin(operations, list(_AT))
        answers[at, A_FAULT] = fault_of_par(answers[at, A_PAR])
        return answers

    def _answer(self, mine: Any, operations: Counts, va: Words, answers: Words) -> None:
        """The queries ``mine`` of one context."""
        ats = mine[np.isin(operations[mine], list(_AT))]
        for start in range(0, len(ats), _BATCH):
            part = ats[start : start + _BATCH]
            answers[part, A_PAR] = self._translate(operations[part], va[part])
        for operation in _MODES:
            for query in mine[operations[mine] == operation]:
                self._fetch(operation, int(va[query]), answers[query])
        for operation in _ACCESSES:
            part = mine[operations[mine] == operation]
            if len(part):
                self._access(operation, va[part], answers, part)

    def _load(self, row: Words) -> None:
        for column, name in enumerate(c.COLUMNS):
            if name in _REGISTERS:
                self._set(name, int(row[column]))
        self._pan = int(row[c.C_PSTATE]) & PSTATE["PAN"].mask

    def _set(self, name: str, value: int) -> None:
        self._uc.reg_write(self._names.UC_ARM64_REG_CP_REG, (*_key(name), value))

    def _run(self, mode: int, at: int, until: int, count: int = 0) -> None:
        """Return from EL3 to ``mode`` at ``at``, by the entry's ERET, and go as far as ``until``."""
        self._uc.reg_write(self._names.UC_ARM64_REG_PSTATE, _EL3H)
        self._set("SPSR_EL3", mode | self._pan)
        for name in ("ELR_EL1", "ELR_EL2", "ELR_EL3"):  # the translator's idea of the level decides
            self._set(name, at)
        self._uc.emu_start(self.free_bytes, until, count=count)

    def _translate(self, operations: npt.NDArray[Any], va: Words) -> Words:
        """PAR of each AT instruction."""
        loop = self.free_bytes + _LOOP
        queries = self.memory[self.free_bytes + _QUERIES >> 3 :][: 2 * len(va)].reshape(-1, 2)
        queries[:, 0] = va
        queries[:, 1] = [loop + self._places[int(operation)] for operation in operations]
        found = self.memory[self.free_bytes + _RESULTS >> 3 :][: len(va)]
        names = self._names
        self._uc.reg_write(names.UC_ARM64_REG_X0, self.free_bytes + _QUERIES)
        self._uc.reg_write(names.UC_ARM64_REG_X1, len(va))
        self._uc.reg_write(names.UC_ARM64_REG_X2, self.free_bytes + _RESULTS)
        self._run(_EL3H, loop, loop + self._end)
        return found.copy()

    def _fetch(self, operation: int, va: int, answer: Words) -> None:
        """Return to ``va`` and see whether an instruction can be had there; none is executed."""
        self._forget()
        self._set("HPFAR_EL2", _NO_IPA)
        self._fetched, self._ipa = False, _UNREAD
        hook = self._uc.hook_add(self._unicorn.UC_HOOK_CODE, self._on_instruction, begin=va, end=va)
        try:
            self._run(_MODES[operation], va, self.free_bytes + _LOOP, count=2)
        except self._unicorn.UcError:
            pass  # it translates, to where there is no memory
        finally:
            self._uc.hook_del(hook)
        if self._fetched:
            return
        second = self._ipa not in (_UNREAD, _NO_IPA)
        answer[A_TARGET] = 2 if second else 1
        answer[A_HPFAR] = self._ipa if second else 0

    def _access(self, operation: int, va: Words, answers: Words, where: Counts) -> None:
        """What the emulator's own loads or stores at some level make of these VAs."""
        mode, kind = _ACCESSES[operation]
        self._forget()
        self._run(mode, _NOWHERE, _NOWHERE, count=1)
        pa = ctypes.c_uint64()
        for query, each in zip(where, va.tolist(), strict=True):
            if self._vmem_translate(self._uc._uch, each, kind, ctypes.byref(pa)):
                answers[query, A_TARGET] = 2 if mode == _EL2H else 1
            else:
                answers[query, A_PA] = pa.value

    def _forget(self) -> None:
        """Invalidate the TLBs of EL1&0 and EL2."""
        first = self.free_bytes + 4
        self._run(_EL3H, first, first + 4 * (len(_ENTRY) - 1))

    def _on_exception(self, uc: Any, number: int, data: Any) -> None:
        if self._ipa == _UNREAD:  # the first one: another may follow, of what stands behind the ERET
            self._ipa = uc.reg_read(self._names.UC_ARM64_REG_CP_REG, _key("HPFAR_EL2"))
        uc.emu_stop()

    def _on_instruction(self, uc: Any, pc: int, size: int, data: Any) -> None:
        self._fetched = True
        uc.emu_stop()

    def close(self) -> None:
        """Let the CPU go; arrays over its memory stay valid. May be called twice."""
        self._uc = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _key(name: str) -> tuple[int, int, int, int, int]:
    """How Unicorn names a system register: CRn, CRm, op0, op1, op2."""
    op0, op1, crn, crm, op2 = _REGISTERS[name]
    return crn, crm, op0, op1, op2
