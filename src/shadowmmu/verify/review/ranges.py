"""Objections about what a range is: aliases, sizes, addresses, and leaves that change their size."""

from __future__ import annotations

from itertools import product

import numpy as np

from shadowmmu.compiled import U64
from shadowmmu.engine.refill import refill
from shadowmmu.engine.refill_step import FILL, NOTIFY, OUTPUT
from shadowmmu.pgtable.attributes import find_entry
from shadowmmu.pgtable.context import CANONICAL
from shadowmmu.verify.cases import random_script
from shadowmmu.verify.review.result import Result, holds, refuted
from shadowmmu.verify.review.trial import (
    BLOCK,
    DATA,
    NESTED,
    PAGE,
    prepare,
    run,
    scenario_text,
    script,
    worst,
)


def overlap(design: str) -> Result:
    """5: of two nested addresses that lead to one canonical page, both are found."""
    return run(design, scenario_text("05-overlap")).result()


def stored_sizes(design: str) -> Result:
    """10: every size of leaf against every place and size of a notifier's range."""
    stored = {
        "4K": f"map {NESTED:#x} {DATA:#x} 64k 3 rw\ntouch w {NESTED:#x} 4096 16",
        "4K inside": f"map {NESTED + 0x5000:#x} {DATA + 0x5000:#x} 4k 3 rw\ntouch w {NESTED + 0x5000:#x}",
        "2M": f"map {NESTED:#x} {DATA:#x} 2M 2 rw\ntouch w {NESTED:#x}",
        "2M of 1G": f"map {NESTED:#x} 0x40000000 1G 1 rw\ntouch w {NESTED + 0x100_0000:#x}",
        "2M and 4K": f"map {NESTED:#x} {DATA:#x} 2M 2 rw\ntouch w {NESTED:#x}\n"
        f"map {NESTED + 2 * BLOCK:#x} {DATA + 0x5000:#x} 4k 3 rw\ntouch w {NESTED + 2 * BLOCK:#x}",
    }
    taken = {
        "its first page": (DATA, PAGE),
        "a page inside": (DATA + 0x5000, PAGE),
        "its last page": (DATA + BLOCK - PAGE, PAGE),
        "three pages inside": (DATA + 0x4000, 3 * PAGE),
        "over its start": (DATA - 2 * PAGE, 3 * PAGE),
        "over its end": (DATA + BLOCK - PAGE, 2 * PAGE),
        "all of it": (DATA, BLOCK),
        "more than it": (DATA - BLOCK, 3 * BLOCK),
    }
    results = []
    for (size, lines), (place, (start, length)) in product(stored.items(), taken.items()):
        memory = "1280M" if "1G" in size else "64M"
        text = script(lines, f"punch {start:#x} {length}", backing="thp", memory=memory)
        results.append((f"{size}, {place}", run(design, text).result()))
    return worst(results, "combinations of stored and queried size")


def only_l2(design: str) -> Result:
    """13: what only L2 has touched, so that L1's own table has no leaf, goes all the same."""
    trial = prepare(design, scenario_text("13-only-l2"))
    trial.run(trial.last)
    state = trial.executor.state
    word, _level = find_entry(state, CANONICAL, U64(DATA))
    if int(state.mem[word]) & 1:
        return refuted("the canonical table has a leaf: the scenario does not ask what it should")
    return trial.run().result("no canonical leaf, and the shadow leaf went")


def aliases(design: str) -> Result:
    """16: k nested addresses of one canonical page in each of m shadow MMUs, pages and blocks."""
    results = []
    for k, m in product(range(1, 6), range(1, 4)):
        lines = []
        for tenant in range(m):
            if tenant:
                lines.append(f"s2 new {tenant + 1}\ncode")
            for i in range(k):
                at = NESTED + i * BLOCK
                block = i % 3 == 2
                what = f"{DATA:#x} 2M 2 rw" if block else f"{DATA + PAGE:#x} 4k 3 rw"
                lines.append(f"map {at:#x} {what}\ntouch w {at + PAGE * block:#x}")
        text = script(*lines, f"punch {DATA + PAGE:#x} 4k", backing="thp", vcpus=2)
        trial = run(design, text)
        results.append((f"{k} addresses in each of {m} MMUs", trial.result()))
    return worst(results, "numbers of addresses and MMUs")


def odd_guests(design: str) -> Result:
    """19: guests that do what the architecture allows and Linux does not."""
    texts = [
        (f"seed {seed} on {backing} pages", random_script(seed, backing, 60))
        for backing in ("base", "thp")
        for seed in range(1, 4)
    ]
    texts += [(name, scenario_text(name)) for name in ("19-contiguous", "19-one-vmid-two-roots")]
    return worst([(name, run(design, text).result()) for name, text in texts], "legal but odd guests")


def nested_zero(design: str) -> Result:
    """20: nested IPA 0 is an address like any other."""
    trial = prepare(design, scenario_text("20-nested-zero"))
    trial.run(trial.last)
    before = trial.leaves
    trial.run()
    if trial.leaves == before and trial.violation is None:
        return refuted("the notifier took nothing at nested IPA 0")
    return trial.result()


def encodings(design: str) -> Result:
    """21: every bit of a nested IPA comes back from the record, pages and blocks, 48 bits of input."""
    rows, wanted = [], []
    for bit in range(12, 48):
        size, tag = (PAGE, 3) if bit < 21 or bit % 2 else (BLOCK, 2)
        nested_ipa = 1 << bit
        canonical_ipa = DATA + (bit - 12) * BLOCK
        pa = (1 << 40) + (bit - 12) * BLOCK
        words = 0xF | tag << 55
        rows.append((FILL, 1, nested_ipa, nested_ipa + size, pa, words, canonical_ipa, 1, 1 << 48))
    for bit in range(12, 48):
        start, pa = DATA + (bit - 12) * BLOCK, (1 << 40) + (bit - 12) * BLOCK
        rows.append((OUTPUT, 0, pa, pa + PAGE, 0, 0, 0, 1, 0))
        wanted.append(len(rows))
        rows.append((NOTIFY, 0, start, start + PAGE, 1, 0, 1, 0, 0))
    events = np.array(rows, np.uint64)
    found = refill(design, events, [True], 48, exact=False)
    taken = int(found.removed[wanted].sum())
    missed = [bit for bit, row in zip(range(12, 48), wanted, strict=True) if not found.removed[row]]
    if taken != len(wanted):
        return refuted(
            f"leaves at nested IPAs of bits {missed} were not found", [f"1 << {bit}" for bit in missed]
        )
    return holds(f"{taken} leaves, one for each bit from 12 to 47, found by their canonical page")


def misaligned(design: str) -> Result:
    """25: whatever L1 writes, a fill is aligned in both spaces and inside L1's leaf."""
    return worst(
        [
            (name, run(design, scenario_text(name)).result())
            for name in ("25-odd-offsets", "25-block-low-bits")
        ],
        "fills that L1 tried to misalign",
    )


def relaxed(design: str) -> Result:
    """34: a leaf that gains a permission in place is found later, and was not recorded twice."""
    trial = prepare(design, scenario_text("34-relaxed"))
    relaxing = next(i for i, line in enumerate(trial.executor.scenario.lines) if line.startswith("# relax"))
    events = [i for i, e in enumerate(trial.executor.scenario.events) if int(e["line"]) <= relaxing]
    trial.run(events[-1] + 1)
    before = trial.recorded
    trial.run(trial.last)
    if trial.recorded != before:
        return refuted(f"{before} entries before, {trial.recorded} after no leaf was added")
    return trial.run().result(f"{before} entries before and after")


def collapsed(design: str) -> Result:
    """35: pages become a block; another nested address of one of them is still found."""
    return run(design, scenario_text("35-collapsed")).result()


def split(design: str) -> Result:
    """36: a block is split by a write under dirty logging; its rest is found page by page."""
    return run(design, scenario_text("36-split")).result()


def part_of_block(design: str) -> Result:
    """37: the host takes a part of a block, then the rest of it."""
    return run(design, scenario_text("37-part-of-block")).result()


def larger_than_the_host(design: str) -> Result:
    """45: L1's leaf is larger than the shadow's; its invalidation without a hint takes every piece."""
    return run(design, scenario_text("45-one-gigabyte")).result()


def stage2_off(design: str) -> Result:
    """50: an identity shadow and one of the same VMID with stage 2 on, side by side."""
    return run(design, scenario_text("50-stage2-off")).result()
