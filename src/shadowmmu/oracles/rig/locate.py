"""Where the rig is, and what of it is missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from shadowmmu import __file__ as package_file

FOLDER_VARIABLE: Final = "SHADOWMMU_RIG"
PARTS: Final = {
    "Image": "the kernel of L0",
    "vmm": "the VMM with its L1, built from rig/",
    "busybox": "a static busybox for arm64",
    "qemu": "a program that starts qemu-system-aarch64",
    "init": "L0's init, from rig/l0",
    "trace.sh": "the probes, from rig/l0",
    "counts.sh": "the histograms, from rig/l0",
}


def rig_folder() -> Path:
    """The folder of the rig: ``$SHADOWMMU_RIG``, or one in the user's cache directory."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "shadowmmu-rig"


def missing_parts(folder: Path) -> list[str]:
    """What of a prepared rig is not in ``folder``, ready to print; empty if it is whole."""
    missing = []
    for name, what in PARTS.items():
        path = folder / name
        if not path.is_file():
            missing.append(f"{name} ({what})")
        elif name == "qemu" and not os.access(path, os.X_OK):
            missing.append(f"{name} is not executable")
    return missing


def sources() -> Path | None:
    """The folder ``rig/`` of the repository this package stands in; None for an installed package."""
    folder = Path(package_file).resolve().parents[2] / "rig"
    return folder if (folder / "build.sh").is_file() else None
