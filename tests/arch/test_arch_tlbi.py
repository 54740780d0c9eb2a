"""Operands of TLBIs by intermediate physical address: worked values, and the range formula."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmmu.arch.registers import TLBI_IPAS2, TLBI_RIPAS2
from shadowmmu.arch.tlbi import ipas2_address, ipas2_ttl, ripas2_range, ttl_size
from shadowmmu.compiled import U64

K, M, G = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("operand", "ttl", "start", "size"),
    [
        (0x0000_6000_0004_0201, 0b0110, 0x4020_0000, 2 * M),
        (0x0000_7000_0004_0201, 0b0111, 0x4020_1000, 4 * K),
        (0x0000_A000_0004_0201, 0b1010, 0x4000_0000, 32 * M),
        (0x0000_0000_0004_0201, 0, 0x4020_1000, 0),
    ],
)
def test_ipas2e1_operands(operand: int, ttl: int, start: int, size: int) -> None:
    assert int(ipas2_ttl(U64(operand))) == ttl
    span = int(ttl_size(ttl))
    assert span == size
    assert int(ipas2_address(U64(operand))) // (span or 1) * (span or 1) == start


@pytest.mark.parametrize(
    ("ttl", "size"),
    [
        *((code, 0) for code in (0b0000, 0b0001, 0b0010, 0b0011)),
        (0b0100, 0),
        (0b0101, G),
        (0b0110, 2 * M),
        (0b0111, 4 * K),
        (0b1000, 0),
        (0b1001, 0),
        (0b1010, 32 * M),
        (0b1011, 16 * K),
        (0b1100, 0),
        (0b1101, 0),
        (0b1110, 512 * M),
        (0b1111, 64 * K),
    ],
)
def test_every_ttl_hint(ttl: int, size: int) -> None:
    assert int(ttl_size(ttl)) == size


@pytest.mark.parametrize(
    ("operand", "start", "pages", "page"),
    [
        (0x0000_4000_0004_0000, 0x4000_0000, 2, 4 * K),
        (0x0000_7F80_0004_0000, 0x4000_0000, 2_097_152, 4 * K),
        (0x0000_9780_0001_0000, 0x4000_0000, 1024, 16 * K),
        (0x0000_E000_0000_4000, 0x4000_0000, 2048, 64 * K),
    ],
)
def test_ripas2e1_operands(operand: int, start: int, pages: int, page: int) -> None:
    found = ripas2_range(U64(operand))
    assert (int(found.start), int(found.size)) == (start, pages * page)


@given(
    base=st.integers(0, 2**37 - 1),
    num=st.integers(0, 31),
    scale=st.integers(0, 3),
    tg=st.sampled_from([1, 2, 3]),
)
def test_the_range_formula(base: int, num: int, scale: int, tg: int) -> None:
    operand = TLBI_RIPAS2.encode(BaseADDR=base, NUM=num, SCALE=scale, TG=tg, TTL=2)
    page = {1: 4 * K, 2: 16 * K, 3: 64 * K}[tg]
    found = ripas2_range(U64(operand))
    assert (int(found.start), int(found.size)) == (base * page, (num + 1) * 2 ** (5 * scale + 1) * page)


@given(page=st.integers(0, 2**36 - 1), ttl=st.integers(0, 15), ns=st.integers(0, 1))
def test_ipas2_fields_do_not_mix(page: int, ttl: int, ns: int) -> None:
    operand = U64(TLBI_IPAS2.encode(IPA=page, TTL=ttl, NS=ns))
    assert (int(ipas2_address(operand)), int(ipas2_ttl(operand))) == (page * 4096, ttl)
