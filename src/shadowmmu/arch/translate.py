"""A translation through both stages: the walk, the permissions, the hardware updates, the attributes.

``translate`` is the whole of it: registers and memory in, an ``Account`` out. Source: Arm ARM D8.1-D8.6,
D8.15 (order of faults); pseudocode ``AArch64.FullTranslate``, ``AArch64.S1Translate``,
``AArch64.S2Translate``.

A stage-1 walk reads each descriptor through stage 2; a fault there is a stage-2 fault "on a stage-1 walk".
Hardware updates follow a successful check: an access that faults at a stage leaves that stage's leaf alone.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch import attributes as a
from shadowmmu.arch.context import Implementation
from shadowmmu.arch.controls import (
    Stage1,
    Stage2,
    machine_has_pan,
    machine_has_tags,
    stage1_controls,
    stage2_controls,
    uses_register_shareability,
)
from shadowmmu.arch.fault import (
    ACCESS_FLAG,
    ADDRESS_SIZE,
    EXECUTE,
    EXTERNAL_WALK,
    NONE,
    PERMISSION,
    READ,
    TRANSLATION,
    WRITE,
)
from shadowmmu.arch.memory import beyond_memory, read_descriptor, write_descriptor
from shadowmmu.arch.operation import EL2, Access
from shadowmmu.arch.regime import Regime, beyond_output, level_shift, output_address, table_address
from shadowmmu.arch.stage1 import (
    AF,
    AP2,
    ATTR_INDEX_LOW,
    ATTR_INDEX_SHIFT,
    DBM,
    N_DIRTY,
    Permissions,
    direct_permissions,
    indirect_permissions,
    stage1_permits,
)
from shadowmmu.arch.stage2 import (
    S2AP_W,
    SH_LOW,
    SH_SHIFT,
    TABLE,
    VALID,
    device_type,
    leaf_fault,
    memory_attribute,
    stage2_allows,
    stage2_walk,
)
from shadowmmu.compiled import I64, U64, Word, Words, inline, kernel

ZERO: Final = U64(0)
ONE: Final = U64(1)
THREE: Final = U64(3)
BIT_55: Final = U64(55)
NO_TAG: Final = U64((1 << 56) - 1)
TAG: Final = U64(0xFF << 56)
NEXT: Final = -1
"""What ``stage1_step`` says in place of a fault: the walk goes on."""


class Account(NamedTuple):
    """What came of a translation.

    ``fault`` NONE or its kind, at ``level`` of ``stage`` 1 or 2, ``s1ptw`` where stage 2 refused a read or
    update of a stage-1 descriptor at ``ipa``. Else ``pa`` and the memory's ``attribute`` and
    ``shareability``. ``descriptor1``, ``level1``, ``word1``: the last stage-1 descriptor read, its level and
    where it stands (word index); 0 where stage 1 is off; the same for stage 2 of the final access.
    ``tables``: the OR of the stage-1 table descriptors passed.
    """

    fault: int
    level: int
    stage: int
    s1ptw: bool
    ipa: Word
    pa: Word
    attribute: int
    shareability: int
    descriptor1: Word
    level1: int
    word1: Word
    tables: Word
    descriptor2: Word
    level2: int
    word2: Word


class Output(NamedTuple):
    """One stage's answer: a fault at a level, or an address; and the last descriptor read."""

    fault: int
    level: int
    stage: int
    s1ptw: bool
    ipa: Word
    output: Word
    descriptor: Word
    word: Word
    tables: Word


@inline
def stage2_output(
    mem: Words, s2: Stage2, ipa: Word, kind: int, el: int, walk: bool, dirties: bool, update: bool
) -> Output:
    """Stage 2 of one address. ``walk``: the access is a stage-1 walk's; ``dirties``: it writes.

    Source: ``AArch64.S2Translate``.
    """
    if not s2.enabled:
        return Output(NONE, 0, 2, walk, ipa, ipa, ZERO, ZERO, ZERO)
    if s2.refused:
        return Output(TRANSLATION, 0, 2, walk, ipa, ZERO, ZERO, ZERO, ZERO)
    w = stage2_walk(mem, s2.regime, s2.root, ipa, s2.big_endian)
    if w.fault != NONE:
        return Output(w.fault, w.level, 2, walk, ipa, ZERO, w.descriptor, w.word, ZERO)
    if w.descriptor & AF == ZERO and not s2.ha:
        return Output(ACCESS_FLAG, w.level, 2, walk, ipa, ZERO, w.descriptor, w.word, ZERO)
    allowed = stage2_allows(w.descriptor, kind, el, s2.xnx, s2.hd)
    if walk:
        if dirties:
            allowed = allowed and stage2_allows(w.descriptor, WRITE, el, s2.xnx, s2.hd)
        if s2.ptw and device_type(w.descriptor, s2.fwb):
            allowed = False
    if not allowed:
        return Output(PERMISSION, w.level, 2, walk, ipa, ZERO, w.descriptor, w.word, ZERO)
    if update and s2.ha:
        descriptor = w.descriptor | AF
        if s2.hd and dirties and descriptor & DBM != ZERO:
            descriptor |= S2AP_W
        if descriptor != w.descriptor:
            write_descriptor(mem, w.word, descriptor, s2.big_endian)
    pa = output_address(s2.regime, w.descriptor, w.level, ipa)
    return Output(NONE, w.level, 2, walk, ipa, pa, w.descriptor, w.word, ZERO)


@inline
def untagged(va: Word, s1: Stage1, kind: int) -> Word:
    """The address with its ignored top byte made a copy of bit 55.

    Source: ``AArch64.TranslateAddress``, TCR_ELx.TBI and TBID (fetches keep the byte where TBID is 1).
    """
    if not s1.tbi or (kind == EXECUTE and s1.tbid):
        return va
    return va | TAG if s1.upper else va & NO_TAG


@inline
def outside_range(va: Word, s1: Stage1) -> bool:
    """Whether bits above the input size are not copies of bit 55. Source: ``AArch64.VAIsOutOfRange``."""
    above = va >> U64(s1.regime.ia_bits)
    if s1.upper and s1.has_el0:
        return above != (ONE << U64(64 - s1.regime.ia_bits)) - ONE
    return above != ZERO


@inline
def stage1_off(va: Word, s1: Stage1, kind: int, pa_bits: int) -> Output:
    """Stage 1 disabled: the address passes, if the machine has that many bits.

    Source: ``AArch64.S1DisabledOutput``.
    """
    address = va
    if s1.tbi and not (kind == EXECUTE and s1.tbid):
        address = va & NO_TAG
        if kind == EXECUTE and s1.upper:
            address = va | TAG  # a branch there has spread bit 55 over the top byte
    if address >> U64(pa_bits) != ZERO:
        return Output(ADDRESS_SIZE, 0, 1, False, address, ZERO, ZERO, ZERO, ZERO)
    return Output(NONE, 0, 1, False, address, address, ZERO, ZERO, ZERO)


@inline
def stage1_step(mem: Words, s1: Stage1, pa: Word, entry: Word, ia: Word, level: int, tables: Word) -> Output:
    """One level of a stage-1 walk: the descriptor at IPA ``entry``, which stage 2 has put at ``pa``.

    ``fault`` NEXT: ``output`` is the next table. Else the walk ends here, with a leaf or a fault.
    """
    r = s1.regime
    word = pa >> THREE
    if beyond_memory(mem, word):
        return Output(EXTERNAL_WALK, level, 1, False, entry, ZERO, ZERO, word, tables)
    descriptor = read_descriptor(mem, word, s1.big_endian)
    if descriptor & VALID == ZERO:
        return Output(TRANSLATION, level, 1, False, entry, ZERO, descriptor, word, tables)
    if level == 3 or descriptor & TABLE == ZERO:
        fault = leaf_fault(r, descriptor, level, ia)
        output = output_address(r, descriptor, level, ia)
        return Output(fault, level, 1, False, entry, output, descriptor, word, tables)
    following = table_address(r, descriptor)
    if beyond_output(r, following):
        return Output(ADDRESS_SIZE, level, 1, False, entry, ZERO, descriptor, word, tables)
    return Output(NEXT, level, 1, False, entry, following, descriptor, word, tables | descriptor)


@inline
def entry_offset(r: Regime, ia: Word, level: int) -> Word:
    """Bytes from a table of ``level`` to its entry for ``ia``; the start table may have more entries."""
    index = ia >> U64(level_shift(r, level))
    if level != r.start_level:
        index &= (ONE << U64(r.stride)) - ONE
    return index << THREE


@inline
def stage1_walk(mem: Words, s1: Stage1, s2: Stage2, va: Word, update: bool) -> Output:
    """Walk stage 1 for an address in range, each descriptor through stage 2. O(levels of 1 x levels of 2).

    Access flag and permissions are left to the caller. Source: ``AArch64.S1Walk``.
    """
    r = s1.regime
    ia = input_address(r, va)
    if beyond_output(r, s1.root):
        return Output(ADDRESS_SIZE, 0, 1, False, ZERO, ZERO, ZERO, ZERO, ZERO)
    level = r.start_level
    table = s1.root
    tables = ZERO
    while True:
        entry = table + entry_offset(r, ia, level)
        at = stage2_output(mem, s2, entry, READ, 1, True, False, update)
        if at.fault != NONE:
            return at
        step = stage1_step(mem, s1, at.output, entry, ia, level, tables)
        if step.fault != NEXT:
            return step
        table = step.output
        tables = step.tables
        level += 1


@inline
def input_address(r: Regime, va: Word) -> Word:
    """The bits of an address in range that index the tables."""
    return va & ((ONE << U64(r.ia_bits)) - ONE)


@inline
def leaf_permissions(s1: Stage1, descriptor: Word, tables: Word) -> Permissions:
    """What a stage-1 leaf allows, direct or through PIR."""
    if s1.indirect:
        return indirect_permissions(descriptor, s1.pir, s1.pire0, s1.has_el0, s1.hd)
    counted = tables if s1.tables_count else ZERO
    return direct_permissions(descriptor, counted, s1.has_el0, s1.hd, s1.wxn)


@inline
def updated_leaf(s1: Stage1, descriptor: Word, writes: bool) -> Word:
    """The leaf as hardware leaves it: accessed, and dirty after a write. Source: Arm ARM D8.5."""
    descriptor |= AF
    if s1.hd and writes:
        if s1.indirect:
            descriptor &= ~N_DIRTY
        elif descriptor & DBM != ZERO:
            descriptor &= ~AP2
    return descriptor


@inline
def refused(at: Output, fault: int, level: int) -> Output:
    """The walk ``at`` turned into a stage-1 fault."""
    return Output(fault, level, 1, False, at.ipa, ZERO, at.descriptor, at.word, at.tables)


@inline
def stage1_refuses(s1: Stage1, access: Access, va: Word) -> bool:
    """Whether an address without its tag faults before any walk."""
    return s1.refused or outside_range(va, s1) or (s1.e0pd and access.el == 0)


@inline
def stage1_checked(s1: Stage1, access: Access, w: Output, pan: bool) -> Output:
    """A walk that found a leaf, after the checks of access flag and permissions."""
    if w.descriptor & AF == ZERO and not s1.ha:
        return refused(w, ACCESS_FLAG, w.level)
    if access.checked:
        allowed = leaf_permissions(s1, w.descriptor, w.tables)
        if not stage1_permits(allowed, access.kind, access.el, pan, s1.epan):
            return refused(w, PERMISSION, w.level)
    return w


@inline
def stage1_output(
    mem: Words, s1: Stage1, s2: Stage2, access: Access, va: Word, pan: bool, pa_bits: int, update: bool
) -> Output:
    """Stage 1 of one address: range, walk, access flag, permissions, hardware update.

    Source: ``AArch64.S1Translate``.
    """
    if not s1.enabled:
        return stage1_off(va, s1, access.kind, pa_bits)
    address = untagged(va, s1, access.kind)
    if stage1_refuses(s1, access, address):
        return Output(TRANSLATION, 0, 1, False, ZERO, ZERO, ZERO, ZERO, ZERO)
    w = stage1_walk(mem, s1, s2, address, update)
    if w.fault != NONE:
        return w
    w = stage1_checked(s1, access, w, pan)
    if w.fault != NONE:
        return w
    if update and s1.ha:
        descriptor = updated_leaf(s1, w.descriptor, access.kind == WRITE)
        if descriptor != w.descriptor:
            back = stage2_output(mem, s2, w.ipa, READ, 1, True, True, update)
            if back.fault != NONE:
                return back
            write_descriptor(mem, w.word, descriptor, s1.big_endian)
    return w


@inline
def stage1_attribute(s1: Stage1, descriptor: Word, tags: bool) -> int:
    """The attribute of stage 1 alone, as a data access has it.

    Source: ``AArch64.S1DisabledOutput``, ``AArch64.S1DCacheEnabled``.
    """
    if not s1.enabled:
        return a.NORMAL_WB if s1.default_cacheable else a.DEVICE_nGnRnE
    attribute = a.mair_attribute(s1.mair, (descriptor >> ATTR_INDEX_SHIFT) & ATTR_INDEX_LOW, tags)
    return attribute if s1.cacheable else a.uncached(attribute)


@inline
def stage1_shareability(s1: Stage1, descriptor: Word) -> int:
    """The shareability of stage 1 alone."""
    if not s1.enabled:
        return a.NON_SHAREABLE if s1.default_cacheable else a.OUTER_SHAREABLE
    if uses_register_shareability(s1.regime):
        return s1.shareability
    return I64((descriptor >> SH_SHIFT) & SH_LOW)


@inline
def combined_attribute(s2: Stage2, attribute: int, descriptor: Word) -> int:
    """Stage 1's attribute under a stage-2 leaf. Source: ``S2CombineS1MemAttrs``, HCR_EL2.CD."""
    memattr = memory_attribute(descriptor)
    attribute = a.combine_stages(attribute, memattr, s2.fwb)
    return attribute if s2.cacheable else a.uncached(attribute)


@inline
def combined_shareability(s2: Stage2, shareability: int, descriptor: Word) -> int:
    """Stage 1's shareability under a stage-2 leaf."""
    if uses_register_shareability(s2.regime):
        return a.combine_shareability(shareability, s2.shareability)
    return a.combine_shareability(shareability, I64((descriptor >> SH_SHIFT) & SH_LOW))


@inline
def failed(at: Output, first: Output) -> Account:
    """The account of a fault: ``at`` is where it was, ``first`` what stage 1 had found."""
    return Account(
        at.fault,
        at.level,
        at.stage,
        at.s1ptw,
        at.ipa,
        ZERO,
        0,
        0,
        first.descriptor,
        first.level,
        first.word,
        first.tables,
        at.descriptor if at.stage == 2 else ZERO,
        at.level if at.stage == 2 else 0,
        at.word if at.stage == 2 else ZERO,
    )


@inline
def pan_applies(row_pan: bool, access: Access, machine: Implementation) -> bool:
    """Whether PSTATE.PAN holds the access back: privileged data accesses of regimes that have an EL0."""
    return row_pan and access.pan and access.regime != EL2 and machine_has_pan(machine)


@kernel
def translate(
    mem: Words, row: Words, machine: Implementation, access: Access, va: Word, pan: bool, update: bool
) -> Account:
    """Translate ``va`` for ``access`` under the registers in ``row``.

    ``pan``: PSTATE.PAN; ``update``: hardware may set AF and dirty state in ``mem`` (an AT instruction and a
    debug walk say False). Source: ``AArch64.FullTranslate``.
    """
    upper = (va >> BIT_55) & ONE != ZERO
    s1 = stage1_controls(row, machine, access.regime, upper)
    s2 = stage2_controls(row, machine, access.regime)
    held = pan_applies(pan, access, machine)
    return translate_decoded(mem, machine, s1, s2, access, va, held, update)


@inline
def translate_decoded(
    mem: Words,
    machine: Implementation,
    s1: Stage1,
    s2: Stage2,
    access: Access,
    va: Word,
    held: bool,
    update: bool,
) -> Account:
    """``translate`` after the registers have been decoded; ``held``: PAN applies to this access."""
    first = stage1_output(mem, s1, s2, access, va, held, machine.pa_bits, update)
    if first.fault != NONE:
        return failed(first, first)
    attribute = stage1_attribute(s1, first.descriptor, machine_has_tags(machine))
    shareability = stage1_shareability(s1, first.descriptor)
    if not (access.both_stages and s2.enabled):
        return Account(
            NONE,
            first.level,
            1,
            False,
            first.output,
            first.output,
            attribute,
            a.effective_shareability(attribute, shareability),
            first.descriptor,
            first.level,
            first.word,
            first.tables,
            ZERO,
            0,
            ZERO,
        )
    writes = access.kind == WRITE
    second = stage2_output(mem, s2, first.output, access.kind, access.el, False, writes, update)
    if second.fault != NONE:
        return failed(second, first)
    attribute = combined_attribute(s2, attribute, second.descriptor)
    shareability = combined_shareability(s2, shareability, second.descriptor)
    return Account(
        NONE,
        second.level,
        2,
        False,
        first.output,
        second.output,
        attribute,
        a.effective_shareability(attribute, shareability),
        first.descriptor,
        first.level,
        first.word,
        first.tables,
        second.descriptor,
        second.level,
        second.word,
    )
