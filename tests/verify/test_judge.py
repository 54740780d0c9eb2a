"""The judge must be able to fail: each rule, broken by hand, is reported with its event, leaf and chain."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from shadowmmu.compiled import U64
from shadowmmu.designs.reverse_entries import DESCRIPTOR, M_RECORDED
from shadowmmu.designs.reverse_table_check import ShadowLeaf, shadow_leaves
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.events.schema import DONTNEED, DUMP, HOST_WRITE, PUNCH, TLBI
from shadowmmu.machine.frames import REFS
from shadowmmu.machine.state import image_digest
from shadowmmu.pgtable.context import M_LEAVES
from shadowmmu.verify.cases import conformance_cases
from shadowmmu.verify.judge import Judge, Violation, judge_points, size_text
from shadowmmu.verify.rules import NOT_COVERED, RULES, STALE_LEAF, WRITABLE_LEAF

SCRIPT = """mem 64M
start thp 0 0
s2 new 1
code
write 0x41000000 4M
map 0x80000000 0x41000000 2M 2 rw
touch w 0x80000000
map 0x80200000 0x41200000 64k 3 rw
touch w 0x80200000 4096 4
mprotect 0x41202000 4k r
touch r 0x80200000 4096 4
dump here
tlbi 0 0x700000080200
nop
dontneed 0x41201000 4k
nop
"""
BLOCK = 0x8000_0000
PAGE = 0x8020_1000
READ_ONLY = 0x8020_2000
INVALIDATED = 0x8020_0000
S2AP_W = U64(1 << 7)


def prepared(design: str = "reverse_table", until: str = "tlbi", script: str = SCRIPT) -> Executor:
    """A machine at rest just before the first line that starts with ``until``; empty: before all."""
    made = Executor(parse_scenario(script, "lab"), design, Machine(ipa_limit_bits=40))
    made.run(event_of(made, until) if until else 0)
    return made


def event_of(made: Executor, line: str) -> int:
    scenario = made.scenario
    numbers = [n for n, text in enumerate(scenario.lines, 1) if text.startswith(line)]
    return int(np.flatnonzero(scenario.events["line"] == numbers[0])[0])


def leaf(made: Executor, nested_ipa: int) -> ShadowLeaf:
    return next(found for found in shadow_leaves(made.state) if found.nested_ipa == nested_ipa)


def looked(made: Executor, event: int | None = None) -> dict[str, Violation]:
    """All that one look finds, by rule."""
    judge = Judge()
    judge.look(made, made.position - 1 if event is None else event)
    return {violation.rule: violation for violation in judge.found.values()}


def test_a_sound_machine_breaks_no_rule() -> None:
    made, judge = prepared(until=""), Judge()
    made.run(after_event=lambda running: judge.look(running, running.position - 1))
    assert judge.worst is None
    assert judge.looks == len(made.scenario.events)


def other_frame(made: Executor) -> None:
    made.state.mem[leaf(made, PAGE).word] += U64(0x1000)


def gone_from_host(made: Executor) -> None:
    made.state.hpte[(0x4120_1000 - 0x4000_0000) >> 12] = 0


def no_memslot(made: Executor) -> None:
    made.state.ghost[leaf(made, PAGE).word] = U64(0x9000_0003)
    made.state.side[leaf(made, PAGE).word] = U64(0x9000_0001)


def writable(made: Executor) -> None:
    made.state.mem[leaf(made, READ_ONLY).word] |= S2AP_W


def unrecorded(made: Executor) -> None:
    words = made.state.rmap
    item = words & DESCRIPTOR == U64(leaf(made, PAGE).word)  # of a small leaf
    words[int(np.flatnonzero(item & (words > DESCRIPTOR))[0])] = 0


def larger_than_l1s(made: Executor) -> None:
    word = leaf(made, BLOCK).word
    made.state.ghost[word] += U64(1)
    made.state.mem[word] |= U64(3 << 55)


def other_tag(made: Executor) -> None:
    made.state.mem[leaf(made, PAGE).word] ^= U64(1 << 55)


def extra_entry(made: Executor) -> None:
    made.state.mmus[1, M_RECORDED] += U64(1)


def lost_reference(made: Executor) -> None:
    made.state.frames[leaf(made, PAGE).word >> 9, REFS] -= U64(1)


@dataclass(frozen=True)
class Break:
    rule: str
    how: Callable[[Executor], None]
    nested_ipa: int


BREAKS = [
    Break("A1", other_frame, PAGE),
    Break("A1W", writable, READ_ONLY),
    Break("A3", unrecorded, PAGE),
    Break("A5", larger_than_l1s, BLOCK),
    Break("A6", other_tag, PAGE),
    Break("A11", extra_entry, 0),
    Break("A15", lost_reference, 0),
]


@pytest.mark.parametrize("broken", BREAKS, ids=lambda b: b.rule)
def test_a_broken_rule_is_reported_alone_with_event_leaf_and_chain(broken: Break) -> None:
    made = prepared()
    assert looked(made) == {}
    broken.how(made)
    found = looked(made)
    assert set(found) == {broken.rule}
    lines = found[broken.rule].lines
    assert lines[0] == f"{broken.rule}: {dict(RULES.values())[broken.rule]}" == found[broken.rule].summary
    assert lines[1] == "  event  lab:12: dump here"
    assert found[broken.rule].event == made.position - 1
    if broken.nested_ipa:
        assert lines[2].startswith(
            f"  leaf   nested_mmu0 (VTTBR 0x0001000040100000) nested IPA {broken.nested_ipa:#x}, "
        )
        assert "descriptor 0x" in lines[3]
        assert [line.split()[0] for line in lines[4:]] == ["chain", "L1", "host"]
    elif broken.rule == "A15":
        assert re.fullmatch("  table  descriptors from word 0x[0-9a-f]+", lines[2])
    else:
        assert len(lines) == 2


def test_a_leaf_the_host_took_is_stale() -> None:
    made = prepared()
    split = "dontneed 0x41201000 4k"
    made.run(event_of(made, split))
    gone_from_host(made)
    found = looked(made)
    assert set(found) <= {"A1"}
    no_slot = prepared()
    no_memslot(no_slot)
    found = looked(no_slot)
    assert "A1" in found
    assert found["A1"].lines[-1] == "  host   no memslot holds it any more"


def test_lines_are_stable_text() -> None:
    made = prepared()
    other_frame(made)
    lines = looked(made)["A1"].lines
    assert lines == [
        "A1: a valid shadow leaf points to memory the host no longer maps there",
        "  event  lab:12: dump here",
        "  leaf   nested_mmu0 (VTTBR 0x0001000040100000) nested IPA 0x80201000, 4K, PA 0x1000802000",
        lines[3],
        "  chain  nested IPA 0x80201000, filled from canonical IPA 0x41201000",
        "  L1     guest stage 2 sends it to 0x41201000 now, level 3",
        "  host   user address 0x400001201000 maps PA 0x1000801000 (4K, writable)",
    ]
    assert looked(made)["A1"].lines == lines


def resurrected(design: str = "sweep") -> Executor:
    """A machine in which the leaf that a TLBI names is put back after it."""
    made = prepared(design)
    found = leaf(made, INVALIDATED)
    descriptor, holder = made.state.mem[found.word], found.word >> 9
    made.state.frames[holder, REFS] += U64(1)  # keeps the table, as a second leaf in it would
    made.run(made.position + 1)
    made.state.mem[found.word] = descriptor
    made.state.mmus[found.mmu, M_LEAVES] += U64(1)
    return made


def test_a_leaf_that_survives_its_tlbi_is_reported() -> None:
    found = looked(resurrected())
    assert set(found) == {"A7"}
    assert found["A7"].lines[1] == "  event  lab:13: tlbi 0 0x700000080200"
    assert "nested IPA 0x80200000, 4K" in found["A7"].lines[2]


@pytest.mark.parametrize(
    ("line", "survives"),
    [
        ("tlbi 0 0x700000080201", True),
        ("tlbi 1 0x80201", True),
        ("tlbi 7 0x80201", True),
        ("tlbi 2 0x400000080200", True),
        ("tlbi 3 0x400000080200", True),
        ("tlbi 4", True),
        ("tlbi 5", True),
        ("tlbi 6", False),
        ("tlbi 0 0x700000090000", False),
        ("tlbi 0 0x7f0000000", False),
        ("tlbi 2 0x4000f0000000", False),
    ],
)
def test_every_form_of_tlbi_is_judged_by_what_it_names(line: str, survives: bool) -> None:
    script = SCRIPT.replace("tlbi 0 0x700000080200", line)
    made = prepared("sweep", "tlbi", script)
    event = made.position
    found = looked(made, event)  # as if the TLBI had run and taken nothing
    assert ("A7" in found) is survives


def test_a_tlbi_of_another_vmid_spares_the_leaf() -> None:
    script = SCRIPT.replace("tlbi 0 0x700000080200", "s2 new 2\ntlbi 4")
    made = prepared("sweep", "tlbi", script)
    assert looked(made, made.position) == {}


def test_one_broken_rule_does_not_hide_another() -> None:
    made = prepared()
    for broken in BREAKS:
        broken.how(made)
    assert set(looked(made)) == {broken.rule for broken in BREAKS}
    made = prepared()
    larger_than_l1s(made)
    unrecorded(made)
    writable(made)
    assert set(looked(made)) == {"A1W", "A3", "A5"}


def test_a_stale_leaf_decides_before_an_incomplete_record() -> None:
    made, judge = prepared(), Judge()
    unrecorded(made)
    judge.look(made, made.position - 1)
    assert judge.worst is not None
    assert judge.worst.rule == "A3"
    writable(made)
    judge.look(made, made.position - 1)
    assert list(judge.found) == [NOT_COVERED, WRITABLE_LEAF]
    assert judge.worst.rule == "A1W"
    other_frame(made)
    judge.look(made, made.position - 1)
    assert judge.worst is judge.found[STALE_LEAF]


def test_the_first_violation_of_a_rule_is_kept() -> None:
    made, judge = prepared(), Judge()
    other_frame(made)
    judge.look(made, made.position - 1)
    first = judge.found[STALE_LEAF]
    made.run(made.position + 2)
    judge.look(made, made.position - 1)
    assert judge.found[STALE_LEAF] is first


@pytest.mark.parametrize("design", ["reverse_table", "spanning"])
def test_canary_a_leaf_that_survives_its_notifier_is_caught(design: str) -> None:
    made = prepared(design, "dontneed 0x41201000 4k")
    assert looked(made) == {}
    if design == "reverse_table":
        unrecorded(made)
    else:
        made.state.mmus[1, 12:14] = made.state.mmus[2, 12:14]  # the empty trees of another MMU
    assert set(looked(made)) == {"A3"}
    made.run(made.position + 1)
    found = looked(made)
    assert "A1" in found
    assert found["A1"].lines[1:2] == ["  event  lab:15: dontneed 0x41201000 4k"]
    assert "nested IPA 0x80201000, 4K" in found["A1"].lines[2]
    assert found["A1"].lines[-1] == "  host   user address 0x400001201000 maps nothing"


@pytest.mark.parametrize("design", ["sweep", "rbtree_2024", "spanning", "reverse_table"])
def test_judging_changes_nothing(design: str) -> None:
    case = next(case for case in conformance_cases() if case.name == "alias-in-block")
    made, judge = Executor(parse_scenario(case.script, "lab"), design, Machine(ipa_limit_bits=40)), Judge()

    def look(running: Executor) -> None:
        digest = image_digest(running.state)
        arrays = [array.copy() for array in running.state]
        judge.look(running, running.position - 1)
        assert image_digest(running.state) == digest
        assert all(np.array_equal(old, new) for old, new in zip(arrays, running.state, strict=True))

    made.run(after_event=look)
    assert (judge.worst is None) == (design != "rbtree_2024")


def test_leaves_that_differ_from_l1s_table_await_a_tlbi() -> None:
    script = SCRIPT.replace(
        "dump here", "dump here\nunmap 0x80203000 4k 3\nmap 0x80201000 0x41200000 4k 3 rw"
    )
    made, judge = prepared("sweep", "tlbi", script), Judge()
    judge.look(made, made.position - 1)
    assert (judge.worst, judge.awaiting_tlbi) == (None, 2)
    other_tag(made)
    found = looked(made)
    assert found["A6"].lines[5] == "  L1     guest stage 2 sends it to 0x41200000 now, level 3"
    silent = Judge(compose=False)
    silent.look(made, made.position - 1)
    assert silent.awaiting_tlbi == 0


def test_the_chain_says_that_l1_has_it_no_more() -> None:
    script = SCRIPT.replace("dump here", "dump here\nunmap 0x80201000 4k 3")
    made = prepared("sweep", "tlbi", script)
    other_tag(made)
    assert looked(made)["A6"].lines[5].startswith("  L1     guest stage 2 has it no more: ")


def test_the_chain_says_that_stage_2_is_off() -> None:
    script = SCRIPT.replace("dump here", "vm 0\ncodeat 0x40050000\ntouch r 0x41201000\ndump here")
    made = prepared("sweep", "tlbi", script)
    assert looked(made) == {}
    found = leaf(made, 0x4120_1000)
    made.state.mem[found.word] ^= U64(1 << 55)
    assert looked(made)["A6"].lines[5] == "  L1     stage 2 off: nested IPA is canonical IPA"


def test_judge_points() -> None:
    made = prepared(until="")
    kinds = made.scenario.events["kind"].tolist()
    assert judge_points(made, "never") == []
    assert judge_points(made, "always") == list(range(len(kinds)))
    assert judge_points(made, "dumps") == [kinds.index(DUMP), len(kinds) - 1]
    chosen = judge_points(made, "notifiers")
    assert {TLBI, DONTNEED} <= {kinds[event] for event in chosen}
    assert kinds.index(HOST_WRITE) not in chosen
    assert chosen[-1] == len(kinds) - 1
    assert len(set(chosen)) == len(chosen)


def test_judge_points_of_a_punch_and_of_nothing() -> None:
    made = prepared(until="", script="mem 64M\nstart base 0 0\nnop\npunch 0x41000000 4k\n")
    assert [made.scenario.events["kind"][event] for event in judge_points(made, "notifiers")] == [PUNCH]
    empty = prepared(until="", script="mem 64M\nstart base 0 0\n")
    assert judge_points(empty, "always") == judge_points(empty, "notifiers") == []


def test_an_event_of_no_script_is_written_out() -> None:
    made = prepared()
    other_tag(made)
    events = made.scenario.events.copy()
    events["line"] = 0
    object.__setattr__(made.scenario, "events", events)
    assert looked(made)["A6"].lines[1:3] == [f"  event  lab: event {made.position - 1}", "         dump here"]


@pytest.mark.parametrize(
    ("size", "text"), [(4096, "4K"), (2 << 20, "2M"), (1 << 30, "1G"), (3 << 20, "3M"), (17, "17")]
)
def test_sizes_are_written_in_their_largest_unit(size: int, text: str) -> None:
    assert size_text(size) == text
