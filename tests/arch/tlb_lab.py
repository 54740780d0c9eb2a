"""What the TLB's tests share: a naive TLB written from the text of Arm ARM D8.17, and strategies.

The naive TLB is a list of plain records and one predicate over the mnemonic and the operand's fields. It
shares the layouts of operands with the product, and nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from hypothesis import strategies as st

from shadowmmu.arch.registers import HCR_EL2
from shadowmmu.arch.tlb import Entry, entry
from shadowmmu.arch.tlbi import NO_LEVEL
from shadowmmu.arch.tlbi_operations import OPERATIONS, operation
from shadowmmu.arch.tlbi_scope import Issuer, Scope, issuer, scope_of

REGIMES = ("EL1&0", "EL2&0", "EL2")
SHIFT = {"4K": 12, "16K": 14, "64K": 16}
TOP = 1 << 64
Stage = tuple[str, int] | None
"""Granule and level, None: the stage is off."""


def span(granule: str, level: int) -> int:
    """Bytes that an entry at ``level`` covers."""
    entries = (1 << SHIFT[granule]) // 8
    return (1 << SHIFT[granule]) * entries ** (3 - level)


@dataclass(frozen=True)
class Held:
    """An entry in words: which stages it has information of, and of what."""

    stages: frozenset[int]
    table: bool
    regime: str
    vmid: int
    asid: int
    is_global: bool
    xs: bool
    stage1: Stage
    stage2: Stage
    input: int
    output: int
    ipa: int
    attributes: int

    @property
    def size(self) -> int:
        """Bytes it covers: of a leaf with both stages, the smaller."""
        on = [stage for stage in (self.stage1, self.stage2) if stage]
        if self.table:
            on = on[:1]
        return min(span(*stage) for stage in on)

    @property
    def start(self) -> int:
        return self.input - self.input % self.size

    def covers(self, ia: int) -> bool:
        return self.start <= ia < self.start + self.size

    def matches_asid(self, asid: int) -> bool:
        if 1 not in self.stages or self.regime == "EL2":
            return True
        return (self.is_global and not self.table) or self.asid == asid

    def for_kernels(self) -> Entry:
        def numbers(stage: Stage) -> tuple[int, int]:
            return (SHIFT[stage[0]], stage[1]) if stage else (0, NO_LEVEL)

        return entry(
            sum(self.stages) + 4 * self.table,
            regime=REGIMES.index(self.regime),
            vmid=self.vmid,
            asid=self.asid,
            is_global=self.is_global,
            xs=self.xs,
            stage1=numbers(self.stage1),
            stage2=numbers(self.stage2),
            input=self.input,
            output=self.output,
            ipa=self.ipa,
            attributes=self.attributes,
        )

    def normal(self) -> Held:
        """The same with what has no meaning for it at 0, and addresses where it begins."""
        has_asid = 1 in self.stages and self.regime != "EL2"
        is_global = self.is_global and has_asid and not self.table
        return Held(
            self.stages,
            self.table,
            self.regime,
            self.vmid if self.regime == "EL1&0" else 0,
            self.asid if has_asid and not is_global else 0,
            is_global,
            self.xs,
            self.stage1,
            self.stage2,
            self.start,
            self.output if self.table else self.output - self.output % self.size,
            self.ipa - self.ipa % self.size,
            self.attributes,
        )


def held(e: Entry) -> Held:
    """What the product says it keeps, in words."""
    names = {shift: name for name, shift in SHIFT.items()}

    def stage(granule: int, level: int) -> Stage:
        return None if level == NO_LEVEL else (names[granule], level)

    stages = frozenset(bit for bit in (1, 2) if e.kind & bit)
    return Held(
        stages,
        bool(e.kind & 4),
        REGIMES[e.regime],
        e.vmid,
        e.asid,
        e.is_global,
        e.xs,
        stage(e.granule1, e.level1),
        stage(e.granule2, e.level2),
        int(e.input),
        int(e.output),
        int(e.ipa),
        int(e.attributes),
    )


class Pe(NamedTuple):
    """The PE that executes a TLBI."""

    el: int = 2
    e2h: bool = False
    tge: bool = False
    force_nxs: bool = False
    vmid: int = 1
    ds: bool = False
    lpa2: bool = False
    pa_bits: int = 48

    def for_kernels(self) -> Issuer:
        two_ranges = self.ds << 59
        return issuer(
            el=self.el,
            hcr=HCR_EL2.encode(E2H=int(self.e2h), TGE=int(self.tge)),
            hcrx=self.force_nxs << 3,
            vttbr=self.vmid << 48,
            vtcr=1 << 19 | self.ds << 32,
            tcr_el1=two_ranges,
            tcr_el2=two_ranges if self.e2h else self.ds << 32,
            pa_bits=self.pa_bits,
            lpa2=self.lpa2,
        )


@dataclass(frozen=True)
class Tlbi:
    """One executed TLBI: mnemonic, operand fields, PE."""

    name: str
    fields: dict[str, int] = field(default_factory=dict)
    pe: Pe = field(default_factory=Pe)

    def scope(self) -> Scope:
        layout = operation(self.name).operand
        operand = layout.encode(**self.fields) if layout else 0
        return scope_of(self.name, operand, self.pe.for_kernels())

    def removes(self, e: Held) -> bool:
        """Whether the architecture requires it to remove ``e`` (D8.17.5.4, the rule of each type)."""
        parsed = re.fullmatch(
            r"(R?)(VMALLS12|VMALL|ALL|ASID|VAAL?|VAL?|IPAS2L?)(E[12])(?:IS|OS)?(NXS)?", self.name
        )
        assert parsed
        ranged, kind, el, nxs = parsed.groups()
        regime = self.regime(kind, el)
        by_ipa, by_va = kind.startswith("IPA"), kind.startswith("VA")
        if e.regime != regime or (regime == "EL1&0" and kind != "ALL" and e.vmid != self.pe.vmid):
            return False
        if by_ipa and 1 in e.stages:
            return False
        both = kind == "VMALLS12" or (kind == "ALL" and el == "E1")
        if not by_ipa and not both and 1 not in e.stages:
            return False
        if regime != "EL2" and kind in ("VA", "VAL") and not e.matches_asid(self.fields["ASID"]):
            return False
        if kind == "ASID" and (e.asid != self.fields["ASID"] or (e.is_global and not e.table)):
            return False
        excludes_xs = bool(nxs) or (self.pe.el == 1 and self.pe.force_nxs)
        if (excludes_xs and e.xs) or (kind.endswith("L") and kind != "ALL" and kind != "VMALL" and e.table):
            return False
        if not by_ipa and not by_va:
            return True
        return self.names(e, e.stage2 if by_ipa else e.stage1, by_ipa, bool(ranged))

    def regime(self, kind: str, el: str) -> str:
        if el == "E2":
            return "EL2&0" if self.pe.e2h else "EL2"
        follows_tge = kind in ("VMALL", "ASID", "VA", "VAL", "VAA", "VAAL")
        return "EL2&0" if follows_tge and self.pe.e2h and self.pe.tge else "EL1&0"

    def names(self, e: Held, stage: Stage, by_ipa: bool, ranged: bool) -> bool:
        """Whether the operand names the leaf that ``e`` is, or was cut from, and hints at its level."""
        granule, level = self.range_hint() if ranged else self.hint()
        start, size = self.range_bytes(by_ipa) if ranged else (self.page(by_ipa), 4096)
        if granule == "reserved" or (granule and (stage is None or stage[0] != granule)):
            return False
        if level is not None:
            assert stage
            if ranged and start % span(granule, level):
                return False  # UNPREDICTABLE
            if stage[1] >= level if e.table else stage[1] != level:
                return False
        covered = span(*stage) if stage else e.size
        first = e.input - e.input % covered
        return first < start + size and start < first + covered

    def page(self, by_ipa: bool) -> int:
        if by_ipa:
            high = self.fields.get("IPA_HIGH", 0) if self.pe.pa_bits == 52 else 0
            return (high << 36 | self.fields["IPA"]) * 4096
        va = self.fields["VA"] * 4096
        return va + TOP - (1 << 56) if va >= 1 << 55 else va

    def range_bytes(self, by_ipa: bool) -> tuple[int, int]:
        granule = {0: 1, 1: 1 << 12, 2: 1 << 14, 3: 1 << 16}[self.fields["TG"]]
        unit = 1 << 16 if self.pe.lpa2 and self.pe.ds else granule
        start = self.fields["BaseADDR"] * unit
        if not by_ipa and self.fields["BaseADDR"] >= 1 << 36:
            start += TOP - (unit << 37)
        size = (self.fields["NUM"] + 1) * 2 ** (5 * self.fields["SCALE"] + 1) * granule
        return start, min(size, TOP - start)

    def range_hint(self) -> tuple[str, int | None]:
        granule = {0: "reserved", 1: "4K", 2: "16K", 3: "64K"}[self.fields["TG"]]
        level = self.fields["TTL"]
        if level == 0 or (granule == "16K" and level == 1 and not self.pe.lpa2):
            return granule, None
        return granule, level

    def hint(self) -> tuple[str, int | None]:
        """Table D8-123, row by row."""
        meaning = {5: ("4K", 1), 6: ("4K", 2), 7: ("4K", 3), 10: ("16K", 2), 11: ("16K", 3)}
        meaning |= {13: ("64K", 1), 14: ("64K", 2), 15: ("64K", 3)}
        if self.pe.lpa2:
            meaning |= {4: ("4K", 0), 9: ("16K", 1)}
        return meaning.get(self.fields["TTL"], ("", None))


LEAF_LEVELS = {"4K": (0, 1, 2, 3), "16K": (1, 2, 3), "64K": (1, 2, 3)}
TABLE_LEVELS = {"4K": (-1, 0, 1, 2), "16K": (0, 1, 2), "64K": (1, 2)}
granules = st.sampled_from(["4K", "4K", "16K", "64K"])
ids = st.integers(1, 2)
OFFSETS = (0, 0x1000, 0x1_0000, 0x20_0000, 0x3F_F000, 0x4000_0000)
IPAS = tuple(0x8000_0000 + offset for offset in OFFSETS)
HIGH_VAS = tuple(0xFFFF_8000_4000_0000 + offset for offset in OFFSETS)
TOP_VAS = (TOP - 0x1000, TOP - 0x20_0000)
vas = st.sampled_from(IPAS + IPAS + HIGH_VAS + TOP_VAS)
"""The same numbers as IPAs too: a TLBI must not take one for the other."""
ipas = st.sampled_from((*IPAS, *IPAS, 0xF_0000_8000_0000))
outputs = st.sampled_from([0x40_0000_0000, 0x80_0000_0000])


@st.composite
def entries(draw: st.DrawFn) -> Held:
    """Any entry that a walk may give a TLB."""
    regime = draw(st.sampled_from(["EL1&0", "EL1&0", "EL1&0", "EL2&0", "EL2"]))
    stages = draw(st.sampled_from([{1}, {2}, {1, 2}])) if regime == "EL1&0" else {1}
    table = draw(st.booleans())
    levels = TABLE_LEVELS if table else LEAF_LEVELS

    def stage() -> Stage:
        granule = draw(granules)
        return granule, draw(st.sampled_from(levels[granule]))

    stage1 = stage() if 1 in stages else None
    stage2 = stage() if 2 in stages else None
    if stages == {1, 2} and not table:
        off = draw(st.sampled_from([0, 0, 0, 1, 2]))
        stage1, stage2 = (None if off == 1 else stage1), (None if off == 2 else stage2)
    return Held(
        frozenset(stages),
        table,
        regime,
        draw(ids),
        draw(ids),
        draw(st.booleans()),
        draw(st.booleans()),
        stage1,
        stage2,
        draw(vas if 1 in stages else ipas),
        draw(outputs),
        draw(ipas),
        draw(st.integers(0, 1)),
    )


@st.composite
def tlbis(draw: st.DrawFn) -> Tlbi:
    """Any TLBI, its operand near the addresses that entries have."""
    pe = Pe(
        draw(st.sampled_from([1, 2])),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(ids),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([48, 52])),
    )
    chosen = draw(st.sampled_from(OPERATIONS))
    fields = {}
    by_ipa = "IPAS2" in chosen.name
    ia = draw(ipas if by_ipa else vas)
    for each in chosen.operand or ():
        fields[each.name] = draw(st.integers(0, (1 << each.width) - 1))
    if "ASID" in fields:
        fields["ASID"] = draw(ids)
    if "TTL" in fields and "BaseADDR" not in fields:
        fields["TTL"] = draw(st.sampled_from([0, 5, 6, 7, 6, 7, *range(16)]))
    if "VA" in fields:
        fields["VA"] = ia >> 12 & (1 << 44) - 1
    if "IPA" in fields:
        fields |= {"IPA": ia >> 12 & (1 << 36) - 1, "IPA_HIGH": ia >> 48}
    if "BaseADDR" in fields:
        fields["TG"] = draw(st.sampled_from([0, 1, 1, 1, 2, 3]))
        unit = 16 if pe.lpa2 and pe.ds else (12, 12, 14, 16)[fields["TG"]]
        aligned = draw(st.sampled_from([12, 21, 30]))
        fields["BaseADDR"] = (ia >> aligned << aligned) >> unit & (1 << 37) - 1
    return Tlbi(chosen.name, fields, pe)
