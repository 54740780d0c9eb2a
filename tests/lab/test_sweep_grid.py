"""Sweeps: each point once, exact, resumable; processes, a cluster and this process agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_lab import AXES, DESIGNS, exact, tiny

from shadowmmu.compiled import INTERPRETED
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.errors import InputError
from shadowmmu.events.workloads import named_workload
from shadowmmu.lab import sweep as lab_sweep
from shadowmmu.lab.grid import bundled_grids, read_grid, sweep_points
from shadowmmu.lab.point import Point, Row, code_version, run_point
from shadowmmu.lab.store import Store
from shadowmmu.lab.sweep import run_sweep
from shadowmmu.lab.sweep_metrics import QUANTITIES, column_of, pivot
from shadowmmu.machine.counters import counter_names

pytest.importorskip("pyarrow", reason="stores need the extra `lab`")
duckdb = pytest.importorskip("duckdb", reason="stores need the extra `lab`")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("sweep") / "store")
    outcome = run_sweep(tiny(), made)
    assert (outcome.points, outcome.stored_before, outcome.done, outcome.failed) == (4, 0, 4, [])
    return made


def test_a_row_has_the_counters_of_the_run(store: Store) -> None:
    row = next(r for r in store.rows() if r["design"] == "sweep" and r["p_leaves"] == 80)
    values = {"mmus": 1, "leaves": 80, "leaf": "4K", "notifiers": 2}
    scenario = named_workload("storm").scenario(values, 1)
    executor = Executor(scenario, "sweep", Machine(ipa_limit_bits=40))
    executor.run()
    for name, count in zip(counter_names(), executor.state.count.tolist(), strict=True):
        assert row[name] == count, name
    assert row["work_chunk"] == 2 * 1024
    assert row["work_refault"] == 2 * 81
    assert row["peak_leaves"] == 81


def test_duckdb_reads_the_folder_as_a_table(store: Store) -> None:
    query = (
        "SELECT design, sum(refaults_caused) "
        f"FROM read_parquet('{store.folder}/*.parquet', union_by_name = true) GROUP BY design ORDER BY design"
    )
    assert duckdb.sql(query).fetchall() == [("reverse_table", 4), ("sweep", 2 * 41 + 2 * 81)]


def test_what_is_stored_is_not_run_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_sweep, "run_point", lambda point: pytest.fail("it ran again"))
    outcome = run_sweep(tiny(), store)
    assert (outcome.stored_before, outcome.done) == (4, 0)


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    ran: list[Point] = []

    def two_then_stop(point: Point) -> Row:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(point)
        return run_point(point)

    monkeypatch.setattr(lab_sweep, "run_point", two_then_stop)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(tiny(), store)
    assert store.keys() == {point.key(code_version()) for point in ran}
    (tmp_path / ".half-written").write_bytes(b"PAR1")  # a process killed while it wrote
    monkeypatch.undo()
    outcome = run_sweep(tiny(), store)
    assert (outcome.stored_before, outcome.done) == (2, 2)
    assert len(store.rows()) == 4


def test_another_version_runs_its_own_points(store: Store) -> None:
    points = tiny()
    keys = {point.key(code_version()) for point in points}
    others = {
        *(point.key("another") for point in points),
        *(point.key(code_version()) for point in tiny(seed=[2])),
        *(point.key(code_version()) for point in sweep_points("storm", DESIGNS, AXES, "notifiers")),
    }
    assert len(keys) == 4
    assert len(others) == 12
    assert not keys & others


def test_a_store_of_another_version_is_shown_but_never_mixed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run_sweep(tiny(), store)
    rows = store.rows()
    store.add({**rows[0], "key": "0" * 32, "code": "other"})
    assert store.rows() == rows
    only = Store(tmp_path / "only")
    only.prepare()
    only.add({**rows[0], "code": "other"})
    assert [row["code"] for row in only.rows()] == ["other"]
    only.add({**rows[1], "code": "third"})
    with pytest.raises(InputError, match="of versions other, third"):
        only.rows()


def test_a_refused_point_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    points = tiny(granule=["4K", "8K"], leaf=["4K", "1G"], leaves=[40])
    outcome = run_sweep(points, Store(tmp_path))
    assert outcome.done == 2
    told = sorted({why for _, why in outcome.failed})
    assert len(outcome.failed) == 6
    assert told[0].startswith("read granule 8K, expected one of 4K, 16K, 64K")
    assert "the modelled host has no pages of 1G" in told[1]


def test_a_store_that_takes_no_more_is_told(store: Store, tmp_path: Path) -> None:
    row = store.rows()[0]
    (tmp_path / "taken.parquet").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*: Is a directory"):
        Store(tmp_path).add({**row, "key": "taken"})
    assert [path.name for path in tmp_path.iterdir()] == ["taken.parquet"]


def test_out_of_memory_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(point: Point) -> Row:
        raise MemoryError("Unable to allocate 8.00 TiB")

    monkeypatch.setattr(lab_sweep, "run_point", full)
    outcome = run_sweep(tiny(leaves=[40]), Store(tmp_path))
    assert {why for _, why in outcome.failed} == {"not enough memory: Unable to allocate 8.00 TiB"}


@pytest.mark.skipif(INTERPRETED, reason="processes start compiled or not alike")
def test_processes_count_as_this_process_does(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path)
    lines: list[str] = []
    outcome = run_sweep(tiny(), other, jobs=2, progress=lines.append)
    assert outcome.done == 4
    assert [exact(row) for row in other.rows()] == [exact(row) for row in store.rows()]
    assert lines[0] == "4 of 4 points to run"
    assert lines[-1].startswith("4 of 4 points, 0 refused: storm:")


def test_a_cluster_counts_as_this_process_does(store: Store, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="clusters need the extra `cluster`")
    other = Store(tmp_path)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        outcome = run_sweep(tiny(), other, scheduler=cluster.scheduler_address)
    assert outcome.done == 4
    assert [exact(row) for row in other.rows()] == [exact(row) for row in store.rows()]


def test_a_cluster_without_workers_is_refused(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="clusters need the extra `cluster`")
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        pytest.raises(InputError, match="read a scheduler without workers"),
    ):
        run_sweep(tiny(), Store(tmp_path), scheduler=cluster.scheduler_address)


@pytest.mark.parametrize("name", bundled_grids())
def test_the_tables_of_a_bundled_grid_are_of_its_points(name: str) -> None:
    grid = read_grid(name)
    assert grid.title
    rows = [
        {"workload": p.workload, "design": p.design, **dict(p.machine), **{"p_" + k: v for k, v in p.values}}
        for p in grid.points
    ]
    for table in grid.tables:
        assert table.value in QUANTITIES
        chosen = [r for r in rows if all(r.get(column_of(r, k)) == v for k, v in table.where.items())]
        for axis in (table.rows, table.columns):
            assert len({row.get(column_of(row, axis)) for row in chosen}) > 1, (table.title, axis)
    assert len({point.key("x") for point in grid.points}) == len(grid.points)


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("", 1, "read no [[sweep]]"),
        ("[[sweep]]\ncolour = 1", 2, "read 'colour', expected one of axes, designs"),
        ("title = 'x'\ncolour = 1\n[[sweep]]", 2, "read 'colour', expected one of sweep, table"),
        ("[[sweep]]\nworkload = 'x'", 2, "read workload 'x'"),
        ("[[sweep]]\n[[sweep]]\n\ndesigns = ['x']", 4, "read design 'x'"),
        ("[[sweep]]\naxes = { blocks = [1] }", 2, "read 'blocks' of workload storm"),
        ("[[sweep]]\n[sweep.axes]\nmmus = 1\nleaves = [1.5]", 4, "read leaves=1.5, expected a count"),
        ("[[sweep]]\naxes = { leaves = 1e30 }", 2, "below 2^63"),
        ("[[sweep]]\naxes = { alias = nan }", 2, "read alias=nan, expected a finite number"),
        ("[[sweep]]\naxes = { leaves = [true] }", 2, "read leaves = True"),
        ("[[sweep]]\naxes = { leaves = [] }", 2, "read no value for leaves"),
        ("[[sweep]]\naxes = 1", 2, "no attribute"),
        ("[[sweep]]\njudge = 'x'", 2, "read judge 'x'"),
        ("[[sweep]]\n[[table]]\nrows = 'x'", 2, "missing"),
        ("[[sweep]]\n[[table]]\nhue = 'x'", 3, "read 'hue', expected one of columns"),
        ("[[sweep]]\n[[sweep", 2, "expected a TOML file"),
    ],
)
def test_a_bad_grid_is_refused(tmp_path: Path, text: str, line: int, told: str) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_grid(str(path))
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert told in str(caught.value)


def test_a_table_takes_the_mean_of_seeds() -> None:
    grid = read_grid("small")
    rows = [
        {
            "design": "sweep",
            "p_alias": 0.0,
            "p_mmus": 1,
            "notifiers": 4,
            "fallbacks_mmu": n,
            "fallbacks_vm": 0,
        }
        for n in (1, 3)
    ]
    made = pivot(rows, grid.tables[0])
    assert made.cells == [[0.5]]
    assert made.samples == 2
    assert made.basis == "means of 2 runs"
    lone = {**rows[0], "design": "spanning"}
    assert pivot([*rows, lone], grid.tables[0]).basis == "means of 1 to 2 runs"
    assert pivot([lone], grid.tables[0]).basis == ""
