"""Objections about the record: what gets on it, what stays on it, and whether a query changes it."""

from __future__ import annotations

from shadowmmu.arch.stage2 import AF, S2AP_W
from shadowmmu.compiled import U64
from shadowmmu.engine.executor import Executor
from shadowmmu.pgtable.context import M_LEAVES, M_PENDING, M_ROOT, M_VTTBR
from shadowmmu.verify.cases import placed_cases
from shadowmmu.verify.conformance import run_case
from shadowmmu.verify.review.result import NO_RECORD, Result, holds, not_applicable, refuted
from shadowmmu.verify.review.trial import (
    DATA,
    NESTED,
    PAGE,
    Trial,
    keeps_record,
    precise,
    prepare,
    run,
    scenario_text,
    script,
)

MOVES = 48


def entered(design: str) -> Result:
    """7: what goes on the record is what was filled in a shadow, stage 2 off included, and nothing of L1."""
    if not keeps_record(design):
        return NO_RECORD
    own = prepare(design, script(*(f"poke {DATA + n * PAGE:#x} 1" for n in range(4))))
    own.run(own.last - 3)
    before = own.recorded
    own.run()
    if own.recorded != before:
        return refuted(f"L1's own accesses added {own.recorded - before} entries")
    return run(design, scenario_text("07-stage2-off")).result("nothing of L1; what stage 2 off maps is found")


def moved_page(design: str) -> Result:
    """8: a canonical page that moved to another nested address is found at its new one."""
    return run(design, scenario_text("08-moved-page")).result()


def query_apart_from_removal(design: str) -> Result:
    """12 and 18: ageing a page reaches that page alone, by the record, and leaves the record as it is."""
    if not keeps_record(design):
        return not_applicable("keeps no record: an update takes whole tables, or reads them")
    trial = prepare(design, scenario_text("12-aged-then-taken"), machine=precise())
    trial.run(trial.last - 2)
    entries, before = trial.recorded, old_leaves(trial)
    trial.run(trial.last)
    aged = sorted(set(old_leaves(trial)) - set(before))
    if trial.recorded != entries:
        return refuted(f"ageing changed the record: {entries} entries before, {trial.recorded} after")
    if len(aged) != 1:
        shown = [f"nested IPA {at:#x} has lost its access flag" for at in aged]
        return refuted(f"one page was aged, {len(aged)} leaves lost their access flag", shown)
    return trial.run().result("one leaf aged, the record as before, the page found when it goes")


def old_leaves(trial: Trial) -> list[int]:
    """Nested IPAs of the leaves without access flag."""
    state = trial.executor.state
    return [leaf.nested_ipa for leaf in trial.places() if not int(state.mem[leaf.word]) & int(AF)]


def whole_kit(design: str) -> Result:
    """14: the correctness suite holds; speed comes after."""
    results = [run_case(design, case) for case in placed_cases()]
    bad = [result for result in results if not result.holds]
    if not bad:
        return holds(f"{len(results)} placed cases of the conformance kit")
    return refuted(f"{len(bad)} of {len(results)} cases of the conformance kit", bad[0].lines())


def after_tlbi(design: str) -> Result:
    """24: what L1 invalidates leaves the record, or is harmless: it neither grows nor spreads."""
    if not keeps_record(design):
        return NO_RECORD
    found = []
    for what in ("canonical pages under one nested address", "nested addresses of one canonical page"):
        lines = []
        for n in range(MOVES):
            nested_ipa = NESTED if what.startswith("canonical") else NESTED + n * PAGE
            canonical_ipa = DATA + n * PAGE if what.startswith("canonical") else DATA
            lines.append(
                f"map {nested_ipa:#x} {canonical_ipa:#x} 4k 3 rw\ntouch w {nested_ipa:#x}\n"
                f"unmap {nested_ipa:#x} 4k 3\ntlbi 0 {nested_ipa >> 12:#x}"
            )
        other = f"map 0xa0000000 {DATA:#x} 64k 3 rw\ntouch w 0xa0000000 4096 16"
        trial = prepare(design, script(*lines, other, f"dontneed {DATA:#x} 4k"))
        trial.run(trial.last)
        stale = trial.recorded - trial.leaves
        trial.run()
        if trial.violation is not None:
            return trial.result()
        if trial.count("over_unmapped_leaves"):
            return refuted(
                f"{MOVES} {what}: then a notifier takes {trial.count('over_unmapped_leaves')} leaves too "
                f"many, {trial.count('unknown_entries')} entries have lost their nested address"
            )
        if stale >= MOVES // 2:
            return refuted(f"{MOVES} {what}: {stale} entries without a leaf stay on the record")
        found.append(max(stale, 0))
    return holds(f"entries without a leaf after {MOVES} moves: {found[0]} and {found[1]}")


def ageing(design: str) -> Result:
    """30: ageing a canonical page looks at every shadow MMU and address that maps it."""
    trial = run(design, scenario_text("30-aged-aliases"), machine=precise())
    state = trial.executor.state
    page = DATA + 0x2000
    young = [
        f"nested_mmu{leaf.mmu - 1} nested IPA {leaf.nested_ipa:#x} is still young"
        for leaf, at in trial.places().items()
        if at <= page < at + leaf.size and int(state.mem[leaf.word]) & int(AF)
    ]
    if young:
        return refuted(f"{len(young)} leaves of the page kept their access flag", young)
    others = len(old_leaves(trial)) - 3
    more = f", and {others} others" if others else ""
    return trial.result(f"all three leaves of the page aged{more}; Linux 7.3.4 ages none")


def tenants(design: str) -> Result:
    """31: each MMU's record is its own, and a wiped MMU takes entries again."""
    return run(design, scenario_text("31-recycled")).result()


def vncr(design: str) -> Result:
    """26: taking a canonical page invalidates a VNCR entry over it, whatever the shadows hold."""
    trial = run(design, scenario_text("26-vncr"))
    gone, beside = trial.count("vncr_invalidations"), trial.count("vncr_over")
    return trial.result(f"{gone} entries invalidated, {beside} of them by a range beside the page")


def freed(design: str) -> Result:
    """32: the same leaf is recorded once, and when all leaves are gone so are all entries."""
    if not keeps_record(design):
        return NO_RECORD
    trial = prepare(design, scenario_text("32-filled-again"))
    trial.run(trial.last)
    leaves, entries = trial.leaves, trial.recorded
    trial.run()
    if trial.leaves == 0 and trial.recorded:
        return refuted(f"no leaf is left and {trial.recorded} entries are")
    if trial.violation is None and entries > leaves:
        return refuted(f"{leaves} leaves have {entries} entries after the same one was filled again")
    return trial.result(f"{leaves} leaves, {entries} entries; none at the end")


def stable_mmus(design: str) -> Result:
    """33: an MMU keeps its place and its root for the VM's life, and tables are counted right."""
    trial = prepare(design, scenario_text("31-recycled"))
    roots = trial.executor.state.mmus[:, M_ROOT].copy()
    moved: list[str] = []

    def look(running: Executor) -> None:
        if (running.state.mmus[:, M_ROOT] != roots).any():
            moved.append(running.scenario.where(running.position - 1))

    trial.run(each=look)
    if moved:
        return refuted(f"a root moved: {moved[0]}")
    found = [one for one in trial.judge.found.values() if one.rule == "A15"]
    if found:
        return refuted(found[0].meaning, found[0].lines)
    return holds(f"{len(roots)} roots stayed through {trial.count('recycled')} recyclings")


def recycled_before_wipe(design: str) -> Result:
    """40: a notifier between the recycling of an MMU and its wipe takes the former tenant's leaf."""
    trial = prepare(design, scenario_text("40-pending"))
    trial.run(trial.last)
    state = trial.executor.state
    state.mmus[1, M_PENDING] = 1
    state.mmus[1, M_VTTBR] += U64(1 << 48)
    before = int(state.mmus[1, M_LEAVES])
    trial.run()
    if trial.violation is None and int(trial.executor.state.mmus[1, M_LEAVES]) == before:
        return refuted("nothing of the pending MMU went")
    return trial.result("the leaf of a pending MMU goes like any other")


def logged(design: str) -> Result:
    """48: while the log is on, what may be written through a shadow is in the bitmap."""
    trial = prepare(design, scenario_text("48-logged"), machine=precise())
    lost: list[str] = []
    logging = [False]

    def look(running: Executor) -> None:
        where = running.scenario.where(running.position - 1)
        logging[0] |= "log 1" in where
        if not logging[0]:
            return
        for leaf, at in trial.places().items():
            page = at - 0x4000_0000 >> 12
            writable = int(running.state.mem[leaf.word]) & int(S2AP_W)
            if writable and not int(running.state.dirty[page >> 6]) >> (page & 63) & 1:
                lost.append(f"nested IPA {leaf.nested_ipa:#x} may be written unseen after {where}")

    trial.run(each=look)
    if lost:
        return refuted("a write would be lost to the dirty log", lost)
    return trial.result("every leaf that may be written is in the bitmap, after every event")


def memslot(design: str) -> Result:
    """49: deleting a memslot takes every leaf over it."""
    trial = run(design, scenario_text("49-memslot"))
    if trial.violation is None and trial.leaves:
        return refuted(f"{trial.leaves} leaves are left over no memslot")
    return trial.result("no leaf is left")
