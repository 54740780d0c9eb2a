"""Sizes, first state, growth, and the declarations."""

from __future__ import annotations

from typing import Any

import pytest
from host_lab import BASE, HUGE, PAGE, host, machine

from shadowmmu.host import layout, steps
from shadowmmu.host.setup import ADVISED, host_arrays, host_grow, host_reserve, host_setup
from shadowmmu.machine.state import R_NEXT_DATA, R_PAGE_SHIFT


def test_arrays_follow_the_memory() -> None:
    """A word for each page, 2M and 1G, rounded up."""
    shapes = host_arrays(64 << 20)
    assert shapes["hpte"] == (16384,)
    assert shapes["hpmd"] == (32 + 1,)
    assert host_arrays(HUGE + PAGE)["hpte"] == (1024,)
    assert host_arrays(256 << 30)["hpmd"] == ((128 << 10) + 256,)


@pytest.mark.parametrize("backing", ["base", "thp", "huge"])
def test_the_memory_is_one_advised_vma(backing: Any) -> None:
    """As the rig's VMM maps it."""
    lab = host(backing=backing)
    flags = int(layout.VM_READ | layout.VM_WRITE | layout.VM_NORESERVE | ADVISED[backing])
    assert lab.vmas == [(0, 8 << 20, flags, 0)]
    assert lab.at(0).size == 0
    assert host_reserve(lab.state)


def test_setup_refuses_what_it_cannot_do() -> None:
    """A clear error, and which choice there is."""
    state = machine(8 << 20)
    with pytest.raises(ValueError, match="base, thp, huge"):
        host_setup(state, 8 << 20, "swap")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of 4096"):
        host_setup(state, 5000, "base")
    with pytest.raises(ValueError, match="multiple of 2097152"):
        host_setup(state, PAGE, "huge")
    with pytest.raises(ValueError, match="array hpte"):
        host_setup(state, 1 << 30, "base")
    state.regs[R_PAGE_SHIFT] = 14
    with pytest.raises(ValueError, match="multiple of 16384"):
        host_setup(state, PAGE, "base")


def test_growing_makes_room_for_one_more_operation() -> None:
    """Each array by itself, contents kept."""
    lab = host()
    state = lab.state
    for register, name in ((R_NEXT_DATA, "content"), (layout.R_PLAN_BASE, "plan"), (layout.R_VMAS, "vmas")):
        before = int(state.regs[register])
        length = len(getattr(state, name))
        state.regs[register] = length // (2 if name == "vmas" else 1)
        assert not host_reserve(state)
        grown = host_grow(state)
        assert host_reserve(grown)
        assert len(getattr(grown, name)) == 2 * length
        state.regs[register] = before
    assert host_reserve(state)
    assert host_grow(state) is state


def test_a_long_run_grows_by_itself() -> None:
    """Fresh frames are never used again, so ``content`` grows."""
    lab = host(backing="thp")
    before = len(lab.state.content)
    for _ in range(20):
        lab.touch(0, True)
        lab.dontneed(0, HUGE)
    assert len(lab.state.content) > before


def test_every_op_is_declared() -> None:
    """Name, operands, meaning; each number once."""
    others = {"OPS", "ZERO", "ONE", "R_PLAN_BASE", "I64", "U64"}
    names = {name for name in dir(steps) if name.isupper()} - others
    assert {name.lower() for name in names} == {name for name, _, _ in steps.OPS.values()}
    assert len(steps.OPS) == len(names)
    assert BASE % (1 << 30) == 0
