"""``check()`` of ``per_vm_tree`` and ``maple_2025``: their trees, in plain Python on the raw words."""

from __future__ import annotations

from typing import NamedTuple

from shadowmmu.designs import maple_2025 as kulkarni
from shadowmmu.designs import per_vm_tree as vm
from shadowmmu.designs.containers.checks import maple_check, maple_ranges
from shadowmmu.designs.containers.pool import P_LIVE
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import CANONICAL, shadow_mmus

__all__ = ["Faults", "Range", "check_maple_2025", "check_per_vm_tree", "ranges_of"]


class Range(NamedTuple):
    """An entry of a tree, ``last`` inclusive."""

    first: int
    last: int
    value: int


class Faults(NamedTuple):
    """What ``maple_2025`` has lost: objects nobody names, and entries whose object was freed."""

    leaked: int
    dangling: int


def ranges_of(state: State, mmu: int, column: int) -> list[Range]:
    """The entries of the maple tree that an MMU has in ``column``, in order; the tree is sound."""
    tree = int(state.mmus[mmu, column])
    maple_check(state.rmap, tree)
    return [Range(*entry) for entry in maple_ranges(state.rmap, tree)]


def check_per_vm_tree(state: State) -> int:
    """Assert every invariant of ``per_vm_tree``; how many entries have no twin in the other tree.

    Sound trees. An exact entry is one leaf of an MMU, a power of two in size and aligned in both spaces; an
    UNKNOWN one names at least one MMU. Those without twin are of leaves that were aliased or replaced.
    """
    mmus = range(1, shadow_mmus(state) + 1)
    forward = set()
    for entry in ranges_of(state, CANONICAL, vm.M_MAP):
        size = entry.last - entry.first + 1
        where = f"entry [{entry.first:#x}, {entry.last:#x}]"
        assert size & (size - 1) == 0, f"{where} is no power of two"
        assert entry.first % size == 0, f"{where} is not aligned"
        if entry.value & int(vm.UNKNOWN):
            assert entry.value & ~int(vm.UNKNOWN), f"{where} is UNKNOWN and names no MMU"
            continue
        mmu, nested_ipa = entry.value >> int(vm.TAG_SHIFT), entry.value & int(vm.NESTED)
        assert mmu in mmus, f"{where} is of shadow MMU {mmu}"
        flags = entry.value & 0xFFF
        assert flags == int(vm.VALID_ENTRY), f"{where} has flags {flags:#x}"
        assert nested_ipa % size == 0, f"{where} leads to {nested_ipa:#x}, aligned otherwise"
        forward.add((mmu, nested_ipa, entry.first, size))
    backward = {
        (mmu, entry.first, entry.value & int(vm.NESTED), entry.last - entry.first + 1)
        for mmu in mmus
        for entry in ranges_of(state, mmu, vm.M_DIRECT)
    }
    return len(forward ^ backward)


def check_maple_2025(state: State) -> Faults:
    """Assert that the trees of ``maple_2025`` are sound, and count its faults, which are there on purpose."""
    named: set[int] = set()
    dangling = 0
    for mmu in range(1, shadow_mmus(state) + 1):
        for entry in ranges_of(state, mmu, kulkarni.M_TREE):
            if state.rmap[entry.value + int(kulkarni.O_LIVE)]:
                named.add(entry.value)
            else:
                dangling += 1
    live = int(state.rmap[int(P_LIVE + kulkarni.OBJECT_CLASS)])
    return Faults(leaked=live - len(named), dangling=dangling)
