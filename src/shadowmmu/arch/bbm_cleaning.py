"""The way from a broken entry back to a clean one: DSB, TLBI, DSB, as one small automaton per break.

A break leaves behind whatever TLB entries the old descriptor may have given: its own, and if it was a table
those of all that hung below. A TLBI takes away what it must drop, no more; a DSB completes what its PE has
done before. Stage 2 needs a second round, because entries that combine both stages are known by VA only.
Source: Arm ARM D8.17.1 (R_DDMVT), D8.17.6.1 (I_CKZGP), D8.17.8 (R_PSMWS).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from shadowmmu.arch.bbm_rules import LEAF, NEXT_TABLE, Tree
from shadowmmu.arch.regime import level_shift
from shadowmmu.arch.stage1 import STAGE1_LEAF
from shadowmmu.arch.stage2 import STAGE2_LEAF
from shadowmmu.arch.tlb import ENTRY_TAG, TABLE, must_drop
from shadowmmu.arch.tlbi import BY_ALL, NO_LEVEL
from shadowmmu.arch.tlbi_operations import DOMAIN_NAMES, INNER_SHAREABLE, NON_SHAREABLE, OUTER_SHAREABLE
from shadowmmu.arch.tlbi_scope import ANY, BOTH, EL2, EL10, STAGE1, STAGE2, Scope
from shadowmmu.compiled import U64, Word
from shadowmmu.errors import InputError

ANYWHERE: Final = 0
"""Size of a remnant whose address is not known."""


class Barrier(NamedTuple):
    """A DSB: how far it reaches (a domain of ``tlbi_operations``; SY as outer), which accesses it orders."""

    domain: int
    loads: bool
    stores: bool


def barrier(kind: str) -> Barrier:
    """The DSB of this name: sy, st, ld, or ish, nsh, osh, each also with st or ld. Raises InputError.

    >>> barrier("ishst")
    Barrier(domain=1, loads=False, stores=True)
    """
    name = kind.lower()
    domains = {"ish": INNER_SHAREABLE, "nsh": NON_SHAREABLE, "osh": OUTER_SHAREABLE, "sy": OUTER_SHAREABLE}
    what = name[-2:] if name[-2:] in ("st", "ld") else ""
    where = name.removesuffix(what) or "sy"
    if where not in domains or (name != "sy" and where == "sy" and not what) or name == "sy" + what != "sy":
        raise InputError(f"DSB {kind!r}: expected sy, st, ld, or ish, nsh, osh, alone or with st or ld")
    return Barrier(domains[where], what != "st", what != "ld")


class Remnant(NamedTuple):
    """A TLB entry that may be left: its tag and start, as ``arch.tlb`` has them, and what it covers."""

    tag: Word
    begin: Word
    vmid: int
    level: int
    start: int
    size: int


def remnants(tree: Tree, level: int, first: int, descriptor: int, kind: int) -> list[Remnant]:
    """What a descriptor at ``level`` for input address ``first`` may have left in TLBs, per VMID and ASID."""
    shift = level_shift(tree.geometry, level)
    is_global = tree.has_global and kind == LEAF and not STAGE1_LEAF["nG"].get(descriptor)
    no_xs = tree.stage == 2 and kind == LEAF and bool(STAGE2_LEAF["FnXS"].get(descriptor))
    granule = tree.geometry.page_shift
    fields = {
        "VALID": 1,
        "KIND": (STAGE1 if tree.stage == 1 else STAGE2) + (TABLE if kind == NEXT_TABLE else 0),
        "REGIME": tree.regime,
        "GLOBAL": int(is_global),
        "XS": int(not no_xs),
        "LEVEL1": level + 1 if tree.stage == 1 else NO_LEVEL + 1,
        "LEVEL2": level + 1 if tree.stage == 2 else NO_LEVEL + 1,
        "GRANULE1": granule if tree.stage == 1 else 0,
        "GRANULE2": granule if tree.stage == 2 else 0,
        "SIZE": shift,
    }
    found = []
    for vmid, asid in sorted(tree.identifiers):
        fields["VMID"] = vmid if tree.regime == EL10 else 0
        fields["ASID"] = 0 if is_global or tree.stage == 2 or tree.regime == EL2 else asid
        tag = U64(ENTRY_TAG.encode(**fields))
        found.append(Remnant(tag, U64(first), fields["VMID"], level, first, 1 << shift))
    return list(dict.fromkeys(found))


def combined_remnants(tree: Tree) -> list[Remnant]:
    """What a stage-2 entry may have left in entries that hold both stages: any VA, any ASID."""
    if tree.stage == 1:
        return []
    tags = {
        vmid: ENTRY_TAG.encode(VALID=1, KIND=BOTH, REGIME=EL10, XS=1, VMID=vmid)
        for vmid, _ in tree.identifiers
    }
    return [Remnant(U64(tag), U64(0), vmid, NO_LEVEL, 0, ANYWHERE) for vmid, tag in sorted(tags.items())]


def _drops(scope: Scope, remnant: Remnant) -> bool:
    """``must_drop``, asked only where the addresses meet; an entry that may be anywhere needs it by all."""
    if remnant.size == ANYWHERE:
        if scope.by != BY_ALL or scope.asid != ANY:
            return False
    elif scope.by != BY_ALL:
        start = int(scope.start)
        if remnant.start >= start + int(scope.size) or start >= remnant.start + remnant.size:
            return False
    return bool(must_drop(scope, remnant.tag, remnant.begin))


def _dropped(scope: Scope, left: list[Remnant]) -> list[Remnant]:
    """What a TLBI takes away for good: an entry below a table entry that stays may come back."""
    dropped: list[Remnant] = []
    tables: list[Remnant] = []
    for remnant in left:  # tables come before what is below them
        back = any(t.vmid == remnant.vmid and t.start <= remnant.start < t.start + t.size for t in tables)
        if not back and _drops(scope, remnant):
            dropped.append(remnant)
        elif ENTRY_TAG["KIND"].get(int(remnant.tag)) & TABLE:
            tables.append(remnant)
    return dropped


WRITTEN: Final = 0
"""The invalid entry is written, no DSB yet."""
VISIBLE: Final = 1
"""Walkers see it; TLB entries are left, or a TLBI awaits its DSB."""
COMBINED: Final = 2
"""Stage 2 only: the entries of stage 2 are gone, combined ones may be left."""
CLEAN: Final = 3


@dataclass(eq=False)
class Break:
    """One broken entry on its way to clean: ``thread`` wrote the invalid value at ``pa``."""

    tree: Tree
    pa: int
    level: int
    first: int
    thread: int
    left: list[Remnant]
    """Of this stage, tables before what is below them; in state COMBINED, the combined ones."""
    combined: list[Remnant] = field(default_factory=list)
    state: int = WRITTEN
    issued: dict[int, dict[Remnant, int]] = field(default_factory=dict)
    """By thread, what its TLBIs take away at its next DSB, with the domain the DSB must reach."""
    below: set[int] = field(default_factory=set)
    """Entries in the tables taken out that were being cleaned on their own, by address."""
    local: bool = False
    """A TLBI that would have done something was not broadcast."""

    @property
    def clean(self) -> bool:
        """Whether a valid entry may be written."""
        return self.state == CLEAN and not self.below

    def awaits(self, thread: int) -> bool:
        """Whether a DSB of ``thread`` may make a difference."""
        return thread in self.issued or (self.state == WRITTEN and thread == self.thread)

    def on_dsb(self, thread: int, dsb: Barrier) -> None:
        """A DSB of ``thread``. Source: Arm ARM R_DDMVT steps 2 and 4, R_PSMWS."""
        if self.state == WRITTEN:
            if thread == self.thread and dsb.stores and dsb.domain != NON_SHAREABLE:
                self.state = VISIBLE
            return
        if not (dsb.loads and dsb.stores):
            return
        issued = self.issued.pop(thread, {})
        waiting = {remnant: domain for remnant, domain in issued.items() if domain > dsb.domain}
        if waiting:
            self.issued[thread] = waiting
        gone = issued.keys() - waiting.keys()
        self.left = [remnant for remnant in self.left if remnant not in gone]
        self.combined = [remnant for remnant in self.combined if remnant not in gone]
        if not self.left:
            self.state = COMBINED if self.combined else CLEAN
            self.left, self.combined = self.combined, []

    def on_tlbi(self, thread: int, scope: Scope, broadcast: bool) -> bool:
        """A TLBI of ``thread``; whether it did something that a DSB of the thread must complete.

        ``broadcast``: local ones do not count. Source: Arm ARM R_DDMVT step 3, I_CKZGP.
        """
        if self.state not in (VISIBLE, COMBINED):
            return False
        dropped = _dropped(scope, self.left)
        if scope.stages == BOTH:
            held = {remnant.vmid for remnant in set(self.left) - set(dropped)}
            dropped += [r for r in self.combined if r.vmid not in held and _drops(scope, r)]
        if not dropped:
            return False
        if broadcast and scope.domain == NON_SHAREABLE:
            self.local = True
            return False
        issued = self.issued.setdefault(thread, {})
        for remnant in dropped:
            issued[remnant] = min(issued.get(remnant, scope.domain), scope.domain)
        return True

    def missing(self) -> tuple[str, ...]:
        """The steps that remain before a valid entry may be written, in order."""
        steps = []
        if self.state == WRITTEN:
            steps.append(f"DSB by thread {self.thread}")
        issued = {remnant for each in self.issued.values() for remnant in each}
        left = [remnant for remnant in self.left if remnant not in issued]
        combined = [remnant for remnant in self.combined if remnant not in issued]
        if left:
            steps += [self._tlbi_needed(left), "DSB"]
        elif self.left:
            steps.append(self._dsb_needed())
        if combined:
            unless = ", unless the first is for both stages" if left else ""
            steps += [f"broadcast TLBI VMALLE1{unless}", "DSB"]
        steps += [f"the sequence of the entry at {pa:#x} below" for pa in sorted(self.below)]
        return tuple(steps)

    def _tlbi_needed(self, left: list[Remnant]) -> str:
        local = " (the one seen was not broadcast)" if self.local else ""
        if self.state == COMBINED:
            return "broadcast TLBI VMALLE1" + local
        start = min(r.start for r in left)
        size = max(r.start + r.size for r in left) - start
        return f"broadcast TLBI for {'IPA' if self.tree.stage == 2 else 'VA'} {start:#x} +{size:#x}{local}"

    def _dsb_needed(self) -> str:
        waiting = [
            f"thread {thread} ({DOMAIN_NAMES[max(issued.values())]})"
            for thread, issued in sorted(self.issued.items())
        ]
        return "DSB by " + ", ".join(waiting)


def hardware_update(old: int, new: int, tree: Tree) -> bool:
    """Whether ``new`` is what hardware makes of ``old``: access flag set, dirty state set."""
    allowed = STAGE2_LEAF["AF"].mask if tree.hardware_af else 0
    if tree.hardware_dirty and STAGE2_LEAF["DBM"].get(old):
        allowed |= STAGE2_LEAF["S2AP_W"].mask
    changed = old ^ new
    if changed & ~allowed:
        return False
    dirty_up = bool(new & STAGE2_LEAF["S2AP_W"].mask) == (tree.stage == 2)
    return bool(new & STAGE2_LEAF["AF"].mask) and (not changed & STAGE2_LEAF["S2AP_W"].mask or dirty_up)
