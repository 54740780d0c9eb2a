"""Random scenarios on the real kernel and in the model, and the smallest script that shows a difference.

A difference is shrunk under the rule that it stays in the same aspect; candidates that the language refuses,
that break the precondition, or that do not come to their end do not count as showing it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shadowmmu.errors import InputError
from shadowmmu.lab.conform.compare import ENDS, Conformity, ConformReport, Difference, conform_run
from shadowmmu.lab.conform.generate import GENERATION, random_script
from shadowmmu.lab.conform.precondition import broken_precondition
from shadowmmu.lab.conform.shrink import Lines, shrink
from shadowmmu.oracles.rig import Rig, RigRun, check_script, observed

BATCH: Final = 16
"""Scripts in one boot."""
SETUP: Final = ("mem", "vcpus", "eager", "manual", "ring", "start")
SCHEMA: Final = "shadowmmu.conform-live/1"


@dataclass(frozen=True)
class LiveOptions:
    """What to run: scenarios ``first`` on of ``seed``, each of ``steps`` steps."""

    runs: int = 20
    seed: int = 0
    first: int = 0
    steps: int = 40
    shrinks: bool = True
    progress: Callable[[str], None] = field(default=lambda line: None, compare=False, repr=False)


@dataclass(frozen=True)
class Witness:
    """A difference made small: the script, and what both sides said to it."""

    script: str
    run: RigRun
    conformity: Conformity

    def save(self, folder: Path) -> list[Path]:
        """Write script, the kernel's answer and the difference to files in ``folder``, and say which."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = self.run.name.replace("/", "-")
        difference = "\n".join(line for d in self.conformity.differences for line in d.lines())
        texts = {
            f"{stem}.scenario": self.script,
            f"{stem}.kernel.txt": self.run.text,
            f"{stem}.difference.txt": difference + "\n",
        }
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        return [folder / name for name in texts]


@dataclass(frozen=True)
class LiveReport:
    """All live runs compared, and the first difference shrunk, if there was one."""

    seed: int
    report: ConformReport
    witness: Witness | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the schema's name first."""
        return {
            **self.report.to_json(),
            "schema": SCHEMA,
            "seed": self.seed,
            "generation": GENERATION,
            "witness": None if self.witness is None else self.witness.script.splitlines(),
        }


def compare_live(run: RigRun) -> Conformity:
    """Compare one run of the rig; one that did not come to its end differs if the model's does."""
    if run.ended:
        return conform_run(run)
    told = Difference(ENDS, "", tuple(run.last_lines()), ("(not run)",))
    return Conformity(run.name, run.ipa_limit_bits, {}, (told,))


def batches(options: LiveOptions) -> Iterator[dict[str, str]]:
    """The scripts by name, as many as fit a boot at a time."""
    numbers = range(options.first, options.first + options.runs)
    for at in range(0, options.runs, BATCH):
        yield {
            f"random/{options.seed}-{number}": random_script(options.seed, number, options.steps)
            for number in numbers[at : at + BATCH]
        }


def run_live(rig: Rig, options: LiveOptions) -> LiveReport:
    """Run random scenarios on the rig and in the model, compare them, shrink the first that differs."""
    found: list[Conformity] = []
    scripts: dict[str, str] = {}
    for batch in batches(options):
        options.progress(
            f"{len(found)} of {options.runs} scenarios, {sum(not c.agrees for c in found)} differ"
        )
        runs = rig.run_many({name: observed(text, rig.counts) for name, text in batch.items()})
        found += [compare_live(run) for run in runs]
        scripts |= batch
    report = ConformReport(tuple(found))
    first = report.first()
    if first is None or not options.shrinks:
        return LiveReport(options.seed, report)
    conformity, difference = first
    options.progress(f"shrinking {conformity.name}: {difference.aspect}")
    witness = shrink_script(
        rig, conformity.name, scripts[conformity.name], difference.aspect, options.progress
    )
    return LiveReport(options.seed, report, witness)


def shrink_script(
    rig: Rig, name: str, script: str, aspect: str, progress: Callable[[str], None] = lambda line: None
) -> Witness:
    """The smallest script that still differs in ``aspect``, with both answers."""
    lines = [line for line in script.split("\n") if line.strip()]
    fixed = [line for line in lines if line.split()[0] in SETUP]
    rest = [line for line in lines if line.split()[0] not in SETUP]
    shown: dict[Lines, tuple[RigRun, Conformity]] = {}

    def text_of(candidate: Sequence[str]) -> str:
        return observed("\n".join([*fixed, *candidate]), rig.counts)

    def fails(candidates: Sequence[Lines]) -> list[bool]:
        texts = {str(i): text_of(c) for i, c in enumerate(candidates) if _usable(text_of(c))}
        runs = {run.name: run for run in _run_all(rig, texts)}
        for number, run in runs.items():
            conformity = compare_live(run)
            if any(difference.aspect == aspect for difference in conformity.differences):
                shown[candidates[int(number)]] = run, conformity
        if shown:
            progress(f"shrinking {name}: {min(len(c) for c in shown)} lines")
        return [candidate in shown for candidate in candidates]

    smallest = shrink(rest, fails)
    if smallest not in shown:
        fails([smallest])
    if smallest not in shown:
        raise InputError(f"{name} differs in {aspect}, but not when it is run again")
    run, conformity = shown[smallest]
    return Witness("\n".join([*fixed, *smallest, ""]), run, conformity)


def _run_all(rig: Rig, texts: dict[str, str]) -> Iterator[RigRun]:
    names = list(texts)
    for at in range(0, len(names), BATCH):
        yield from rig.run_many({name: texts[name] for name in names[at : at + BATCH]})


def _usable(text: str) -> bool:
    """Whether the language allows it and L1 obeys break-before-make in it."""
    try:
        return not broken_precondition(check_script(text, "candidate"))
    except InputError:
        return False
