"""The conformance kit on hosts of 16K and 64K pages: its scripts, rewritten for another granule.

The kit's cases are written for 4K pages and 2M blocks. ``scaled_case`` keeps each one's shape: the n-th page
of a block stays the n-th page (counted from the block's end in its upper half), blocks stay blocks, and
every TLBI operand names the same leaves in the operand's other encoding (Arm ARM, TLBI IPAS2E1 and
TLBI RIPAS2E1: TTL, TG, BaseADDR). L1's granule is the host's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from shadowmmu.events.commands import HOST_COMMAND
from shadowmmu.events.words import number, size_word
from shadowmmu.machine.granule import DEFAULT_GRANULE, GRANULES, block_bytes, page_bytes
from shadowmmu.verify.cases import BLOCK, CODE, DATA, PAGE, Case, placed_cases, random_cases

PER_BLOCK: Final = BLOCK // PAGE
DATA_BLOCKS: Final = 8
"""Blocks of data a case may touch."""
DATA_OF: Final = {"16K": 0x4200_0000, "64K": 0x6000_0000}
"""Canonical IPA of the data, aligned to a block."""
IPA_BITS: Final = {"16K": 37, "64K": 40}
"""IPA limit: as few bits as the default VTCR_EL2 and the model's data pages (from 2^36 on) allow."""
OPERAND_GRANULE: Final = {"16K": 2, "64K": 3}
"""TG of a TLBI operand, in the range form and in the TTL field."""
WRITTEN_PAGES: Final = 32
"""Pages that a ``write`` of a block stores to: no case looks at more of them."""
REGION_SHIFT: Final = 28
WIDE_REGION_SHIFT: Final = 32
_HOST: Final = frozenset(HOST_COMMAND.values()) | {"mprotect"}


class _Scale:
    """Rewrites the words of one script."""

    def __init__(self, granule: str) -> None:
        self.granule = granule
        self.page, self.block = page_bytes(granule), block_bytes(granule)
        self.shift = GRANULES[granule]

    def offset(self, value: int) -> int:
        """A place by its block and its page in the block."""
        block, inside = divmod(value, BLOCK)
        page, rest = divmod(inside, PAGE)
        if page >= PER_BLOCK // 2:
            page += self.block // self.page - PER_BLOCK
        return block * self.block + page * self.page + rest

    def size(self, value: int) -> int:
        """A number of blocks and pages."""
        blocks, rest = divmod(value, BLOCK)
        return blocks * self.block + rest // PAGE * self.page

    def canonical(self, value: int) -> int:
        """A canonical IPA: data moves, L1's own pages stay."""
        return DATA_OF[self.granule] + self.offset(value - DATA) if value >= DATA else value

    def nested(self, value: int) -> int:
        """A nested IPA, or a canonical one that L2 uses with stage 2 off."""
        if DATA <= value < DATA + DATA_BLOCKS * BLOCK:
            return self.canonical(value)
        region, inside = divmod(value, 1 << REGION_SHIFT)
        return (region << WIDE_REGION_SHIFT) + self.offset(inside)

    def tlbi(self, kind: str, value: int) -> str:
        """The operand of a TLBI by IPA or by range."""
        field = OPERAND_GRANULE[self.granule]
        if kind == "2":
            start = self.nested((value & ((1 << 37) - 1)) << 12) >> self.shift
            return f"tlbi 2 {field << 46 | value & (0x7F << 39) | start:#x}"
        start = self.nested((value & ((1 << 36) - 1)) << 12) >> 12
        level = value >> 44 & 3
        hint = field << 2 | max(level, 2) if level else 0
        return f"tlbi {kind} {hint << 44 | start:#x}"

    def host(self, words: list[str]) -> str:
        """A call of the VMM on a range."""
        at, size = number(words[1], ""), number(words[2], "")
        if words[0] == "write" and size >= BLOCK:
            pages = size_word(WRITTEN_PAGES * self.page)
            blocks = range(at, at + size, BLOCK)
            return "\n".join(f"write {self.canonical(block):#x} {pages}" for block in blocks)
        rest = [f"{self.canonical(at):#x}", size_word(self.size(size)), *words[3:]]
        return " ".join([words[0], *rest])

    def line(self, text: str) -> str:
        """One line of the script."""
        words = text.split()
        values = [number(word, "") if word[:1].isdigit() else 0 for word in words]
        match words[:1]:
            case ["mem"]:
                end = DATA_OF[self.granule] + DATA_BLOCKS * self.block
                return f"mem {size_word(end - 0x4000_0000)}\ngranule {self.granule}"
            case ["code"]:
                return f"code {self.nested(CODE):#x}"
            case ["codeat"]:
                return f"codeat {self.nested(CODE):#x}" if values[1] == CODE else text
            case ["map"]:
                n, c, size = self.nested(values[1]), self.canonical(values[2]), self.size(values[3])
                return " ".join([f"map {n:#x} {c:#x} {size_word(size)}", *words[4:]])
            case ["unmap"]:
                return f"unmap {self.nested(values[1]):#x} {size_word(self.size(values[2]))} {words[3]}"
            case ["touch"]:
                strides = [str(self.size(value)) for value in values[3:4]]
                return " ".join([f"touch {words[1]} {self.nested(values[2]):#x}", *strides, *words[4:]])
            case ["tlbi"] if len(words) > 2:
                return self.tlbi(words[1], values[2])
            case [name] if name in _HOST:
                return self.host(words)
            case ["gap"] if words[2] == "punch":
                return f"gap {words[1]} {self.host(words[2:])}"
        return text


def scaled_case(case: Case, granule: str) -> Case:
    """``case`` on a host of another granule; unchanged for 4K. Raises ValueError for an unknown granule."""
    if granule == DEFAULT_GRANULE:
        return case
    scale = _Scale(granule)
    lines = [scale.line(line) for line in case.script.splitlines()]
    return replace(
        case,
        name=f"{case.name}-{granule}",
        script="\n".join(lines) + "\n",
        ipa_limit_bits=IPA_BITS[granule],
    )


def has_level_1(case: Case) -> bool:
    """Whether L1 maps by 1G in ``case``: larger granules have no such leaf."""
    return any(line.split()[:1] == ["map"] and line.split()[4] == "1" for line in case.script.splitlines())


def granule_cases(granule: str) -> list[Case]:
    """The whole kit for a host of ``granule``, but for leaves that the granule does not have."""
    cases = [*placed_cases(), *random_cases()]
    if granule != DEFAULT_GRANULE:
        cases = [case for case in cases if not has_level_1(case)]
    return [scaled_case(case, granule) for case in cases]
