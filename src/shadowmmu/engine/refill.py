"""Driving the loop over recorded fills: the machine it needs, room for it, and what came out.

The machine has the canonical context, one shadow MMU for each recorded table, and the judge's memory of
births and deaths; no host, no vCPU, no guest: all they did is in the events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from shadowmmu.compiled import Counts, Words, compilation_finished
from shadowmmu.designs.dispatch import design_footprint
from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.engine.executor import announce_compilation
from shadowmmu.engine.refill_step import (
    E_KIND,
    FILL,
    INVALIDATE_IPA,
    NOTIFY,
    OTHER_SPAN,
    OUTCOMES,
    PEAK_BYTES,
    PEAK_LEAVES,
    PEAKS,
    T_GUEST,
    T_NOTIFIER,
    T_SHOWN,
    TALLY_COLUMNS,
    refill_events,
    start_tables,
)
from shadowmmu.engine.step import FINISHED, NEEDS_FRAMES, NEEDS_RECORD
from shadowmmu.machine.ghost import grave_rehash
from shadowmmu.machine.state import (
    R_EVENT,
    R_FWB,
    R_GHOST_ON,
    R_NEXT_FRAME,
    R_PA_BITS,
    R_PAGE_SHIFT,
    R_STRIDE,
    R_TLBIRANGE,
    REGISTERS,
    State,
    empty_counters,
    grow,
)
from shadowmmu.pgtable.context import MMU_COLUMNS, R_SHADOWS

FIRST_FRAMES: Final = 1024
FIRST_RECORD_WORDS: Final = 1 << 16
FIRST_GRAVES: Final = 1 << 12
"""Sizes to start with; what runs out is doubled."""
OUTPUT_BITS: Final = 48


@dataclass(frozen=True)
class Refilled:
    """What one design made of the events.

    ``outcomes`` and ``removed`` have an entry an event, ``counts`` the machine's counters over all shadow
    MMUs. ``fills`` counts the fills of the shown MMUs by outcome, ``taken`` their leaves by what took them
    (a notifier, L1). ``other_spans`` counts invalidations that took what the recorded ones did not.
    """

    design: str
    exact: bool
    outcomes: Counts
    removed: Counts
    counts: Counts
    fills: tuple[int, ...]
    taken: tuple[int, int]
    notifiers_that_hit: int
    other_spans: int
    peak_leaves: int
    peak_bytes: int


def table_state(design: str, mmus: int, ipa_bits: int) -> State:
    """A machine of ``mmus`` empty shadow MMUs with ``ipa_bits`` of input. KeyError for an unknown design."""
    chosen = CATALOGUE[design]

    def words(*shape: int) -> Words:
        return np.zeros(shape, np.uint64)

    none = words(1)
    rows = words(1, 8)
    frames = FIRST_FRAMES + 64 * mmus
    state = State(
        mem=words(frames * 512),
        frames=words(frames, 4),
        free=words(frames),
        content=none,
        regs=words(REGISTERS),
        count=empty_counters(),
        log=rows,
        mmus=words(mmus + 1, MMU_COLUMNS),
        vcpus=rows,
        slots=rows,
        vmas=rows,
        hpte=none,
        hpmd=none,
        plan=rows,
        dirty=none,
        rmap=words(FIRST_RECORD_WORDS + 256 * mmus),
        side=words(frames * 512 if chosen.uses_side else 1),
        ghost=words(frames * 512),
        graves=words(FIRST_GRAVES),
    )
    state.regs[R_PAGE_SHIFT] = 12
    state.regs[R_STRIDE] = 9
    state.regs[R_NEXT_FRAME] = 1
    state.regs[R_PA_BITS] = OUTPUT_BITS
    state.regs[R_TLBIRANGE] = 1
    state.regs[R_FWB] = 1
    state.regs[R_GHOST_ON] = 1
    state.regs[R_SHADOWS] = mmus
    start_tables(state, ipa_bits, chosen.number)
    return state


def with_room(state: State, reason: int) -> State:
    """The state with the array that ``reason`` names twice as long. Raises MemoryError."""
    if reason == NEEDS_FRAMES:
        return grow(state, "mem")
    if reason == NEEDS_RECORD:
        return grow(state, "rmap")
    larger = np.zeros(len(state.graves) * 2, np.uint64)
    grave_rehash(state.graves, larger)
    return state._replace(graves=larger)


def refill(design: str, events: Words, shown: list[bool], ipa_bits: int, exact: bool) -> Refilled:
    """Step through ``events`` under ``design``. ``shown`` says for each shadow MMU whether to count it.

    Raises KeyError for an unknown design, MemoryError where the machine has no room.
    """
    announce_compilation()
    state = table_state(design, len(shown), ipa_bits)
    outcomes = np.zeros(len(events), np.int64)
    removed = np.zeros(len(events), np.int64)
    tally = np.zeros((len(shown) + 1, TALLY_COLUMNS), np.int64)
    tally[1:, T_SHOWN] = shown
    peaks = np.zeros(PEAKS, np.int64)
    at = 0
    while True:
        reason = refill_events(state, events, outcomes, removed, tally, peaks, at, len(events), exact)
        if reason == FINISHED:
            break
        at = int(state.regs[R_EVENT])
        state = with_room(state, int(reason))
    compilation_finished()
    kinds = events[:, E_KIND]
    visible = tally[events[:, 1].astype(np.int64), T_SHOWN] == 1
    fills = np.bincount(outcomes[(kinds == FILL) & visible], minlength=OUTCOMES)
    return Refilled(
        design=design,
        exact=exact,
        outcomes=outcomes,
        removed=removed,
        counts=state.count,
        fills=tuple(int(value) for value in fills),
        taken=(
            int((tally[:, T_NOTIFIER] * tally[:, T_SHOWN]).sum()),
            int((tally[:, T_GUEST] * tally[:, T_SHOWN]).sum()),
        ),
        notifiers_that_hit=int(((kinds == NOTIFY) & (removed > 0)).sum()),
        other_spans=int((outcomes[kinds == INVALIDATE_IPA] == OTHER_SPAN).sum()),
        peak_leaves=int(peaks[PEAK_LEAVES]),
        peak_bytes=max(int(peaks[PEAK_BYTES]), int(design_footprint(state))),
    )
