"""Scenario scripts made ready for the rig: refused if a kernel cannot do them, made to show all they do."""

from __future__ import annotations

from typing import Final

from shadowmmu.events.commands import COMMANDS
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.events.schema import Scenario
from shadowmmu.events.words import ScenarioError

MODEL_ONLY: Final[dict[str, str]] = {
    "punch": "a command that a kernel has: 'punch' is of the model only",
    "numahint": "a command that can be asked of a kernel: 'numahint' is its own work, and of the model only",
}
"""Commands of the language that the real kernel cannot do, with what to say about them."""

RIG_ONLY: Final = ("load2", "tlbi2-tge0")
"""Commands that only the rig has (``rig/README.md``)."""

ACTING: Final = frozenset(
    name
    for name, command in COMMANDS.items()
    if command.when in ("after", "root") and name not in ("dump", "pagemap", "mark", "idleget")
)
"""Commands after which the page tables may look different."""

COUNTED: Final = ("s2unmap", "tlbrange")
"""Probes of ``counts.sh``, read at the end of a run."""


def words_of(line: str) -> list[str]:
    """The words of a line; none for a comment."""
    words = line.replace("\t", " ").split()
    return [] if words and words[0].startswith("#") else words


def check_script(text: str, name: str) -> Scenario:
    """The scenario that the model makes of a script, if the rig can run it too.

    Raises ScenarioError for a script that cannot be read, or that has a command of the model only.
    """
    lines = text.split("\n")
    readable = []
    for number, line in enumerate(lines, 1):
        words = words_of(line)
        if words and words[0] in MODEL_ONLY:
            raise ScenarioError(name, number, line, words[0], MODEL_ONLY[words[0]])
        unknown = bool(words) and words[0] in RIG_ONLY
        readable.append("#" if unknown else line)
    return parse_scenario("\n".join(readable), name)


def in_model(text: str) -> bool:
    """Whether the model knows every command of a script that ``check_script`` let pass."""
    return all(words[0] in COMMANDS for line in text.split("\n") if (words := words_of(line)))


def traced(text: str) -> str:
    """The script, with the trace buffer printed at its end if it never prints it."""
    lines = text.rstrip("\n").split("\n")
    if any(words_of(line)[:1] == ["trace"] for line in lines):
        return text
    return "\n".join([*lines, "trace all", ""])


def observed(text: str, counts: bool = False) -> str:
    """The script with a mark before and a dump after every command that acts, counts and trace at its end.

    Commands that print trace or tables themselves are dropped. The result is of the language, so the model
    takes it too.
    """
    lines = []
    number = 0
    for line in text.split("\n"):
        words = words_of(line)
        if not words or words[0] in ("trace", "dump", "mark", "cat"):
            continue
        if words[0] == "quit":
            break
        if words[0] in ACTING or words[0] in RIG_ONLY:
            lines += [f"mark {number}", line, f"dump s{number}"]
            number += 1
        else:
            lines.append(line)
    if counts:
        lines += [f"cat /sys/kernel/tracing/events/rig/{probe}/hist" for probe in COUNTED]
    return "\n".join([*lines, "trace all", ""])
