"""Unicorn against the architecture of this package, on the same memory; and what it refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("unicorn", reason="the package unicorn is not installed (the extra `oracle`)")

from unicorn_lab import TABLES, Batch, random_batch

from shadowmmu.arch import operation as op
from shadowmmu.arch.answer import A_FAULT, A_HPFAR, A_PA, A_PAR, A_TARGET, ANSWER, answers
from shadowmmu.arch.context import C_SCTLR_EL1, context
from shadowmmu.arch.fault import ACCESS_FLAG, EXTERNAL, NONE, PERMISSION
from shadowmmu.arch.registers import HCR_EL2, TCR_EL1, VTCR_EL2
from shadowmmu.arch.translate import Account, translate
from shadowmmu.compiled import INTERPRETED, U64, Words, kernel
from shadowmmu.errors import InputError
from shadowmmu.oracles.unicorn import DEVIATIONS, MACHINE, UNSUPPORTED, UnicornOracle, explain

CONTEXTS, QUERIES = (10, 40) if INTERPRETED else (250, 200)
AT = tuple(range(op.AT_S1E1R, op.AT_S1E2W + 1))


@pytest.fixture(scope="module")
def oracle() -> Iterator[UnicornOracle]:
    with UnicornOracle() as made:
        yield made


@kernel
def _account(mem: Words, row: Words, operation: int, va: np.uint64) -> Account:
    access = op.access_of(operation, row[7])
    pan = row[20] & U64(1 << 22) != U64(0)
    return translate(mem, row, MACHINE, access, va, pan, False)


def wanted(oracle: UnicornOracle, batch: Batch) -> Words:
    """What the architecture answers."""
    out = np.zeros((len(batch.va), ANSWER), np.uint64)
    answers(oracle.memory, *batch, MACHINE, False, out)
    return out


def ask(oracle: UnicornOracle, row: Words, operation: int, *va: int) -> Words:
    """Unicorn's answers to one operation on some VAs under one row."""
    zeros = np.zeros(len(va), np.int64)
    return oracle.ask(row[None, :], zeros, zeros + operation, np.array(va, np.uint64))


@pytest.mark.parametrize("seed", range(3))
def test_address_translation_agrees_but_for_what_is_listed(oracle: UnicornOracle, seed: int) -> None:
    batch = random_batch(oracle.memory, np.random.default_rng(seed), AT, CONTEXTS, QUERIES)
    got, want = oracle.ask(*batch), wanted(oracle, batch)
    found: Counter[str] = Counter()
    for query in np.flatnonzero((got[:, A_PAR] != want[:, A_PAR]) | (want[:, A_TARGET] != 0)):
        row, va = batch.rows[batch.context_of[query]], batch.va[query]
        account = _account(oracle.memory, row, int(batch.operations[query]), va)
        descriptor = account.descriptor2 if account.stage == 2 else account.descriptor1
        found[explain(want[query], got[query], int(va), int(descriptor))] += 1
    assert found["?"] == 0
    assert set(found) <= {remark.name for remark in DEVIATIONS}
    assert (got[:, A_PAR] == want[:, A_PAR]).mean() > 0.5
    succeeded = (want[:, A_FAULT] == 0).mean()
    assert 0.05 < succeeded < 0.5, "the tables no longer make both outcomes likely"


def test_fetches_agree_on_whether_and_at_which_stage(oracle: UnicornOracle) -> None:
    count = CONTEXTS // 5
    batch = random_batch(oracle.memory, np.random.default_rng(9), (op.FETCH_EL1, op.FETCH_EL0), count, 20)
    va = batch.va & U64((1 << 56) - 4)
    va = np.where(va >> U64(55) != 0, va | U64(0xFF << 56), va)
    batch = batch._replace(va=va)
    got, want = oracle.ask(*batch), wanted(oracle, batch)
    translation = want[:, A_FAULT] & U64(0xFF)
    inside = want[:, A_PA] < oracle.memory.nbytes
    agreed = (got[:, A_TARGET] == want[:, A_TARGET]) | ~np.isin(translation, (0, 3, 4)) | ~inside
    assert agreed.all(), np.flatnonzero(~agreed)
    assert 0 < np.count_nonzero(got[:, A_TARGET] == 0) < len(va)


def test_loads_and_stores_agree_on_whether_and_where(oracle: UnicornOracle) -> None:
    kinds = tuple(each + store for each in (op.LOAD_EL1, op.LOAD_EL0, op.LOAD_EL2) for store in (0, 1))
    batch = random_batch(oracle.memory, np.random.default_rng(3), kinds, CONTEXTS // 2, QUERIES)
    got, want = oracle.ask(*batch), wanted(oracle, batch)
    kind = want[:, A_FAULT] & U64(0xFF)
    off = batch.rows[batch.context_of, C_SCTLR_EL1] & U64(1) == 0  # the deviation "stage 1 off"
    translated = np.isin(kind, (NONE, EXTERNAL)) & ~(off & (want[:, A_PA] >> U64(44) != 0))
    refused = np.isin(kind, (ACCESS_FLAG, PERMISSION))
    s1ptw = want[:, A_FAULT] >> U64(24) != 0
    assert (got[translated, A_TARGET] == 0).all()
    assert (got[translated, A_PA] == want[translated, A_PA]).all()
    assert (got[refused & ~s1ptw, A_TARGET] != 0).all()
    assert min(np.count_nonzero(translated), np.count_nonzero(refused)) > len(kind) // 50


def identity(oracle: UnicornOracle, leaf: int = 0x0020_0000 | 0x401 | 3 << 8) -> Words:
    """4K granule, 39 bits, one level-2 block at VA 0x20_0000: registers of a tree made by hand."""
    root, middle = TABLES, TABLES + 0x1000
    oracle.memory[root >> 3 : (root >> 3) + 1024] = 0
    oracle.memory[root >> 3] = middle | 3
    oracle.memory[(middle >> 3) + 1] = leaf
    tcr = TCR_EL1.encode(T0SZ=25, EPD1=1, IPS=5)
    return context(TTBR0_EL1=root, TCR_EL1=tcr, SCTLR_EL1=0x30D0_0801 | 4, MAIR_EL1=0xFF, HCR_EL2=1 << 31)


def test_a_table_made_by_hand(oracle: UnicornOracle) -> None:
    row = identity(oracle)
    par = [hex(int(each)) for each in ask(oracle, row, op.AT_S1E1R, 0x20_0123, 0x40_0000)[:, A_PAR]]
    assert par == ["0xff00000000200b80", "0x80d"]  # inner shareable Write-Back; Translation fault, level 2
    assert int(ask(oracle, row, op.AT_S1E0R, 0x20_0000)[0, A_PAR]) == 0x81D  # Permission fault, level 2


def test_a_changed_table_is_seen(oracle: UnicornOracle) -> None:
    row = identity(oracle)
    assert ask(oracle, row, op.FETCH_EL1, 0x20_0000)[0, A_TARGET] == 0
    identity(oracle, leaf=0)
    assert ask(oracle, row, op.FETCH_EL1, 0x20_0000)[0, A_TARGET] == 1
    identity(oracle, leaf=0x0020_0401 | 1 << 53)  # not executable at EL1
    assert ask(oracle, row, op.FETCH_EL1, 0x20_0000)[0, A_TARGET] == 1
    assert int(ask(oracle, row, op.AT_S1E1R, 0x20_0000)[0, A_PAR]) & 1 == 0


def test_a_stage_2_fault_tells_its_ipa(oracle: UnicornOracle) -> None:
    row = identity(oracle)
    second = TABLES + 0x8000
    oracle.memory[second >> 3 : (second >> 3) + 512] = 0
    row[7] |= U64(HCR_EL2.encode(VM=1))
    row[5] = U64(second)
    row[6] = U64(VTCR_EL2.encode(T0SZ=25, SL0=1, PS=5, RES1=1))
    (answer,) = ask(oracle, row, op.FETCH_EL1, 0x20_0000)
    assert int(answer[A_TARGET]) == 2
    assert int(answer[A_HPFAR]) == TABLES >> 12 << 4  # the walk's own table is not mapped


@pytest.mark.parametrize("operation", [op.ATOMIC_EL1, op.ATOMIC_EL0, op.AT_S1E1A, op.FETCH_EL2])
def test_operations_that_unicorn_lacks_are_refused(oracle: UnicornOracle, operation: int) -> None:
    with pytest.raises(InputError, match=op.NAMES[operation]):
        ask(oracle, identity(oracle), operation, 0)


@pytest.mark.parametrize(
    "registers",
    [
        {"HCR_EL2": HCR_EL2.encode(FWB=1)},
        {"HCR_EL2": HCR_EL2.encode(E2H=1)},
        {"TCR_EL1": TCR_EL1.encode(DS=1)},
        {"TCR_EL1": TCR_EL1.encode(HA=1)},
        {"PIR_EL1": 1},
        {"VTCR_EL2": VTCR_EL2.encode(HD=1)},
    ],
)
def test_registers_that_unicorn_lacks_are_refused(oracle: UnicornOracle, registers: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(registers))):
        ask(oracle, context(**registers), op.AT_S1E1R, 0)


def test_bad_sizes_and_places_are_refused(oracle: UnicornOracle) -> None:
    with pytest.raises(InputError, match="16 MiB"):
        UnicornOracle(1 << 20)
    with pytest.raises(InputError, match="multiple of 4"):
        ask(oracle, identity(oracle), op.FETCH_EL1, 0x20_0002)


def test_remarks_say_why() -> None:
    for remark in (*UNSUPPORTED, *DEVIATIONS):
        assert remark.name
        assert remark.text
        assert remark.reason
