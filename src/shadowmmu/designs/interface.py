"""What every design is: its number, its memory, and the calls it answers.

A design keeps its record in ``State.rmap`` (its own words), in the ``M_DESIGN`` columns of each MMU and,
if it asks for it, in ``State.side`` (one word a descriptor). The calls, dispatched by number in
``designs.dispatch``:

- ``record(mmu, canonical, nested, size, level, word)`` after a fill, mmu_lock held for read, no sleep;
- ``forget(mmu, nested range, cause)`` before L1's invalidation, or another leaf, takes leaves away;
- ``forget_mmu(mmu)`` before a whole shadow MMU is wiped for another reason than a notifier;
- ``prepare()`` before the fill, no lock held: memory a fill must have; without it the access faults again;
- ``apply(canonical range, action)`` with mmu_lock held for write, which a blockable caller may lose: one
  lookup for ``UNMAP``, ``AGE`` (clear access flags) and ``PROTECT`` (clear write permissions); what a record
  cannot answer falls back to a whole MMU, and from there to the whole VM, each counted;
- ``wipe(mmu)``: unmap a whole shadow MMU that has just been forgotten;
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
MAPLE_2025: Final = 4
SPANNING_V2: Final = 5
GFN_LISTS: Final = 6
PTE_CHAINS: Final = 7
PA_KEYED: Final = 8
PER_VM_TREE: Final = 9
LEAF_SCAN: Final = 10
SWEEP_VMALLS12: Final = 11
OWN: Final = 4096
"""Numbers from here up are designs that users bring (``designs.own``)."""

UNMAP: Final = 0
AGE: Final = 1
PROTECT: Final = 2

CAUSE_NOTIFIER: Final = 0
CAUSE_MEMSLOT: Final = 1
CAUSE_INVALIDATED: Final = 2
CAUSE_REPLACED: Final = 3

VNCR_ALL: Final = 0
VNCR_RANGE: Final = 1
VNCR_FORGOTTEN: Final = 2
"""What an unmap does to the VNCR pseudo-TLB, which depends on canonical IPA and has no shadow leaf: throw
out every entry (Linux 7.3.4), those that the canonical range reaches, or none."""


@dataclass(frozen=True)
class Design:
    """One entry of the catalogue. ``claims_safety`` False marks a negative control."""

    number: int
    name: str
    origin: str
    idea: str
    claims_safety: bool
    uses_side: bool = False
    vncr: int = VNCR_RANGE


CATALOGUE: Final[dict[str, Design]] = {
    d.name: d
    for d in (
        Design(
            SWEEP,
            "sweep",
            "Linux 7.3.4",
            "no record: unmap every valid shadow MMU over its whole IPA range, in chunks",
            claims_safety=True,
            vncr=VNCR_ALL,
        ),
        Design(
            RBTREE_2024,
            "rbtree_2024",
            "RFC, March 2024",
            "red-black tree a shadow MMU, exact match on the start of a canonical range; a lookup removes",
            claims_safety=False,
            vncr=VNCR_FORGOTTEN,
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
        Design(
            MAPLE_2025,
            "maple_2025",
            "series of September 2025, v2",
            "maple tree a shadow MMU of canonical ranges, each with an object; the last fill wins",
            claims_safety=False,
            vncr=VNCR_FORGOTTEN,
        ),
        Design(
            SPANNING_V2,
            "spanning_v2",
            "Chang v2, April 2026",
            "spanning ranges without a direct map: what a TLBI ends stays on the record",
            claims_safety=True,
        ),
        Design(
            GFN_LISTS,
            "gfn_lists",
            "Lim, powerpc, s390",
            "list a canonical frame of (MMU, nested address); each entry is verified before it is used",
            claims_safety=True,
        ),
        Design(
            PTE_CHAINS,
            "pte_chains",
            "x86 shadow MMU",
            "canonical frame to shadow descriptors, in chains; taken off wherever a leaf or table goes",
            claims_safety=True,
            uses_side=True,
        ),
        Design(
            PA_KEYED,
            "pa_keyed",
            "talked about, never posted",
            "red-black tree of the VM by output address; frames are read in the host's table first",
            claims_safety=True,
        ),
        Design(
            PER_VM_TREE,
            "per_vm_tree",
            "Upton, March 2024",
            "maple tree of the VM of canonical ranges tagged by MMU; overlap becomes a set of MMUs",
            claims_safety=True,
        ),
        Design(
            LEAF_SCAN,
            "leaf_scan",
            "this project",
            "no record: read every shadow leaf and take those with an output address that goes",
            claims_safety=True,
        ),
        Design(
            SWEEP_VMALLS12,
            "sweep_vmalls12",
            "Zyngier, September 2026",
            "no record: unmap everything without TLBIs on the way, one VMALLS12E1 a shadow MMU at the end",
            claims_safety=True,
            vncr=VNCR_ALL,
        ),
    )
}

VNCR_BY_DESIGN: Final = tuple(d.vncr for d in sorted(CATALOGUE.values(), key=lambda d: d.number))
"""``Design.vncr`` by number, for compiled code. A design of a file is not in it: ``VNCR_RANGE``."""
