"""Objections about numbers: workloads with names, one record a VM or an MMU, and how the sweep grows."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Final

from shadowmmu.verify.review.result import Result, holds, not_applicable, refuted
from shadowmmu.verify.review.trial import (
    DATA,
    NESTED,
    ORDINARY,
    Trial,
    keeps_record,
    prepare,
    run,
    scenario_text,
    script,
)

WORKLOADS: Final = ("boot", "storm", "memslot", "balloon", "migration", "idle")
BASELINE: Final = "sweep"
TAKES: Final = ("over_unmapped_leaves", "chunks_shadow", "refaults_avoidable")
GRANULE: Final = "16K"
CHUNKS_48: Final = 1 << 48 - 25
"""Chunks of 32M, the largest block of a 16K granule, in 48 bits."""


@cache
def baseline(workload: str) -> dict[str, int]:
    """What the sweep costs on a workload."""
    trial = run(BASELINE, scenario_text(f"03-{workload}"))
    return {name: trial.count(name) for name in TAKES}


def workloads(design: str) -> Result:
    """3: on each workload that has a name the cost is told, and is no more than the baseline's."""
    if design == BASELINE:
        return not_applicable("is the baseline of the workloads")
    told = []
    for name in WORKLOADS:
        ours, base = run(design, scenario_text(f"03-{name}")), baseline(name)
        for counter in TAKES:
            if ours.count(counter) > base[counter]:
                return refuted(f"{name}: {counter} {ours.count(counter):,}, the baseline {base[counter]:,}")
        chunks = f"{ours.count('chunks_shadow'):,} of {base['chunks_shadow']:,}"
        told.append(f"{name}: {chunks} chunks, {ours.count('refaults_avoidable')} avoidable refaults")
    return holds("; ".join(told))


def tenants(vmids: int, hit: int) -> str:
    """L1 with ``vmids`` L2s of 16 pages each; the first ``hit`` of them map the page that the host takes."""
    lines = []
    for n in range(vmids):
        new = f"s2 new {n + 1}\ncode\n" if n else ""
        start = DATA if n < hit else DATA + 0x10_0000
        lines.append(f"{new}map {NESTED:#x} {start:#x} 64k 3 rw\ntouch w {NESTED:#x} 4096 16")
    return script(*lines, f"dontneed {DATA:#x} 4k", vcpus=vmids)


def layouts(design: str) -> Result:
    """15: one record a VM or one an MMU: what an unmap costs that hits none, one or all of the MMUs."""
    if not keeps_record(design):
        return not_applicable("keeps no record: there is no layout to choose")
    told = []
    for vmids in (2, 4, 8):
        for hit in sorted({0, 1, vmids}):
            trial = prepare(design, tenants(vmids, hit))
            trial.run(trial.last)
            names = ("leaves_removed", "shadow_mmus_visited", "nodes_visited")
            before = [trial.count(name) for name in names]
            trial.run()
            if trial.violation is not None:
                return trial.result()
            gone, visited, nodes = (trial.count(name) - old for name, old in zip(names, before, strict=True))
            if gone != hit:
                return refuted(f"{hit} of {vmids} MMUs map the page, {gone} leaves went")
            told.append(f"{hit}/{vmids}: {visited} MMUs, {nodes} nodes")
    return holds("hit/MMUs: " + "; ".join(told))


def chunks_of_a_page(design: str, bits: int) -> Trial:
    """One page of a 16K host goes, under an IPA limit of ``bits``."""
    touched = f"map {NESTED:#x} {DATA:#x} 64k 3 rw\ntouch w {NESTED:#x} 16384 4"
    text = script(touched, f"dontneed {DATA:#x} 16k").replace("start ", f"granule {GRANULE}\nstart ", 1)
    return run(design, text, machine=replace(ORDINARY, ipa_limit_bits=bits, granule=GRANULE))


def wide_space(design: str) -> Result:
    """29: what a notifier costs does not grow with the address space, so a 16K host with 48 bits ends too."""
    narrow, wide = (chunks_of_a_page(design, bits) for bits in (40, 43))
    few, many = narrow.count("chunks_shadow"), wide.count("chunks_shadow")
    if many > 2 * few + 64:
        return refuted(
            f"one page: {few:,} chunks at 40 bits, {many:,} at 43; {CHUNKS_48:,} a shadow MMU at 48 bits"
        )
    trial = narrow if narrow.violation is not None else wide
    return trial.result(f"{few} chunks for one page at 40 bits, {many} at 43")
