"""TLB entries: what tags them, which lookups they answer, which TLBIs must remove them.

One entry is a row of words; the two models (``tlb_ideal``, ``tlb_sets``) share the rows and the rules
below and differ in what they keep. An entry holds a leaf or a table descriptor, of stage 1, of stage 2,
or with what both say about one VA. Source: Arm ARM D8.17 (what tags an entry, what maintenance must hit).

A TLBI that targets stage 1 must hit whatever contains stage-1 information about the address, one that
targets stage 2 need only hit what holds nothing but stage-2 information. Where a small stage-2 page cut a
large stage-1 block into many entries, a TLBI for any VA of the block must hit all of them, so entries
remember the size of their stage-1 leaf beside their own.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from shadowmmu.arch.fault import NONE, PERMISSION
from shadowmmu.arch.fields import Field, Layout
from shadowmmu.arch.tlbi import BY_ALL, BY_VA, NO_LEVEL, leaf_shift
from shadowmmu.arch.tlbi_scope import ANY, BOTH, EL2, EL10, REGIME_NAMES, STAGE1, STAGE2, Scope
from shadowmmu.compiled import I64, U64, Word, Words, inline

TABLE: Final = 4
"""Added to STAGE1, STAGE2 or BOTH: the entry holds a table descriptor, not a leaf."""

ENTRY_TAG: Final = Layout(
    "TLB entry tag",
    "Arm ARM D8.17, R_NWYRD",
    Field("VALID", 0, 1, "the row is in use"),
    Field("KIND", 1, 3, "stages it has information of, +4 for a table descriptor"),
    Field("REGIME", 4, 2, "translation regime", dict(enumerate(REGIME_NAMES))),
    Field("GLOBAL", 6, 1, "a leaf with nG clear"),
    Field("XS", 7, 1, "XS attribute"),
    Field("LEVEL1", 8, 3, "stage-1 level + 1; 5: none, stage 1 is off"),
    Field("LEVEL2", 11, 3, "stage-2 level + 1; 5: none, stage 2 is off"),
    Field("GRANULE1", 14, 5, "log2 of the stage-1 granule"),
    Field("GRANULE2", 19, 5, "log2 of the stage-2 granule"),
    Field("SIZE", 24, 6, "log2 of the bytes it covers"),
    Field("VMID", 32, 16, "tag of the virtual machine, EL1&0 only"),
    Field("ASID", 48, 16, "tag of the address space, 0 if global"),
)

COLUMNS: Final = 6
"""Columns of a row of a TLB: the tag, the first address covered, and what the names below say."""
T_TAG: Final = 0
T_INPUT: Final = 1
T_OUTPUT: Final = 2
T_IPA: Final = 3
T_ATTRIBUTES: Final = 4
T_STAMP: Final = 5

SMALLEST_SHIFT: Final = 12
"""log2 of the smallest entry, and below the first log2 beyond the largest."""
LARGEST_SHIFT: Final = 56

ZERO: Final = U64(0)
ONE: Final = U64(1)
VA_TOP: Final = U64(55)
VA_HIGH: Final = U64(0xFF << 56)
VALID: Final = ENTRY_TAG.mask("VALID")
GLOBAL: Final = ENTRY_TAG.mask("GLOBAL")
XS: Final = ENTRY_TAG.mask("XS")
KIND_SHIFT: Final = ENTRY_TAG.lsb("KIND")
KIND_MASK: Final = ENTRY_TAG.low_mask("KIND")
REGIME_SHIFT: Final = ENTRY_TAG.lsb("REGIME")
REGIME_MASK: Final = ENTRY_TAG.low_mask("REGIME")
GLOBAL_SHIFT: Final = ENTRY_TAG.lsb("GLOBAL")
XS_SHIFT: Final = ENTRY_TAG.lsb("XS")
LEVEL1_SHIFT: Final = ENTRY_TAG.lsb("LEVEL1")
LEVEL2_SHIFT: Final = ENTRY_TAG.lsb("LEVEL2")
LEVEL_MASK: Final = ENTRY_TAG.low_mask("LEVEL1")
GRANULE1_SHIFT: Final = ENTRY_TAG.lsb("GRANULE1")
GRANULE2_SHIFT: Final = ENTRY_TAG.lsb("GRANULE2")
GRANULE_MASK: Final = ENTRY_TAG.low_mask("GRANULE1")
SIZE_SHIFT: Final = ENTRY_TAG.lsb("SIZE")
SIZE_MASK: Final = ENTRY_TAG.low_mask("SIZE")
VMID_SHIFT: Final = ENTRY_TAG.lsb("VMID")
ASID_SHIFT: Final = ENTRY_TAG.lsb("ASID")
ID_MASK: Final = ENTRY_TAG.low_mask("VMID")


class Entry(NamedTuple):
    """What a walk gives a TLB to keep. Stage-1 fields of a stage-2 entry are ignored, and the reverse."""

    kind: int
    """STAGE1, STAGE2 or BOTH, + TABLE. BOTH: the whole way from VA to PA, also with a stage off."""
    regime: int
    vmid: int
    asid: int
    is_global: bool
    xs: bool
    granule1: int
    """log2 of the stage-1 granule; with ``level1`` NO_LEVEL stage 1 is off."""
    level1: int
    granule2: int
    level2: int
    input: Word
    """Any address the entry covers: a VA, or of a stage-2 entry an IPA."""
    output: Word
    """Where ``input`` goes, or the next table."""
    ipa: Word
    """What stage 1 makes of ``input``; 0 where that is not known."""
    attributes: Word
    """Permissions and memory attributes, in the caller's own format: lookups give them back."""


class Key(NamedTuple):
    """What a lookup asks for: entries of one kind, in one context, that cover ``input``."""

    kind: int
    regime: int
    vmid: int
    asid: int
    input: Word


@inline
def cacheable(fault: int) -> bool:
    """Whether what a walk with this outcome read may be kept (fault kinds: ``arch.fault``).

    Descriptors that give translation, address-size or access-flag faults never are; one that does not
    grant a permission is. Source: Arm ARM I_WZCBG.
    """
    return fault == NONE or fault == PERMISSION


@inline
def tag_kind(tag: Word) -> int:
    """Stages and TABLE of an entry."""
    return I64((tag >> KIND_SHIFT) & KIND_MASK)


@inline
def tag_regime(tag: Word) -> int:
    """Regime of an entry."""
    return I64((tag >> REGIME_SHIFT) & REGIME_MASK)


@inline
def tag_size(tag: Word) -> Word:
    """log2 of the bytes an entry covers."""
    return (tag >> SIZE_SHIFT) & SIZE_MASK


@inline
def tag_vmid(tag: Word) -> int:
    """VMID of an entry."""
    return I64((tag >> VMID_SHIFT) & ID_MASK)


@inline
def tag_asid(tag: Word) -> int:
    """ASID of an entry."""
    return I64(tag >> ASID_SHIFT)


@inline
def level_of_stage(tag: Word, stage: int) -> int:
    """Level of an entry's descriptor at STAGE1 or STAGE2."""
    if stage == STAGE2:
        return I64((tag >> LEVEL2_SHIFT) & LEVEL_MASK) - 1
    return I64((tag >> LEVEL1_SHIFT) & LEVEL_MASK) - 1


@inline
def granule_of_stage(tag: Word, stage: int) -> int:
    """log2 of the granule of STAGE1 or STAGE2, 0 while that stage is off."""
    if stage == STAGE2:
        return I64((tag >> GRANULE2_SHIFT) & GRANULE_MASK)
    return I64((tag >> GRANULE1_SHIFT) & GRANULE_MASK)


@inline
def covered_shift(e: Entry) -> int:
    """log2 of what an entry covers: of a leaf of both stages, the smaller one."""
    if e.kind & BOTH == STAGE2 or e.level1 == NO_LEVEL:
        return leaf_shift(e.granule2, e.level2)
    size = leaf_shift(e.granule1, e.level1)
    if e.kind == BOTH and e.level2 != NO_LEVEL and leaf_shift(e.granule2, e.level2) < size:
        return leaf_shift(e.granule2, e.level2)
    return size


@inline
def canonical_va(va: Word) -> Word:
    """VA[63:56] as copies of VA[55], whatever tag they carry."""
    if (va >> VA_TOP) & ONE != ZERO:
        return va | VA_HIGH
    return va & ~VA_HIGH


@inline
def canonical_input(kind: int, ia: Word) -> Word:
    """The address an entry of ``kind`` is found by: VAs lose their tag, IPAs stay."""
    if kind & STAGE1 != 0:
        return canonical_va(ia)
    return ia


@inline
def entry_tag(e: Entry) -> Word:
    """The tag of an entry, 0 in every field that has no meaning for it.

    Walk entries count as non-global whatever the leaf below says (Arm ARM R_VMSWQ).
    """
    stages = e.kind & BOTH
    is_global = e.is_global and e.kind & TABLE == 0 and stages != STAGE2 and e.regime != EL2
    tag = VALID | U64(e.kind) << KIND_SHIFT | U64(e.regime) << REGIME_SHIFT
    tag |= U64(covered_shift(e)) << SIZE_SHIFT
    if is_global:
        tag |= GLOBAL
    elif stages != STAGE2 and e.regime != EL2:
        tag |= U64(e.asid) << ASID_SHIFT
    if e.xs:
        tag |= XS
    if e.regime == EL10:
        tag |= U64(e.vmid) << VMID_SHIFT
    level1 = e.level1
    level2 = e.level2
    if stages == STAGE2:
        level1 = NO_LEVEL
    elif stages == STAGE1:
        level2 = NO_LEVEL
    if level1 != NO_LEVEL:
        tag |= U64(e.granule1) << GRANULE1_SHIFT
    if level2 != NO_LEVEL:
        tag |= U64(e.granule2) << GRANULE2_SHIFT
    return tag | U64(level1 + 1) << LEVEL1_SHIFT | U64(level2 + 1) << LEVEL2_SHIFT


@inline
def write_entry(rows: Words, row: int, tag: Word, e: Entry) -> None:
    """Put an entry with its ``tag`` in a row; addresses are cut down to where the entry begins."""
    inside = (ONE << tag_size(tag)) - ONE
    rows[row, T_TAG] = tag
    rows[row, T_INPUT] = canonical_input(e.kind, e.input) & ~inside
    rows[row, T_IPA] = e.ipa & ~inside
    rows[row, T_ATTRIBUTES] = e.attributes
    if e.kind & TABLE != 0:
        rows[row, T_OUTPUT] = e.output
    else:
        rows[row, T_OUTPUT] = e.output & ~inside


@inline
def answers_key(tag: Word, first: Word, key: Key) -> bool:
    """Whether an entry that begins at ``first`` would be used for a lookup. Source: Arm ARM R_NWYRD."""
    if tag & VALID == ZERO or tag_kind(tag) != key.kind or tag_regime(tag) != key.regime:
        return False
    if key.regime == EL10 and tag_vmid(tag) != key.vmid:
        return False
    if key.kind & STAGE1 != 0 and key.regime != EL2:
        if tag & GLOBAL == ZERO and tag_asid(tag) != key.asid:
            return False
    return (canonical_input(key.kind, key.input) ^ first) >> tag_size(tag) == ZERO


@inline
def in_context(scope: Scope, tag: Word) -> bool:
    """Whether stage, regime, VMID and ASID of an entry are those of a TLBI."""
    if tag_regime(tag) != scope.regime:
        return False
    if scope.vmid != ANY and tag_vmid(tag) != scope.vmid:
        return False
    stages = tag_kind(tag) & BOTH
    if scope.stages == STAGE1 and stages == STAGE2:
        return False
    if scope.stages == STAGE2 and stages != STAGE2:
        return False
    if scope.asid == ANY:
        return True
    if tag & GLOBAL != ZERO:
        return scope.global_too
    return tag_asid(tag) == scope.asid


@inline
def at_hinted_level(scope: Scope, tag: Word, stage: int) -> bool:
    """Whether granule and level of an entry are what the operand says.

    A hint is good for leaves of its level and tables above it (C5.5, TTL of RVAE1). Single-address forms
    are taken to mean the same; their pseudocode would let tables stay.
    """
    if scope.granule != 0 and granule_of_stage(tag, stage) != scope.granule:
        return False
    if scope.level == NO_LEVEL:
        return True
    level = level_of_stage(tag, stage)
    if tag_kind(tag) & TABLE != 0:
        return level < scope.level
    return level == scope.level


@inline
def overlaps(scope: Scope, tag: Word, first: Word, stage: int) -> bool:
    """Whether a TLBI names any address of the leaf that an entry is, or was cut from."""
    shift = tag_size(tag)
    if stage == STAGE1 and level_of_stage(tag, STAGE1) != NO_LEVEL:
        shift = U64(leaf_shift(granule_of_stage(tag, STAGE1), level_of_stage(tag, STAGE1)))
    base = first >> shift << shift
    before = base + ((ONE << shift) - ONE) < scope.start
    return not (before or base > scope.start + (scope.size - ONE))


@inline
def must_drop(scope: Scope, tag: Word, first: Word) -> bool:
    """Whether the architecture requires a TLBI to remove an entry that begins at ``first``.

    nXS forms need not remove what has the XS attribute. Source: Arm ARM D8.17, D8.17.5.4.
    """
    if not scope.guaranteed or not in_context(scope, tag):
        return False
    if scope.nxs and tag & XS != ZERO:
        return False
    if scope.last_only and tag_kind(tag) & TABLE != 0:
        return False
    if scope.by == BY_ALL:
        return True
    stage = STAGE2
    if scope.by == BY_VA:
        stage = STAGE1
    return at_hinted_level(scope, tag, stage) and overlaps(scope, tag, first, stage)


def entry(
    kind: int,
    *,
    regime: int = EL10,
    vmid: int = 0,
    asid: int = 0,
    is_global: bool = False,
    xs: bool = False,
    stage1: tuple[int, int] = (0, NO_LEVEL),
    stage2: tuple[int, int] = (0, NO_LEVEL),
    input: int,
    output: int,
    ipa: int = 0,
    attributes: int = 0,
) -> Entry:
    """An ``Entry`` for kernels; each stage as (log2 of the granule, level), left out while it is off."""
    words = U64(input), U64(output), U64(ipa), U64(attributes)
    return Entry(kind, regime, vmid, asid, is_global, xs, *stage1, *stage2, *words)


def key(kind: int, va_or_ipa: int, *, regime: int = EL10, vmid: int = 0, asid: int = 0) -> Key:
    """A ``Key`` for kernels from a plain address."""
    return Key(kind, regime, vmid, asid, U64(va_or_ipa))


def read_entry(row: np.ndarray) -> Entry:
    """The entry in a row, with ``input`` and ``output`` where it begins."""
    tag = ENTRY_TAG.decode(int(row[T_TAG]))
    return entry(
        tag["KIND"],
        regime=tag["REGIME"],
        vmid=tag["VMID"],
        asid=tag["ASID"],
        is_global=bool(tag["GLOBAL"]),
        xs=bool(tag["XS"]),
        stage1=(tag["GRANULE1"], tag["LEVEL1"] - 1),
        stage2=(tag["GRANULE2"], tag["LEVEL2"] - 1),
        input=int(row[T_INPUT]),
        output=int(row[T_OUTPUT]),
        ipa=int(row[T_IPA]),
        attributes=int(row[T_ATTRIBUTES]),
    )
