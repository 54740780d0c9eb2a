"""``leaf_scan``: look at every leaf. The inverted sweep; written down with this project, never posted.

Idea: there is no record. An unmap reads the shadow tables and takes the leaves whose *output address* the
host is about to take away, and no other. Which addresses those are L0 reads in the VMM's page table at the
notifier, as for ``pa_keyed``.
Guarantees: nothing can be missed, since the tables are all there is to know; no memory (0 bytes a leaf),
no failure, no race with fills, nothing to do for TLBIs or recycling. Leaves outside the range stay, so
nothing is faulted in again for nothing. A range in more than ``MOST_RUNS`` pieces is swept, counted as a
fallback to the whole VM.
Fails by cost: every notifier reads every leaf of every valid shadow MMU under mmu_lock; and where frames
are shared (zero page, KSM) it takes all sharers. It would be unsafe if the host changed the entry before
the notifier.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import level_shift
from shadowmmu.arch.stage2 import OA_BITS, TABLE, VALID
from shadowmmu.compiled import U64, Word, inline, kernel
from shadowmmu.designs.actions import clear_leaf_bits
from shadowmmu.designs.interface import UNMAP
from shadowmmu.designs.outputs import output_run, output_runs, outputs_overflow
from shadowmmu.designs.sweep import fall_back_to_vm
from shadowmmu.machine.calls import cond_resched_lock
from shadowmmu.machine.counters import DESCRIPTORS_READ, DESCRIPTORS_SCANNED, MMUS_VISITED
from shadowmmu.machine.frames import frame_of, is_table
from shadowmmu.machine.state import State
from shadowmmu.pgtable.attributes import find_entry, next_entry
from shadowmmu.pgtable.context import (
    M_LEAVES,
    context_regime,
    input_size,
    largest_block,
    shadow_mmus,
    shadow_valid,
)
from shadowmmu.pgtable.tlb import defers_tlbi, flush_ipa, flush_range
from shadowmmu.pgtable.unmap import clear_leaf

ZERO: Final = U64(0)
ONE: Final = U64(1)


@inline
def leads_to_outputs(s: State, descriptor: Word, size: Word) -> bool:
    """Whether a leaf of ``size`` bytes overlaps an output run. O(runs)."""
    pa = descriptor & OA_BITS & ~(size - ONE)
    for run in range(output_runs(s)):
        start, end = output_run(s, run)
        if pa < end and start < pa + size:
            return True
    return False


@inline
def scan_entry(s: State, mmu: int, word: Word, size: Word, action: int) -> int:
    """Act on the leaf at ``word`` if it leads to an output run; 1 if it went or changed."""
    descriptor = s.mem[word]
    if descriptor & VALID == ZERO or not leads_to_outputs(s, descriptor, size):
        return 0
    if action != UNMAP:
        return clear_leaf_bits(s, word, action)
    leaf = clear_leaf(s, word)
    if defers_tlbi(s):
        flush_range(s, mmu, leaf.ipa, size)
    else:
        flush_ipa(s, mmu, leaf.ipa)
    return 1


@kernel
def scan_mmu(s: State, mmu: int, may_block: bool, action: int) -> int:
    """Act on the leaves of one MMU that lead to an output run. O(entries of its tables x runs)."""
    r = context_regime(s, mmu)
    end = input_size(s, mmu)
    chunk = largest_block(r)
    before = s.count[DESCRIPTORS_READ]
    changed = 0
    ipa = ZERO
    while ipa < end:
        word, level = find_entry(s, mmu, ipa)
        size = ONE << U64(level_shift(r, level))
        frame = frame_of(s, word)
        after = next_entry(r, ipa, level - 1) if level > r.start_level else end
        s.count[DESCRIPTORS_READ] -= 1  # the run below begins with this very entry
        while ipa < after and (level == 3 or s.mem[word] & TABLE == ZERO):
            s.count[DESCRIPTORS_READ] += 1
            changed += scan_entry(s, mmu, word, size, action)
            word += ONE
            ipa = next_entry(r, ipa, level)  # a table freed before may have left it inside an entry
            if not is_table(s, frame):
                ipa = after  # its last leaf went, and the table with it
        if may_block and ipa < end and ipa % chunk == ZERO:
            cond_resched_lock(s)
    s.count[DESCRIPTORS_SCANNED] += s.count[DESCRIPTORS_READ] - before
    return changed


@kernel
def leaf_scan_apply(s: State, may_block: bool, action: int) -> int:
    """Act on what leads to the output addresses L0 left, or on the whole VM if they were too many."""
    if outputs_overflow(s):
        return fall_back_to_vm(s, may_block, action)
    changed = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        if shadow_valid(s, mmu) and s.mmus[mmu, M_LEAVES] != ZERO and output_runs(s) > 0:
            s.count[MMUS_VISITED] += 1
            changed += scan_mmu(s, mmu, may_block, action)
    return changed
