"""Rule A16: a valid VNCR entry's frame is the frame of its canonical page, and no more writable than it.

No design's record speaks of these entries (``kvm.vncr``), so the rule asks the host alone.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.compiled import Word, kernel
from shadowmmu.host.tables import translate
from shadowmmu.kvm.slots import NO_SLOT, find_slot, slot_hva
from shadowmmu.kvm.vncr import T_GVA, T_HPA, T_IPA, T_MAPPED, T_VALID, T_WRITABLE
from shadowmmu.machine.state import State
from shadowmmu.verify.rules import PAGE_OFFSET, ZERO

NO_VCPU: Final = -1


class StaleEntry(NamedTuple):
    """The vCPU whose entry breaks the rule (NO_VCPU: none does), and where its page is now."""

    vcpu: int
    slot: int
    hva: Word
    pa: Word
    size: Word
    writable: bool


@kernel
def judge_vncr(s: State) -> StaleEntry:
    """The first entry that breaks A16. O(vCPUs). Changes nothing."""
    for vcpu in range(len(s.vcpus)):
        row = s.vcpus[vcpu]
        if row[T_VALID] == ZERO:
            continue
        slot = find_slot(s, row[T_IPA])
        if slot == NO_SLOT:
            return StaleEntry(vcpu, slot, ZERO, ZERO, ZERO, False)
        hva = slot_hva(s, slot, row[T_IPA] & ~PAGE_OFFSET)
        page = translate(s, hva)
        moved = page.size == ZERO or page.pa != row[T_HPA]
        if moved or (row[T_WRITABLE] != ZERO and not page.writable):
            return StaleEntry(vcpu, slot, hva, page.pa, page.size, page.writable)
    return StaleEntry(NO_VCPU, NO_SLOT, ZERO, ZERO, ZERO, False)


def vncr_lines(state: State, found: StaleEntry) -> list[str]:
    """The entry, and where its page is now, ready to print."""
    vcpu = int(found.vcpu)
    row = state.vcpus[vcpu]
    mapped = ", mapped" if row[T_MAPPED] else ""
    lines = [
        f"  vncr   vCPU {vcpu}, VNCR_EL2 {int(row[T_GVA]):#x}, canonical IPA {int(row[T_IPA]):#x}",
        f"         PA {int(row[T_HPA]):#x}, {access_text(bool(row[T_WRITABLE]))}{mapped}",
    ]
    if found.slot == NO_SLOT:
        return [*lines, "  host   no memslot holds it any more"]
    where = f"  host   user address {int(found.hva):#x}"
    if not int(found.size):
        return [*lines, f"{where} maps nothing"]
    return [*lines, f"{where} maps PA {int(found.pa):#x} ({access_text(found.writable)})"]


def access_text(writable: bool) -> str:
    """Words for a permission."""
    return "writable" if writable else "read-only"
