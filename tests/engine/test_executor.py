"""The executor: resuming, growing, stopping, and reading large tables."""

from __future__ import annotations

from typing import Any

import pytest
from kvm_lab import PAGE, Vm

from shadowmmu.compiled import INTERPRETED, U64
from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.engine import executor as executor_module
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.observe import dump_runs, read_log, table_runs
from shadowmmu.engine.setup import Machine
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.events.schema import EventTable, Scenario
from shadowmmu.formats.runs import bundled_run
from shadowmmu.lab.agreement import dump_lines
from shadowmmu.machine.state import R_EVENT, R_GHOST_ON, R_LOG_TOP, R_NEXT_DATA, State, image_digest

N = 0x8000_0000
QUICK = "suspicion/write-protect-without-shadow-flush"
LONG = QUICK if INTERPRETED else "random/seed2"
TINY = {"frames": 64}


def executor_of(name: str, design: str = "sweep", **machine: Any) -> Executor:
    run = bundled_run(name)
    settings = {"ipa_limit_bits": run.ipa_limit_bits, "logged": True} | machine
    return Executor(parse_scenario(run.scenario_text(), name), design, Machine(**settings))


def outcome(executor: Executor) -> tuple[list[str], list[int], list[tuple[int, str, dict[str, int]]]]:
    lines = [line for dump in executor.dumps for line in dump_lines(dump)]
    rows = [(row.event, row.name, row.fields) for row in read_log(executor.state)]
    return lines, executor.state.count.tolist(), rows


@pytest.mark.parametrize("design", CATALOGUE)
def test_event_by_event_equals_all_at_once(design: str) -> None:
    at_once, stepped, halved = (executor_of(LONG, design) for _ in range(3))
    at_once.run()
    positions: list[int] = []
    stepped.run(after_event=lambda executor: positions.append(executor.position))
    for stop in (7, 7, 3, 9, 10_000):
        halved.run(stop)
    assert positions == list(range(1, len(at_once.scenario.events) + 1))
    for other in (stepped, halved):
        assert outcome(other) == outcome(at_once)
        assert image_digest(other.state) == image_digest(at_once.state)


@pytest.mark.parametrize("design", CATALOGUE)
@pytest.mark.parametrize("name", [LONG, "cost/base4k-1024-parange2"])
def test_a_machine_that_starts_tiny_ends_like_a_large_one(name: str, design: str) -> None:
    large = executor_of(name, design, frames=8192)
    large.run()
    tiny = executor_of(name, design, **TINY)
    small = tiny.state
    tiny.state = small._replace(
        log=small.log[:1], vmas=small.vmas[:4].copy(), graves=small.graves[:1024].copy()
    )
    tiny.run()
    assert len(tiny.state.frames) > 64
    assert len(tiny.state.log) >= len(outcome(tiny)[2])
    assert outcome(tiny) == outcome(large)
    tiny_words, large_words = tiny.state.mem, large.state.mem
    used = int(large.state.regs[0]) << 9
    assert (tiny_words[:used] == large_words[:used]).all()


def test_memory_that_runs_out_passes_through_and_the_run_can_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = executor_of(LONG)
    whole.run()
    real, executor = executor_module.grow, executor_of(LONG, **TINY)

    def refuse(state: State, name: str) -> State:
        raise MemoryError(f"no room for {name}")

    monkeypatch.setattr(executor_module, "grow", refuse)
    with pytest.raises(MemoryError, match="no room for mem"):
        executor.run()
    position = executor.position
    assert 0 <= position < len(executor.scenario.events)
    monkeypatch.setattr(executor_module, "grow", real)
    executor.run()
    assert outcome(executor) == outcome(whole)


def test_a_host_without_a_page_left_is_an_error_not_an_answer() -> None:
    executor = executor_of("hello/hello", ipa_limit_bits=37)
    executor.state.regs[R_NEXT_DATA] = U64((1 << 24) - 100)
    with pytest.raises(MemoryError, match="every data page a 37-bit machine can address"):
        executor.run()
    assert executor.position == 0


def test_a_scenario_without_events_is_over() -> None:
    executor = Executor(parse_scenario("mem 64M\nstart base\n", "nothing"))
    executor.run()
    assert executor.position == 0
    assert executor.dumps == []


def test_an_unknown_design_is_refused() -> None:
    with pytest.raises(KeyError):
        executor_of("hello/hello", "no_such_design")


def test_a_fork_goes_its_own_way() -> None:
    executor = executor_of(LONG)
    half = len(executor.scenario.events) // 2
    executor.run(half)
    before = image_digest(executor.state)
    twin = executor.fork()
    twin.run()
    assert image_digest(executor.state) == before
    assert executor.position == half
    assert int(twin.state.regs[R_GHOST_ON]) == 0
    executor.run()
    lines = [line for dump in executor.dumps for line in dump_lines(dump)]
    twins = [line for dump in twin.dumps for line in dump_lines(dump)]
    assert twins == lines[len(lines) - len(twins) :]
    assert (executor.state.mmus == twin.state.mmus).all()


def many_runs(pages: int) -> Vm:
    """A shadow whose pages are mapped read-only and not at all in turn."""
    return Vm(
        f"""mem 64M
        start base
        s2 new 1
        code
        write 0x41000000 {pages * 4}k
        map {N:#x} 0x41000000 {pages * 4}k 3 rw
        touch r {N:#x} 8192 {pages // 2}
        dump d n"""
    ).end()


def test_a_dump_of_more_runs_than_the_buffer_is_complete() -> None:
    vm = many_runs(1400)
    runs = table_runs(vm.state, 1)
    assert len(runs) > 1024 > 256
    assert runs[0, 0] == 0
    assert (runs[1:, 0] == runs[:-1, 1]).all(), "the runs leave no gap"
    assert int(runs[-1, 1]) == 1 << 40
    valid = runs[(runs[:, 3] & U64(1)) != 0]
    leaves = vm.leaves(1)
    assert {int(row[0]) for row in valid} == set(leaves)
    assert {int(row[1] - row[0]) for row in valid} == {PAGE}
    dumped = vm.executor.dumps[0].tables[0].runs
    assert dumped is not None
    assert (dumped == runs).all()


def test_rows_beyond_the_buffer_are_counted_not_written() -> None:
    vm = many_runs(64)
    whole = table_runs(vm.state, 1)
    for room in (0, 1, 5):
        out = whole[:room].copy()
        out[:] = U64(0)
        assert int(dump_runs(vm.state, 1, out)) == len(whole)
        assert (out == whole[:room]).all()


def test_the_log_has_room_for_every_shadow_of_a_large_machine() -> None:
    tenants = "".join(f"s2 0x40100000 {vmid}\ntouch r 0x10000\n" for vmid in range(1, 121))
    script = f"mem 64M\nvcpus 60\nstart base\ns2 new 1\ncode\n{tenants}mark go\n" + "tlbi 5\n" * 12
    vm = Vm(script, ipa_limit_bits=37)
    vm.to("go")
    vm.forget_log()
    vm.end()
    assert len(vm.log("s2range")) == 12 * 120
    assert vm.register(R_LOG_TOP) == len(read_log(vm.state))


def test_the_log_has_room_for_a_harvest_of_every_word() -> None:
    words = 640
    vm = Vm("mem 160M\nstart base\nlog 1\nmark go\ngetlog\nnop", ipa_limit_bits=37).to("go")
    vm.state.dirty[:words] = U64(1)
    vm.state.mmus[1:, 4] = U64(2 << 48)  # both shadows have a tenant
    vm.end()
    assert len([row for row in vm.log("s2wp") if row["mmu"] == 2]) == words
    assert vm.register(R_LOG_TOP) == len(read_log(vm.state))


def test_events_that_no_script_can_write_do_nothing_harmful() -> None:
    table = EventTable()
    table.append(16 + 9, 0x4100_0000, 4096, 0)
    scenario = Scenario("made", 64 << 20, table.finish())
    executor = Executor(scenario)
    executor.run()
    assert int(executor.state.regs[R_EVENT]) == 1
