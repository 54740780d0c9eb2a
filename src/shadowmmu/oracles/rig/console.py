"""The console log of one boot with several scripts, taken apart into one answer a script.

The parts are what a boot with that script alone would have printed, so ``formats.answer`` reads them and
they can be kept as recorded runs.
"""

from __future__ import annotations

import re
from typing import Final

_RUN: Final = re.compile(r"RIG run (\S+)")
_DOWN: Final = "RIG down"


def split_console(text: str) -> dict[str, str]:
    """The answer of each script by its name; O(length).

    A boot that ended early leaves the last script without its end and the rest out.
    """
    lines = text.replace("\r", "").split("\n")
    starts = [(number, match[1]) for number, line in enumerate(lines) if (match := _RUN.fullmatch(line))]
    if not starts:
        return {}
    boot = lines[: starts[0][0]]
    down = [line for line in lines if line.startswith(_DOWN)]
    answers = {}
    for (number, name), (after, _) in zip(starts, [*starts[1:], (len(lines), "")], strict=True):
        own = [line for line in lines[number + 1 : after] if line and not line.startswith(_DOWN)]
        own = [line for line in own if not line.endswith("reboot: Power down")]
        answers[name] = "\n".join([*boot, *own, *down]) + "\n"
    return answers


def last_lines(text: str, count: int = 8) -> list[str]:
    """The end of a log, for a message."""
    return [line for line in text.replace("\r", "").split("\n") if line.strip()][-count:]
