"""The one interface: every design answers every call, and its memory is counted whole."""

from __future__ import annotations

import pytest

from shadowmmu.designs.dispatch import design_bytes, design_footprint, design_recorded
from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.events.scenario import parse_scenario

SCRIPT = """mem 64M
start base 0 0
s2 new 1
code
write 0x41000000 64k
map 0x80000000 0x41000000 64k 3 rw
touch w 0x80000000 4096 16
"""
LEAVES = 17  # sixteen pages and L2's code
SHADOW_TABLES = 2 * 2 + 4  # two concatenated roots each of two MMUs; two levels twice under one of them


def filled(design: str) -> Executor:
    executor = Executor(parse_scenario(SCRIPT, "filled"), design, Machine(ipa_limit_bits=40))
    executor.run()
    return executor


def test_numbers_are_dense_and_names_their_own_keys() -> None:
    assert [design.number for design in CATALOGUE.values()] == list(range(len(CATALOGUE)))
    assert all(design.name == name and design.origin and design.idea for name, design in CATALOGUE.items())


@pytest.mark.parametrize(
    ("design", "recorded"),
    [
        ("sweep", 0),
        ("rbtree_2024", LEAVES),
        ("spanning", LEAVES),
        ("maple_2025", LEAVES),
        ("spanning_v2", LEAVES),
        ("gfn_lists", LEAVES),
        ("pa_keyed", LEAVES),
        ("per_vm_tree", LEAVES),
        ("leaf_scan", 0),
        ("sweep_vmalls12", 0),
    ],
)
def test_a_design_without_side_words_costs_its_nodes(design: str, recorded: int) -> None:
    state = filled(design).state
    assert int(design_recorded(state)) == recorded
    assert int(design_footprint(state)) == int(design_bytes(state))
    assert bool(design_bytes(state)) == bool(recorded)


@pytest.mark.parametrize("design", ["reverse_table", "pte_chains"])
def test_a_design_that_names_descriptors_pays_a_word_for_each_too(design: str) -> None:
    state = filled(design).state
    assert int(design_recorded(state)) == LEAVES
    assert int(design_footprint(state)) - int(design_bytes(state)) == SHADOW_TABLES * 4096
