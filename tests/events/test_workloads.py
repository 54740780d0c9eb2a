"""Named workloads: deterministic, as large as asked, and what each one's name says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowmmu.compiled import INTERPRETED
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.errors import InputError
from shadowmmu.events import schema
from shadowmmu.events.population import BLOCK, MOST_MMUS, PAGE
from shadowmmu.events.schema import Scenario, same_events
from shadowmmu.events.storm import Rounds, storm
from shadowmmu.events.workloads import WORKLOADS, named_workload, read_workload
from shadowmmu.machine.counters import FAULTS_INJECTED, LEAVES_MAPPED, MMIO_EXITS, RECYCLED, TLBIS_TRAPPED
from shadowmmu.machine.granule import page_bytes
from shadowmmu.verify.judge import Judge

LEAVES = 120 if INTERPRETED else 500


def made(name: str, **values: Any) -> Scenario:
    return named_workload(name).scenario({"leaves": LEAVES, **values}, 1)


def ran(scenario: Scenario, design: str = "reverse_table") -> Executor:
    executor = Executor(scenario, design, Machine(ipa_limit_bits=40))
    executor.run()
    return executor


def rows(scenario: Scenario, kind: int) -> Any:
    return scenario.events[scenario.events["kind"] == kind]


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_seed_decides_a_workload(name: str) -> None:
    workload = WORKLOADS[name]
    one, again, other = (workload.scenario({"leaves": LEAVES}, seed) for seed in (3, 3, 4))
    assert same_events(one, again)
    assert not same_events(one, other)


@pytest.mark.parametrize("name", WORKLOADS)
def test_l2_and_l1_find_everything_mapped(name: str) -> None:
    executor = ran(made(name))
    assert executor.state.count[FAULTS_INJECTED] == 0
    assert executor.state.count[MMIO_EXITS] == 0


@pytest.mark.parametrize("granule", ["16K", "64K"])
@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "l2-boot"])
def test_a_workload_at_another_granule(name: str, granule: str) -> None:
    scenario = named_workload(name).scenario({"leaves": LEAVES, "mmus": 2}, 1, granule)
    assert scenario.granule == granule
    executor = Executor(scenario, "reverse_table", Machine(ipa_limit_bits=40, granule=granule, frames=512))
    executor.run()
    assert executor.state.count[FAULTS_INJECTED] == 0
    assert executor.state.count[MMIO_EXITS] == 0
    assert executor.state.count[LEAVES_MAPPED] > LEAVES
    page = page_bytes(granule)
    for kind in (schema.DONTNEED, schema.PUNCH, schema.COLLAPSE):
        assert not (rows(scenario, kind)["a"] % page).any()
        assert not (rows(scenario, kind)["b"] % page).any()


def test_the_shape_of_a_recorded_boot_is_of_its_granule() -> None:
    with pytest.raises(InputError, match="granule is 16K, expected 4K, as recorded"):
        named_workload("l2-boot").scenario({}, 1, "16K")


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_leaf_asked_for_is_mapped_once(name: str) -> None:
    scenario = made(name)
    switched = np.flatnonzero(scenario.events["kind"] == schema.SET_STAGE2)
    mapped: dict[tuple[int, int], int] = {}
    for row in scenario.events.tolist():
        if row[0] == schema.SET_STAGE2:
            vmid = row[4]
        elif row[0] == schema.MAP_GUEST and row[3] != schema.CODE_NESTED:
            size = PAGE if row[6] == 3 else BLOCK
            for at in range(row[3], row[3] + row[5], size):
                mapped[vmid, at] = size
    assert len(switched)
    assert len(mapped) == LEAVES


def test_numa_balancing_takes_windows_and_then_single_pages() -> None:
    scenario = made("numa-balancing", rounds=2, migrations=3, window=BLOCK)
    sizes = rows(scenario, schema.PUNCH)["b"].tolist()
    windows = [size for size in sizes if size == BLOCK]
    assert sizes.count(PAGE) == 3 * len(windows)
    assert len(windows) % 2 == 0


def test_ksm_notifies_twice_for_each_page() -> None:
    punched = rows(made("ksm", rounds=3, merged=5), schema.PUNCH)
    assert len(punched) == 2 * 3 * 5
    assert (punched["a"][::2] == punched["a"][1::2]).all()
    assert set(punched["b"]) == {PAGE}


def test_a_balloon_drops_page_by_page_what_l1_has_unmapped_and_invalidated() -> None:
    scenario = made("balloon", rounds=1, share=0.5, free=7, cluster=4.0)
    dropped = rows(scenario, schema.DONTNEED)
    assert set(dropped["b"]) == {PAGE}
    unmapped = int(rows(scenario, schema.UNMAP_GUEST)["b"].sum()) // PAGE
    assert len(rows(scenario, schema.TLBI)) == unmapped
    assert len(dropped) == unmapped + 7
    assert ran(scenario).state.count[TLBIS_TRAPPED] == unmapped


def test_live_migration_harvests_every_round() -> None:
    scenario = made("live-migration", rounds=3)
    assert rows(scenario, schema.LOG)["a"].tolist() == [1, 0]
    assert len(rows(scenario, schema.GETLOG)) == 3


@pytest.mark.parametrize(
    ("log", "capability", "harvests"),
    [
        ("get", [], {schema.GETLOG: 3}),
        ("clear", [(1, 1)], {schema.GETLOG: 3, schema.CLEARLOG: 3}),
        ("ring", [(2, 4096)], {schema.HARVEST: 3}),
    ],
)
@pytest.mark.parametrize("split", [0, PAGE])
def test_live_migration_logs_as_it_is_told(
    log: str, capability: list[tuple[int, int]], harvests: dict[int, int], split: int
) -> None:
    scenario = made("live-migration", rounds=3, log=log, split=split, leaf="block", used=4)
    given = rows(scenario, schema.CAPABILITY)
    eager = [(0, split)] if split else []
    assert list(zip(given["a"].tolist(), given["b"].tolist(), strict=True)) == eager + capability
    kinds = (schema.GETLOG, schema.CLEARLOG, schema.HARVEST)
    assert {kind: len(rows(scenario, kind)) for kind in kinds if len(rows(scenario, kind))} == harvests


@pytest.mark.parametrize("log", ["get", "clear", "ring"])
def test_a_block_is_split_by_the_log_and_what_is_written_is_a_page_each(log: str) -> None:
    scenario = made(
        "live-migration", leaves=4, mmus=1, rounds=2, active=1.0, writes=1.0, leaf="block", log=log, used=2
    )
    judge = Judge()
    executor = Executor(scenario, "reverse_table", Machine(ipa_limit_bits=40))
    executor.run(after_event=lambda run: judge.look(run, run.position - 1))
    assert judge.found == {}
    assert executor.state.count[LEAVES_MAPPED] >= 4 + 4 * 2


def test_rounds_that_converge_get_shorter_and_end() -> None:
    scenario = made("live-migration", rounds=50, converge=1, leaves=4000)
    kinds = scenario.events["kind"].tolist()
    ends = [at for at, kind in enumerate(kinds) if kind == schema.GETLOG]
    touched = [
        kinds[start:end].count(schema.TOUCH) for start, end in pairwise([kinds.index(schema.LOG), *ends])
    ]
    assert touched == sorted(touched, reverse=True)
    assert len(touched) == 4, "a quarter a round, until less than a hundredth is left"


@pytest.mark.parametrize("wrong", [{"log": "tape"}, {"split": 5000}, {"used": 3, "leaf": "block"}])
def test_a_migration_that_no_vmm_can_make_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is "):
        made("live-migration", **wrong)


def test_memslot_churn_makes_again_what_it_deletes() -> None:
    assert rows(made("memslot-churn", rounds=3), schema.SLOT)["a"].tolist() == [0, 1] * 3


def test_thp_collapse_goes_once_over_memory() -> None:
    places = rows(made("thp-collapse", rounds=50), schema.COLLAPSE)["a"].tolist()
    assert places == sorted(set(places))
    assert all(place % BLOCK == 0 for place in places)


def test_moves_leave_every_page_mapped_once() -> None:
    scenario = storm(
        mmus=2, leaves=200, leaf_sizes={PAGE: 1}, notifiers=2, refault=0, rounds=Rounds(moves=20)
    )
    behind: dict[tuple[int, int], int] = {}
    for row in scenario.events.tolist():
        if row[0] == schema.SET_STAGE2:
            vmid = row[4]
        elif row[0] == schema.MAP_GUEST:
            for offset in range(0, row[5], PAGE):
                behind[vmid, row[3] + offset] = row[4] + offset
    for vmid in (1, 2):
        pages = [page for (owner, _), page in behind.items() if owner == vmid]
        assert len(pages) == len(set(pages)) == 101
    assert len(rows(scenario, schema.TLBI)) == len(rows(scenario, schema.UNMAP_GUEST)) > 2 * 30


def test_shared_l2s_map_the_same_pages() -> None:
    scenario = storm(mmus=3, leaves=300, notifiers=0, shared=True)
    maps = [row for row in rows(scenario, schema.MAP_GUEST).tolist() if row[3] != schema.CODE_NESTED]
    each = len(maps) // 3
    canonical = [sorted(row[4] for row in maps[k * each : (k + 1) * each]) for k in range(3)]
    assert canonical[0] == canonical[1] == canonical[2]


def test_fresh_l2s_take_the_mmus_of_others() -> None:
    scenario = storm(mmus=4, leaves=40, notifiers=2, refault=0, rounds=Rounds(recycles=3))
    assert ran(scenario).state.count[RECYCLED] == 6


def test_an_unmapped_target_hits_nobody() -> None:
    rounds = Rounds(target="unmapped")
    executor = ran(storm(mmus=2, leaves=50, notifiers=3, refault=0, rounds=rounds), "leaf_scan")
    before = int(executor.state.mmus[1:, 3].sum())
    assert before == int(ran(storm(mmus=2, leaves=50, notifiers=0), "sweep").state.mmus[1:, 3].sum())


def test_a_burst_comes_before_l2_runs_again() -> None:
    scenario = storm(mmus=1, leaves=20, notifiers=6, rounds=Rounds(burst=3))
    assert len(rows(scenario, schema.SET_STAGE2)) == 1 + 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nothing", "read workload 'nothing', expected one of storm"),
        ("ksm:leaves", "expected key=value"),
        ("ksm:blocks=1", "read 'blocks' of workload ksm, expected one of mmus"),
        ("ksm:leaves=many", "read leaves=many, expected a count"),
        ("ksm:leaves=1.5", "read leaves=1.5, expected a count"),
        ("ksm:leaves=1e400", "read leaves=1e400, expected a count"),
        ("storm:size=9223372036854775808", "below 2^63"),
        ("ksm:active=nan", "read active=nan, expected a finite number"),
        ("ksm:cluster=inf", "read cluster=inf, expected a finite number"),
        ("ksm:active=most", "read active=most, expected a finite number"),
        ("ksm:active=2", "active is 2.0, expected 0 to 1"),
        ("ksm:rounds=-1", "rounds is -1, expected 0 or more"),
        (f"ksm:mmus={MOST_MMUS + 1},leaves=1e4", "mmus is 1025"),
        ("numa-balancing:window=5K", "window is 5120"),
        ("storm:leaf=1G", "a shadow leaf is at most 2M"),
        ("storm:leaf=8K", "expected one of page, 4K, block, 2M, mixed"),
        ("storm:target=all", "target is 'all'"),
        ("storm:burst=0", "burst is 0"),
        ("storm:moves=-1", "moves and recycles are -1"),
        ("storm:writes=2", "writes is 2.0"),
        ("l2-boot:leaves=5", "leaves is 5, expected 100 or more"),
    ],
)
def test_a_bad_workload_is_refused(text: str, told: str) -> None:
    def ask() -> None:
        workload, values = read_workload(text)
        workload.scenario(values, 1)

    with pytest.raises(InputError) as caught:
        ask()
    assert told in str(caught.value)


def test_counts_have_exponents_and_suffixes() -> None:
    _, values = read_workload("numa-balancing:leaves=1e3,window=4M,mmus=0x2,active=0.25")
    assert values == {"leaves": 1000, "window": 4 << 20, "mmus": 2, "active": 0.25}


def test_the_page_of_workloads_is_the_catalogue() -> None:
    page = (Path(__file__).parents[2] / "docs" / "workloads.md").read_text(encoding="utf-8")
    headings = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert headings[:-1] == list(WORKLOADS)
    for workload in WORKLOADS.values():
        section = page.split(f"\n## {workload.name}\n")[1].split("\n## ")[0]
        assert f"Source: {workload.source}." in section
        table = [f"| {p.name} | {p.default} | {p.meaning} |" for p in workload.parameters]
        assert "\n".join(table) in section
