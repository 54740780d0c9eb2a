"""docs/oracles.md lists the known deviations as they are in the data."""

from __future__ import annotations

from pathlib import Path

from shadowmmu.oracles.qemu.deviations import DEVIATIONS, FIRST, NEVER

PAGE = Path(__file__).parents[2] / "docs" / "oracles.md"


def table() -> str:
    """The deviations as Markdown."""
    lines = ["| name | QEMU | what it does | rule |", "|---|---|---|---|"]
    for one in DEVIATIONS:
        since = "" if one.since == FIRST else f"from {'.'.join(map(str, one.since))}"
        until = "" if one.until == NEVER else f"before {'.'.join(map(str, one.until))}"
        versions = " ".join(part for part in (since, until) if part) or "all seen"
        lines.append(f"| `{one.name}` | {versions} | {one.what} | {one.rule} |")
    return "\n".join(lines)


def test_the_page_lists_every_known_deviation() -> None:
    assert table() in PAGE.read_text(encoding="utf-8")


def test_every_deviation_has_a_rule_and_a_change_of_source() -> None:
    assert len({one.name for one in DEVIATIONS}) == len(DEVIATIONS)
    for one in DEVIATIONS:
        assert one.rule
        assert one.patches
        assert one.what.endswith((".", ".)"))
