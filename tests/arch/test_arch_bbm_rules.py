"""Changes in place: which need a break, by field, level of FEAT_BBM and regime."""

from __future__ import annotations

import pytest
from bbm_lab import NEW, OLD, Scene, scene
from hypothesis import given
from hypothesis import strategies as st

from shadowmmu.arch import bbm_rules as rules
from shadowmmu.arch.bbm_cleaning import barrier
from shadowmmu.errors import InputError

KINDS = ("stage 2", "EL1", "EL2")
CONTIGUOUS = 1 << 52
# Permissions, dirty bit modifier, what is left to software or hints; by kind.
BENIGN = {
    "stage 2": (6, 7, 51, 53, 54, 55, 56, 57, 58),
    "EL1": (6, 7, 50, 51, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62),
    "EL2": (6, 7, 50, 51, 54, 55, 56, 57, 58, 59, 60, 61, 62),
}


def rewrite(s: Scene, flipped: int) -> list[rules.Rule]:
    """The rules broken by changing these bits of the leaf in place."""
    value = s.leaf(OLD) ^ flipped
    return [each.rule for each in s.play(("write", (0, s.pa, value)))]


@given(st.sampled_from(KINDS), st.sampled_from((12, 14, 16)), st.integers(0, 2), st.data())
def test_permissions_and_software_bits_change_in_place(
    kind: str, page_shift: int, bbm: int, data: st.DataObject
) -> None:
    s = scene(kind, page_shift, data.draw(st.integers(2, 3)), bbm=bbm)
    bits = data.draw(st.sets(st.sampled_from(BENIGN[kind])))
    assert rewrite(s, sum(1 << bit for bit in bits)) == []


@pytest.mark.parametrize("bbm", [0, 1, 2])
@pytest.mark.parametrize("page_shift", [12, 14, 16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("bit", "rule"),
    [(36, rules.OUTPUT_ADDRESS), (47, rules.OUTPUT_ADDRESS), (2, rules.MEMORY_TYPE), (8, rules.SHAREABILITY)],
)
def test_address_type_and_shareability_never_do(
    kind: str, page_shift: int, bbm: int, bit: int, rule: rules.Rule
) -> None:
    assert rewrite(scene(kind, page_shift, 2, bbm=bbm), 1 << bit) == [rule]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bbm", [0, 1, 2])
def test_contiguous_bit_changes_in_place_with_bbml1(kind: str, bbm: int) -> None:
    assert rewrite(scene(kind, bbm=bbm), CONTIGUOUS) == ([rules.CONTIGUOUS] if bbm == 0 else [])


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_new_global_entry_of_a_regime_with_asids_needs_a_break(kind: str) -> None:
    non_global = 1 << 11
    s = scene(kind)
    has_asid = kind == "EL1"
    assert rewrite(s, non_global) == ([rules.GLOBAL] if has_asid else [])
    back = s.play(("write", (0, s.pa, s.leaf(OLD))))
    assert back == []


@pytest.mark.parametrize(("writable", "same"), [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize("kind", ["stage 2", "EL1"])
def test_read_only_pages_of_equal_contents_may_replace_each_other(
    kind: str, writable: bool, same: bool
) -> None:
    s = scene(kind)
    if not writable:
        s.play(("write", (0, s.pa, s.leaf(OLD) ^ 1 << 7)))
    s.checker.write(0, s.pa, s.leaf(NEW) ^ (0 if writable else 1 << 7), same_contents=same)
    assert (s.checker.violations == []) == (same and not writable)


def test_an_entry_that_no_tlb_may_hold_is_replaced_at_once() -> None:
    s = scene()
    s.play(("write", (0, s.pa, s.leaf(OLD) & ~(1 << 10))))  # without the access flag: as good as invalid
    assert s.checker.state(s.pa) == "unclean"
    fresh = scene()
    beside = fresh.pa + 8
    found = fresh.play(
        ("write", (0, beside, fresh.leaf(OLD) & ~(1 << 10))), ("write", (0, beside, fresh.leaf(NEW)))
    )
    assert found == []


@pytest.mark.parametrize(
    ("mair", "rule"),
    [(0xFFEE, None), (0xFF44, rules.MEMORY_TYPE), (0x04FF, rules.MEMORY_TYPE), (None, rules.MEMORY_TYPE)],
)
def test_stage_1_types_are_compared_by_what_mair_says(mair: int | None, rule: rules.Rule | None) -> None:
    tree = rules.a_tree(stage=1)
    tree.mair = mair
    first, second = 0x8000_0F03, 0x8000_0F07  # AttrIndx 0 and 1, inner shareable
    assert rules.needs_break(tree, 3, first, second) is rule


def test_device_memory_has_no_shareability_to_change() -> None:
    tree = rules.a_tree()
    device, normal = 0x8000_04C3, 0x8000_04FF
    assert rules.needs_break(tree, 3, device, device | 3 << 8) is None
    assert rules.needs_break(tree, 3, normal, normal | 3 << 8) is rules.SHAREABILITY
    tree.fwb = True
    forced = 0x8000_04E3  # MemAttr 0b1000: Device with FWB, Write-Through without
    assert rules.needs_break(tree, 3, forced, forced | 3 << 8) is None
    stage1 = rules.a_tree(stage=1)
    stage1.mair = 0x04
    assert rules.needs_break(stage1, 3, 0x8000_0403, 0x8000_0703) is None


def test_with_ds_the_bits_of_shareability_are_address() -> None:
    plain, wide = rules.a_tree(), rules.a_tree()
    wide.geometry = wide.geometry._replace(oa_bits=52, wide=rules.OA52_DS)
    page = 0x8000_04FF
    assert rules.needs_break(plain, 3, page, page | 1 << 8) is rules.SHAREABILITY
    assert rules.needs_break(wide, 3, page, page | 1 << 8) is rules.OUTPUT_ADDRESS


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(("hardware", "modifier"), [(True, True), (True, False), (False, True)])
def test_a_page_that_hardware_may_make_writable_is_not_read_only(
    stage: int, hardware: bool, modifier: bool
) -> None:
    tree = rules.a_tree(stage=stage)
    tree.hardware_dirty = hardware
    read_only = 1 << 7 if stage == 1 else 0
    page = 0x8000_047F | read_only | modifier << 51
    found = rules.needs_break(tree, 3, page, page + 0x1000, same_contents=True)
    assert found is (rules.OUTPUT_ADDRESS if hardware and modifier else None)


@given(st.integers(0, 3), st.integers(0, 2**63 - 1))
def test_what_is_not_valid_leads_nowhere(level: int, half: int) -> None:
    assert rules.shape(rules.a_tree(start_level=0, ia_bits=48), level, 2 * half) == (rules.NOTHING, 0)


POLICIES = {"NC": (4,), "WT": (1, 2, 3, 8, 9, 10, 11), "WB": (5, 6, 7, 12, 13, 14, 15)}
NORMAL = st.tuples(st.sampled_from(sorted(POLICIES)), st.integers(0, 6))


@given(st.tuples(NORMAL, NORMAL, NORMAL, NORMAL))
def test_allocation_hints_are_not_cacheability(halves: tuple[tuple[str, int], ...]) -> None:
    nibbles = [POLICIES[policy][hint % len(POLICIES[policy])] for policy, hint in halves]
    tree = rules.a_tree(stage=1)
    tree.mair = nibbles[0] << 12 | nibbles[1] << 8 | nibbles[2] << 4 | nibbles[3]
    policies = [policy for policy, _ in halves]
    same = rules.memory_type(tree, 0) == rules.memory_type(tree, 1 << 2)
    assert same == (policies[:2] == policies[2:])


def blocks(s: Scene, table: int, extra: int = 0, flaw: int = 0, at: int = 0) -> None:
    """Fill ``table`` with what the leaf of ``s`` does, one level lower; entry ``at`` with bits flipped."""
    size = s.span >> s.page_shift - 3
    kind = 3 if s.level == 2 else 1
    for number in range(1 << s.page_shift - 3):
        value = s.leaf(OLD) & ~3 | kind | number * size | extra
        s.checker.write(0, table + 8 * number, value ^ (flaw if number == at else 0))
    s.checker.dsb(0, "ishst")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bbm", [0, 1, 2])
@pytest.mark.parametrize("marked", [False, True])
def test_a_block_is_split_in_place_with_bbml2_or_the_nt_bit(kind: str, bbm: int, marked: bool) -> None:
    s = scene(kind, 12, 2, bbm=bbm, extra=0)
    no_translation = 1 << 16
    table = 0x900_0000
    if marked:
        s.play(("write", (0, s.pa, s.leaf(OLD) | no_translation)))
    blocks(s, table)
    found = s.play(("write", (0, s.pa, table | 3)))
    allowed = bbm == 2 or (bbm == 1 and marked)
    assert [each.rule for each in found] == ([] if allowed else [rules.BLOCK_SIZE])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("flaw", "rule"),
    [
        (1 << 38, rules.OUTPUT_ADDRESS),
        (1 << 2, rules.MEMORY_TYPE),
        (1 << 7, None),
        (CONTIGUOUS, None),
        (1, None),  # left invalid: a leaf fewer
    ],
)
@pytest.mark.parametrize("at", [0, 200, 511])
def test_a_split_in_place_may_change_nothing_else(
    kind: str, flaw: int, rule: rules.Rule | None, at: int
) -> None:
    s = scene(kind, 12, 2, bbm=2)
    blocks(s, 0x900_0000, flaw=flaw, at=at)
    found = s.play(("write", (0, s.pa, 0x900_0003)))
    assert [each.rule for each in found] == ([] if rule is None else [rule])


@pytest.mark.parametrize("flaw", [0, 1 << 38])
@pytest.mark.parametrize("at", [0, 511])
def test_a_split_over_two_levels_is_compared_leaf_by_leaf(flaw: int, at: int) -> None:
    s = scene("stage 2", 12, 1, bbm=2)
    blocks(s, 0x900_0000)
    for number in range(512):  # the second 2M as pages
        page = s.leaf(OLD) & ~3 | 3 | (1 << 21) + (number << 12)
        s.checker.write(0, 0x901_0000 + 8 * number, page ^ (flaw if number == at else 0))
    s.checker.write(0, 0x900_0008, 0x901_0003)
    s.checker.dsb(0, "ishst")
    found = s.play(("write", (0, s.pa, 0x900_0003)))
    assert [each.rule for each in found] == ([rules.OUTPUT_ADDRESS] if flaw else [])


@pytest.mark.parametrize("bbm", [0, 2])
def test_a_table_is_merged_into_a_block_the_same_way(bbm: int) -> None:
    s = scene("stage 2", 12, 2, bbm=2)
    blocks(s, 0x900_0000)
    s.play(("write", (0, s.pa, 0x900_0003)))
    s.checker.bbm = bbm
    assert s.checker.state(0x900_0000) == "valid"
    found = s.play(("write", (0, s.pa, s.leaf(OLD))))
    assert [each.rule for each in found] == ([] if bbm == 2 else [rules.BLOCK_SIZE])
    assert s.checker.state(0x900_0000) == "taken out"


def test_after_a_split_in_place_the_block_must_go_from_tlbs_too() -> None:
    s = scene("EL1", 12, 2, bbm=2)
    blocks(s, 0x900_0000)
    page = s.leaf(NEW) & ~3 | 3
    hint = 0b0111 << 44 | 9 << 48 | s.ia >> 12
    found = s.play(
        ("write", (0, s.pa, 0x900_0003)),
        ("write", (0, 0x900_0000, 0)),
        ("dsb", (0, "ish")),
        ("tlbi", (0, "VALE1IS", hint)),  # leaves at level 3: the block's entry at level 2 stays
        ("dsb", (0, "ish")),
        ("write", (0, 0x900_0000, page)),
    )
    assert [each.rule for each in found] == [rules.UNCLEAN]


@pytest.mark.parametrize("name", ["ish", "ISHST", "nshld", "osh", "sy", "st", "ld"])
def test_barriers_are_known_by_name(name: str) -> None:
    dsb = barrier(name)
    assert (dsb.loads, dsb.stores) == (not name.lower().endswith("st"), not name.endswith("ld"))


@pytest.mark.parametrize("name", ["", "syst", "isb", "ishish", "nshs", "full"])
def test_other_barriers_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="DSB"):
        barrier(name)


def test_every_rule_has_a_place_and_its_own_name() -> None:
    assert len({rule.name for rule in rules.RULES}) == len(rules.RULES)
    declared = {value for value in vars(rules).values() if isinstance(value, rules.Rule)}
    assert declared == set(rules.RULES)
