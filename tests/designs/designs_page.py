"""``docs/designs.md``, made from catalogue, modules and measurement; run as a program, writes it.

    python tests/designs/designs_page.py

``test_designs_page`` holds the page against what this makes.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from design_lab import BLOCK, DATA, NESTED, cost, count, executor, last_event, script

from shadowmmu.designs.dispatch import design_footprint
from shadowmmu.designs.interface import CATALOGUE, Design
from shadowmmu.verify.conformance import conformance_cases, run_conformance

PATH = Path(__file__).parents[2] / "docs" / "designs.md"
LEAVES = 8192
FILL = f"map {NESTED:#x} {DATA:#x} 32M 3 rw\ntouch w {NESTED:#x} 4096 {LEAVES}"
TAKEN = f"dontneed {DATA:#x} 4k"
TWICE = f"map 0x40000000 {DATA:#x} 4k 3 rw\ntouch w 0x40000000"
SHARED = f"s2 new 2\ncode\nmap {NESTED:#x} {DATA:#x} 4k 3 rw\ntouch w {NESTED:#x}"
MOVED = f"unmap {NESTED:#x} 4k 3\ntlbi 0 {7 << 44 | NESTED >> 12:#x}\n{TWICE}"
UNTOUCHED = f"map 0x40000000 {DATA + 4 * BLOCK:#x} 64k 3 rw\ntouch r 0x40000000 4096 16\ntouch w 0x40000000"

INTRODUCTION = f"""# The designs

Each answers one question: the host takes a canonical range away, what must be cleared? `shadowmmu designs`
lists them, `shadowmmu compare` runs them side by side. This page is made from the modules and from runs of
the model by `tests/designs/designs_page.py`, and a test holds it against both. What the reviews
asked of each: [review.md](review.md). One of your own: [your-own-design.md](your-own-design.md).

The rules all are judged by: no stale leaf outlives a notifier (safety), and nothing goes that did not have to
(precision). What a record cannot answer falls back to a whole shadow MMU, and from there to the whole VM;
each fallback is counted. A record that finds no memory either marks its MMU broken until the next unmap takes
it whole, or allocates before the fill and lets the access fault again.

mmu_lock is given away between the chunks of a sweep, and three things follow for every record. (1) Where L1
invalidates a range, the record forgets before the leaves go; a notifier that gets in between finds nothing,
and the page would stay mapped after its host has it back. So L0 keeps what is left of the range, here once
for all designs, and a notifier takes that too (`gap ... punch` in a scenario shows it; without it seven of
these are refuted, `reverse_table` among them). (2) Fills that get in are recorded, and forgotten with the
rest when the unmap goes on. (3) A fallback of a notifier forgets *after* its sweep: no fill gets in while
an invalidation is under way, and another notifier must still find the MMU broken. Of the series on the
list, no text that we have says how they do this.

## Measured

One shadow MMU with {LEAVES:,} leaves of 4K, filled in order, 40-bit IPA; then the host takes one page of 4K.
Nodes are those of the record, a fill and for the notifier; *scanned* are shadow descriptors read only to
decide; *bytes* is the record a leaf, words beside descriptors and fixed parts included.
"""
LOST = """
Leaves lost without need, when the page that the host takes is mapped twice by one L2; by two L2s; was moved
by L1 with the TLBI it owes; and when a page that read as zero is written first beside fifteen others that do.
A negative control loses few because it misses some: its verdict says where.
"""
CLOSING = """
What a price cannot say: a chunk is priced with its TLBI, so `sweep_vmalls12` costs as `sweep` in modelled
time; what it saves is in the TLBI column.
"""


def notifier_cost(design: Design) -> list[str]:
    """The cells of one design in the table of costs."""
    made = executor(design.name, script(FILL, TAKEN))
    filled = last_event(made) - 1
    fill = cost(made, filled, "nodes_visited")[0] / LEAVES
    size = int(design_footprint(made.state)) / LEAVES
    names = ("nodes_visited", "descriptors_scanned", "chunks_shadow", "tlbi_range_shadow", "tlbi_vmid_shadow")
    nodes, scanned, chunks, ranges, vmids = cost(made, filled + 1, *names)
    return [f"{fill:.1f}", f"{nodes:,}", f"{scanned:,}", f"{chunks:,}", f"{ranges + vmids:,}", f"{size:.1f}"]


def lost(design: Design, *lines: str) -> str:
    """Leaves over-unmapped by the last line."""
    made = executor(design.name, script(*lines))
    return f"{cost(made, last_event(made), 'over_unmapped_leaves')[0]:,}"


def lost_cells(design: Design) -> list[str]:
    """The cells of one design in the table of what is lost."""
    zero = executor(design.name, script(*UNTOUCHED.split("\n")))
    zero.run()
    return [
        lost(design, FILL, TWICE, TAKEN),
        lost(design, FILL, SHARED, TAKEN),
        lost(design, FILL, MOVED, TAKEN),
        f"{count(zero, 'over_unmapped_leaves'):,}",
    ]


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown, numbers to the right."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]

    def line(cells: list[str]) -> str:
        columns = enumerate(zip(cells, widths, strict=True))
        placed = [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in columns]
        return "| " + " | ".join(placed) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(headings), rule, *map(line, rows)]) + "\n"


def section(design: Design) -> str:
    """What the design's module says of itself, and its verdict."""
    document = importlib.import_module(f"shadowmmu.designs.{design.name}").__doc__ or ""
    title, _, body = document.strip().partition("\n\n")
    headline = " ".join(title.split(": ", 1)[1].split())
    text = f"## {design.name}\n\nFrom: {design.origin}. In short: {design.idea}.\n\n"
    text += f"{headline[0].upper()}{headline[1:]}\n"
    for paragraph in re.split(r"\n\n|\n(?=Guarantees|Fails|Bytes a leaf|Locking)", body):
        text += "\n" + re.sub(r"^(Idea|Guarantees|Fails|Bytes a leaf|Locking)", r"**\1**", paragraph) + "\n"
    return text.replace("``", "`") + f"\n**Verdict**: {verdict(design)}.\n"


def verdict(design: Design) -> str:
    """What the conformance kit says; for the safe ones that is tested case by case elsewhere."""
    cases = len(conformance_cases())
    if design.claims_safety:
        return f"safe; holds in {cases} of {cases} cases of the conformance kit"
    refuted = run_conformance(design.name).refuted_by
    first = ", ".join(list(refuted)[:4])
    return f"refuted, a negative control: {len(refuted)} of {cases} cases, such as {first}"


def page() -> str:
    """The whole page."""
    designs = list(CATALOGUE.values())
    costs = [[f"`{design.name}`", *notifier_cost(design)] for design in designs]
    losses = [[f"`{design.name}`", *lost_cells(design)] for design in designs]
    parts = [
        INTRODUCTION,
        table(["design", "nodes a fill", "nodes", "scanned", "chunks", "TLBIs", "bytes"], costs),
        LOST,
        table(["design", "twice", "two L2s", "moved", "zero page"], losses),
        CLOSING,
        "\n".join(section(design) for design in designs),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    PATH.write_text(page(), encoding="utf-8")
