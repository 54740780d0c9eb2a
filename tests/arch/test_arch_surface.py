"""The friendly surface, the page about it, and walks that leave a track."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_machines import filled
from translation_lab import DATA, END, MEM, PAGE1, ROOT2, VA, Machine, el10, nested

from shadowmmu.arch import operation
from shadowmmu.arch.context import context
from shadowmmu.arch.surface import Prediction, Reading, decode, predict, walk
from shadowmmu.compiled import U64
from shadowmmu.errors import InputError

PAGE = Path(__file__).parents[2] / "docs" / "arch.md"


def test_every_example_of_the_page() -> None:
    outcome = doctest.testfile(str(PAGE), module_relative=False)
    assert outcome.attempted > 20
    assert outcome.failed == 0


def shown(machine: Machine, name: str, va: int) -> tuple[Prediction, tuple[Reading, ...]]:
    """A prediction and a track of the same question."""
    for pa, word in machine.words.items():
        MEM[pa // 8] = word
    row = context(**machine.registers)
    answer = (
        predict(MEM, row, name, va, machine.implementation),
        walk(MEM, row, name, va, machine.implementation),
    )
    for pa in machine.words:
        MEM[pa // 8] = U64(0)
    return answer


@given(seed=st.integers(0, 2**40))
def test_a_track_ends_where_the_translation_ends(seed: int) -> None:
    machine, asked = filled(seed, 6)
    for name, va in asked:
        if name.startswith("atomic"):
            continue
        prediction, track = shown(machine, name, va)
        one = machine.ask(name, va)
        assert (prediction.par, prediction.esr, prediction.pa, prediction.hpfar) == (
            one.par,
            one.esr,
            one.pa,
            one.hpfar,
        )
        for reading in track:
            stored = machine.words.get(reading.pa, 0)
            assert reading.descriptor.word in (stored, int.from_bytes(stored.to_bytes(8, "little"), "big"))
        kinds = [reading.descriptor.kind for reading in track]
        if prediction.fault is None and track:
            last = track[-1].descriptor
            assert last.kind in ("block", "page")
            assert kinds.count("invalid") == 0
        if one.fault.startswith(("translation", "s2 translation", "s2 ptw translation")) and track:
            assert track[-1].descriptor.level in (one.level, 3) or one.level == 0


def test_a_nested_walk_reads_each_stage_1_descriptor_after_stage_2() -> None:
    _, track = shown(nested(), "AT S12E1R", VA)
    stages = "".join(str(reading.descriptor.stage) for reading in track)
    assert stages == "21" * 4 + "222"  # the tables' own gigabyte is one block
    assert track[-1].input >> 12 == 0x4012_3
    assert [reading.descriptor.level for reading in track if reading.descriptor.stage == 1] == [0, 1, 2, 3]
    assert {reading.input for reading in track if reading.descriptor.stage == 1} == {VA}


def test_a_track_stops_where_no_memory_answers() -> None:
    machine = nested()
    machine.words[ROOT2] = END | 3
    prediction, track = shown(machine, "load at EL1", VA)
    assert str(prediction.fault) == "synchronous external abort on a table walk fault, level 2 (FSC 0x16)"
    assert [reading.pa for reading in track] == [ROOT2]


def test_stage_1_alone_and_no_stage_at_all() -> None:
    _, track = shown(el10(), "load at EL1", VA)
    assert [str(reading).split(":")[0].split(" at ")[0] for reading in track] == [
        f"stage 1 level {level}" for level in range(4)
    ]
    assert shown(Machine({}), "load at EL1", VA)[1] == ()
    assert shown(el10(), "load at EL1", 1 << 60)[1] == ()


@pytest.mark.parametrize(
    ("name", "machine", "text"),
    [
        ("AT S1E1R", el10(), f"PA {DATA | VA & 0xFFF:#x}, Normal Write-Back, inner shareable"),
        ("load at EL1", el10(), f"PA {DATA | VA & 0xFFF:#x}"),
        ("AT S1E0R", el10(), "stage 1: permission fault, level 3 (FSC 0x0f)"),
        ("AT S1E1R", nested(tables2=0), "stage 2, on a stage-1 walk: translation fault, level 1 (FSC 0x05)"),
        ("AT S1E1R", el10(MAIR_EL1=0xEE), f"PA {DATA | VA & 0xFFF:#x}, attribute 0xee, inner shareable"),
    ],
)  # fmt: skip
def test_predictions_read_like_the_manual(name: str, machine: Machine, text: str) -> None:
    assert str(shown(machine, name, VA)[0]) == text


def test_par_explained() -> None:
    prediction, _ = shown(el10(), "AT S1E1R", VA)
    assert prediction.explain_par() == "ATTR=0xff PA=0x500000 RES1=0x1 NS=0x1 SH=0x3 (inner)"
    failed, _ = shown(el10(0), "AT S1E1R", VA)
    assert (failed.memory, failed.explain_par()) == ("", "RES1=0x1 FST=0x7 F=0x1")


@pytest.mark.parametrize(
    ("word", "stage", "level", "kind"),
    [(0, 1, 0, "invalid"), (3, 1, 0, "table"), (3, 2, 3, "page"), (1, 2, 2, "block"), (1, 1, 3, "invalid"),
     (2, 2, 3, "invalid"), (3, 1, -1, "table")],
)  # fmt: skip
def test_kinds_of_descriptors(word: int, stage: int, level: int, kind: str) -> None:
    found = decode(word, stage, level)
    assert found.kind == kind
    assert str(found).startswith(kind)
    assert decode(PAGE1, 1, 3).fields["AF"] == 1


@pytest.mark.parametrize(
    ("word", "stage", "level"), [(0, 0, 0), (0, 3, 0), (0, 1, 4), (0, 2, -2), (1 << 64, 1, 0)]
)
def test_a_descriptor_that_cannot_be(word: int, stage: int, level: int) -> None:
    with pytest.raises(InputError, match="expected 64 bits"):
        decode(word, stage, level)


def test_an_operation_that_is_none() -> None:
    with pytest.raises(InputError, match=r"AT S1E9R.*expected one of AT S1E1R"):
        predict(MEM, context(), "AT S1E9R", 0)


def test_a_register_that_is_none() -> None:
    with pytest.raises(KeyError, match="TTBR9_EL1"):
        context(TTBR9_EL1=0)


def test_operations_have_names() -> None:
    assert len(set(operation.NAMES)) == len(operation.NAMES) == 25
