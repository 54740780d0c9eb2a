"""The dirty ring of a vCPU: what it is given, and when it is full.

Mirrors Linux 7.3.4 ``virt/kvm/dirty_ring.c`` (``kvm_dirty_ring_push``, ``kvm_dirty_ring_soft_full``). The
rings stand at the end of ``State.dirty``; an entry has the memslot in its upper 16 bits, the page below.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, inline
from shadowmmu.kvm.layout import K_RING, ONE, V_RING_DIRTY, V_RING_RESET, ZERO
from shadowmmu.machine.state import State

RESERVED: Final = U64(64)
"""Entries kept for what is dirtied after the ring counts as full (``KVM_DIRTY_RING_RSVD_ENTRIES``)."""
SLOT_SHIFT: Final = U64(48)
PAGE_OF_SLOT: Final = U64((1 << 48) - 1)


@inline
def has_rings(s: State) -> bool:
    """Whether dirty pages go into rings (``kvm->dirty_ring_size``)."""
    return s.regs[K_RING] != ZERO


@inline
def ring_word(s: State, vcpu: int, index: Word) -> int:
    """Where the ring's entry ``index`` stands in ``State.dirty``."""
    entries = I64(s.regs[K_RING])
    first = len(s.dirty) - (len(s.vcpus) - vcpu) * entries
    return first + I64(index) % entries


@inline
def push_dirty(s: State, vcpu: int, slot: int, page: Word) -> None:
    """One more entry. Mirrors ``kvm_dirty_ring_push``: the same page twice is two entries."""
    index = s.vcpus[vcpu, V_RING_DIRTY]
    s.dirty[ring_word(s, vcpu, index)] = (U64(slot) << SLOT_SHIFT) | page
    s.vcpus[vcpu, V_RING_DIRTY] = index + ONE


@inline
def ring_full(s: State, vcpu: int) -> bool:
    """Whether the vCPU may not enter until its ring is reset. Mirrors ``kvm_dirty_ring_check_request``."""
    if not has_rings(s):
        return False
    used = s.vcpus[vcpu, V_RING_DIRTY] - s.vcpus[vcpu, V_RING_RESET]
    return used >= s.regs[K_RING] - RESERVED
