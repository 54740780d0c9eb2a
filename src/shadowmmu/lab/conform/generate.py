"""Random scenarios for the rig and the model: everything that both sides support, from a seed.

L1 obeys break-before-make (``guest_tables``). L2 executes only where the VMM wrote instructions. The VMM
stores only to memory it made writable. Left out, because the model does not do them as Linux does
(``docs/conformance.md``): reading idle pages, khugepaged once pages were marked idle, swapoff after KSM.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from shadowmmu.lab.conform.guest_tables import LEAF, PAGE, Pool, Root

DATA: Final = 0x4100_0000
DATA_BLOCKS: Final = 6
"""2M blocks of data that the host takes away and changes; most accesses are to the first pages of each."""
CODE_DATA: Final = 0x4200_0000
"""Pages that hold instructions: only ``ret`` writes them."""
CODE_PAGES: Final = 16
NO_SLOT: Final = 0x5000_0000
"""A canonical IPA beyond the memory: an access there leaves to the VMM."""
IDENTITY: Final = 0x4000_0000
CODE_NESTED: Final = 0x1_0000
CODE_CANONICAL: Final = 0x4005_0000
WINDOWS: Final = (0x80000000, 0x100000000, 0x180000000, 0x200000000, 0x280000000)
BLOCK: Final = 1 << 21
NEAR: Final = 24
"""Pages at the start of each block that scripts dwell on, so that events meet."""
VTCR: Final = 0x8002_3559
VTCR_36_BITS: Final = 0x8002_355C
VTCR_ACCESS_FLAG: Final = VTCR | 1 << 21
"""VTCR_EL2.HA: the walk sets access flags."""
ATTRIBUTES: Final = ("rw", "rw", "rw", "rw", "rwx", "r", "rx", "w", "-", "rwa", "ra", "x")
DRAIN: Final = ("dontneed 0x43e00000 2M", "write 0x43e00000 2M")
"""New pages push those that wait in the CPU's batch on their LRU list, where page_idle looks."""


@dataclass
class Generator:
    """One script under way."""

    rng: random.Random
    lines: list[str] = field(default_factory=list)
    roots: list[Root] = field(default_factory=list)
    pool: Pool = field(default_factory=Pool)
    current: int = 0
    backing: str = "base"
    stage2: bool = True
    logging: bool = False
    aged: bool = False
    merged: bool = False
    swap: int = 0
    steps: int = 0

    @property
    def root(self) -> Root:
        """The root that VTTBR_EL2 names."""
        return self.roots[self.current]

    def add(self, *lines: str) -> None:
        """Append lines to the script."""
        self.lines += lines

    # --- places

    def block(self) -> int:
        """A 2M block of data."""
        return DATA + BLOCK * self.rng.randrange(DATA_BLOCKS)

    def page(self) -> int:
        """A page of data, near the start of a block but for some."""
        near = NEAR if self.rng.random() < 0.9 else 512
        return self.block() + PAGE * self.rng.randrange(near)

    def host_range(self) -> tuple[int, int]:
        """A canonical range for a call of the VMM: pages, blocks, or across the border of two blocks."""
        kind = self.rng.random()
        if self.backing == "huge" and kind < 0.85:
            return self.block(), BLOCK
        if kind < 0.65:
            start = self.page()
            return start, PAGE * self.rng.choice((1, 1, 2, 4, 16))
        if kind < 0.85:
            return self.block(), BLOCK
        start = DATA + BLOCK * self.rng.randrange(1, DATA_BLOCKS) - 4 * PAGE
        return start, 8 * PAGE

    def mapped(self) -> tuple[int, int]:
        """A nested page that is mapped now (or was, or never was), and how many may follow."""
        choices = self.root.live if self.rng.random() < 0.9 else self.root.cached
        data = [piece for piece in choices if not self._executable(piece.start + piece.offset)]
        if not data or self.rng.random() < 0.04:
            return self.root.window + PAGE * self.rng.randrange(512), 4
        piece = self.rng.choice(data)
        if piece.end - piece.start > 64 * PAGE:
            canonical_ipa = self.page()
            nested_ipa = canonical_ipa - piece.offset
            if not piece.start <= nested_ipa < piece.end:
                nested_ipa = piece.start + PAGE * self.rng.randrange(NEAR)
        else:
            nested_ipa = piece.start + PAGE * self.rng.randrange((piece.end - piece.start) // PAGE)
        return nested_ipa, max(1, min(8, (piece.end - nested_ipa) // PAGE))

    def _executable(self, canonical_ipa: int) -> bool:
        return CODE_DATA <= canonical_ipa < CODE_DATA + CODE_PAGES * PAGE

    # --- L1

    def new_root(self, vmid: int, window: int) -> None:
        """L1 makes a stage 2 with L2's code in it."""
        vtcr = self.rng.choice((VTCR, VTCR, VTCR, VTCR_36_BITS, VTCR_ACCESS_FLAG))
        root = Root(self.pool.take(), vmid, vtcr, window)
        self.roots.append(root)
        self.current = len(self.roots) - 1
        self.add(f"vtcr {vtcr:#x}", f"s2 new {vmid}", f"code {CODE_NESTED:#x}")
        root.map(self.pool, CODE_NESTED, CODE_NESTED + PAGE, CODE_CANONICAL - CODE_NESTED, 3)

    def select(self) -> None:
        """L1 writes VTTBR_EL2 with a root it has."""
        self.current = self.rng.randrange(len(self.roots))
        self.add(f"vtcr {self.root.vtcr:#x}", f"s2 {self.root.at:#x} {self.root.vmid}")

    def map(self) -> None:
        """L1 maps pages, blocks or a gigabyte; breaks first what it would change."""
        level = self.rng.choice((3, 3, 3, 3, 2, 2, 1))
        area = self.rng.choice((0, 0, 0, 1)) if level > 1 else 2
        letters = self.rng.choice(ATTRIBUTES)
        if level == 1:
            self._map_at(self.root.window + LEAF[1], IDENTITY, LEAF[1], 1, letters)
            return
        if level == 2:
            count = self.rng.choice((1, 1, 2))
            start = self.root.window + BLOCK * (2 + self.rng.randrange(4)) if area else self.root.window
            self._map_at(start, self.block(), BLOCK * min(count, 1 if not area else 2), 2, letters)
            return
        count = self.rng.choice((1, 2, 4, 8, 16))
        page = self.root.window + PAGE * self.rng.randrange(NEAR) + area * 2 * BLOCK
        if self.rng.random() < 0.1:
            self._map_at(page & ~0xFFFF, self.page() & ~0xFFFF, 16 * PAGE, 3, letters.replace("-", "") + "c")
        elif self.rng.random() < 0.03:
            self._map_at(page, NO_SLOT, PAGE, 3, letters)
        else:
            self._map_at(page, self.page(), count * PAGE, 3, letters)

    def _map_at(self, nested_ipa: int, canonical_ipa: int, size: int, level: int, letters: str) -> None:
        last = DATA + DATA_BLOCKS * BLOCK
        if level > 1 and canonical_ipa < last < canonical_ipa + size:
            size = last - canonical_ipa
        window = 0
        if level == 3 and size >= 4 * PAGE and "c" not in letters and self.rng.random() < 0.2:
            window = size // 2
        pieces = [(nested_ipa + o, window or size) for o in range(0, size, window or size)]
        root = self.root
        offsets = [canonical_ipa - start for start, _length in pieces]
        clash = any(
            root.conflicts(start, start + length, offset, level)
            for (start, length), offset in zip(pieces, offsets, strict=True)
        )
        if clash:
            self.break_range(nested_ipa, nested_ipa + size)
        word = f" {window:#x}" if window else ""
        self.add(f"map {nested_ipa:#x} {canonical_ipa:#x} {size:#x} {level} {letters or '-'}{word}")
        for (start, length), offset in zip(pieces, offsets, strict=True):
            root.map(self.pool, start, start + length, offset, level)

    def break_range(self, start: int, end: int) -> None:
        """Take out what is mapped in a range and what a TLB may hold of it."""
        root = self.root
        for piece in root.breaking(start, end):
            self.add(f"unmap {piece.start:#x} {piece.end - piece.start:#x} {piece.level}")
            root.unmap(piece.start, piece.end)
        held = [piece for piece in root.cached if piece.overlaps(start, end)]
        leaves = sum((piece.end - piece.start) // LEAF[piece.level] for piece in held)
        if leaves <= 8 and self.rng.random() < 0.6:
            for piece in held:
                for leaf in range(piece.start, piece.end, LEAF[piece.level]):
                    self.invalidate_leaf(leaf, piece.level)
        else:
            self.add(f"tlbi {self.rng.choice((4, 4, 5, 8))} 0")
        for piece in held:
            root.invalidated(piece.start, piece.end)

    def invalidate_leaf(self, nested_ipa: int, level: int) -> None:
        """A TLBI by IPA of one leaf; now and then with its level."""
        hint = (4 | level) << 44 if self.rng.random() < 0.3 else 0
        self.add(f"tlbi {self.rng.choice((0, 0, 1, 7))} {hint | nested_ipa >> 12:#x}")

    def change_permissions(self) -> None:
        """L1 writes the same outputs with other attributes."""
        small = [p for p in self.root.live if p.end - p.start <= 2 * BLOCK and p.offset + p.start >= DATA]
        if not small:
            return
        piece = self.rng.choice(small)
        start = piece.start
        size = min(piece.end - start, LEAF[piece.level] * self.rng.choice((1, 2, 4)))
        letters = self.rng.choice(ATTRIBUTES)
        if self._executable(start + piece.offset):
            letters = self.rng.choice(("rx", "x", "r", "rwx"))
        self.add(f"map {start:#x} {start + piece.offset:#x} {size:#x} {piece.level} {letters}")
        self.root.map(self.pool, start, start + size, piece.offset, piece.level)
        if self.rng.random() < 0.6:
            self.invalidate_leaf(start, piece.level)

    def unmap(self) -> None:
        """L1 takes a mapping out, with or without its TLBI."""
        own = [piece for piece in self.root.live if piece.start != CODE_NESTED]
        if not own:
            return
        piece = self.rng.choice(own)
        size = LEAF[piece.level] * self.rng.choice((1, 1, 2, 4))
        size = min(size, piece.end - piece.start)
        self.add(f"unmap {piece.start:#x} {size:#x} {piece.level}")
        self.root.unmap(piece.start, piece.start + size)
        if self.rng.random() < 0.6:
            for leaf in range(piece.start, piece.start + size, LEAF[piece.level]):
                self.invalidate_leaf(leaf, piece.level)
            self.root.invalidated(piece.start, piece.start + size)

    def invalidate(self) -> None:
        """A TLBI of any form; only what it surely covers counts as invalidated."""
        root = self.root
        kind = self.rng.choice((0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 7, 8))
        nested_ipa = self.mapped()[0]
        if kind in (2, 3):
            scale, number = self.rng.choice((0, 0, 1)), self.rng.randrange(4)
            value = 1 << 46 | scale << 44 | number << 39 | nested_ipa >> 12
            self.add(f"tlbi {kind} {value:#x}")
            root.invalidated(nested_ipa, nested_ipa + PAGE * ((number + 1) << (5 * scale + 1)))
        elif kind in (4, 5, 8):
            self.add(f"tlbi {kind} 0")
            for one in self.roots if kind == 5 else [root]:
                one.invalidated(0, 1 << 48)
        elif kind == 6:
            self.add("tlbi 6 0")
        else:
            if self.rng.random() < 0.02:
                nested_ipa = 1 << 40
            self.add(f"tlbi {kind} {nested_ipa >> 12:#x}")
            root.invalidated(nested_ipa, nested_ipa + PAGE)

    def switch_stage2(self) -> None:
        """L1 turns L2's stage 2 off, runs it at canonical addresses, and turns it on again."""
        operation = self.rng.choice("rw")
        self.add("vm 0", f"codeat {CODE_CANONICAL:#x}")
        for _ in range(self.rng.choice((1, 2))):
            self.add(f"touch {operation} {self.page():#x} 4096 {self.rng.choice((1, 2, 4))}")
            if self.rng.random() < 0.4:
                self.host_call()
        self.add("vm 1", f"codeat {CODE_NESTED:#x}")

    def own_access(self) -> None:
        """L1 itself loads, stores, or does nothing."""
        place = self.page() + 8 * self.rng.randrange(512)
        self.add(
            self.rng.choice((f"poke {place:#x} {self.rng.getrandbits(32):#x}", f"peek {place:#x}", "nop"))
        )

    # --- L2

    def touch(self) -> None:
        """L2 reads or writes along mapped pages; now and then above the input size."""
        nested_ipa, room = self.mapped()
        count = self.rng.randint(1, room)
        operation = self.rng.choice("rwwr")
        va = nested_ipa + 8 * self.rng.randrange(16)
        if self.rng.random() < 0.02:
            va |= 1 << 39
        self.add(f"touch {operation} {va:#x} 4096 {count}")

    def execute(self) -> None:
        """L2 executes where instructions are, mapped for it on first use."""
        root = self.root
        start = root.window + 8 * BLOCK
        if not any(piece.start == start for piece in root.live):
            self.add(f"map {start:#x} {CODE_DATA:#x} {CODE_PAGES * PAGE:#x} 3 rx")
            root.map(self.pool, start, start + CODE_PAGES * PAGE, CODE_DATA - start, 3)
        first = self.rng.randrange(CODE_PAGES - 4)
        self.add(f"touch x {start + first * PAGE:#x} 4096 {self.rng.randint(1, 4)}")

    # --- the host

    def host_call(self) -> None:
        """The VMM takes memory away, gives it back, or changes what it is."""
        start, size = self.host_range()
        call = self.rng.choice(HOST_CALLS[self.backing])
        if self.backing == "huge" and call == "write":  # mprotect must not fail, or the store would
            start, size = self.block(), BLOCK
        where = f"{start:#x} {size:#x}"
        if call == "mprotect":
            self.add(f"mprotect {where} {self.rng.choice(('r', 'rw', 'rw', '-'))}")
        elif call in ("write", "rewrite"):
            self.add(f"mprotect {where} rw", f"write {where}")
        elif call == "munmap":
            self.add(f"munmap {where}", f"mmap {where}")
            if self.rng.random() < 0.5 and self.backing == "thp":
                self.add(f"hugepage {where}")
        elif call == "collapse":
            self.add(f"collapse {self.block():#x} 2M")
        elif call == "ksm":
            self.merge()
        elif call == "swap":
            if not self.merged or not self.swap:
                self.swap = 1 - self.swap
                self.add(f"swap {self.swap}")
        elif call == "khugepaged":
            if not self.aged:
                self.add("khugepaged")
        else:
            self.add(f"{call} {where}")

    def merge(self) -> None:
        """The VMM makes memory mergeable, in which pages are equal, and ksmd goes over it."""
        self.merged = True
        start, size = self.host_range()
        where = f"{start:#x} {min(size, 16 * PAGE):#x}"
        if self.rng.random() < 0.5:
            self.add(f"mprotect {where} rw", f"ret {where}")
        self.add(f"mergeable {where}", "ksm")

    def code_page_gone(self) -> None:
        """The host drops pages of instructions and the VMM writes them again."""
        where = f"{CODE_DATA + PAGE * self.rng.randrange(CODE_PAGES - 2):#x} {PAGE * 2:#x}"
        self.add(f"dontneed {where}", f"ret {where}")

    def logging_call(self) -> None:
        """Dirty logging on or off, and its harvest."""
        if self.logging and self.rng.random() < 0.7:
            self.add("getlog")
            return
        self.logging = not self.logging
        self.add(f"log {int(self.logging)}")

    def memslot(self) -> None:
        """The memslot goes and comes back; nothing of the guest runs meanwhile."""
        self.add("slot 0")
        if self.rng.random() < 0.3:
            self.host_call()
        self.add("slot 1")

    def age(self) -> None:
        """The host marks pages idle."""
        self.aged = True
        self.add(*DRAIN, f"idle {self.page():#x} {self.rng.choice((1, 4, 16))}")

    # --- the whole

    def begin(self) -> None:
        """The machine, two to four roots with a first mapping each."""
        rng = self.rng
        self.backing = rng.choice(("base", "base", "base", "thp", "thp", "thp", "huge"))
        self.add("mem 64M")
        vcpus = rng.choice((1, 1, 1, 2))
        if vcpus > 1:
            self.add(f"vcpus {vcpus}")
        self.add(f"start {self.backing} {rng.choice((0, 0, 0, 1))} {rng.choice((0, 0, 36, 40))}")
        self.add(f"ret {CODE_DATA:#x} {CODE_PAGES * PAGE:#x}")
        if rng.random() < 0.6:
            self.add(f"write {self.block():#x} {rng.choice(('64k', '2M', '2M'))}")
        for number in range(rng.choice((1, 2, 3, 4))):
            self.new_root(number + 1, WINDOWS[number])
            self.map()

    def step(self) -> None:
        """One thing of any sort."""
        name = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        action: Callable[[], None] = getattr(self, name)
        action()


WEIGHTS: Final = {
    "touch": 34,
    "host_call": 22,
    "map": 10,
    "select": 8,
    "invalidate": 8,
    "unmap": 5,
    "change_permissions": 5,
    "execute": 3,
    "switch_stage2": 3,
    "logging_call": 3,
    "own_access": 2,
    "memslot": 1,
    "code_page_gone": 1,
    "age": 1,
}

HOST_CALLS: Final = {
    "base": (
        "dontneed",
        "dontneed",
        "dontneed",
        "mprotect",
        "mprotect",
        "write",
        "munmap",
        "mergeable",
        "pageout",
        "pageout",
        "swap",
        "migrate",
        "migrate",
        "ksm",
        "ksm",
    ),
    "thp": (
        *("dontneed", "dontneed", "dontneed", "mprotect", "mprotect", "write", "write", "munmap"),
        *("hugepage", "nohugepage", "collapse", "collapse", "mergeable"),
        *("migrate", "migrate", "ksm", "ksm", "khugepaged", "pageout", "pageout", "pageout", "swap"),
    ),
    "huge": ("dontneed", "dontneed", "mprotect", "write", "munmap"),
}


def random_script(seed: int, number: int, steps: int = 40) -> str:
    """The scenario ``number`` of ``seed``: the machine and ``steps`` things that happen to it."""
    generator = Generator(random.Random(f"{seed}/{number}"))
    generator.begin()
    for _ in range(steps):
        generator.step()
    return "\n".join([*generator.lines, ""])
