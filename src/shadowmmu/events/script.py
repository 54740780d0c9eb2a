"""Scenarios written back as scripts: for messages, and to run a generated scenario on the real kernel."""

from __future__ import annotations

from collections.abc import Callable

from shadowmmu.events import schema
from shadowmmu.events.commands import HOST_COMMAND
from shadowmmu.events.schema import CODE_NESTED, DEFAULT_VTCRS, Scenario
from shadowmmu.events.words import (
    AT_OPERATIONS,
    EL2_SCOPES,
    attribute_letters,
    protection_letters,
    register_word,
    size_word,
    slot_letters,
)
from shadowmmu.machine.granule import DEFAULT_GRANULE

_SWITCHES = {schema.VM: "vm", schema.LOG: "log", schema.SLOT: "slot", schema.SWAP: "swap"}
_PAGES = {schema.IDLE: "idle", schema.IDLEGET: "idleget", schema.PAGEMAP: "pagemap"}
_AT_WORDS = {number: word for word, number in AT_OPERATIONS.items()}
_BARE = {
    schema.HARVEST: "harvest",
    schema.NOP: "nop",
    schema.ENTER: "enter",
    schema.RESET: "reset",
    schema.TEARDOWN: "teardown",
    schema.RELEASE: "release",
    schema.KHUGEPAGED: "khugepaged",
    schema.KSM: "ksm",
}

_SLOTS: dict[int, Callable[[int, int, int, int, int], str]] = {
    schema.CAPABILITY: lambda a, b, c, d, e: (
        f"{schema.CAPABILITIES[a]} {b if a else size_word(b)}{' bitmap' if c else ''}"
    ),
    schema.MEMSLOT: lambda a, b, c, d, e: (
        f"memslot {a} {b:#x} {size_word(c)} {d:#x} {slot_letters(e)}" if c else f"memslot {a}"
    ),
    schema.GETLOG: lambda a, b, c, d, e: f"getlog {a}" if a else "getlog",
    schema.CLEARLOG: lambda a, b, c, d, e: f"clearlog {a} {b} {c}",
}
_INTERLEAVED: dict[int, Callable[[int, int, int, int], str]] = {
    schema.VNCR: lambda a, b, c, d: f"vncr {'rw'[b]} {a:#x}",
    schema.TLBI_EL2: lambda a, b, c, d: f"tlbi2 {EL2_SCOPES[a]} {b:#x}",
    schema.HOLD: lambda a, b, c, d: f"hold {a:#x} {size_word(b)} {c}{' atomic' if d else ''}",
    schema.GAP: lambda a, b, c, d: (
        f"gap {a} punch {b:#x} {size_word(d)}" if c == schema.GAP_TAKES else f"gap {a} {'rwx'[c]} {b:#x}"
    ),
    schema.RACE: lambda a, b, c, d: f"race {a:#x} {size_word(b)}",
}


def format_event(scenario: Scenario, index: int) -> str:
    """Event ``index`` as a line of the scenario language (without newline).

    What the language keeps between lines (VTCR_EL2, L2's code address, the vCPU) is not shown;
    ``write_script`` adds it. Raises IndexError, and ValueError for an event the language cannot say.
    """
    row = scenario.events[index]
    kind = int(row["kind"])
    a, b, c, d, e, f = (int(row[letter]) for letter in schema.OPERANDS)
    if kind in HOST_COMMAND:
        name = "ret" if kind == schema.HOST_WRITE and c else HOST_COMMAND[kind]
        return f"{name} {a:#x} {size_word(b)}"
    if kind in _SWITCHES:
        return f"{_SWITCHES[kind]} {a}"
    if kind in _PAGES:
        return f"{_PAGES[kind]} {a:#x} {b}"
    if kind in _BARE:
        return _BARE[kind]
    if kind == schema.SET_STAGE2:
        return f"s2 {a:#x} {b}" if a else f"s2 new {b}"
    if kind == schema.MAP_GUEST:
        window = f" {size_word(f)}" if f else ""
        return f"map {a:#x} {b:#x} {size_word(c)} {d} {attribute_letters(e)}{window}"
    if kind == schema.UNMAP_GUEST:
        return f"unmap {a:#x} {size_word(b)} {c}"
    if kind == schema.TOUCH:
        return f"touch {'rwx'[d]} {a:#x} {b} {c}"
    if kind == schema.TLBI:
        return f"tlbi {a} {b:#x}"
    if kind in _INTERLEAVED:
        return _INTERLEAVED[kind](a, b, c, d)
    if kind in _SLOTS:
        return _SLOTS[kind](a, b, c, d, e)
    if kind == schema.POKE:
        return f"poke {a:#x} {b:#x}"
    if kind == schema.PEEK:
        return f"peek {a:#x}"
    if kind == schema.S1:
        columns = [column for column in range(a.bit_length()) if a >> column & 1]
        values = (b, c, d, e, f)
        return " ".join(["s1", *(register_word(*pair) for pair in zip(columns, values, strict=False))])
    if kind == schema.AT:
        return f"at {_AT_WORDS[a]} {b:#x}"
    if kind == schema.MPROTECT:
        return f"mprotect {a:#x} {size_word(b)} {protection_letters(c)}"
    if kind == schema.DUMP:
        return f"dump {scenario.label(index)}{' n' if b else ''}"
    if kind == schema.SCHEDULE:
        return schema.TURNS[a]
    if kind == schema.CACHES:
        return schema.CACHE_OPERATIONS[a]
    if kind == schema.MARK:
        return f"mark {scenario.label(index)}".rstrip(" ")
    raise ValueError(f"event {index} has the unknown kind {kind}")


def write_script(scenario: Scenario) -> str:
    """The whole scenario as a script, which ``parse_scenario`` reads back as the same events; O(events).

    Raises ValueError if an event cannot be said in the language.
    """
    lines = [f"mem {scenario.memory_bytes}"]
    if scenario.vcpus != 1:
        lines.append(f"vcpus {scenario.vcpus}")
    if scenario.granule != DEFAULT_GRANULE:
        lines.append(f"granule {scenario.granule}")
    asked = [i for i, kind in enumerate(scenario.events["kind"].tolist()) if kind == schema.CAPABILITY]
    lines += [format_event(scenario, index) for index in asked]
    lines.append(f"start {scenario.backing} {int(scenario.e2h0)} {scenario.vm_ipa_bits}")
    vtcr, code, on = DEFAULT_VTCRS[scenario.granule], CODE_NESTED, 0
    events = scenario.events
    columns = [events[name].tolist() for name in ("kind", "vcpu", "a", "c", "d", "e")]
    for index, (kind, vcpu, a, c, d, e) in enumerate(zip(*columns, strict=True)):
        if kind == schema.CAPABILITY:
            continue
        if kind == schema.SET_STAGE2 and c != vtcr:
            vtcr = c
            lines.append(f"vtcr {vtcr:#x}")
        if vcpu != on:
            on = vcpu
            lines.append(f"vcpu {on}")
        accesses = d if c != schema.GAP_TAKES else code
        wanted = {schema.TOUCH: e, schema.ENTER: a, schema.VNCR: c, schema.GAP: accesses}.get(kind, code)
        if wanted != code:
            code = wanted
            lines.append(f"codeat {code:#x}")
        lines.append(format_event(scenario, index))
    return "\n".join(lines) + "\n"
