"""Delta debugging over the lines of a script: the smallest script that still differs.

Source: A. Zeller, R. Hildebrandt, "Simplifying and isolating failure-inducing input" (2002), algorithm ddmin.
All candidates of one round are tried together, because one boot of the rig runs many scripts for the price
of a few; a candidate is never tried twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

Lines: TypeAlias = tuple[str, ...]
Fails: TypeAlias = Callable[[Sequence[Lines]], list[bool]]
"""Which of several candidates still show the difference."""


def shrink(lines: Sequence[str], fails: Fails) -> Lines:
    """The smallest subsequence found that ``fails``; no single line of it can go.

    ``lines`` must fail. O(lines^2) candidates at worst.
    """
    known: dict[Lines, bool] = {}

    def first_failing(candidates: list[Lines]) -> Lines | None:
        new = list(dict.fromkeys(c for c in candidates if c not in known))
        known.update(zip(new, fails(new) if new else [], strict=True))
        return next((c for c in candidates if known[c]), None)

    current = tuple(lines)
    parts = 2
    while len(current) >= 2:
        size = -(-len(current) // parts)
        starts = range(0, len(current), size)
        chunks = [current[at : at + size] for at in starts]
        rests = [current[:at] + current[at + size :] for at in starts]
        smaller = first_failing([*chunks, *rests])
        if smaller is not None:
            parts = 2 if smaller in chunks else max(parts - 1, 2)
            current = smaller
        elif size == 1:
            break
        else:
            parts = min(2 * parts, len(current))
    return current
