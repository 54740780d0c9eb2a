"""The switches from Linux 7.3.4 to the architecture, in L0 itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from at_lab import architecture, emulated
from kvm_lab import Vm
from test_kvm_at_differences import plain

from shadowmmu.arch.answer import A_PAR
from shadowmmu.errors import UndeterminedError
from shadowmmu.formats.answer import read_answer
from shadowmmu.kvm.differences import SWITCHES
from shadowmmu.kvm.layout import V_HW_MMU
from shadowmmu.machine.counters import CHUNKS_SHADOW, TLBI_VMID_SHADOW, WIPES
from shadowmmu.machine.log import FLUSH_LOCAL, FLUSH_RANGE, FLUSH_VMID
from shadowmmu.pgtable.context import M_PENDING, M_REFCNT

RECORDED = Path(__file__).parents[2] / "rig" / "recorded" / "at"
FAULT_STATUS = 0x3F
TRANSLATION_LEVEL_0 = 4
PAGE_OF_PAR = 0x0000_FFFF_FFFF_F000
TWO_L2S = """mem 64M
start base 0 0
s2 new 1
code
map 0x80000000 0x41000000 16k 3 rw
touch w 0x80000000 4096 2
s2 new 2
code
map 0x80000000 0x41000000 16k 3 rw
touch w 0x80000000 4096 2
"""


@pytest.mark.parametrize(("switches", "flushed"), [((), 0), (("dirty-log-flush",), 2)])
def test_arming_and_harvesting_flush_every_valid_shadow(switches: tuple[str, ...], flushed: int) -> None:
    vm = Vm(
        TWO_L2S + "log 1\nmark armed\ntouch w 0x80000000\ngetlog\nlog 1\ngetlog", as_architecture=switches
    )
    assert vm.to("armed").count(TLBI_VMID_SHADOW) == flushed
    assert vm.end().count(TLBI_VMID_SHADOW) == 2 * flushed  # one harvest had something, the other nothing


def test_flushes_are_logged_with_scope_and_place_only_when_asked() -> None:
    script = TWO_L2S + "log 1\ntouch w 0x80000000\ntlbi 4\ngetlog"
    assert not Vm(script).end().log("flush")
    vm = Vm(script, tlb_logged=True, as_architecture=("dirty-log-flush",)).end()
    rows = [(row["scope"], row["mmu"]) for row in vm.log("flush")]
    assert rows.count((FLUSH_VMID, 1)) == rows.count((FLUSH_VMID, 2)) == 2
    assert (FLUSH_LOCAL, 2) in rows
    wiped = [row for row in vm.log("flush") if row["scope"] == FLUSH_RANGE and row["mmu"] == 2]
    assert sum(row["size"] for row in wiped) == 1 << 40
    ends = [row["addr"] + row["size"] for row in wiped]
    assert [row["addr"] for row in wiped] == [0, *ends[:-1]]
    assert len(wiped) < 8  # a row a run of chunks, broken by the invalidations of freed tables


def test_leaves_and_dirty_bits_are_logged() -> None:
    vm = Vm(TWO_L2S + "log 1\nmark go\ntouch w 0x80000000 4096 2", tlb_logged=True).to("go")
    vm.forget_log()
    vm.end()
    leaves = [(row["addr"], row["level"]) for row in vm.log("leaf") if row["mmu"] == 2]
    assert leaves == [(0x80000000, 3), (0x80001000, 3)]
    assert {0x41000000, 0x41001000} <= {row["ipa"] for row in vm.log("dirty")}


def test_pan_counts_where_the_cpu_answers_if_asked_so() -> None:
    g = plain()
    owed = int(architecture(g, [("s1e1rp", 0)], True)[0][A_PAR])
    asked = emulated(g, [("s1e1rp", 0)], True, True, ("at-pan",))
    assert (asked[0]["par"], asked[0]["slow"]) == (owed, 0)
    (without,) = emulated(g, [("s1e1rp", 0)], False, True, ("at-pan",))
    assert without["par"] & 1 == 0


def test_nested_addresses_beyond_l1s_stage_2_fault_if_asked_so() -> None:
    leaf = 0x9000_0000 | 1 << 39 | 0x743
    g = plain(leaf)
    owed = int(architecture(g, [("s12e1r", 0)], False)[0][A_PAR])
    (row,) = emulated(g, [("s12e1r", 0)], False, False, ("nested-ipa-size",))
    assert row["par"] == owed == 0xA09


@pytest.mark.parametrize("t0sz", [60, 15])
def test_a_vtcr_that_cannot_be_walked_ends_the_at(t0sz: int) -> None:
    script = f"mem 64M\nstart base 0 0\nvtcr {0x80023540 | t0sz:#x}\ns2 new 1\nat s12e1r 0x123"
    with pytest.raises(UndeterminedError):
        Vm(script).end()
    (row,) = Vm(script, as_architecture=("at-replay",)).end().log("at")
    assert row["par"] == 0xA09


def test_a_stage_2_table_outside_l1s_memory_ends_the_at_with_an_external_abort() -> None:
    script = "mem 64M\nstart base 0 0\ns2 new 1\npoke 0x40100000 0x50000003\nat s12e1r 0x123"
    (row,) = Vm(script, as_architecture=("at-replay",)).end().log("at")
    assert row["par"] == 0xA01 | (0x14 + 2) << 1, "on the walk, at level 2"


@pytest.mark.parametrize(
    ("switches", "left", "status"), [((), 0, 0), (("nested-ipa-size",), 1, TRANSLATION_LEVEL_0)]
)
def test_l2_beyond_l1s_stage_2_wraps_or_faults(switches: tuple[str, ...], left: int, status: int) -> None:
    beyond = 0x80000000 | 1 << 39
    vm = Vm(TWO_L2S + f"touch w {beyond:#x}", as_architecture=switches).end()
    row = vm.log("touch")[-1]
    assert row["left"] == left
    if left:
        assert row["esr"] & FAULT_STATUS == status
        assert row["hpfar"] & ~(1 << 63) == beyond >> 8
    assert (beyond in vm.leaves(2)) == (not left)


@pytest.mark.parametrize(("switches", "refused"), [((), 1), (("tlbi-beyond-limit",), 0)])
def test_a_tlbi_beyond_the_shadow_is_refused_with_a_warning_or_completes(
    switches: tuple[str, ...], refused: int
) -> None:
    vm = Vm(
        TWO_L2S + "mark before\ntlbi 0 0xfffffff\nmark inside\ntlbi 0 0x10000000", as_architecture=switches
    )
    before = vm.to("before").count(CHUNKS_SHADOW)
    inside = vm.to("inside").count(CHUNKS_SHADOW)
    assert inside > before  # the last page there is
    vm.end()
    assert vm.count(CHUNKS_SHADOW) == inside + refused
    assert len([row for row in vm.log("efault") if row["ipa"]]) == refused
    assert 0x80000000 in vm.leaves(2)


def recorded_at(name: str) -> tuple[str, list[int]]:
    """The script of a run of ``rig/recorded/at`` and what its ATs answered on the real kernel."""
    script = (RECORDED / f"{name}.scenario").read_text(encoding="utf-8")
    answer = read_answer(RECORDED / f"{name}.kernel.txt.xz")
    return script, [row.fields["value"] for step in answer.steps for row in step.printed("par")]


def places(pars: Iterable[int]) -> list[int]:
    """Where each AT leads, or its fault. Attributes are the CPU's own: QEMU's do not heed SCTLR_EL1.C."""
    return [par if par & 1 else par & PAGE_OF_PAR for par in pars]


def test_an_at_through_an_unwiped_mmu_answers_as_the_real_kernel_did_or_by_l1s_tables() -> None:
    script, seen = recorded_at("at-on-pending-mmu")
    # the rig's load2 in the words of the language: the second vCPU was in L2 with VMID 5 once, then out
    for old, new in (
        ("start base 0 0\n", "start base 0 0\nvcpu 1\ns2 new 5\ncode\nenter\nexit\nvcpu 0\n"),
        ("s2 new 5\ncode\nmap", "s2 0x40100000 5\nmap"),
        ("load2\n", "vcpu 1\nload\nvcpu 0\n"),
    ):
        assert script.count(old) == 1
        script = script.replace(old, new)
    linux = places(row["par"] for row in Vm(script).end().log("at"))
    assert linux == places(seen)
    mine, former = 0x1_0000_1000, 0xC000_1000
    assert [linux[index] for index in (0, 1, 3)] == [mine, former, mine]
    owed = places(row["par"] for row in Vm(script, as_architecture=("at-recycled-mmu",)).end().log("at"))
    assert [owed[index] for index in (0, 1, 3)] == [mine, mine, mine]


def test_a_vcpu_about_to_enter_holds_an_unwiped_mmu() -> None:
    tenants = "".join(f"s2 new {vmid}\ncode\ntouch r 0x10000\n" for vmid in (1, 2, 3, 4))
    head = "mem 64M\nvcpus 2\nstart base 0 0\nvcpu 1\ns2 new 5\ncode\nenter\nexit\nvcpu 0\n" + tenants
    vm = Vm(head + "vcpu 1\nload\nmark loaded\nresume\n").to("loaded")
    assert (vm.state.mmus[2, M_PENDING], vm.state.mmus[2, M_REFCNT], vm.count(WIPES)) == (1, 1, 1)
    assert vm.state.vcpus[1, V_HW_MMU] == 2
    vm.end()
    assert (vm.state.mmus[2, M_PENDING], vm.count(WIPES)) == (0, 2)
    assert vm.state.vcpus[1, V_HW_MMU] == 2


def test_an_unknown_difference_is_refused() -> None:
    assert "at-pan" in SWITCHES
    with pytest.raises(KeyError):
        Vm(TWO_L2S, as_architecture=("at-pain",))
