"""Running scenario scripts on a real Linux with nested KVM, under QEMU.

One boot takes two seconds and runs as many scripts as it is given, each in a VM of its own; with ``-icount``
the guest's clock counts instructions, so a run repeats but for host frame numbers.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shadowmmu.errors import InputError, UndeterminedError
from shadowmmu.events.schema import Scenario
from shadowmmu.formats.answer import DONE, Answer, parse_answer
from shadowmmu.machine.granule import block_bytes, hugetlb_bytes
from shadowmmu.oracles.rig.archive import archive
from shadowmmu.oracles.rig.console import last_lines, split_console
from shadowmmu.oracles.rig.locate import missing_parts, rig_folder
from shadowmmu.oracles.rig.scripts import check_script, traced

PARANGE: Final = {36: 1, 40: 2, 42: 3, 44: 4, 48: 5}
"""ID_AA64MMFR0_EL1.PARange by the IPA limit that KVM derives from it."""

TRACING: Final = "/sys/kernel/tracing/"

HOST_MEMORY: Final = 2 << 30
HOST_OWN: Final = 768 << 20
"""What L0 needs besides the VM's memory."""

LARGEST_ALLOCATION: Final = 4 << 20
"""Above this, hugetlb pages need aligned room that the first of the two nodes may not have."""

LARGE_BLOCK: Final = 512 << 20
"""Room aligned for huge pages of this size is in a node only above L0's image and below its early
allocations; a node without any counts as fragmented, and kcompactd moves the VM's pages."""

MACHINE: Final = "virt,virtualization=on,gic-version=3,dtb-randomness=off"
CPU: Final = "max,lpa2=off"
BOOT_OPTIONS: Final = (
    "console=ttyAMA0 kvm-arm.mode=nested rdinit=/init loglevel=4 panic=-1 ramdisk_size=65536"
)


@dataclass(frozen=True)
class RigRun:
    """What the real kernel answered to a script: what ``formats.runs.KernelRun`` is for a recorded one.

    ``ended`` is False when the script did not come to its end: it ran out of time, or the VMM gave up.
    """

    name: str
    script: str
    text: str
    ipa_limit_bits: int
    icount: bool = True
    note: str = "run on the rig"

    @property
    def ended(self) -> bool:
        """Whether the VMM reached the end of the script."""
        return f"\n{DONE}\n" in self.text

    def scenario_text(self) -> str:
        """The script."""
        return self.script

    def answer(self) -> Answer:
        """The answer, read. Raises FormatError."""
        return parse_answer(self.text, f"{self.name} (rig)")

    def last_lines(self) -> list[str]:
        """The end of the log, for a message."""
        return last_lines(self.text)


@dataclass(frozen=True)
class Rig:
    """A prepared rig: the folder that ``make rig`` fills."""

    folder: Path
    ipa_limit_bits: int = 48
    counts: bool = False
    """Histograms of chunk unmaps and ranged TLB invalidations, which cost time."""
    script_seconds: int = 60
    """Seconds of the guest's clock (1e9 instructions) after which a script is ended."""
    boot_seconds: int = 900
    """Wall time after which QEMU is ended."""
    probes: tuple[str, ...] = field(default=())
    """Lines of shell run before the scripts, for a probe of one's own."""

    @classmethod
    def find(cls, folder: Path | None = None, **options: int | bool) -> Rig:
        """The rig in ``folder``, $SHADOWMMU_RIG or the user's cache.

        Raises UndeterminedError with what is missing.
        """
        chosen = folder or rig_folder()
        if missing := missing_parts(chosen):
            told = "; ".join(missing)
            raise UndeterminedError(f"no rig in {chosen} (make rig prepares it): {told}")
        return cls(chosen, **options)  # type: ignore[arg-type]

    def run(self, script_text: str, name: str = "scenario") -> RigRun:
        """Run one script, its trace printed. Raises as ``run_many``; UndeterminedError if it did not end."""
        run = self.run_many({name: traced(script_text)})[0]
        if not run.ended:
            raise UndeterminedError("\n".join([f"{name} did not come to its end:", *run.last_lines()]))
        return run

    def run_many(self, scripts: Mapping[str, str]) -> list[RigRun]:
        """Run scripts by name, several a boot; the answers in their order.

        A script that sets up tracing of its own (``w``) gets a boot of its own. Raises ScenarioError for one
        that cannot be run, InputError for an IPA limit the rig cannot have, UndeterminedError when QEMU
        or the boot fails.
        """
        scenarios = {name: check_script(text, name) for name, text in scripts.items()}
        alone = [name for name, text in scripts.items() if f"\nw {TRACING}" in "\n" + text]
        together = [name for name in scripts if name not in alone]
        answers: dict[str, str] = {}
        for group in (together, *([name] for name in alone)):
            while group:
                answers |= self._boot([scripts[n] for n in group], [scenarios[n] for n in group], group)
                group = [name for name in group if name not in answers]
        return [RigRun(name, text, answers[name], self.ipa_limit_bits) for name, text in scripts.items()]

    def _boot(
        self, scripts: Sequence[str], scenarios: Sequence[Scenario], names: list[str]
    ) -> dict[str, str]:
        """One boot; the answers of all scripts that began."""
        with tempfile.TemporaryDirectory(prefix="shadowmmu-rig-") as scratch:
            initrd, console = Path(scratch) / "initrd", Path(scratch) / "console"
            initrd.write_bytes(self._initrd(scripts))
            command = self._command(initrd, console, scenarios)
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=self.boot_seconds,
                    check=False,
                )
                told = done.stderr.decode(errors="replace").strip()
            except subprocess.TimeoutExpired:
                told = f"ended after {self.boot_seconds} s"
            text = console.read_text(encoding="utf-8", errors="replace") if console.is_file() else ""
        parts = split_console(text)
        if not parts:
            raise UndeterminedError("\n".join(["the rig did not boot:", told, *last_lines(text)]))
        return {names[int(number)]: part for number, part in parts.items()}

    def _initrd(self, scripts: Sequence[str]) -> bytes:
        programs = {
            "init": (self.folder / "init").read_bytes(),
            "bin/busybox": (self.folder / "busybox").read_bytes(),
            "rig/vmm": (self.folder / "vmm").read_bytes(),
        }
        files = {
            "rig/limit": f"{self.script_seconds}\n".encode(),
            "rig/setup/1-trace.sh": (self.folder / "trace.sh").read_bytes(),
        }
        if self.counts:
            files["rig/setup/2-counts.sh"] = (self.folder / "counts.sh").read_bytes()
        if self.probes:
            files["rig/setup/3-probes.sh"] = "\n".join([*self.probes, ""]).encode()
        files |= {f"rig/scripts/{number:04}": text.encode() for number, text in enumerate(scripts)}
        return archive(programs, files)

    def _command(self, initrd: Path, console: Path, scenarios: Sequence[Scenario]) -> list[str]:
        if self.ipa_limit_bits not in PARANGE:
            limits = ", ".join(str(bits) for bits in PARANGE)
            raise InputError(f"read an IPA limit of {self.ipa_limit_bits} bits, expected one of {limits}")
        options = BOOT_OPTIONS
        if self.ipa_limit_bits != max(PARANGE):
            options += f" id_aa64mmfr0.parange={PARANGE[self.ipa_limit_bits]}"
        pools = hugetlb_pools(scenarios)
        options += "".join(f" hugepagesz={size >> 10}K hugepages={count}" for size, count in pools.items())
        memory = max(HOST_MEMORY, max(s.memory_bytes for s in scenarios) + HOST_OWN)
        if any(size > LARGEST_ALLOCATION for size in pools):
            memory += 2 * sum(size * count for size, count in pools.items())
        if any(block_bytes(s.granule) >= LARGE_BLOCK for s in scenarios):
            memory = 2 * (memory + 2 * LARGE_BLOCK)
        return [
            *(str(self.folder / "qemu"), "-M", MACHINE, "-cpu", CPU, "-smp", "1"),
            *numa_nodes(memory),
            *("-m", f"{memory >> 20}M", "-icount", "shift=0,sleep=off", "-rtc", "base=2025-01-01,clock=vm"),
            *("-display", "none", "-monitor", "none", "-serial", f"file:{console}", "-no-reboot"),
            *("-kernel", str(self.folder / "Image"), "-initrd", str(initrd), "-append", options),
        ]


def hugetlb_pools(scenarios: Iterable[Scenario]) -> dict[int, int]:
    """Pages that L0 sets aside at boot, by size: enough for each scenario alone, the largest first."""
    pools: dict[int, int] = {}
    for scenario in scenarios:
        size = hugetlb_bytes(scenario.granule, scenario.backing)
        if size:
            pools[size] = max(pools.get(size, 0), scenario.memory_bytes // size)
    return dict(sorted(pools.items(), reverse=True))


def numa_nodes(memory: int) -> list[str]:
    """QEMU's options for two nodes that share ``memory`` bytes; the processor is in the first."""
    half = f"{memory >> 21}M"
    return [
        *("-object", f"memory-backend-ram,id=near,size={half}", "-numa", "node,nodeid=0,memdev=near,cpus=0"),
        *("-object", f"memory-backend-ram,id=far,size={half}", "-numa", "node,nodeid=1,memdev=far"),
    ]


def qemu_version(folder: Path) -> str:
    """The first line of the rig's ``qemu --version``; empty if it does not run."""
    program = shutil.which(str(folder / "qemu"))
    if program is None:
        return ""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[0] if done.returncode == 0 else ""
