"""``shadowmmu oracle``: the architecture room against engines nobody here wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

HOLDS, UNDETERMINED, MISMATCH = 0, 3, 5


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


@click.group()
def oracle() -> None:
    """Hold the model of the architecture against other engines."""


@oracle.command()
@click.option("--queries", type=int, default=1_000_000, show_default=True, help="Translations to compare.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed asks the same questions.")
@click.option("--qemu", type=click.Path(path_type=Path), help="The program; else as the docs say.")
@click.option("--keep", type=click.Path(path_type=Path), default=Path(), help="Folder for mismatches.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def qemu(queries: int, seed: int, qemu: Path | None, keep: Path, as_json: bool) -> None:
    """Random translations on QEMU and on the model: PAR, ESR, FAR, HPFAR and descriptors, bit for bit."""
    from shadowmmu.oracles.qemu.campaign import campaign_json, campaign_lines, run_campaign

    keep.mkdir(parents=True, exist_ok=True)
    found = run_campaign(queries, seed, qemu=qemu, keep=keep, progress=_progress)
    _progress("")
    if as_json:
        click.echo(json.dumps(campaign_json(found), indent=1))
    else:
        click.echo("\n".join(campaign_lines(found)))
    if not found.agrees:
        sys.exit(MISMATCH)
    sys.exit(UNDETERMINED if found.missing else HOLDS)


@oracle.command()
@click.option("--queries", type=int, default=400_000, show_default=True, help="Translations per mutant.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--qemu", type=click.Path(path_type=Path), help="The program; else as the docs say.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def mutants(queries: int, seed: int, qemu: Path | None, as_json: bool) -> None:
    """One-place faults of the model: how many of them the comparison with QEMU catches."""
    from shadowmmu.oracles.qemu.campaign import Judge
    from shadowmmu.oracles.qemu.deviations import known
    from shadowmmu.oracles.qemu.driver import qemu_version
    from shadowmmu.oracles.qemu.install import find_qemu
    from shadowmmu.verify.mutants import hunt

    program = qemu or find_qemu()
    patches = [patch for one in known(qemu_version(program)) for patch in one.patches]
    with Judge(queries, seed, program) as judge:
        found = hunt(judge, patches, progress=_progress)
    _progress("")
    if as_json:
        click.echo(json.dumps({"baseline": found.baseline, "caught": found.caught}, indent=1))
    else:
        for name, times in found.caught.items():
            click.echo(f"  {f'{times:,} queries' if times else 'ALIVE':>16}  {name}")
        caught = len(found.caught) - len(found.survivors)
        click.echo(
            f"{caught} of {len(found.caught)} mutants caught; {found.baseline} differences without any"
        )
    sys.exit(UNDETERMINED if found.survivors else HOLDS)
