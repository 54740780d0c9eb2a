"""Random machines: registers, features, addresses, and tables invented where a walk comes by."""

from __future__ import annotations

from random import Random

from arch_book import Book, predicted
from translation_lab import ALL, END, Machine

from shadowmmu.arch.operation import NAMES

ATTRIBUTES = [0x00, 0x04, 0x08, 0x0C, 0x44, 0xBB, 0xFF, 0x4F, 0xF4, 0x77, 0x11, 0xEE, 0xA8, 0xF0]
SIZES = [16, 17, 20, 24, 25, 28, 31, 32, 33, 34, 36, 39]
UNUSUAL_SIZES = [*range(9, 16), 40, 44, 47, 48, 49]


class Inventing(Book):
    """A book that makes up the words nobody wrote."""

    random: Random
    cautious: float

    def load(self, pa: int, big: bool) -> int | None:
        """The word at ``pa``, invented at its first reading."""
        if pa < self.end and pa not in self.words:
            self.store(pa, self.invented(), big)
        return super().load(pa, big)

    def invented(self) -> int:
        """Mostly a table or page inside memory, accessed, readable; now and then anything."""
        r = self.random
        address = r.randrange(END >> 16) << 16
        if r.random() < 0.015:
            address |= r.randrange(1 << 36) << 12
        word = address | r.getrandbits(8) << 2 & 0x3FC | r.getrandbits(13) << 51
        if r.random() < self.cautious:
            word &= ~(3 << 8 | 0xFF << 56)  # no address bits of DS, no table bits
            word |= 3 << 6
        if r.random() < 0.9:
            word |= 1 << 10
        if r.random() < 0.02:
            return r.getrandbits(64)
        return word | r.choices([3, 1, 2, 0], [90, 8, 1, 1])[0]


def tcr_half(r: Random, upper: bool) -> int:
    """The fields of TCR_EL1 for one half."""
    granule = r.choice([0, 1, 2])
    sizes = SIZES if r.random() < 0.93 else UNUSUAL_SIZES
    txsz, odd = r.choice(sizes), [r.random() < 0.04 for _ in range(5)]
    if upper:
        tg = {0: 2, 1: 3, 2: 1}[granule] if r.random() < 0.98 else 0
        word = txsz << 16 | tg << 30 | r.getrandbits(2) << 28 | odd[0] << 23 | r.getrandbits(1) << 38
        return word | odd[1] << 42 | odd[2] << 52 | odd[3] << 56
    tg = granule if r.random() < 0.98 else 3
    word = txsz | tg << 14 | r.getrandbits(2) << 12 | odd[0] << 7 | r.getrandbits(1) << 37
    return word | odd[1] << 41 | odd[2] << 51 | odd[3] << 55


def tcr_el1(r: Random) -> int:
    """TCR_EL1, or TCR_EL2 with E2H."""
    ps = r.choice([0, 1, 2, 5, 5, 6, 6, 7])
    common = ps << 32 | (r.random() < 0.4) << 39 | (r.random() < 0.5) << 40 | (r.random() < 0.3) << 59
    return tcr_half(r, False) | tcr_half(r, True) | common


def tcr_el2(r: Random) -> int:
    """TCR_EL2 without E2H."""
    lower = tcr_half(r, False) & 0xF03F
    ps = r.choice([0, 2, 5, 6])
    flags = sum((r.random() < 0.3) << n for n in (20, 21, 22, 24, 29, 32))
    return lower | ps << 16 | flags


START_LEVELS = {0: [(2, 16, 24), (1, 21, 33), (0, 30, 39)], 1: [(2, 16, 21), (1, 22, 34), (0, 35, 39)],
                2: [(2, 16, 27), (1, 24, 38), (0, 35, 39)]}  # fmt: skip
"""SL0 with the T0SZ that go with it, by TG0."""


def vtcr(r: Random, pa_bits: int) -> int:
    """VTCR_EL2: mostly with a start level that fits."""
    granule = r.choice([0, 1, 2])
    ds = r.random() < 0.25
    sl0, low, high = r.choice(START_LEVELS[granule])
    low = min(max(low, 64 - pa_bits), high)
    word = r.randint(low, high) | sl0 << 6 | granule << 14 | r.choice([0, 2, 5, 5, 6]) << 16 | ds << 32
    if r.random() < 0.06:
        word ^= r.getrandbits(8) | (r.random() < 0.5) << 33
    if ds and granule == 0 and r.random() < 0.5:
        word = word & ~0xFF | r.randint(12, 15) | 1 << 33
    if ds and granule == 2 and r.random() < 0.5:
        word = word & ~0xFF | r.randint(12, 16) | 3 << 6
    return word | r.getrandbits(2) << 12 | (r.random() < 0.4) << 21 | (r.random() < 0.5) << 22


def frame(r: Random) -> int:
    """A start table, mostly aligned; CnP, ASID and the high address bits now and then."""
    word = r.randrange(END >> 16) << 16 | r.getrandbits(16) << 48
    return word | (r.getrandbits(16) if r.random() < 0.1 else 0)


def sctlr(r: Random) -> int:
    """M mostly, C, WXN, EE, EPAN."""
    flags = ((0, 0.93), (2, 0.8), (19, 0.2), (25, 0.1), (57, 0.3))
    return sum((r.random() < chance) << number for number, chance in flags)


def mair(r: Random) -> int:
    return sum(r.choice(ATTRIBUTES) << 8 * i for i in range(8))


def machine(r: Random) -> Machine:
    """A machine; every register may matter."""
    pa_bits = r.choice([52, 52, 52, 48, 48, 44, 42, 40, 36])
    e2h = r.random() < 0.3
    flags = ((0, 0.6), (2, 0.1), (12, 0.06), (27, 0.15), (32, 0.1), (37, 0.3), (46, 0.3))
    registers = {
        "HCR_EL2": sum((r.random() < chance) << number for number, chance in flags) | e2h << 34,
        "TCR_EL1": tcr_el1(r),
        "TCR_EL2": tcr_el1(r) if e2h else tcr_el2(r),
        "VTCR_EL2": vtcr(r, pa_bits),
        "PSTATE": r.getrandbits(1) << 22,
        "HCRX_EL2": r.getrandbits(1) << 14,
    }
    for name in ("TTBR0_EL1", "TTBR1_EL1", "VTTBR_EL2", "TTBR0_EL2", "TTBR1_EL2"):
        registers[name] = frame(r)
    for el in (1, 2):
        registers[f"SCTLR_EL{el}"] = sctlr(r)
        registers[f"MAIR_EL{el}"] = mair(r)
        registers[f"TCR2_EL{el}"] = (r.random() < 0.3) << 1
        registers[f"PIR_EL{el}"] = r.getrandbits(64)
        registers[f"PIRE0_EL{el}"] = r.getrandbits(64)
    features = ALL | {"MTE2"} if r.random() < 0.2 else ALL
    if r.random() < 0.4:
        features = frozenset(name for name in sorted(features) if r.random() < 0.6)
    return Machine(registers, features, pa_bits)


def address(r: Random, m: Machine) -> int:
    """A virtual address: in either half of either TCR mostly, with noise at the top now and then."""
    upper = r.random() < 0.4
    tcr = m.registers[r.choice(["TCR_EL1", "TCR_EL1", "TCR_EL2"])]
    bits = max(12, min(63, 64 - (tcr >> 16 * upper & 63)))
    va = r.getrandbits(r.choice([12, 25, bits, bits, bits])) % (1 << bits) & ~7
    if upper:
        va = (1 << 64) - 8 - va
    if r.random() < 0.1:
        va ^= r.getrandbits(8) << 56
    if r.random() < 0.03:
        va ^= 1 << r.randrange(64)
    return va


def filled(seed: int, queries: int) -> tuple[Machine, list[tuple[str, int]]]:
    """A machine whose tables lead the queries somewhere, and the queries."""
    r = Random(seed)
    m = machine(r)
    asked = []
    book = Inventing(m.registers, set(m.features), m.pa_bits, m.words, END)
    book.random, book.cautious = r, 0.9
    pool = [address(r, m) for _ in range(1 + queries // 3)]
    for _ in range(queries):
        name, va = r.choice(NAMES), r.choice(pool)
        asked.append((name, va))
        predicted(book, name, va, False)  # writes the words on the way
    return m, asked
