"""Table frames: the allocator, and what the machine knows of each frame.

A frame is one page of the host's granule below ``DATA_BASE``; its descriptors are
``mem[frame << (page_shift - 3)]`` and following. The free list is a stack, so a freed frame is the
next one used; fresh frames come from a bump pointer and are zero because nothing wrote them.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, inline, kernel
from shadowmmu.machine.counters import TABLES_ALLOCATED, TABLES_FREED
from shadowmmu.machine.state import (
    DATA_BASE,
    R_FREE_TOP,
    R_NEXT_FRAME,
    R_PAGE_SHIFT,
    State,
    Word,
)

REFS: Final = 0
OWNER: Final = 1
PARENT: Final = 2
BASE: Final = 3

ZERO: Final = U64(0)
ONE: Final = U64(1)
THREE: Final = U64(3)

KIND_TABLE: Final = U64(1 << 32)
KIND_CONTENT: Final = U64(2 << 32)
KIND_MASK: Final = U64(3 << 32)
LEVEL_SHIFT: Final = U64(16)
LEVEL_MASK: Final = U64(0xF << 16)
MMU_MASK: Final = U64(0xFFFF)


@inline
def frame_of(s: State, word: Word) -> Word:
    """The frame that holds descriptor ``word``."""
    return word >> (s.regs[R_PAGE_SHIFT] - THREE)


@inline
def frames_left(s: State) -> int:
    """Frames that can be taken before ``mem`` must grow."""
    return len(s.frames) - I64(s.regs[R_NEXT_FRAME]) + I64(s.regs[R_FREE_TOP])


@kernel
def take_frame(s: State) -> Word:
    """A zeroed frame. The caller made sure there is one (``frames_left``). O(1) plus the zeroing."""
    top = s.regs[R_FREE_TOP]
    if top != ZERO:
        top -= ONE
        s.regs[R_FREE_TOP] = top
        frame = s.free[top]
        first = I64(frame << (s.regs[R_PAGE_SHIFT] - THREE))
        s.mem[first : first + (1 << (I64(s.regs[R_PAGE_SHIFT]) - 3))] = ZERO
    else:
        frame = s.regs[R_NEXT_FRAME]
        s.regs[R_NEXT_FRAME] = frame + ONE
    s.count[TABLES_ALLOCATED] += 1
    return frame


@kernel
def take_adjacent_frames(s: State, frames: int) -> Word:
    """``frames`` zeroed frames side by side, aligned to their total size: a concatenated root."""
    align = U64(frames)
    first = (s.regs[R_NEXT_FRAME] + align - ONE) // align * align
    s.regs[R_NEXT_FRAME] = first + align
    s.count[TABLES_ALLOCATED] += frames
    return first


@inline
def give_frame(s: State, frame: Word) -> None:
    """Put ``frame`` on the free list."""
    s.frames[frame, OWNER] = ZERO
    top = s.regs[R_FREE_TOP]
    s.free[top] = frame
    s.regs[R_FREE_TOP] = top + ONE
    s.count[TABLES_FREED] += 1


@inline
def own_table(s: State, frame: Word, mmu: int, level: int, parent: Word, base: Word) -> None:
    """Note that ``frame`` is a level ``level`` table of ``mmu``, reached from word ``parent``."""
    s.frames[frame, REFS] = ONE
    s.frames[frame, OWNER] = KIND_TABLE | (U64(level) << LEVEL_SHIFT) | U64(mmu)
    s.frames[frame, PARENT] = parent
    s.frames[frame, BASE] = base


@inline
def owner_mmu(s: State, frame: Word) -> int:
    """The MMU a table frame belongs to."""
    return I64(s.frames[frame, OWNER] & MMU_MASK)


@inline
def owner_level(s: State, frame: Word) -> int:
    """The level of a table frame."""
    return I64((s.frames[frame, OWNER] & LEVEL_MASK) >> LEVEL_SHIFT)


@inline
def is_table(s: State, frame: Word) -> bool:
    """Whether ``frame`` is a stage-2 table in use."""
    return (s.frames[frame, OWNER] & KIND_MASK) == KIND_TABLE


@inline
def data_frame(s: State, pa: Word) -> Word:
    """Index of the data page at ``pa`` among all data pages."""
    return (pa - DATA_BASE) >> s.regs[R_PAGE_SHIFT]


@inline
def read_memory(s: State, pa: Word) -> Word:
    """The 8-byte word at ``pa``, a data page or a table frame. A page never written reads as zeros."""
    if pa < DATA_BASE:
        return s.mem[pa >> THREE]
    holder = s.content[data_frame(s, pa)]
    if holder == ZERO:
        return ZERO
    inside = (pa & ((ONE << s.regs[R_PAGE_SHIFT]) - ONE)) >> THREE
    return s.mem[(holder << (s.regs[R_PAGE_SHIFT] - THREE)) + inside]


@kernel
def copy_frame(s: State, old: Word) -> Word:
    """A fresh frame of content that holds what ``old`` holds."""
    frame = take_frame(s)
    s.frames[frame, OWNER] = KIND_CONTENT
    s.frames[frame, REFS] = ONE
    shift = s.regs[R_PAGE_SHIFT] - THREE
    source = I64(old << shift)
    target = I64(frame << shift)
    for word in range(1 << I64(shift)):
        s.mem[target + word] = s.mem[source + word]
    return frame


@kernel
def write_memory(s: State, pa: Word, value: Word) -> None:
    """Store an 8-byte word at data address ``pa``; the page gets content when first written."""
    index = data_frame(s, pa)
    holder = s.content[index]
    if holder == ZERO:
        holder = take_frame(s)
        s.frames[holder, OWNER] = KIND_CONTENT
        s.frames[holder, REFS] = ONE
        s.content[index] = holder
    elif s.frames[holder, REFS] != ONE:
        s.frames[holder, REFS] -= ONE
        holder = copy_frame(s, holder)
        s.content[index] = holder
    inside = (pa & ((ONE << s.regs[R_PAGE_SHIFT]) - ONE)) >> THREE
    s.mem[(holder << (s.regs[R_PAGE_SHIFT] - THREE)) + inside] = value


@kernel
def drop_content(s: State, pa: Word) -> None:
    """Forget the content of the data page at ``pa``: its frame goes back to the free list."""
    index = data_frame(s, pa)
    holder = s.content[index]
    if holder != ZERO:
        s.content[index] = ZERO
        s.frames[holder, REFS] -= ONE
        if s.frames[holder, REFS] == ZERO:
            give_frame(s, holder)


@kernel
def share_content(s: State, source: Word, target: Word) -> None:
    """Let the data page at ``target``, which holds nothing, hold what the one at ``source`` holds. O(1).

    A later store to either copies it (``write_memory``).
    """
    holder = s.content[data_frame(s, source)]
    if holder != ZERO:
        s.frames[holder, REFS] += ONE
        s.content[data_frame(s, target)] = holder
