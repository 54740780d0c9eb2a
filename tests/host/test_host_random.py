"""Random operations on the host against a model that knows nothing but pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from host_lab import HUGE, PAGE, Host, host, well_nested
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadowmmu.compiled import Counts, Words
from shadowmmu.host import layout
from shadowmmu.host.layout import (
    EFAULT,
    EINVAL,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    R_RESULT,
    VM_HUGEPAGE,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
)
from shadowmmu.host.setup import Backing

BLOCKS, PER_HUGE = 3, 512
PAGES = BLOCKS * PER_HUGE
PLACES = (0, 1, 2, 255, 510, 511, 512, 513, 600, 1022, 1023, 1024, 1025, 1500, 1535, 1536)
ADVISED = {
    MADV_HUGEPAGE: (int(VM_HUGEPAGE), int(VM_NOHUGEPAGE)),
    MADV_NOHUGEPAGE: (int(VM_NOHUGEPAGE), int(VM_HUGEPAGE)),
    MADV_MERGEABLE: (int(VM_MERGEABLE), 0),
}
READ, WRITE = 1, 2


@dataclass
class Model:
    """Every page by itself: its VMA flags (None: no VMA), what it holds (None, "zero", "own"), its word."""

    lab: Host
    flags: list[int | None]
    holds: list[str | None] = field(default_factory=lambda: [None] * PAGES)
    words: dict[int, int] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=lambda: ["none"] * BLOCKS)
    owners: dict[int, int] = field(default_factory=dict)

    def within_one_vma(self, block: int) -> bool:
        """Whether a 2M lies in one VMA."""
        start, end = block * HUGE, (block + 1) * HUGE
        return any(low <= start and end <= high for low, high, _, _ in self.lab.vmas)

    def split(self, first: int, last: int) -> None:
        """The 2M leaves that [first, last) covers in part become pages."""
        for block in {first // PER_HUGE, (last - 1) // PER_HUGE}:
            covered = first <= block * PER_HUGE and last >= (block + 1) * PER_HUGE
            if self.kinds[block] == "huge" and not covered:
                self.kinds[block] = "table"

    def touch(self, page: int, write: bool) -> int | list[tuple[str, int, int]]:
        """A host page fault."""
        flags = self.flags[page]
        fits = self.within_one_vma(page // PER_HUGE)
        seen = self.lab.touch(page * PAGE + 8, write)
        if flags is None or not flags & (WRITE if write else READ):
            assert seen == -EFAULT
            return []
        block = page // PER_HUGE
        if self.holds[page] is None:
            huge = self.kinds[block] == "none" and bool(flags & int(VM_HUGEPAGE)) and fits
            self.kinds[block] = "huge" if huge else "table"
            self.fill(page, "own" if write else "zero")
        elif write and self.holds[page] == "zero":
            self.fill(page, "own")
        if write:
            self.words[page] = len(self.words) * 1000 + page + 1
            self.lab.store(page * PAGE, self.words[page])
        return seen

    def fill(self, page: int, what: str) -> None:
        """The page, or its whole 2M, now holds this."""
        block = page // PER_HUGE
        first, count = (block * PER_HUGE, PER_HUGE) if self.kinds[block] == "huge" else (page, 1)
        self.holds[first : first + count] = [what] * count

    def drop(self, first: int, last: int) -> None:
        """The pages are gone."""
        self.split(first, last)
        for page in range(first, last):
            self.holds[page] = None
            self.words.pop(page, None)
        for block in range(BLOCKS):
            inside = range(block * PER_HUGE, (block + 1) * PER_HUGE)
            if self.kinds[block] == "huge" and self.holds[inside.start] is None:
                self.kinds[block] = "none"

    def dontneed(self, first: int, last: int) -> int | list[tuple[str, int, int]]:
        """MADV_DONTNEED: a table whose whole 2M is dropped within one VMA goes."""
        vmas = self.lab.vmas
        seen = self.lab.dontneed(first * PAGE, (last - first) * PAGE)
        for low, high, _, _ in vmas:
            start, end = max(first, low // PAGE), min(last, high // PAGE)
            if start >= end:
                continue
            self.drop(start, end)
            for block in range(BLOCKS):
                if start <= block * PER_HUGE and end >= (block + 1) * PER_HUGE:
                    self.kinds[block] = "none"
        return seen if seen != -layout.ENOMEM else []

    def munmap(self, first: int, last: int) -> int | list[tuple[str, int, int]]:
        """Unmap: a table with no VMA left goes."""
        seen = self.lab.munmap(first * PAGE, (last - first) * PAGE)
        self.remove(first, last)
        return seen

    def remove(self, first: int, last: int) -> None:
        """No VMA, no pages."""
        self.drop(first, last)
        self.flags[first:last] = [None] * (last - first)
        for block in range(BLOCKS):
            if not any(flags is not None for flags in self.flags[block * PER_HUGE : (block + 1) * PER_HUGE]):
                self.kinds[block] = "none"

    def mmap(self, first: int, last: int) -> int | list[tuple[str, int, int]]:
        """Fresh memory."""
        seen = self.lab.mmap(first * PAGE, (last - first) * PAGE)
        self.remove(first, last)
        self.flags[first:last] = [READ | WRITE] * (last - first)
        return seen

    def change(self, first: int, last: int, changed: list[int | None]) -> None:
        """New flags; 2M leaves at the borders of what really changes are split."""
        differs = [page for page in range(first, last) if self.flags[page] != changed[page - first]]
        for block in {page // PER_HUGE for page in differs}:
            inside = range(block * PER_HUGE, (block + 1) * PER_HUGE)
            new = {changed[p - first] if first <= p < last else self.flags[p] for p in inside}
            if self.kinds[block] == "huge" and len(new) > 1:
                self.kinds[block] = "table"
        self.flags[first:last] = changed

    def mprotect(self, first: int, last: int, prot: str) -> int | list[tuple[str, int, int]]:
        """Up to the first hole."""
        seen = self.lab.mprotect(first * PAGE, (last - first) * PAGE, prot)
        end = next((page for page in range(first, last) if self.flags[page] is None), last)
        bits = {"none": 0, "r": 1, "rw": 3}[prot]
        self.change(first, end, [(flags & ~3) | bits for flags in self.flags[first:end] if flags is not None])
        return seen if seen != -layout.ENOMEM else []

    def advise(self, first: int, last: int, advice: int) -> int | list[tuple[str, int, int]]:
        """Holes are passed over."""
        seen = self.lab.advise(first * PAGE, (last - first) * PAGE, advice)
        plus, minus = ADVISED[advice]
        changed = [None if flags is None else flags & ~minus | plus for flags in self.flags[first:last]]
        self.change(first, last, changed)
        return seen if seen != -layout.ENOMEM else []

    def collapse(self, first: int, last: int) -> int | list[tuple[str, int, int]]:
        """Whole blocks with a table, as far as the host got."""
        before = list(self.kinds)
        seen = self.lab.collapse(first * PAGE, (last - first) * PAGE)
        if isinstance(seen, int):
            assert seen in (-EINVAL, -layout.ENOMEM)
            return []
        done = [start // HUGE for kind, start, _ in seen if kind == "start"]
        for block in done:
            assert before[block] == "table"
            assert first <= block * PER_HUGE
            assert (block + 1) * PER_HUGE <= last
            assert self.within_one_vma(block)
            self.kinds[block] = "huge"
            self.fill(block * PER_HUGE, "own")
        if self.lab.register(R_RESULT) == 0:
            whole = range(-(-first // PER_HUGE), last // PER_HUGE)
            assert all(self.kinds[b] == "huge" for b in whole if self.within_one_vma(b))
        return seen

    def check(self) -> None:
        """Everything that can be seen of the host agrees."""
        for page in {min(place, PAGES - 1) for place in PLACES}:
            self.check_page(page)
        assert np.count_nonzero(self.lab.state.content) == len(self.words)
        self.check_vmas()

    def check_page(self, page: int) -> None:
        """translate, the content, and that no frame serves two pages, ever."""
        place = self.lab.at(page * PAGE + 16)
        flags, holds = self.flags[page], self.holds[page]
        if holds is None or not (flags or 0) & (READ | WRITE):
            assert (place.size, place.writable) == (0, False)
            return
        assert flags is not None
        huge = self.kinds[page // PER_HUGE] == "huge"
        assert place.size == (HUGE if huge else PAGE)
        assert place.writable == (holds == "own" and bool(flags & WRITE))
        assert self.lab.read(page * PAGE) == self.words.get(page, 0)
        if huge:
            assert (place.pa - page * PAGE) % HUGE == 0
        if holds == "own":
            assert self.owners.setdefault(place.pa, page) == page

    def check_vmas(self) -> None:
        """Sorted, disjoint, merged as far as their anon_vmas allow, and with the right flags."""
        vmas = self.lab.vmas
        for start, end, flags, _ in vmas:
            assert start < end
            assert set(self.flags[start // PAGE : end // PAGE]) == {flags}
        assert sum(end - start for start, end, _, _ in vmas) == PAGE * sum(f is not None for f in self.flags)
        for (_, end, flags, anon), (start, _, above_flags, above) in pairwise(vmas):
            assert end <= start
            assert end < start or flags != above_flags or (anon and above and anon != above)


spans = st.tuples(st.sampled_from(PLACES), st.sampled_from(PLACES)).filter(lambda pair: pair[0] < pair[1])
pages = st.sampled_from(PLACES[:-1])
operations = st.one_of(
    st.tuples(st.just("touch"), pages.map(lambda page: (page,)), st.booleans()),
    st.tuples(st.sampled_from(["dontneed", "munmap", "mmap", "collapse"]), spans),
    st.tuples(st.just("mprotect"), spans, st.sampled_from(["none", "r", "rw", "rw"])),
    st.tuples(st.just("advise"), spans, st.sampled_from(sorted(ADVISED))),
)


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["base", "thp"]), st.lists(operations, min_size=4, max_size=40))
def test_random_operations_agree_with_the_model(backing: Backing, steps: list[tuple[Any, ...]]) -> None:
    """VMAs and page tables after any sequence of operations."""
    lab = host(BLOCKS * HUGE, backing)
    advice = int(VM_HUGEPAGE if backing == "thp" else VM_NOHUGEPAGE)
    model = Model(lab, [READ | WRITE | int(VM_NORESERVE) | advice] * PAGES)
    for name, where, *rest in steps:
        seen = getattr(model, str(name))(*where, *rest)
        assert well_nested(seen)
        model.check()


@settings(max_examples=40, deadline=None, database=None)
@given(st.lists(operations, min_size=1, max_size=12))
def test_a_plan_changes_nothing(steps: list[tuple[Any, ...]]) -> None:
    """Planning alone leaves VMAs, tables, content, counters and frames as they are."""
    lab = host(BLOCKS * HUGE, "thp")
    lab.write(0, PAGE)
    for name, where, *rest in steps:
        first, *last = where
        arguments = [first * PAGE, *((last[0] - first) * PAGE for _ in last), *rest]
        before = visible(lab)
        for lab.dry in (True, False):
            getattr(lab, str(name))(*arguments)
            if lab.dry:
                assert all(map(np.array_equal, before, visible(lab)))


def visible(lab: Host) -> list[Words | Counts]:
    """What an operation changes."""
    s = lab.state
    arrays: list[Words | Counts] = [
        s.vmas[: lab.register(layout.R_VMAS)],
        s.hpte,
        s.hpmd,
        s.content,
        s.count,
        s.regs[:24],
    ]
    return list(map(np.copy, arrays))
