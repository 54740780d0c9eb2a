"""The events of a trace, kept for a second pass in 80 bytes each: a trace may have many millions.

Which table is canonical is known only at the end of a trace, and standard input cannot be read twice.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

from shadowmmu.formats.shadow_trace import FIELDS, ShadowEvent

NAMES: Final = tuple(FIELDS)
NUMBERS: Final = {name: number for number, name in enumerate(NAMES)}
OPTIONAL: Final = {"unmap_gfn": ("mayblock", 1)}
"""A field that an event may lack, and what it is then."""
VALUES: Final = 6
WIDTH: Final = 4 + VALUES
WORD_MASK: Final = (1 << 64) - 1


class EventStore:
    """Events in order; iterating gives them back with the fields of ``FIELDS`` and ``OPTIONAL`` only."""

    def __init__(self) -> None:
        self._words = array("Q")

    def __len__(self) -> int:
        return len(self._words) // WIDTH

    def append(self, event: ShadowEvent) -> None:
        """Keep one event. Values are taken modulo 2^64."""
        values = [event.values[key] & WORD_MASK for key in FIELDS[event.name]]
        if event.name in OPTIONAL:
            key, usual = OPTIONAL[event.name]
            values.append(event.values.get(key, usual) & WORD_MASK)
        head = (NUMBERS[event.name], event.line_number, event.thread, event.time_ns)
        self._words.extend((*head, *values, *(0,) * (VALUES - len(values))))

    def __iter__(self) -> Iterator[ShadowEvent]:
        words = self._words
        for at in range(0, len(words), WIDTH):
            number, line_number, thread, time_ns, *values = words[at : at + WIDTH]
            name = NAMES[number]
            keys = FIELDS[name]
            if name in OPTIONAL:
                keys = (*keys, OPTIONAL[name][0])
            yield ShadowEvent(line_number, thread, time_ns, name, dict(zip(keys, values, strict=False)))
