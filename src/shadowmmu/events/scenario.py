"""The parser of the scenario language: a script in, a ``Scenario`` out, or a ``ScenarioError``.

The language is the one that the real-kernel rig runs (``docs/scenario-language.md``), so the same file is an
input of the model and of the kernel. What the rig would silently misread is refused here. State that the
rig keeps between lines is folded into the events: VTCR_EL2 into SET_STAGE2, L2's code address into TOUCH.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from shadowmmu.events import schema
from shadowmmu.events.commands import COMMANDS, MOST_BYTES, MOST_VCPUS, Command
from shadowmmu.events.memslots import Memslots
from shadowmmu.events.schema import (
    CANONICAL_RAM,
    CODE_CANONICAL,
    CODE_NESTED,
    EventTable,
    Scenario,
)
from shadowmmu.events.words import (
    EL2_SCOPES,
    ScenarioError,
    WordError,
    assigned_register,
    at_operation,
    attributes,
    number,
    protection,
    size_word,
)
from shadowmmu.machine.granule import (
    DEFAULT_GRANULE,
    GRANULES,
    HUGETLB,
    hugetlb_bytes,
    leaf_bytes,
    page_bytes,
    page_shift_of,
    stage2_page_shift,
)

PAGE = 4096
"""What a nested or canonical IPA of L1's is aligned to at least, whatever the granules."""

FIRST_BLOCK_LEVEL = {GRANULES["4K"]: 1}
"""Lowest level of a leaf of L1's by the address bits of its page; 2 with larger pages."""

ADDRESS_BITS = 48
"""Widest output address of L1's descriptors as the rig writes them."""

LEAST_MEMORY = 2 << 20
"""L1's image, stack, mailbox and first tables need this much."""

DEFAULT_MEMORY = 64 << 20

_OPERATIONS = {"r": schema.READ, "w": schema.WRITE, "x": schema.EXECUTE}
_ALIGNMENT = {schema.READ: 8, schema.WRITE: 8, schema.EXECUTE: 4}
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_BACKINGS = ("base", "thp", *HUGETLB)


class _Reader:
    """State between lines: the machine described so far, and what the rig remembers."""

    def __init__(self, granule: str) -> None:
        self.granule = granule
        self.table = EventTable()
        self.labels: dict[str, int] = {}
        self.slots = Memslots(granule)
        self.memory = DEFAULT_MEMORY
        self.vcpus = 1
        self.vcpu = 0
        self.torn_down = False
        self.backing = ""
        self.e2h0 = False
        self.vm_ipa_bits = 0
        self.rooted = False
        self.ended = False
        self.vtcr = schema.DEFAULT_VTCRS[granule]
        self.tables_shift = page_shift_of(granule)
        self.said: set[str] = set()
        self.code = CODE_NESTED
        self.line = 0
        self.text = ""

    def line_read(self, line_number: int, line: str) -> None:
        """Read one line. Raises WordError and leaves the scenario unusable."""
        words = line.replace("\t", " ").split(" ")
        words = [word for word in words if word]
        if not words or words[0].startswith("#"):
            return
        self.line, self.text = line_number, line
        command = COMMANDS.get(words[0])
        if command is None:
            raise WordError(words[0], "a command of the scenario language")
        self._in_order(command)
        operands = words[1:]
        if len(operands) > command.most and not command.free_text:
            raise WordError(operands[command.most], f"nothing more: {command.usage}")
        if len(operands) < command.required:
            raise WordError(line.strip(), command.usage)
        operands += ["0"] * (command.most - len(operands))
        handler = _HANDLERS.get(command.name, _skip)
        handler(self, command, operands, len(words) - 1)

    def _in_order(self, command: Command) -> None:
        if command.when == "kernel":
            raise WordError(command.name, "a command that the model can run: this run needs a real kernel")
        started = bool(self.backing)
        if command.when in ("before", "start") and started:
            raise WordError(command.name, "an event: the machine is described before 'start', once")
        if command.when in ("after", "root") and not started:
            raise WordError(command.name, "'start' first")
        if self.torn_down and command.when in ("after", "root"):
            raise WordError(command.name, "nothing more: 'teardown' ended the VM")
        if command.when == "root" and not self.rooted:
            raise WordError(command.name, "'s2' first: L1 has no stage-2 table to write")

    def add(self, kind: int, *operands: int) -> None:
        """Append an event of the current line."""
        self.table.append(kind, *operands, vcpu=self.vcpu, line=self.line)

    def leaf(self, level: int) -> int:
        """Bytes of a leaf of L1's tables: the granule of VTCR_EL2 at the last ``s2``."""
        return leaf_bytes(self.tables_shift, level)

    def label(self, text: str) -> int:
        """Index of a label, new or known."""
        return self.labels.setdefault(text, len(self.labels))

    def canonical_range(self, canonical_ipa: str, size: str) -> tuple[int, int]:
        """A page-aligned, non-empty range inside the VM's memory."""
        page = page_bytes(self.granule)
        at, length = _aligned(canonical_ipa, "a canonical IPA", page), _aligned(size, "a size", page)
        end = CANONICAL_RAM + self.memory
        if not length:
            raise WordError(size, "a size above 0")
        if at < CANONICAL_RAM or at + length > end:
            raise WordError(canonical_ipa, f"a range inside the memory {CANONICAL_RAM:#x}-{end:#x}")
        return at, length


def _aligned(word: str, what: str, unit: int = PAGE) -> int:
    value = number(word, what)
    if value % unit:
        raise WordError(word, f"{what} aligned to {unit}")
    return value


def _flag(word: str) -> int:
    if word not in ("0", "1"):
        raise WordError(word, "0 or 1")
    return int(word)


def _skip(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    """A line for the host's tracing only."""


def _quit(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    reader.ended = True


def _mem(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    size = _aligned(words[0], "a memory size")
    if not LEAST_MEMORY <= size < 1 << ADDRESS_BITS:
        raise WordError(words[0], f"a memory size from 2M to below {1 << ADDRESS_BITS:#x}")
    reader.memory = size


def _granule(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    if words[0] not in GRANULES:
        raise WordError(words[0], " or ".join(GRANULES))
    if "vtcr" not in reader.said:
        reader.vtcr = schema.DEFAULT_VTCRS[words[0]]
    reader.granule = reader.slots.granule = words[0]


def _vcpus(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    count = number(words[0], "a number of vCPUs")
    if not 1 <= count <= MOST_VCPUS:
        raise WordError(words[0], f"1 to {MOST_VCPUS} vCPUs")
    reader.vcpus = count


def _start(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    if words[0] not in _BACKINGS:
        raise WordError(words[0], f"{', '.join(_BACKINGS[:-1])} or {_BACKINGS[-1]}")
    page, hugetlb = page_bytes(reader.granule), hugetlb_bytes(reader.granule, words[0])
    if reader.memory % page:
        raise WordError(words[0], f"a memory size that is a multiple of {size_word(page)}, the page")
    if words[0] in HUGETLB and not hugetlb:
        raise WordError(words[0], f"a backing of a host with pages of {reader.granule}")
    if hugetlb and reader.memory % hugetlb:
        raise WordError(words[0], f"a memory size that is a multiple of {size_word(hugetlb)} for huge pages")
    bits = number(words[2], "a number of IPA bits")
    if bits and not 32 <= bits <= 52:
        raise WordError(words[2], "0 or 32 to 52 IPA bits")
    if CANONICAL_RAM + reader.memory > 1 << (bits or schema.DEFAULT_VM_IPA_BITS):
        raise WordError(words[2], "IPA bits that reach the end of the memory")
    e2h0 = bool(_flag(words[1]))
    reader.backing, reader.e2h0, reader.vm_ipa_bits = words[0], e2h0, bits
    reader.slots.started(reader.memory, bits)


def _vtcr(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    reader.vtcr = number(words[0], "a value of VTCR_EL2")
    reader.said.add("vtcr")


def _code_address(word: str) -> int:
    nested_ipa = _aligned(word, "a nested IPA")
    if nested_ipa >> ADDRESS_BITS:
        raise WordError(word, f"a nested IPA below {1 << ADDRESS_BITS:#x}")
    return nested_ipa


def _codeat(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    reader.code = _code_address(words[0])


def _code(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    reader.code = _code_address(words[0]) if given else CODE_NESTED
    page = reader.leaf(3)
    if reader.code % page:
        raise WordError(words[0], f"a nested IPA aligned to {page}, the page of VTCR_EL2")
    reader.add(schema.MAP_GUEST, reader.code, CODE_CANONICAL, page, 3, attributes("rx"), 0)


def _s2(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    root = 0 if words[0] == "new" else _aligned(words[0], "'new' or the canonical IPA of a root table")
    vmid = number(words[1], "a VMID")
    if vmid >> 16:
        raise WordError(words[1], "a VMID of 16 bits")
    if root and not CANONICAL_RAM <= root < CANONICAL_RAM + reader.memory:
        raise WordError(words[0], "a root table inside the memory")
    reader.add(schema.SET_STAGE2, root, vmid, reader.vtcr)
    reader.tables_shift = stage2_page_shift(reader.vtcr)
    reader.rooted = True


def _leaf_size(reader: _Reader, word: str) -> tuple[int, int]:
    level = number(word, "a level")
    first = FIRST_BLOCK_LEVEL.get(reader.tables_shift, 2)
    if not first <= level <= 3:
        raise WordError(word, f"a level, {first} to 3")
    return level, reader.leaf(level)


def _leaf_aligned(word: str, what: str, leaf: int) -> int:
    value = number(word, what)
    if value % leaf:
        raise WordError(word, f"{what} aligned to the leaf size {leaf:#x}")
    return value


def _leaves(place: str, what: str, size: str, leaf: int) -> tuple[int, int]:
    start, length = _leaf_aligned(place, what, leaf), _leaf_aligned(size, "a size", leaf)
    if not length:
        raise WordError(size, "a size above 0")
    if start + length > 1 << ADDRESS_BITS:
        raise WordError(place, f"a range below {1 << ADDRESS_BITS:#x}")
    return start, length


def _map(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    level, leaf = _leaf_size(reader, words[3])
    nested_ipa, size = _leaves(words[0], "a nested IPA", words[2], leaf)
    canonical_ipa = _leaf_aligned(words[1], "a canonical IPA", leaf)
    bits = attributes(words[4])
    window = _leaf_aligned(words[5], "a window", leaf)
    if canonical_ipa + min(size, window or size) > 1 << ADDRESS_BITS:
        raise WordError(words[1], f"a range below {1 << ADDRESS_BITS:#x}")
    reader.add(schema.MAP_GUEST, nested_ipa, canonical_ipa, size, level, bits, window)


def _unmap(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    level, leaf = _leaf_size(reader, words[2])
    nested_ipa, size = _leaves(words[0], "a nested IPA", words[1], leaf)
    reader.add(schema.UNMAP_GUEST, nested_ipa, size, level)


def _touch(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    operation = _OPERATIONS.get(words[0])
    if operation is None:
        raise WordError(words[0], "r, w or x")
    aligned = _ALIGNMENT[operation]
    va, stride = number(words[1], "a VA"), number(words[2], "a stride")
    for word, value in ((words[1], va), (words[2], stride)):
        if value % aligned:
            raise WordError(word, f"a VA and a stride aligned to {aligned}: L2 runs with its stage 1 off")
    count = number(words[3], "a count") if given > 3 else 1
    if count and va + stride * (count - 1) >= 1 << 64:
        raise WordError(words[1], "accesses below 2^64")
    reader.add(schema.TOUCH, va, stride, count, operation, reader.code)


def _tlbi(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    kind = number(words[0], "a TLBI kind")
    if kind > 8:
        raise WordError(words[0], "a TLBI kind, 0 to 8")
    reader.add(schema.TLBI, kind, number(words[1], "an operand value"))


def _switch(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    reader.add(command.kind, _flag(words[0]))


def _bare(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    reader.add(command.kind)


def _word_access(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    canonical_ipa = number(words[0], "a canonical IPA")
    if canonical_ipa % 8 or canonical_ipa >> ADDRESS_BITS:
        raise WordError(words[0], f"a canonical IPA aligned to 8, below {1 << ADDRESS_BITS:#x}")
    if command.kind == schema.POKE:
        reader.add(command.kind, canonical_ipa, number(words[1], "a value"))
    else:
        reader.add(command.kind, canonical_ipa)


def _s1(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    values: dict[int, int] = {}
    for word in words[:given]:
        column, value = assigned_register(word)
        if column in values:
            raise WordError(word, "each register once")
        values[column] = value
    columns = sorted(values)
    for first in range(0, len(columns), schema.S1_VALUES):
        some = columns[first : first + schema.S1_VALUES]
        reader.add(schema.S1, sum(1 << column for column in some), *(values[column] for column in some))


def _at(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    reader.add(schema.AT, at_operation(words[0]), number(words[1], "a VA"))


def _vncr(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    if words[0] not in ("r", "w"):
        raise WordError(words[0], "r or w")
    if reader.e2h0:
        raise WordError(command.name, "an L1 with E2H0 0: an nVHE L1 has no nested virtualisation")
    va = _aligned(words[1], "a VA")
    reader.add(schema.VNCR, va, _OPERATIONS[words[0]], reader.code)


def _tlbi_el2(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    if words[0] not in EL2_SCOPES:
        raise WordError(words[0], "one of " + ", ".join(EL2_SCOPES))
    reader.add(schema.TLBI_EL2, EL2_SCOPES.index(words[0]), number(words[1], "an operand value"))


def _gap(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    chunks = number(words[0], "a number of chunks")
    if not chunks or words[1] not in (*_OPERATIONS, "punch"):
        raise WordError(" ".join(words[:2]), "a number of chunks above 0, then r, w, x or punch")
    if words[1] == "punch":
        if given < 4:
            raise WordError(words[1], "a canonical IPA and a size after punch")
        canonical_ipa, size = reader.canonical_range(words[2], words[3])
        reader.add(schema.GAP, chunks, canonical_ipa, schema.GAP_TAKES, size)
        return
    if given > 3:
        raise WordError(words[3], "nothing after the VA")
    if reader.vcpus < 2:
        raise WordError(command.name, "two vCPUs: one executes the TLBI")
    operation = _OPERATIONS[words[1]]
    va = number(words[2], "a VA")
    if va % _ALIGNMENT[operation]:
        raise WordError(words[2], f"a VA aligned to {_ALIGNMENT[operation]}")
    reader.add(schema.GAP, chunks, va, operation, reader.code)


def _hold(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    if given > 3 and words[3] != "atomic":
        raise WordError(words[3], "atomic or nothing")
    place = reader.canonical_range(words[0], words[1])
    reader.add(schema.HOLD, *place, number(words[2], "a number of faults"), int(given > 3))


def _host_range(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    reader.add(command.kind, *reader.canonical_range(words[0], words[1]), int(command.name == "ret"))


def _mprotect(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    reader.add(command.kind, *reader.canonical_range(words[0], words[1]), protection(words[2]))


def _pages(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    pages = number(words[1], "a number of pages")
    canonical_ipa, _ = reader.canonical_range(
        words[0], str(pages * page_bytes(reader.granule)) if pages < 1 << 40 else words[1]
    )
    reader.add(command.kind, canonical_ipa, pages)


def _dump(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    if given > 1 and words[1] != "n":
        raise WordError(words[1], "n (shadow MMUs only) or nothing")
    reader.add(schema.DUMP, reader.label(words[0]), int(given > 1))


def _mark(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    text = reader.text.strip(" \t")[len("mark") :]
    reader.add(schema.MARK, reader.label(text.strip(" \t")))


def _vcpu(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    vcpu = number(words[0], "a vCPU")
    if vcpu >= reader.vcpus:
        raise WordError(words[0], f"a vCPU below {reader.vcpus}")
    reader.vcpu = vcpu


def _enter(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    reader.add(command.kind, reader.code)


def _capability(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    which = schema.CAPABILITIES.index(command.name)
    if command.name in reader.said:
        raise WordError(command.name, f"'{command.name}' once")
    reader.said.add(command.name)
    if command.name == "eager":
        reader.add(command.kind, which, reader.slots.chunk(words[0]))
    elif command.name == "manual":
        reader.add(command.kind, which, _flag(words[0]))
    else:
        reader.add(command.kind, which, *reader.slots.rings(words[0], words[1]))


def _memslot(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    if given == 1:
        reader.add(command.kind, *reader.slots.deleted(words[0]))
    elif given < 4:
        raise WordError(" ".join(words[:given]), command.usage)
    else:
        reader.add(command.kind, *reader.slots.set(words))


def _getlog(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    reader.add(command.kind, reader.slots.logged(words[0]))


def _clearlog(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    if "manual" not in reader.said:
        raise WordError(command.name, "'manual' before 'start'")
    reader.add(command.kind, *reader.slots.cleared(words))


def _harvest(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    reader.slots.harvested(command.name)
    reader.add(command.kind)


def _turn(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    reader.add(command.kind, schema.TURNS.index(command.name))


def _caches(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    if words and words[0] not in ("0", "1"):
        raise WordError(words[0], "0 or 1")
    reader.add(command.kind, schema.CACHE_OPERATIONS.index(" ".join([command.name, *words])))


def _teardown(reader: _Reader, command: Command, words: list[str], given: int) -> None:
    reader.add(command.kind)
    reader.torn_down = True


_Handler = Callable[[_Reader, Command, list[str], int], None]
_HANDLERS: dict[str, _Handler] = {
    **{name: _host_range for name, command in COMMANDS.items() if command.kind in schema.HOST_RANGE_KINDS},
    "quit": _quit,
    "mem": _mem,
    "vcpus": _vcpus,
    "granule": _granule,
    "start": _start,
    "vtcr": _vtcr,
    "codeat": _codeat,
    "code": _code,
    "s2": _s2,
    "map": _map,
    "unmap": _unmap,
    "touch": _touch,
    "tlbi": _tlbi,
    "vncr": _vncr,
    "tlbi2": _tlbi_el2,
    "hold": _hold,
    "race": _host_range,
    "gap": _gap,
    "poke": _word_access,
    "peek": _word_access,
    "s1": _s1,
    "at": _at,
    "dump": _dump,
    "mark": _mark,
    **dict.fromkeys(("vm", "log", "slot", "swap"), _switch),
    **dict.fromkeys(("nop", "release", "khugepaged", "ksm"), _bare),
    **dict.fromkeys(("idle", "idleget", "pagemap"), _pages),
    "mprotect": _mprotect,
    **dict.fromkeys(schema.CAPABILITIES, _capability),
    "memslot": _memslot,
    "getlog": _getlog,
    "clearlog": _clearlog,
    "harvest": _harvest,
    "vcpu": _vcpu,
    "enter": _enter,
    **dict.fromkeys(schema.TURNS, _turn),
    "reset": _bare,
    "setway": _caches,
    "caches": _caches,
    "teardown": _teardown,
}


def parse_scenario(text: str, name: str, path: str = "", granule: str = DEFAULT_GRANULE) -> Scenario:
    """Read a whole script; O(length). ``name`` names the scenario, ``path`` its file in messages.

    ``granule`` is the host's page size where the script does not say it, and with it L1's granule.

    Raises ScenarioError for the first line that is not of the language or out of order, for a script
    without ``start``, and for a line the rig could not read (longer than 510 bytes, control characters).
    """
    where = path or name
    lines = tuple(text.split("\n"))
    reader = _Reader(granule)
    for line_number, line in enumerate(lines, 1):
        try:
            _readable(line)
            reader.line_read(line_number, line)
        except WordError as error:
            raise ScenarioError(where, line_number, line, error.read, error.expected) from None
        if reader.ended:
            break
    if not reader.backing:
        raise ScenarioError(where, len(lines), lines[-1], "end of the script", "'start'")
    return Scenario(
        name=name,
        memory_bytes=reader.memory,
        events=reader.table.finish(),
        vcpus=reader.vcpus,
        backing=reader.backing,
        e2h0=reader.e2h0,
        vm_ipa_bits=reader.vm_ipa_bits,
        granule=reader.granule,
        labels=tuple(reader.labels),
        path=path,
        lines=lines,
    )


def _readable(line: str) -> None:
    for character in line:
        if character != "\t" and _UNPRINTABLE.match(character):
            raise WordError(character, "printable text, blanks and tabs")
    if len(line.encode()) > MOST_BYTES:
        raise WordError(line[:20] + "...", f"a line of at most {MOST_BYTES} bytes")


def read_scenario(path: str | Path) -> Scenario:
    """Read a script from a file, or from standard input if ``path`` is ``-``.

    Raises OSError if the file cannot be read, ScenarioError if it is no scenario.
    """
    if str(path) == "-":
        content, shown, name = sys.stdin.buffer.read(), "<stdin>", "stdin"
    else:
        content, shown, name = Path(path).read_bytes(), str(path), Path(path).name.removesuffix(".scenario")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line_number = content.count(b"\n", 0, error.start) + 1
        line = content.split(b"\n")[line_number - 1].decode(errors="replace")
        raise ScenarioError(shown, line_number, line, line[:40], "UTF-8 text") from None
    return parse_scenario(text, name, shown)
