"""Batches of walks give what single translations give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_machines import filled
from translation_lab import DATA, IPA, MEM, PAGE1, ROOT1, TABLES1, VA, Machine, Seen, el10, geometry, nested

from shadowmmu.arch import operation
from shadowmmu.arch.batch import BLOCK, FAILED, SCRATCH, stage2_batch, translate_batch
from shadowmmu.arch.context import context
from shadowmmu.arch.fault import EXECUTE, READ, WRITE
from shadowmmu.compiled import U64

AT = [name for name in operation.NAMES if name.startswith("AT ")]


def batch(machine: Machine, name: str, addresses: list[int]) -> list[int]:
    """``translate_batch``, or ``stage2_batch`` for "read", "write" and "execute"."""
    kinds = {"read": READ, "write": WRITE, "execute": EXECUTE}
    for pa, word in machine.words.items():
        MEM[pa // 8] = word
    row, asked, out = (
        context(**machine.registers),
        np.array(addresses, np.uint64),
        np.zeros(len(addresses), np.uint64),
    )
    if name in kinds:
        stage2_batch(MEM, row, machine.implementation, kinds[name], asked, out)
    else:
        scratch = np.full((SCRATCH, BLOCK), 0xA5A5, np.uint64)
        number = operation.NAMES.index(name)
        translate_batch(MEM, row, machine.implementation, number, asked, scratch, out)
    for pa, word in machine.words.items():
        assert int(MEM[pa // 8]) == word
        MEM[pa // 8] = U64(0)
    return [int(word) for word in out]


def word_of(one: Seen) -> int:
    """An answer as a batch gives it."""
    if one.kind == 0:
        return one.pa
    return int(FAILED) | one.kind | one.level + 1 << 8 | one.stage << 16 | one.s1ptw << 24


@given(seed=st.integers(0, 2**40), name=st.sampled_from(AT))
def test_batches_agree_with_single_translations(seed: int, name: str) -> None:
    machine, asked = filled(seed, 20)
    addresses = [va for _, va in asked]
    singles = machine.ask_all([(name, va) for va in addresses])
    assert batch(machine, name, addresses) == [word_of(one) for one in singles]


@given(seed=st.integers(0, 2**40), what=st.sampled_from([("read", "R"), ("write", "W")]))
def test_stage_2_batches_agree_with_stage_2_of_single_translations(seed: int, what: tuple[str, str]) -> None:
    machine, asked = filled(seed, 20)
    machine.registers["SCTLR_EL1"] &= ~1  # so that an AT of both stages is one of stage 2
    machine.registers["TCR_EL1"] &= ~(3 << 37)
    machine.registers["HCR_EL2"] = machine.registers["HCR_EL2"] & ~(1 << 27) | 1
    addresses = [va % (1 << machine.pa_bits) for _, va in asked]
    singles = machine.ask_all([(f"AT S12E1{what[1]}", ipa) for ipa in addresses])
    assert batch(machine, what[0], addresses) == [word_of(one) for one in singles]


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_blocks_of_every_length(count: int) -> None:
    page = DATA | VA & 0xFF8
    machine = nested()
    assert batch(machine, "AT S12E1R", [VA] * count) == [page] * count
    mixed = [VA if i % 3 else ~VA % (1 << 64) for i in range(count)]
    found = batch(el10(), "AT S1E1R", mixed)
    assert [word >> 63 for word in found] == [0 if i % 3 else 1 for i in range(count)]


def test_a_root_beyond_the_output_size_fails_every_walk_of_a_batch() -> None:
    narrow = 16 | 16 << 16 | 2 << 30  # IPS: 32 bits
    machine = el10(TTBR0_EL1=ROOT1 | 1 << 33, TCR_EL1=narrow)
    (single,) = machine.ask_all([("AT S1E1R", VA)])
    assert (single.fault, single.level) == ("address size 0", 0)
    assert batch(machine, "AT S1E1R", [VA, VA + 8]) == [word_of(single)] * 2


def test_fetches_of_a_batch() -> None:
    assert batch(nested(), "execute", [0x4012_3008]) == [DATA | 8]


def test_neighbours_share_no_more_than_a_page_of_tables() -> None:
    machine, other = nested(), VA ^ 1 << 39
    leaf = PAGE1 & ~DATA | IPA & ~0xFFF
    machine.path(geometry(12, 16, 0, ROOT1), other, leaf, 3, TABLES1 + 0x8_0000)
    assert batch(machine, "AT S12E1R", [VA, other, VA]) == [DATA | VA & 0xFFF] * 3
