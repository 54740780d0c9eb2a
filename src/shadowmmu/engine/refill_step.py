"""The loop that steps through recorded fills: what a design would have done with what a real host did.

An event is a fill that a host recorded, a notifier, an invalidation by L1 or a change of permissions (a
relaxed leaf; dirty logging's write protection of all). A fill proves that L2 touched the address just then;
so under another design it is *spared* exactly if the leaf is still there. That is sound as long as the
design never clears what the recorded host kept, and all clear a subset of what a full unmap clears. Mirrors
Linux 7.3.4 ``user_mem_abort`` from the map on.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import SHIFT_4K, entry_size
from shadowmmu.arch.stage2 import OA_BITS, S2AP_R, S2AP_W, VALID, XN
from shadowmmu.arch.tlbi import ipas2_address, ipas2_ttl, ttl_size
from shadowmmu.compiled import I64, U64, Counts, Word, Words, inline, kernel
from shadowmmu.designs.dispatch import (
    design_ahead,
    design_apply,
    design_bytes,
    design_forget,
    design_init,
    design_near,
    design_record,
)
from shadowmmu.designs.interface import (
    CAUSE_INVALIDATED,
    CAUSE_NOTIFIER,
    CAUSE_REPLACED,
    SWEEP,
    SWEEP_VMALLS12,
    UNMAP,
)
from shadowmmu.designs.outputs import add_output, clear_outputs, wants_outputs
from shadowmmu.engine.step import (
    FINISHED,
    FRAMES_PER_STEP,
    NEEDS_FRAMES,
    NEEDS_GRAVES,
    NEEDS_RECORD,
    record_words_per_step,
)
from shadowmmu.kvm.pool import init_shadow, wipe_shadow
from shadowmmu.kvm.tlbi import ipas2_size, level_size, unmap_for_guest, widest_size
from shadowmmu.machine.counters import (
    DESCRIPTORS_READ,
    FIRST_TOUCHES,
    NOTIFIERS,
    REFAULTS_AVOIDABLE,
    REFAULTS_NOTIFIER,
)
from shadowmmu.machine.frames import frames_left
from shadowmmu.machine.ghost import ghost_begin, ghost_birth, ghost_end
from shadowmmu.machine.state import R_DESIGN, R_EVENT, R_GRAVES, State
from shadowmmu.pgtable.ahead import AHEAD, entry_ahead
from shadowmmu.pgtable.attributes import (
    GUEST_LEVEL,
    GUEST_LEVEL_SHIFT,
    SW_BITS,
    find_entry,
    leaf_descriptor,
    relax_permissions,
    write_protect,
)
from shadowmmu.pgtable.context import (
    CANONICAL,
    CNP,
    M_ENABLED,
    M_LEAVES,
    M_VTTBR,
    context_regime,
    init_context,
    input_size,
    shadow_mmus,
)
from shadowmmu.pgtable.iterate import next_leaf
from shadowmmu.pgtable.map import stage2_map
from shadowmmu.pgtable.unmap import unmap_range

# Kinds of event.
FILL: Final = 1
NOTIFY: Final = 2
INVALIDATE_IPA: Final = 3
INVALIDATE_RANGE: Final = 4
RELAX_LEAF: Final = 5
PROTECT_ALL: Final = 6
OUTPUT: Final = 7
"""Frames behind the range of the notifier that follows, as L0 would read them in the VMM's page table: output
addresses in START and END. FLAGS is 1 in the first of a notifier's."""

# Columns of an event. A notifier has its canonical range in START and END.
E_KIND: Final = 0
E_MMU: Final = 1
E_START: Final = 2
E_END: Final = 3
E_WORD: Final = 4
"""A fill's output address, an invalidation's operand, a notifier's "may block"."""
E_PROT: Final = 5
E_CANONICAL: Final = 6
E_OUTPUTS: Final = 6
"""A notifier's number of ``OUTPUT`` events before it."""
E_FLAGS: Final = 7
E_VTTBR: Final = 8
EVENT_COLUMNS: Final = 9

JOINED: Final = U64(1)
"""Flag of a fill: its canonical address is known."""

# What becomes of a recorded fill.
SPARED: Final = 1
FIRST_TOUCH: Final = 2
REFAULT_NEEDED: Final = 3
REFAULT_AVOIDABLE: Final = 4
REFAULT_GUEST: Final = 5
PERMISSION: Final = 6
RESIZED: Final = 7
STALE: Final = 8
UNJOINED: Final = 9
REFAULT_UNPLACED: Final = 10
OUTCOMES: Final = 11

# The span of an invalidation, against the recorded one.
SAME_SPAN: Final = 0
NARROWER_SPAN: Final = 1
OTHER_SPAN: Final = 2

# Columns of the tally, one row an MMU.
T_SHOWN: Final = 0
"""Set by the caller: leaves of this MMU count in ``removed``."""
T_BEFORE: Final = 1
T_NOTIFIER: Final = 2
T_GUEST: Final = 3
TALLY_COLUMNS: Final = 4

PEAK_LEAVES: Final = 0
PEAK_BYTES: Final = 1
PEAKS: Final = 2

ZERO: Final = U64(0)
ONE: Final = U64(1)
TAG_MASK: Final = U64(3)


@kernel
def start_tables(s: State, ipa_bits: int, design: int) -> None:
    """Empty tables for the canonical and every shadow MMU, none with a tenant, and the design's record."""
    for mmu in range(shadow_mmus(s) + 1):
        init_context(s, mmu, ipa_bits)
        if mmu != CANONICAL:
            init_shadow(s, mmu)
    design_init(s, design)


@inline
def refill_room(s: State) -> int:
    """FINISHED if every array has room for an event, else what to grow."""
    if frames_left(s) < FRAMES_PER_STEP:
        return NEEDS_FRAMES
    if s.regs[R_DESIGN] != ZERO and len(s.rmap) - I64(s.rmap[0]) < record_words_per_step(s):
        return NEEDS_RECORD
    if 2 * I64(s.regs[R_GRAVES]) + 1024 > len(s.graves):
        return NEEDS_GRAVES
    return FINISHED


@inline
def permits_all_of(have: Word, want: Word) -> bool:
    """Whether a leaf gives every permission of another (execution: all of it, or the same)."""
    access = S2AP_R | S2AP_W
    return want & access & ~have == ZERO and (have & XN == ZERO or have & XN == want & XN)


@inline
def takes_all(s: State) -> bool:
    """Whether the design asks no canonical address of a leaf: it sweeps."""
    design = I64(s.regs[R_DESIGN])
    return design == SWEEP or design == SWEEP_VMALLS12


@inline
def leaf_level(s: State, mmu: int, size: Word) -> int:
    """The level of a leaf of ``size`` bytes."""
    r = context_regime(s, mmu)
    level = 3
    while entry_size(r, level) < size:
        level -= 1
    return level


@inline
def fate_of(s: State, first: int, notifier: int, avoidable: int) -> int:
    """What the judge's counters, as they were before the fill, say it was."""
    if s.count[FIRST_TOUCHES] != first:
        return FIRST_TOUCH
    if s.count[REFAULTS_AVOIDABLE] != avoidable:
        return REFAULT_AVOIDABLE
    if s.count[REFAULTS_NOTIFIER] != notifier:
        return REFAULT_NEEDED
    return REFAULT_GUEST


@kernel
def put_fill(s: State, event: Words, mmu: int, level: int) -> int:
    """Map the recorded leaf and record it; what kind of fill it is. Mirrors ``kvm_s2_fault_map``."""
    nested_ipa = event[E_START]
    canonical_ipa = event[E_CANONICAL]
    size = event[E_END] - nested_ipa
    first, notifier = s.count[FIRST_TOUCHES], s.count[REFAULTS_NOTIFIER]
    avoidable = s.count[REFAULTS_AVOIDABLE]
    word = stage2_map(s, mmu, nested_ipa, level, event[E_WORD], event[E_PROT])
    tag = (event[E_PROT] >> GUEST_LEVEL_SHIFT) & TAG_MASK
    ghost_birth(s, mmu, nested_ipa, word, canonical_ipa, tag)
    if event[E_FLAGS] & JOINED != ZERO:
        design_record(s, mmu, canonical_ipa, nested_ipa, size, level, word)
    return fate_of(s, first, notifier, avoidable)


@kernel
def step_fill(s: State, event: Words) -> int:
    """A recorded fill: spared if its leaf is there, else carried out; which of the outcomes it is.

    A fill whose canonical address nobody knows is carried out only where no record is needed (``sweep``),
    and of its refaults nobody can say whether the notifier had to; elsewhere it stays out, so that it is
    never counted as spared.
    """
    mmu = I64(event[E_MMU])
    nested_ipa = event[E_START]
    size = event[E_END] - nested_ipa
    s.mmus[mmu, M_VTTBR] = event[E_VTTBR] & ~CNP
    s.mmus[mmu, M_ENABLED] = ONE
    level = leaf_level(s, mmu, size)
    reads = s.count[DESCRIPTORS_READ]
    word, found = find_entry(s, mmu, nested_ipa)
    s.count[DESCRIPTORS_READ] = reads  # the hardware's walk, not L0's work
    old = s.mem[word]
    stale = False
    if old & VALID != ZERO:
        inside = entry_size(context_regime(s, mmu), found) - ONE
        output = (old & OA_BITS & ~inside) | (nested_ipa & inside)
        stale = output != event[E_WORD]
        if not stale and found <= level:
            if permits_all_of(old, leaf_descriptor(s, event[E_WORD], level, event[E_PROT])):
                return SPARED
            relax_permissions(s, mmu, nested_ipa, event[E_PROT] & ~SW_BITS)
            return PERMISSION
    resized = old & VALID != ZERO or (level < 3 and next_leaf(s, mmu, nested_ipa, event[E_END]).word != ZERO)
    if event[E_FLAGS] & JOINED == ZERO and not takes_all(s):
        return STALE if stale else UNJOINED
    if resized or level < 3:
        design_forget(s, mmu, nested_ipa, event[E_END], CAUSE_REPLACED)
    fate = put_fill(s, event, mmu, level)
    if stale:
        return STALE
    if event[E_FLAGS] & JOINED == ZERO and (fate == REFAULT_NEEDED or fate == REFAULT_AVOIDABLE):
        fate = REFAULT_UNPLACED
    return RESIZED if resized else fate


@kernel
def invalidate_exactly(s: State, mmu: int, operand: Word) -> None:
    """An IPAS2E1 that takes only leaves made from the L1 leaf it names.

    With a TTL hint its range is that leaf's. Without one the level tag of each shadow leaf in the widest
    span says how large L1's leaf was: those whose L1 leaf does not hold the address stay (Arm ARM D8.16: the
    invalidation applies to entries for the address). A leaf without tag goes.
    """
    nested_ipa = ipas2_address(operand)
    size = ttl_size(ipas2_ttl(operand))
    if size != ZERO:
        unmap_for_guest(s, mmu, nested_ipa & ~(size - ONE), size)
        return
    widest = widest_size(SHIFT_4K)
    at = nested_ipa & ~(widest - ONE)
    end = at + widest
    while at < end and end <= input_size(s, mmu):
        visit = next_leaf(s, mmu, at, end)
        if visit.word == ZERO:
            return
        at = visit.after
        tag = (s.mem[visit.word] & GUEST_LEVEL) >> GUEST_LEVEL_SHIFT
        span = level_size(SHIFT_4K, I64(tag)) if tag != ZERO else widest
        if span < visit.after - visit.ipa:
            span = visit.after - visit.ipa
        if visit.ipa & ~(span - ONE) == nested_ipa & ~(span - ONE):
            design_forget(s, mmu, visit.ipa, visit.after, CAUSE_INVALIDATED)
            unmap_range(s, mmu, visit.ipa, visit.after, True)


@kernel
def step_invalidation(s: State, event: Words, exact: bool) -> int:
    """L1's own invalidation of one shadow MMU; how its span by KVM's rule compares with the recorded one."""
    mmu = I64(event[E_MMU])
    start = event[E_START]
    size = event[E_END] - start
    if I64(event[E_KIND]) == INVALIDATE_RANGE:
        if start == ZERO and size >= input_size(s, mmu):
            wipe_shadow(s, mmu)
        else:
            unmap_for_guest(s, mmu, start, size)
        return SAME_SPAN
    if exact:
        invalidate_exactly(s, mmu, event[E_WORD])
        return NARROWER_SPAN
    span = ipas2_size(s, mmu, event[E_WORD])
    base = ipas2_address(event[E_WORD]) & ~(span - ONE)
    unmap_for_guest(s, mmu, base, span)
    if base == start and span == size:
        return SAME_SPAN
    return NARROWER_SPAN if base >= start and base + span <= start + size else OTHER_SPAN


@kernel
def step_notifier(s: State, event: Words) -> None:
    """The host takes a canonical range away. Mirrors ``kvm_unmap_gfn_range``, shadows only."""
    s.count[NOTIFIERS] += 1
    if wants_outputs(s) and event[E_OUTPUTS] == ZERO:
        clear_outputs(s)
    ghost_begin(s, event[E_START], event[E_END])
    design_apply(s, event[E_START], event[E_END], event[E_WORD] != ZERO, CAUSE_NOTIFIER, UNMAP)
    ghost_end(s)


@inline
def note_leaves(s: State, tally: Counts, peaks: Counts) -> None:
    """Remember how many leaves each MMU has, and the most there were."""
    leaves = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        tally[mmu, T_BEFORE] = I64(s.mmus[mmu, M_LEAVES])
        leaves += I64(s.mmus[mmu, M_LEAVES])
    peaks[PEAK_LEAVES] = max(I64(peaks[PEAK_LEAVES]), leaves)
    peaks[PEAK_BYTES] = max(I64(peaks[PEAK_BYTES]), I64(design_bytes(s)))


@inline
def count_removed(s: State, tally: Counts, column: int) -> int:
    """Add what each MMU lost since ``note_leaves``; the sum over the MMUs that are shown."""
    removed = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        gone = tally[mmu, T_BEFORE] - I64(s.mmus[mmu, M_LEAVES])
        tally[mmu, column] += gone
        removed += gone * tally[mmu, T_SHOWN]
    return removed


@inline
def look_ahead(s: State, events: Words, i: int, stop: int) -> None:
    """Start fetching what events a little later will meet."""
    if i + 2 * AHEAD < stop:
        far = events[i + 2 * AHEAD]
        if I64(far[E_KIND]) == NOTIFY:
            design_ahead(s, far[E_START])
    if i + AHEAD < stop:
        near = events[i + AHEAD]
        if I64(near[E_KIND]) == FILL:
            entry_ahead(s, I64(near[E_MMU]), near[E_START])
            design_ahead(s, near[E_CANONICAL])
        elif I64(near[E_KIND]) == NOTIFY:
            design_near(s, near[E_START])


@kernel
def refill_events(
    s: State,
    events: Words,
    outcomes: Counts,
    removed: Counts,
    tally: Counts,
    peaks: Counts,
    start: int,
    stop: int,
    exact: bool,
) -> int:
    """Step through events ``start`` up to ``stop``; FINISHED, or what to grow (``R_EVENT`` says where).

    ``outcomes`` gets the outcome of each fill (of an invalidation: its span against the recorded
    one), ``removed`` the leaves each event took. ``exact``: L1's invalidations take what they name.
    """
    for i in range(start, stop):
        s.regs[R_EVENT] = U64(i)
        wanted = refill_room(s)
        if wanted != FINISHED:
            return wanted
        look_ahead(s, events, i, stop)
        event = events[i]
        kind = I64(event[E_KIND])
        if kind == FILL:
            outcomes[i] = step_fill(s, event)
        elif kind == OUTPUT:
            if wants_outputs(s):
                if event[E_FLAGS] != ZERO:
                    clear_outputs(s)
                add_output(s, event[E_START], event[E_END] - event[E_START])
        elif kind == NOTIFY:
            note_leaves(s, tally, peaks)
            step_notifier(s, event)
            removed[i] = count_removed(s, tally, T_NOTIFIER)
        elif kind == INVALIDATE_IPA or kind == INVALIDATE_RANGE:
            note_leaves(s, tally, peaks)
            outcomes[i] = step_invalidation(s, event, exact)
            removed[i] = count_removed(s, tally, T_GUEST)
        elif kind == RELAX_LEAF:
            relax_permissions(s, I64(event[E_MMU]), event[E_START], event[E_PROT] & ~SW_BITS)
        elif kind == PROTECT_ALL:
            for mmu in range(1, shadow_mmus(s) + 1):
                write_protect(s, mmu, ZERO, input_size(s, mmu))
    note_leaves(s, tally, peaks)
    s.regs[R_EVENT] = U64(stop)
    return FINISHED
