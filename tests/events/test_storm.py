"""Notifier storms: what is mapped where, exactly how much, and that a seed decides everything."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmmu.engine.executor import Executor
from shadowmmu.events import schema
from shadowmmu.events.population import BLOCK, PAGE, Sizes
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.events.schema import Scenario, same_events
from shadowmmu.events.script import write_script
from shadowmmu.events.storm import Rounds, storm
from shadowmmu.machine.counters import LEAVES_MAPPED

LEVEL_SIZE = {3: PAGE, 2: BLOCK}


def split(scenario: Scenario) -> list[list[tuple[int, ...]]]:
    """The rows (kind and operands) by SET_STAGE2: the setup first, then one list for each switch."""
    parts: list[list[tuple[int, ...]]] = [[]]
    for kind, _, _, *operands in scenario.events.tolist():
        if kind == schema.SET_STAGE2:
            parts.append([])
        parts[-1].append((kind, *operands))
    return parts


def tables_taken(maps: list[tuple[int, ...]]) -> int:
    """Table pages that L1 of the rig takes for one root, by replaying ``set_leaf`` page by page."""
    taken = {("root", 0)}
    for _, nested_ipa, _, size, level, *_ in maps:
        for at in range(nested_ipa, nested_ipa + size, LEVEL_SIZE[level]):
            taken.add(("level 2", at >> 30))
            if level == 3:
                taken.add(("level 3", at >> 21))
    return len(taken)


def leaves_of(maps: list[tuple[int, ...]]) -> list[tuple[int, int, int]]:
    """(first nested IPA, leaf size, leaves) of each mapping, sorted."""
    return sorted((r[1], LEVEL_SIZE[r[4]], r[3] // LEVEL_SIZE[r[4]]) for r in maps)


def touches(part: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """(VA, stride, count) of each touch, sorted."""
    return sorted(r[1:4] for r in part if r[0] == schema.TOUCH)


def check_ranges(ranges: list[tuple[int, int]], limit: int) -> None:
    """The ranges are disjoint and end at ``limit`` or below."""
    ranges = sorted(ranges)
    for (_, end), (start, _) in pairwise(ranges):
        assert end <= start
    assert ranges[-1][1] <= limit


ARGUMENTS = st.fixed_dictionaries(
    {
        "mmus": st.integers(1, 5),
        "leaves": st.integers(5, 3000),
        "leaf_sizes": st.sampled_from(
            [{PAGE: 0.98, BLOCK: 0.02}, {PAGE: 1}, {BLOCK: 1}, {PAGE: 1, BLOCK: 3}]
        ),
        "cluster": st.sampled_from([1, 2.5, 64, 1000]),
        "alias_rate": st.sampled_from([0.0, 0.3, 0.9]),
        "notifiers": st.integers(0, 3),
        "notifier_bytes": st.sampled_from([PAGE, 3 * PAGE, BLOCK, 64 << 20]),
        "refault": st.sampled_from(["all", 0, 0.3, 1.0]),
        "seed": st.integers(0, 2**32),
    }
)


@settings(max_examples=60, deadline=None)
@given(ARGUMENTS)
def test_what_a_storm_promises(given_arguments: dict[str, Any]) -> None:
    arguments = given_arguments
    scenario = storm(**arguments)
    mmus, end = arguments["mmus"], scenario.canonical_end
    assert scenario.vcpus == -(-mmus // 2)
    parts = split(scenario)
    mapped = [[row for row in part if row[0] == schema.MAP_GUEST] for part in parts[1 : mmus + 1]]
    counts, pool, canonical = [], 0x40100000, []
    for k, (part, maps) in enumerate(zip(parts[1:], mapped, strict=False)):
        assert part[0] == (schema.SET_STAGE2, 0, k + 1, schema.DEFAULT_VTCR, 0, 0, 0)
        assert maps[0][1:4] == (0x10000, 0x40050000, PAGE)
        for _, nested_ipa, canonical_ipa, size, level, *_ in maps:
            assert not (nested_ipa | canonical_ipa | size) % LEVEL_SIZE[level]
            canonical.append((canonical_ipa, canonical_ipa + size))
        check_ranges([(row[1], row[1] + row[3]) for row in maps], 1 << 39)
        counts.append(sum(row[3] // LEVEL_SIZE[row[4]] for row in maps[1:]))
        assert touches(part) == leaves_of(maps[1:])
        roots = [row for later in parts[mmus + 1 :] for row in later[:1] if row[2] == k + 1]
        assert all(row[1] == pool for row in roots)
        pool += PAGE * tables_taken(maps)
    assert sum(counts) == arguments["leaves"]
    assert max(counts) - min(counts) <= 1
    data = [pair for pair in canonical if pair[0] != 0x40050000]
    assert min(start for start, _ in data) >= 0x41000000 + pool - 0x40100000
    assert max(stop for _, stop in data) <= end
    if not arguments["alias_rate"]:
        check_ranges(data, end)
    check_host(scenario, data, arguments)


def check_host(scenario: Scenario, data: list[tuple[int, int]], arguments: dict[str, Any]) -> None:
    """All data is written first; each notifier hits it and is written again."""
    rows = [(row[0], *row[3:6]) for row in scenario.events.tolist()]
    first_map = next(i for i, row in enumerate(rows) if row[0] == schema.MAP_GUEST)
    written = [row[1:3] for row in rows[:first_map] if row[0] == schema.HOST_WRITE]
    for start, stop in data:
        assert any(at <= start and stop <= at + size for at, size in written)
    dropped = [i for i, row in enumerate(rows) if row[0] == schema.DONTNEED]
    assert len(dropped) == arguments["notifiers"]
    for i in dropped:
        at, size = rows[i][1:3]
        assert rows[i + 1] == (schema.HOST_WRITE, *rows[i][1:])
        assert any(start < at + size and at < stop for start, stop in data)
        assert size <= arguments["notifier_bytes"]


def test_touches_cover_exactly_the_leaves() -> None:
    scenario = storm(mmus=3, leaves=999, cluster=8, notifiers=2, seed=5)
    parts = split(scenario)
    assert len(parts) == 1 + 3 + 2 * 3
    for k in range(3):
        want = leaves_of([r for r in parts[1 + k] if r[0] == schema.MAP_GUEST][1:])
        for part in (parts[1 + k], parts[4 + k], parts[7 + k]):
            assert touches(part) == want
            assert all(r[4:6] == (schema.WRITE, 0x10000) for r in part if r[0] == schema.TOUCH)


def test_runs_have_gaps_and_another_order_in_nested_than_in_canonical_space() -> None:
    scenario = storm(mmus=2, leaves=4000, leaf_sizes={PAGE: 1}, cluster=4, notifiers=0)
    orders = []
    for part in split(scenario)[1:]:
        maps = sorted(row for row in part if row[0] == schema.MAP_GUEST)[1:]
        nested_gaps = [(b[1] - a[1] - a[3]) // PAGE for a, b in pairwise(maps)]
        maps.sort(key=lambda row: row[2])
        canonical_gaps = [(b[2] - a[2] - a[3]) // PAGE for a, b in pairwise(maps)]
        for gaps in (nested_gaps, canonical_gaps):
            assert set(gaps) == set(range(1, 9))
        nested = [row[1] for row in maps]
        rising = sum(a < b for a, b in pairwise(nested)) / len(nested)
        assert 0.4 < rising < 0.6
        orders.append(nested)
    assert orders[0] != orders[1][: len(orders[0])]


def test_notifiers_hit_every_leaf_alike() -> None:
    scenario = storm(mmus=1, leaves=4, leaf_sizes={PAGE: 1}, cluster=1, notifiers=400, refault=0)
    events = scenario.events
    mapped = sorted(events["b"][events["kind"] == schema.MAP_GUEST].tolist())[1:]
    places, hits = np.unique(events["a"][events["kind"] == schema.DONTNEED], return_counts=True)
    assert places.tolist() == mapped
    assert hits.min() > 60


def test_huge_leaves_lie_over_an_advised_area() -> None:
    scenario = storm(mmus=2, leaves=200, leaf_sizes={PAGE: 1, BLOCK: 1}, notifiers=0)
    rows = [(row[0], *row[3:]) for row in scenario.events.tolist()]
    (advised,) = [row for row in rows if row[0] == schema.HUGEPAGE]
    assert rows.index(advised) < rows.index((schema.HOST_WRITE, *advised[1:]))
    for row in rows:
        if row[0] == schema.MAP_GUEST:
            inside = advised[1] <= row[2] and row[2] + row[3] <= advised[1] + advised[2]
            assert inside == (row[4] == 2)


def test_the_seed_decides_everything() -> None:
    one, again, other = (storm(leaves=5000, alias_rate=0.2, refault=0.5, seed=s) for s in (3, 3, 4))
    assert (one.events == again.events).all()
    assert len(one.events) != len(other.events) or (one.events != other.events).any()


def test_cluster_is_the_mean_run_and_aliases_are_as_many_as_asked() -> None:
    scenario = storm(mmus=1, leaves=200_000, leaf_sizes={PAGE: 1}, cluster=20, alias_rate=0.25, notifiers=0)
    maps = scenario.events[scenario.events["kind"] == schema.MAP_GUEST][1:]
    assert 19 < (maps["c"] / PAGE).mean() < 21
    pages = np.concatenate([np.arange(r["b"], r["b"] + r["c"], PAGE) for r in maps])
    assert 0.15 < 1 - len(np.unique(pages)) / len(pages) < 0.25  # a longer alias reaches into a gap
    starts = len(np.unique(maps["b"])) / len(maps)
    assert 0.73 < starts < 0.77
    nested = np.concatenate([np.arange(r["a"], r["a"] + r["c"], PAGE) for r in maps])
    assert len(np.unique(nested)) == 200_000


def test_a_storm_is_a_script_of_the_language() -> None:
    scenario = storm(mmus=3, leaves=500, cluster=4, alias_rate=0.3, notifier_bytes=BLOCK)
    assert same_events(scenario, parse_scenario(write_script(scenario), "again"))


def test_a_large_storm_widens_the_canonical_space() -> None:
    scenario = storm(mmus=4, leaves=900_000, leaf_sizes={BLOCK: 1}, notifiers=0)
    assert scenario.vm_ipa_bits == scenario.canonical_end.bit_length() > 40


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"mmus": 0}, "mmus"),
        ({"mmus": 1025}, "mmus"),
        ({"mmus": 4, "leaves": 3}, "leaves"),
        ({"leaf_sizes": {}}, "leaf_sizes"),
        ({"leaf_sizes": {8192: 1.0}}, "leaf_sizes"),
        ({"leaf_sizes": {PAGE: -1.0, BLOCK: 3.0}}, "leaf_sizes"),
        ({"leaf_sizes": {PAGE: float("nan")}}, "leaf_sizes"),
        ({"cluster": 0.5}, "cluster"),
        ({"cluster": float("nan")}, "cluster"),
        ({"alias_rate": 1.0}, "alias_rate"),
        ({"notifiers": -1}, "notifiers"),
        ({"notifier_bytes": 100}, "notifier_bytes"),
        ({"refault": "some"}, "refault"),
        ({"refault": 1.5}, "refault"),
        ({"mmus": 1, "leaves": 300_000, "leaf_sizes": {BLOCK: 1}}, "39 bits"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        storm(**arguments)


@pytest.mark.parametrize(
    ("granule", "page", "block"), [("16K", 1 << 14, 32 << 20), ("64K", 1 << 16, 512 << 20)]
)
def test_a_storm_of_larger_pages(granule: str, page: int, block: int) -> None:
    sizes = {page: 0.99, block: 0.01}
    scenario = storm(mmus=2, leaves=400, leaf_sizes=sizes, cluster=4, notifiers=1, granule=granule)
    assert scenario.granule == granule
    assert same_events(scenario, parse_scenario(write_script(scenario), "again"))
    events = scenario.events
    maps = [row for row in events if row["kind"] == schema.MAP_GUEST and row["a"] != 0x10000]
    assert {
        (int(row["d"]), int(row["a"] | row["b"] | row["c"]) % {3: page, 2: block}[int(row["d"])])
        for row in maps
    } == {
        (3, 0),
        (2, 0),
    }
    assert sum(int(row["c"]) // {3: page, 2: block}[int(row["d"])] for row in maps) == 400
    (dontneed,) = [row for row in events if row["kind"] == schema.DONTNEED]
    assert int(dontneed["b"]) == page
    assert not int(dontneed["a"]) % page
    controls = {int(row["c"]) for row in events if row["kind"] == schema.SET_STAGE2}
    assert controls == {schema.DEFAULT_VTCRS[granule]}


def test_without_sizes_blocks_have_the_same_share_of_bytes_at_every_granule() -> None:
    shares = []
    for granule in ("4K", "16K", "64K"):
        sizes = Sizes.of(granule)
        weights = sizes.shares()
        shares.append(weights[sizes.block] * sizes.block / (weights[sizes.page] * sizes.page))
    assert max(shares) / min(shares) < 1.03


def test_a_granule_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="granule '8K': choose one of 4K, 16K, 64K"):
        storm(granule="8K")
    with pytest.raises(ValueError, match="36 bits"):
        storm(mmus=1, leaves=3000, leaf_sizes={32 << 20: 1}, granule="16K")


@pytest.mark.parametrize("used", [1, 8, 512])
def test_of_a_block_as_many_pages_are_touched_as_l2_uses(used: int) -> None:
    made = storm(mmus=1, leaves=40, leaf_sizes={PAGE: 1, BLOCK: 1}, notifiers=1, rounds=Rounds(used=used))
    _, *switches = split(made)
    for part in switches:
        blocks = [row for row in touches(part) if row[1] * used == BLOCK]
        pages = [row for row in touches(part) if row[1] == PAGE and row not in blocks]
        assert sum(count for _, _, count in blocks) + sum(count for *_, count in pages) == 20 * used + 20


@pytest.mark.parametrize("used", [0, 3, 1024])
def test_a_use_that_no_block_has_is_refused(used: int) -> None:
    with pytest.raises(ValueError, match=f"used is {used}, expected a power of two up to 512"):
        storm(mmus=1, leaves=4, rounds=Rounds(used=used))


def test_a_used_block_comes_back_page_by_page_once_it_is_split() -> None:
    """The notifier for 4K splits it; with two pages used two faults repair it, not one."""
    faults = {}
    for used in (1, 2):
        made = storm(mmus=1, leaves=2, leaf_sizes={BLOCK: 1}, notifiers=1, rounds=Rounds(used=used))
        executor = Executor(made, "reverse_table")
        executor.run()
        faults[used] = int(executor.state.count[LEAVES_MAPPED])
    assert faults[2] - faults[1] == 1
