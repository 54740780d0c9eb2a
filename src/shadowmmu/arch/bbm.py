"""Break-before-make, checked on a stream of memory writes, barriers, TLBIs and register writes.

The checker follows every tree that a translation register names: a table hooked into a live tree is
followed from then on, one taken out until the invalidation that frees it has completed. Each descriptor is
valid, invalid, or invalid and unclean: broken, and on its way through DSB, TLBI, DSB (``bbm_cleaning``).
A write that the rules forbid (``bbm_rules``) is recorded as a ``Violation``, and followed all the same.

It sees the machine, not the software: what a hypervisor means by a table is not known here. The idea of
one automaton a location, fed by a trace, is that of casemate (REMS, University of Cambridge), which checks
pKVM while it runs. Differences to it are listed in ``docs/break-before-make.md``.

Cost: a write O(1); a table that is hooked in or taken out, its entries; a DSB, the entries that await it;
a TLBI, the unclean entries of the trees it is for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from shadowmmu.arch import bbm_rules as rules
from shadowmmu.arch.bbm_cleaning import (
    CLEAN,
    VISIBLE,
    Break,
    barrier,
    combined_remnants,
    hardware_update,
    remnants,
)
from shadowmmu.arch.bbm_rules import (
    LEAF,
    NEXT_TABLE,
    NOTHING,
    Rule,
    Tree,
    broken_rule,
    needs_break,
    properties,
    shape,
    size_may_change,
)
from shadowmmu.arch.bbm_trees import trees_of
from shadowmmu.arch.context import (
    ARMV8_0,
    C_HCR_EL2,
    C_TCR_EL1,
    C_TCR_EL2,
    C_VTCR_EL2,
    C_VTTBR_EL2,
    Implementation,
    context,
)
from shadowmmu.arch.regime import level_shift, start_entries_shift
from shadowmmu.arch.tlbi_operations import operation
from shadowmmu.arch.tlbi_scope import as_scope, issuer, tlbi_scope
from shadowmmu.compiled import U64, Words

SEQUENCE: Final = ("write of an invalid entry", "DSB", "broadcast TLBI", "DSB")
"""What has to come between two valid entries that need a break. Source: Arm ARM R_DDMVT."""
NOBODY: Final = -1
FRAME: Final = 12
"""log2 of the stretch of memory by which tables are found again."""


@dataclass(frozen=True)
class Violation:
    """A rule broken by one event.

    ``event``: its number, from 0. ``pa``: the descriptor, or what else the event names; ``first``: the input
    address it translates, at ``level`` of ``tree``. ``missing``: the steps that had to come before.
    """

    event: int
    thread: int
    rule: Rule
    pa: int
    old: int
    new: int
    tree: str = ""
    level: int = 0
    first: int = 0
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" ({self.tree}, level {self.level}, input {self.first:#x})" if self.tree else ""
        text = (
            f"event {self.event}, thread {self.thread}: {self.rule.name}: {self.pa:#x}{where} "
            f"{self.old:#x} -> {self.new:#x}: {self.rule.text} [{self.rule.clause}]"
        )
        return text + ("; missing: " + ", ".join(self.missing) if self.missing else "")


@dataclass(eq=False)
class Table:
    """A table in a tree: where it stands, which input address its first entry translates.

    ``taken_out``: the break of the entry that led here, until its sequence has completed. ``replaced``: what
    is left of the block that stood in this table's place, where it was replaced without a break.
    """

    tree: Tree
    base: int
    entries: int
    level: int
    first: int
    taken_out: Break | None = None
    replaced: Break | None = None

    def input_of(self, pa: int) -> int:
        """The first input address of the entry at ``pa``."""
        return self.first + ((pa - self.base >> 3) << level_shift(self.tree.geometry, self.level))

    def frames(self) -> range:
        """Numbers of the frames it stands in."""
        return range(self.base >> FRAME, (self.base + 8 * self.entries - 1 >> FRAME) + 1)


@dataclass
class Checker:
    """The state of all descriptors that the trace has shown, and the violations found so far.

    ``machine``: what it implements; ``bbm``: 1 or 2 with FEAT_BBML1 or FEAT_BBML2; ``broadcast``: tables
    are used by several PEs, so that local TLBIs do not do.
    """

    machine: Implementation = ARMV8_0
    bbm: int = 0
    broadcast: bool = True
    violations: list[Violation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._event = -1
        self._words: dict[int, int] = {}
        self._tables: dict[int, Table] = {}
        self._trees: dict[tuple[int, int, int], Tree] = {}
        self._breaks: dict[int, Break] = {}
        self._open: dict[Break, list[Table]] = {}
        self._awaiting: defaultdict[int, set[Break]] = defaultdict(set)
        self._rows: dict[int, Words] = {}
        self._barriers: defaultdict[int, int] = defaultdict(int)
        self._written: dict[int, tuple[int, int]] = {}
        self._locks: dict[int, int] = {}
        self._holders: dict[int, int] = {}
        self._owners: dict[int, int] = {}

    # What the trace shows.

    def write(
        self, thread: int, pa: int, value: int, *, release: bool = False, same_contents: bool = False
    ) -> None:
        """A 64-bit write. ``release``: a store-release; ``same_contents``: as in ``needs_break``."""
        self._event += 1
        self._store(thread, pa, value, release, same_contents)
        if not release:
            self._written[pa >> FRAME] = thread, self._barriers[thread]

    def read(self, thread: int, pa: int, value: int) -> None:
        """A 64-bit read. What differs from the last write must be an update by hardware."""
        self._event += 1
        old, table = self._words.get(pa, 0), self._table(pa)
        if value == old or table is None:
            return
        if not hardware_update(old, value, table.tree):
            self._report(thread, rules.UNSEEN, pa, value, table)
        self._words[pa] = value

    def initialise(self, thread: int, pa: int, size: int) -> None:
        """Memory is set to zero, as a whole number of 64-bit words, and is visible as such."""
        self._event += 1
        for word in range(pa, pa + size, 8):
            if self._table(word) is not None:
                self._store(thread, word, 0, False, False)
            else:
                self._words.pop(word, None)

    def dsb(self, thread: int, kind: str = "ish") -> None:
        """A DSB. Raises InputError for an unknown ``kind``."""
        self._event += 1
        dsb = barrier(kind)
        if dsb.stores:
            self._barriers[thread] += 1
        for broken in list(self._awaiting[thread]):
            broken.on_dsb(thread, dsb)
            if not broken.awaits(thread):
                self._awaiting[thread].discard(broken)
            self._settle(broken)

    def isb(self, thread: int) -> None:
        """An ISB: counted as an event; break-before-make does not depend on it."""
        self._event += 1

    def tlbi(self, thread: int, name: str, operand: int = 0, *, el: int = 2) -> None:
        """A TLBI by its mnemonic, with the registers last given for ``thread``. Raises InputError."""
        self._event += 1
        row = self._rows.get(thread)
        if row is None:
            row = context()
        pe = issuer(
            el=el,
            hcr=int(row[C_HCR_EL2]),
            vttbr=int(row[C_VTTBR_EL2]),
            vtcr=int(row[C_VTCR_EL2]),
            tcr_el1=int(row[C_TCR_EL1]),
            tcr_el2=int(row[C_TCR_EL2]),
            pa_bits=self.machine.pa_bits,
        )
        scope = as_scope(tlbi_scope(operation(name).code, U64(operand), pe))
        for broken in self._open:
            if broken.on_tlbi(thread, scope, self.broadcast):
                self._awaiting[thread].add(broken)

    def registers(self, thread: int, row: Words) -> None:
        """The translation registers of ``thread`` from now on, a context row: its trees are followed."""
        self._event += 1
        self._rows[thread] = row.copy()
        for tree in trees_of(row, self.machine):
            self._enter(thread, tree)

    def give_up(self, thread: int, base: int) -> None:
        """The trees rooted at ``base`` are no tables any more once their TLB entries are invalidated."""
        self._event += 1
        named = [tree for row in self._rows.values() for tree in trees_of(row, self.machine)]
        for key in [key for key, tree in self._trees.items() if tree.base == base]:
            tree, table = self._trees.pop(key), self._table(base)
            if table is None or table.tree is not tree:
                continue
            if any((other.stage, other.regime, other.base) == key for other in named):
                self._report(thread, rules.ROOT_IN_USE, base, 0, table)
            broken = self._start(thread, base, table, 0, NOTHING)
            broken.state = VISIBLE  # no write has to become visible
            self._take_out(table, broken)
            if not broken.left:  # nothing there could be cached
                broken.state, broken.combined = CLEAN, []
            self._settle(broken)
            self._locks.pop(base, None)

    def protect(self, thread: int, base: int, lock: int) -> None:
        """The tree rooted at ``base`` may be written by the holder of ``lock`` only."""
        self._event += 1
        self._locks[base] = lock

    def entrust(self, thread: int, pa: int, owner: int) -> None:
        """The descriptor at ``pa`` may be written by thread ``owner`` only, whoever holds the lock."""
        self._event += 1
        self._owners[pa] = owner

    def free(self, thread: int, pa: int, size: int) -> None:
        """Memory is given away: no table that may still be walked stands in it."""
        self._event += 1
        for frame in range(pa >> FRAME, (pa + size - 1 >> FRAME) + 1):
            table = self._tables.get(frame)
            if table is not None:
                missing = table.taken_out.missing() if table.taken_out is not None else SEQUENCE[:1]
                self._report(thread, rules.FREED, table.base, 0, table, missing)

    def lock(self, thread: int, lock: int) -> None:
        """``thread`` takes ``lock``."""
        self._event += 1
        if lock in self._holders:
            self._report(thread, rules.LOCKING, lock, thread)
        self._holders[lock] = thread

    def unlock(self, thread: int, lock: int) -> None:
        """``thread`` gives ``lock`` back."""
        self._event += 1
        if self._holders.pop(lock, None) != thread:
            self._report(thread, rules.LOCKING, lock, thread)

    # What is known.

    def state(self, pa: int) -> str:
        """One of: untracked, valid, invalid, unclean (invalid, not yet invalidated in TLBs), taken out."""
        table = self._table(pa)
        if table is None:
            return "untracked"
        if pa in self._breaks:
            return "unclean"
        if table.taken_out is not None:
            return "taken out"
        return "invalid" if self._shape(table, self._words.get(pa, 0))[0] == NOTHING else "valid"

    def unclean(self) -> dict[int, tuple[str, ...]]:
        """The broken descriptors by address, each with the steps it still needs."""
        return {pa: broken.missing() for pa, broken in sorted(self._breaks.items())}

    # How it is kept.

    def _table(self, pa: int) -> Table | None:
        table = self._tables.get(pa >> FRAME)
        return table if table is not None and 0 <= pa - table.base < 8 * table.entries else None

    def _shape(self, table: Table, descriptor: int) -> tuple[int, int]:
        return shape(table.tree, table.level, descriptor) if descriptor & 1 else (NOTHING, 0)

    def _report(
        self,
        thread: int,
        rule: Rule,
        pa: int,
        new: int,
        table: Table | None = None,
        missing: tuple[str, ...] = (),
    ) -> None:
        found = Violation(self._event, thread, rule, pa, self._words.get(pa, 0), new, missing=missing)
        if table is not None:
            found = replace(found, tree=str(table.tree), level=table.level, first=table.input_of(pa))
        self.violations.append(found)

    def _store(self, thread: int, pa: int, value: int, release: bool, same_contents: bool) -> None:
        table = self._table(pa)
        if table is not None:
            self._check_lock(thread, pa, value, table)
            old = self._words.get(pa, 0)
            after = self._shape(table, value)
            broken = self._breaks.get(pa)
            if broken is not None and after[0] != NOTHING:
                self._report(thread, rules.UNCLEAN, pa, value, table, broken.missing())
                del self._breaks[pa]
            elif table.taken_out is not None and after[0] != NOTHING and value != old:
                self._report(thread, rules.REACHABLE, pa, value, table, table.taken_out.missing())
            if table.taken_out is None:
                self._step(thread, pa, table, value, release, same_contents)
        self._words[pa] = value

    def _check_lock(self, thread: int, pa: int, value: int, table: Table) -> None:
        lock = self._locks.get(table.tree.base)
        owner = self._owners.get(pa)
        if owner is None and lock is not None:
            owner = self._holders.get(lock, NOBODY)
        if owner is not None and owner != thread:
            self._report(thread, rules.UNLOCKED, pa, value, table)

    def _step(self, thread: int, pa: int, table: Table, new: int, release: bool, same_contents: bool) -> None:
        """The transition of a live entry, still with its old value, to ``new``."""
        old = self._words.get(pa, 0)
        before, after = self._shape(table, old), self._shape(table, new)
        if before[0] != NOTHING and after[0] != NOTHING:
            rule = self._change(table, pa, old, new, same_contents)
            if rule is not None:
                self._report(thread, rule, pa, new, table, SEQUENCE)
        if before == after and before[0] == NEXT_TABLE:
            return
        if before[0] == NEXT_TABLE or (before[0] == LEAF and after[0] == NOTHING):
            broken = self._start(thread, pa, table, old, before[0])
            if before[0] == NEXT_TABLE:
                self._take_out(self._below(table, pa, before[1]), broken)
            if after[0] == NOTHING:
                self._breaks[pa] = broken
        if after[0] == NEXT_TABLE:
            self._hook_in(thread, pa, table, after[1], release)
            below = self._table(after[1])
            if before[0] == LEAF and below is not None:
                below.replaced = self._start(thread, pa, table, old, LEAF)

    def _change(self, table: Table, pa: int, old: int, new: int, same_contents: bool) -> Rule | None:
        """The rule by which a valid entry may not follow this valid one."""
        before, after = self._shape(table, old), self._shape(table, new)
        if before[0] != after[0]:
            return self._resize(table, pa, old, new)
        if before[0] == LEAF:
            return needs_break(table.tree, table.level, old, new, bbm=self.bbm, same_contents=same_contents)
        return None if before == after else rules.NEXT_TABLE_ADDRESS

    def _resize(self, table: Table, pa: int, old: int, new: int) -> Rule | None:
        """The rule by which a block and a table may not replace each other here."""
        before = self._shape(table, old)
        block, (_, base) = (old, self._shape(table, new)) if before[0] == LEAF else (new, before)
        if not size_may_change(block, self.bbm):
            return rules.BLOCK_SIZE
        whole = properties(table.tree, table.level, block)
        below = self._below(table, pa, base)
        for where, level, descriptor in self._leaves(below):
            piece = properties(table.tree, level, descriptor)
            expected = whole._replace(output=whole.output + where - below.first, contiguous=piece.contiguous)
            change = (expected, piece) if block == old else (piece, expected)
            rule = broken_rule(*change, self.bbm)
            if rule is not None:
                return rule
        return None

    def _leaves(self, table: Table) -> Iterator[tuple[int, int, int]]:
        """Input address, level and descriptor of every leaf in a table and below."""
        for pa in range(table.base, table.base + 8 * table.entries, 8):
            descriptor = self._words.get(pa, 0)
            kind, output = self._shape(table, descriptor)
            if kind == LEAF:
                yield table.input_of(pa), table.level, descriptor
            elif kind == NEXT_TABLE:
                yield from self._leaves(self._below(table, pa, output))

    def _below(self, table: Table, pa: int, base: int) -> Table:
        """The table at ``base`` to which the entry at ``pa`` of ``table`` leads."""
        entries = 1 << table.tree.geometry.stride
        return Table(table.tree, base, entries, table.level + 1, table.input_of(pa))

    def _enter(self, thread: int, tree: Tree) -> None:
        """A register names ``tree``: known, or new with all that hangs below."""
        key = tree.stage, tree.regime, tree.base
        known = self._trees.get(key)
        (identifier,) = tree.identifiers
        for other_key, other in self._trees.items():
            same = other.stage == tree.stage and other.regime == tree.regime and other.first == tree.first
            if same and other_key != key and identifier in other.identifiers and self._holds(other.base):
                self._report(thread, rules.IDENTIFIER, tree.base, other.base)
        if known is not None:
            known.identifiers.add(identifier)
            known.hardware_af, known.hardware_dirty = tree.hardware_af, tree.hardware_dirty
            known.mair, known.fwb = tree.mair, tree.fwb
            return
        self._trees[key] = tree
        entries = 1 << start_entries_shift(tree.geometry)
        self._place(thread, Table(tree, tree.base, entries, tree.geometry.start_level, tree.first), tree.base)

    def _holds(self, base: int) -> bool:
        """Whether the start table at ``base`` maps anything."""
        table = self._table(base)
        return table is not None and any(self._words.get(base + 8 * i, 0) & 1 for i in range(table.entries))

    def _hook_in(self, thread: int, pa: int, table: Table, base: int, release: bool) -> None:
        """The entry at ``pa`` leads to the table at ``base`` now."""
        below = self._below(table, pa, base)
        written = thread, self._barriers[thread]
        if not release and any(self._written.get(frame) == written for frame in below.frames()):
            self._report(thread, rules.PUBLISHED_EARLY, pa, base, table, ("DSB",))
        self._place(thread, below, pa)

    def _place(self, thread: int, table: Table, pa: int) -> None:
        """Follow ``table`` and all below; ``pa`` is the entry that leads to it."""
        for frame in table.frames():
            other = self._tables.get(frame)
            if other is not None and other.taken_out is not None:
                missing = other.taken_out.missing()
                self._report(thread, rules.UNCLEAN_TABLE, pa, table.base, self._table(pa), missing)
                return
            if other is not None:
                self._report(thread, rules.SHARED_TABLE, pa, table.base, self._table(pa))
                return
        for frame in table.frames():
            self._tables[frame] = table
        for entry in range(table.base, table.base + 8 * table.entries, 8):
            kind, output = self._shape(table, self._words.get(entry, 0))
            if kind == NEXT_TABLE:
                self._place(thread, self._below(table, entry, output), entry)

    def _start(self, thread: int, pa: int, table: Table, old: int, kind: int) -> Break:
        """A break of what ``old`` was: of nothing, where only the tables below are taken out."""
        tree, first = table.tree, table.input_of(pa)
        left = remnants(tree, table.level, first, old, kind) if kind != NOTHING else []
        if table.replaced is not None:
            left = table.replaced.left + left
        broken = Break(tree, pa, table.level, first, thread, left, combined_remnants(tree))
        self._open[broken] = []
        self._awaiting[thread].add(broken)
        return broken

    def _take_out(self, table: Table, broken: Break) -> None:
        """``table`` and all below may still be walked, until ``broken`` is clean; level by level."""
        level = [table]
        while level:
            below = []
            for each in level:
                followed = self._table(each.base)
                if followed is None or followed.taken_out is not None or followed.tree is not each.tree:
                    continue
                followed.taken_out = broken
                self._open[broken].append(followed)
                for pa in range(followed.base, followed.base + 8 * followed.entries, 8):
                    descriptor = self._words.get(pa, 0)
                    kind, output = self._shape(followed, descriptor)
                    if pa in self._breaks:
                        broken.below.add(pa)
                    if kind == NEXT_TABLE:
                        below.append(self._below(followed, pa, output))
                    if kind != NOTHING:
                        where = followed.input_of(pa)
                        broken.left += remnants(table.tree, followed.level, where, descriptor, kind)
            level = below

    def _settle(self, broken: Break) -> None:
        """Forget a break that is clean, and the tables it took out."""
        if not broken.clean or broken not in self._open:
            return
        for table in self._open.pop(broken):
            for frame in table.frames():
                self._tables.pop(frame, None)
        if self._breaks.get(broken.pa) is broken:
            del self._breaks[broken.pa]
            above = self._table(broken.pa)
            if above is not None and above.taken_out is not None:
                above.taken_out.below.discard(broken.pa)
                self._settle(above.taken_out)
