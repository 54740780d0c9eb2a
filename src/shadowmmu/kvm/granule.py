"""The granule of L1's stage 2, as L0 takes it from VTCR_EL2.

L1 is offered no stage-2 granule smaller than the host's page, because L0 fills its own tables by host
pages (``limit_nv_id_reg``, Linux 7.3.4: ID_AA64MMFR0_EL1.TGRAN*_2); the modelled CPU has all three. Read in
the source; the walk of a 4K VTCR_EL2 on a host of 16K pages is the part seen on the rig only where a
recorded run says so.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import TG0_MASK, TG0_SHIFT, Regime, granule_shift, stage2_regime
from shadowmmu.arch.registers import VTCR_EL2
from shadowmmu.compiled import I64, U64, Word, inline
from shadowmmu.machine.state import R_PA_BITS, R_PAGE_SHIFT, State

VTCR_OFFERED: Final = ~(VTCR_EL2.mask("DS") | VTCR_EL2.mask("SL2"))
"""L1 is not offered FEAT_LPA2."""
VTCR_TG0: Final = VTCR_EL2.mask("TG0")
TG0_16K: Final = U64(2)
TG0_64K: Final = U64(1)
MAX_OFFERED_BITS: Final = 48
"""PARange is shown to L1 as 48 bits at most, so its tables have the 48-bit format whatever the host's."""


@inline
def guest_page_shift(s: State, vtcr: Word) -> int:
    """Address bits inside a page of L1's stage 2. Mirrors ``vtcr_to_tg0_pgshift``, Linux 7.3.4.

    A granule that is not offered counts as the host's own page size; of those in question only smaller
    ones are not offered.
    """
    asked = granule_shift((vtcr >> TG0_SHIFT) & TG0_MASK)
    host = I64(s.regs[R_PAGE_SHIFT])
    return host if asked < host else asked


@inline
def guest_regime(s: State, vtcr: Word) -> Regime:
    """The geometry of L1's stage 2 as L0 walks it (``setup_s2_walk``, Linux 7.3.4)."""
    shift = guest_page_shift(s, vtcr)
    fitted = vtcr & VTCR_OFFERED
    if shift > granule_shift((vtcr >> TG0_SHIFT) & TG0_MASK):
        fitted &= ~VTCR_TG0
        fitted |= (TG0_16K if shift == 14 else TG0_64K) << TG0_SHIFT
    pa_bits = I64(s.regs[R_PA_BITS])
    return stage2_regime(fitted, MAX_OFFERED_BITS if pa_bits > MAX_OFFERED_BITS else pa_bits)
