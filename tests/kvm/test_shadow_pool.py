"""The pool of shadow MMUs: keys, recycling, references, the wipe (upstream.md 2.3 and C7)."""

from __future__ import annotations

from nested_lab import CANONICAL, NESTED, count, leaves, play

from shadowmmu.kvm.layout import K_NEXT, V_HW_MMU, V_REQUESTS
from shadowmmu.pgtable.context import CNP, M_ENABLED, M_PENDING, M_REFCNT, M_VTTBR

FIRST_ROOT = 0x4010_3000  # the third page of L1's pool: the default root and two tables come first
WRITE = f"write {CANONICAL:#x} 64k"


def tenant(vmid: int, at: int = NESTED) -> list[str]:
    """A new root under a VMID, and L2 uses it once."""
    return [f"s2 new {vmid}", "code", f"map {at:#x} {CANONICAL:#x} 4k 3 rw", f"touch w {at:#x} 4096 1"]


def vmids(executor: object) -> list[int]:
    state = executor.state  # type: ignore[attr-defined]
    return [int(row[M_VTTBR]) >> 48 if not row[M_VTTBR] & CNP else -1 for row in state.mmus[1:]]


def test_two_a_vcpu_and_none_valid_before_l2_runs() -> None:
    assert vmids(play(WRITE)) == [-1, -1]


def test_the_third_tenant_takes_the_first_ones_mmu() -> None:
    done = play(WRITE, *tenant(2), *tenant(3), *tenant(4))
    assert vmids(done) == [4, 3]
    assert count(done)["recycled"] == 1
    assert count(done)["wipes"] == 1
    assert set(leaves(done, 1)) == {0x10000, NESTED}
    assert int(done.state.regs[K_NEXT]) == 1


def test_round_robin_goes_on_from_the_last_victim() -> None:
    done = play(WRITE, *tenant(2), *tenant(3), *tenant(4), *tenant(5))
    assert vmids(done) == [4, 5]


def test_an_old_tenant_is_found_again() -> None:
    done = play(WRITE, *tenant(2), *tenant(3), f"s2 {FIRST_ROOT:#x} 2", f"touch r {NESTED:#x} 4096 1")
    assert count(done)["recycled"] == 0


def test_another_vtcr_is_another_mmu() -> None:
    done = play(WRITE, *tenant(2), "vtcr 0x80023558", f"s2 {FIRST_ROOT:#x} 2", f"touch r {NESTED:#x} 4096 1")
    assert vmids(done) == [2, 2]


def test_stage_2_off_and_on_under_one_vmid_are_two_mmus() -> None:
    done = play(WRITE, *tenant(2), "vm 0", "codeat 0x40050000", f"touch w {CANONICAL:#x} 4096 1")
    assert [int(row[M_ENABLED]) for row in done.state.mmus[1:]] == [1, 0]
    assert vmids(done) == [2, 2]


def test_no_reference_is_left_when_l1_runs() -> None:
    done = play(WRITE, *tenant(2), *tenant(3))
    assert all(int(row[M_REFCNT]) == 0 for row in done.state.mmus)
    assert all(int(row[M_PENDING]) == 0 for row in done.state.mmus[1:])
    assert int(done.state.vcpus[0, V_HW_MMU]) == 0
    assert int(done.state.vcpus[0, V_REQUESTS]) == 0
