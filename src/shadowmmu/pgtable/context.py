"""A stage-2 context: one row of ``State.mmus``, the ``struct kvm_s2_mmu`` of the model.

Row 0 is the canonical MMU, the rows after it are the pool of shadow MMUs (``nested_mmus[]``). Columns
from ``M_DESIGN`` up belong to the design under test.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import OA48, Regime, entry_size, first_block_level, stage2_start_level
from shadowmmu.arch.registers import VTTBR_EL2
from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.machine.frames import own_table, take_adjacent_frames
from shadowmmu.machine.state import R_KVM, R_PA_BITS, R_PAGE_SHIFT, R_STRIDE, State

M_ROOT: Final = 0
M_START: Final = 1
M_IA_BITS: Final = 2
M_LEAVES: Final = 3
M_VTTBR: Final = 4
M_VTCR: Final = 5
M_ENABLED: Final = 6
M_REFCNT: Final = 7
M_PENDING: Final = 8
M_DESIGN: Final = 12
MMU_COLUMNS: Final = 24

R_SHADOWS: Final = R_KVM
"""Register: how many shadow MMUs the pool holds (``nested_mmus_size``)."""

CANONICAL: Final = 0
CNP: Final = VTTBR_EL2.mask("CnP")

ZERO: Final = U64(0)
ONE: Final = U64(1)
THREE: Final = U64(3)


@inline
def context_regime(s: State, mmu: int) -> Regime:
    """Geometry of an MMU's own tables: the host's granule, its input size and start level."""
    page_shift = I64(s.regs[R_PAGE_SHIFT])
    pa_bits = I64(s.regs[R_PA_BITS])
    return Regime(
        page_shift,
        I64(s.regs[R_STRIDE]),
        I64(s.mmus[mmu, M_START]),
        I64(s.mmus[mmu, M_IA_BITS]),
        pa_bits,
        OA48,
        first_block_level(page_shift, OA48, pa_bits),
    )


@inline
def shadow_valid(s: State, mmu: int) -> bool:
    """Whether a shadow MMU has a tenant: CnP is clear in its VTTBR (``kvm_s2_mmu_valid``)."""
    return s.mmus[mmu, M_VTTBR] & CNP == ZERO


@inline
def shadow_mmus(s: State) -> int:
    """How many shadow MMUs there are: rows 1 .. n."""
    return I64(s.regs[R_SHADOWS])


@inline
def input_size(s: State, mmu: int) -> Word:
    """Bytes of input address space: ``kvm_phys_size``."""
    return ONE << s.mmus[mmu, M_IA_BITS]


@inline
def root_word(s: State, mmu: int) -> Word:
    """Word index of the first start-table descriptor."""
    return s.mmus[mmu, M_ROOT] >> THREE


@inline
def largest_block(r: Regime) -> Word:
    """Bytes of the largest block the granule allows: the chunk of ``stage2_apply_range``."""
    return entry_size(r, 1 if r.page_shift == 12 else 2)


@kernel
def init_context(s: State, mmu: int, ia_bits: int) -> None:
    """Give ``mmu`` an empty start table for ``ia_bits`` of input. Mirrors ``kvm_init_stage2_mmu``."""
    page_shift = I64(s.regs[R_PAGE_SHIFT])
    level = stage2_start_level(page_shift, ia_bits)
    s.mmus[mmu, M_START] = U64(level)
    s.mmus[mmu, M_IA_BITS] = U64(ia_bits)
    s.mmus[mmu, M_LEAVES] = ZERO
    stride = page_shift - 3
    extra = ia_bits - (page_shift + stride * (4 - level))
    tables = 1 << extra if extra > 0 else 1
    first = take_adjacent_frames(s, tables)
    s.mmus[mmu, M_ROOT] = first << U64(page_shift)
    span = ONE << U64(page_shift + stride * (4 - level))
    for i in range(tables):
        own_table(s, first + U64(i), mmu, level, ZERO, U64(i) * span)
