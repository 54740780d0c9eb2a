"""Sizing and first state of the host's arrays; Python level, called between operations."""

from __future__ import annotations

from typing import Final, Literal

from shadowmmu.compiled import I64, U64, inline, kernel
from shadowmmu.host.geometry import huge_size, hugetlb_size, page_shift, pages_per_huge
from shadowmmu.host.layout import (
    HVA_BASE,
    ONE,
    R_HUGE_ZERO,
    R_HUGES,
    R_HUGETLB,
    R_NEXT_ANON,
    R_PAGES,
    R_PLAN_BASE,
    R_VMAS,
    R_ZERO_PAGE,
    V_ANON,
    V_END,
    V_FLAGS,
    V_START,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_READ,
    VM_WRITE,
    VMA_COLUMNS,
    ZERO,
)
from shadowmmu.machine.granule import DEFAULT_GRANULE, GRANULES, HUGETLB, hugetlb_bytes, leaf_bytes
from shadowmmu.machine.state import DATA_BASE, R_NEXT_DATA, R_PAGE_SHIFT, State, grow

Backing = Literal["base", "thp", "huge", "huge-pud", "huge-cont-pte", "huge-cont-pmd"]

ADVISED: Final = {"base": VM_NOHUGEPAGE, "thp": VM_HUGEPAGE, **dict.fromkeys(HUGETLB, VM_HUGETLB)}

ZERO_HUGES: Final = 2
"""Huge pages whose frames setup hands out at most: the huge zero page (aligned) and the zero page."""

HUGES_PER_STEP: Final = 2
"""Huge pages whose frames one step takes at most: one, and the frames lost to its alignment."""

VMAS_PER_PLAN: Final = 2
"""VMAs one operation adds at most: it cuts at two places."""

ROWS_PER_VMA: Final = 12
"""Plan rows one operation writes for each VMA it meets, at most."""

ROWS_PER_PLAN: Final = 64
"""Plan rows needed whatever the number of VMAs."""


@inline
def frames_per_step(s: State) -> int:
    """Data frames one step takes at most."""
    return HUGES_PER_STEP * int(I64(max(hugetlb_size(s), huge_size(s)) >> page_shift(s)))


def host_arrays(memory_bytes: int, page_shift: int = GRANULES[DEFAULT_GRANULE]) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that belong to this room, for a VMM with ``memory_bytes`` of RAM.

    ``content`` is sized for every page once, the zero pages and one more step: memory that is taken
    away and faulted in again takes fresh frames, so it grows in a long run (``host_grow``).
    """
    pages, huges, gigas = (-(-memory_bytes // leaf_bytes(page_shift, level)) for level in (3, 2, 1))
    per_huge = 1 << (page_shift - 3)
    return {
        "vmas": (256, VMA_COLUMNS),
        "hpte": (huges * per_huge,),
        "hpmd": (huges + gigas,),
        "plan": (128 * ROWS_PER_VMA + ROWS_PER_PLAN, 4),
        "content": (max(pages, huges * per_huge) + (ZERO_HUGES + HUGES_PER_STEP) * per_huge,),
    }


def host_setup(state: State, memory_bytes: int, backing: Backing) -> None:
    """Map the VMM's RAM as the rig's VMM does: one mapping at ``HVA_BASE``, advised as ``backing`` says.

    ``base``: MADV_NOHUGEPAGE, ``thp``: MADV_HUGEPAGE, ``huge`` and ``huge-*``: hugetlb pages, sizes in
    ``machine.granule.HUGETLB``. Nothing is populated. Raises ValueError for an unknown backing, a size that
    is not whole pages (hugetlb ones where those are asked for), and arrays smaller than ``host_arrays``.
    """
    if backing not in ADVISED:
        raise ValueError(f"backing {backing!r}: choose one of {', '.join(ADVISED)}")
    bits = int(state.regs[R_PAGE_SHIFT])
    granule = next(name for name, shift in GRANULES.items() if shift == bits)
    hugetlb = hugetlb_bytes(granule, backing)
    if backing in HUGETLB and not hugetlb:
        raise ValueError(f"backing {backing!r}: a host of {granule} pages has none")
    unit = hugetlb or leaf_bytes(bits, 3)
    if memory_bytes <= 0 or memory_bytes % unit:
        raise ValueError(f"memory of {memory_bytes} bytes is not a multiple of {unit}")
    wanted = host_arrays(memory_bytes, bits)
    for name in ("hpte", "hpmd", "content"):
        if getattr(state, name).shape[0] < wanted[name][0]:
            raise ValueError(f"array {name} has fewer than {wanted[name][0]} words")
    regs = state.regs
    per_huge = pages_per_huge(state)
    regs[R_PAGES] = U64(memory_bytes >> bits)
    regs[R_HUGETLB] = U64(hugetlb or leaf_bytes(bits, 2))
    regs[R_HUGES] = U64(wanted["hpte"][0] // per_huge)
    regs[R_NEXT_ANON] = ONE
    first = -(-int(regs[R_NEXT_DATA]) // per_huge) * per_huge
    regs[R_HUGE_ZERO] = U64(int(DATA_BASE) + (first << bits))
    regs[R_ZERO_PAGE] = U64(int(DATA_BASE) + ((first + per_huge) << bits))
    regs[R_NEXT_DATA] = U64(first + per_huge + 1)
    regs[R_VMAS] = ONE
    state.vmas[0, V_START] = HVA_BASE
    state.vmas[0, V_END] = U64(int(HVA_BASE) + memory_bytes)
    state.vmas[0, V_FLAGS] = VM_READ | VM_WRITE | VM_NORESERVE | ADVISED[backing]
    state.vmas[0, V_ANON] = ZERO


@kernel
def vmas_fit(s: State) -> bool:
    """Whether one more operation's VMAs fit ``vmas`` and their draft."""
    return bool(I64(s.regs[R_VMAS]) + VMAS_PER_PLAN <= len(s.vmas) // 2)


@kernel
def plan_fits(s: State) -> bool:
    """Whether one more operation's steps fit ``plan``."""
    rows = (I64(s.regs[R_VMAS]) + VMAS_PER_PLAN) * ROWS_PER_VMA + ROWS_PER_PLAN
    return bool(I64(s.regs[R_PLAN_BASE]) + rows <= len(s.plan))


@kernel
def frames_fit(s: State) -> bool:
    """Whether ``content`` has a word for every data frame that one more step may take."""
    return bool(I64(s.regs[R_NEXT_DATA]) + frames_per_step(s) <= len(s.content))


@kernel
def host_reserve(s: State) -> bool:
    """Whether one more operation surely fits the arrays; if not, ``host_grow`` first. O(1)."""
    return vmas_fit(s) and plan_fits(s) and frames_fit(s)


def host_grow(state: State) -> State:
    """A state in which one more operation fits. Not while a plan is under way.

    Raises MemoryError where the machine has no room: nothing is changed then.
    """
    while not vmas_fit(state):
        state = grow(state, "vmas")
    while not plan_fits(state):
        state = grow(state, "plan")
    while not frames_fit(state):
        state = grow(state, "content")
    return state
