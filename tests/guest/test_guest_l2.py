"""L2: what it fetches and accesses, in which order, and what L1 sees when it leaves."""

from __future__ import annotations

import pytest
from kvm_lab import PAGE, Vm

N = 0x8000_0000
CODE = 0x1_0000
DONE = 0x5A00_0000
SETUP = f"""mem 64M
    start base
    s2 new 1
    code
    write 0x41000000 64k
    map {N:#x} 0x41000000 64k 3 rwx
    mark go
    """


def faults(script: str) -> tuple[Vm, list[tuple[int, int]]]:
    """(nested address, pc) of L2's faults after mark ``go``."""
    vm = Vm(SETUP + script).to("go")
    vm.forget_log()
    vm.end()
    return vm, [(row["ipa"], row["pc"]) for row in vm.log("kvm_guest_fault") if row["ipa"] < 0xF000_0000]


@pytest.mark.parametrize(("operation", "pc"), [("r", 0x18), ("w", 0x24)])
def test_l2_fetches_its_code_then_makes_its_accesses(operation: str, pc: int) -> None:
    vm, seen = faults(f"touch {operation} {N:#x} 8192 3")
    assert seen == [(CODE, CODE), *((N + i * 8192, CODE + pc) for i in range(3))]
    assert vm.touches() == [
        {"esr": DONE, "far": 0, "hpfar": 0, "elr": CODE + 0x40, "left": 0},
    ]


def test_an_execution_is_a_fetch_at_the_address_itself() -> None:
    _vm, seen = faults(f"touch x {N:#x} 4096 2")
    assert seen == [(CODE, CODE), (N, N), (N + PAGE, N + PAGE)]


def test_a_known_page_does_not_fault_again() -> None:
    vm, seen = faults(f"touch r {N:#x} 8 4\ntouch w {N:#x} 8 4")
    assert seen == [(CODE, CODE), (N, CODE + 0x18)]
    assert len(vm.touches()) == 2


def test_a_fault_of_l1s_stops_the_run_where_it_was() -> None:
    vm, seen = faults(f"touch r {N + 14 * PAGE:#x} 4096 5")
    assert seen[-1] == (N + 16 * PAGE, CODE + 0x18)
    stopped = vm.touches()[-1]
    assert (stopped["left"], stopped["elr"], stopped["far"]) == (3, CODE + 0x18, N + 16 * PAGE)


def test_code_that_l1_did_not_map_is_a_fault_of_the_fetch() -> None:
    vm, seen = faults(f"codeat 0x20000\ntouch r {N:#x}")
    assert seen == [(0x2_0000, 0x2_0000)]
    assert vm.touches()[-1]["esr"] >> 26 == 0x20
    assert vm.touches()[-1]["left"] == 1


def test_after_a_notifier_the_code_page_is_fetched_again_before_the_access_goes_on() -> None:
    # Each write copies the zero page: its notifier takes the whole shadow, code page included.
    script = (
        SETUP.replace("write 0x41000000 64k", "nop")
        + f"touch r {N:#x} 4096 2\nmark read\ntouch w {N:#x} 4096 2"
    )
    vm = Vm(script).to("read")
    vm.forget_log()
    vm.end()
    seen = [(row["ipa"], row["pc"]) for row in vm.log("kvm_guest_fault")]
    resumed = CODE + 0x24
    # After the first abort the interrupted instruction is what L2 starts with, not its first one.
    assert seen == [
        (N, resumed),
        (CODE, resumed),
        (N, resumed),
        (N + PAGE, resumed),
        (CODE, resumed),
        (N + PAGE, resumed),
    ]


def test_a_fetch_that_was_spared_is_made_once_the_code_page_is_gone() -> None:
    # The first write goes through, so the code page counts as known; the second takes it away.
    script = SETUP.replace("write 0x41000000 64k", "write 0x41000000 4k")
    vm = Vm(f"{script}touch r {N:#x} 4096 2\nmark read\ntouch w {N:#x} 4096 2").to("read")
    vm.forget_log()
    vm.end()
    assert [row["ipa"] for row in vm.log("kvm_guest_fault")] == [N + PAGE, CODE, N + PAGE]


def test_l1_makes_its_accesses_before_l2_is_entered() -> None:
    vm = Vm(SETUP + f"log 1\nmark logged\ntouch r {N:#x}").to("logged")
    vm.forget_log()
    vm.end()
    assert [row["ipa"] for row in vm.log("kvm_guest_fault")][:3] == [0x4000_1000, 0x4003_F000, CODE]


def test_an_access_wider_than_the_input_is_retried_no_more_than_it_must() -> None:
    vm, _seen = faults("touch r 0x8000000000")
    # Beyond L1's 39 bits Linux walks the low bits: page 0, next to the code page, which L1 did not map.
    assert vm.touches()[-1]["esr"] & 0x3F == 0x07
