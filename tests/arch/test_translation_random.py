"""Whole translations on random registers and tables, against the walker of the tests."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from arch_book import predicted
from hypothesis import given, settings
from hypothesis import strategies as st
from random_machines import filled

from shadowmmu.compiled import INTERPRETED

QUERIES = 12
SEEDS = st.integers(0, 2**40)


def differences(seed: int, update: bool) -> list[str]:
    """What the kernel and the walker of the tests do not agree on."""
    machine, asked = filled(seed, QUERIES)
    book = machine.book()
    found = machine.ask_all(asked, update)
    wrong = []
    for (name, va), got in zip(asked, found, strict=True):
        expected = predicted(book, name, va, update)
        mine = {key: getattr(got, key) for key in expected}
        if mine != expected:
            wrong.append(f"seed {seed}: {name} {va:#x}: {mine}, expected {expected}")
    if machine.words != book.words:
        wrong.append(f"seed {seed}: memory differs")
    return wrong


@settings(max_examples=3 * settings().max_examples)
@given(seed=SEEDS, update=st.booleans())
def test_translations_agree_with_the_book(seed: int, update: bool) -> None:
    assert differences(seed, update) == []


def answers_of(seeds: range) -> list[list[int]]:
    """Every word of the answers, and the memory left behind, for these machines."""
    words = []
    for seed in seeds:
        machine, asked = filled(seed, QUERIES)
        found = machine.ask_all(asked, seed % 2 == 1)
        words += [list(one) for one in found]
        words.append([number for pair in sorted(machine.words.items()) for number in pair])
    return words


def digest(seeds: range) -> str:
    """``answers_of`` in one line."""
    return hashlib.sha256(json.dumps(answers_of(seeds)).encode()).hexdigest()


@pytest.mark.skipif(INTERPRETED, reason="compiled is what is compared with interpreted")
def test_compiled_and_interpreted_answers_are_the_same() -> None:
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    program = "import test_translation_random as t; print(t.digest(range(200)))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest(range(200))


def test_random_translations_reach_every_kind_of_outcome() -> None:
    seen: Counter[str] = Counter()
    for seed in range(150):
        machine, asked = filled(seed, QUERIES)
        seen.update(found.fault for found in machine.ask_all(asked))
    kinds = {fault.rsplit(" ", 1)[0] for fault in seen}
    plain = {"none", "translation", "address size", "access flag", "permission", "walk abort", "abort"}
    assert kinds >= plain | {
        f"s2 ptw {kind}" for kind in ("translation", "address size", "access flag", "permission")
    }
    assert kinds >= {"s2 translation", "s2 permission", "s2 access flag"}
    assert seen["none"] > sum(seen.values()) / 8
