"""The guest stage-2 walk: L0 reads the table that L1 wrote in its own memory.

Mirrors Linux 7.3.4 ``kvm_walk_nested_s2`` (``setup_s2_walk``, ``walk_nested_s2_pgd``): the live virtual
VTTBR_EL2 and VTCR_EL2 decide, descriptors are read through memslots by canonical IPA, permissions are
left to the caller. Where it differs from the architecture it does as Linux does: input bits above T0SZ
are dropped, not refused (seen on the running kernel, ``suspicion/nested-ipa-above-t0sz``).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.fault import (
    ACCESS_FLAG,
    ADDRESS_SIZE,
    EXTERNAL_WALK,
    NONE,
    TRANSLATION,
)
from shadowmmu.arch.regime import (
    SHIFT_4K,
    SHIFT_64K,
    Regime,
    level_shift,
    root_base,
    start_size_legal,
    table_address,
)
from shadowmmu.arch.registers import VTCR_EL2
from shadowmmu.arch.stage2 import (
    AF,
    CONTIGUOUS,
    OA_BITS,
    PAGE_BIT,
    TABLE,
    VALID,
)
from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.host.fault import plan_touch
from shadowmmu.host.geometry import page_size
from shadowmmu.host.tables import translate
from shadowmmu.kvm.differences import NESTED_IPA_SIZE, as_architecture
from shadowmmu.kvm.granule import guest_regime
from shadowmmu.kvm.layout import (
    EAGAIN,
    EFAULT,
    FAULT_OF_L1,
    K_RACES,
    ONE,
    S_FLAGS,
    SLOT_READONLY,
    ZERO,
)
from shadowmmu.kvm.notifier import run_host_plan
from shadowmmu.kvm.slots import NO_SLOT, find_slot, mark_dirty, slot_hva
from shadowmmu.machine.counters import GUEST_DESCRIPTORS_READ
from shadowmmu.machine.frames import read_memory, write_memory
from shadowmmu.machine.state import R_PA_BITS, State

VTCR_HA: Final = VTCR_EL2.mask("HA")
THREE: Final = U64(3)
MIN_INPUT_BITS: Final = 25
MAX_INPUT_BITS: Final = 48


class GuestWalk(NamedTuple):
    """What L1's table says: ``fault`` NONE or the kind L1 gets; the leaf's output, size, descriptor.

    ``code`` is what the kernel's function returns: 0, FAULT_OF_L1, or an error number. An abort forwards
    both kinds of failure to L1, but for EAGAIN; AT S12 replays the instruction for every error number.
    """

    fault: int
    level: int
    output: Word
    size: Word
    descriptor: Word
    code: int


@inline
def fault_at(kind: int, level: int, code: int) -> GuestWalk:
    """A walk that ended in a fault."""
    return GuestWalk(kind, level, ZERO, ZERO, ZERO, code)


class GuestWord(NamedTuple):
    """A word of L1's memory; ``found`` False where no memslot or no page backs it."""

    found: bool
    value: Word
    pa: Word


@kernel
def read_guest(s: State, canonical_ipa: Word, probe: bool) -> GuestWord:
    """Read 8 bytes of L1's memory through the VMM's mapping. Mirrors ``kvm_read_guest``.

    A probe has no side effects: it faults nothing in and counts nothing.
    """
    if not probe:
        s.count[GUEST_DESCRIPTORS_READ] += 1
    slot = find_slot(s, canonical_ipa)
    if slot == NO_SLOT:
        return GuestWord(False, ZERO, ZERO)
    hva = slot_hva(s, slot, canonical_ipa)
    page = translate(s, hva)
    if page.size == ZERO:
        if probe:
            return GuestWord(False, ZERO, ZERO)
        steps = plan_touch(s, hva, False)
        if steps < 0:
            return GuestWord(False, ZERO, ZERO)
        run_host_plan(s, steps)
        page = translate(s, hva)
    pa = page.pa + (canonical_ipa & (page_size(s) - ONE))
    return GuestWord(True, read_memory(s, pa), pa)


@kernel
def swap_guest_word(s: State, canonical_ipa: Word, value: Word) -> int:
    """Replace a descriptor in L1's memory; 0, EAGAIN where another CPU was first, EFAULT where it cannot be.

    Mirrors ``__kvm_at_swap_desc``, Linux 7.3.4. Nobody races in one thread: ``K_RACES`` says who loses.
    """
    slot = find_slot(s, canonical_ipa)
    if slot == NO_SLOT or s.slots[slot, S_FLAGS] & SLOT_READONLY != ZERO:
        return EFAULT
    hva = slot_hva(s, slot, canonical_ipa)
    steps = plan_touch(s, hva, True)
    if steps < 0:
        return EFAULT
    run_host_plan(s, steps)
    if s.regs[K_RACES] != ZERO:
        s.regs[K_RACES] -= ONE
        return EAGAIN
    page = translate(s, hva)
    write_memory(s, page.pa + (canonical_ipa & (page_size(s) - ONE)), value)
    mark_dirty(s, slot, canonical_ipa)
    return 0


@inline
def output_mask(r: Regime, level: int, descriptor: Word) -> Word:
    """Bits of the input that pass to the output; the contiguous hint widens them.

    Source: ``walk_nested_s2_pgd`` (``contiguous_bit_shift``).
    """
    shift = level_shift(r, level)
    if descriptor & CONTIGUOUS != ZERO:
        if r.page_shift == 12:
            shift += 4
        elif r.page_shift == 16:
            shift += 5
        else:
            shift += 5 if level == 2 else 7
    return (ONE << U64(shift)) - ONE


@inline
def base_within_limits(r: Regime, pa_bits: int) -> bool:
    """Whether start level and input size fit each other and the machine.

    Mirrors ``check_base_s2_limits``, Linux 7.3.4: no start at level 3 with the 4K granule (FEAT_TTST).
    """
    level = r.start_level
    if r.page_shift == SHIFT_4K:
        if level == 3 or (level == 0 and pa_bits <= 42):
            return False
    elif level == 0 or (level == 1 and pa_bits <= (42 if r.page_shift == SHIFT_64K else 40)):
        return False
    return r.ia_bits <= pa_bits and start_size_legal(r)


@kernel
def walk_guest_stage2(s: State, vttbr: Word, vtcr: Word, nested_ipa: Word, probe: bool) -> GuestWalk:
    """Walk L1's stage 2 for ``nested_ipa``. O(levels) reads of L1's memory.

    A probe changes nothing: no page of L1 is faulted in, no access flag set.
    """
    pa_bits = I64(s.regs[R_PA_BITS])
    r = guest_regime(s, vtcr)
    if r.ia_bits < MIN_INPUT_BITS or r.ia_bits > MAX_INPUT_BITS:
        return fault_at(ADDRESS_SIZE, 0, EFAULT)  # Linux leaves ESR's FSC at 0 here
    if not base_within_limits(r, pa_bits):
        return fault_at(TRANSLATION, 0, EFAULT)
    base = root_base(r, vttbr)
    if base >> U64(r.oa_bits) != ZERO:
        return fault_at(ADDRESS_SIZE, 0, FAULT_OF_L1)
    level = r.start_level
    # Linux 7.3.4 masks the address to the input size instead of refusing what is beyond it.
    if as_architecture(s, NESTED_IPA_SIZE) and nested_ipa >> U64(r.ia_bits) != ZERO:
        return fault_at(TRANSLATION, 0, FAULT_OF_L1)
    ipa = nested_ipa & ((ONE << U64(r.ia_bits)) - ONE)
    entry = base + ((ipa >> U64(level_shift(r, level))) << THREE)
    while True:
        word = read_guest(s, entry, probe)
        if not word.found:
            return fault_at(EXTERNAL_WALK, level, EFAULT)
        descriptor = word.value
        if descriptor & VALID == ZERO:
            return fault_at(TRANSLATION, level, FAULT_OF_L1)
        if level == 3 or descriptor & TABLE == ZERO:
            update = vtcr & VTCR_HA != ZERO
            return guest_leaf(s, r, level, descriptor, entry, ipa, update, probe)
        if (descriptor & OA_BITS) >> U64(r.oa_bits) != ZERO:
            return fault_at(ADDRESS_SIZE, level, FAULT_OF_L1)
        level += 1
        index = (ipa >> U64(level_shift(r, level))) & ((ONE << U64(r.stride)) - ONE)
        entry = table_address(r, descriptor) + (index << THREE)


@inline
def guest_leaf(
    s: State,
    r: Regime,
    level: int,
    descriptor: Word,
    entry: Word,
    ipa: Word,
    update: bool,
    probe: bool,
) -> GuestWalk:
    """The end of the walk: checks of the leaf, the access flag, the output address."""
    if level == 3 and descriptor & PAGE_BIT == ZERO:
        return fault_at(TRANSLATION, level, FAULT_OF_L1)
    if level < r.block_level:
        return fault_at(TRANSLATION, level, FAULT_OF_L1)
    if (descriptor & OA_BITS) >> U64(r.oa_bits) != ZERO:
        return fault_at(ADDRESS_SIZE, level, FAULT_OF_L1)
    if descriptor & AF == ZERO:
        if not update:
            return fault_at(ACCESS_FLAG, level, FAULT_OF_L1)
        descriptor |= AF
        if not probe:
            code = swap_guest_word(s, entry, descriptor)
            if code != 0:
                return fault_at(EXTERNAL_WALK, level, EAGAIN if code == EAGAIN else FAULT_OF_L1)
    inside = output_mask(r, level, descriptor)
    output = (descriptor & OA_BITS & ~inside) | (ipa & inside)
    size = ONE << U64(level_shift(r, level))
    return GuestWalk(NONE, level, output, size, descriptor, 0)
