"""What is stored where, kept only where a scenario asks for it: merging and zero pages depend on contents.

L1's own stores to its tables are always kept; these are the VMM's and L2's, with the values of the rig
(``rig/vmm``).
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.fault import NONE, WRITE
from shadowmmu.arch.regime import output_address
from shadowmmu.arch.stage2 import stage2_fault, stage2_walk
from shadowmmu.compiled import U64, Word, kernel
from shadowmmu.events.schema import KSM, MIGRATE, PAGEOUT, Scenario
from shadowmmu.host.layout import R_CONTENTS, ZERO
from shadowmmu.host.tables import translate
from shadowmmu.kvm.pool import hw_mmu
from shadowmmu.machine.frames import read_memory, write_memory
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import M_ROOT, context_regime

STORED: Final = U64(0x5A5A)
"""L2 stores the VA that its ``touch`` begins at, exclusive-or this."""
RETURN: Final = U64(0xD65F_03C0)
"""The instruction that ``ret`` stores, in the lower half of a page's first word."""
UPPER: Final = U64(0xFFFF_FFFF_0000_0000)


def contents_matter(scenario: Scenario) -> bool:
    """Whether an event of the scenario does what depends on the contents of memory."""
    return bool(set(scenario.events["kind"].tolist()) & {KSM, MIGRATE, PAGEOUT})


@kernel
def keep_vmm_store(s: State, hva: Word, canonical_ipa: Word, instruction: bool) -> None:
    """The VMM stored the page's address, or a ``ret`` instruction, at the start of page ``hva``."""
    if s.regs[R_CONTENTS] == ZERO:
        return
    page = translate(s, hva)
    if page.size == ZERO:
        return
    if instruction:
        write_memory(s, page.pa, (read_memory(s, page.pa) & UPPER) | RETURN)
    else:
        write_memory(s, page.pa, canonical_ipa)


@kernel
def keep_l2_store(s: State, vcpu: int, va: Word, value: Word) -> None:
    """L2 on ``vcpu`` stored ``value`` at ``va``, through its shadow stage 2."""
    if s.regs[R_CONTENTS] == ZERO:
        return
    mmu = hw_mmu(s, vcpu)
    r = context_regime(s, mmu)
    walk = stage2_walk(s.mem, r, s.mmus[mmu, M_ROOT], va, False)
    if stage2_fault(walk, WRITE) == NONE:  # else it was answered as MMIO
        write_memory(s, output_address(r, walk.descriptor, walk.level, va), value)
