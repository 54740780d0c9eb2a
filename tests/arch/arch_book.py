"""Both stages of translation by the book: recursive, over a dictionary of words, with plain integers.

Written from the Arm ARM (DDI 0487: chapter D8, registers of D24) with bit numbers and tables of its own, so
that it shares nothing with what it checks. Nobody optimised it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

PA_SIZE = [32, 36, 40, 42, 44, 48, 52, 52]
LOWER_GRANULE = {0: 12, 1: 16, 2: 14, 3: 16}
UPPER_GRANULE = {0: 16, 1: 14, 2: 12, 3: 16}
"""log2 of the granule by TG0 and TG1; what the reserved codes mean is the machine's choice: 64K."""
PIR = {1: "r", 2: "x", 3: "rx", 5: "rw", 6: "rwx", 7: "rwx", 8: "r", 9: "rg", 10: "rx", 12: "rw", 14: "rwx"}
"""PIR_EL1's encodings; g is a guarded control stack. What is not here is reserved: no access."""
ADDRESS_SIZE, TRANSLATION, ACCESS_FLAG, PERMISSION, EXTERNAL_WALK = range(1, 6)
READ, WRITE, EXECUTE = range(3)


def field(word: int, high: int, low: int | None = None) -> int:
    """Bits high:low of a word, or one bit."""
    low = high if low is None else low
    return word >> low & ((1 << (high - low + 1)) - 1)


class Fault(Exception):
    """A fault: kind, level, stage, whether stage 2 refused a stage-1 walk, and the IPA then."""

    def __init__(self, kind: int, level: int, stage: int, s1ptw: bool = False, ipa: int = 0) -> None:
        super().__init__(kind, level, stage, s1ptw, ipa)
        self.kind, self.level, self.stage, self.s1ptw, self.ipa = kind, level, stage, s1ptw, ipa


class Stage(NamedTuple):
    """The geometry of one stage or half."""

    granule: int
    ia: int
    oa: int
    form: int  # 48, 52 (64K granule) or 50 (DS)
    start: int
    base: int


def form_of(granule: int, ps: int, ds: bool, pa_bits: int) -> int:
    """How descriptors hold addresses: D8.3.1."""
    if granule == 16:
        return 52 if PA_SIZE[ps] == 52 == pa_bits else 48
    return 50 if ds else 48


def stage_of(granule: int, txsz: int, ps: int, ds: bool, start: int | None, ttbr: int, pa_bits: int) -> Stage:
    """D8.2: levels, sizes and where the start table stands."""
    form = form_of(granule, ps, ds, pa_bits)
    ia = 64 - txsz
    if start is None:
        start = 4 - -(-(ia - granule) // (granule - 3))
    oa = min(PA_SIZE[ps] if form != 48 else min(PA_SIZE[ps], 48), pa_bits)
    size = 8 << max(0, ia - granule - (3 - start) * (granule - 3))
    base = ttbr & 0xFFFF_FFFF_FFFE
    if form != 48:
        base = ttbr & 0xFFFF_FFFF_FFC0 | field(ttbr, 5, 2) << 48
        size = max(size, 64)
    return Stage(granule, ia, oa, form, start, base // size * size)


def held_address(form: int, word: int) -> int:
    """The address field of a descriptor: D8.3."""
    if form == 48:
        return field(word, 47, 12) << 12
    if form == 52:
        return field(word, 47, 16) << 16 | field(word, 15, 12) << 48
    return field(word, 49, 12) << 12 | field(word, 9, 8) << 50


def blocks_from(granule: int, form: int, pa_bits: int) -> int:
    """The first level that may hold a block: D8.2, tables of block sizes."""
    if granule == 12:
        return 0 if form == 50 else 1
    if granule == 14:
        return 1 if form == 50 else 2
    return 1 if pa_bits == 52 else 2


class Book:
    """A machine: registers by name, features by name, words of memory by physical address."""

    def __init__(
        self, registers: dict[str, int], features: set[str], pa_bits: int, words: dict[int, int], end: int
    ) -> None:
        self.r, self.has, self.pa_bits, self.words, self.end = registers, features, pa_bits, words, end
        self.update = False

    def reg(self, name: str) -> int:
        return self.r.get(name, 0)

    def feature_bit(self, feature: str, word: int, number: int) -> bool:
        """A bit that reads as zero on a machine without the feature."""
        return feature in self.has and bool(field(word, number))

    def load(self, pa: int, big: bool) -> int | None:
        """A descriptor; None where no memory answers."""
        if pa >= self.end:
            return None
        return int.from_bytes(self.words.get(pa, 0).to_bytes(8, "little"), "big" if big else "little")

    def store(self, pa: int, word: int, big: bool) -> None:
        self.words[pa] = int.from_bytes(word.to_bytes(8, "little"), "big" if big else "little")

    def walk(self, s: Stage, ia: int, stage: int, big: bool, fetch: Any, *where: Any) -> tuple[int, ...]:
        """Descriptor, its level, its address, its input to the other stage, table bits, output address."""

        def visit(table: int, level: int, index: int, tables: int) -> tuple[int, ...]:
            at = table + 8 * index
            pa = fetch(at)
            word = self.load(pa, big)
            if word is None:
                raise Fault(EXTERNAL_WALK, level, stage, *where)
            covers = s.granule + (s.granule - 3) * (3 - level)
            leads = held_address(s.form, word)
            if not word & 1:
                raise Fault(TRANSLATION, level, stage, *where)
            if level < 3 and word & 2:
                following = leads >> s.granule << s.granule
                if following >> s.oa:
                    raise Fault(ADDRESS_SIZE, level, stage, *where)
                below = covers - (s.granule - 3)
                index = (ia >> below) % (1 << (s.granule - 3))
                return visit(following, level + 1, index, tables | word)
            if (level == 3 and not word & 2) or level < blocks_from(s.granule, s.form, self.pa_bits):
                raise Fault(TRANSLATION, level, stage, *where)
            output = leads >> covers << covers | ia & ((1 << covers) - 1)
            if output >> s.oa:
                raise Fault(ADDRESS_SIZE, level, stage, *where)
            return word, level, pa, at, tables, output

        if s.base >> s.oa:
            raise Fault(ADDRESS_SIZE, 0, stage, *where)
        return visit(s.base, s.start, ia >> (s.granule + (s.granule - 3) * (3 - s.start)), 0)

    # stage 2

    def stage2_stage(self) -> Stage | None:
        """VTCR_EL2 decoded; None where it may not be used: S2InvalidSL, S2InconsistentSL, S2MinTxSZ."""
        vtcr = self.reg("VTCR_EL2")
        granule, sl0, txsz = LOWER_GRANULE[field(vtcr, 15, 14)], field(vtcr, 7, 6), field(vtcr, 5, 0)
        ds = self.feature_bit("LPA2", vtcr, 32) and granule != 16
        sl2 = ds and granule == 12 and bool(field(vtcr, 33))
        small = "TTST" in self.has
        if granule == 12:
            start = -1 if sl2 else {0: 2, 1: 1, 2: 0, 3: 3}[sl0]
            bad = (sl0 != 0 or self.pa_bits < 52) if sl2 else {2: self.pa_bits < 44, 3: not small}.get(sl0)
        elif granule == 14:
            start = 3 - sl0
            bad = {2: self.pa_bits < 42, 3: not ds or self.pa_bits < 52}.get(sl0)
        else:
            start = 3 - sl0
            bad = {2: self.pa_bits < 44, 3: True}.get(sl0)
        s = stage_of(granule, txsz, field(vtcr, 18, 16), ds, start, self.reg("VTTBR_EL2"), self.pa_bits)
        largest = min(self.pa_bits, 52 if s.form == 50 or granule == 16 else 48)
        smallest = (17 if granule == 16 else 16) if small else 25
        entries = s.ia - granule - (3 - start) * (granule - 3)
        if bad or not smallest <= s.ia <= largest or not 1 <= entries <= granule - 3 + 4:
            return None
        return s

    def stage2(
        self, ipa: int, kind: int, el: int, walk: bool = False, writes: bool = False
    ) -> tuple[int, int]:
        """Output address and leaf descriptor of stage 2."""
        vtcr, hcr = self.reg("VTCR_EL2"), self.reg("HCR_EL2")
        where = (walk, ipa)
        s = self.stage2_stage()
        if s is None or ipa >> s.ia:
            raise Fault(TRANSLATION, 0, 2, *where)
        big = bool(field(self.reg("SCTLR_EL2"), 25))
        word, level, pa, _, _, output = self.walk(s, ipa, 2, big, lambda at: at, *where)
        ha = self.feature_bit("HAF", vtcr, 21)
        hd = ha and self.feature_bit("HDBS", vtcr, 22)
        if not word >> 10 & 1 and not ha:
            raise Fault(ACCESS_FLAG, level, 2, *where)
        writable = word >> 7 & 1 or (hd and word >> 51 & 1)
        xn = field(word, 54, 53) if "XNX" in self.has else word >> 54 & 1 and 2
        executable = xn in ((0, 3) if el == 1 else (0, 1))
        allowed = {READ: word >> 6 & 1, WRITE: writable, EXECUTE: executable}[kind]
        if walk and writes:
            allowed = allowed and writable
        fwb = self.feature_bit("FWB", hcr, 46)
        device = not word >> 4 & 1 if fwb else not field(word, 5, 4)
        if not allowed or (walk and device and field(hcr, 2)):
            raise Fault(PERMISSION, level, 2, *where)
        if self.update and ha:
            fresh = word | 1 << 10
            if hd and writes and word >> 51 & 1:
                fresh |= 1 << 7
            self.store(pa, fresh, big)
        return output, word

    # stage 1

    def half(self, regime: str, upper: bool) -> dict[str, Any]:
        """The TCR's fields for one half; ``regime`` is "10", "20" or "2"."""
        tcr = self.reg("TCR_EL1" if regime == "10" else "TCR_EL2")
        if regime == "2":
            numbers = {"tbi": 20, "ha": 21, "hd": 22, "hpd": 24, "tbid": 29, "ds": 32}
            low, ps, granule = 0, field(tcr, 18, 16), LOWER_GRANULE[field(tcr, 15, 14)]
        else:
            u = int(upper)
            numbers = {"ha": 39, "hd": 40, "ds": 59, "tbi": 37 + u, "hpd": 41 + u, "tbid": 51 + u}
            numbers |= {"e0pd": 55 + u, "epd": 23 if upper else 7}
            low, ps = 16 * u, field(tcr, 34, 32)
            granule = UPPER_GRANULE[field(tcr, 31, 30)] if upper else LOWER_GRANULE[field(tcr, 15, 14)]
        found = {name: bool(field(tcr, number)) for name, number in numbers.items()}
        found["sh"] = field(tcr, low + 13, low + 12)
        found["ds"] = found["ds"] and "LPA2" in self.has and granule != 16
        found["stage"] = stage_of(
            granule, field(tcr, low + 5, low), ps, found["ds"], None, self.ttbr(regime, upper), self.pa_bits
        )
        return {"e0pd": False, "epd": False} | found

    def ttbr(self, regime: str, upper: bool) -> int:
        el = 1 if regime == "10" else 2
        return self.reg(f"TTBR{int(upper and regime != '2')}_EL{el}")

    def permissions(
        self, regime: str, h: dict[str, Any], word: int, tables: int
    ) -> tuple[set[str], set[str]]:
        """What the privileged level and EL0 may do: D8.4, direct and indirect."""
        el = 1 if regime == "10" else 2
        sctlr = self.reg(f"SCTLR_EL{el}")
        hd = h["ha"] and "HAF" in self.has and h["hd"] and "HDBS" in self.has
        if self.indirect(el):
            index = word >> 6 & 1 | (word >> 51 & 1) << 1 | field(word, 54, 53) << 2
            p = set(PIR.get(field(self.reg(f"PIR_EL{el}"), 4 * index + 3, 4 * index), ""))
            u = set(PIR.get(field(self.reg(f"PIRE0_EL{el}"), 4 * index + 3, 4 * index), ""))
            exclusive = [
                field(self.reg(n), 4 * index + 3, 4 * index) == 6 for n in (f"PIR_EL{el}", f"PIRE0_EL{el}")
            ]
            if regime == "2":
                u = set()
            if p & set("xg") and u & set("wg"):
                return set(), set()
            for rights, no_both in zip((p, u), exclusive, strict=True):
                if no_both:
                    rights.discard("x")
                if word >> 7 & 1 and not hd:
                    rights.discard("w")
            return p, u
        if h["hpd"] and "HPDS" in self.has:
            tables = 0
        writable = not word >> 7 & 1 or (hd and word >> 51 & 1)
        writable = writable and not tables >> 62 & 1
        uxn, pxn = (word >> 54 | tables >> 60) & 1, (word >> 53 | tables >> 59) & 1
        p, u = {"r"} | ({"w"} if writable else set()), set[str]()
        if regime == "2":
            p |= set() if uxn else {"x"}
        else:
            if word >> 6 & 1 and not tables >> 61 & 1:
                u |= p
            p |= set() if pxn or "w" in u else {"x"}
            u |= set() if uxn else {"x"}
        for rights in (p, u):
            if field(sctlr, 19) and "w" in rights:
                rights.discard("x")
        return p, u

    def indirect(self, el: int) -> bool:
        """Whether TCR2_ELx.PIE is in force; for EL1 HCRX_EL2.TCR2En lets it be."""
        on = "S1PIE" in self.has and field(self.reg(f"TCR2_EL{el}"), 1)
        return bool(on and (el == 2 or field(self.reg("HCRX_EL2"), 14)))

    def stage1_off(self, va: int, h: dict[str, Any], kind: int, upper: bool) -> int:
        """S1DisabledOutput: the address itself, if the machine has so many bits."""
        if h["tbi"] and not (kind == EXECUTE and h["tbid"]):
            va = va | 0xFF << 56 if kind == EXECUTE and upper else va % (1 << 56)
        if va >> self.pa_bits:
            raise Fault(ADDRESS_SIZE, 0, 1)
        return va

    def stage1(
        self, regime: str, va: int, kind: int, el: int, pan: bool, checked: bool
    ) -> tuple[int, int | None]:
        """Output address and leaf descriptor (None: stage 1 is off) of stage 1."""
        number = 1 if regime == "10" else 2
        sctlr, hcr = self.reg(f"SCTLR_EL{number}"), self.reg("HCR_EL2")
        upper = bool(va >> 55 & 1)
        h = self.half(regime, upper)
        if not field(sctlr, 0) or (regime == "10" and (field(hcr, 12) or field(hcr, 27))):
            return self.stage1_off(va, h, kind, upper), None
        s: Stage = h["stage"]
        if h["tbi"] and not (kind == EXECUTE and h["tbid"]):
            va = va | 0xFF << 56 if upper else va % (1 << 56)
        least = 12 if s.form == 50 or (s.granule == 16 and "LVA" in self.has) else 16
        most = (47 if s.granule == 16 else 48) if "TTST" in self.has else 39
        above = (1 << (64 - s.ia)) - 1 if upper and regime != "2" else 0
        e0pd = h["e0pd"] and "E0PD" in self.has and el == 0
        if h["epd"] or e0pd or not least <= 64 - s.ia <= most or va >> s.ia != above:
            raise Fault(TRANSLATION, 0, 1)
        big = bool(field(sctlr, 25))
        nested = regime == "10" and self.has_stage2()
        fetch = (lambda at: self.stage2(at, READ, 1, True)[0]) if nested else (lambda at: at)
        word, level, pa, at, tables, output = self.walk(s, va % (1 << s.ia), 1, big, fetch)
        ha = h["ha"] and "HAF" in self.has
        if not word >> 10 & 1 and not ha:
            raise Fault(ACCESS_FLAG, level, 1)
        p, u = self.permissions(regime, h, word, tables)
        epan = self.indirect(number) or self.feature_bit("EPAN", sctlr, 57)
        if pan and "PAN" in self.has and regime != "2" and (u & set("rwg") or (epan and "x" in u)):
            p = p - {"r", "w"}
        if checked and "rwx"[kind] not in (p if el else u):
            raise Fault(PERMISSION, level, 1)
        if self.update and ha:
            fresh = word | 1 << 10
            if kind == WRITE and h["hd"] and "HDBS" in self.has:
                if self.indirect(number) or word >> 51 & 1:
                    fresh &= ~(1 << 7)
            if fresh != word:
                if nested:
                    self.stage2(at, READ, 1, True, True)
                self.store(pa, fresh, big)
        return output, word

    def has_stage2(self) -> bool:
        hcr = self.reg("HCR_EL2")
        host = field(hcr, 27) and field(hcr, 34)
        return bool((field(hcr, 0) or field(hcr, 12)) and not host)


# Attributes: D8.6.

POLICIES = {0: "WT", 1: "WB", 2: "WT", 3: "WB"}


def half_of_mair(nibble: int) -> tuple[str, int, bool]:
    """Policy, allocation hints and whether transient, of one nibble of a Normal attribute."""
    if nibble == 4:
        return "NC", 0, False
    return POLICIES[nibble >> 2], nibble & 3, nibble < 8


def nibble_of(policy: str, hints: int, transient: bool) -> int:
    """The nibble again."""
    if policy == "NC":
        return 4
    return hints | {("WT", True): 0, ("WB", True): 4, ("WT", False): 8, ("WB", False): 12}[policy, transient]


def both_stages(first: int, memattr: int, fwb: bool) -> int:
    """MAIR's form of the attribute of both stages: D8.6.5, and D8.6.6 with FWB."""
    if first == 0xF0:  # tagged: S2MemTagType
        return {0xFF: 0xF0}.get(untagged := both_stages(0xFF, memattr, fwb), untagged)
    device1 = first >> 2 if first < 16 else None
    if fwb:
        code = memattr & 7
        if code == 7 or code == 4:  # 4 is reserved
            return first
        device2 = code if code < 4 else None
        policy = {5: "NC", 6: "WB"}.get(code, "")
    else:
        device2 = memattr & 3 if memattr < 4 else None
        policy = ""
    devices = [d for d in (device1, device2) if d is not None]
    if device2 is not None or (devices and policy != "WB"):
        return min(devices) << 2
    if policy == "WB":
        if device1 is not None:
            return 0xFF
        halves = [half_of_mair(n) for n in (first >> 4, first & 15)]
        made = [(("WB", 3, False) if p == "NC" else ("WB", hints, t)) for p, hints, t in halves]
        return nibble_of(*made[0]) << 4 | nibble_of(*made[1])
    result = 0
    for shift in (4, 0):
        mine, hints, transient = half_of_mair(first >> shift & 15)
        other = policy or {0: "WT", 1: "NC", 2: "WT", 3: "WB"}[memattr >> (shift // 2) & 3]
        order = ["NC", "WT", "WB"]  # 0 is reserved at stage 2: this machine takes it for Write-Through
        strict = order[min(order.index(mine), order.index(other))]
        result |= nibble_of(strict, hints, transient) << shift
    return result


ACCESSES = {"load": READ, "store": WRITE, "fetch": EXECUTE}


class Meaning(NamedTuple):
    """What an operation is: C5.4 and HCR_EL2.{E2H, TGE}."""

    at: bool
    regime: str
    el: int
    kind: int
    both: bool
    pan: bool
    checked: bool = True


def meaning(name: str, hcr: int) -> Meaning:
    """An operation by its name in the manual."""
    e2h, tge = bool(field(hcr, 34)), bool(field(hcr, 27))
    host = e2h and tge
    if name.startswith("AT "):
        form = name[3:]
        stages, el, letters = form.split("E")[0], int(form.split("E")[1][0]), form.split("E")[1][1:]
        kind = WRITE if letters.startswith("W") else READ
        if el == 2:
            return Meaning(True, "20" if e2h else "2", 2, kind, False, False, letters != "A")
        regime = "20" if host else "10"
        level = 2 if host and el == 1 else el
        return Meaning(
            True, regime, level, kind, stages == "S12" and not host, letters.endswith("P"), letters != "A"
        )
    what, _, place = name.split(" ")
    kind = ACCESSES[what]
    if place == "EL2":
        return Meaning(False, "20" if e2h else "2", 2, kind, False, True)
    if place == "EL1":
        return Meaning(False, "10", 1, kind, True, True)
    return Meaning(False, "20" if host else "10", 0, kind, not host, False)


def status(kind: int, level: int) -> int:
    """FST, DFSC: the table in ESR_ELx."""
    if kind == 6:
        return 0x10
    if level < 0:
        return {ADDRESS_SIZE: 0x29, TRANSLATION: 0x2B, EXTERNAL_WALK: 0x13}[kind]
    return {ADDRESS_SIZE: 0, TRANSLATION: 4, ACCESS_FLAG: 8, PERMISSION: 12, EXTERNAL_WALK: 0x14}[
        kind
    ] + level


def predicted(book: Book, name: str, va: int, update: bool) -> dict[str, int]:
    """PAR, ESR, FAR, HPFAR, the level that takes the exception, the fault's parts, the output address."""
    if name.startswith("atomic"):
        load = predicted(book, name.replace("atomic", "load"), va, update)
        return load if load["kind"] else predicted(book, name.replace("atomic", "store"), va, update)
    hcr = book.reg("HCR_EL2")
    m = meaning(name, hcr)
    book.update = update and not m.at
    pan = m.pan and bool(field(book.reg("PSTATE"), 22))
    try:
        pa, leaf = book.stage1(m.regime, va, m.kind, m.el, pan, m.checked)
        attribute, share = stage1_attribute(book, m.regime, va, leaf)
        if m.both and book.has_stage2():
            pa, second = book.stage2(pa, m.kind, m.el, False, m.kind == WRITE)
            attribute, share = stage2_attribute(book, attribute, share, second)
        if not m.at and pa >= book.end:
            return failed(Fault(6, 0, 1), m, va, hcr) | {"pa": pa}
    except Fault as fault:
        return failed(fault, m, va, hcr)
    if attribute < 16 or attribute == 0x44:
        share = 2
    par = attribute << 56 | field(pa, 51, 12) << 12 | 1 << 11 | 1 << 9 | share << 7
    answer = dict.fromkeys(("esr", "far", "hpfar", "target", "kind", "level", "stage", "s1ptw"), 0)
    return answer | {"par": par if m.at else 0, "pa": pa}


def stage1_attribute(book: Book, regime: str, va: int, leaf: int | None) -> tuple[int, int]:
    """Attribute and shareability of stage 1 for a data access: D8.6.1, S1DisabledOutput, SCTLR_ELx.C."""
    if leaf is None:
        cached = regime == "10" and bool(field(book.reg("HCR_EL2"), 12))
        return (0xFF, 0) if cached else (0, 2)
    el = 1 if regime == "10" else 2
    attribute = field(book.reg(f"MAIR_EL{el}"), 8 * field(leaf, 4, 2) + 7, 8 * field(leaf, 4, 2))
    if attribute == 0xF0 and "MTE2" not in book.has:
        attribute = 0xFF
    if not field(book.reg(f"SCTLR_EL{el}"), 2) and attribute >= 16:
        attribute = 0x44
    h = book.half(regime, bool(va >> 55 & 1))
    return attribute, h["sh"] if h["stage"].form == 50 else field(leaf, 9, 8)


def stage2_attribute(book: Book, attribute: int, share: int, leaf: int) -> tuple[int, int]:
    """Both stages together."""
    hcr, vtcr = book.reg("HCR_EL2"), book.reg("VTCR_EL2")
    attribute = both_stages(attribute, field(leaf, 5, 2), book.feature_bit("FWB", hcr, 46))
    if field(hcr, 32) and attribute >= 16:
        attribute = 0x44
    stage = book.stage2_stage()
    assert stage is not None
    other = field(vtcr, 13, 12) if stage.form == 50 else field(leaf, 9, 8)
    return attribute, next((code for code in (2, 3) if code in (share, other)), 0)


def failed(fault: Fault, m: Meaning, va: int, hcr: int) -> dict[str, int]:
    """PAR_EL1 of a failed AT, or the exception: D24.2.40, AArch64.DataAbort."""
    code = status(fault.kind, fault.level)
    external = fault.kind in (EXTERNAL_WALK, 6)
    answer = {
        "kind": fault.kind,
        "level": fault.level,
        "stage": fault.stage,
        "s1ptw": int(fault.s1ptw),
        "pa": 0,
    }
    if m.at and not external:
        par = 1 | code << 1 | fault.s1ptw << 8 | (fault.stage == 2) << 9 | 1 << 11
        return answer | {"par": par, "esr": 0, "far": 0, "hpfar": 0, "target": 0}
    to_el2 = m.at or m.el == 2 or fault.stage == 2 or field(hcr, 27) or (external and field(hcr, 37))
    target = 2 if to_el2 else 1
    ec = (0x20 if m.kind == EXECUTE else 0x24) + (m.el == target or m.at)
    esr = ec << 26 | 1 << 25 | fault.s1ptw << 7 | (m.at or m.kind == WRITE) << 6 | m.at << 8 | code
    hpfar = field(fault.ipa, 51, 12) << 4 if fault.stage == 2 and not external else 0
    return answer | {"par": 0, "esr": esr, "far": va, "hpfar": hpfar, "target": target}
