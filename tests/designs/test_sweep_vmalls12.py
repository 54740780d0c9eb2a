"""``sweep_vmalls12``: the walks of ``sweep``, without its invalidations."""

from __future__ import annotations

from design_lab import DATA, NESTED, PAGES_16, cost, count, executor, judged, last_event, run, script

from shadowmmu.designs.dispatch import design_bytes, design_recorded
from shadowmmu.designs.reverse_table_check import shadow_leaves

DESIGN = "sweep_vmalls12"
TENANTS = [
    f"s2 new {v}\ncode\nmap {NESTED:#x} {DATA:#x} 16k 3 rw\ntouch w {NESTED:#x} 4096 4" for v in (2, 3)
]
CHUNKS_40_BITS = 1 << (40 - 30)


def test_each_mmu_costs_its_walks_and_one_invalidation() -> None:
    text = "vcpus 2\n" + script(PAGES_16, *TENANTS, f"dontneed {DATA + 0x20_0000:#x} 4k")
    made = executor(DESIGN, text)
    names = (
        "shadow_mmus_visited",
        "chunks_shadow",
        "leaves_removed",
        "tlbi_vmid_shadow",
        "tlbi_range_shadow",
    )
    assert cost(made, last_event(made), *names) == [3, 3 * CHUNKS_40_BITS, 16 + 4 + 4 + 3, 3, 0]
    assert shadow_leaves(made.state) == []
    assert (design_recorded(made.state), design_bytes(made.state)) == (0, 0)


def test_it_takes_and_reads_what_sweep_does() -> None:
    text = script(PAGES_16, f"dontneed {DATA:#x} 4k", f"touch w {NESTED:#x} 4096 16")
    cheaper, sweep = (judged(design, text) for design in (DESIGN, "sweep"))
    assert cheaper[1] is sweep[1] is None
    for name in ("descriptors_read", "descriptors_written", "leaves_removed", "chunks", "refaults_caused"):
        assert count(cheaper[0], name) == count(sweep[0], name), name
    assert count(sweep[0], "tlbi_range_shadow") == CHUNKS_40_BITS


def test_a_wipe_for_l1_or_a_new_tenant_costs_one_invalidation_too() -> None:
    for wipe in ("tlbi 4", "\n".join(TENANTS)):
        cheaper, sweep = (run(design, script(PAGES_16, wipe)) for design in (DESIGN, "sweep"))
        assert count(cheaper, "wipes") == count(sweep, "wipes") == 1
        assert count(cheaper, "tlbi_range_shadow") == 0
        assert count(cheaper, "tlbi_vmid") == count(sweep, "tlbi_vmid") + 1
