"""Recorded runs by folder: one with a manifest, or one where scenarios stand beside their answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shadowmmu.errors import InputError
from shadowmmu.formats.answer import Answer, read_answer
from shadowmmu.formats.runs import MANIFEST, read_runs
from shadowmmu.lab.conform.compare import Run

SCENARIO: Final = ".scenario"
ANSWERS: Final = (".kernel.txt", ".kernel.txt.xz")


@dataclass(frozen=True)
class LooseRun:
    """A scenario with its answer beside it; the IPA limit is the one the answer's boot messages say."""

    name: str
    scenario: Path
    path: Path

    @property
    def ipa_limit_bits(self) -> int:
        """The host's IPA limit."""
        return self.answer().ipa_limit_bits

    def scenario_text(self) -> str:
        """The script."""
        return self.scenario.read_text(encoding="utf-8")

    def answer(self) -> Answer:
        """The answer, read. Raises FormatError."""
        return read_answer(self.path)


def runs_of_folder(folder: Path) -> list[Run]:
    """The runs of a folder, or of the folders in it. Raises InputError if there are none, FormatError."""
    if not folder.is_dir():
        raise InputError(f"read '{folder}', expected a folder of recorded runs")
    if (folder / MANIFEST).is_file():
        return list(read_runs(folder))
    runs: list[Run] = []
    for scenario in sorted(folder.rglob(f"*{SCENARIO}")):
        stem = scenario.name.removesuffix(SCENARIO)
        for suffix in ANSWERS:
            path = scenario.with_name(stem + suffix)
            if path.is_file():
                name = scenario.relative_to(folder).as_posix().removesuffix(SCENARIO)
                runs.append(LooseRun(name, scenario, path))
                break
    if not runs:
        raise InputError(f"read '{folder}', expected {MANIFEST}, or *{SCENARIO} beside *{ANSWERS[0]}")
    return runs
