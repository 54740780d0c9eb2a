"""Which changes of a live translation table entry need break-before-make, and which do not.

A change is judged by what the two descriptors *do*: descriptors that no TLB may hold count as none, fields
that have no meaning in the regime are not looked at. Where the architecture's condition is about what the
trace does not show (the contents of two pages, MAIR), the stricter reading is taken unless it is told.
Source: Arm ARM D8.17.1 (R_WHZWS), D8.17.2 (FEAT_BBML1, FEAT_BBML2), D8.16 (R_XCLRD). Non-secure state.

>>> needs_break(a_tree(), 3, 0x8000_07FF, 0x9000_07FF).name
'output address'
>>> needs_break(a_tree(), 3, 0x8000_07FF, 0x8000_077F) is None  # write permission taken away
True
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from shadowmmu.arch.fault import NONE
from shadowmmu.arch.fields import Field
from shadowmmu.arch.regime import (
    OA48,
    OA52_DS,
    Regime,
    beyond_output,
    output_address,
    table_address,
)
from shadowmmu.arch.stage1 import STAGE1_LEAF
from shadowmmu.arch.stage2 import AF, STAGE2_LEAF, TABLE, VALID, device_type, leaf_fault
from shadowmmu.arch.tlbi_scope import EL2, EL10
from shadowmmu.compiled import U64, Word, kernel

NO_TRANSLATION: Final = Field("nT", 16, 1, "block whose size is being changed (FEAT_BBML1)")
ZERO: Final = U64(0)

NOTHING: Final = 0
"""The descriptor gives a fault that forbids caching it."""
LEAF: Final = 1
NEXT_TABLE: Final = 2


class Rule(NamedTuple):
    """A rule that a trace can break: its name, where it stands, what it asks for."""

    name: str
    clause: str
    text: str


MEMORY_TYPE: Final = Rule(
    "memory type", "R_WHZWS", "a change of memory type or cacheability needs break-before-make"
)
SHAREABILITY: Final = Rule("shareability", "R_WHZWS", "a change of shareability needs break-before-make")
OUTPUT_ADDRESS: Final = Rule(
    "output address",
    "R_WHZWS",
    "a change of output address needs break-before-make, unless both are read-only with equal contents",
)
NEXT_TABLE_ADDRESS: Final = Rule(
    "next table", "R_WHZWS", "another table may change output address or type of all that is below"
)
BLOCK_SIZE: Final = Rule(
    "block size",
    "R_WHZWS, R_KFLJB",
    "a table for a block, or the reverse, needs break-before-make, the nT bit (FEAT_BBML1) or FEAT_BBML2",
)
CONTIGUOUS: Final = Rule(
    "contiguous bit", "R_KHRBC", "the Contiguous bit may change in place only with FEAT_BBML1"
)
GLOBAL: Final = Rule(
    "global entry", "R_WHZWS", "a global entry must not overlap with non-global ones that a TLB may hold"
)
UNCLEAN: Final = Rule(
    "unfinished sequence", "R_DDMVT", "the new entry is written after the TLB invalidation has completed"
)
REACHABLE: Final = Rule(
    "table still reachable",
    "R_RVJDB, R_DDMVT",
    "a table that was taken out may be walked until the invalidation of its table entry has completed",
)
UNCLEAN_TABLE: Final = Rule(
    "unclean table", "R_DDMVT", "a table is hooked in again after the sequence that took it out has completed"
)
SHARED_TABLE: Final = Rule("shared table", "this checker", "a table is followed in one place of one tree")
PUBLISHED_EARLY: Final = Rule(
    "early table",
    "B2.3",
    "what a table holds is made visible, by a DSB or a store-release, before the table is hooked in",
)
IDENTIFIER: Final = Rule(
    "identifier reused", "R_NWYRD", "one VMID, or ASID, stands for one tree until its entries are invalidated"
)
ROOT_IN_USE: Final = Rule("root in use", "R_SQBCS", "a tree is given up after no PE has it in a register")
FREED: Final = Rule(
    "table freed",
    "R_DDMVT",
    "memory of a table is given away after the sequence that took it out has completed",
)
UNLOCKED: Final = Rule(
    "lock", "the tree's lock", "descriptors of a tree are written by whoever holds its lock"
)
LOCKING: Final = Rule("locking", "the trace", "a lock is taken when free and given back by its holder")
UNSEEN: Final = Rule(
    "unseen write", "the trace", "a read returns what was last written, or hardware's update"
)

RULES: Final = (
    OUTPUT_ADDRESS,
    MEMORY_TYPE,
    SHAREABILITY,
    GLOBAL,
    BLOCK_SIZE,
    CONTIGUOUS,
    NEXT_TABLE_ADDRESS,
    UNCLEAN,
    REACHABLE,
    UNCLEAN_TABLE,
    PUBLISHED_EARLY,
    IDENTIFIER,
    ROOT_IN_USE,
    FREED,
    SHARED_TABLE,
    UNLOCKED,
    LOCKING,
    UNSEEN,
)


def rules_table() -> str:
    """A Markdown table of the rules, from the declarations above."""
    rows = [f"| {rule.name} | {rule.text} | {rule.clause} |" for rule in RULES]
    return "\n".join(["| rule | what it says | source |", "|---|---|---|", *rows])


@dataclass
class Tree:
    """One tree of tables as the registers that name it describe it.

    ``first`` is the input address of its first entry; ``identifiers`` the (VMID, ASID) pairs it was used
    under. ``has_global``: the regime knows ASIDs. ``mair`` None: not known, indices are compared.
    """

    stage: int
    regime: int
    geometry: Regime
    base: int
    first: int = 0
    hardware_af: bool = False
    hardware_dirty: bool = False
    mair: int | None = None
    fwb: bool = False
    identifiers: set[tuple[int, int]] = field(default_factory=set)

    @property
    def has_global(self) -> bool:
        """Whether leaves have the nG bit."""
        return self.stage == 1 and self.regime != EL2

    def __str__(self) -> str:
        names = ("EL1&0", "EL2&0", "EL2")
        return f"stage {self.stage} of {names[self.regime]} at {self.base:#x}"


class Shape(NamedTuple):
    """What a descriptor is at its level, and the address it leads to."""

    kind: int
    output: Word


@kernel
def shape_of(r: Regime, descriptor: Word, level: int, hardware_af: bool) -> Shape:
    """NOTHING, LEAF or NEXT_TABLE. What gives a Translation, Address size or Access flag fault is NOTHING.

    Source: Arm ARM R_XCLRD.
    """
    if descriptor & VALID == ZERO:
        return Shape(NOTHING, ZERO)
    if level < 3 and descriptor & TABLE != ZERO:
        following = table_address(r, descriptor)
        return Shape(NOTHING if beyond_output(r, following) else NEXT_TABLE, following)
    if leaf_fault(r, descriptor, level, ZERO) != NONE or (descriptor & AF == ZERO and not hardware_af):
        return Shape(NOTHING, ZERO)
    return Shape(LEAF, output_address(r, descriptor, level, ZERO))


def shape(tree: Tree, level: int, descriptor: int) -> tuple[int, int]:
    """``shape_of`` in plain numbers."""
    kind, output = shape_of(tree.geometry, U64(descriptor), level, tree.hardware_af)
    return int(kind), int(output)


def _half_of_attribute(nibble: int) -> str:
    """Cacheability of Normal memory without the allocation hints. Source: MAIR_EL1."""
    if nibble == 0b0100:
        return "non-cacheable"
    return "write-back" if nibble & 0b0100 else "write-through"


def memory_type(tree: Tree, descriptor: int) -> object:
    """Type and cacheability of a leaf, allocation hints left out; equal for equal memory."""
    if tree.stage == 2:
        return STAGE2_LEAF["MemAttr"].get(descriptor)
    index = STAGE1_LEAF["AttrIndx"].get(descriptor)
    if tree.mair is None:
        return index
    attribute = tree.mair >> 8 * index & 0xFF
    if attribute < 0x10 or attribute in (0x40, 0xA0, 0xF0):
        return attribute
    return _half_of_attribute(attribute >> 4), _half_of_attribute(attribute & 0xF)


def shareability(tree: Tree, descriptor: int) -> int:
    """The SH field where it counts: with DS it is part of the address, Device memory ignores it."""
    if tree.geometry.wide == OA52_DS:
        return 0
    kind = memory_type(tree, descriptor)
    device = False
    if tree.stage == 2:
        device = device_type(U64(descriptor), tree.fwb)
    elif tree.mair is not None:
        device = isinstance(kind, int) and kind < 0x10
    return 0 if device else STAGE2_LEAF["SH"].get(descriptor)


def grants_write(tree: Tree, descriptor: int) -> bool:
    """Whether a leaf may be written through, now or after a hardware update."""
    if tree.hardware_dirty and STAGE2_LEAF["DBM"].get(descriptor):
        return True
    if tree.stage == 2:
        return bool(STAGE2_LEAF["S2AP_W"].get(descriptor))
    return not STAGE1_LEAF["AP2"].get(descriptor)


class Properties(NamedTuple):
    """What a leaf does, as far as a break may be needed to change it."""

    output: int
    memory: object
    shareability: int
    non_global: bool
    contiguous: bool
    writable: bool


def properties(tree: Tree, level: int, descriptor: int) -> Properties:
    """The properties of a leaf."""
    return Properties(
        shape(tree, level, descriptor)[1],
        memory_type(tree, descriptor),
        shareability(tree, descriptor),
        tree.has_global and bool(STAGE1_LEAF["nG"].get(descriptor)),
        bool(STAGE2_LEAF["Contiguous"].get(descriptor)),
        grants_write(tree, descriptor),
    )


def broken_rule(old: Properties, new: Properties, bbm: int, same_contents: bool = False) -> Rule | None:
    """The rule by which ``new`` may not follow ``old`` in place; None where it may.

    ``bbm``: 0, or 1 or 2 for FEAT_BBML1 or FEAT_BBML2; ``same_contents``: both outputs hold the same.
    """
    if old.output != new.output and (old.writable or new.writable or not same_contents):
        return OUTPUT_ADDRESS
    if old.memory != new.memory:
        return MEMORY_TYPE
    if old.shareability != new.shareability:
        return SHAREABILITY
    if old.non_global and not new.non_global:
        return GLOBAL
    if bbm == 0 and old.contiguous != new.contiguous:
        return CONTIGUOUS
    return None


def needs_break(
    tree: Tree, level: int, old: int, new: int, *, bbm: int = 0, same_contents: bool = False
) -> Rule | None:
    """``broken_rule`` of two leaf descriptors at one place. Source: Arm ARM R_WHZWS, R_KHRBC."""
    return broken_rule(properties(tree, level, old), properties(tree, level, new), bbm, same_contents)


def size_may_change(block: int, bbm: int) -> bool:
    """Whether a table may replace ``block``, or the reverse, in place: FEAT_BBML2, or FEAT_BBML1 and nT.

    All else must stay as it was. Source: Arm ARM R_KFLJB, R_PVTFW.
    """
    return bbm >= 2 or (bbm == 1 and bool(NO_TRANSLATION.get(block)))


def a_tree(*, stage: int = 2, page_shift: int = 12, start_level: int = 1, ia_bits: int = 39) -> Tree:
    """A tree with 48-bit output at physical address 0, for examples and tests."""
    blocks = 1 if page_shift == 12 else 2
    geometry = Regime(page_shift, page_shift - 3, start_level, ia_bits, 48, OA48, blocks)
    return Tree(stage, EL10, geometry, 0, identifiers={(0, 0)})
