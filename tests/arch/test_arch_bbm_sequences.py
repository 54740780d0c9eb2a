"""Sequences: each legal one passes, and none of its steps can be left out."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from bbm_lab import NEW, Event, Scene, by_address, by_range, by_thread, scene
from hypothesis import given
from hypothesis import strategies as st

from shadowmmu.arch import bbm_rules as rules

KINDS = ("stage 2", "EL1", "EL2")
GRANULES = (12, 14, 16)
BOTH_STAGES = ("VMALLS12E1IS", "ALLE1IS", "VMALLS12E1OS", "ALLE1OS")
LEAF_LEVELS = {12: (1, 2, 3), 14: (2, 3), 16: (2, 3)}


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    page_shift = draw(st.sampled_from(GRANULES))
    level = draw(st.sampled_from(LEAF_LEVELS[page_shift]))
    return scene(draw(st.sampled_from(KINDS)), page_shift, level)


def reaching(name: str) -> st.SearchStrategy[str]:
    """The DSBs that complete a TLBI of this name."""
    return st.sampled_from(["osh", "sy"] if name.endswith("OS") else ["ish", "osh", "sy"])


@st.composite
def cleanings(draw: st.DrawFn, s: Scene) -> list[Event]:
    """TLBIs and DSBs that suffice, in their order."""
    ttl = draw(st.booleans())
    if s.kind == "stage 2":
        if draw(st.booleans()):
            name = draw(st.sampled_from(BOTH_STAGES))
            return [("tlbi", (name,)), ("dsb", (draw(reaching(name)),))]
        name = draw(st.sampled_from(("IPAS2E1IS", "IPAS2LE1IS", "IPAS2E1OS", "RIPAS2E1IS", "RIPAS2LE1OS")))
        first = by_range(name, s) if name.startswith("R") else by_address(name, s, ttl)
        second = draw(st.sampled_from(("VMALLE1IS", "VMALLE1OS")))
        return [
            first,
            ("dsb", (draw(reaching(name)),)),
            ("tlbi", (second,)),
            ("dsb", (draw(reaching(second)),)),
        ]
    suffix = draw(st.sampled_from(("IS", "OS")))
    if s.kind == "EL2":
        by = draw(st.sampled_from(("VAE2", "VALE2", "ALLE2")))
    else:
        by = draw(
            st.sampled_from(("VAE1", "VALE1", "VAAE1", "VAALE1", "RVAE1", "VMALLE1", "ASIDE1", "ALLE1"))
        )
    name = by + suffix
    if by.startswith("RVA"):
        event = by_range(name, s)
    elif by.startswith("VA"):
        event = by_address(name, s, ttl)
    else:
        event = ("tlbi", (name, 9 << 48)) if by == "ASIDE1" else ("tlbi", (name,))
    return [event, ("dsb", (draw(reaching(name)),))]


@st.composite
def sequences(draw: st.DrawFn) -> tuple[Scene, list[Event]]:
    """A scene and a legal break-before-make of its leaf; the cleaning may be another PE's."""
    s = draw(scenes())
    first = draw(st.sampled_from(("ish", "ishst", "osh", "oshst", "sy", "st")))
    cleaner = draw(st.integers(0, 1))
    events = [("write", (0, s.pa, draw(st.sampled_from((0, 0xF00, 1 << 63))))), ("dsb", (0, first))]
    events += [by_thread(cleaner, event) for event in draw(cleanings(s))]
    return s, [*events, ("write", (draw(st.integers(0, 1)), s.pa, s.leaf(NEW)))]


@given(sequences(), st.data())
def test_a_legal_sequence_passes_and_every_step_of_it_is_needed(
    made: tuple[Scene, list[Event]], data: st.DataObject
) -> None:
    s, events = made
    left_out = data.draw(st.integers(-1, len(events) - 2))
    kept = [event for number, event in enumerate(events) if number != left_out]
    found = s.play(*kept)
    if left_out < 0:
        assert found == []
        assert s.checker.unclean() == {}
        return
    (violation,) = found
    assert violation.rule is (rules.OUTPUT_ADDRESS if left_out == 0 else rules.UNCLEAN)
    assert (violation.pa, violation.first, violation.level) == (s.pa, s.ia, s.level)
    assert violation.missing


@given(sequences(), st.data())
def test_what_others_do_meanwhile_does_not_stand_in_for_a_step(
    made: tuple[Scene, list[Event]], data: st.DataObject
) -> None:
    s, events = made
    beyond = (s.ia + s.span) >> 12
    noise = [
        ("dsb", (2, "sy")),
        ("isb", (0,)),
        ("tlbi", (2, "VMALLS12E1IS")),  # another VMID: that PE has none of these registers
        ("tlbi", (0, "IPAS2E1IS", beyond)),
        ("tlbi", (1, "VAAE1IS", beyond)),
        ("tlbi", (0, "VAE2IS", beyond)),
    ]
    if s.kind != "EL2":
        noise += [("tlbi", (0, "ALLE2IS"))]
    left_out = data.draw(st.integers(0, len(events) - 2))
    kept: list[Event] = []
    for number, event in enumerate(events):
        kept += data.draw(st.lists(st.sampled_from(noise), max_size=2))
        if number != left_out:
            kept.append(event)
    assert [each.rule.name for each in s.play(*kept)] != []


@pytest.mark.parametrize(
    ("first", "tlbi", "last"),
    [
        ("nsh", "ALLE1IS", "ish"),
        ("ishld", "ALLE1IS", "ish"),
        ("ish", "ALLE1IS", "ishst"),
        ("ish", "ALLE1IS", "nsh"),
        ("ish", "ALLE1OS", "ish"),
        ("ish", "ALLE1", "ish"),
        ("ish", "VMALLE1IS", "ish"),
        ("ish", "ALLE2IS", "ish"),
    ],
)
def test_a_step_that_is_too_weak_is_no_step(first: str, tlbi: str, last: str) -> None:
    s = scene()
    found = s.play(
        ("write", (0, s.pa, 0)),
        ("dsb", (0, first)),
        ("tlbi", (0, tlbi)),
        ("dsb", (0, last)),
        ("write", (0, s.pa, s.leaf(NEW))),
    )
    assert [each.rule for each in found] == [rules.UNCLEAN]


def test_a_local_tlbi_is_named_and_does_where_one_pe_uses_the_tables() -> None:
    steps = (("dsb", (0, "ish")), ("tlbi", (0, "ALLE1")), ("dsb", (0, "nsh")))
    shared, alone = scene(), scene()
    alone.checker.broadcast = False
    for s in (shared, alone):
        s.play(("write", (0, s.pa, 0)), *steps)
    (violation,) = shared.play(("write", (0, shared.pa, shared.leaf(NEW))))
    assert "not broadcast" in violation.missing[0]
    assert alone.play(("write", (0, alone.pa, alone.leaf(NEW)))) == []


@pytest.mark.parametrize("granule", GRANULES)
@pytest.mark.parametrize("wrong", range(1, 4))
def test_a_wrong_level_hint_invalidates_nothing(granule: int, wrong: int) -> None:
    s = scene("EL1", granule, 3)
    right = by_address("VAE1IS", s, ttl=True)
    operand = right[1][1]
    hint = (operand >> 44 & 3) == wrong
    operand = operand & ~(3 << 44) | wrong << 44
    found = s.play(
        ("write", (0, s.pa, 0)),
        ("dsb", (0, "ish")),
        ("tlbi", (0, "VAE1IS", operand)),
        ("dsb", (0, "ish")),
        ("write", (0, s.pa, s.leaf(NEW))),
    )
    reserved = granule == 14 and wrong == 1
    assert (found == []) == (hint or reserved)


class Cached(NamedTuple):
    """One possible state of the TLBs: entries of one stage-2 leaf, and the TLBIs (PE, kind) yet to happen."""

    stage2: bool
    combined: bool
    to_come: tuple[tuple[int, str], ...]


class Hardware:
    """All states that TLBs can be in, on a machine that caches as much as it may.

    Walkers see the old leaf until a DSB of its writer, thread 0. A TLBI happens at some time up to the next
    DSB of its PE. A combined entry can be made from a stage-2 entry.
    """

    def __init__(self) -> None:
        self.visible = True
        self.states = {Cached(True, True, ())}

    def fill(self, state: Cached) -> Cached:
        stage2 = state.stage2 or self.visible
        return Cached(stage2, state.combined or stage2, state.to_come)

    def happen(self) -> None:
        """Add the states in which some of the TLBIs to come have happened."""
        reached = list(self.states)
        while reached:
            state = reached.pop()
            for number, (_, kind) in enumerate(state.to_come):
                rest = state.to_come[:number] + state.to_come[number + 1 :]
                stage2 = state.stage2 and kind == "stage 1"
                combined = state.combined and kind == "stage 2"
                after = self.fill(Cached(stage2, combined, rest))
                if after not in self.states:
                    self.states.add(after)
                    reached.append(after)

    def tlbi(self, thread: int, kind: str) -> None:
        self.states = {state._replace(to_come=(*state.to_come, (thread, kind))) for state in self.states}
        self.happen()

    def dsb(self, thread: int, broken: bool) -> None:
        self.states = {s for s in self.states if all(pe != thread for pe, _ in s.to_come)}
        if broken and thread == 0:
            self.visible = False
        self.happen()

    @property
    def stale(self) -> bool:
        return self.visible or any(state.stage2 or state.combined for state in self.states)


HITS = {"IPAS2E1IS": "stage 2", "VMALLE1IS": "stage 1", "VMALLS12E1IS": "both"}
STEPS = st.tuples(st.integers(0, 1), st.sampled_from(("dsb", *HITS)))


@given(st.lists(STEPS, max_size=9), st.integers(0, 2))
def test_the_verdict_is_that_of_a_machine_that_caches_all_it_may(
    steps: list[tuple[int, str]], early: int
) -> None:
    s, machine, broken = scene(), Hardware(), False
    for number, (thread, name) in enumerate(steps):
        if number == early:
            s.checker.write(0, s.pa, 0)
            broken = True
        if name == "dsb":
            s.checker.dsb(thread, "ish")
            machine.dsb(thread, broken)
        else:
            s.play(by_thread(thread, by_address(name, s) if name.startswith("IPA") else ("tlbi", (name,))))
            machine.tlbi(thread, HITS[name])
    found = s.play(("write", (0, s.pa, s.leaf(NEW))))
    assert bool(found) == machine.stale
