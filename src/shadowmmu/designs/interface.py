"""What every design is: its number, its memory, and the calls it answers.

A design keeps its record in ``State.rmap`` (its own words), in the ``M_DESIGN`` columns of each MMU and,
if it asks for it, in ``State.side`` (one word a descriptor). The calls, dispatched by number in
``designs.dispatch``:

- ``record(mmu, canonical, nested, size, level, word)`` after a fill, mmu_lock held for read, no sleep;
- ``forget(mmu, nested range, cause)`` before L1's invalidation, or another leaf, takes leaves away;
- ``forget_mmu(mmu)`` before a whole shadow MMU is wiped for another reason than a notifier;
- ``unmap(canonical range)`` with mmu_lock held for write, which a blockable caller may lose;
- ``covers(mmu, canonical, nested, size, word)``: would ``unmap`` find this leaf? (for the judge);
- ``footprint()``: bytes of the record now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SWEEP: Final = 0
RBTREE_2024: Final = 1
SPANNING: Final = 2
REVERSE_TABLE: Final = 3

CAUSE_NOTIFIER: Final = 0
CAUSE_MEMSLOT: Final = 1
CAUSE_INVALIDATED: Final = 2
CAUSE_REPLACED: Final = 3


@dataclass(frozen=True)
class Design:
    """One entry of the catalogue. ``claims_safety`` False marks a negative control."""

    number: int
    name: str
    origin: str
    idea: str
    claims_safety: bool
    uses_side: bool = False


CATALOGUE: Final[dict[str, Design]] = {
    d.name: d
    for d in (
        Design(
            SWEEP,
            "sweep",
            "Linux 7.3.4",
            "no record: unmap every valid shadow MMU over its whole IPA range, in chunks",
            claims_safety=True,
        ),
        Design(
            RBTREE_2024,
            "rbtree_2024",
            "RFC, March 2024",
            "red-black tree a shadow MMU, exact match on the start of a canonical range; a lookup removes",
            claims_safety=False,
        ),
        Design(
            SPANNING,
            "spanning",
            "Chang v3, May 2026",
            "maple tree a shadow MMU of canonical ranges; overlap becomes UNKNOWN; direct map for TLBIs",
            claims_safety=True,
        ),
        Design(
            REVERSE_TABLE,
            "reverse_table",
            "this project",
            "page-table-shaped radix over canonical IPA whose word is the index of the shadow descriptor",
            claims_safety=True,
            uses_side=True,
        ),
    )
}
