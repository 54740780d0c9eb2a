"""Building the machine a scenario asks for: arrays, host memory, VM, vCPUs, L1 at its mailbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from shadowmmu.arch.registers import HCR_EL2
from shadowmmu.compiled import U64, Word, Words, kernel
from shadowmmu.designs.dispatch import design_init
from shadowmmu.designs.interface import CATALOGUE, Design
from shadowmmu.engine.contents import contents_matter
from shadowmmu.events.schema import CAPABILITIES, CAPABILITY, MEMSLOT, MOST_SLOTS, Scenario
from shadowmmu.guest.layout import G_MEMORY, RAM_BASE
from shadowmmu.host.layout import HVA_BASE, R_CONTENTS
from shadowmmu.host.setup import Backing, host_arrays, host_setup
from shadowmmu.kvm.at import VARIANTS
from shadowmmu.kvm.differences import switch_bits
from shadowmmu.kvm.layout import (
    K_ARCHITECTURE,
    K_AT,
    K_BOOT_HCR,
    K_SLOTS,
    NO_MMU,
    S_BASE,
    S_DIRTY_WORD,
    S_HVA,
    S_SIZE,
    SLOT_COLUMNS,
    V_HW_MMU,
    VCPU_COLUMNS,
)
from shadowmmu.kvm.pool import SHADOWS_PER_VCPU, init_nested_vcpu
from shadowmmu.kvm.vcpu import init_vcpu, load_vcpu
from shadowmmu.machine.granule import DEFAULT_GRANULE, page_shift_of
from shadowmmu.machine.state import (
    R_FWB,
    R_GHOST_ON,
    R_LOG_ON,
    R_LOG_TLB,
    R_NEXT_FRAME,
    R_PA_BITS,
    R_PAGE_SHIFT,
    R_PRECISE_UPDATES,
    R_STRIDE,
    R_TLBIRANGE,
    REGISTERS,
    State,
    empty_counters,
)
from shadowmmu.pgtable.context import MMU_COLUMNS, init_context

HCR_VM = HCR_EL2["VM"].mask
HCR_E2H = HCR_EL2["E2H"].mask
DEFAULT_VM_IPA_BITS = 40
FIRST_RECORD_PAGES = 128
"""Words of a design's record to start with, in pages: a radix over 16 start tables side by side fits."""


@dataclass(frozen=True)
class Machine:
    """What the hardware and the host kernel are, apart from the scenario."""

    ipa_limit_bits: int = 48
    granule: str = DEFAULT_GRANULE
    """Page size of the host kernel, ``machine.granule.GRANULES``: 4K, 16K or 64K."""
    tlbirange: bool = True
    fwb: bool = True
    judged: bool = True
    """Keep what the judge needs (births, deaths, refaults); costs time and memory."""
    precise_updates: bool = False
    """L0 also ages and write-protects shadow leaves by the design's record; Linux 7.3.4 ages none and
    write-protects all."""
    logged: bool = False
    """Keep the observation log."""
    at: str = "linux-7.3.4"
    """How L0 emulates AT (``kvm.at.VARIANTS``)."""
    as_architecture: tuple[str, ...] = ()
    """Differences (``kvm.differences.SWITCHES``) in which L0 does as the architecture asks, not as Linux."""
    tlb_logged: bool = False
    """With ``logged``: also leaves as they are written, TLB invalidations, bits of the dirty bitmap."""
    frames: int = 1024
    """Table frames to start with; the arrays double when they run out."""


def build_state(scenario: Scenario, machine: Machine, design: str) -> State:
    """The machine of ``scenario``; L1 boots when the first events run.

    Raises KeyError for an unknown design, variant of AT or difference; ValueError for an unknown granule, or
    one that is not the scenario's.
    """
    chosen = CATALOGUE[design]
    page_shift = page_shift_of(machine.granule)
    if scenario.granule != machine.granule:
        told = f"the scenario is written for pages of {scenario.granule}"
        raise ValueError(f"{told}, the machine has pages of {machine.granule}")
    state = _allocate(scenario, machine, chosen)
    regs = state.regs
    regs[R_PAGE_SHIFT] = page_shift
    regs[R_STRIDE] = page_shift - 3
    regs[R_NEXT_FRAME] = 1
    regs[R_PA_BITS] = machine.ipa_limit_bits
    regs[R_TLBIRANGE] = machine.tlbirange
    regs[R_FWB] = machine.fwb
    regs[R_PRECISE_UPDATES] = machine.precise_updates
    regs[R_GHOST_ON] = machine.judged
    regs[R_LOG_ON] = machine.logged
    regs[R_LOG_TLB] = machine.logged and machine.tlb_logged
    regs[K_SLOTS] = 1
    regs[K_AT] = VARIANTS[machine.at]
    regs[K_ARCHITECTURE] = switch_bits(machine.as_architecture)
    regs[R_CONTENTS] = contents_matter(scenario)
    regs[G_MEMORY] = scenario.memory_bytes
    state.slots[0, S_BASE] = RAM_BASE
    state.slots[0, S_SIZE] = scenario.memory_bytes
    state.slots[0, S_HVA] = HVA_BASE
    state.slots[:, S_DIRTY_WORD] = bitmap_words(scenario, page_shift) * np.arange(MOST_SLOTS)
    host_setup(state, scenario.memory_bytes, cast("Backing", scenario.backing))
    canonical_bits = min(scenario.vm_ipa_bits or DEFAULT_VM_IPA_BITS, machine.ipa_limit_bits)
    hcr = U64(HCR_VM if scenario.e2h0 else HCR_VM | HCR_E2H)
    start_vm(state, canonical_bits, machine.ipa_limit_bits, chosen.number, hcr)
    return state


def _allocate(scenario: Scenario, machine: Machine, design: Design) -> State:
    def words(*shape: int) -> Words:
        return np.zeros(shape, np.uint64)

    page_shift = page_shift_of(machine.granule)
    shapes = host_arrays(scenario.memory_bytes, page_shift)
    host = {name: words(*shape) for name, shape in shapes.items()}
    mem_words = machine.frames << (page_shift - 3)
    return State(
        mem=words(mem_words),
        frames=words(machine.frames, 4),
        free=words(machine.frames),
        content=host["content"],
        regs=words(REGISTERS),
        count=empty_counters(),
        log=words(1024 if machine.logged else 1, 8),
        mmus=words(SHADOWS_PER_VCPU * scenario.vcpus + 1, MMU_COLUMNS),
        vcpus=words(scenario.vcpus, VCPU_COLUMNS),
        slots=words(MOST_SLOTS, SLOT_COLUMNS),
        vmas=host["vmas"],
        hpte=words((1 + contents_matter(scenario)) * shapes["hpte"][0]),
        hpmd=host["hpmd"],
        plan=host["plan"],
        dirty=words(dirty_words(scenario, page_shift)),
        rmap=words(FIRST_RECORD_PAGES << (page_shift - 3)),
        side=words(mem_words if design.uses_side else 1),
        ghost=words(mem_words if machine.judged else 1),
        graves=words(1 << 12 if machine.judged else 1),
    )


def bitmap_words(scenario: Scenario, page_shift: int) -> int:
    """Words of the dirty bitmap of a memslot as large as the VM's memory."""
    return (scenario.memory_bytes >> page_shift) // 64 + 1


def dirty_words(scenario: Scenario, page_shift: int) -> int:
    """Words of the dirty bitmaps of all memslots of the scenario, and of the dirty rings behind them."""
    events = scenario.events
    slots = int(events["a"][events["kind"] == MEMSLOT].max(initial=0)) + 1
    rings = events[(events["kind"] == CAPABILITY) & (events["a"] == CAPABILITIES.index("ring"))]
    entries = int(rings["b"].max(initial=0))
    return slots * bitmap_words(scenario, page_shift) + scenario.vcpus * entries


@kernel
def start_vm(s: State, canonical_bits: int, limit_bits: int, design: int, hcr: Word) -> None:
    """Create the stage-2 contexts and plug in the design; ``hcr``: L1's virtual HCR_EL2."""
    init_context(s, 0, canonical_bits)
    for _vcpu in range(len(s.vcpus)):
        init_nested_vcpu(s, limit_bits)
    design_init(s, design)
    s.regs[K_BOOT_HCR] = hcr
    for vcpu in range(len(s.vcpus)):
        s.vcpus[vcpu, V_HW_MMU] = NO_MMU
        init_vcpu(s, vcpu)
        load_vcpu(s, vcpu)


__all__ = ["Machine", "build_state", "start_vm"]
