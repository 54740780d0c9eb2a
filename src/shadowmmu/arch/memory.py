"""Descriptors in memory: the array a walk reads, its end, and the byte order of tables.

Memory is one array of 8-byte words; word ``pa >> 3`` holds the bytes at ``pa``, little-endian. What lies
behind its end does not answer: a walk there is a synchronous external abort.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import U64, Word, Words, inline

BYTES: Final = U64(0x00FF_00FF_00FF_00FF)
PAIRS: Final = U64(0x0000_FFFF_0000_FFFF)
EIGHT: Final = U64(8)
SIXTEEN: Final = U64(16)
HALF: Final = U64(32)


@inline
def beyond_memory(mem: Words, word: Word) -> bool:
    """Whether there is no memory at this word."""
    return bool(word >= U64(mem.size))


@inline
def swapped(value: Word) -> Word:
    """The word with its bytes in the other order."""
    value = ((value >> EIGHT) & BYTES) | ((value & BYTES) << EIGHT)
    value = ((value >> SIXTEEN) & PAIRS) | ((value & PAIRS) << SIXTEEN)
    return (value >> HALF) | (value << HALF)


@inline
def read_descriptor(mem: Words, word: Word, big_endian: bool) -> Word:
    """The descriptor at ``word``. Source: SCTLR_ELx.EE."""
    descriptor = mem[word]
    return swapped(descriptor) if big_endian else descriptor


@inline
def write_descriptor(mem: Words, word: Word, descriptor: Word, big_endian: bool) -> None:
    """Write a descriptor back, as the hardware update of AF and dirty state does."""
    mem[word] = swapped(descriptor) if big_endian else descriptor
