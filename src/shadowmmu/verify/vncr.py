"""Rule A16: a valid VNCR entry's frame is the frame of its canonical page, and no more writable than it.

No design's record speaks of these entries (``kvm.vncr``), so the rule asks the host alone.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import kernel
from shadowmmu.host.tables import translate
from shadowmmu.kvm.slots import NO_SLOT, find_slot, slot_hva
from shadowmmu.kvm.vncr import T_GVA, T_HPA, T_IPA, T_MAPPED, T_VALID, T_WRITABLE
from shadowmmu.machine.state import State
from shadowmmu.verify.rules import PAGE_OFFSET, ZERO

NO_VCPU: Final = -1


@kernel
def judge_vncr(s: State) -> int:
    """The first vCPU whose entry breaks A16, else NO_VCPU. O(vCPUs)."""
    for vcpu in range(len(s.vcpus)):
        row = s.vcpus[vcpu]
        if row[T_VALID] == ZERO:
            continue
        slot = find_slot(s, row[T_IPA])
        if slot == NO_SLOT:
            return vcpu
        page = translate(s, slot_hva(s, slot, row[T_IPA] & ~PAGE_OFFSET))
        if page.size == ZERO or page.pa != row[T_HPA]:
            return vcpu
        if row[T_WRITABLE] != ZERO and not page.writable:
            return vcpu
    return NO_VCPU


def vncr_lines(state: State, vcpu: int) -> list[str]:
    """The entry, and where its page is now, ready to print."""
    row = state.vcpus[vcpu]
    access = "writable" if row[T_WRITABLE] else "read-only"
    mapped = ", mapped" if row[T_MAPPED] else ""
    lines = [
        f"  vncr   vCPU {vcpu}, VNCR_EL2 {int(row[T_GVA]):#x}, canonical IPA {int(row[T_IPA]):#x}",
        f"         PA {int(row[T_HPA]):#x}, {access}{mapped}",
    ]
    slot = int(find_slot(state, row[T_IPA]))
    if slot == NO_SLOT:
        return [*lines, "  host   no memslot holds it any more"]
    hva = slot_hva(state, slot, row[T_IPA] & ~PAGE_OFFSET)
    page = translate(state, hva)
    where = f"  host   user address {int(hva):#x}"
    if not int(page.size):
        return [*lines, f"{where} maps nothing"]
    access = "writable" if page.writable else "read-only"
    return [*lines, f"{where} maps PA {int(page.pa):#x} ({access})"]
