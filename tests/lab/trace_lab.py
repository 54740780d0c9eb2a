"""Traces made up for the tests: a canonical table, shadows, and what happens to them, as ftrace text."""

from __future__ import annotations

from shadowmmu.formats.shadow_trace import ShadowTrace
from shadowmmu.lab.trace_join import JoinedTrace, join_trace

CANONICAL = 0xFFFF0001
SHADOW = 0xFFFF0002
SECOND = 0xFFFF0003
VTTBR = 1 << 48
PAGE = 4096
BLOCK = 2 << 20
GIB = 1 << 30
WHOLE = 1 << 40
RWX = 0xF


def tagged(level: int, prot: int = RWX) -> int:
    """A protection with the level of L1's leaf."""
    return prot | level << 55


class TraceText:
    """Lines of a trace, one event a call."""

    def __init__(self) -> None:
        self.lines = ["# tracer: nop"]

    def event(self, name: str, fields: str = "", pid: int = 46) -> TraceText:
        at = len(self.lines)
        self.lines.append(f"  vmm-{pid}  [000] ...2.  {at}.000000: {name}: (x+0x4/0x8) {fields}")
        return self

    def map(
        self, pgt: int, vttbr: int, ipa: int, pa: int, prot: int = RWX, size: int = PAGE, pid: int = 46
    ) -> TraceText:
        fields = f"pgt={pgt:#x} vttbr={vttbr:#x} addr={ipa:#x} size={size:#x} phys={pa:#x} prot={prot:#x}"
        return self.event("s2map", fields, pid)

    def canonical(self, canonical_ipa: int, pa: int, size: int = PAGE) -> TraceText:
        return self.map(CANONICAL, 0, canonical_ipa, pa, size=size)

    def shadow(
        self, nested_ipa: int, pa: int, tag: int = 3, size: int = PAGE, pgt: int = SHADOW, prot: int = RWX
    ) -> TraceText:
        return self.map(pgt, VTTBR, nested_ipa, pa, tagged(tag, prot), size)

    def range(self, start: int = 0, size: int = WHOLE, pgt: int = SHADOW, pid: int = 46) -> TraceText:
        return self.event("s2range", f"pgt={pgt:#x} addr={start:#x} size={size:#x}", pid)

    def notifier(self, start: int, size: int = PAGE, *pgts: int, pid: int = 9) -> TraceText:
        """The host takes a canonical range; every shadow given is swept."""
        self.event("unmap_gfn", f"start={start >> 12:#x} end={start + size >> 12:#x} mayblock=1", pid)
        self.event("nested_unmap", pid=pid)
        for pgt in pgts or (SHADOW,):
            self.range(pgt=pgt, pid=pid)
        return self.event("nested_unmap_ret", pid=pid).event("unmap_gfn_ret", pid=pid)

    def tlbi(self, nested_ipa: int, start: int, size: int, pid: int = 46) -> TraceText:
        """L1's IPAS2E1IS and what KVM took for it."""
        return self.event("tlbi_ipas2", f"crm=0 op2=1 val={nested_ipa >> 12:#x}", pid).range(
            start, size, pid=pid
        )

    def read(self) -> ShadowTrace:
        return ShadowTrace([line + "\n" for line in self.lines], "made-up")

    def join(self) -> JoinedTrace:
        return join_trace(self.read())
