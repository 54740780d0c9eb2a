"""``State``: the arrays of one simulated machine, and how they grow.

All of a machine is in these arrays, so a copy of them is a snapshot and two machines never share
anything. The arrays are allocated with ``numpy.zeros``: the operating system fills their pages when
they are first written, so a large machine costs what it uses.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

import numpy as np

from shadowmmu.compiled import U64, Counts, Word, Words
from shadowmmu.machine.counters import COUNTERS

__all__ = ["DATA_BASE", "Counts", "State", "Word", "Words", "grow", "image_digest"]

# Registers of the machine: ``State.regs``. Each room declares its own above the base reserved here.
R_NEXT_FRAME: Final = 0
R_FREE_TOP: Final = 1
R_PAGE_SHIFT: Final = 2
R_STRIDE: Final = 3
R_NEXT_DATA: Final = 4
R_TLBIRANGE: Final = 5
R_FWB: Final = 6
R_LOG_ON: Final = 7
R_LOG_TOP: Final = 8
R_GHOST_ON: Final = 9
R_LOCK_START: Final = 10
R_FAIL_ALLOCATION: Final = 11
R_EVENT: Final = 12
R_GRAVES: Final = 13
R_PA_BITS: Final = 14
R_CAUSE: Final = 15
R_DESIGN: Final = 16
R_CAUSE_START: Final = 17
R_CAUSE_END: Final = 18
R_PRECISE_UPDATES: Final = 19
R_GAP: Final = 20
"""How many more times a sweep gives the lock away before someone else gets in; 0: nobody will."""
R_GAP_MMU: Final = 21
"""The MMU whose sweep may be broken off there; 0: none."""
R_GAP_IPA: Final = 22
"""Where it was broken off; 0: it was not."""
R_LOG_TLB: Final = 23
R_HOST: Final = 24
R_KVM: Final = 40
R_GUEST: Final = 64
REGISTERS: Final = 96

DATA_BASE: Final = U64(1 << 36)
"""Physical addresses from here up are data pages: numbers without content. Below are table frames."""


class State(NamedTuple):
    """The arrays of one machine; every kernel takes it first."""

    mem: Words
    """Descriptor memory: word index = physical address >> 3. Holds table frames and guest content."""
    frames: Words
    """(frames, 4): use count, owner, the word that points here, first input address covered."""
    free: Words
    """Stack of table frames given back."""
    content: Words
    """Per data frame: the table frame that holds its words, 0 while it reads as zeros."""
    regs: Words
    """Machine-wide registers."""
    count: Counts  # type: ignore[assignment]  # a tuple has a method of this name
    """Counters (machine.counters)."""
    log: Words
    """(rows, 8): the observation log."""
    mmus: Words
    """(MMUs, columns): stage-2 contexts; 0 is canonical, shadows follow."""
    vcpus: Words
    """(vCPUs, columns): virtual CPU registers."""
    slots: Words
    """(memslots, columns)."""
    vmas: Words
    """(VMAs, columns), sorted by address."""
    hpte: Words
    """Host page table entries, one per base page of the VMM's memory."""
    hpmd: Words
    """Host huge-page entries, one per 2M of the VMM's memory."""
    plan: Words
    """(rows, 4): the steps of the host operation under way."""
    dirty: Words
    """Dirty bitmap of the memslots, one bit per page."""
    rmap: Words
    """What the design under test remembers: header, free lists, nodes."""
    side: Words
    """A design's word per descriptor of ``mem`` (length 1 where unused)."""
    ghost: Words
    """The judge's own word per descriptor: canonical address and tag at fill (length 1 if off)."""
    graves: Words
    """The judge's hash of dead leaves: why each nested address last lost its leaf."""


def grow(state: State, name: str) -> State:
    """A state whose array ``name`` is twice as long; contents keep their indices.

    Arrays that run parallel (``frames``, ``free``, ``side``, ``ghost`` beside ``mem``) grow together.
    Raises MemoryError where the machine has no room: nothing is changed then.
    """
    names = [name]
    if name == "mem":
        names = ["mem", "frames", "free"] + [n for n in ("side", "ghost") if len(getattr(state, n)) > 1]
    larger = {}
    for array_name in names:
        old: Words = getattr(state, array_name)
        new = np.zeros((old.shape[0] * 2, *old.shape[1:]), old.dtype)
        new[: old.shape[0]] = old
        larger[array_name] = new
    return state._replace(**larger)


def image_digest(state: State) -> str:
    """SHA-256 of all that is in use: equal digests mean equal machines.

    Room for more frames does not count, so growing ``mem`` leaves the digest as it was.
    """
    used_frames = int(state.regs[R_NEXT_FRAME])
    words = used_frames << (int(state.regs[R_PAGE_SHIFT]) - 3)
    used = {"mem": words, "side": words, "ghost": words, "frames": used_frames}
    used |= {"free": int(state.regs[R_FREE_TOP]), "log": int(state.regs[R_LOG_TOP])}
    digest = hashlib.sha256()
    for name in State._fields:
        part: Words = getattr(state, name)[: used.get(name)]
        digest.update(f"{name} {part.shape} ".encode())
        digest.update(part.tobytes())
    return digest.hexdigest()


def empty_counters() -> Counts:
    """A zeroed counter array."""
    return np.zeros(COUNTERS, np.int64)
