"""The commands of the scenario language: what each is called, what it takes, and what it does.

One declaration a command; the parser checks the number of words by it, error messages quote its usage, and
a test holds ``docs/scenario-language.md`` to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from shadowmmu.events import schema

MOST_WORDS = 12
"""Words in one line, the command included (``NARG`` of the rig)."""

MOST_BYTES = 510
"""Bytes in one line: the rig reads lines into 512 bytes."""

MOST_VCPUS = 64


@dataclass(frozen=True)
class Command:
    """One command: its words, how many of them must be there, and the rule on where it may stand.

    ``when`` is ``before`` (before ``start``), ``start``, ``after`` (after ``start``), ``root`` (after
    ``start`` and ``s2``) or ``any``. ``kind`` is the event it makes, -1 if none. ``free_text`` commands
    take the rest of the line.
    """

    name: str
    usage: str
    required: int
    most: int
    when: str
    kind: int = -1
    free_text: bool = False


def _host(name: str, kind: int) -> Command:
    return Command(name, f"{name} CIPA SIZE", 2, 2, "after", kind)


_LIST = (
    Command("mem", "mem SIZE", 1, 1, "before"),
    Command("vcpus", "vcpus N", 1, 1, "before"),
    Command("granule", "granule 4K|16K|64K", 1, 1, "before"),
    Command("start", "start BACKING [E2H0 [IPABITS]]", 1, 3, "start"),
    Command("vtcr", "vtcr VALUE", 1, 1, "any"),
    Command("codeat", "codeat L2IPA", 1, 1, "any"),
    Command("s2", "s2 [new|ROOT [VMID]]", 0, 2, "after", schema.SET_STAGE2),
    Command("code", "code [L2IPA]", 0, 1, "root", schema.MAP_GUEST),
    Command("map", "map L2IPA CIPA SIZE LEVEL [rwxac [WINDOW]]", 4, 6, "root", schema.MAP_GUEST),
    Command("unmap", "unmap L2IPA SIZE LEVEL", 3, 3, "root", schema.UNMAP_GUEST),
    Command("touch", "touch r|w|x VA [STRIDE [COUNT]]", 2, 4, "after", schema.TOUCH),
    Command("tlbi", "tlbi [KIND [VALUE]]", 0, 2, "after", schema.TLBI),
    Command("vm", "vm [0|1]", 0, 1, "after", schema.VM),
    Command("poke", "poke CIPA [VALUE]", 1, 2, "after", schema.POKE),
    Command("peek", "peek CIPA", 1, 1, "after", schema.PEEK),
    Command("s1", "s1 REGISTER=VALUE ...", 1, 9, "after", schema.S1),
    Command("at", "at OP VA", 2, 2, "after", schema.AT),
    Command("vncr", "vncr r|w VA", 2, 2, "after", schema.VNCR),
    Command("tlbi2", "tlbi2 SCOPE [VALUE]", 1, 2, "after", schema.TLBI_EL2),
    Command("hold", "hold CIPA SIZE [FAULTS [atomic]]", 2, 4, "after", schema.HOLD),
    Command("release", "release", 0, 0, "after", schema.RELEASE),
    Command("race", "race CIPA SIZE", 2, 2, "after", schema.RACE),
    Command("gap", "gap CHUNKS r|w|x VA|punch CIPA SIZE", 3, 4, "after", schema.GAP),
    Command("nop", "nop", 0, 0, "after", schema.NOP),
    _host("dontneed", schema.DONTNEED),
    _host("munmap", schema.MUNMAP),
    _host("mmap", schema.MMAP),
    _host("hugepage", schema.HUGEPAGE),
    _host("nohugepage", schema.NOHUGEPAGE),
    _host("collapse", schema.COLLAPSE),
    _host("mergeable", schema.MERGEABLE),
    _host("pageout", schema.PAGEOUT),
    _host("punch", schema.PUNCH),
    _host("migrate", schema.MIGRATE),
    _host("numahint", schema.NUMA_HINT),
    Command("khugepaged", "khugepaged", 0, 0, "after", schema.KHUGEPAGED),
    Command("swap", "swap 0|1", 1, 1, "after", schema.SWAP),
    Command("ksm", "ksm", 0, 0, "after", schema.KSM),
    _host("write", schema.HOST_WRITE),
    _host("ret", schema.HOST_WRITE),
    Command("mprotect", "mprotect CIPA SIZE [rw]", 2, 3, "after", schema.MPROTECT),
    Command("log", "log [0|1]", 0, 1, "after", schema.LOG),
    Command("getlog", "getlog [SLOT]", 0, 1, "after", schema.GETLOG),
    Command("slot", "slot [0|1]", 0, 1, "after", schema.SLOT),
    Command("eager", "eager CHUNK", 1, 1, "before", schema.CAPABILITY),
    Command("manual", "manual [0|1]", 0, 1, "before", schema.CAPABILITY),
    Command("ring", "ring ENTRIES [bitmap]", 1, 2, "before", schema.CAPABILITY),
    Command("memslot", "memslot SLOT [CIPA SIZE MEMORY [rd]]", 1, 5, "after", schema.MEMSLOT),
    Command("clearlog", "clearlog [SLOT [PAGE PAGES]]", 0, 3, "after", schema.CLEARLOG),
    Command("harvest", "harvest", 0, 0, "after", schema.HARVEST),
    Command("idle", "idle CIPA PAGES", 2, 2, "after", schema.IDLE),
    Command("idleget", "idleget CIPA PAGES", 2, 2, "after", schema.IDLEGET),
    Command("dump", "dump TAG [n]", 1, 2, "after", schema.DUMP),
    Command("pagemap", "pagemap CIPA PAGES", 2, 2, "after", schema.PAGEMAP),
    Command("mark", "mark TEXT", 0, MOST_WORDS, "after", schema.MARK, free_text=True),
    Command("w", "w FILE TEXT", 1, MOST_WORDS, "any", free_text=True),
    Command("cat", "cat FILE", 1, 1, "any"),
    Command("trace", "trace TAG", 1, 1, "any"),
    Command("echo", "echo TEXT", 0, MOST_WORDS, "any", free_text=True),
    Command("vcpu", "vcpu N", 1, 1, "after"),
    Command("enter", "enter", 0, 0, "after", schema.ENTER),
    *(Command(turn, turn, 0, 0, "after", schema.SCHEDULE) for turn in schema.TURNS),
    Command("reset", "reset", 0, 0, "after", schema.RESET),
    Command("setway", "setway", 0, 0, "after", schema.CACHES),
    Command("caches", "caches 0|1", 1, 1, "after", schema.CACHES),
    Command("teardown", "teardown", 0, 0, "after", schema.TEARDOWN),
    Command("quit", "quit", 0, 0, "any"),
    Command("plain", "plain", 0, MOST_WORDS, "kernel"),
    Command("linux", "linux IMAGE DTB INITRD thp|base [prefault]", 0, MOST_WORDS, "kernel"),
    Command("sync", "sync TAG", 0, MOST_WORDS, "kernel"),
)

COMMANDS: dict[str, Command] = {command.name: command for command in _LIST}

HOST_COMMAND: dict[int, str] = {
    command.kind: command.name
    for command in _LIST
    if command.kind in schema.HOST_RANGE_KINDS and command.name not in ("ret", "mprotect")
}
"""How a host memory event is written, by kind."""
