"""The verb ``workloads``: what can be run by name, and its knobs."""

from __future__ import annotations

import json

import click


@click.command("workloads")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def workloads(as_json: bool) -> None:
    """List the named workloads: idea, source, parameters with their defaults.

    Run one with: shadowmmu compare --workload NAME:key=value,...
    """
    from shadowmmu.events.workloads import WORKLOADS

    if as_json:
        rows = [
            {
                "name": one.name,
                "idea": one.idea,
                "source": one.source,
                "parameters": [vars(parameter) for parameter in one.parameters],
            }
            for one in WORKLOADS.values()
        ]
        click.echo(json.dumps(rows, indent=1))
        return
    for one in WORKLOADS.values():
        click.echo(f"{one.name}\n    {one.idea}\n    source: {one.source}")
        for parameter in one.parameters:
            click.echo(f"    {parameter.name}={parameter.default}: {parameter.meaning}")
