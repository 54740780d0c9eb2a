"""The frame allocator and the memory it stands for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_lab import Op, call, machine

from shadowmmu.machine.counters import TABLES_ALLOCATED, TABLES_FREED
from shadowmmu.machine.frames import BASE, KIND_CONTENT, OWNER, PARENT, REFS
from shadowmmu.machine.state import DATA_BASE, R_FREE_TOP, R_NEXT_FRAME, State

DATA = int(DATA_BASE)


def words_of(s: State, frame: int, page_shift: int = 12) -> np.ndarray:
    size = 1 << (page_shift - 3)
    return s.mem[frame * size : (frame + 1) * size]


def test_fresh_frames_come_in_order_and_never_frame_0() -> None:
    s = machine(8)
    assert [call(s, Op.TAKE) for _ in range(7)] == list(range(1, 8))
    assert call(s, Op.FRAMES_LEFT) == 0
    assert s.count[TABLES_ALLOCATED] == 7


def test_freed_frames_are_used_again_last_in_first_out() -> None:
    s = machine(8)
    for _ in range(5):
        call(s, Op.TAKE)
    for frame in (2, 5, 3):
        call(s, Op.GIVE, frame)
    assert call(s, Op.FRAMES_LEFT) == 2 + 3
    assert [call(s, Op.TAKE) for _ in range(4)] == [3, 5, 2, 6]
    assert (s.count[TABLES_ALLOCATED], s.count[TABLES_FREED]) == (9, 3)


@pytest.mark.parametrize("page_shift", [12, 14, 16])
def test_a_frame_used_again_reads_as_zeros_and_its_neighbours_are_left_alone(page_shift: int) -> None:
    s = machine(8, page_shift)
    for _ in range(3):
        frame = call(s, Op.TAKE)
        words_of(s, frame, page_shift)[:] = frame
    call(s, Op.GIVE, 2)
    assert call(s, Op.TAKE) == 2
    assert not words_of(s, 2, page_shift).any()
    assert (words_of(s, 1, page_shift) == 1).all()
    assert (words_of(s, 3, page_shift) == 3).all()


@pytest.mark.parametrize("taken", range(4))
@pytest.mark.parametrize("frames", [1, 2, 8, 16])
def test_adjacent_frames_are_aligned_to_their_total_size(frames: int, taken: int) -> None:
    s = machine(64)
    for _ in range(taken):
        call(s, Op.TAKE)
    first = call(s, Op.TAKE_ADJACENT, frames)
    assert first % frames == 0
    assert first > taken
    assert s.regs[R_NEXT_FRAME] == first + frames
    assert s.count[TABLES_ALLOCATED] == taken + frames
    assert call(s, Op.TAKE) == first + frames


def test_adjacent_frames_do_not_come_from_the_free_list() -> None:
    s = machine(16)
    call(s, Op.TAKE)
    call(s, Op.GIVE, 1)
    assert call(s, Op.TAKE_ADJACENT, 2) == 2
    assert s.regs[R_FREE_TOP] == 1


@given(
    mmu=st.integers(0, 0xFFFF),
    level=st.integers(0, 3),
    parent=st.integers(0, 2**40),
    base=st.integers(0, 2**48),
)
def test_the_record_of_a_table(mmu: int, level: int, parent: int, base: int) -> None:
    s = machine(4)
    call(s, Op.OWN, 3, mmu, level, parent, base)
    assert call(s, Op.IS_TABLE, 3)
    assert (call(s, Op.OWNER_MMU, 3), call(s, Op.OWNER_LEVEL, 3)) == (mmu, level)
    assert s.frames[3, [REFS, PARENT, BASE]].tolist() == [1, parent, base]
    call(s, Op.GIVE, 3)
    s.regs[R_FREE_TOP] = 0
    assert not call(s, Op.IS_TABLE, 3)


@pytest.mark.parametrize("page_shift", [12, 14, 16])
def test_frame_of_a_word(page_shift: int) -> None:
    s = machine(4, page_shift)
    size = 1 << (page_shift - 3)
    assert [call(s, Op.FRAME_OF, word) for word in (0, size - 1, size, 3 * size + 5)] == [0, 0, 1, 3]


@pytest.mark.parametrize("page_shift", [12, 16])
def test_a_data_page_reads_as_zeros_until_written(page_shift: int) -> None:
    s = machine(8, page_shift)
    page = 1 << page_shift
    assert call(s, Op.READ, DATA + 3 * page + 8) == 0
    assert s.regs[R_NEXT_FRAME] == 1, "reading gives no content"
    call(s, Op.WRITE, DATA + 3 * page + 8, 77)
    assert call(s, Op.READ, DATA + 3 * page + 8) == 77
    assert call(s, Op.READ, DATA + 3 * page) == 0
    assert call(s, Op.READ, DATA + 2 * page + 8) == 0
    holder = int(s.content[3])
    assert s.frames[holder, OWNER] == KIND_CONTENT
    assert not call(s, Op.IS_TABLE, holder)


def test_table_frames_are_read_in_place() -> None:
    s = machine(8)
    s.mem[512 * 2 + 7] = 99
    assert call(s, Op.READ, 2 * 4096 + 7 * 8) == 99


def test_dropped_content_reads_as_zeros_and_its_frame_is_used_again() -> None:
    s = machine(8)
    call(s, Op.WRITE, DATA, 5)
    call(s, Op.WRITE, DATA + 8, 6)
    assert s.regs[R_NEXT_FRAME] == 2, "one frame a page"
    call(s, Op.DROP, DATA)
    assert call(s, Op.READ, DATA) == 0
    assert (s.count[TABLES_FREED], s.regs[R_FREE_TOP]) == (1, 1)
    call(s, Op.DROP, DATA)
    assert s.count[TABLES_FREED] == 1, "dropping nothing frees nothing"
    call(s, Op.WRITE, DATA + 4096, 9)
    assert call(s, Op.READ, DATA + 4096 + 8) == 0, "what the frame held before is gone"


@given(
    writes=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 511), st.integers(0, 2**63 - 1), st.booleans()),
        max_size=12,
    )
)
def test_memory_against_a_dictionary(writes: list[tuple[int, int, int, bool]]) -> None:
    s = machine(8, data_pages=4)
    model: dict[tuple[int, int], int] = {}
    for page, word, value, drop in writes:
        if drop:
            call(s, Op.DROP, DATA + page * 4096)
            model = {at: kept for at, kept in model.items() if at[0] != page}
        else:
            call(s, Op.WRITE, DATA + page * 4096 + word * 8, value)
            model[page, word] = value
    for page, word, _, _ in writes:
        assert call(s, Op.READ, DATA + page * 4096 + word * 8) == model.get((page, word), 0)
    written = {page for page, _ in model}
    assert {page for page in range(4) if s.content[page]} == written
    assert s.count[TABLES_ALLOCATED] - s.count[TABLES_FREED] == len(written)
