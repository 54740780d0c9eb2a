"""The TLBI operations of the EL1&0, EL2&0 and EL2 regimes: one row a family, all else derived from it.

A family exists for the executing PE, the Inner Shareable and the Outer Shareable domain, each also as
nXS: 21 families are 126 operations. An operation's ``code``, which kernels take, *is* its rule: what it
names, which entries, how far it reaches. Encodings, names and codes come from the same rows.
Source: Arm ARM C5.5 (the instructions), D8.17.5 (operands and scope), C3.2.8 (SYS encoding).

>>> operation("rvale1is").encoding()
Encoding(op0=1, op1=0, crn=8, crm=2, op2=5)
>>> decode(0xD508_82A3).name
'RVALE1IS'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from shadowmmu.arch.fields import Field, Layout
from shadowmmu.arch.registers import TLBI_IPAS2, TLBI_RIPAS2
from shadowmmu.errors import InputError

ALL: Final = 0
VMALL: Final = 1
VMALLS12: Final = 2
ASID: Final = 3
VA: Final = 4
VAA: Final = 5
IPA: Final = 6

NON_SHAREABLE: Final = 0
INNER_SHAREABLE: Final = 1
OUTER_SHAREABLE: Final = 2
DOMAIN_NAMES: Final = ("this PE", "inner shareable", "outer shareable")

RULE: Final = Layout(
    "TLBI operation code",
    "this package",
    Field(
        "WHAT",
        0,
        3,
        "what the operand names",
        {0: "all", 1: "VMID", 2: "VMID, both stages", 3: "ASID", 4: "VA and ASID", 5: "VA", 6: "IPA"},
    ),
    Field("LAST", 3, 1, "last level only"),
    Field("RANGE", 4, 1, "a range of addresses"),
    Field("EL2", 5, 1, "the regime of EL2"),
    Field("DOMAIN", 6, 2, "shareability domain", dict(enumerate(DOMAIN_NAMES))),
    Field("NXS", 8, 1, "need not wait for, or drop, what has the XS attribute"),
)

_RANGE_FIELDS: Final = tuple(TLBI_RIPAS2)
_VA_FIELDS: Final = (
    Field("VA", 0, 44, "VA, bits 55:12"),
    Field("TTL", 44, 4, "granule (bits 3:2) and level (bits 1:0) of the leaf"),
)
_ASID_FIELD: Final = Field("ASID", 48, 16, "address space")

TLBI_VA: Final = Layout("TLBI VAE1 operand", "Arm ARM D8.17.5.1", *_VA_FIELDS, _ASID_FIELD)
TLBI_VAA: Final = Layout("TLBI VAAE1 operand", "Arm ARM D8.17.5.1", *_VA_FIELDS)
TLBI_ASID: Final = Layout("TLBI ASIDE1 operand", "Arm ARM D8.17.5.1", _ASID_FIELD)
TLBI_RVA: Final = Layout("TLBI RVAE1 operand", "Arm ARM D8.17.5.2", *_RANGE_FIELDS, _ASID_FIELD)
TLBI_RVAA: Final = Layout("TLBI RVAAE1 operand", "Arm ARM D8.17.5.2", *_RANGE_FIELDS)

_OPERANDS: Final = {
    (ASID, False): TLBI_ASID,
    (VA, False): TLBI_VA,
    (VA, True): TLBI_RVA,
    (VAA, False): TLBI_VAA,
    (VAA, True): TLBI_RVAA,
    (IPA, False): TLBI_IPAS2,
    (IPA, True): TLBI_RIPAS2,
}


class Encoding(NamedTuple):
    """Where an instruction stands in the System instruction space."""

    op0: int
    op1: int
    crn: int
    crm: int
    op2: int


@dataclass(frozen=True)
class TlbiOperation:
    """One TLBI mnemonic."""

    name: str
    family: str
    op1: int
    crm: int
    op2: int
    what: int
    last: bool
    ranged: bool
    domain: int
    nxs: bool

    @property
    def el2(self) -> bool:
        """Whether it names the regime of EL2."""
        return self.family.endswith("E2")

    @property
    def el1_may_execute(self) -> bool:
        """Whether EL1 may execute it; the others are UNDEFINED there, or trapped with HCR_EL2.NV."""
        return self.op1 == 0

    @property
    def operand(self) -> Layout | None:
        """The layout of the register it takes, None where it takes none."""
        return _OPERANDS.get((self.what, self.ranged))

    @property
    def code(self) -> int:
        """The rule by which kernels know it."""
        return RULE.encode(
            WHAT=self.what,
            LAST=int(self.last),
            RANGE=int(self.ranged),
            EL2=int(self.el2),
            DOMAIN=self.domain,
            NXS=int(self.nxs),
        )

    def encoding(self) -> Encoding:
        """Its place in the System instruction space: nXS forms stand in CRn 9, the others in 8."""
        return Encoding(1, self.op1, 9 if self.nxs else 8, self.crm, self.op2)

    def instruction(self, register: int = 31) -> int:
        """The 32-bit instruction with operand X``register``; 31 where there is none."""
        op0, op1, crn, crm, op2 = self.encoding()
        place = op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
        return 0xD500_0000 | place | register


class _Family(NamedTuple):
    name: str
    what: int
    op1: int
    plain: tuple[int, int]
    """CRm and op2, and below of the Inner and the Outer Shareable form."""
    inner: tuple[int, int]
    outer: tuple[int, int]
    last: bool = False


_FAMILIES: Final = (
    _Family("VMALLE1", VMALL, 0, (7, 0), (3, 0), (1, 0)),
    _Family("VMALLS12E1", VMALLS12, 4, (7, 6), (3, 6), (1, 6)),
    _Family("ALLE1", ALL, 4, (7, 4), (3, 4), (1, 4)),
    _Family("VAE1", VA, 0, (7, 1), (3, 1), (1, 1)),
    _Family("VAAE1", VAA, 0, (7, 3), (3, 3), (1, 3)),
    _Family("VALE1", VA, 0, (7, 5), (3, 5), (1, 5), last=True),
    _Family("VAALE1", VAA, 0, (7, 7), (3, 7), (1, 7), last=True),
    _Family("ASIDE1", ASID, 0, (7, 2), (3, 2), (1, 2)),
    _Family("IPAS2E1", IPA, 4, (4, 1), (0, 1), (4, 0)),
    _Family("IPAS2LE1", IPA, 4, (4, 5), (0, 5), (4, 4), last=True),
    _Family("ALLE2", ALL, 4, (7, 0), (3, 0), (1, 0)),
    _Family("VAE2", VA, 4, (7, 1), (3, 1), (1, 1)),
    _Family("VALE2", VA, 4, (7, 5), (3, 5), (1, 5), last=True),
    _Family("RVAE1", VA, 0, (6, 1), (2, 1), (5, 1)),
    _Family("RVAAE1", VAA, 0, (6, 3), (2, 3), (5, 3)),
    _Family("RVALE1", VA, 0, (6, 5), (2, 5), (5, 5), last=True),
    _Family("RVAALE1", VAA, 0, (6, 7), (2, 7), (5, 7), last=True),
    _Family("RIPAS2E1", IPA, 4, (4, 2), (0, 2), (4, 3)),
    _Family("RIPAS2LE1", IPA, 4, (4, 6), (0, 6), (4, 7), last=True),
    _Family("RVAE2", VA, 4, (6, 1), (2, 1), (5, 1)),
    _Family("RVALE2", VA, 4, (6, 5), (2, 5), (5, 5), last=True),
)


def _declared() -> tuple[TlbiOperation, ...]:
    found = []
    for family in _FAMILIES:
        places = (family.plain, family.inner, family.outer)
        for domain, ((crm, op2), suffix) in enumerate(zip(places, ("", "IS", "OS"), strict=True)):
            found += [
                TlbiOperation(
                    name=family.name + suffix + ("NXS" if nxs else ""),
                    family=family.name,
                    op1=family.op1,
                    crm=crm,
                    op2=op2,
                    what=family.what,
                    last=family.last,
                    ranged=family.name.startswith("R"),
                    domain=domain,
                    nxs=nxs,
                )
                for nxs in (False, True)
            ]
    return tuple(found)


OPERATIONS: Final = _declared()
_BY_NAME: Final = {each.name: each for each in OPERATIONS}
_BY_ENCODING: Final = {each.encoding(): each for each in OPERATIONS}
_BY_CODE: Final = {each.code: each for each in OPERATIONS}


def operation(name: str) -> TlbiOperation:
    """The operation of this name, in either case. Raises InputError if there is none."""
    found = _BY_NAME.get(name.upper())
    if found is None:
        families = ", ".join(f.name for f in _FAMILIES)
        raise InputError(f"TLBI {name!r}: expected one of {families}, then IS or OS, then NXS")
    return found


def operation_at(op0: int, op1: int, crn: int, crm: int, op2: int) -> TlbiOperation | None:
    """The operation at a place in the System instruction space, None if none of these stands there."""
    return _BY_ENCODING.get(Encoding(op0, op1, crn, crm, op2))


def operation_of_code(code: int) -> TlbiOperation:
    """The operation with this ``code``. Raises InputError if there is none."""
    if code not in _BY_CODE:
        raise InputError(f"TLBI code {code:#x} is none of an operation")
    return _BY_CODE[code]


def decode(instruction: int) -> TlbiOperation | None:
    """The operation a 32-bit instruction is, None if it is none of these."""
    if instruction >> 20 != 0xD50:
        return None
    op1, crn, crm, op2 = (instruction >> lsb & mask for lsb, mask in ((16, 7), (12, 15), (8, 15), (5, 7)))
    return operation_at(instruction >> 19 & 1, op1, crn, crm, op2)


def scope_table() -> str:
    """A Markdown table: what each family invalidates, from the rows above."""
    entries = {
        ALL: "all",
        VMALL: "all of the VMID",
        VMALLS12: "all of the VMID",
        ASID: "non-global of the ASID",
        VA: "of the ASID, and global",
        VAA: "of any ASID",
        IPA: "of the VMID",
    }
    lines = ["| TLBI | by | stage | entries | walk entries | CRm.op2: PE, IS, OS |", "|" + "---|" * 6]
    for f in _FAMILIES:
        ranged, el2 = f.name.startswith("R"), f.name.endswith("E2")
        by = {VA: "VA", VAA: "VA", IPA: "IPA"}.get(f.what, "-") + (" range" if ranged else "")
        stage = "2 only" if f.what == IPA else "1 and 2" if f.what in (ALL, VMALLS12) and not el2 else "1"
        places = ", ".join(f"{crm}.{op2}" for crm, op2 in (f.plain, f.inner, f.outer))
        walks = "kept" if f.last else "dropped"
        lines.append(f"| {f.name} | {by} | {stage} | {entries[f.what]} | {walks} | {places} |")
    return "\n".join(lines)
