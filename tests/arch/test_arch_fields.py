"""Declarations: what a layout refuses, and that every declared word is sound."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmmu.arch import context, fields, registers, stage1, stage2, tlbi
from shadowmmu.arch.fields import Field, Layout
from shadowmmu.arch.registers import ESR_EL2, HPFAR_EL2, TLBI_RIPAS2, VTCR_EL2, VTTBR_EL2
from shadowmmu.arch.stage2 import STAGE2_LEAF, STAGE2_TABLE
from shadowmmu.compiled import INTERPRETED

LAYOUTS = [
    value
    for module in (context, registers, stage1, stage2)
    for value in vars(module).values()
    if isinstance(value, Layout)
]
NAMED = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)


def test_layouts_of_every_module_are_found() -> None:
    names = {layout.name for layout in LAYOUTS}
    assert {"features", "TCR_EL1", "PAR_EL1", "stage-1 table", "stage-2 table"} <= names
    assert len(names) == len(LAYOUTS)


@NAMED
def test_declared_fields_are_inside_the_word_and_disjoint(layout: Layout) -> None:
    claimed = 0
    for f in layout:
        assert f.width > 0, f.name
        assert 0 <= f.lsb <= 64 - f.width, f.name
        assert claimed & f.mask == 0, f.name
        claimed |= f.mask


@NAMED
def test_every_declaration_says_where_it_is_from_and_what_it_means(layout: Layout) -> None:
    assert layout.source.startswith("Arm ARM ")
    for f in layout:
        assert len(f.meaning) > 3, f.name
        assert all(0 <= value < 1 << f.width and text for value, text in f.values.items()), f.name


@NAMED
def test_constants_of_a_field_agree(layout: Layout) -> None:
    for f in layout:
        assert layout.mask(f.name) == layout.low_mask(f.name) << layout.lsb(f.name) == f.mask
        assert layout[f.name] is f


@NAMED
@given(data=st.data())
def test_decoding_undoes_encoding(layout: Layout, data: st.DataObject) -> None:
    values = {f.name: data.draw(st.integers(0, (1 << f.width) - 1), f.name) for f in layout}
    assert layout.decode(layout.encode(**values)) == values


@NAMED
@given(word=st.integers(0, (1 << 64) - 1))
def test_encoding_undoes_decoding_but_for_reserved_bits(layout: Layout, word: int) -> None:
    declared = sum(f.mask for f in layout)
    assert layout.encode(**layout.decode(word)) == word & declared


def test_decode_lists_the_highest_bits_first() -> None:
    assert list(VTTBR_EL2.decode(0)) == ["VMID", "BADDR", "CnP"]


@pytest.mark.parametrize("value", [-1, 4])
def test_a_value_that_does_not_fit_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=r"TG0: .* does not fit 2 bits"):
        VTCR_EL2.encode(TG0=value)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(KeyError):
        VTCR_EL2.encode(TG1=0)


@pytest.mark.parametrize(
    "second",
    [
        Field("B", 3, 1, "overlaps the end"),
        Field("B", 0, 64, "covers A"),
        Field("B", 60, 5, "leaves the word"),
    ],
)
def test_a_layout_refuses_fields_that_collide(second: Field) -> None:
    with pytest.raises(ValueError, match=r"X\.B overlaps another field or leaves the word"):
        Layout("X", "none", Field("A", 0, 4, "first"), second)


def test_a_layout_refuses_two_fields_of_one_name() -> None:
    with pytest.raises(ValueError, match=r"X\.A is declared twice"):
        Layout("X", "none", Field("A", 0, 4, "first"), Field("A", 4, 4, "second"))


@pytest.mark.parametrize(
    ("layout", "word", "text"),
    [
        (STAGE2_LEAF, 0, "0"),
        (
            STAGE2_LEAF,
            0x0040_0000_8000_0740,
            "XN=0x2 (EL0 and EL1) OA=0x80000000 AF=0x1 SH=0x3 (inner) S2AP_R=0x1",
        ),
        (STAGE2_TABLE, 0x4010_3003, "NLTA=0x40103000 TABLE=0x1 VALID=0x1"),
        (ESR_EL2, 0x8200_000F, "EC=0x20 (instruction abort) IL=0x1 FSC=0xf"),
        (HPFAR_EL2, 0x8000_0000_0090_0000, "NS=0x1 FIPA=0x90000"),
        (TLBI_RIPAS2, 0x7F80_0004_0000, "TG=0x1 (4K) SCALE=0x3 NUM=0x1f BaseADDR=0x40000"),
    ],
)
def test_describe_names_what_is_set(layout: Layout, word: int, text: str) -> None:
    assert layout.describe(word) == text


@pytest.mark.skipif(
    not INTERPRETED, reason="the examples show NumPy scalars, which compiled code does not return"
)
@pytest.mark.parametrize("module", [fields, tlbi], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: object) -> None:
    outcome = doctest.testmod(module)  # type: ignore[arg-type]
    assert outcome.attempted > 0
    assert outcome.failed == 0
