"""What a canonical range is made of: the output addresses that designs keyed by them are asked with.

A design that knows a leaf by its output address must be told which frames the host takes away. L0 reads
them in the VMM's page table at the notifier (``kvm.shadows``) and leaves them here, as runs in the scratch
words of ``State.rmap``: at most ``MOST_RUNS``, about what a kernel has on a stack. More than that is not
kept, and the design falls back to the whole VM.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, inline
from shadowmmu.designs.containers.pool import SCRATCH, SCRATCH_WORDS
from shadowmmu.designs.interface import LEAF_SCAN, OWN, PA_KEYED
from shadowmmu.designs.own import WANTS_OUTPUTS, own_flags
from shadowmmu.machine.state import R_DESIGN, State

MOST_RUNS: Final = (SCRATCH_WORDS - 1) // 2
TOO_MANY: Final = U64(1 << 32)
ZERO: Final = U64(0)
ONE: Final = U64(1)
TWO: Final = U64(2)


@inline
def wants_outputs(s: State) -> bool:
    """Whether the design must be told output addresses before it is asked."""
    design = I64(s.regs[R_DESIGN])
    if design >= OWN:
        return I64(own_flags(design)) & WANTS_OUTPUTS != 0
    return design == PA_KEYED or design == LEAF_SCAN


@inline
def clear_outputs(s: State) -> None:
    """No run yet."""
    s.rmap[SCRATCH] = ZERO


@inline
def outputs_overflow(s: State) -> bool:
    """Whether the range was in more pieces than there is room for."""
    return s.rmap[SCRATCH] == TOO_MANY


@inline
def output_runs(s: State) -> int:
    """How many runs there are."""
    return I64(s.rmap[SCRATCH])


@inline
def output_run(s: State, run: int) -> tuple[Word, Word]:
    """Start and end of a run of output addresses."""
    at = SCRATCH + ONE + U64(run) + U64(run)
    return s.rmap[at], s.rmap[at + ONE]


@inline
def add_output(s: State, pa: Word, size: Word) -> None:
    """Add [pa, pa + size), joined to the last run where it continues it."""
    runs = s.rmap[SCRATCH]
    if runs == TOO_MANY:
        return
    after = SCRATCH + ONE + runs + runs
    if runs != ZERO and s.rmap[after - ONE] == pa:
        s.rmap[after - ONE] = pa + size
    elif runs == U64(MOST_RUNS):
        s.rmap[SCRATCH] = TOO_MANY
    else:
        s.rmap[after] = pa
        s.rmap[after + ONE] = pa + size
        s.rmap[SCRATCH] = runs + ONE
