"""Objections about locks: who guards an insertion, whether lookup and removal are one step."""

from __future__ import annotations

from typing import Any, Final

from shadowmmu.compiled import U64
from shadowmmu.designs.dispatch import design_forget, design_record
from shadowmmu.designs.interface import CATALOGUE, CAUSE_INVALIDATED
from shadowmmu.designs.own_file import MODULES
from shadowmmu.errors import UndeterminedError
from shadowmmu.machine.counters import TREE_LOCKS
from shadowmmu.machine.state import State
from shadowmmu.verify.parallel_fills import CASES, explored
from shadowmmu.verify.review.interleave import observed
from shadowmmu.verify.review.result import NO_RECORD, Result, holds, not_applicable, refuted, undetermined
from shadowmmu.verify.review.trial import DATA, NESTED, keeps_record, run, script

EXPLORED: Final = ("reverse_table",)
"""Designs without a lock whose steps are written down one by one, in ``verify.parallel_fills``."""
WRITTEN: Final = ("rmap", "side", "mmus")
_SEEN: Final[dict[tuple[str, str], dict[str, dict[str, Any]]]] = {}
"""By design, and the module that it is if it came from a file."""


def two_insertions(design: str) -> Result:
    """6: mmu_lock is held for read by every fill, so insertions need an exclusion of their own.

    Two fills run on copies of one machine; where both write the same word, one would be lost without a lock.
    """
    if not keeps_record(design):
        return NO_RECORD
    lines = f"map {NESTED:#x} {DATA:#x} 16k 3 rw\ntouch w {NESTED:#x} 4096 4"
    trial = run(design, script(lines))
    places = {leaf.nested_ipa: (leaf, at) for leaf, at in trial.places().items()}
    state = trial.executor.state
    chosen = [places[NESTED], places[NESTED + 0x1000]]
    for leaf, _at in chosen:
        start, end = U64(leaf.nested_ipa), U64(leaf.nested_ipa + leaf.size)
        design_forget(state, leaf.mmu, start, end, CAUSE_INVALIDATED)
    after, locks = [], []
    for leaf, at in chosen:
        copy = State(**{name: array.copy() for name, array in state._asdict().items()})
        before = int(copy.count[TREE_LOCKS])
        design_record(
            copy, leaf.mmu, U64(at), U64(leaf.nested_ipa), U64(leaf.size), leaf.level, U64(leaf.word)
        )
        locks.append(int(copy.count[TREE_LOCKS]) - before)
        after.append(copy)
    shared = 0
    for name in WRITTEN:
        old, first, second = (getattr(each, name) for each in (state, *after))
        shared += int(((first != old) & (second != old)).sum())
    if all(locks):
        return holds(f"each insertion takes a lock of the record, inside mmu_lock; {shared} words in common")
    if not shared:
        return holds("two insertions write no word in common")
    if design in EXPLORED:
        return all_schedules()
    return undetermined(
        f"no lock; two insertions write {shared} words in common: they must be atomic, by compare-and-swap "
        "or addition, which a model of one CPU at a time cannot show"
    )


def all_schedules() -> Result:
    """6, for ``reverse_table``: its steps under mmu_lock held for read, in every order they can fall."""
    states = 0
    for case in CASES:
        found = explored(case)
        states += found.states
        if found.broken:
            turns = " ".join(str(cpu + 1) for cpu in found.schedule)
            return refuted(f"{case.title}: {found.broken}", [f"CPUs take steps in this order: {turns}"])
    return holds(
        f"no lock but compare-and-swap of single words; fills beside each other in {len(CASES)} cases, every "
        f"order of their steps ({states:,} states): no entry lost or doubled, no node lost"
    )


def one_step(design: str) -> Result:
    """11: what a lookup has found is removed in the same hold of the record's lock."""
    if not keeps_record(design):
        return NO_RECORD
    try:
        race = _observed(design)["race"]
    except UndeterminedError as error:
        return undetermined(str(error))
    if race["broken"]:
        return refuted(
            f"two CPUs unmap one page: {race['broken']}",
            [f"each time it lets the lock go, a CPU: {race['schedule']}", race["broken"]],
        )
    return holds(f"two CPUs unmap one page, {race['schedules']} schedules: every node is freed once")


def container_locks(design: str) -> Result:
    """22: whoever changes a container holds the lock that it asks for."""
    if not keeps_record(design):
        return NO_RECORD
    try:
        guard = _observed(design)["guard"]
    except UndeterminedError as error:
        return undetermined(str(error))
    if not guard["calls"]:
        return not_applicable("uses neither the maple nor the red-black tree")
    if guard["unlocked"]:
        return refuted(f"called with no lock held: {', '.join(guard['unlocked'])}")
    return holds(f"{guard['calls']} changes, each under the record's lock or mmu_lock held for write")


def _observed(design: str) -> dict[str, dict[str, Any]]:
    """What the interpreted process saw of a design; it is asked once for all of them."""
    own_file = MODULES[design].__name__ if design in MODULES else ""
    if (design, own_file) not in _SEEN:
        names = [name for name in CATALOGUE if name not in MODULES]
        asked = [str(MODULES[design].__file__)] if own_file else names
        for name, seen in observed(tuple(asked)).items():
            _SEEN[name, own_file] = seen
    return _SEEN[design, own_file]
