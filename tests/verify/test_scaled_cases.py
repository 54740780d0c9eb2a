"""The kit's scripts rewritten for larger pages: the same events, the same shapes, the operands re-encoded."""

from __future__ import annotations

import pytest

from shadowmmu.events.scenario import parse_scenario
from shadowmmu.events.schema import HOST_WRITE
from shadowmmu.machine.granule import block_bytes, page_bytes
from shadowmmu.verify.cases import Case, conformance_cases
from shadowmmu.verify.scaled import granule_cases, has_level_1, scaled_case

LARGER = ["16K", "64K"]


def test_with_4k_the_kit_is_unchanged() -> None:
    assert granule_cases("4K") == conformance_cases()
    assert len(granule_cases("16K")) == len(conformance_cases()) - 1


@pytest.mark.parametrize("granule", LARGER)
def test_every_case_makes_the_same_events(granule: str) -> None:
    for case in conformance_cases():
        if has_level_1(case):
            continue
        small = parse_scenario(case.script, case.name)
        large = parse_scenario(scaled_case(case, granule).script, case.name)
        assert large.granule == granule
        kinds = [[int(e["kind"]) for e in s.events if int(e["kind"]) != HOST_WRITE] for s in (small, large)]
        assert kinds[0] == kinds[1]


def rewritten(line: str, granule: str) -> str:
    """One line under another granule."""
    return scaled_case(Case("one", "", line), granule).script.rstrip("\n")


@pytest.mark.parametrize("granule", LARGER)
def test_pages_stay_pages_and_blocks_blocks(granule: str) -> None:
    page, block = page_bytes(granule), block_bytes(granule)
    data = {"16K": 0x4200_0000, "64K": 0x6000_0000}[granule]
    words = rewritten("map 0x80201000 0x41201000 8k 3 rw", granule).split()
    assert int(words[1], 16) == (8 << 32) + block + page
    assert int(words[2], 16) == data + block + page
    words = rewritten("punch 0x411ff000 2M", granule).split()
    assert int(words[1], 16) == data + block - page
    assert rewritten("touch r 0x10000", granule) == f"touch r {16 * page:#x}"
    assert rewritten("codeat 0x40050000", granule) == "codeat 0x40050000"
    assert rewritten("codeat 0x10000", granule) == f"codeat {16 * page:#x}"
    assert rewritten("mprotect 0x40050000 4k r", granule).startswith("mprotect 0x40050000 ")
    assert rewritten("write 0x41000000 4M", granule).count("write") == 2
    assert rewritten("getlog", granule) == "getlog"


@pytest.mark.parametrize(("granule", "tg", "shift"), [("16K", 2, 14), ("64K", 3, 16)])
def test_tlbi_operands_are_encoded_anew(granule: str, tg: int, shift: int) -> None:
    page = 0x8 << 32
    for level, hint in ((0, 0), (1, tg << 2 | 2), (2, tg << 2 | 2), (3, tg << 2 | 3)):
        old = (4 | level if level else 0) << 44 | 0x8000_0000 >> 12
        assert rewritten(f"tlbi 0 {old:#x}", granule) == f"tlbi 0 {hint << 44 | page >> 12:#x}"
    old = 1 << 46 | 2 << 44 | 5 << 39 | 0x8000_0000 >> 12
    assert (
        rewritten(f"tlbi 2 {old:#x}", granule) == f"tlbi 2 {tg << 46 | 2 << 44 | 5 << 39 | page >> shift:#x}"
    )
    assert rewritten("tlbi 5", granule) == "tlbi 5"
