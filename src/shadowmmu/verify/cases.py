"""The cases of the conformance kit: what a design must survive, each one a script of the scenario language.

Where they come from: the objections of the reviews (upstream.md, section 4), the known faults of the
designs (section 3), and ``random_script``, an L1 that does what the architecture allows and no sane
hypervisor does. Memory is small, so that a case takes milliseconds interpreted.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

DATA: Final = 0x4100_0000
"""Canonical IPA of the data: four blocks of 2M are used."""
NESTED: Final = 0x8000_0000
PAGE: Final = 1 << 12
BLOCK: Final = 1 << 21
CODE: Final = 0x1_0000
CODE_STAGE2_OFF: Final = 0x4005_0000
"""Where L2's code is when nested IPA is canonical IPA."""
FIRST_ROOT: Final = 0x4010_0000
"""Canonical IPA of the first table of L1, so of the root that the first ``s2 new`` makes."""
WIDTH: Final = 40


@dataclass(frozen=True)
class Case:
    """One machine and what happens to it; a design that claims safety breaks no rule of the judge in it.

    ``exact``: a design whose record cannot blur has no reason here to clear a leaf outside the range of
    the notifier. ``fail_allocation`` makes the n-th allocation of the record fail (0: none does).
    """

    name: str
    shows: str
    script: str
    ipa_limit_bits: int = WIDTH
    fail_allocation: int = 0
    exact: bool = True
    tlbirange: bool = True


def tlbi_page(nested_ipa: int, level: int = 0) -> str:
    """L1's TLBI IPAS2E1IS of one address, with the TTL hint of ``level`` (0: no hint)."""
    hint = 4 | level if level else 0
    return f"tlbi 0 {hint << 44 | nested_ipa >> 12:#x}"


def tlbi_range(nested_ipa: int, number: int, scale: int = 0) -> str:
    """L1's TLBI RIPAS2E1IS of ``(number + 1) << (5 * scale + 1)`` pages."""
    return f"tlbi 2 {1 << 46 | scale << 44 | number << 39 | nested_ipa >> 12:#x}"


def _start(backing: str, *lines: str) -> str:
    return "\n".join((f"mem 64M\nstart {backing} 0 0\ns2 new 1\ncode\nwrite {DATA:#x} 4M", *lines)) + "\n"


def _aliases(count: int) -> str:
    places = [NESTED + k * 0x20_5000 for k in range(count)]
    lines = [f"map {ipa:#x} {DATA:#x} 4k 3 rw\ntouch w {ipa:#x}" for ipa in places]
    reads = [f"touch r {ipa:#x}" for ipa in places]
    return _start("base", *lines, f"dontneed {DATA:#x} 4k", *reads, f"dontneed {DATA:#x} 4k")


_PLACED: Final = (
    Case(
        "alias-across-vmids",
        "one canonical page in three shadow MMUs of three VMIDs, twice in one of them",
        "vcpus 2\n"
        + _start(
            "base",
            "map 0x80000000 0x41000000 64k 3 rw\ntouch w 0x80000000 4096 16",
            "s2 new 2\ncode\nmap 0x90000000 0x41003000 4k 3 rw\nmap 0x90009000 0x41003000 4k 3 rw",
            "touch w 0x90000000\ntouch w 0x90009000",
            "s2 new 3\ncode\nmap 0x0 0x41003000 4k 3 r\ntouch r 0x0",
            "dontneed 0x41003000 4k\ntouch r 0x0\ns2 0x40100000 1\ntouch r 0x80003000",
            "dontneed 0x41003000 4k",
        ),
    ),
    Case(
        "alias-in-block",
        "a 2M block and a page inside it at another nested address",
        _start(
            "thp",
            "map 0x80000000 0x41000000 2M 2 rw\nmap 0x90000000 0x41005000 4k 3 rw",
            "touch w 0x80000000\ntouch w 0x90000000\npunch 0x41005000 4k",
            "touch r 0x80000000 4096 8\ntouch r 0x90000000\ndontneed 0x41000000 2M",
        ),
    ),
    Case(
        "alias-in-block-other-vmid",
        "a 2M block in one shadow MMU, two pages inside it in another; the host takes a third page",
        _start(
            "thp",
            "map 0x80000000 0x41000000 2M 2 rw\ntouch w 0x80000000",
            "s2 new 2\ncode\nmap 0x90000000 0x41003000 8k 3 rw\ntouch w 0x90000000 4096 2",
            "punch 0x41009000 4k\npunch 0x41003000 4k",
        ),
    ),
    Case(
        "mid-block",
        "the notifier starts and ends inside a 2M block, and no split notifier comes before it",
        _start(
            "thp",
            "map 0x80000000 0x41000000 4M 2 rw\ntouch w 0x80000000 0x200000 2",
            "punch 0x41005000 4k\ntouch r 0x80000000 4096 8\npunch 0x411ff000 8k",
        ),
    ),
    Case(
        "page-in-host-block",
        "L1 maps single pages of what the host maps by 2M",
        _start(
            "thp",
            "map 0x80000000 0x41000000 64k 3 rw\ntouch w 0x80000000 4096 16",
            "punch 0x41005000 4k\ntouch r 0x80000000 4096 16\ndontneed 0x41007000 8k",
        ),
    ),
    Case(
        "tlbi-then-remap",
        "L1 moves a canonical page to another nested address, with the TLBI it owes",
        _start(
            "base",
            "map 0x80000000 0x41000000 8k 3 rw\ntouch w 0x80000000 4096 2",
            f"unmap 0x80000000 4k 3\n{tlbi_page(NESTED)}",
            "map 0x80005000 0x41000000 4k 3 rw\ntouch w 0x80005000\ndontneed 0x41000000 4k",
        ),
    ),
    Case(
        "nested-zero",
        "nested IPA 0 is an address like any other",
        _start("base", "map 0x0 0x41000000 8k 3 rw\ntouch w 0x0 4096 2\ndontneed 0x41000000 4k"),
    ),
    Case(
        "refill-same-leaf",
        "the same leaf again after a TLBI, three times: nothing is aliased",
        _start(
            "base",
            "map 0x80000000 0x41000000 16k 3 rw\ntouch w 0x80000000 4096 4",
            *(f"{tlbi_page(NESTED, 3)}\ntouch w 0x80000000" for _ in range(3)),
            "dontneed 0x41000000 4k",
        ),
    ),
    Case(
        "recycled",
        "shadow MMUs change tenants and are wiped: what was recorded of the former tenant goes too",
        _start(
            "base",
            *(
                f"s2 new {v}\ncode\nmap 0x80000000 0x41000000 32k 3 rw\ntouch w 0x80000000 4096 8"
                for v in (2, 3)
            ),
            "dontneed 0x41002000 4k\ns2 new 4\ncode\ntouch r 0x10000\ndontneed 0x41003000 4k",
            "s2 0x40100000 1\ntouch r 0x10000\ndontneed 0x41000000 64k",
        ),
    ),
    Case(
        "stage2-off",
        "with stage 2 off a shadow holds identity leaves, beside one of the same VMID with it on",
        _start(
            "base",
            "map 0x80000000 0x41000000 32k 3 rw\ntouch w 0x80000000 4096 4",
            "vm 0\ncodeat 0x40050000\ntouch w 0x41000000 4096 4\ndontneed 0x41001000 4k",
            "vm 1\ncodeat 0x10000\ntouch r 0x80000000 4096 4\ntlbi 4\ndontneed 0x41002000 4k",
        ),
    ),
    Case(
        "memslot",
        "the memslot goes and comes back",
        _start(
            "base",
            "map 0x80000000 0x41000000 32k 3 rw\ntouch w 0x80000000 4096 8",
            "slot 0\nslot 1\ntouch r 0x80000000 4096 8\ndontneed 0x41003000 4k",
        ),
    ),
    Case(
        "dirty-log-splits-block",
        "under dirty logging a write breaks the block into pages; then the host takes some",
        _start(
            "thp",
            "map 0x80000000 0x41000000 2M 2 rw\ntouch w 0x80000000",
            "log 1\ntouch w 0x80003000 4096 4\npunch 0x41004000 4k\ntouch r 0x80000000 4096 8",
            "getlog\ntouch w 0x80003000 4096 4\nlog 0\ndontneed 0x41006000 4k\ntouch w 0x80000000",
            "punch 0x41000000 4k",
        ),
    ),
    Case(
        "collapse-joins-pages",
        "pages become one 2M block under the same nested addresses",
        _start(
            "base",
            "map 0x80000000 0x41000000 2M 2 rw\ntouch w 0x80000000 4096 24",
            "hugepage 0x41000000 2M\ncollapse 0x41000000 2M\ntouch w 0x80000000\npunch 0x41100000 4k",
        ),
    ),
    Case(
        "block-replaces-pages",
        "L1 joins its pages into a block, without TLBI; stale pages are below it",
        _start(
            "thp",
            "map 0x80000000 0x41000000 32k 3 rw\ntouch w 0x80000000 4096 8",
            "unmap 0x80000000 2M 2\nmap 0x80000000 0x41200000 2M 2 rw\ntouch w 0x80100000",
            "punch 0x41003000 4k\npunch 0x41203000 4k",
        ),
    ),
    Case(
        "permission-relax",
        "a leaf gains write permission in place; its canonical address stays",
        _start(
            "base",
            "map 0x80000000 0x41000000 16k 3 r\ntouch r 0x80000000 4096 4",
            "map 0x80000000 0x41000000 16k 3 rw\ntouch w 0x80000000 4096 4\ndontneed 0x41001000 4k",
        ),
    ),
    Case(
        "zero-page-copied",
        "read faults map the zero page everywhere; the first write copies it",
        _start(
            "base",
            "map 0x80000000 0x41800000 16k 3 rw\nmap 0x90000000 0x41800000 16k 3 rw",
            "touch r 0x80000000 4096 4\ntouch r 0x90000000 4096 4\ntouch w 0x80001000",
            "touch w 0x90002000\ndontneed 0x41800000 16k",
        ),
    ),
    Case(
        "over-wide-tlbi",
        "one TLBI takes far more than what L1 changed; the rest is filled again",
        _start(
            "base",
            "map 0x80000000 0x41000000 64k 3 rw\nmap 0x80200000 0x41010000 64k 3 rw",
            "touch w 0x80000000 4096 16\ntouch w 0x80200000 4096 16",
            f"{tlbi_page(NESTED, 1)}\ntouch w 0x80200000 4096 4",
            f"{tlbi_range(NESTED, 31, 3)}\ntouch w 0x80200000 4096 4\ntlbi 5\ntouch w 0x80200000 4096 4",
            "dontneed 0x41011000 4k\ndontneed 0x41000000 64k",
        ),
    ),
    Case(
        "host-in-a-wipe",
        "a TLBI of the whole VMID gives mmu_lock away, and the host takes a page that it has yet to reach",
        _start(
            "base",
            "map 0x80000000 0x41000000 16k 3 rw\ntouch w 0x80000000 4096 4",
            "gap 1 punch 0x41001000 4k\ntlbi 4\ntouch r 0x80000000 4096 4\ndontneed 0x41002000 4k",
        ),
        exact=False,
    ),
    Case(
        "host-in-a-range-tlbi",
        "the same in a TLBI of a range of four gigabytes",
        _start(
            "base",
            "map 0x80000000 0x41000000 16k 3 rw\nmap 0x100000000 0x41004000 16k 3 rw",
            "touch w 0x80000000 4096 4\ntouch w 0x100000000 4096 4",
            f"gap 1 punch 0x41004000 4k\n{tlbi_range(NESTED, 15, 3)}",
            "touch r 0x100000000 4096 4\ndontneed 0x41005000 4k",
        ),
        exact=False,
    ),
    Case(
        "one-gigabyte-leaf",
        "L1 maps by 1G, the shadow by 2M and 4K",
        "mem 1280M\n"
        + _start("thp").removeprefix("mem 64M\n")
        + "map 0x80000000 0x40000000 1G 1 rw\ntouch w 0x81000000 0x200000 4\n"
        + f"punch 0x41203000 4k\ntouch r 0x81200000 4096 6\n{tlbi_page(NESTED + 0x123_4000)}\n"
        + "touch r 0x81200000 4096 6\ndontneed 0x41000000 4M\n",
    ),
    Case(
        "without-range-tlbi",
        "the CPU has no range TLBI: every cleared leaf is invalidated by itself",
        _start(
            "thp",
            "map 0x80000000 0x41000000 4M 2 rw\nmap 0x90000000 0x41005000 16k 3 rw",
            "touch w 0x80000000 0x200000 2\ntouch w 0x90000000 4096 4\npunch 0x41004000 12k",
        ),
        tlbirange=False,
    ),
)

_ALLOCATION: Final = _start(
    "base",
    "map 0x80000000 0x41000000 24k 3 rw\ntouch w 0x80000000 4096 6\ndontneed 0x41000000 24k",
    "touch w 0x80000000 4096 6\ndontneed 0x41002000 4k\ndontneed 0x40050000 4k",
)
RECORDS: Final = 7
"""Leaves of the allocation cases before their first notifier: L2's code page and six of data."""


def placed_cases() -> list[Case]:
    """Every case that is written down, the aliases and the allocation failures included."""
    aliases = [
        Case(f"alias-{n}", f"{n} nested addresses of one canonical page in one shadow MMU", _aliases(n))
        for n in range(2, 6)
    ]
    failures = [
        Case(
            f"allocation-failure-{n}",
            f"the record has no memory for leaf {n}; the access succeeds all the same",
            _ALLOCATION,
            fail_allocation=n,
            exact=False,
        )
        for n in range(1, RECORDS + 1)
    ]
    return [*aliases, *_PLACED, *failures]


REGIONS: Final = (NESTED, NESTED + BLOCK, 0x4000_0000)
"""Nested IPAs of the three regions of 2M that a random L1 maps, all onto the same four blocks."""


class _OddGuest:
    """Draws one line, or a few that belong together, at a time.

    Where a region leads is one of four blocks, the same for pages and blocks, so regions alias each other
    and L1 may change sizes, permissions and validity without a TLBI. Before it leads a region elsewhere it
    invalidates everything: what L0 makes of an L1 that does not is no design's doing.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.tenants = [FIRST_ROOT]
        self.off = False
        self.leads = [self.random.randrange(4) for _ in REGIONS]

    def place(self) -> tuple[int, int]:
        """Nested IPA of a page and the canonical IPA its region sends it to."""
        region = self.random.randrange(len(REGIONS))
        inside = self.random.randrange(24) * PAGE
        return REGIONS[region] + inside, DATA + self.leads[region] * BLOCK + inside

    def map(self) -> str:
        letters = self.random.choice(("rw", "rw", "rw", "r", "rwx", "rwc", "rwa"))
        nested_ipa, canonical_ipa = self.place()
        if self.random.random() < 0.3:
            return f"map {nested_ipa & -BLOCK:#x} {canonical_ipa & -BLOCK:#x} 2M 2 {letters}"
        return f"map {nested_ipa:#x} {canonical_ipa:#x} {self.random.randint(1, 8) * 4}k 3 {letters}"

    def move(self) -> str:
        region = self.random.randrange(len(REGIONS))
        self.leads[region] = self.random.randrange(4)
        canonical_ipa = DATA + self.leads[region] * BLOCK
        size, level = self.random.choice((("2M", 2), ("64k", 3)))
        gone = "\n".join(f"unmap {REGIONS[region]:#x} 2M {n}" for n in (3, 2))
        return f"{gone}\ntlbi 5\nmap {REGIONS[region]:#x} {canonical_ipa:#x} {size} {level} rw"

    def unmap(self) -> str:
        nested_ipa, _ = self.place()
        if self.random.random() < 0.3:
            return f"unmap {nested_ipa & -BLOCK:#x} 2M 2"
        owed = self.random.choice(("", tlbi_page(nested_ipa), tlbi_page(nested_ipa, 3)))
        return f"unmap {nested_ipa:#x} 4k 3\n{owed}"

    def touch(self) -> str:
        operation = self.random.choice("rwww")
        nested_ipa, canonical_ipa = self.place()
        stride = self.random.choice((4096, 4096, 0x20_0000))
        start = canonical_ipa if self.off else nested_ipa
        return f"touch {operation} {start:#x} {stride} {self.random.randint(1, 6)}"

    def tlbi(self) -> str:
        nested_ipa, _ = self.place()
        hints = [tlbi_page(nested_ipa, level) for level in (0, 2, 3)]
        return self.random.choice((*hints, tlbi_range(nested_ipa, 3), "tlbi 4", "tlbi 5", "tlbi 6"))

    def switch(self) -> str:
        """Another tenant: stage 2 off or on, a root again under its own or another's VMID, or a new root."""
        if self.off or self.random.random() < 0.3:
            self.off = not self.off
            code = CODE_STAGE2_OFF if self.off else CODE
            return f"vm {int(not self.off)}\ncodeat {code:#x}"
        if self.random.random() < 0.5:
            return f"s2 {self.random.choice(self.tenants):#x} {self.random.choice((1, 1, 2, 3))}"
        vmid = self.random.randint(1, 4)
        maps = "\n".join(self.map() for _ in range(3))
        return f"s2 new {vmid}\ncode\n{maps}"

    def host(self) -> str:
        start = DATA + self.random.randrange(4) * BLOCK
        page = start + self.random.randrange(24) * PAGE
        part = f"{page:#x} {self.random.choice((1, 1, 2, 5)) * 4}k"
        return self.random.choice(
            (
                f"dontneed {part}",
                f"write {page:#x} 4k\npunch {part}",
                f"dontneed {start:#x} 2M",
                f"write {start:#x} 2M",
                f"mprotect {part} r",
                f"mprotect {part} rw",
                f"munmap {part}\nmmap {part}",
                f"mmap {start:#x} 2M\nhugepage {start:#x} 2M",
                f"hugepage {start:#x} 2M\ncollapse {start:#x} 2M",
                f"pageout {part}",
            )
        )

    def slot(self) -> str:
        """Dirty logging, or the memslot gone and back."""
        return self.random.choice(("log 1", "log 1\ngetlog", "getlog", "log 0", "log 0", "slot 0\nslot 1"))


def random_script(seed: int, backing: str = "base", steps: int = 60) -> str:
    """A script of ``steps`` draws: aliases, odd changes by L1 with and without TLBI, and a busy host.

    Overlapping mappings of pages and blocks, the contiguous bit, clear access flags, tenants that share a
    root or a VMID, stage 2 off, dirty logging, the memslot gone and back. The same arguments, same script.
    """
    guest = _OddGuest(seed)
    draws = (
        guest.map,
        guest.touch,
        guest.host,
        guest.unmap,
        guest.tlbi,
        guest.switch,
        guest.slot,
        guest.move,
    )
    weights = (5, 9, 5, 2, 2, 1, 1, 1)
    lines = [guest.map() for _ in range(4)]
    lines += [draw() for draw in guest.random.choices(draws, weights, k=steps)]
    lines.append(f"dontneed {DATA:#x} 8M")
    return _start(backing, *lines)


def random_cases(seeds: range = range(1, 5), steps: int = 60) -> list[Case]:
    """One case a seed and host backing."""
    return [
        Case(
            f"random-{backing}-{seed}",
            f"a legal but odd L1 on {backing} pages, seed {seed}",
            random_script(seed, backing, steps),
        )
        for backing in ("base", "thp")
        for seed in seeds
    ]


def conformance_cases() -> list[Case]:
    """The whole kit."""
    return [*placed_cases(), *random_cases()]
