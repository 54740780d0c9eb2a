"""The join: whose page is behind a fill, which table is which, and what is only counted."""

from __future__ import annotations

import pytest
from trace_lab import BLOCK, CANONICAL, GIB, PAGE, SECOND, SHADOW, VTTBR, WHOLE, TraceText

from shadowmmu.engine.refill_step import (
    E_CANONICAL,
    E_END,
    E_FLAGS,
    E_KIND,
    E_START,
    FILL,
    INVALIDATE_IPA,
    INVALIDATE_RANGE,
    NOTIFY,
    OUTPUT,
    PROTECT_ALL,
    RELAX_LEAF,
)
from shadowmmu.errors import UndeterminedError
from shadowmmu.formats.problem import FormatError
from shadowmmu.lab import trace_join as ways
from shadowmmu.lab.recorded_cost import Fate
from shadowmmu.lab.trace_join import JoinedTrace

C, D = 0x4000_0000, 0x4000_1000
N, M = 0x8000_0000, 0x8000_1000
P, Q = 0x9000_0000, 0x9000_1000


def fills(joined: JoinedTrace) -> list[int | None]:
    """The canonical address of each fill, None where it is not known."""
    rows = [event for event in joined.events if event[E_KIND] == FILL]
    return [int(event[E_CANONICAL]) if event[E_FLAGS] else None for event in rows]


def notified(joined: JoinedTrace) -> list[tuple[int, int]]:
    """The canonical range of each notifier."""
    rows = [event for event in joined.events if event[E_KIND] == NOTIFY]
    return [(int(event[E_START]), int(event[E_END])) for event in rows]


def kinds(joined: JoinedTrace) -> list[int]:
    return [int(event[E_KIND]) for event in joined.events]


def test_a_fill_is_joined_through_its_output_address() -> None:
    joined = TraceText().canonical(C, P).shadow(N, P).join()
    assert fills(joined) == [C]
    assert joined.joins == {ways.BY_OUTPUT: 1}
    assert joined.canonical == CANONICAL


def test_inside_a_block_of_the_canonical_table_too() -> None:
    base, output = 0x4020_0000, 0x9020_0000
    joined = TraceText().canonical(base, output, size=BLOCK).shadow(N, output + 5 * PAGE).join()
    assert fills(joined) == [base + 5 * PAGE]


def test_a_block_is_not_joined_to_one_page_that_lies_across() -> None:
    joined = (
        TraceText()
        .canonical(C + PAGE, 0x9020_0000)
        .shadow(0x8020_0000, 0x9020_0000, tag=2, size=BLOCK)
        .join()
    )
    assert fills(joined) == [None]


def test_a_notifier_ends_what_the_join_knows_and_l1s_mapping_stands_in() -> None:
    text = TraceText().canonical(C, P).shadow(N, P).notifier(C).shadow(N, Q)
    joined = text.join()
    assert fills(joined) == [C, C]
    assert joined.joins == {ways.BY_OUTPUT: 1, ways.BY_MEMORY: 1}


def test_a_notifier_is_told_the_frames_that_fills_have_shown() -> None:
    text = TraceText().canonical(0x4020_0000, 0x9020_0000, size=BLOCK).canonical(C, P).shadow(N, P)
    text.notifier(C).shadow(N, Q).notifier(0x4020_0000 - BLOCK, BLOCK + 2 * PAGE).notifier(D)
    rows = [event for event in text.join().events if event[E_KIND] in (OUTPUT, NOTIFY)]
    told = [(int(row[E_START]), int(row[E_END])) for row in rows if row[E_KIND] == OUTPUT]
    assert told == [(P, P + PAGE), (Q, Q + PAGE), (0x9020_0000, 0x9020_0000 + 2 * PAGE)]
    assert [int(row[E_CANONICAL]) for row in rows if row[E_KIND] == NOTIFY] == [1, 2, 0]


def test_l1s_mapping_is_forgotten_when_l1_invalidates_it() -> None:
    text = TraceText().canonical(C, P).shadow(N, P).shadow(M, P).notifier(C)
    joined = text.tlbi(N, N, PAGE).shadow(N, Q).shadow(M, Q).join()
    assert fills(joined) == [C, C, None, C]


@pytest.mark.parametrize(("tag", "forgotten"), [(3, False), (2, True), (1, True)])
def test_an_invalidation_forgets_all_of_the_l1_leaf_it_names(tag: int, forgotten: bool) -> None:
    text = TraceText().canonical(C, P).shadow(M, P, tag=tag).notifier(C).tlbi(N, N, GIB).shadow(M, Q, tag=tag)
    assert fills(text.join()) == [C, None if forgotten else C]


def test_a_shared_page_is_the_one_l1_mapped_before() -> None:
    text = TraceText().canonical(C, P).shadow(N, P).notifier(C).canonical(C, Q).canonical(D, Q).shadow(N, Q)
    joined = text.join()
    assert fills(joined) == [C, C]
    assert joined.joins[ways.BY_MEMORY_SHARED] == 1


def test_a_sharer_alone_in_the_canonical_table_does_not_mislead() -> None:
    text = TraceText().canonical(C, P).shadow(N, P).notifier(C).canonical(D, Q).shadow(N, Q)
    assert fills(text.join()) == [C, C]


def test_a_page_that_l1s_old_mapping_cannot_be_is_not_taken_for_it() -> None:
    text = TraceText().canonical(C, P).canonical(D, Q).shadow(N, P).shadow(N, Q)
    assert fills(text.join()) == [C, D]


def test_a_shared_page_never_seen_before_is_ambiguous_and_told() -> None:
    joined = TraceText().canonical(C, P).canonical(D, P).shadow(N, P).join()
    assert fills(joined) == [None]
    assert joined.joins == {ways.AMBIGUOUS: 1}
    assert dict(joined.notes)["shadow fills not joined to a canonical address"] == 1


def test_with_stage_2_off_the_address_is_canonical() -> None:
    text = TraceText().canonical(C, P).canonical(D, Q).map(SECOND, 0, C, P).shadow(N, P)
    joined = text.notifier(D, PAGE, SHADOW, SECOND).join()
    assert fills(joined) == [C, C]
    assert [(table.pgt, table.stage2_on) for table in joined.tables] == [(SECOND, False), (SHADOW, True)]
    assert joined.fills == 1


def test_without_a_sweep_the_table_with_most_fills_is_canonical() -> None:
    text = TraceText().map(SECOND, 0, C, P).canonical(C, P).canonical(D, Q).shadow(N, P)
    assert text.join().canonical == CANONICAL


def test_two_vms_in_one_trace_are_refused() -> None:
    text = TraceText().canonical(C, P).canonical(D, Q).map(SECOND, 0, C, Q).shadow(N, P)
    with pytest.raises(UndeterminedError, match="several VMs"):
        text.join()


def test_a_trace_without_shadow_fills_has_nothing_to_replay() -> None:
    with pytest.raises(UndeterminedError, match="nothing to replay"):
        TraceText().canonical(C, P).join()


def test_a_memslot_that_goes_is_a_notifier_for_its_range() -> None:
    text = (
        TraceText().canonical(C, P).shadow(N, P).range(C, BLOCK, pgt=CANONICAL).event("nested_unmap").range()
    )
    joined = text.event("nested_unmap_ret").shadow(N, Q).join()
    assert notified(joined) == [(C, C + BLOCK)]
    assert joined.fates[joined.fates > 0].tolist() == [Fate.FIRST, Fate.AFTER_NOTIFIER]


def test_a_sweep_without_a_range_is_for_everything_and_told() -> None:
    joined = TraceText().canonical(C, P).shadow(N, P).event("nested_unmap").range().join()
    assert notified(joined) == [(0, WHOLE)]
    assert dict(joined.notes)["unmaps of all shadows for an unknown range"] == 1


def test_alle1_sweeps_for_l1_and_not_for_a_notifier() -> None:
    text = TraceText().canonical(C, P).shadow(N, P).event("tlbi_alle1").event("nested_unmap").range()
    joined = text.event("nested_unmap_ret").shadow(N, P).join()
    assert kinds(joined) == [FILL, INVALIDATE_RANGE, FILL]
    assert joined.fates[2] == Fate.AFTER_GUEST


def test_a_range_after_a_tlbi_is_its_own_only_if_it_holds_the_address() -> None:
    text = TraceText().canonical(C, P).shadow(N, P).tlbi(N, N, PAGE).range().range(M, PAGE)
    joined = text.join()
    assert kinds(joined)[1:] == [INVALIDATE_IPA, INVALIDATE_RANGE, INVALIDATE_RANGE]
    assert joined.recorded.guest_ranges == 3


def test_ranges_by_another_thread_are_not_the_notifiers() -> None:
    text = TraceText().canonical(C, P).shadow(N, P)
    text.event("unmap_gfn", "start=0x40000 end=0x40001", pid=9).range(N, PAGE, pid=46)
    joined = text.join()
    assert joined.recorded.guest_swept == 1
    assert dict(joined.notes)["notifiers still running at the end of the trace"] == 1


def test_with_returns_only_maps_that_succeed_are_fills() -> None:
    text = TraceText().canonical(C, P).event("s2map_ret", "ret=0").shadow(N, P).event("s2map_ret", "ret=-12")
    text.shadow(N, P).event("s2map_ret", "ret=0").event("s2map_ret", "ret=0").shadow(M, P).shadow(M, P)
    joined = text.join()
    assert fills(joined) == [C]
    assert dict(joined.notes) == {
        "maps that failed or found the same leaf": 1,
        "returns of maps that were not seen": 1,
        "maps whose return is missing, taken for none": 1,
    }


def test_permissions_are_carried_over() -> None:
    text = (
        TraceText()
        .canonical(C, P)
        .shadow(N, P, prot=0xB)
        .event("s2relax", f"pgt={SHADOW:#x} addr={N:#x} prot=0xf")
    )
    text.event("s2relax", f"pgt={CANONICAL:#x} addr={C:#x} prot=0xf").event("nested_wp")
    assert kinds(text.join()) == [FILL, RELAX_LEAF, PROTECT_ALL]


def test_what_the_kernel_refuses_or_never_filled_is_only_counted() -> None:
    text = TraceText().canonical(C, P).shadow(N, P).range()
    joined = text.event("tlbi_ipas2", "val=0x0").range(WHOLE, GIB).range(0, PAGE, pgt=SECOND).join()
    assert kinds(joined) == [FILL, INVALIDATE_RANGE]
    assert dict(joined.notes)["ranges beyond the IPA limit, which the kernel refuses"] == 1
    assert dict(joined.notes)["ranges of tables that were never filled"] == 1


@pytest.mark.parametrize(
    ("ipa", "pa", "size"), [(N, P, 8192), (N + PAGE, P, BLOCK), (1 << 50, P, PAGE), (N, 1 << 50, PAGE)]
)
def test_fills_that_no_4k_host_makes_are_refused_at_their_line(ipa: int, pa: int, size: int) -> None:
    text = TraceText().canonical(C, P).map(SHADOW, VTTBR, ipa, pa, 0xF | 3 << 55, size)
    with pytest.raises(FormatError, match="made-up:3"):
        text.join()
