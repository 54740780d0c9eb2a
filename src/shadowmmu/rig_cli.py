"""The verbs of the real kernel: ``conform`` holds L0 against it, ``rig`` prepares and drives its machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from shadowmmu.differences_cli import as_architecture_option
from shadowmmu.errors import InputError

if TYPE_CHECKING:
    from shadowmmu.lab.conform.compare import ConformReport
    from shadowmmu.lab.conform.live import LiveOptions

UNDETERMINED: Final = 3
MISMATCH: Final = 5
WITNESS_FOLDER: Final = "shadowmmu-conform"
IPA_BITS: Final = click.Choice(["36", "40", "42", "44", "48"])


@click.group()
def rig() -> None:
    """The real-kernel rig: Linux with nested KVM under QEMU, and a bare-metal L1."""


@rig.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(as_json: bool) -> None:
    """Say where the rig is and what of it is missing."""
    from shadowmmu.oracles.rig import missing_parts, qemu_version, rig_folder

    folder = rig_folder()
    missing = missing_parts(folder)
    version = "" if missing else qemu_version(folder)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "missing": missing, "qemu": version}, indent=1))
    elif missing:
        click.echo(f"no rig in {folder}; missing:")
        for part in missing:
            click.echo(f"  {part}")
    else:
        click.echo(f"rig in {folder}: {version}")
    sys.exit(UNDETERMINED if missing else 0)


@rig.command()
def build() -> None:
    """Prepare the rig from the sources of the repository; what `make rig` does."""
    from shadowmmu.oracles.rig import rig_folder, sources

    folder = sources()
    if folder is None:
        raise InputError("the rig's sources (rig/) are in the repository, not in the installed package")
    sys.exit(subprocess.run([str(folder / "build.sh"), str(rig_folder())], check=False).returncode)


@rig.command("run")
@click.argument("scenario")
@click.option("--ipa-bits", type=IPA_BITS, default="48", show_default=True, help="IPA limit of the host.")
@click.option(
    "--seconds", type=int, default=60, show_default=True, help="Limit, in seconds of the guest's clock."
)
@click.option(
    "--counts", is_flag=True, help="Have the histograms of chunk unmaps and TLB invalidations ready."
)
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the answer here.")
def run_scenario(scenario: str, ipa_bits: str, seconds: int, counts: bool, save: Path | None) -> None:
    """Run one SCENARIO on the real kernel and print its answer."""
    from shadowmmu.cli import read_source
    from shadowmmu.oracles.rig import Rig

    source = read_source(scenario)
    machine = Rig.find(ipa_limit_bits=int(ipa_bits), script_seconds=seconds, counts=counts)
    answer = machine.run(source.text, source.name)
    if save is not None:
        save.write_text(answer.text, encoding="utf-8")
    else:
        click.echo(answer.text, nl=False)


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--live", is_flag=True, help="Random scenarios on the rig instead of recorded runs.")
@click.option("--runs", type=click.IntRange(min=1), default=20, show_default=True, help="Live scenarios.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the live scenarios.")
@click.option("--first", type=click.IntRange(min=0), default=0, help="Number of the first live scenario.")
@click.option("--steps", type=click.IntRange(min=1), default=40, show_default=True, help="Steps of each.")
@click.option(
    "--ipa-bits", type=IPA_BITS, default="40", show_default=True, help="IPA limit of the live host."
)
@click.option(
    "--counts", is_flag=True, help="Compare counts of chunks and TLB invalidations of live runs too."
)
@click.option("--shrink/--no-shrink", "shrinks", default=True, show_default=True)
@as_architecture_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("-q", "--quiet", is_flag=True, help="No progress line.")
def conform(
    folder: Path | None,
    live: bool,
    runs: int,
    seed: int,
    first: int,
    steps: int,
    ipa_bits: str,
    counts: bool,
    shrinks: bool,
    as_architecture: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Hold L0 against the real kernel: recorded runs (bundled, or of FOLDER), or random ones on the rig.

    Compared: page tables after every step, events in their order, faults to the last bit, what L1 saw,
    counters. Exit code 5 on any difference.
    """
    from shadowmmu.cli import end_progress, progress_line

    show = progress_line(quiet)
    if live and as_architecture:
        raise InputError("read --as-architecture with --live, expected it with recorded runs")
    if live:
        from shadowmmu.lab.conform.live import LiveOptions

        options = LiveOptions(runs, seed, first, steps, shrinks, show)
        _live(options, int(ipa_bits), counts, as_json, lambda: end_progress(quiet))
        return
    from shadowmmu.formats.runs import bundled_runs
    from shadowmmu.lab.conform.compare import ConformReport, conform_run
    from shadowmmu.lab.conform.recorded import runs_of_folder

    compared = []
    for run in bundled_runs() if folder is None else runs_of_folder(folder):
        show(run.name)
        compared.append(conform_run(run, as_architecture))
    end_progress(quiet)
    report = ConformReport(tuple(compared), as_architecture)
    _print(report, report.to_json(), as_json)
    sys.exit(0 if report.agrees else MISMATCH)


def _live(
    options: LiveOptions, ipa_bits: int, counts: bool, as_json: bool, end_progress: Callable[[], None]
) -> None:
    from shadowmmu.lab.conform.live import run_live
    from shadowmmu.oracles.rig import Rig

    machine = Rig.find(ipa_limit_bits=ipa_bits, counts=counts, script_seconds=10)
    found = run_live(machine, options)
    end_progress()
    _print(found.report, found.to_json(), as_json)
    if found.witness is not None:
        paths = found.witness.save(Path(WITNESS_FOLDER))
        click.echo(f"smallest script that differs: {paths[0]}", err=True)
        if not as_json:
            click.echo(found.witness.script + "\n".join(found.witness.conformity.differences[0].lines()))
    sys.exit(0 if found.report.agrees else MISMATCH)


def _print(report: ConformReport, data: dict[str, object], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(data, indent=1))
        return
    from shadowmmu.report.conform import conform_lines

    for line in conform_lines(report):
        click.echo(line)
