"""Stage 1 of the VMSAv8-64: descriptors and permissions.

Source: Arm ARM D8.3 (descriptor formats), D8.4.1 (direct permissions, hierarchical control, WXN, PAN),
D8.4.2 (permission indirection, FEAT_S1PIE); pseudocode ``AArch64.S1DirectBasePermissions``,
``AArch64.S1IndirectBasePermissions``, ``AArch64.S1ComputePermissions``, ``AArch64.S1CheckPermissions``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from shadowmmu.arch.fault import EXECUTE, WRITE
from shadowmmu.arch.fields import Field, Layout
from shadowmmu.compiled import U64, Word, inline

STAGE1_LEAF: Final = Layout(
    "stage-1 block or page",
    "Arm ARM D8.3.2",
    Field("VALID", 0, 1, "the entry translates"),
    Field("PAGE", 1, 1, "page at level 3; 0 makes a block above it"),
    Field("AttrIndx", 2, 3, "byte of MAIR"),
    Field("NS", 5, 1, "output in the non-secure space"),
    Field("AP1", 6, 1, "EL0 may access"),
    Field("AP2", 7, 1, "read-only"),
    Field("SH", 8, 2, "shareability", {0: "non", 2: "outer", 3: "inner"}),
    Field("AF", 10, 1, "accessed"),
    Field("nG", 11, 1, "not global"),
    Field("OA", 12, 36, "output address, bits 47:12", address=True),
    Field("GP", 50, 1, "guarded page"),
    Field("DBM", 51, 1, "dirty bit modifier"),
    Field("Contiguous", 52, 1, "one of a run that may share a TLB entry"),
    Field("PXN", 53, 1, "no execution at EL1"),
    Field("UXN", 54, 1, "no execution at EL0; at EL2 alone: no execution"),
    Field("SW", 55, 4, "left to software"),
    Field("PBHA", 59, 4, "hints to hardware"),
)

STAGE1_TABLE: Final = Layout(
    "stage-1 table",
    "Arm ARM D8.3.1",
    Field("VALID", 0, 1, "the entry translates"),
    Field("TABLE", 1, 1, "points to a table"),
    Field("NLTA", 12, 36, "next-level table address, bits 47:12", address=True),
    Field("PXNTable", 59, 1, "no execution at EL1 below"),
    Field("UXNTable", 60, 1, "no execution at EL0 below"),
    Field("APTable0", 61, 1, "no EL0 access below"),
    Field("APTable1", 62, 1, "read-only below"),
    Field("NSTable", 63, 1, "non-secure below"),
)

INDIRECT_LEAF: Final = Layout(
    "stage-1 block or page with permission indirection",
    "Arm ARM D8.4.2",
    Field("PIIndex0", 6, 1, "bit 0 of the index into PIR"),
    Field("nDirty", 7, 1, "not written yet"),
    Field("PIIndex1", 51, 1, "bit 1"),
    Field("PIIndex2", 53, 2, "bits 3:2"),
)

AP1: Final = STAGE1_LEAF.mask("AP1")
AP2: Final = STAGE1_LEAF.mask("AP2")
AF: Final = STAGE1_LEAF.mask("AF")
DBM: Final = STAGE1_LEAF.mask("DBM")
PXN: Final = STAGE1_LEAF.mask("PXN")
UXN: Final = STAGE1_LEAF.mask("UXN")
SH_SHIFT: Final = STAGE1_LEAF.lsb("SH")
SH_LOW: Final = STAGE1_LEAF.low_mask("SH")
ATTR_INDEX_SHIFT: Final = STAGE1_LEAF.lsb("AttrIndx")
ATTR_INDEX_LOW: Final = STAGE1_LEAF.low_mask("AttrIndx")
PXN_TABLE: Final = STAGE1_TABLE.mask("PXNTable")
UXN_TABLE: Final = STAGE1_TABLE.mask("UXNTable")
AP_TABLE_NO_EL0: Final = STAGE1_TABLE.mask("APTable0")
AP_TABLE_READ_ONLY: Final = STAGE1_TABLE.mask("APTable1")
N_DIRTY: Final = INDIRECT_LEAF.mask("nDirty")
INDEX_0_SHIFT: Final = INDIRECT_LEAF.lsb("PIIndex0")
INDEX_1_SHIFT: Final = U64(INDIRECT_LEAF["PIIndex1"].lsb - 1)
INDEX_2_SHIFT: Final = U64(INDIRECT_LEAF["PIIndex2"].lsb - 2)
INDEX_1: Final = U64(0b0010)
INDEX_2: Final = U64(0b1100)
ZERO: Final = U64(0)
ONE: Final = U64(1)
TWO: Final = U64(2)
NIBBLE: Final = U64(0xF)

INDIRECT: Final = {
    0x0: "",
    0x1: "r",
    0x2: "x",
    0x3: "rx",
    0x5: "rw",
    0x6: "rwx, not both w and x",
    0x7: "rwx",
    0x8: "r",
    0x9: "r",
    0xA: "rx",
    0xC: "rw",
    0xE: "rwx",
}
"""What a permission of PIR or PIRE0 grants; the values left out are reserved and grant nothing.
0x9 is a guarded control stack, which plain loads may read. Source: Arm ARM, PIR_EL1."""
WRITE_XOR_EXECUTE: Final = U64(0x6)


def _granting(letter: str) -> np.uint64:
    """The permissions that grant ``letter``, a bit each."""
    return U64(sum(1 << value for value, what in INDIRECT.items() if letter in what.split(",")[0]))


MAY_READ: Final = _granting("r")
MAY_WRITE: Final = _granting("w")
MAY_EXECUTE: Final = _granting("x")
CONTROL_STACK: Final = U64(1 << 9)
RUNS: Final = MAY_EXECUTE | CONTROL_STACK
STORES: Final = MAY_WRITE | CONTROL_STACK


class Permissions(NamedTuple):
    """What the privileged level (p) and EL0 (u) may do: read, write, execute."""

    pr: bool
    pw: bool
    px: bool
    ur: bool
    uw: bool
    ux: bool


@inline
def direct_permissions(
    descriptor: Word, tables: Word, has_el0: bool, dirty_managed: bool, wxn: bool
) -> Permissions:
    """Permissions of a leaf with AP, PXN, UXN. ``tables``: the table descriptors' bits, 0 where HPD holds.

    With dirty state managed by hardware, a DBM leaf counts as writable. A regime without EL0 has one set of
    permissions: AP1 and PXN do not exist. Source: ``AArch64.S1DirectBasePermissions``.
    """
    writable = descriptor & AP2 == ZERO or (dirty_managed and descriptor & DBM != ZERO)
    writable = writable and tables & AP_TABLE_READ_ONLY == ZERO
    uxn = (descriptor & UXN) | (tables & UXN_TABLE) != ZERO
    if not has_el0:
        return Permissions(True, writable, not uxn and not (wxn and writable), False, False, False)
    ur = descriptor & AP1 != ZERO and tables & AP_TABLE_NO_EL0 == ZERO
    uw = ur and writable
    pxn = (descriptor & PXN) | (tables & PXN_TABLE) != ZERO
    px = not pxn and not uw and not (wxn and writable)
    ux = not uxn and not (wxn and uw)
    return Permissions(True, writable, px, ur, uw, ux)


@inline
def permission_index(descriptor: Word) -> Word:
    """PIIndex of a leaf: descriptor bits 54, 53, 51, 6. Source: Arm ARM D8.4.2."""
    return (
        ((descriptor >> INDEX_0_SHIFT) & ONE)
        | ((descriptor >> INDEX_1_SHIFT) & INDEX_1)
        | ((descriptor >> INDEX_2_SHIFT) & INDEX_2)
    )


@inline
def indirect_permissions(
    descriptor: Word, pir: Word, pire0: Word, has_el0: bool, dirty_managed: bool
) -> Permissions:
    """Permissions of a leaf through PIR and PIRE0. Table bits, WXN and DBM have no say here.

    A leaf marked nDirty is writable only where hardware manages the dirty state. What EL1 may execute and
    EL0 may write, nobody may touch (rule VFPJF; a guarded control stack counts as both).
    Source: ``AArch64.S1IndirectBasePermissions``.
    """
    shift = permission_index(descriptor) << TWO
    p = (pir >> shift) & NIBBLE
    u = (pire0 >> shift) & NIBBLE
    if not has_el0:
        u = ZERO
    if (RUNS >> p) & (STORES >> u) & ONE != ZERO:
        return Permissions(False, False, False, False, False, False)
    clean = descriptor & N_DIRTY != ZERO and not dirty_managed
    uw = (MAY_WRITE >> u) & ONE != ZERO
    px = (MAY_EXECUTE >> p) & ONE != ZERO and p != WRITE_XOR_EXECUTE
    ux = (MAY_EXECUTE >> u) & ONE != ZERO and u != WRITE_XOR_EXECUTE
    return Permissions(
        (MAY_READ >> p) & ONE != ZERO,
        (MAY_WRITE >> p) & ONE != ZERO and not clean,
        px,
        (MAY_READ >> u) & ONE != ZERO,
        uw and not clean,
        ux,
    )


@inline
def stage1_permits(p: Permissions, kind: int, el: int, pan: bool, epan: bool) -> bool:
    """Whether an access of ``kind`` from ``el`` is allowed; ``pan``: PSTATE.PAN as it applies.

    Source: ``AArch64.S1CheckPermissions``; PAN and EPAN: Arm ARM D8.4.1.
    """
    if el == 0:
        if kind == EXECUTE:
            return p.ux
        return p.uw if kind == WRITE else p.ur
    if kind == EXECUTE:
        return p.px
    if pan and (p.ur or (epan and p.ux)):
        return False
    return p.pw if kind == WRITE else p.pr
