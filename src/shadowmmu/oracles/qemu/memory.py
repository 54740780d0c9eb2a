"""The guest's physical memory as the array that the model walks: index = physical address >> 3, from 0.

RAM of the guest is a memfd that QEMU maps too. Here it is mapped, shared, at its place in a reserved
stretch of address space that begins at physical address 0; what lies below RAM is anonymous memory that
reads as zero and takes no space. No word is ever copied between QEMU and the model.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import Any, Final

import numpy as np

from shadowmmu.compiled import Words
from shadowmmu.oracles.qemu.layout import RAM, RAM_BYTES, RAM_END

MAP_FIXED: Final = 0x10  # Linux; the mmap module has no name for it
MAP_NORESERVE: Final = 0x4000
_FAILED: Final = ctypes.c_void_p(-1).value

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def _map(start: int | None, size: int, flags: int, fd: int) -> int:
    placed = _libc.mmap(start, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
    if placed == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, f"mapping {size:#x} bytes of guest memory: {os.strerror(number)}")
    return int(placed)


class _Mapping:
    """A stretch of this process's address space, unmapped when the last array over it is gone."""

    def __init__(self, fd: int | None) -> None:
        quiet = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self.start = _map(None, RAM_END, quiet, -1)
        weakref.finalize(self, _libc.munmap, self.start, RAM_END)
        if fd is not None:
            _map(self.start + RAM, RAM_BYTES, mmap.MAP_SHARED | MAP_FIXED, fd)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "shape": (RAM_END >> 3,), "typestr": "<u8", "data": (self.start, False)}


def guest_memory(fd: int | None = None) -> Words:
    """The words of physical memory 0 .. ``RAM_END``; RAM is shared with whoever has the memfd ``fd``.

    Without ``fd`` it is a private machine of the same size, all zero: what the model updates while QEMU
    updates the shared one. The mapping lives as long as an array over it. Raises OSError.
    """
    return np.asarray(_Mapping(fd))
