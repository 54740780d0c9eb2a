"""A list: every fill is written down, every unmap reads the whole list. The template of a design.

Idea: each shadow MMU has one linked list of its leaves, a node of four words each: the next node, the
canonical address, the nested address, the size. An unmap takes the entries that overlap its range.
Guarantees: every fill is in the list until its leaf goes, so nothing is missed; what has no memory marks
its MMU broken, and the next unmap takes that MMU whole, once.
Fails by cost: an unmap, and every invalidation by L1, reads the list from end to end.
Bytes a leaf: 32.

Copy it (`shadowmmu designs --template > mydesign.py`), change it, put it through the conformance kit
(`shadowmmu designs --check mydesign.py`), and compare it (`shadowmmu compare --design sweep,mydesign.py`).
The rules of kernel code are in ``shadowmmu.compiled``: addresses and words are U64, counts and levels are
plain integers, the two never meet in one expression, nothing is allocated, nothing raised.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.designs.actions import act_on_range, act_on_whole_mmu
from shadowmmu.designs.containers.pool import node_alloc, node_free, pool_check, pool_reset, pool_used
from shadowmmu.designs.interface import AGE, PROTECT, UNMAP
from shadowmmu.machine.calls import GFP_NOWAIT, allocation_fails, tree_lock, tree_unlock
from shadowmmu.machine.counters import BROKEN, FALLBACK_MMU, LOOKUPS, MMUS_VISITED, NODES_VISITED
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import M_DESIGN, shadow_mmus, shadow_valid

NAME: Final = "list"
"""How reports call it; the file's name if this line is missing."""
ORIGIN: Final = "the template"
IDEA: Final = "a linked list of (canonical, nested, size) a shadow MMU, read from end to end"
CLAIMS_SAFETY: Final = True
"""False would make it a negative control, whose refutation is no failure."""
USES_SIDE: Final = False
"""True: ``s.side`` has a word beside every descriptor, for the design to use."""
WANTS_OUTPUTS: Final = False
"""True: before unmap, age and protect, the output addresses behind the range stand in ``designs.outputs``."""

M_HEAD: Final = M_DESIGN
"""Columns M_DESIGN to M_DESIGN + 10 of an MMU are the design's own: here the first node of its list."""
M_BROKEN: Final = M_DESIGN + 1

N_NEXT: Final = U64(0)
N_CANONICAL: Final = U64(1)
N_NESTED: Final = U64(2)
N_SIZE: Final = U64(3)
NODE: Final = U64(2)
"""Size class of a node: 1 << 2 words."""
ZERO: Final = U64(0)
ONE: Final = U64(1)


@kernel
def init(s: State) -> None:
    """The machine starts: an empty record. ``s.rmap`` is a pool and grows between events."""
    pool_reset(s.rmap)
    for mmu in range(1, shadow_mmus(s) + 1):
        s.mmus[mmu, M_HEAD] = ZERO
        s.mmus[mmu, M_BROKEN] = ZERO


@inline
def drop_all(s: State, mmu: int) -> None:
    """Empty the list of one MMU, which is then whole again."""
    node = s.mmus[mmu, M_HEAD]
    while node != ZERO:
        after = s.rmap[node + N_NEXT]
        node_free(s.rmap, NODE, node)
        node = after
    s.mmus[mmu, M_HEAD] = ZERO
    s.mmus[mmu, M_BROKEN] = ZERO


@inline
def overlaps(s: State, node: Word, field: Word, start: Word, end: Word) -> bool:
    """Whether the range at ``field`` of a node meets [start, end)."""
    first = s.rmap[node + field]
    return first < end and start < first + s.rmap[node + N_SIZE]


@kernel
def record(
    s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word, level: int, word: Word
) -> None:
    """A leaf was filled: ``word`` is the index of its descriptor in ``s.mem``, ``size`` in bytes.

    mmu_lock is held for read only, so the list has a lock of its own; nothing may sleep.
    """
    node = ZERO
    if not allocation_fails(s, GFP_NOWAIT):
        node = node_alloc(s.rmap, NODE)
    if node == ZERO:
        s.mmus[mmu, M_BROKEN] = ONE
        s.count[BROKEN] += 1
        return
    tree_lock(s)
    s.rmap[node + N_NEXT] = s.mmus[mmu, M_HEAD]
    s.rmap[node + N_CANONICAL] = canonical_ipa
    s.rmap[node + N_NESTED] = nested_ipa
    s.rmap[node + N_SIZE] = size
    s.mmus[mmu, M_HEAD] = node
    tree_unlock(s)


@kernel
def forget(s: State, mmu: int, start: Word, end: Word, cause: int) -> None:
    """Leaves of nested [start, end) are about to go: L1 invalidates them, or another leaf replaces them.

    A leaf that sticks out of the range goes whole.
    """
    tree_lock(s)
    before = ZERO
    node = s.mmus[mmu, M_HEAD]
    while node != ZERO:
        s.count[NODES_VISITED] += 1
        after = s.rmap[node + N_NEXT]
        if overlaps(s, node, N_NESTED, start, end):
            if before == ZERO:
                s.mmus[mmu, M_HEAD] = after
            else:
                s.rmap[before + N_NEXT] = after
            node_free(s.rmap, NODE, node)
        else:
            before = node
        node = after
    tree_unlock(s)


@kernel
def forget_mmu(s: State, mmu: int) -> None:
    """A whole shadow MMU is about to be wiped: L1 invalidates its VMID, or it gets another tenant."""
    drop_all(s, mmu)


@kernel
def act_on_mmu(s: State, mmu: int, start: Word, end: Word, may_block: bool, action: int) -> int:
    """One MMU's part of ``act_on_all``; only an unmap takes entries off."""
    if s.mmus[mmu, M_BROKEN] != ZERO:
        s.count[FALLBACK_MMU] += 1
        changed = act_on_whole_mmu(s, mmu, may_block, action)
        if action == UNMAP:  # after it: meanwhile another notifier may get the lock
            drop_all(s, mmu)
        return changed
    changed = 0
    before = ZERO
    node = s.mmus[mmu, M_HEAD]
    while node != ZERO:
        s.count[NODES_VISITED] += 1
        after = s.rmap[node + N_NEXT]
        if not overlaps(s, node, N_CANONICAL, start, end):
            before = node
            node = after
            continue
        nested_ipa = s.rmap[node + N_NESTED]
        size = s.rmap[node + N_SIZE]
        if action == UNMAP:
            if before == ZERO:
                s.mmus[mmu, M_HEAD] = after
            else:
                s.rmap[before + N_NEXT] = after
            node_free(s.rmap, NODE, node)
        else:
            before = node
        # may_block is False: giving way here would let others change the list under our feet.
        changed += act_on_range(s, mmu, nested_ipa, nested_ipa + size, False, action)
        node = after
    return changed


@kernel
def act_on_all(s: State, start: Word, end: Word, may_block: bool, action: int) -> int:
    """Unmap, age or protect what maps canonical [start, end) in any shadow MMU; how many leaves changed."""
    s.count[LOOKUPS] += 1
    changed = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        if shadow_valid(s, mmu):
            s.count[MMUS_VISITED] += 1
            changed += act_on_mmu(s, mmu, start, end, may_block, action)
    return changed


@kernel
def unmap(s: State, start: Word, end: Word, may_block: bool, cause: int) -> int:
    """The host takes canonical [start, end); mmu_lock is held for write. How many leaves went."""
    return act_on_all(s, start, end, may_block, UNMAP)


@kernel
def age(s: State, start: Word, end: Word, may_block: bool) -> int:
    """Clear the access flag of what maps canonical [start, end); the record stays as it is."""
    return act_on_all(s, start, end, may_block, AGE)


@kernel
def protect(s: State, start: Word, end: Word, may_block: bool) -> int:
    """Take the write permission of what maps canonical [start, end); the record stays as it is."""
    return act_on_all(s, start, end, may_block, PROTECT)


@kernel
def covers(
    s: State, mmu: int, canonical_ipa: Word, nested_ipa: Word, size: Word, level: int, word: Word
) -> bool:
    """For the judge: would an unmap of any part of this leaf find it? Must change nothing. Optional."""
    if s.mmus[mmu, M_BROKEN] != ZERO:
        return True
    node = s.mmus[mmu, M_HEAD]
    while node != ZERO:
        if s.rmap[node + N_CANONICAL] == canonical_ipa and s.rmap[node + N_NESTED] == nested_ipa:
            if s.rmap[node + N_SIZE] == size:
                return True
        node = s.rmap[node + N_NEXT]
    return False


@kernel
def recorded(s: State) -> int:
    """How many entries the record holds. Optional."""
    return I64(pool_used(s.rmap) >> U64(5))


@kernel
def footprint(s: State) -> int:
    """Bytes of the record now."""
    return I64(pool_used(s.rmap))


def check(state: State) -> None:
    """Every invariant of the record itself, as plain Python; raises AssertionError. Optional."""
    pool_check(state.rmap)
    for mmu in range(1, shadow_mmus(state) + 1):
        taken: set[int] = set()
        node = int(state.mmus[mmu, M_HEAD])
        while node:
            nested_ipa = int(state.rmap[node + 2])
            assert nested_ipa not in taken, f"nested IPA {nested_ipa:#x} is in the list of MMU {mmu} twice"
            taken.add(nested_ipa)
            node = int(state.rmap[node])
