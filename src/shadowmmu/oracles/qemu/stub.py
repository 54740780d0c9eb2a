"""The stub's instructions: assembled words kept beside the source, and how they are made from it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Final

from shadowmmu.errors import InputError

_HERE: Final = files("shadowmmu.oracles.qemu")
_LINE: Final = 32
_PREFIX: Final = "aarch64-linux-gnu-"


def stub_words() -> bytes:
    """The assembled stub, as kept in ``stub.hex``."""
    return bytes.fromhex(_HERE.joinpath("stub.hex").read_text(encoding="ascii"))


def can_assemble() -> bool:
    """Whether the GNU cross assembler for arm64 is on PATH."""
    return all(shutil.which(_PREFIX + tool) for tool in ("as", "objcopy"))


def assemble() -> bytes:
    """``stub.S`` assembled now. Raises InputError without a cross assembler, or if the source is wrong."""
    if not can_assemble():
        raise InputError(f"{_PREFIX}as is not on PATH: install the arm64 cross binutils")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "stub.S").write_text(_HERE.joinpath("stub.S").read_text(encoding="ascii"))
        for command in (
            (_PREFIX + "as", "-march=armv8.5-a", "-o", "stub.o", "stub.S"),
            (_PREFIX + "objcopy", "-O", "binary", "-j", ".text", "stub.o", "stub.bin"),
        ):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                raise InputError(f"stub.S: {done.stderr.strip()}")
        return (folder / "stub.bin").read_bytes()


def as_hex(words: bytes) -> str:
    """The text of ``stub.hex`` for these words."""
    return "".join(words[i : i + _LINE].hex() + "\n" for i in range(0, len(words), _LINE))
