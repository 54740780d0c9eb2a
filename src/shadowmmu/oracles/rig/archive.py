"""The initial file system of a run: a cpio archive, made in memory.

Source: the kernel's ``Documentation/driver-api/early-userspace/buffer-format.rst`` ("newc" headers, octal
modes written in hexadecimal, four-byte padding, a trailer).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

FOLDER: Final = 0o040755
PROGRAM: Final = 0o100755
FILE: Final = 0o100644
CHARACTER_DEVICE: Final = 0o020600
TRAILER: Final = "TRAILER!!!"
CONSOLE: Final = (5, 1)
"""Device number of ``/dev/console``, which the kernel opens before init runs."""


def _entry(inode: int, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    path = name.encode() + b"\0"
    numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers) + path
    return _padded(header) + _padded(content)


def _padded(part: bytes) -> bytes:
    return part + b"\0" * (-len(part) % 4)


def archive(programs: Mapping[str, bytes], files: Mapping[str, bytes]) -> bytes:
    """A newc archive of ``programs`` (executable) and ``files`` by path, with their folders and a console.

    O(bytes). Folders come before what is in them, as the kernel needs it.
    """
    folders = {"dev"}
    for path in (*programs, *files):
        parts = path.split("/")
        folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
    entries = [(name, FOLDER, b"", (0, 0)) for name in sorted(folders)]
    entries.append(("dev/console", CHARACTER_DEVICE, b"", CONSOLE))
    entries += [(name, PROGRAM, content, (0, 0)) for name, content in programs.items()]
    entries += [(name, FILE, content, (0, 0)) for name, content in files.items()]
    entries.append((TRAILER, 0, b"", (0, 0)))
    return b"".join(_entry(number, *entry) for number, entry in enumerate(entries, 1))
