"""The question of ``replay`` answered once more, by dictionaries: what an exact record would have done."""

from __future__ import annotations

from shadowmmu.engine import refill_step as step
from shadowmmu.lab.leaf_map import LEAF_SIZES
from shadowmmu.lab.trace_join import JoinedTrace

PAGE = LEAF_SIZES[0]
IPA = (1 << 36) - 1


def span_of(live: dict[int, tuple[int, int, int]], nested: int) -> int:
    """How far KVM takes an invalidation without hint: the L1 leaf size the first tag found tells."""
    for aligned in (nested & -size for size in LEAF_SIZES):
        if aligned in live:
            size = LEAF_SIZES[3 - live[aligned][2]]
            return size if nested < aligned + size else LEAF_SIZES[-1]
    return LEAF_SIZES[-1]


def naive_spared(trace: JoinedTrace, exact: bool) -> list[int]:
    """Indices of the fills that an exact record spares. Pages only, every fill joined."""
    tables: list[dict[int, tuple[int, int, int]]] = [{} for _ in trace.tables]
    spared = []
    for index, event in enumerate(trace.events.tolist()):
        kind, mmu, start, end, word, prot, canonical = event[:7]
        live = tables[mmu - 1]
        if kind == step.FILL:
            assert end - start == PAGE
            held = live.get(start)
            if held is not None and held[0] == word:
                spared.append(index)
            live[start] = (word, canonical, prot >> 55 & 3)
        elif kind == step.NOTIFY:
            for table in tables:
                for nested in [n for n, leaf in table.items() if start <= leaf[1] < end]:
                    del table[nested]
        elif kind == step.INVALIDATE_RANGE:
            tables[mmu - 1] = {n: leaf for n, leaf in live.items() if not start <= n < end}
        elif kind == step.INVALIDATE_IPA:
            nested = (word & IPA) << 12
            if exact:
                spans = {n: LEAF_SIZES[3 - leaf[2]] for n, leaf in live.items()}
                gone = [n for n, span in spans.items() if n & -span == nested & -span]
            else:
                span = span_of(live, nested)
                gone = [n for n in live if n & -span == nested & -span]
            for one in gone:
                del live[one]
    return spared
