"""Every axis of a sweep changes what it is named for: small grids, end to end, judged."""

from __future__ import annotations

from typing import Any

import pytest
from sweep_lab import DESIGNS

from shadowmmu.compiled import INTERPRETED
from shadowmmu.lab.grid import sweep_points
from shadowmmu.lab.point import Row, run_point

SMALL: dict[str, list[Any]] = {
    "mmus": [1],
    "leaves": [60],
    "leaf": ["page"],
    "cluster": [4.0],
    "notifiers": [2],
    "ipa_bits": [40],
}


def along(axis: str, *values: Any, design: str = "sweep", **others: Any) -> list[Row]:
    """A row a value of the axis, each found without fault."""
    fixed = {name: [value] for name, value in others.items()}
    points = sweep_points("storm", [design], {**SMALL, **fixed, axis: list(values)}, "notifiers")
    rows = [run_point(point) for point in points]
    assert {row["verdict"] for row in rows} == {"safe"}
    return rows


def test_leaves_clusters_and_aliases() -> None:
    few, many = along("leaves", 30, 90)
    assert (few["peak_leaves"], many["peak_leaves"]) == (31, 91)
    single, long = along("cluster", 1.0, 64.0, design="maple_2025")
    assert single["reverse_map_bytes"] > long["reverse_map_bytes"]
    none, half = along("alias", 0.0, 0.5, design="spanning")
    assert none["unknown_entries"] < half["unknown_entries"]


def test_leaf_sizes_have_names_for_every_granule() -> None:
    page, block, mixed = along("leaf", "page", "block", "mixed", leaves=100)
    assert page["peak_leaves"] == block["peak_leaves"] == mixed["peak_leaves"] == 101
    assert [row["p_leaf"] for row in along("leaf", "4K", "2M")] == ["4K", "2M"]


@pytest.mark.parametrize(("granule", "chunk_bits"), [("4K", 30), ("16K", 25), ("64K", 29)])
def test_a_full_unmap_goes_by_the_largest_block_of_the_granule(granule: str, chunk_bits: int) -> None:
    bits = 40 if INTERPRETED else 44
    (row,) = along("granule", granule, ipa_bits=bits, notifiers=1)
    assert row["work_chunk"] == 1 << bits - chunk_bits
    assert row["refaults_caused"] == 61


@pytest.mark.parametrize("granule", ["4K", "16K", "64K"])
def test_every_ipa_limit_on_every_host(granule: str) -> None:
    rows = along("ipa_bits", 40, 44, 48, 52, design="reverse_table", granule=granule)
    assert {(row["refaults_caused"], row["refaults_avoidable"]) for row in rows} == {(2, 0)}


def test_as_many_shadow_mmus_as_asked() -> None:
    one, most = along("mmus", 1, 384, design="spanning", leaves=400, notifiers=1)
    assert (one["shadow_mmus"], most["shadow_mmus"]) == (2, 384)
    assert one["shadow_mmus_valid"] == 1
    assert most["shadow_mmus_valid"] == 384


def test_features_of_the_host() -> None:
    without, with_ranges = along("tlbirange", 0, 1)
    assert without["tlbi_range"] == 0 < with_ranges["tlbi_range"]
    without, with_fwb = along("fwb", 0, 1)
    assert without["cache_cleans"] > with_fwb["cache_cleans"] == 0


def test_notifiers_have_a_size_and_a_rate() -> None:
    page, two, more = along("size", 0, 2 * 4096, 16 * 4096, design="reverse_table", cluster=60.0)
    assert page["leaves_removed"] < two["leaves_removed"] < more["leaves_removed"]
    seldom, often = along("burst", 1, 4, notifiers=4)
    assert seldom["refaults_caused"] == 4 * often["refaults_caused"]


def test_the_rate_of_l1s_invalidations() -> None:
    assert [row["tlbis_trapped"] for row in along("moves", 0, 1, 5, notifiers=1)] == [0, 2, 10]


def test_the_mix_of_faults() -> None:
    all_read, half, none = along("writes", 0.0, 0.5, 1.0, refault=1.0)
    assert all_read["refaults_caused"] == half["refaults_caused"] == none["refaults_caused"]
    assert all_read["faults_shadow"] == none["faults_shadow"]
    quiet, busy = along("refault", 0.0, 1.0)
    assert quiet["refaults_caused"] == 0 < busy["refaults_caused"]
    none, fresh = along("recycles", 0, 2, notifiers=1)
    assert none["recycled"] == 0 < fresh["recycled"]


def test_precise_updates_spare_the_search_and_no_fault() -> None:
    axes = {"leaves": [80], "ipa_bits": [40], "rounds": [2], "precise_updates": [0, 1]}
    rows = [run_point(point) for point in sweep_points("live-migration", DESIGNS, axes, "always")]
    assert {row["verdict"] for row in rows} == {"safe"}
    held = {(row["design"], row["precise_updates"]): row["lock_held"] for row in rows}
    assert held["reverse_table", 1] * 10 < held["reverse_table", 0]
    assert held["sweep", 0] == held["sweep", 1] == held["reverse_table", 0]
    assert len({row["leaves_relaxed"] for row in rows}) == 1
