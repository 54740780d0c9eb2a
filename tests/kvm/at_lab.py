"""Random guests for AT: L2's stage-1 tables under L1's stage 2, as a script and as flat memory.

The same words are written by the script's ``poke`` lines and stand in ``Guest.words`` by canonical IPA, where
the architecture (``arch.answer``) reads them with canonical IPAs as its physical addresses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import numpy as np
from kvm_lab import Vm

from shadowmmu.arch.answer import ANSWER, answers
from shadowmmu.arch.context import COLUMNS, ROW, Implementation, context
from shadowmmu.arch.memory import swapped
from shadowmmu.arch.operation import LOAD_EL1
from shadowmmu.compiled import U64, Words
from shadowmmu.events.schema import DEFAULT_VTCR
from shadowmmu.events.words import AT_OPERATIONS
from shadowmmu.kvm.at import OFFERED, OFFERED_PA_BITS
from shadowmmu.kvm.layout import V_VIRTUAL

PAGE = 4096
S2_ROOT = 0x4200_0000
CANONICAL_POOL = 0x4100_0000
NO_MEMORY = 0x5000_0000
TABLES = 0x8000_0000
DATA = 0x9000_0000
AF, CONTIGUOUS, DBM = 1 << 10, 1 << 52, 1 << 51
S1_OPERATIONS = ("s1e1r", "s1e1w", "s1e0r", "s1e0w", "s1e1rp", "s1e1wp")
S12_OPERATIONS = ("s12e1r", "s12e1w", "s12e0r", "s12e0w")
MAIR = 0xFF_44_BB_EE_04_00_AA_0C
GRANULES = {12: (0, 2), 14: (2, 1), 16: (1, 3)}
"""TG0 and TG1 by page shift."""
HCR_VM, HCR_E2H, TCR2EN = 1, 1 << 34, 1 << 14
MEMORY = np.zeros(0x4400_0000 >> 3, np.uint64)
"""Canonical memory from 0 on; the operating system fills what is written."""

Asked = list[tuple[str, int]]


@dataclass
class Guest:
    """What one script sets up: registers by name, words by canonical IPA, addresses worth asking for."""

    random: Random
    registers: dict[str, int] = field(default_factory=dict)
    words: dict[int, int] = field(default_factory=dict)
    stage2: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(canonical IPA, leaf bits) of each nested page."""
    vas: list[int] = field(default_factory=list)
    levels: dict[int, int] = field(default_factory=dict)
    """Level of the stage-1 table at a nested address."""
    granule: int = 12
    stage2_on: bool = True
    next_s2: int = S2_ROOT + PAGE
    next_table: int = TABLES
    next_page: int = CANONICAL_POOL
    alike: bool = False
    """Keep out what Linux is known to do otherwise than the architecture."""
    virtual: dict[str, int] = field(default_factory=dict)
    """Registers of L1 that no command sets."""

    def map_page(self, nested_ipa: int, canonical_ipa: int, bits: int, level: int = 3) -> None:
        """A leaf of L1's stage 2: 39 bits of input, 4K granule."""
        table = S2_ROOT
        for at in range(1, level):
            entry = table + 8 * (nested_ipa >> (39 - 9 * at) & 511)
            if entry not in self.words:
                self.words[entry] = self.next_s2 | 3
                self.next_s2 += PAGE
            table = self.words[entry] & ~0xFFF
        entry = table + 8 * (nested_ipa >> (39 - 9 * level) & 511)
        self.words[entry] = canonical_ipa | bits | (3 if level == 3 else 1)
        self.stage2[nested_ipa] = (canonical_ipa, bits)

    def leaf_bits(self, faults: float) -> int:
        """Bits of a stage-2 leaf: mostly all permissions and accessed."""
        r = self.random
        permissions = 3 if r.random() > faults else r.choice((0, 1, 2))
        accessed = 0 if r.random() < faults / 3 else AF
        memory = r.choice((0xF, 0xF, 0x5, 0xA, 0x0, 0x1, 0x3, 0xD, 0x7, 0xB, 0x6))
        return memory << 2 | permissions << 6 | r.choice((0, 2, 3)) << 8 | accessed

    def place(self, nested_ipa: int) -> int:
        """Canonical address of a nested one whose page gets a leaf now, if it had none."""
        page = nested_ipa & ~(PAGE - 1)
        if not self.stage2_on:
            return nested_ipa
        if page not in self.stage2:
            r = self.random
            if r.random() < 0.02:
                self.stage2[page] = (NO_MEMORY, 0)  # nothing maps it
            elif r.random() < 0.02:
                self.map_page(page, NO_MEMORY, 0xF << 2 | 3 << 6 | AF)
            else:
                bits = self.leaf_bits(0.04)
                if self.alike and self.registers["tcr"] >> 39 & 1:
                    bits |= 2 << 6
                self.map_page(page, self.next_page, bits)
                self.next_page += PAGE
        return self.stage2[page][0] | nested_ipa & (PAGE - 1)

    def store(self, nested_ipa: int, value: int) -> None:
        """L2 writes a word of its tables, in their byte order."""
        if self.registers["sctlr"] >> 25 & 1:
            value = int(swapped(U64(value)))
        canonical_ipa = self.place(nested_ipa)
        if canonical_ipa < 0x4400_0000:
            self.words[canonical_ipa] = value

    def new_table(self, level: int) -> int:
        """Nested address of a fresh stage-1 table."""
        table = self.next_table
        self.next_table += 1 << self.granule
        for page in range(table, self.next_table, PAGE):
            self.levels[page] = level
        return table

    def base(self) -> int:
        """Where stage-1 tables begin: canonical memory itself where stage 2 is off."""
        return TABLES if self.stage2_on else CANONICAL_POOL


def make_registers(g: Guest) -> None:
    """Registers of stage 1, near what an operating system writes."""
    r = g.random
    g.granule = r.choice((12, 12, 14, 16))
    tg0, tg1 = GRANULES[g.granule]
    size = r.randint(16, 39)
    flags = 0
    for bit, chance in (
        (37, 0.3),
        (38, 0.3),
        (41, 0.2),
        (42, 0.2),
        (55, 0.1),
        (56, 0.1),
        (7, 0.05),
        (23, 0.05),
    ):
        flags |= int(r.random() < chance) << bit
    flags |= int(r.random() < 0.3) << 39  # HA
    ips = r.choice((0, 1, 2, 5, 5, 5))
    g.registers["tcr"] = size | tg0 << 14 | size << 16 | tg1 << 30 | ips << 32 | flags
    g.registers["mair"] = MAIR
    sctlr = int(r.random() > 0.04) | 0x30D0_0800
    for bit, chance in ((2, 0.8), (19, 0.3), (25, 0.2), (57, 0.3)):
        sctlr |= int(r.random() < chance) << bit
    g.registers["sctlr"] = sctlr
    if r.random() < 0.3:
        g.registers["tcr2"] = 2
        good = (0, 1, 2, 3, 5, 6, 7, 8, 0xA, 0xC, 0xE)
        g.registers["pir"] = sum(r.choice(good) << 4 * i for i in range(16))
        g.registers["pire0"] = sum(r.choice((0, 0, 1, 2, 3, 5, 7)) << 4 * i for i in range(16))


def make_tables(g: Guest, addresses: int) -> None:
    """Two trees of stage-1 tables with leaves for ``addresses`` VAs."""
    r = g.random
    bits = 64 - (g.registers["tcr"] & 0x3F)
    stride = g.granule - 3
    start = 3 - (bits - 1 - g.granule) // stride
    g.next_table = g.base()
    roots = {}
    for half in (0, 1):
        roots[half] = g.new_table(start)
        g.registers[f"ttbr{half}"] = roots[half] | r.getrandbits(4) << 48
    trees: dict[tuple[int, int], int] = {}
    for _ in range(addresses):
        half = r.getrandbits(1)
        va = r.getrandbits(bits) & ~0xFFF | r.getrandbits(12)
        if trees and r.random() < 0.5:  # near an address that has tables
            entry = r.choice(list(trees))
            half, va = entry[0], va & 0x3FFF_FFFF & ((1 << bits) - 1) | r.choice(g.vas) & ((1 << bits) - 1)
        full = va | (~((1 << bits) - 1) & (1 << 64) - 1 if half else 0)
        g.vas.append(full)
        lowest = max(start, 1 if g.granule == 12 else 2)
        last = r.choice((3, 3, 3, lowest, 2)) if r.random() > 0.02 else start
        table = roots[half]
        for level in range(start, 4):
            shift = g.granule + stride * (3 - level)
            index = va >> shift & ((1 << (bits - shift if level == start else stride)) - 1)
            entry_at = table + 8 * index
            if level >= last or ((half, entry_at) in trees and trees[half, entry_at] == 0):
                if (half, entry_at) not in trees:
                    trees[half, entry_at] = 0
                    g.store(entry_at, make_leaf(g, level, shift))
                break
            if (half, entry_at) not in trees:
                below = g.new_table(level + 1)
                trees[half, entry_at] = below
                word = below | 3 | (r.getrandbits(5) << 59 if r.random() < 0.15 else 0)
                if r.random() < 0.02 and g.registers["tcr"] >> 32 & 7 < 5:
                    word |= 1 << 47
                g.store(entry_at, word)
            table = trees[half, entry_at]


def make_leaf(g: Guest, level: int, shift: int) -> int:
    """A stage-1 leaf; now and then one that faults."""
    r = g.random
    chance = r.random()
    if chance < 0.04:
        return r.getrandbits(64) & ~1
    output = DATA + r.randrange(16) * PAGE if g.stage2_on else CANONICAL_POOL + r.randrange(64) * PAGE
    if chance < 0.08:
        output |= 1 << r.choice((33, 36, 37))
    output &= ~((1 << shift) - 1)
    kind = 3 if level == 3 else 1
    if chance > 0.97:
        kind = 1 if level == 3 else kind
    word = output | kind | r.randrange(8) << 2 | r.getrandbits(2) << 6 | r.choice((0, 2, 3)) << 8
    word |= int(r.random() > 0.12) << 10 | r.getrandbits(1) << 11 | r.getrandbits(2) << 53
    if "tcr2" in g.registers:
        word |= r.getrandbits(1) << 51
        if g.alike:
            word &= ~(1 << 7)
    return word


def make_guest(seed: int) -> Guest:
    """A random guest whose ATs Linux answers as the architecture does, but for the rows of ``as_linux``."""
    g = Guest(Random(seed), alike=True)
    g.stage2_on = g.random.random() > 0.1
    make_registers(g)
    for page in range(16):
        if g.random.random() > 0.1:
            g.map_page(DATA + page * PAGE, 0x4110_0000 + page * PAGE, g.leaf_bits(0.2))
    make_tables(g, 24)
    return g


def queries(g: Guest) -> Asked:
    """What to ask: every address by some operations, and addresses outside."""
    r = g.random
    asked: Asked = []
    for va in g.vas:
        for operation in (*r.sample(S1_OPERATIONS, 3), r.choice(S12_OPERATIONS)):
            asked.append((operation, va))
    for _ in range(6):
        va = r.choice(g.vas)
        va = r.choice((va ^ 1 << 55, va ^ 1 << 60, r.getrandbits(64), va ^ 1 << 40))
        asked.append((r.choice(S1_OPERATIONS + S12_OPERATIONS), va))
    return asked


def table_pages(g: Guest) -> list[int]:
    """Nested pages that hold stage-1 tables."""
    return [page for page in g.stage2 if TABLES <= page < DATA]


def setup_lines(g: Guest) -> list[str]:
    """The script up to the first AT."""
    lines = ["mem 64M", "start base 0 0", f"vtcr {DEFAULT_VTCR:#x}"]
    lines += [f"poke {at:#x} {word:#x}" for at, word in sorted(g.words.items()) if word]
    lines += [f"s2 {S2_ROOT:#x} 1", "code"]
    if not g.stage2_on:
        lines += ["vm 0", "codeat 0x40050000"]
    return [*lines, "s1 " + " ".join(f"{name}={value:#x}" for name, value in g.registers.items())]


def architecture(g: Guest, asked: Asked, pan: bool) -> Words:
    """The architecture's answers, a row a query; beside them those of loads at EL1, for the faulting IPA."""
    at = np.array(sorted(g.words), np.int64) >> 3
    MEMORY[at] = np.array([g.words[ipa] for ipa in sorted(g.words)], np.uint64)
    registers = {f"{name.upper()}_EL1": value for name, value in g.registers.items()}
    registers |= {"VTTBR_EL2": S2_ROOT | 1 << 48, "VTCR_EL2": DEFAULT_VTCR, "PSTATE": int(pan) << 22}
    registers |= {"HCR_EL2": HCR_E2H | (HCR_VM if g.stage2_on else 0), "HCRX_EL2": TCR2EN}
    row = context(**(registers | g.virtual))
    n = len(asked)
    out = np.zeros((2 * n, ANSWER), np.uint64)
    operations = np.array([AT_OPERATIONS[op] for op, _ in asked] + [LOAD_EL1] * n, np.int64)
    vas = np.array([va for _, va in asked] * 2, np.uint64)
    cpu = Implementation(OFFERED_PA_BITS, OFFERED)
    answers(MEMORY, row.reshape(1, ROW), np.zeros(2 * n, np.int64), operations, vas, cpu, False, out)
    MEMORY[at] = 0
    return np.concatenate([out[:n], out[n:]], axis=1)


def emulated(
    g: Guest, asked: Asked, pan: bool, touched: bool, switches: tuple[str, ...] = ()
) -> list[dict[str, int]]:
    """The log rows of the ATs, on an empty shadow or after L2 touched its tables."""
    lines = [*setup_lines(g), f"s1 pan={int(pan)}"]
    if touched:
        pages = table_pages(g) if g.stage2_on else sorted({ipa & ~0xFFF for ipa in g.words})
        lines += [f"touch r {page:#x} 4096 1" for page in pages]
    lines += ["mark asked", *(f"at {operation} {va:#x}" for operation, va in asked)]
    vm = Vm("\n".join(lines), ipa_limit_bits=48, frames=4096, as_architecture=switches).to("asked")
    for name, value in g.virtual.items():
        vm.state.vcpus[0, V_VIRTUAL + COLUMNS.index(name)] = value
    return vm.end().log("at")
