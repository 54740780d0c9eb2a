"""The verbs of ``shadowmmu``. Thin: options in, a question to the lab, an answer printed, an exit code.

Nothing heavy is imported before it is needed, so that help and refusals answer at once.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from shadowmmu import __version__
from shadowmmu.costs_cli import costs
from shadowmmu.differences_cli import as_architecture_option, differences
from shadowmmu.errors import InputError, UndeterminedError
from shadowmmu.oracle_cli import oracle
from shadowmmu.replay_cli import replay
from shadowmmu.review_cli import review
from shadowmmu.rig_cli import conform, rig
from shadowmmu.sweep_cli import sweep
from shadowmmu.workloads_cli import workloads

if TYPE_CHECKING:
    from shadowmmu.lab.results import Comparison, ScenarioSource, Transcript

HOLDS: Final = 0
INTERNAL_ERROR: Final = 1
REFUTED: Final = 2
UNDETERMINED: Final = 3
BAD_INPUT: Final = 4
MISMATCH: Final = 5

SUFFIXES: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
WITNESS_FILE: Final = "shadowmmu-witness.txt"


if TYPE_CHECKING:
    IntType = click.ParamType[int]
else:
    IntType = click.ParamType  # generic since click 8.3 only


class Number(IntType):
    """An integer in decimal or hex (0x), with a suffix K, M or G for powers of 1024."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it, or say what was read and what was expected."""
        if isinstance(value, int):
            return value
        text = str(value).strip()
        unit = SUFFIXES.get(text[-1:].upper(), 1)
        digits = text[:-1] if unit > 1 else text
        try:
            return int(digits, 0) * unit
        except ValueError:
            self.fail(f"read '{value}', expected a number such as 48, 0x80000000, 4K or 2M", param, ctx)


NUMBER: Final = Number()
GRANULE: Final = click.Choice(["4K", "16K", "64K"])


def design_list(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    """Names between commas; a design may be a Python file."""
    return tuple(name.strip() for name in value.split(",") if name.strip())


def read_source(name: str) -> ScenarioSource:
    """A scenario by file name, ``-`` for standard input, or the name of a bundled run."""
    from shadowmmu.formats.runs import bundled_runs
    from shadowmmu.lab.compare import bundled_scenarios, difference_scenarios
    from shadowmmu.lab.results import ScenarioSource

    if name == "-":
        return ScenarioSource(name="<stdin>", text=sys.stdin.read())
    path = Path(name)
    if path.is_file():
        try:
            return ScenarioSource(name=name, text=path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"read '{name}', expected a scenario: {error}") from None
    for run in bundled_runs():
        if name in (run.name, run.name.partition("/")[2]):
            return ScenarioSource(name=run.name, text=run.scenario_text())
    for source in (*bundled_scenarios(), *difference_scenarios()):
        if name in (source.name, source.name.partition("/")[2]):
            return source
    raise InputError(f"read '{name}', expected a scenario file, '-', or the name of a bundled run")


def progress_line(quiet: bool) -> Callable[[str], None]:
    """Shows what is under way, on standard error and only on a terminal."""
    if quiet or not sys.stderr.isatty():
        return lambda line: None

    def show(line: str) -> None:
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()

    return show


def end_progress(quiet: bool) -> None:
    """Leave the progress line."""
    if not quiet and sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")


class Verbs(click.Group):
    """The verbs; a reader that leaves early ends them as it ends other programs."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb: here, since click itself makes a closed pipe an exit code of 1, an error of ours."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + 13)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shadowmmu")
@click.option("--debug", is_flag=True, help="Show the traceback of an internal error.")
def cli(debug: bool) -> None:
    """Shadow stage-2 MMUs of nested virtualisation on Arm: what unmapping costs, and whether it is safe.

    Exit codes: 0 holds, 1 internal error, 2 refuted, 3 undetermined, 4 bad input, 5 mismatch.
    """


@cli.command()
@click.argument("scenarios", nargs=-1, metavar="[SCENARIO ...]")
@click.option("--design", "designs", default="", callback=design_list, metavar="NAME|FILE.py[,...]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write report.html here.")
@click.option("--ipa-bits", type=NUMBER, help="IPA limit of the host, for scenarios and storms.")
@click.option(
    "--tlbirange/--no-tlbirange",
    default=True,
    help="The host has FEAT_TLBIRANGE, or not; not of recorded runs.",
)
@click.option("--fwb/--no-fwb", default=True, help="The host has FEAT_S2FWB, or not; not of recorded runs.")
@click.option("--granule", type=GRANULE, help="Page size of the host, for scenarios and storms.")
@click.option("--seed", type=NUMBER, help="Seed of the storm.")
@click.option("--leaves", type=NUMBER, help="Shadow leaves of the storm, over all its MMUs.")
@click.option("--notifiers", type=NUMBER, help="Notifiers of the storm.")
@click.option(
    "--workload", "workloads", multiple=True, metavar="NAME[:key=value,...]", help="A named workload instead."
)
@click.option("--judge", type=click.Choice(["always", "dumps", "never"]), help="After which events to look.")
@as_architecture_option
@click.option("--only", type=click.Choice(["kernel", "storm"]), help="Leave the other kind of run out.")
@click.option("-q", "--quiet", is_flag=True, help="No progress line.")
def compare(
    scenarios: tuple[str, ...], as_json: bool, report: Path | None, quiet: bool, **asked: Any
) -> None:
    """Replay runs under every unmapping design: verdicts, counters, prices.

    With no SCENARIO: the bundled runs of Linux 7.3.4, and a notifier storm. A SCENARIO is a file, '-', or
    the name of a bundled run.
    """
    from shadowmmu.lab.compare import compare as run_comparison
    from shadowmmu.lab.results import CompareOptions
    from shadowmmu.report.html import check_writable, write_report

    if report is not None:
        check_writable(report)
    limit = asked.pop("ipa_bits")
    recorded, sources = split_names(scenarios)
    options = CompareOptions(
        scenarios=tuple(sources),
        runs=tuple(recorded),
        ipa_limit_bits=limit,
        progress=progress_line(quiet),
        **asked,
    )
    comparison = run_comparison(options)
    end_progress(quiet)
    if report is not None:
        write_report(comparison, report)
    if as_json:
        click.echo(json.dumps(comparison.to_json(), indent=1))
    else:
        from shadowmmu.report.table import console, print_comparison

        print_comparison(comparison, console())
    sys.exit(verdict_code(comparison, bool(asked["designs"])))


def split_names(names: tuple[str, ...]) -> tuple[list[str], list[ScenarioSource]]:
    """Bundled kernel runs by name apart from scenarios; one comparison takes one kind."""
    from shadowmmu.formats.runs import bundled_runs

    if not names:
        return [], []
    known = {run.name.partition("/")[2]: run.name for run in bundled_runs()}
    known |= {run.name: run.name for run in bundled_runs()}
    recorded = [known[name] for name in names if name in known and not Path(name).is_file()]
    if len(recorded) == len(names):
        return recorded, []
    return [], [read_source(name) for name in names]


def verdict_code(comparison: Comparison, designs_named: bool) -> int:
    """The exit code of a comparison; a refutation that nobody expected is saved with its witness."""
    if any(r.agreement is not None and not r.agreement.agrees for r in comparison.results):
        return MISMATCH
    refuted = [r for r in comparison.results if r.verdict.refuted and (r.claims_safety or designs_named)]
    if refuted:
        save_witness([f"{r.design} in {r.run}", *r.verdict.witness] for r in refuted)
        return REFUTED
    if any(not r.verdict.judged for r in comparison.results):
        return UNDETERMINED
    return HOLDS


def save_witness(witnesses: Any) -> None:
    """Write the witnesses beside the user and say where."""
    from shadowmmu.report.html import write_text

    text = "\n\n".join("\n".join(lines) for lines in witnesses) + "\n"
    write_text(Path(WITNESS_FILE), text)
    click.echo(f"witness saved to {WITNESS_FILE}", err=True)


@cli.command()
@click.argument("scenario")
@click.option("--design", default="sweep", show_default=True, metavar="NAME|FILE.py")
@click.option("--ipa-bits", type=NUMBER, default=48, show_default=True, help="IPA limit of the host.")
@click.option("--tlbirange/--no-tlbirange", default=True, help="The host has FEAT_TLBIRANGE, or not.")
@click.option("--fwb/--no-fwb", default=True, help="The host has FEAT_S2FWB, or not.")
@click.option(
    "--events/--no-events",
    default=True,
    show_default=True,
    help="Show faults, maps, unmaps and notifiers under each command.",
)
@click.option(
    "--judge",
    "judge_mode",
    type=click.Choice(["always", "dumps", "never"]),
    default="always",
    show_default=True,
    help="After which events to look.",
)
@as_architecture_option
@click.option("--granule", type=GRANULE, default="4K", show_default=True, help="Page size of the host.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def run(
    scenario: str,
    design: str,
    ipa_bits: int,
    tlbirange: bool,
    fwb: bool,
    events: bool,
    judge_mode: str,
    as_architecture: tuple[str, ...],
    granule: str,
    as_json: bool,
) -> None:
    """Execute one SCENARIO and print its dumps, events, counters and verdict."""
    from shadowmmu.lab.replay import run_scenario

    transcript = run_scenario(
        read_source(scenario),
        design=design,
        ipa_limit_bits=ipa_bits,
        show_events=events,
        judge_mode=judge_mode,
        tlbirange=tlbirange,
        fwb=fwb,
        as_architecture=as_architecture,
        granule=granule,
    )
    show_transcript(transcript, as_json)
    verdict = transcript.verdict
    if verdict is not None and verdict.refuted:
        save_witness([[transcript.title, *verdict.witness]])
        sys.exit(REFUTED)
    sys.exit(HOLDS if verdict is None or verdict.judged else UNDETERMINED)


@cli.command()
@click.argument("source")
@click.argument("translated", metavar="ADDRESS", type=NUMBER)
@click.option("--mmu", type=NUMBER, help="Which shadow: N of nested_mmuN. The first in use by default.")
@click.option("--at", metavar="LABEL|LINE", help="Stop after this dump, mark or line; at the end by default.")
@click.option("--design", default="sweep", show_default=True, metavar="NAME|FILE.py")
@click.option("--ipa-bits", type=NUMBER, default=48, show_default=True, help="IPA limit of the host.")
@click.option("--granule", type=GRANULE, default="4K", show_default=True, help="Page size of the host.")
@click.option("--context", "as_context", is_flag=True, help="SOURCE holds registers and memory.")
@click.option("--operation", metavar="NAME", help="With --context: 'AT S12E1R', 'load at EL0', ...")
@click.option("--set", "settings", multiple=True, metavar="REGISTER=VALUE", help="With --context: override.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def walk(
    source: str,
    translated: int,
    mmu: int | None,
    at: str | None,
    design: str,
    ipa_bits: int,
    granule: str,
    as_context: bool,
    operation: str | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Explain one translation of SOURCE, descriptor by descriptor; nothing is changed.

    SOURCE is a scenario, and ADDRESS a nested IPA; with --context it is a context file, registers and
    memory, and ADDRESS a virtual address.
    """
    if as_context:
        show_transcript(context_walk(source, translated, operation or "AT S12E1R", settings), as_json)
        return
    if operation is not None or settings:
        raise InputError("read --operation or --set without --context, expected a context file")
    from shadowmmu.lab.explain import walk_report

    scenario = read_source(source)
    transcript = walk_report(
        scenario, translated, mmu=mmu, at=at, design=design, ipa_limit_bits=ipa_bits, granule=granule
    )
    show_transcript(transcript, as_json)


def context_walk(name: str, va: int, operation: str, settings: tuple[str, ...]) -> Transcript:
    """The account of a translation under a context file."""
    from shadowmmu.formats.context import read_context, read_setting
    from shadowmmu.lab.translation import translation_report

    overrides = dict(read_setting(setting) for setting in settings)
    path = Path(name)
    try:
        text = sys.stdin.read() if name == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"read '{name}', expected a context file: {error}") from None
    folder = Path() if name == "-" else path.parent
    shown = "<stdin>" if name == "-" else name
    source = read_context(text, shown, folder, overrides)
    return translation_report(source, va, operation, f"{operation} of {va:#x} in {shown}")


def show_transcript(transcript: Transcript, as_json: bool) -> None:
    """Print a transcript, as text or as one JSON object."""
    if as_json:
        click.echo(json.dumps(transcript.to_json(), indent=1))
        return
    from shadowmmu.report.table import console, print_transcript

    print_transcript(transcript, console())


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--template", is_flag=True, help="Print a design to start from, a Python file.")
@click.option("--check", "checked", metavar="NAME|FILE.py", help="Put a design through the conformance kit.")
def designs(as_json: bool, template: bool, checked: str | None) -> None:
    """List the designs: name, origin, idea; or help with one of your own (docs/your-own-design.md)."""
    from shadowmmu.designs.interface import CATALOGUE

    if template:
        click.echo(files("shadowmmu.designs").joinpath("template.py").read_text(encoding="utf-8"), nl=False)
        return
    if checked is not None:
        sys.exit(check_design(checked, as_json))

    if as_json:
        rows = [
            {"name": d.name, "origin": d.origin, "idea": d.idea, "claims_safety": d.claims_safety}
            for d in CATALOGUE.values()
        ]
        click.echo(json.dumps(rows, indent=1))
        return
    for design in CATALOGUE.values():
        control = "" if design.claims_safety else " (a negative control)"
        click.echo(f"{design.name:14} {design.origin}{control}\n{'':14} {design.idea}")


def check_design(name: str, as_json: bool) -> int:
    """Print which cases of the conformance kit a design holds in; 2 with its witness where one refutes it."""
    from shadowmmu.verify.conformance import run_conformance

    report = run_conformance(name)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=1))
    else:
        click.echo("\n".join(report.lines()))
    refuted = [result for result in report.results if not result.holds]
    if refuted:
        save_witness([f"{report.design}", *r.lines(), "", r.case.script] for r in refuted)
    return REFUTED if refuted else HOLDS


cli.add_command(oracle)
cli.add_command(replay)
cli.add_command(review)
cli.add_command(conform)
cli.add_command(differences)
cli.add_command(rig)
cli.add_command(workloads)
cli.add_command(sweep)
cli.add_command(costs)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run a verb, turn every error into its message and exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if any(part.strip().endswith(".py") for word in words for part in word.split("=")[-1].split(",")):
        os.environ.setdefault("SHADOWMMU_OWN_DESIGNS", "1")  # before the first kernel is imported
    try:
        cli.main(args=words, prog_name="shadowmmu", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(BAD_INPUT)
    except click.Abort:
        sys.exit(130)
    except InputError as error:
        fail(str(error), BAD_INPUT)
    except UndeterminedError as error:
        fail(str(error), UNDETERMINED)
    except MemoryError as error:
        fail(f"not enough memory: {error}" if str(error) else "not enough memory", BAD_INPUT)
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        fail(f"internal error: {type(error).__name__}: {error} (--debug shows where)", INTERNAL_ERROR)


def fail(message: str, code: int) -> None:
    """Say what is wrong, on standard error, and end."""
    click.echo(f"shadowmmu: {message}", err=True)
    sys.exit(code)
