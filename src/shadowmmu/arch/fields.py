"""Declarations of registers and descriptors: one line a field, everything else derives from it.

A ``Layout`` lists the fields of a 64-bit word. Encoding, decoding, printing and the constants that
kernels use come from the same declaration, so they cannot disagree.

>>> from shadowmmu.arch.stage2 import STAGE2_LEAF
>>> STAGE2_LEAF.decode(0x0180_0000_8000_07DB)["AF"]
1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from shadowmmu.compiled import U64


@dataclass(frozen=True)
class Field:
    """Bits ``lsb .. lsb + width - 1`` of a word."""

    name: str
    lsb: int
    width: int
    meaning: str
    values: Mapping[int, str] = field(default_factory=dict)
    address: bool = False
    """The field is an address without its low bits: it is printed in place."""

    @property
    def mask(self) -> int:
        """The field's bits in place."""
        return ((1 << self.width) - 1) << self.lsb

    def get(self, word: int) -> int:
        """The field's value in ``word``."""
        return (word >> self.lsb) & ((1 << self.width) - 1)

    def put(self, value: int) -> int:
        """``value`` in the field's place. Raises ValueError if it does not fit."""
        if not 0 <= value < 1 << self.width:
            raise ValueError(f"{self.name}: {value:#x} does not fit {self.width} bits")
        return value << self.lsb


class Layout:
    """The fields of one kind of word, by name."""

    def __init__(self, name: str, source: str, *fields: Field) -> None:
        self.name = name
        self.source = source
        self.fields: dict[str, Field] = {}
        claimed = 0
        for f in fields:
            if f.name in self.fields:
                raise ValueError(f"{name}.{f.name} is declared twice")
            self.fields[f.name] = f
            if claimed & f.mask or f.lsb + f.width > 64:
                raise ValueError(f"{name}.{f.name} overlaps another field or leaves the word")
            claimed |= f.mask

    def __iter__(self) -> Iterator[Field]:
        return iter(sorted(self.fields.values(), key=lambda f: -f.lsb))

    def __getitem__(self, name: str) -> Field:
        return self.fields[name]

    def mask(self, name: str) -> np.uint64:
        """The bits of field ``name`` as a kernel constant."""
        return U64(self.fields[name].mask)

    def lsb(self, name: str) -> np.uint64:
        """The lowest bit number of field ``name`` as a kernel constant."""
        return U64(self.fields[name].lsb)

    def low_mask(self, name: str) -> np.uint64:
        """The field's mask shifted down to bit 0, as a kernel constant."""
        return U64((1 << self.fields[name].width) - 1)

    def decode(self, word: int) -> dict[str, int]:
        """All field values of ``word``, highest bits first."""
        return {f.name: f.get(int(word)) for f in self}

    def encode(self, **values: int) -> int:
        """The word with these field values, all others 0. Raises KeyError or ValueError."""
        return sum(self.fields[name].put(value) for name, value in values.items())

    def describe(self, word: int) -> str:
        """One line: every nonzero field by name, with its meaning where the value has one."""
        shown = []
        for f in self:
            value = f.get(int(word))
            if value:
                text = f.values.get(value)
                printed = value << f.lsb if f.address else value
                shown.append(f"{f.name}={printed:#x}" + (f" ({text})" if text else ""))
        return " ".join(shown) or "0"
