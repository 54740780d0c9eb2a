"""``differences``: where Linux 7.3.4 is not the architecture, both ways; and the option that switches L0."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from shadowmmu.errors import InputError

if TYPE_CHECKING:
    from shadowmmu.verify.differences import Shown

REFUTED: Final = 2
MISMATCH: Final = 5


def _named(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    """Names of differences between commas, or ``all``. Raises InputError."""
    if not value:
        return ()
    from shadowmmu.verify.differences import chosen

    return chosen(name.strip() for name in value.split(",") if name.strip())


as_architecture_option = click.option(
    "--as-architecture",
    default="",
    callback=_named,
    metavar="NAME[,NAME]|all",
    help="Differences in which L0 does as the architecture asks ('shadowmmu differences' lists them).",
)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME ...]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def differences(names: tuple[str, ...], as_json: bool) -> None:
    """Where Linux 7.3.4 differs from the architecture: each scenario run both ways, with its consequence.

    All differences, or the NAMEs. Beside the machine stand TLBs that keep all they may. Exit code: 0 if all
    is as declared (Linux shows a consequence, the architecture none), 2 for NAMEs whose consequence under
    Linux is shown, 5 if something is not as declared.
    """
    from shadowmmu.events.scenario import parse_scenario
    from shadowmmu.lab.compare import difference_scenarios
    from shadowmmu.verify.differences import DIFFERENCES, chosen, show_difference

    wanted = chosen(names or ("all",))
    texts = {source.name: source.text for source in difference_scenarios()}
    shown = []
    for item in DIFFERENCES:
        if item.name in wanted:
            if item.scenario not in texts:
                raise InputError(f"read no scenario {item.scenario}, expected it in the package")
            shown.append(show_difference(item, parse_scenario(texts[item.scenario], item.scenario)))
    if as_json:
        data: dict[str, Any] = {
            "schema": "shadowmmu.differences/1",
            "differences": [one.to_json() for one in shown],
        }
        click.echo(json.dumps(data, indent=1))
    else:
        for line in _lines(shown):
            click.echo(line)
    if not all(one.as_declared for one in shown):
        sys.exit(MISMATCH)
    sys.exit(REFUTED if names else 0)


def _lines(shown: list[Shown]) -> Iterator[str]:
    """The table, then each difference in full."""
    yield f"{'difference':20}{'as Linux 7.3.4':34}{'as the architecture':22}seen"
    for one in shown:
        yield (
            f"{one.item.name:20}{_kinds(one.linux.consequences):34}"
            f"{_kinds(one.architecture.consequences):22}{'on the rig' if one.item.seen else 'read only'}"
        )
    for one in shown:
        yield ""
        yield f"{one.item.name} ({one.item.scenario}; {one.item.seen or 'by reading'})"
        yield f"  Linux 7.3.4   {one.item.linux}"
        yield f"  architecture  {one.item.architecture} ({one.item.rule})"
        for mode, answers in (("Linux", one.linux), ("architecture", one.architecture)):
            yield f"  as {mode}:"
            yield from (f"    {line}" for line in answers.lines)
            yield from (f"    {c.kind}: {c.text}" for c in answers.consequences)


def _kinds(consequences: tuple[Any, ...]) -> str:
    kinds = sorted({c.kind for c in consequences})
    return ", ".join("never mapped" if kind.startswith("memory") else kind for kind in kinds) or "none"
