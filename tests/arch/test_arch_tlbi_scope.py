"""What each TLBI covers: regime, VMID, ASID, address, hint and domain, field by field."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from tlb_lab import REGIMES, SHIFT, Pe, Tlbi, tlbis

from shadowmmu.arch import tlbi_operations, tlbi_scope
from shadowmmu.arch.tlbi import BY_ALL, BY_IPA, BY_VA, NO_LEVEL
from shadowmmu.arch.tlbi_operations import INNER_SHAREABLE, OPERATIONS, OUTER_SHAREABLE, operation
from shadowmmu.arch.tlbi_scope import (
    ANY,
    BOTH,
    EL2,
    EL10,
    EL20,
    STAGE1,
    STAGE2,
    Scope,
    describe,
    issuer,
    scope_of,
    scope_reaches,
)
from shadowmmu.compiled import kernel

E2H, TGE, FB, FNXS = 1 << 34, 1 << 27, 1 << 9, 1 << 3
NEGATIVE_2_52 = (1 << 64) - (1 << 52)


@pytest.mark.parametrize(
    ("name", "hcr", "regime", "stages"),
    [
        ("VMALLE1", 0, EL10, STAGE1),
        ("VMALLE1", E2H, EL10, STAGE1),
        ("VMALLE1", TGE, EL10, STAGE1),
        ("VMALLE1", E2H | TGE, EL20, STAGE1),
        ("ASIDE1IS", E2H | TGE, EL20, STAGE1),
        ("RVAALE1OS", E2H | TGE, EL20, STAGE1),
        ("VMALLS12E1", E2H | TGE, EL10, BOTH),
        ("ALLE1", E2H | TGE, EL10, BOTH),
        ("IPAS2E1", E2H | TGE, EL10, STAGE2),
        ("RIPAS2LE1IS", 0, EL10, STAGE2),
        ("ALLE2", 0, EL2, STAGE1),
        ("ALLE2", E2H, EL20, STAGE1),
        ("VAE2", TGE, EL2, STAGE1),
        ("RVALE2IS", E2H, EL20, STAGE1),
    ],
)
def test_regime_and_stages(name: str, hcr: int, regime: int, stages: int) -> None:
    scope = scope_of(name, 1 << 46, issuer(hcr=hcr))
    assert (scope.regime, scope.stages) == (regime, stages)


def test_the_vmid_has_8_or_16_bits_and_the_other_regimes_have_none() -> None:
    vttbr = 0x1234 << 48 | 0x4000_0000
    assert scope_of("VMALLE1", 0, issuer(vttbr=vttbr)).vmid == 0x34
    assert scope_of("VMALLE1", 0, issuer(vttbr=vttbr, vtcr=1 << 19)).vmid == 0x1234
    assert scope_of("IPAS2E1", 0, issuer(vttbr=vttbr)).vmid == 0x34
    assert scope_of("ALLE1", 0, issuer(vttbr=vttbr)).vmid == ANY
    assert scope_of("VAE2", 0, issuer(vttbr=vttbr)).vmid == ANY
    assert scope_of("VAE1", 0, issuer(vttbr=vttbr, hcr=E2H | TGE)).vmid == ANY


def test_asids_and_what_is_global() -> None:
    operand = 0xABCD << 48
    assert scope_of("VAE1", operand)[5:7] == (0xABCD, True)
    assert scope_of("ASIDE1", operand)[5:7] == (0xABCD, False)
    assert scope_of("VAAE1", operand)[5:7] == (ANY, True)
    assert scope_of("VMALLE1", operand)[5:7] == (ANY, True)
    assert scope_of("VAE2", operand).asid == ANY
    assert scope_of("VAE2", operand, issuer(hcr=E2H)).asid == 0xABCD


def test_a_va_is_extended_from_bit_55() -> None:
    assert scope_of("VAE1", 0x0000_0800_0000_0001).start == 0xFF80_0000_0000_1000
    assert scope_of("VAE1", 0x0000_07FF_FFFF_FFFF).start == 0x007F_FFFF_FFFF_F000


def test_an_ipa_has_52_bits_where_addresses_have() -> None:
    assert scope_of("IPAS2E1", 0xF0_0000_0001).start == 0x1000
    assert scope_of("IPAS2E1", 0xF0_0000_0001, issuer(pa_bits=52)).start == 0xF_0000_0000_1000


@pytest.mark.parametrize(
    ("name", "base", "tg", "pe", "start"),
    [
        ("RVAE1", 0x40000, 1, issuer(), 0x4000_0000),
        ("RVAE1", 0x40000, 2, issuer(), 0x1_0000_0000),
        ("RVAE1", 0x40000, 3, issuer(), 0x4_0000_0000),
        ("RVAE1", 1 << 36, 1, issuer(), (1 << 64) - (1 << 48)),
        ("RVAE1", 1 << 36, 2, issuer(), (1 << 64) - (1 << 50)),
        ("RVAE1", 1 << 36, 3, issuer(), NEGATIVE_2_52),
        ("RVAE1", 1 << 36, 1, issuer(lpa2=True, tcr_el1=1 << 59), NEGATIVE_2_52),
        ("RVAE1", 1 << 36, 1, issuer(lpa2=False, tcr_el1=1 << 59), (1 << 64) - (1 << 48)),
        ("RVAE1", 1, 1, issuer(lpa2=True, tcr_el2=1 << 59), 0x1000),
        ("RVAE1", 1, 1, issuer(lpa2=True, tcr_el2=1 << 59, hcr=E2H | TGE), 0x1_0000),
        ("RVAE2", 1, 1, issuer(lpa2=True, tcr_el2=1 << 59, hcr=E2H), 0x1_0000),
        ("RVAE2", 1, 1, issuer(lpa2=True, tcr_el2=1 << 59), 0x1000),
        ("RVAE2", 1, 1, issuer(lpa2=True, tcr_el2=1 << 32), 0x1_0000),
        ("RIPAS2E1", 1, 2, issuer(lpa2=True, vtcr=1 << 32), 0x1_0000),
        ("RIPAS2E1", 1, 2, issuer(lpa2=True, tcr_el1=1 << 59), 0x4000),
        ("RIPAS2E1", 1 << 36, 1, issuer(), 1 << 48),
    ],
)
def test_where_a_range_begins(name: str, base: int, tg: int, pe: tlbi_scope.Issuer, start: int) -> None:
    assert scope_of(name, tg << 46 | base, pe).start == start


def test_the_longest_ranges() -> None:
    longest = 3 << 44 | 31 << 39
    for tg, page in ((1, 1 << 12), (2, 1 << 14), (3, 1 << 16)):
        assert scope_of("RIPAS2E1", tg << 46 | longest).size == 2_097_152 * page


def test_a_range_ends_at_the_top_of_the_address_space() -> None:
    last_pages = (1 << 37) - 3
    scope = scope_of("RVAE1", 1 << 46 | 31 << 39 | last_pages)
    assert (scope.start, scope.size) == ((1 << 64) - 0x3000, 0x3000)


@pytest.mark.parametrize("lpa2", [False, True])
def test_every_hint_of_a_single_address(lpa2: bool) -> None:
    for ttl in range(16):
        granule, level = Tlbi("VAE1", {"TTL": ttl}, Pe(lpa2=lpa2)).hint()
        expected = (SHIFT[granule], level) if granule else (0, NO_LEVEL)
        for name in ("VAE1", "VAALE1IS", "IPAS2E1", "VALE2"):
            scope = scope_of(name, ttl << 44, issuer(lpa2=lpa2))
            assert (scope.granule, scope.level) == expected


@pytest.mark.parametrize(
    ("tg", "ttl", "lpa2", "level"),
    [(1, 0, True, NO_LEVEL), (1, 1, False, 1), (2, 1, False, NO_LEVEL), (2, 1, True, 1), (3, 1, False, 1)]
    + [(tg, ttl, False, ttl) for tg in (1, 2, 3) for ttl in (2, 3)],
)
def test_hints_of_ranges(tg: int, ttl: int, lpa2: bool, level: int) -> None:
    assert scope_of("RVAE1", tg << 46 | ttl << 37, issuer(lpa2=lpa2)).level == level


@pytest.mark.parametrize(
    ("tg", "ttl", "lowest", "lpa2"),
    [
        (1, 1, 30, False),
        (1, 2, 21, False),
        (2, 2, 25, False),
        (3, 1, 42, False),
        (3, 2, 29, False),
        (2, 1, 36, True),
    ],
)
def test_a_base_must_suit_the_hint(tg: int, ttl: int, lowest: int, lpa2: bool) -> None:
    page = (0, 12, 14, 16)[tg]
    for bit in range(page, 49):
        scope = scope_of("RIPAS2E1", tg << 46 | ttl << 37 | 1 << (bit - page), issuer(lpa2=lpa2))
        assert scope.guaranteed == (bit >= lowest)


def test_every_base_suits_pages_and_no_hint() -> None:
    for tg in (1, 2, 3):
        assert scope_of("RVAE1", tg << 46 | 3 << 37 | 1).guaranteed
        assert scope_of("RVAE1", tg << 46 | 1).guaranteed
    assert not scope_of("RVAE1", 1).guaranteed


def test_what_el2_makes_of_the_tlbis_of_el1() -> None:
    forced = issuer(el=1, hcr=FB, hcrx=FNXS)
    assert scope_of("VMALLE1", 0, forced).domain == INNER_SHAREABLE
    assert scope_of("VMALLE1OS", 0, forced).domain == OUTER_SHAREABLE
    assert scope_of("VMALLE1", 0, forced).nxs
    own = forced._replace(el=2)
    assert scope_of("VMALLE1", 0, own)[11:13] == (0, False)
    assert scope_of("VMALLE1NXS", 0, own).nxs
    assert scope_of("VMALLE1", 0, issuer(el=1))[11:13] == (0, False)


@kernel
def _reaches(scope: Scope, same_pe: bool, same_inner: bool) -> bool:
    return scope_reaches(scope, same_pe, same_inner)


def test_which_pes_a_tlbi_reaches() -> None:
    places = [(True, True), (False, True), (False, False)]
    reached = {
        name: [bool(_reaches(scope_of(name), *place)) for place in places]
        for name in ("ALLE1", "ALLE1IS", "ALLE1OS")
    }
    assert reached == {
        "ALLE1": [True, False, False],
        "ALLE1IS": [True, True, False],
        "ALLE1OS": [True, True, True],
    }


@given(executed=tlbis())
def test_scope_says_what_the_fields_say(executed: Tlbi) -> None:
    """Against the naive reading of ``tlb_lab``."""
    scope, declared = executed.scope(), operation(executed.name)
    by_ipa, by_va = "IPAS2" in executed.name, "VA" in declared.family
    assert scope.by == (BY_IPA if by_ipa else BY_VA if by_va else BY_ALL)
    assert scope.last_only == declared.last
    assert scope.stages != STAGE2 or by_ipa
    if by_ipa or by_va:
        granule, level = executed.range_hint() if declared.ranged else executed.hint()
        assert scope.granule == SHIFT.get(granule, 0)
        if granule != "reserved":
            bounds = executed.range_bytes(by_ipa) if declared.ranged else (executed.page(by_ipa), 4096)
            assert (scope.start, scope.size) == bounds
            assert scope.level == (NO_LEVEL if level is None else level)
    assert (scope.vmid == executed.pe.vmid) == (
        REGIMES[scope.regime] == "EL1&0" and not executed.name.startswith("ALL")
    )


@pytest.mark.parametrize(
    ("name", "operand", "pe", "text"),
    [
        ("ALLE2OS", 0, issuer(), "EL2, stage 1, leaves and walk entries, outer shareable"),
        (
            "ASIDE1NXS",
            3 << 48,
            issuer(vttbr=2 << 48),
            "EL1&0, stage 1, ASID 3, non-global, VMID 2, leaves and walk entries, this PE, nXS",
        ),
        (
            "RVALE2",
            1 << 46 | 2 << 37 | 0x201,
            issuer(),
            "EL2, stage 1, VA 0x201000 +0x2000, leaves at level 2 of 4K, this PE, nothing guaranteed",
        ),
        (
            "VAAE1",
            7 << 44,
            issuer(),
            "EL1&0, stage 1, VA 0x0 +0x1000, VMID 0, leaves and walk entries down to level 3 of 4K, this PE",
        ),
        ("ALLE1", 0, issuer(), "EL1&0, stages 1 and 2, any VMID, leaves and walk entries, this PE"),
    ],
)
def test_a_scope_in_words(name: str, operand: int, pe: tlbi_scope.Issuer, text: str) -> None:
    assert describe(scope_of(name, operand, pe)) == text


def test_every_operation_can_be_described() -> None:
    assert len({describe(scope_of(each.name, 1 << 46)) for each in OPERATIONS}) > 80


@pytest.mark.parametrize("module", [tlbi_scope, tlbi_operations], ids=lambda module: module.__name__)
def test_examples_of_tlbi_modules(module: object) -> None:
    outcome = doctest.testmod(module)  # type: ignore[arg-type]
    assert outcome.attempted > 0
    assert outcome.failed == 0
