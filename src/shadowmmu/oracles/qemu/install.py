"""Which QEMU to use, and how to get a newer one than the system's without installing anything.

    python -m shadowmmu.oracles.qemu.install [DIR [SUITE ...]]

unpacks the newest qemu-system-arm of the given Debian suites, with its libraries, in DIR (where ``find_qemu``
looks by default) and prints its launcher. It asks the mirror that apt on this machine is set up for. About
5 s and 200 MB.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from shadowmmu.compiled import cache_base
from shadowmmu.errors import InputError

MODULE: Final = "shadowmmu.oracles.qemu.install"
PROGRAM: Final = "qemu-system-aarch64"
VARIABLE: Final = "SHADOWMMU_QEMU"
SUITES: Final = ("trixie", "trixie-backports")
_KEYS: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SOURCES: Final = Path("/etc/apt")


def find_qemu() -> Path:
    """The QEMU to ask: ``$SHADOWMMU_QEMU``, else one unpacked in the cache folder, else the one on PATH.

    Raises InputError, saying what to do, where there is none.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        found = shutil.which(chosen)
        if found is None:
            raise InputError(f"${VARIABLE} is {chosen}: expected an executable {PROGRAM}")
        return Path(found)
    unpacked = cache_base() / "qemu" / PROGRAM
    if os.access(unpacked, os.X_OK):
        return unpacked
    installed = shutil.which(PROGRAM)
    if installed is None:
        raise InputError(
            f"no {PROGRAM} on PATH: install the package qemu-system-arm, or run python -m {MODULE}"
        )
    return Path(installed)


def debian_mirror(folder: Path = _SOURCES) -> str:
    """The Debian mirror among the sources of apt in ``folder``. Raises InputError if there is none."""
    candidates = [
        *sorted(folder.glob("sources.list.d/*.sources")),
        *sorted(folder.glob("sources.list.d/*.list")),
    ]
    for path in [*candidates, folder / "sources.list"]:
        if path.is_file():
            for url in _urls(path.read_text(encoding="utf-8", errors="replace")):
                if url.rstrip("/").endswith("/debian"):
                    return url.rstrip("/")
    raise InputError(f"{folder}: no Debian mirror among the sources of apt")


def _urls(sources: str) -> Iterator[str]:
    for match in re.finditer(r"^\s*(?:URIs:|deb(?:\s+\[[^]]*\])?)\s+(\S+)", sources, re.MULTILINE):
        yield match.group(1)


def unpack_qemu(folder: Path, suites: Sequence[str] = SUITES) -> Path:
    """Unpack QEMU of the last suite (libraries from all) below ``folder``; returns the launcher.

    Raises InputError where apt, the mirror or the package cannot be had.
    """
    folder = folder.resolve()
    root = folder / "root"
    for part in ("lists/partial", "cache/archives/partial", "root"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    architecture = _run("dpkg", "--print-architecture").strip()
    mirror = debian_mirror()
    (folder / "sources.list").write_text(
        "".join(f"deb [arch={architecture} signed-by={_KEYS}] {mirror} {suite} main\n" for suite in suites)
    )
    (folder / "status").touch()
    settings = {
        "Dir::Etc::sourcelist": f"{folder}/sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": f"{folder}/lists",
        "Dir::State::status": f"{folder}/status",
        "Dir::Cache": f"{folder}/cache",
        "APT::Architectures": architecture,
        "Acquire::Languages": "none",
    }
    if os.geteuid() == 0:
        settings["APT::Sandbox::User"] = "root"
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    apt = ("apt-get", *options, "-qq")
    _run(*apt, "update")
    install = ("--no-install-recommends", "--download-only", "install", "qemu-system-arm")
    _run(*apt, "-t", suites[-1], "-y", *install)
    for package in sorted((folder / "cache/archives").glob("*.deb")):
        _run("dpkg", "-x", str(package), str(root))
        package.unlink()
    return _write_launcher(folder, root)


def _write_launcher(folder: Path, root: Path) -> Path:
    """A script that runs the unpacked program with the unpacked loader and libraries."""
    loaders = sorted(root.glob("**/ld-linux-*.so.*"))
    if not loaders:
        raise InputError(f"{root}: no dynamic loader among the unpacked packages")
    libraries = ":".join(
        str(path) for path in sorted(root.glob("*/*-linux-gnu")) + sorted(root.glob("*/*/*-linux-gnu"))
    )
    launcher = folder / PROGRAM
    launcher.write_text(
        f"#!/bin/sh\nexec {loaders[0]} --library-path {libraries} "
        f'{root}/usr/bin/{PROGRAM} -L {root}/usr/share/qemu "$@"\n'
    )
    launcher.chmod(0o755)
    return launcher


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"{command[0]}: {error.strerror}; unpacking needs the tools of Debian") from error
    if done.returncode:
        raise InputError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
    return done.stdout


def main(arguments: Sequence[str]) -> int:
    """Unpack in the folder named by the first argument; print the launcher. Exit code 4 where it fails."""
    folder = Path(arguments[0]) if arguments else cache_base() / "qemu"
    try:
        launcher = unpack_qemu(folder, tuple(arguments[1:]) or SUITES)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 4
    sys.stdout.write(f"{launcher}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
