"""``spanning_v2``: the spanning ranges before they heard of TLBIs. Wei-Lin Chang, v2 of April 2026.

Idea: the map of ``spanning`` alone, one maple tree a shadow MMU from canonical range to nested address,
with UNKNOWN for what overlaps and a flag for a record that is not complete. There is no direct map, and
nothing is removed when L1 invalidates. It runs the code of ``spanning``, whose direct map is then missing.
Guarantees: as ``spanning``: every mapped canonical byte lies in an entry, or the MMU is broken. A failed
store marks the MMU broken; its next unmap takes it whole and heals it.
Fails by degrading, sooner than v3: an entry that L1's TLBI left behind meets the next owner of its
canonical range and both become UNKNOWN, and a stale entry makes an unmap take what its nested address maps
by then. An L1 that moves pages about gets ``sweep`` though it never maps one twice.
Bytes a leaf: one maple entry of 16; 19 measured, fills in order.
"""

from __future__ import annotations

from shadowmmu.compiled import kernel
from shadowmmu.designs.spanning import spanning_init
from shadowmmu.machine.state import State


@kernel
def spanning_v2_init(s: State) -> None:
    """One empty tree for each shadow MMU."""
    spanning_init(s, False)
