"""The arrays of a machine: growing, digests; and the declaration of counters and registers."""

from __future__ import annotations

import numpy as np
import pytest
from machine_lab import Op, call, machine, numbers

from shadowmmu.guest import layout as guest_layout
from shadowmmu.host import layout as host_layout
from shadowmmu.kvm import layout as kvm_layout
from shadowmmu.machine import counters, state
from shadowmmu.machine.state import DATA_BASE, REGISTERS, State, grow, image_digest

PARALLEL = ("mem", "frames", "free", "side", "ghost")


@pytest.mark.parametrize("name", [name for name in State._fields if name not in PARALLEL])
def test_growing_one_array_leaves_the_others(name: str) -> None:
    before = machine()
    getattr(before, name).flat[:1] = 7
    after = grow(before, name)
    old, new = getattr(before, name), getattr(after, name)
    assert new.shape == (2 * old.shape[0], *old.shape[1:])
    assert new.dtype == old.dtype
    assert (new[: len(old)] == old).all()
    assert not new[len(old) :].any()
    assert all(getattr(after, other) is getattr(before, other) for other in State._fields if other != name)


@pytest.mark.parametrize("judged", [False, True])
def test_memory_grows_with_all_that_runs_beside_it(judged: bool) -> None:
    before = machine(8, judged=judged)
    frames = [call(before, Op.TAKE) for _ in range(7)]
    for frame in frames:
        before.mem[frame * 512] = frame
    after = grow(before, "mem")
    assert len(after.mem) == 16 * 512 == len(after.side)
    assert len(after.frames) == len(after.free) == 16
    assert len(after.ghost) == (len(after.mem) if judged else 1)
    assert [int(after.mem[frame * 512]) for frame in frames] == frames, "indices are kept"
    assert after.regs is before.regs
    assert call(after, Op.FRAMES_LEFT) == 8
    assert call(after, Op.TAKE) == 8


def test_a_machine_without_room_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine(8)
    shapes = [array.shape for array in before]

    def no_room(shape: tuple[int, ...], dtype: type) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(state.np, "zeros", no_room)
    with pytest.raises(MemoryError):
        grow(before, "mem")
    assert [array.shape for array in before] == shapes


def used() -> State:
    s = machine()
    for _ in range(3):
        call(s, Op.TAKE)
    call(s, Op.WRITE, int(DATA_BASE), 5)
    call(s, Op.GIVE, 1)
    call(s, Op.GIVE, 2)
    return s


def test_equal_machines_have_equal_digests_whatever_room_they_have() -> None:
    assert image_digest(used()) == image_digest(used())
    assert image_digest(grow(used(), "mem")) == image_digest(used())


@pytest.mark.parametrize("name", [name for name in State._fields if name != "log"])
def test_a_digest_depends_on_every_array_in_use(name: str) -> None:
    s = used()
    getattr(s, name).flat[0] += np.uint64(1) if name != "count" else 1
    assert image_digest(s) != image_digest(used())


def test_a_digest_depends_on_the_order_of_the_free_list() -> None:
    s = used()
    s.free[:2] = s.free[:2][::-1].copy()
    assert image_digest(s) != image_digest(used())


def test_counters_are_dense_and_their_names_unique() -> None:
    declared = {name: value for name, value in numbers(counters).items() if name != "COUNTERS"}
    assert sorted(declared.values()) == list(range(counters.COUNTERS)) == sorted(counters.DECLARED)
    names = counters.counter_names()
    assert len(set(names)) == len(names) == counters.COUNTERS
    assert len(state.empty_counters()) == counters.COUNTERS
    assert state.empty_counters().dtype == np.int64


@pytest.mark.parametrize("index", counters.DECLARED)
def test_a_counter_has_a_name_and_a_meaning(index: int) -> None:
    name, meaning = counters.DECLARED[index]
    assert name.isidentifier()
    assert name.islower()
    assert len(meaning.split()) >= 3
    assert counters.counter_names()[index] == name


def test_rooms_do_not_share_registers() -> None:
    rooms = [
        [value for name, value in numbers(module).items() if name.startswith(prefix)]
        for module, prefix in ((state, "R_"), (host_layout, "R_"), (kvm_layout, "K_"), (guest_layout, "G_"))
    ]
    bases = {state.R_HOST, state.R_KVM, state.R_GUEST}
    own = [value for value in rooms[0] if value not in bases]
    taken = own + [value for room in rooms[1:] for value in room]
    assert len(set(taken)) == len(taken)
    assert max(taken) < REGISTERS
    assert max(own) < state.R_HOST <= min(rooms[1])
    assert max(rooms[1]) < state.R_KVM < min(rooms[2])
    assert max(rooms[2]) < state.R_GUEST <= min(rooms[3])
