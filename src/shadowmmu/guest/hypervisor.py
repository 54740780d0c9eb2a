"""L1 at work: it boots, makes stage-2 tables, writes and clears leaves in them.

Every load and store goes through the canonical stage 2, so it may fault and be backed like any other
access of the guest. Tables have the granule of VTCR_EL2 and one root page: levels 1 to 3 with 4K pages,
2 to 3 with 16K and 64K. They are taken one page at a time from a pool.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.fault import EXECUTE, READ, WRITE
from shadowmmu.arch.regime import SHIFT_4K, TG0_MASK, TG0_SHIFT, granule_shift
from shadowmmu.arch.stage2 import OA_BITS, TABLE_TYPE
from shadowmmu.compiled import I64, U64, Word, inline, kernel
from shadowmmu.guest.cpu import DONE, STUCK, TRIES, access_until_done, l1_access, l1_address
from shadowmmu.guest.layout import (
    G_POOL,
    L1_LARGE_PAGE,
    L1_LOOP_PAGE,
    L1_STACK_PAGE,
    L1_START_PAGE,
    L2_CODE_PAGE,
    MAILBOX_PAGE,
    ONE,
    TABLE_POOL,
    ZERO,
)
from shadowmmu.host.geometry import page_size
from shadowmmu.kvm.at import handle_at
from shadowmmu.kvm.layout import BOOTED, V_STATE, V_VTCR
from shadowmmu.machine.frames import read_memory, write_memory
from shadowmmu.machine.state import R_PAGE_SHIFT, State

THREE: Final = U64(3)
PAGE_TYPE: Final = U64(3)
BLOCK_TYPE: Final = U64(1)
WORD_BYTES: Final = U64(8)


@kernel
def boot_l1(s: State, vcpu: int) -> None:
    """L1's start on one vCPU: fetch its two pages, use its stack, copy L2's payload."""
    if s.regs[G_POOL] == ZERO:
        s.regs[G_POOL] = TABLE_POOL
    s.vcpus[vcpu, V_STATE] |= BOOTED
    access_until_done(s, vcpu, L1_START_PAGE, EXECUTE)
    access_until_done(s, vcpu, L1_LOOP_PAGE, EXECUTE)
    l1_access(s, vcpu, L1_STACK_PAGE, WRITE, L1_LOOP_PAGE)
    l1_access(s, vcpu, L2_CODE_PAGE, WRITE, L1_LOOP_PAGE)


@kernel
def wake_l1(s: State, vcpu: int) -> None:
    """L1 takes its next command: its loop runs and reads the mailbox."""
    access_until_done(s, vcpu, L1_LOOP_PAGE, EXECUTE)
    l1_access(s, vcpu, MAILBOX_PAGE, READ, L1_LOOP_PAGE)


@kernel
def answer_mailbox(s: State, vcpu: int) -> None:
    """L1 stores the result of a command in its mailbox."""
    l1_access(s, vcpu, MAILBOX_PAGE, WRITE, L1_LOOP_PAGE)


@kernel
def switch_to_l2(s: State, vcpu: int) -> None:
    """L1 fills L2's context, saves its own registers on the stack, and stands before its ERET."""
    l1_access(s, vcpu, L1_LOOP_PAGE, WRITE, L1_LOOP_PAGE)
    access_until_done(s, vcpu, L1_START_PAGE, EXECUTE)
    l1_access(s, vcpu, L1_STACK_PAGE, WRITE, L1_START_PAGE)
    l1_access(s, vcpu, L1_LOOP_PAGE, READ, L1_START_PAGE)


@kernel
def switch_from_l2(s: State, vcpu: int) -> None:
    """L1 takes L2's exception: its vector, L2's registers stored, its own loaded, back in its loop."""
    access_until_done(s, vcpu, L1_LOOP_PAGE, EXECUTE)
    access_until_done(s, vcpu, L1_START_PAGE, EXECUTE)
    l1_access(s, vcpu, L1_LOOP_PAGE, WRITE, L1_START_PAGE)
    l1_access(s, vcpu, L1_STACK_PAGE, READ, L1_START_PAGE)
    access_until_done(s, vcpu, L1_LOOP_PAGE, EXECUTE)


@kernel
def l1_store(s: State, vcpu: int, canonical_ipa: Word, value: Word, code_page: Word) -> None:
    """Store 8 bytes of L1's memory by code in ``code_page``; lost where nothing backs it."""
    pa = l1_address(s, vcpu, canonical_ipa, WRITE, code_page)
    if pa != ZERO:
        write_memory(s, pa, value)


@kernel
def l1_load(s: State, vcpu: int, canonical_ipa: Word, code_page: Word) -> Word:
    """Load 8 bytes of L1's memory by code in ``code_page``; zero where nothing backs it."""
    pa = l1_address(s, vcpu, canonical_ipa, READ, code_page)
    return read_memory(s, pa) if pa != ZERO else ZERO


@kernel
def l1_at(s: State, vcpu: int, operation: int, va: Word) -> int:
    """Execute an AT until L0 lets it pass: DONE, or STUCK after as many tries as an access has."""
    for _attempt in range(TRIES):
        if handle_at(s, vcpu, operation, va):
            return DONE
    return STUCK


@inline
def table_shift(vtcr: Word) -> int:
    """Address bits inside a page of the tables that L1 builds for ``vtcr``."""
    return granule_shift((vtcr >> TG0_SHIFT) & TG0_MASK)


@inline
def guest_leaf(s: State, vcpu: int, level: Word) -> Word:
    """Bytes of one ``level`` leaf of L1's tables."""
    shift = table_shift(s.vcpus[vcpu, V_VTCR])
    return ONE << U64(shift + (shift - 3) * (3 - I64(level)))


@inline
def building_page(s: State, shift: int) -> Word:
    """The page of L1's code that builds tables of ``shift``; of an abort's IPA, 4K show on any host."""
    own = shift != SHIFT_4K and I64(s.regs[R_PAGE_SHIFT]) != SHIFT_4K
    return L1_LARGE_PAGE if own else L1_LOOP_PAGE


@kernel
def use_stack(s: State, vcpu: int, access: int) -> None:
    """L1 saves registers on its stack, or reads them back, around its work on tables of larger pages."""
    shift = table_shift(s.vcpus[vcpu, V_VTCR])
    if shift != SHIFT_4K:
        l1_access(s, vcpu, L1_STACK_PAGE, access, building_page(s, shift))


@kernel
def clear_page(s: State, vcpu: int, canonical_ipa: Word, size: Word, code_page: Word) -> None:
    """L1 zeroes ``size`` bytes within one page of the host."""
    pa = l1_address(s, vcpu, canonical_ipa, WRITE, code_page)
    if pa == ZERO:
        return
    for i in range(I64(size >> THREE)):
        if read_memory(s, pa + U64(i) * WORD_BYTES) != ZERO:
            write_memory(s, pa + U64(i) * WORD_BYTES, ZERO)


@kernel
def new_table(s: State, vcpu: int, shift: int) -> Word:
    """A zeroed page of ``shift`` address bits from L1's pool, whose next page L1 keeps beside its code."""
    code_page = building_page(s, shift)
    l1_access(s, vcpu, L1_LOOP_PAGE, WRITE, code_page)
    size = ONE << U64(shift)
    table = (s.regs[G_POOL] + size - ONE) & ~(size - ONE)
    s.regs[G_POOL] = table + size
    step = min(size, page_size(s))
    for i in range(I64(size // step)):
        clear_page(s, vcpu, table + U64(i) * step, step, code_page)
    return table


@kernel
def set_leaf(
    s: State, vcpu: int, root: Word, nested_ipa: Word, canonical_ipa: Word, level: int, attributes: Word
) -> None:
    """Write the ``level`` leaf of ``nested_ipa``; ``attributes`` 0 clears it (and adds no tables).

    No TLBI: that is a command of its own.
    """
    page = table_shift(s.vcpus[vcpu, V_VTCR])
    code_page = building_page(s, page)
    stride = U64(page - 3)
    index = (ONE << stride) - ONE
    at = 1 if page == SHIFT_4K else 2
    table = root
    shift = U64(page) + stride * U64(3 - at)
    while at < level:
        entry = table + (((nested_ipa >> shift) & index) << THREE)
        descriptor = l1_load(s, vcpu, entry, code_page)
        if descriptor & TABLE_TYPE != TABLE_TYPE:
            if attributes == ZERO:
                return
            descriptor = new_table(s, vcpu, page) | TABLE_TYPE
            l1_store(s, vcpu, entry, descriptor, code_page)
        table = descriptor & OA_BITS
        shift -= stride
        at += 1
    value = ZERO
    if attributes != ZERO:
        value = canonical_ipa | attributes | (PAGE_TYPE if level == 3 else BLOCK_TYPE)
    l1_store(s, vcpu, table + (((nested_ipa >> shift) & index) << THREE), value, code_page)
