"""Parallel fills of ``reverse_table``, step by step: its *Locking*, explored over all schedules.

Fills hold mmu_lock for read and run side by side. What each of their atomic steps is stands here as the
design's text says it, over one leaf of the radix, with small leaves of two and four places in front of a
full one so that all schedules of two and three fills can be tried. What holds mmu_lock for write excludes
fills and has no part. The rules of the text are switches: without any one of them the search must find
what it is there for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from functools import partial
from typing import Final, NamedTuple

from shadowmmu.verify.schedules import (
    Add,
    Broken,
    Cpu,
    Explored,
    Read,
    Step,
    Store,
    Swap,
    Wait,
    Words,
    explore,
    run_alone,
)

PLACE: Final = 1
"""The word of the parent that names the leaf."""
PARENT_USED: Final = 2
LEDGER: Final = 1 << 40
"""From here on, a word for each node: what became of it."""
TAKEN, GIVEN, RETIRED = 1, 2, 3

CHAIN: Final = 1 << 63
FROZEN: Final = 1 << 62
LOCKED: Final = 1 << 61
MARKS: Final = FROZEN | LOCKED
INDEX_SHIFT: Final = 48
DESCRIPTOR: Final = (1 << INDEX_SHIFT) - 1
COUNT_SHIFT: Final = 36
SIZE_SHIFT: Final = 61
ONE_ENTRY: Final = 1 << COUNT_SHIFT
NODE: Final = ONE_ENTRY - 1
COUNT: Final = (1 << SIZE_SHIFT) - ONE_ENTRY
LEAF: Final = -1 & ~COUNT
"""What the word of the parent says of the leaf, its count of entries apart."""
SMALLEST, LARGEST, PAGES = 1, 2, 4
"""Logarithms of the places of small leaves, and the pages of a full one."""

Steps = Generator[Step, int, int]


class Rules(NamedTuple):
    """What the text asks for. Each is needed: see ``tests/verify``."""

    swap_items: bool = True
    """An item goes into its place by compare-and-swap, not by a store after a look."""
    swap_leaf: bool = True
    """A new leaf is hung up by compare-and-swap."""
    keep_count: bool = True
    """It gets the count that stands there just then, fills under way included."""
    add_counts: bool = True
    """The count changes by atomic add."""
    freeze_free_places: bool = True
    """Who promotes a leaf freezes its free places too."""
    unlink_above_frozen: bool = True
    """A frozen item is taken from the leaf that takes its place."""
    lock_chains: bool = True
    """Unlinking from a chain locks its word."""


AS_WRITTEN: Final = Rules()


class Table(NamedTuple):
    """The words as one CPU sees them: its own nodes come from a region of its own."""

    words: Words
    cpu: int
    rules: Rules
    counted: bool = True

    def take(self, contents: list[int]) -> int:
        """A node that only this CPU knows, with what is in it."""
        first = node = (self.cpu + 1) << 16
        while LEDGER + node in self.words:
            node += 8
        assert node - first < 1 << 15
        self.words[LEDGER + node] = TAKEN
        self.words.update({node + at: word for at, word in enumerate(contents)})
        return node

    def end(self, node: int, how: int) -> None:
        """Give back a node nobody else has seen, or leave a frozen one to the next holder of the lock."""
        if self.words.get(LEDGER + node) != TAKEN:
            raise Broken(f"CPU {self.cpu} frees a node that is not in use")
        self.words[LEDGER + node] = how


def places(child: int) -> range:
    """Where the words of a leaf are."""
    node, size = child & NODE, child >> SIZE_SHIFT
    return range(node, node + (1 << size if size else PAGES))


def hang(table: Table, old: int, new: int) -> Steps:
    """Put a leaf in the place of ``old``; what is there in the end, without its count."""
    seen = yield Read(PLACE)
    counted = seen & COUNT
    while seen & LEAF == old:
        word = new | (seen & COUNT if table.rules.keep_count else counted)
        if table.rules.swap_leaf:
            before = yield Swap(PLACE, seen, word)
        else:
            yield Store(PLACE, word)
            before = seen
        if before == seen:
            if old:
                table.end(old & NODE, RETIRED)
            return new
        seen = before
    table.end(new & NODE, GIVEN)
    return seen & LEAF


def count(table: Table, amount: int) -> Steps:
    """Change the count of the leaf, whichever it is just then."""
    if not table.counted:
        return 0
    if table.rules.add_counts:
        yield Add(PLACE, amount, seen=True)
    else:
        seen = yield Read(PLACE)
        yield Store(PLACE, seen + amount)
    return 0


def first_leaf(table: Table) -> Steps:
    """The leaf; a small one is made if there is none."""
    child = yield Read(PLACE, LEAF)
    if child:
        return child
    yield Add(PARENT_USED, 1)
    new = table.take([0] * (1 << SMALLEST)) | SMALLEST << SIZE_SHIFT
    child = yield from hang(table, 0, new)
    if child != new:
        yield Add(PARENT_USED, -1)
    return child


def promote(table: Table, child: int) -> Steps:
    """Freeze a small leaf, and put a copy of the next size in its place; the leaf that is there then."""
    items = []
    for at in places(child):
        word = yield Read(at)
        while not word & FROZEN and (word or table.rules.freeze_free_places):
            seen = yield Swap(at, word, word | FROZEN)
            word = word | FROZEN if seen == word else seen
        if word & ~FROZEN:
            items.append(word & ~FROZEN)
    size = child >> SIZE_SHIFT
    if size < LARGEST:
        new = table.take(items + [0] * ((2 << size) - len(items))) | (size + 1) << SIZE_SHIFT
    else:
        slots = [0] * PAGES
        for item in items:
            page = item >> INDEX_SHIFT
            slots[page] = chained(table, slots[page], item & DESCRIPTOR)
        new = table.take(slots)
    there = yield from hang(table, child, new)
    if there != new:
        for slot in range(PAGES if not new >> SIZE_SHIFT else 0):
            give_chain(table, table.words[(new & NODE) + slot])
    return there


def chained(table: Table, named: int, descriptor: int) -> int:
    """The word that names ``descriptor`` and what ``named`` names."""
    if not named:
        return descriptor
    if not named & CHAIN:
        named = CHAIN | chain_node(table, named, 0)
    return CHAIN | chain_node(table, descriptor, named)


def chain_node(table: Table, descriptor: int, following: int) -> int:
    """A node of a chain: the descriptor, and the word that names the rest."""
    return table.take([descriptor, following])


def give_chain(table: Table, named: int, until: int = 0) -> None:
    """Give back the nodes of a chain that nobody else has seen, down to the word ``until``."""
    while named & CHAIN and named != until:
        node = named & NODE
        table.end(node, GIVEN)
        named = table.words[node + 1]


def insert(table: Table, page: int, descriptor: int) -> Cpu:
    """A fill: ``descriptor`` under ``page``."""
    child = yield from first_leaf(table)
    yield from count(table, ONE_ENTRY)
    while child >> SIZE_SHIFT:
        done = yield from put_item(table, child, page << INDEX_SHIFT | descriptor)
        if done:
            return
        child = yield from promote(table, child)
    slot = (child & NODE) + page
    word = yield Read(slot)
    while True:
        if word & LOCKED:
            word = yield Wait(slot, word)
            continue
        new = chained(table, word, descriptor)
        seen = yield Swap(slot, word, new)
        if seen == word:
            return
        give_chain(table, new, word)
        word = seen


def put_item(table: Table, child: int, item: int) -> Steps:
    """Put an item into a free place of a small leaf; 0 if there is none, or it is frozen."""
    for at in places(child):
        word = yield Read(at)
        if word:
            if word & FROZEN:
                break
            continue
        if not table.rules.swap_items:
            yield Store(at, item)
            return 1
        word = yield Swap(at, 0, item)
        if not word:
            return 1
    return 0


def unlink(table: Table, page: int, descriptor: int) -> Cpu:
    """A fill replaces a leaf: ``descriptor``, whose only owner it is, goes from what ``page`` names."""
    item = page << INDEX_SHIFT | descriptor
    child = yield Read(PLACE, LEAF)
    while child >> SIZE_SHIFT:
        for at in places(child):
            word = yield Read(at)
            if word & ~FROZEN != item:
                continue
            if word == item or not table.rules.unlink_above_frozen:
                word = yield Swap(at, word, word & FROZEN)
                if word == item or not table.rules.unlink_above_frozen:
                    yield from count(table, -ONE_ENTRY)
                    return
            yield from promote(table, child)
            break
        child = yield Read(PLACE, LEAF)
    yield from unlink_full(table, child & NODE, page, descriptor)


def unlink_full(table: Table, node: int, page: int, descriptor: int) -> Cpu:
    """``unlink`` in a full leaf."""
    slot = node + page
    word = yield Read(slot)
    while True:
        if word & LOCKED:
            word = yield Wait(slot, word)
            continue
        new = 0 if word == descriptor else word | LOCKED if table.rules.lock_chains else word
        seen = yield Swap(slot, word, new)
        if seen == word:
            break
        word = seen
    if word & CHAIN:
        new = yield from cut(table, word, descriptor)
        yield Store(slot, new)
    yield from count(table, -ONE_ENTRY)


def cut(table: Table, named: int, descriptor: int) -> Steps:
    """Take ``descriptor`` off a chain that is this CPU's alone; the word that names what is left."""
    head, before = named, 0
    while True:
        node = named & NODE
        found = yield Read(node)
        following = yield Read(node + 1)
        if found == descriptor:
            break
        before, named = node, following
    if before:
        yield Store(before + 1, following)
    table.end(node, GIVEN)
    return head if before else following


def found(words: Words, counted: bool = True) -> tuple[Counter[tuple[int, int]], set[int], str]:
    """What the record names, as (page, descriptor); the nodes it consists of; and what is wrong with it."""
    child = words[PLACE]
    named: Counter[tuple[int, int]] = Counter()
    nodes, small = {child & NODE}, child >> SIZE_SHIFT
    slots = [words[at] for at in places(child)]
    wrong = ""
    if any(slot & MARKS for slot in slots):
        wrong = "a word in use is frozen or locked"
    for page, slot in enumerate(slots):
        while slot & CHAIN:
            nodes.add(slot & NODE)
            named[page, words[slot & NODE]] += 1
            slot = words[(slot & NODE) + 1]
        if slot:
            named[(slot >> INDEX_SHIFT, slot & DESCRIPTOR) if small else (page, slot)] += 1
    if words[PARENT_USED] != 1 or (counted and child & COUNT != named.total() << COUNT_SHIFT):
        wrong = wrong or "a count is wrong"
    return named, nodes, wrong


def check(words: Words, expected: Counter[tuple[int, int]], counted: bool = True) -> str:
    """What is wrong with the words when all fills are done, or nothing."""
    named, nodes, wrong = found(words, counted)
    if lost := expected - named:
        return f"page {min(lost)[0]} has lost an entry"
    if extra := named - expected:
        return f"page {min(extra)[0]} has one too many"
    if wrong:
        return wrong
    for at, state in words.items():
        if at >= LEDGER and (at - LEDGER in nodes) != (state == TAKEN):
            return "a node in use was given back" if at - LEDGER in nodes else "a node is lost"
    return ""


class Case(NamedTuple):
    """Fills that run side by side, over what is there before."""

    title: str
    before: tuple[tuple[int, int], ...]
    """(page, descriptor)s recorded one after the other first."""
    inserts: tuple[tuple[int, int], ...]
    unlinks: tuple[tuple[int, int], ...] = ()
    counted: bool = True
    """Without the count of the leaf three CPUs have a fifth of the schedules."""


CASES: Final = (
    Case("the first leaf", (), ((0, 11), (1, 12))),
    Case("aliases in a small leaf", (), ((0, 11), (0, 12))),
    Case("the last place", ((0, 10),), ((1, 11), (2, 12))),
    Case("promotion to a larger leaf", ((0, 9), (1, 10)), ((2, 11), (3, 12))),
    Case("promotion to a full leaf", ((0, 7), (1, 8), (1, 9), (2, 10)), ((1, 11), (3, 12))),
    Case("two in an empty word", ((0, 6), (1, 7), (1, 8), (2, 9), (0, 10)), ((3, 11), (3, 12))),
    Case("two before a chain", ((0, 6), (1, 7), (1, 8), (2, 9), (0, 10)), ((1, 11), (1, 12))),
    Case("a place comes free", ((0, 9), (1, 10)), ((2, 11),), ((0, 9),)),
    Case("replaced while it becomes full", ((0, 7), (1, 8), (1, 9), (2, 10)), ((1, 11),), ((1, 8),)),
    Case("replaced in a chain", ((0, 6), (1, 7), (1, 8), (2, 9), (0, 10)), ((1, 11),), ((1, 7),)),
    Case("two replaced in a chain", ((0, 6), (1, 7), (1, 8), (2, 9), (0, 10)), (), ((1, 7), (1, 8))),
    Case("three before a promotion", ((0, 10),), ((1, 11), (2, 12), (1, 13))),
)
LARGE_CASES: Final = (
    Case("two replaced in a full small leaf", ((0, 9), (1, 10)), ((2, 11),), ((0, 9), (1, 10)), False),
    Case("a place comes free before two", ((0, 9), (1, 10)), ((2, 11), (3, 12)), ((0, 9),), False),
)
"""These take a minute."""


def explored(case: Case, rules: Rules = AS_WRITTEN) -> Explored:
    """All schedules of one case."""

    def start() -> tuple[Words, list[Cpu]]:
        words: Words = {}
        for page, descriptor in case.before:
            run_alone(words, insert(Table(words, 0, AS_WRITTEN, case.counted), page, descriptor))
        inserts = [partial(insert, page=page, descriptor=word) for page, word in case.inserts]
        unlinks = [partial(unlink, page=page, descriptor=word) for page, word in case.unlinks]
        return words, [
            do(Table(words, 1 + cpu, rules, case.counted)) for cpu, do in enumerate(inserts + unlinks)
        ]

    expected = Counter(case.before + case.inserts) - Counter(case.unlinks)
    return explore(start, lambda words: check(words, expected, case.counted))
