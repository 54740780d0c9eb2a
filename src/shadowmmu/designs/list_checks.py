"""``check()`` of the designs that keep lists: ``gfn_lists``, ``pte_chains``, ``pa_keyed``.

Every invariant of the record, in plain Python on the raw words.
"""

from __future__ import annotations

from typing import NamedTuple

from shadowmmu.arch.stage2 import OA_BITS
from shadowmmu.designs import gfn_lists as gfn
from shadowmmu.designs import pa_keyed as pa
from shadowmmu.designs import pte_chains as pte
from shadowmmu.designs import reverse_nodes as rn
from shadowmmu.designs.containers.checks import rb_check, rb_nodes
from shadowmmu.designs.containers.rbtree import N_KEY, N_SIZE, N_VALUE
from shadowmmu.designs.radix_check import RadixWalk, check_accounts, walk_radix
from shadowmmu.designs.reverse_table_check import (
    Recorded,
    ShadowLeaf,
    check_inverse,
    check_named_leaves,
    shadow_leaves,
)
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import CANONICAL, shadow_mmus

__all__ = ["Place", "check_gfn_lists", "check_pa_keyed", "check_pte_chains", "gfn_places", "pa_places"]


class Place(NamedTuple):
    """A leaf as a list names it."""

    mmu: int
    nested_ipa: int
    level: int
    pa: int


def _output(state: State, leaf: ShadowLeaf) -> int:
    return int(state.mem[leaf.word]) & int(OA_BITS) & ~(leaf.size - 1)


def _leaf_places(state: State) -> set[Place]:
    return {
        Place(leaf.mmu, leaf.nested_ipa, leaf.level, _output(state, leaf)) for leaf in shadow_leaves(state)
    }


def gfn_places(state: State) -> list[tuple[int, Place]]:
    """(canonical IPA, place) of every entry of ``gfn_lists``, stale ones included."""
    return _gfn_entries(state, walk_radix(state))


def _gfn_entries(state: State, walk: RadixWalk) -> list[tuple[int, Place]]:
    found = []
    for head in walk.heads:
        entry = head.content
        while entry:
            walk.meet(entry, int(gfn.ENTRY_WORDS))
            place = int(state.rmap[entry + int(gfn.E_PLACE)])
            mmu, nested_ipa = place >> int(gfn.MMU_SHIFT), place & int(gfn.NESTED)
            assert 1 <= mmu <= shadow_mmus(state), f"entry {entry}: shadow MMU {mmu}"
            assert nested_ipa % head.size == 0, f"entry {entry}: {nested_ipa:#x} is not aligned"
            pa_of_entry = int(state.rmap[entry + int(gfn.E_PA)])
            found.append((head.canonical_ipa, Place(mmu, nested_ipa, head.level, pa_of_entry)))
            entry = int(state.rmap[entry + int(gfn.E_NEXT)])
    return found


def check_gfn_lists(state: State) -> int:
    """Assert every invariant of ``gfn_lists``; how many entries are stale.

    The radix is sound, an entry stands once in its list, every live leaf has an entry with its frame.
    """
    walk = walk_radix(state)
    entries = _gfn_entries(state, walk)
    named = {(canonical_ipa, place[:3]) for canonical_ipa, place in entries}
    assert len(named) == len(entries), "a place stands twice in a list"
    _check_entries(state, len(entries))
    check_accounts(state, walk, int(gfn.ENTRY_WORDS))
    places = {place for _canonical_ipa, place in entries}
    leaves = _leaf_places(state)
    missing = leaves - places
    assert not missing, f"{min(missing)} is not recorded"
    return sum(place not in leaves for _canonical_ipa, place in entries)


def check_pte_chains(state: State) -> None:
    """Assert every invariant of ``pte_chains``: sound radix and blocks, entries are leaves."""
    walk = walk_radix(state, keeps_empty_nodes=True)
    entries = [
        Recorded(head.canonical_ipa, head.level, head.size, word)
        for head in walk.heads
        for word in _descriptors(state, walk, head.content)
    ]
    check_inverse(state, entries, {entry.word: entry.canonical_ipa | int(pte.PRESENT) for entry in entries})
    check_named_leaves(state, entries, set(range(1, shadow_mmus(state) + 1)))
    _check_entries(state, len(entries))
    check_accounts(state, walk, int(pte.BLOCK_WORDS))


def _descriptors(state: State, walk: RadixWalk, content: int) -> list[int]:
    if not content & int(rn.CHAIN):
        return [content]
    words = state.rmap
    blocks: list[list[int]] = []
    behind = []
    block = content & ~int(rn.CHAIN)
    while block:
        walk.meet(block, int(pte.BLOCK_WORDS))
        counts = int(words[block + int(pte.B_COUNT)])
        used = counts & int(pte.COUNT)
        room = int(pte.BLOCK_ROOM)
        assert 1 <= used <= room, f"block {block} holds {used} descriptors"
        assert not blocks or used == room, f"block {block} is behind another and not full"
        first = block + int(pte.B_FIRST)
        blocks.append([int(word) for word in words[first : first + used]])
        behind.append(counts >> int(pte.TAIL_SHIFT))
        block = int(words[block + int(pte.B_MORE)])
    for position, counted in enumerate(behind):
        held = sum(map(len, blocks[position + 1 :]))
        assert counted == held, f"{held} descriptors behind a block, {counted} counted"
    return [word for names in blocks for word in names]


def pa_places(state: State) -> list[Place]:
    """Every leaf on the record of ``pa_keyed``, in order of its key."""
    words = state.rmap
    found = []
    for head in rb_nodes(words, state.mmus[CANONICAL, pa.M_TREE]):
        key = int(words[head + int(N_KEY)])
        node = head
        while node:
            value = int(words[node + int(N_VALUE)])
            level = key & 3
            place = Place(value >> int(pa.MMU_SHIFT), value & int(pa.NESTED), level, key & ~3)
            assert words[node + int(N_SIZE)] == words[head + int(N_SIZE)], f"node {node}: another size"
            found.append(place)
            node = int(words[node + int(pa.N_MORE)])
    return found


def check_pa_keyed(state: State) -> None:
    """Assert every invariant of ``pa_keyed``: a sound tree whose leaves are the live leaves, each once."""
    rb_check(state.rmap, state.mmus[CANONICAL, pa.M_TREE])
    places = pa_places(state)
    counted = int(state.mmus[CANONICAL, pa.M_ENTRIES])
    assert len(places) == counted, f"{len(places)} entries, {counted} counted"
    assert len(set(places)) == len(places), "a leaf stands twice"
    difference = set(places) ^ _leaf_places(state)
    assert not difference, f"record and tables differ at {min(difference)}"


def _check_entries(state: State, entries: int) -> None:
    assert int(state.rmap[rn.RT_ENTRIES]) == entries, f"{entries} entries, miscounted"
