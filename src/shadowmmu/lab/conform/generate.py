"""Random scenarios for the rig and the model: everything that both sides support, from a seed.

Memslots, logs and places by backing have modules of their own; here is what L1, L2, vCPUs and the host do.

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
from shadowmmu.lab.conform.logs import Logs
from shadowmmu.lab.conform.places import BLOCK, PLACES, Places
from shadowmmu.lab.conform.windows import Windows

GENERATION: Final = 4
"""Raised when a seed makes other scripts than before."""
CODE_PAGES: Final = 16
CODE_NESTED: Final = 0x1_0000
CODE_CANONICAL: Final = 0x4005_0000
WINDOWS: Final = (0x80000000, 0x100000000, 0x180000000, 0x200000000, 0x280000000)
NEAR: Final = 24
"""Pages at the start of each block that scripts dwell on, so that events meet."""
VTCR: Final = 0x8002_3559
VTCR_36_BITS: Final = 0x8002_355C
VTCR_ACCESS_FLAG: Final = VTCR | 1 << 21
"""VTCR_EL2.HA: the walk sets access flags."""
ATTRIBUTES: Final = ("rw", "rw", "rw", "rw", "rwx", "r", "rx", "w", "-", "rwa", "ra", "x")
RUNS_GUEST: Final = frozenset(
    ("s2", "code", "map", "unmap", "tlbi", "vm", "poke", "peek", "nop", "touch", "reset")
)
"""Commands that take a vCPU out of L2 first."""
DRAIN: Final = ("dontneed 0x43e00000 2M", "write 0x43e00000 2M")
"""New pages push those that wait in the CPU's batch on their LRU list, where page_idle looks."""


@dataclass
class Generator:
    """One script under way."""

    rng: random.Random
    lines: list[str] = field(default_factory=list)
    roots: list[Root] = field(default_factory=list)
    pool: Pool = field(default_factory=Pool)
    vcpus: int = 1
    vcpu: int = 0
    """The vCPU that lines are about."""
    current: dict[int, int] = field(default_factory=dict)
    """The root that VTTBR_EL2 of each vCPU names."""
    in_l2: set[int] = field(default_factory=set)
    """The vCPUs that stand in L2, out of KVM_RUN or asleep."""
    preempted: bool = False
    """Whether one is scheduled out in L2: others go on, but not for long."""
    backing: str = "base"
    places: Places = PLACES["base"]
    aged: bool = False
    merged: bool = False
    swap: int = 0
    remapped: set[int] = field(default_factory=set)
    """Blocks in which memory was mapped anew: the model does not migrate it as Linux does."""
    windows: Windows = field(init=False)
    logs: Logs = field(init=False)

    def __post_init__(self) -> None:
        self.backing = self.rng.choice(BACKINGS)
        self.places = PLACES[self.backing]
        self.windows = Windows(self.rng, self.places.slots, (self.places.data, self.places.end))
        self.logs = Logs(self.rng)

    @property
    def root(self) -> Root:
        """The root that VTTBR_EL2 names."""
        return self.roots[self.current[self.vcpu]]

    def add(self, *lines: str) -> None:
        """Append lines to the script; L1 and L2 run only on a vCPU that does not stand in L2 afterwards."""
        self.lines += lines
        if any(line.split()[0] in RUNS_GUEST for line in lines):
            self.in_l2.discard(self.vcpu)

    # --- places

    def block(self) -> int:
        """A 2M block of data."""
        return self.places.data + BLOCK * self.rng.randrange(self.places.blocks)

    def page(self) -> int:
        """A page of data, near the start of a block but for some."""
        near = NEAR if self.rng.random() < 0.9 else 512
        return self.block() + PAGE * self.rng.randrange(near)

    def guest_page(self) -> int:
        """A page of data as the guest finds it: in memslot 0, or in another."""
        if self.windows.made and self.rng.random() < 0.3:
            return self.windows.page(NEAR)
        return self.page()

    def host_range(self) -> tuple[int, int]:
        """A canonical range for a call of the VMM: pages, blocks, or across the border of two blocks."""
        kind = self.rng.random()
        if self.places.hugetlb and kind < 0.85:
            return self._hugetlb_page()
        if kind < 0.65:
            start = self.page()
            return start, PAGE * self.rng.choice((1, 1, 2, 4, 16))
        if kind < 0.85:
            return self.block(), BLOCK
        start = self.places.data + BLOCK * self.rng.randrange(1, self.places.blocks) - 4 * PAGE
        return start, 8 * PAGE

    def _hugetlb_page(self) -> tuple[int, int]:
        """The hugetlb page that a page of data is in."""
        return self.page() & -self.places.hugetlb, self.places.hugetlb

    def mapped(self) -> tuple[int, int]:
        """A nested page that is mapped now (or was, or never was), and how many may follow."""
        choices = self.root.live if self.rng.random() < 0.9 else self.root.cached
        data = [piece for piece in choices if not self._executable(piece.start + piece.offset)]
        if not data or self.rng.random() < 0.04:
            return self.root.window + PAGE * self.rng.randrange(512), 4
        piece = self.rng.choice(data)
        if piece.end - piece.start > 64 * PAGE:
            canonical_ipa = self.guest_page()
            nested_ipa = canonical_ipa - piece.offset
            if not piece.start <= nested_ipa < piece.end:
                nested_ipa = piece.start + PAGE * self.rng.randrange(NEAR)
        else:
            nested_ipa = piece.start + PAGE * self.rng.randrange((piece.end - piece.start) // PAGE)
        return nested_ipa, max(1, min(8, (piece.end - nested_ipa) // PAGE))

    def _executable(self, canonical_ipa: int) -> bool:
        return self.places.code <= canonical_ipa < self.places.code + CODE_PAGES * PAGE

    # --- L1

    def new_root(self, vmid: int, window: int) -> None:
        """L1 makes a stage 2 with L2's code in it."""
        vtcr = self.rng.choice((VTCR, VTCR, VTCR, VTCR_36_BITS, VTCR_ACCESS_FLAG))
        root = Root(self.pool.take(), vmid, vtcr, window)
        self.roots.append(root)
        self.current[self.vcpu] = len(self.roots) - 1
        self.add(f"vtcr {vtcr:#x}", f"s2 new {vmid}", f"code {CODE_NESTED:#x}")
        root.map(self.pool, CODE_NESTED, CODE_NESTED + PAGE, CODE_CANONICAL - CODE_NESTED, 3)

    def select(self) -> None:
        """L1 writes VTTBR_EL2 with a root it has."""
        self.current[self.vcpu] = self.rng.randrange(len(self.roots))
        self.add(f"vtcr {self.root.vtcr:#x}", f"s2 {self.root.at:#x} {self.root.vmid}")

    def map(self) -> None:
        """L1 maps pages, blocks or a gigabyte; breaks first what it would change."""
        level = self.rng.choice((3, 3, 3, 3, 2, 2, 1))
        area = self.rng.choice((0, 0, 0, 1)) if level > 1 else 2
        letters = self.rng.choice(ATTRIBUTES)
        if level == 1:
            around = (self.places.identity, self.places.slots)
            canonical_ipa = self.rng.choice(around if self.windows.made else around[:1])
            self._map_at(self.root.window + LEAF[1], canonical_ipa, LEAF[1], 1, letters)
            return
        if level == 2:
            count = self.rng.choice((1, 1, 2))
            start = self.root.window + BLOCK * (2 + self.rng.randrange(4)) if area else self.root.window
            self._map_at(
                start, self.guest_page() & -BLOCK, BLOCK * min(count, 1 if not area else 2), 2, letters
            )
            return
        count = self.rng.choice((1, 2, 4, 8, 16))
        page = self.root.window + PAGE * self.rng.randrange(NEAR) + area * 2 * BLOCK
        if self.rng.random() < 0.1:
            self._map_at(
                page & ~0xFFFF, self.guest_page() & ~0xFFFF, 16 * PAGE, 3, letters.replace("-", "") + "c"
            )
        elif self.rng.random() < 0.03:
            self._map_at(page, self.places.no_slot, PAGE, 3, letters)
        else:
            self._map_at(page, self.guest_page(), count * PAGE, 3, letters)

    def _map_at(self, nested_ipa: int, canonical_ipa: int, size: int, level: int, letters: str) -> None:
        last = self.places.end
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
            self.add(f"tlbi {self.rng.choice((4, 4, 5, 4 if self.vcpus > 1 else 8))} 0")
        for piece in held:
            root.invalidated(piece.start, piece.end)

    def invalidate_leaf(self, nested_ipa: int, level: int) -> None:
        """A TLBI by IPA of one leaf; now and then with its level."""
        hint = (4 | level) << 44 if self.rng.random() < 0.3 else 0
        self.add(
            f"tlbi {self.rng.choice((0, 0, 1, 0 if self.vcpus > 1 else 7))} {hint | nested_ipa >> 12:#x}"
        )

    def change_permissions(self) -> None:
        """L1 writes the same outputs with other attributes."""
        small = [
            p for p in self.root.live if p.end - p.start <= 2 * BLOCK and p.offset + p.start != CODE_CANONICAL
        ]
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
                if kind != 8 or self.vcpus == 1:
                    one.invalidated(0, 1 << 48)
        elif kind == 6:
            self.add("tlbi 6 0")
        else:
            if self.rng.random() < 0.02:
                nested_ipa = 1 << 40
            self.add(f"tlbi {kind} {nested_ipa >> 12:#x}")
            if kind != 7 or self.vcpus == 1:
                root.invalidated(nested_ipa, nested_ipa + PAGE)

    def switch_stage2(self) -> None:
        """L1 turns L2's stage 2 off, runs it at canonical addresses, and turns it on again."""
        operation = self.rng.choice("rw")
        self.add("vm 0", f"codeat {CODE_CANONICAL:#x}")
        for _ in range(self.rng.choice((1, 2))):
            self.add(f"touch {operation} {self.guest_page():#x} 4096 {self.rng.choice((1, 2, 4))}")
            if self.rng.random() < 0.4:
                self.host_call()
        self.add("vm 1", f"codeat {CODE_NESTED:#x}")

    def own_access(self) -> None:
        """L1 itself loads, stores, or does nothing."""
        place = self.guest_page() + 8 * self.rng.randrange(512)
        self.add(
            self.rng.choice((f"poke {place:#x} {self.rng.getrandbits(32):#x}", f"peek {place:#x}", "nop"))
        )

    # --- L2

    def touch(self) -> None:
        """L2 reads or writes along mapped pages; now and then above the input size."""
        nested_ipa, room = self.mapped()
        count = self.rng.randint(1, room)
        operation = self.rng.choice("rwwr")
        if self.logs.rings and room == 8 and not self.preempted and self.rng.random() < 0.08:
            operation, count = "w", 300
        va = nested_ipa + 8 * self.rng.randrange(16)
        if self.rng.random() < 0.02:
            va |= 1 << 39
        self.add(f"touch {operation} {va:#x} 4096 {count}")

    def execute(self) -> None:
        """L2 executes where instructions are, mapped for it on first use."""
        root = self.root
        if self.windows.made and self.rng.random() < 0.4:
            self._execute_read_only()
            return
        start = root.window + 8 * BLOCK
        if not any(piece.start == start for piece in root.live):
            self.add(f"map {start:#x} {self.places.code:#x} {CODE_PAGES * PAGE:#x} 3 rx")
            root.map(self.pool, start, start + CODE_PAGES * PAGE, self.places.code - start, 3)
        first = self.rng.randrange(CODE_PAGES - 4)
        self.add(f"touch x {start + first * PAGE:#x} 4096 {self.rng.randint(1, 4)}")

    def _execute_read_only(self) -> None:
        """L2 executes where a read-only memslot shows the instructions; L1 follows it when it moves."""
        root = self.root
        start = root.window + 10 * BLOCK
        base, lines = self.windows.code(self.places.code)
        self.add(*lines)
        if not any(piece.start == start and start + piece.offset == base for piece in root.live):
            self._map_at(start, base, CODE_PAGES * PAGE, 3, "rx")
        first = self.rng.randrange(CODE_PAGES - 4)
        self.add(f"touch x {start + first * PAGE:#x} 4096 {self.rng.randint(1, 4)}")

    # --- vCPUs

    def switch_vcpu(self) -> None:
        """Go on on another vCPU; L1 gives it a root when it has none."""
        if self.vcpus == 1:
            self.touch()
            return
        self.vcpu = self.rng.choice([n for n in range(self.vcpus) if n != self.vcpu])
        self.add(f"vcpu {self.vcpu}")
        if self.vcpu not in self.current:
            self.select()

    def turn(self) -> None:
        """A vCPU enters L2, leaves it, sleeps, comes back; or it is reset."""
        if self.vcpus == 1:
            self.touch()
        elif self.vcpu in self.in_l2:
            self.add("resume", self.rng.choice(("exit", "wfi")))
        elif self.rng.random() < 0.15:
            self.add("nop", "reset")
            self.select()
        else:
            self.add("enter")
            how = self.rng.choice(("exit", "wfi", "preempt", "preempt"))
            self.add(how)
            self.in_l2.add(self.vcpu)
            if how == "preempt":
                self._meanwhile()
            elif self.rng.random() < 0.5:
                self.add("resume", self.rng.choice(("exit", "wfi")))

    def _meanwhile(self) -> None:
        """Others go on while a vCPU is scheduled out in L2.

        Nothing in which the rig's reader of scripts would sleep or work for a second: the vCPU would run.
        """
        out, self.preempted = self.vcpu, True
        self.switch_vcpu()
        for _ in range(self.rng.randint(1, 4)):
            self.rng.choice((self.touch, self.touch, self.map, self.unmap, self.invalidate, self.select))()
            if self.rng.random() < 0.3:
                start, size = self._hugetlb_page() if self.places.hugetlb else (self.page(), PAGE)
                self.add(f"{self.rng.choice(('dontneed', 'mprotect'))} {start:#x} {size:#x}")
        self.vcpu, self.preempted = out, False
        self.add(f"vcpu {out}")
        if self.rng.random() < 0.5:
            self.add("exit")
        else:
            self.touch()

    # --- the host

    def host_call(self) -> None:
        """The VMM takes memory away, gives it back, or changes what it is."""
        start, size = self.host_range()
        call = self.rng.choice(HOST_CALLS["huge" if self.places.hugetlb else self.backing])
        if self.places.hugetlb and call == "write":  # mprotect must not fail, or the store would
            start, size = self._hugetlb_page()
        where = f"{start:#x} {size:#x}"
        blocks = set(range(start & -BLOCK, start + size, BLOCK))
        if call == "munmap":
            self.remapped |= blocks
        elif call == "migrate" and self.backing == "thp" and blocks & self.remapped:
            call = "dontneed"
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
        where = f"{self.places.code + PAGE * self.rng.randrange(CODE_PAGES - 2):#x} {PAGE * 2:#x}"
        self.add(f"dontneed {where}", f"ret {where}")

    def logging_call(self) -> None:
        """Dirty logging on or off, and what the VMM reads of it."""
        sizes = {slot: self.windows.made[slot].size for slot in self.windows.logging()}
        if self.logs.on:
            sizes[0] = self.places.memory
        if (sizes or self.logs.rings) and self.rng.random() < 0.75:
            self.add(*self.logs.read(sizes, self.block()))
        else:
            self.add(*self.logs.switch())

    def memslot(self) -> None:
        """The memslot goes and comes back; nothing of the guest runs meanwhile."""
        self.add("slot 0")
        for action in (self.host_call, self.window, self.window):
            if self.rng.random() < 0.3:
                action()
        self.add("slot 1")

    def window(self) -> None:
        """A memslot besides the first comes, goes, moves, or its log begins or ends."""
        self.add(*self.windows.change())

    def age(self) -> None:
        """The host marks pages idle."""
        self.aged = True
        self.add(*DRAIN, f"idle {self.page():#x} {self.rng.choice((1, 4, 16))}")

    # --- the whole

    def begin(self) -> None:
        """The machine, two to four roots with a first mapping each."""
        rng = self.rng
        self.add(f"mem {self.places.memory >> 20}M")
        self.vcpus = rng.choice((1, 1, 1, 1, 2, 2, 3))
        if self.vcpus > 1:
            self.add(f"vcpus {self.vcpus}")
        self.add(*self.logs.begin(self.places.memory))
        self.add(f"start {self.backing} {rng.choice((0, 0, 0, 1))} {rng.choice((0, 0, 36, 40))}")
        self.add(f"ret {self.places.code:#x} {CODE_PAGES * PAGE:#x}")
        if rng.random() < 0.6:
            self.add(f"write {self.block():#x} {rng.choice(('64k', '2M', '2M'))}")
        for _ in range(rng.choice((0, 0, 1, 2))):
            self.window()
        for number in range(rng.choice((1, 2, 3, 4))):
            self.new_root(number + 1, WINDOWS[number])
            self.map()

    def step(self) -> None:
        """One thing of any sort."""
        name = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        action: Callable[[], None] = getattr(self, name)
        action()


BACKINGS: Final = (
    *("base",) * 6,
    *("thp",) * 6,
    *("huge", "huge"),
    *("huge-cont-pte", "huge-cont-pmd", "huge-pud"),
)
WEIGHTS: Final = {
    "touch": 34,
    "host_call": 22,
    "map": 10,
    "select": 8,
    "invalidate": 8,
    "unmap": 5,
    "change_permissions": 5,
    "execute": 3,
    "switch_vcpu": 6,
    "turn": 5,
    "switch_stage2": 3,
    "logging_call": 5,
    "window": 3,
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
