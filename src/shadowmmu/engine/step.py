"""The loop that executes events.

Each event is a run of small steps; before each the loop makes sure that every array has room for the
worst that step can need, and otherwise stops and says which one to double. It resumes where it stopped.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Words, inline, kernel
from shadowmmu.engine.actions import (
    EVENT_DONE,
    EVENT_STUCK,
    IN_GAP,
    MORE,
    command_l1,
    guest_action,
    host_action,
    mark_idle,
    start_l1,
)
from shadowmmu.engine.interleaved import interleaved_action
from shadowmmu.engine.slot_actions import slot_action
from shadowmmu.engine.vcpu_actions import vcpu_action
from shadowmmu.events.schema import (
    CAPABILITY,
    DONTNEED,
    DUMP,
    ENTER,
    GAP,
    GETLOG,
    IDLEGET,
    KHUGEPAGED,
    KSM,
    LOG,
    MARK,
    MIGRATE,
    NUMA_HINT,
    PAGEMAP,
    PUNCH,
    SLOT,
    SWAP,
    TEARDOWN,
    VNCR,
)
from shadowmmu.guest.layout import G_CURSOR, G_POOL, ONE, ZERO
from shadowmmu.host.setup import frames_per_step, host_reserve
from shadowmmu.kvm.layout import K_RING
from shadowmmu.kvm.split import splits, tables_of_chunk
from shadowmmu.machine.frames import frames_left
from shadowmmu.machine.log import ROWS_PER_STEP
from shadowmmu.machine.state import (
    DATA_BASE,
    R_DESIGN,
    R_EVENT,
    R_GHOST_ON,
    R_GRAVES,
    R_LOG_ON,
    R_LOG_TOP,
    R_NEXT_DATA,
    R_PA_BITS,
    R_PAGE_SHIFT,
    R_STRIDE,
    State,
)
from shadowmmu.pgtable.context import shadow_mmus

FINISHED: Final = 0
NEEDS_FRAMES: Final = 1
NEEDS_HOST: Final = 2
NEEDS_RECORD: Final = 3
NEEDS_LOG: Final = 4
NEEDS_GRAVES: Final = 5
OBSERVE: Final = 6
STOPPED: Final = 7
INSIDE: Final = 9
"""In the middle of an event, where the judge may look."""
OUT_OF_PHYSICAL: Final = 8
"""The modelled machine has no data page left below its output size; data pages are never used twice."""

FRAMES_PER_STEP: Final = 64
"""Table frames one step may take: a few canonical and shadow maps, and content for L1's tables."""
RECORD_PAGES_PER_STEP: Final = 32
"""Pages' worth of words of a design's record one step may take (its own reserve constants are below this)."""


@inline
def rows_per_step(s: State) -> int:
    """Rows of the observation log one step may write: a notifier or a TLBI writes one a shadow MMU.

    A full dirty ring may be harvested in any step.
    """
    return (ROWS_PER_STEP + 2 * I64(s.regs[K_RING])) * (2 + shadow_mmus(s))


@inline
def record_words_per_step(s: State) -> int:
    """Words of a design's record one step may take: nodes that look like page tables are the largest."""
    return RECORD_PAGES_PER_STEP << I64(s.regs[R_STRIDE])


@inline
def room(s: State) -> int:
    """FINISHED if every array has room for a step, else what to grow."""
    tables = I64(tables_of_chunk(s)) if splits(s) else 0
    if frames_left(s) < FRAMES_PER_STEP + 2 * I64(s.regs[K_RING]) + tables:
        return NEEDS_FRAMES
    if not host_reserve(s):
        return NEEDS_HOST
    highest = DATA_BASE + ((s.regs[R_NEXT_DATA] + U64(frames_per_step(s))) << s.regs[R_PAGE_SHIFT])
    if highest > ONE << s.regs[R_PA_BITS]:
        return OUT_OF_PHYSICAL
    if s.regs[R_DESIGN] != ZERO and len(s.rmap) - I64(s.rmap[0]) < record_words_per_step(s):
        return NEEDS_RECORD
    if s.regs[R_LOG_ON] != ZERO and I64(s.regs[R_LOG_TOP]) + rows_per_step(s) > len(s.log):
        return NEEDS_LOG
    if s.regs[R_GHOST_ON] != ZERO and 2 * I64(s.regs[R_GRAVES]) + 1024 > len(s.graves):
        return NEEDS_GRAVES
    return FINISHED


@inline
def observation(kind: int) -> bool:
    """Whether Python must look before the loop goes on."""
    return kind == DUMP or kind == PAGEMAP or kind == GETLOG or kind == IDLEGET


@inline
def host_work(kind: int) -> bool:
    """Whether the kind of event is the host's own work on its memory."""
    return kind == KHUGEPAGED or kind == MIGRATE or kind == KSM or kind == SWAP or kind == NUMA_HINT


@kernel
def run_events(s: State, kinds: Words, operands: Words, start: int, stop: int) -> int:
    """Execute events ``start`` up to ``stop``; why it stopped. ``R_EVENT`` says where.

    ``operands`` has seven columns: the vCPU, then a..f. An observation stops the loop after the event.
    """
    i = start
    while i < stop:
        s.regs[R_EVENT] = U64(i)
        wanted = room(s)
        if wanted != FINISHED:
            return wanted
        if s.regs[G_POOL] == ZERO:
            start_l1(s)
        kind = I64(kinds[i])
        vcpu = I64(operands[i, 0])
        outcome = EVENT_DONE
        if kind == MARK or observation(kind):
            outcome = EVENT_DONE
        elif kind < DONTNEED:
            outcome = guest_action(s, kind, vcpu, operands[i])
        elif kind <= PUNCH or host_work(kind):
            outcome = host_action(s, kind, operands[i])
        elif kind >= ENTER and kind <= TEARDOWN:
            if kind == ENTER:
                command_l1(s, vcpu)
            if not vcpu_action(s, kind, vcpu, operands[i]):
                outcome = EVENT_STUCK
        elif kind >= VNCR and kind <= GAP:
            outcome = interleaved_action(s, kind, vcpu, operands[i])
        elif kind == LOG or kind == SLOT or kind >= CAPABILITY:
            outcome = slot_action(s, kind, operands[i])
        else:
            outcome = mark_idle(s, operands[i])
        if outcome == MORE:
            continue
        if outcome == IN_GAP:
            return INSIDE
        s.regs[G_CURSOR] = ZERO
        if outcome == EVENT_STUCK:
            return STOPPED
        i += 1
        s.regs[R_EVENT] = U64(i)
        if observation(kind):
            return OBSERVE
    return FINISHED
