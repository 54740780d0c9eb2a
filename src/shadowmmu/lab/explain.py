"""``walk``: one nested address, descriptor by descriptor: L1's table, the host, the shadow.

The walk changes nothing. It shows what the architecture reads, in order: the guest stage 2 that L1 wrote
(each descriptor at its canonical IPA), the memslot and the host's mapping behind the output, and the
shadow stage 2 that the hardware uses.
"""

from __future__ import annotations

from typing import Any

from shadowmmu.arch.fault import NONE, Fault
from shadowmmu.arch.regime import OA48, Regime, level_shift, root_base, table_address
from shadowmmu.arch.registers import VTCR_EL2, VTTBR_EL2
from shadowmmu.arch.stage2 import OA_BITS, STAGE2_LEAF, STAGE2_TABLE, TABLE, VALID
from shadowmmu.compiled import U64
from shadowmmu.designs.own_file import named_design
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.errors import InputError
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.events.schema import DUMP, MARK
from shadowmmu.kvm.granule import guest_regime
from shadowmmu.lab.results import ScenarioSource, Transcript
from shadowmmu.machine.granule import DEFAULT_GRANULE, leaf_bytes
from shadowmmu.machine.state import R_PAGE_SHIFT, R_STRIDE, State
from shadowmmu.pgtable.attributes import GUEST_LEVEL, GUEST_LEVEL_SHIFT
from shadowmmu.pgtable.context import CNP, M_ENABLED, M_IA_BITS, M_ROOT, M_START, M_VTCR, M_VTTBR
from shadowmmu.verify.judge import size_text
from shadowmmu.verify.rules import Chain, address_chain, guest_word

Row = dict[str, Any]


def stop_of(executor: Executor, at: str | None) -> int:
    """Event index after which to look: a label, a line number, or the end. Raises InputError."""
    scenario = executor.scenario
    last = len(scenario.events)
    if at is None:
        return last
    for index, event in enumerate(scenario.events):
        if int(event["kind"]) in (DUMP, MARK) and scenario.label(index) == at:
            return index + 1
    if at.isdecimal():
        lines = [int(event["line"]) for event in scenario.events]
        return next((i for i, line in enumerate(lines) if line > int(at)), last)
    labels = [scenario.label(i) for i in range(last) if scenario.label(i)]
    raise InputError(f"read '{at}', expected a line number or one of {', '.join(labels) or 'no label'}")


def shadow_of(state: State, mmu: int | None) -> int:
    """Row of the shadow MMU asked for (``nested_mmuN``), the first with a tenant by default."""
    valid = [m for m in range(1, len(state.mmus)) if not int(state.mmus[m, M_VTTBR] & CNP)]
    if mmu is None:
        if not valid:
            raise InputError("read a walk, expected a shadow MMU with a tenant: L2 has not run yet")
        return valid[0]
    if mmu + 1 not in valid:
        known = ", ".join(str(m - 1) for m in valid) or "none"
        raise InputError(f"read MMU {mmu}, expected one with a tenant: {known}")
    return mmu + 1


def describe_descriptor(descriptor: int, level: int) -> str:
    """What a stage-2 descriptor says, in words."""
    if not descriptor & int(VALID):
        return "invalid"
    if level < 3 and descriptor & int(TABLE):
        return f"table at {descriptor & int(OA_BITS):#x}"
    kind = "page" if level == 3 else "block"
    fields = STAGE2_LEAF.describe(descriptor & ~int(OA_BITS) & ~3)
    return f"{kind} to {descriptor & int(OA_BITS):#x}: {fields}"


def row_of(level: int, place: int, descriptor: int) -> Row:
    """One step of a walk as plain values."""
    layout = STAGE2_TABLE if level < 3 and descriptor & 3 == 3 else STAGE2_LEAF
    return {
        "level": level,
        "at": place,
        "descriptor": descriptor,
        "fields": layout.decode(descriptor),
        "text": describe_descriptor(descriptor, level),
    }


def guest_rows(state: State, mmu: int, nested_ipa: int) -> list[Row]:
    """The descriptors of L1's table on the way to ``nested_ipa``."""
    raw = guest_regime(state, state.mmus[mmu, M_VTCR])
    r = Regime(*(int(value) for value in raw))
    base = int(root_base(r, state.mmus[mmu, M_VTTBR]))
    ipa = nested_ipa & ((1 << r.ia_bits) - 1)
    rows = []
    level, index = r.start_level, ipa >> level_shift(r, r.start_level)
    while True:
        place = base + (index << 3)
        word = guest_word(state, U64(place))
        descriptor = int(word.value) if word.found else 0
        rows.append(row_of(level, place, descriptor))
        if not descriptor & 1 or level == 3 or not descriptor & 2:
            return rows
        base = int(table_address(r, U64(descriptor)))
        level += 1
        index = (ipa >> level_shift(r, level)) & ((1 << r.stride) - 1)


def shadow_rows(state: State, mmu: int, nested_ipa: int) -> list[Row]:
    """The descriptors the hardware reads in the shadow table."""
    page_shift, stride = int(state.regs[R_PAGE_SHIFT]), int(state.regs[R_STRIDE])
    start, ia_bits = int(state.mmus[mmu, M_START]), int(state.mmus[mmu, M_IA_BITS])
    r = Regime(page_shift, stride, start, ia_bits, 48, OA48, 1)
    base = int(state.mmus[mmu, M_ROOT])
    rows = []
    level, index = r.start_level, nested_ipa >> level_shift(r, r.start_level)
    while True:
        place = base + (index << 3)
        descriptor = int(state.mem[place >> 3])
        rows.append(row_of(level, place, descriptor))
        if not descriptor & 1 or level == 3 or not descriptor & 2:
            return rows
        base = int(table_address(r, U64(descriptor)))
        level += 1
        index = (nested_ipa >> level_shift(r, level)) & ((1 << stride) - 1)


def row_lines(rows: list[Row], space: str) -> list[str]:
    """The rows of a walk, aligned."""
    return [
        f"    level {row['level']}  {space} {row['at']:#014x}  {row['descriptor']:#018x}  {row['text']}"
        for row in rows
    ]


def host_lines(chain: Chain, canonical_ipa: int) -> list[str]:
    """The memslot and the host's mapping behind a canonical IPA."""
    if chain.slot < 0:
        return [f"  canonical IPA {canonical_ipa:#x} lies in no memslot: an access leaves as MMIO"]
    lines = [f"  canonical IPA {canonical_ipa:#x} is user address {int(chain.hva):#x}"]
    if not int(chain.size):
        return [*lines, "    not mapped by the host now: a fault would bring it in"]
    access = "writable" if chain.writable else "read-only"
    return [*lines, f"    mapped to PA {int(chain.pa):#x} ({size_text(int(chain.size))}, {access})"]


def shadow_verdict(rows: list[Row], nested_ipa: int, chain: Chain, page_shift: int) -> str:
    """What the hardware does with an access now, and whether the shadow agrees with the chain."""
    last = rows[-1]
    descriptor, level = last["descriptor"], last["level"]
    if not descriptor & 1:
        return f"  an access takes a translation fault, level {level} (FSC {4 + level:#04x}), to L0"
    inside = leaf_bytes(page_shift, level) - 1
    pa = (descriptor & int(OA_BITS) & ~inside) | (nested_ipa & inside)
    tag = (descriptor & int(GUEST_LEVEL)) >> int(GUEST_LEVEL_SHIFT)
    page = pa & -leaf_bytes(page_shift, 3)
    agrees = "as the chain says" if page == int(chain.pa) else "NOT what the chain says"
    return f"  an access goes to PA {pa:#x}, {agrees}; L1's leaf level in the tag: {tag}"


def state_at(source: ScenarioSource, at: str | None, design: str, ipa_limit_bits: int, granule: str) -> State:
    """The machine of ``source`` when it has run up to ``at``. Raises as ``walk_report``."""
    scenario = parse_scenario(source.text, source.name, granule=granule)
    machine = Machine(ipa_limit_bits=ipa_limit_bits, granule=scenario.granule)
    executor = Executor(scenario, design, machine)
    executor.run(stop_of(executor, at))
    return executor.state


def walk_report(
    source: ScenarioSource,
    nested_ipa: int,
    *,
    mmu: int | None = None,
    at: str | None = None,
    design: str = "sweep",
    ipa_limit_bits: int = 48,
    granule: str = DEFAULT_GRANULE,
) -> Transcript:
    """Run ``source`` up to ``at`` (a label, a line, or the end) and explain ``nested_ipa`` there.

    ``granule`` is the host's page size where the script does not say it.

    Raises InputError for an unknown design, label or MMU, or an address beyond the shadow's input size.
    """
    design = named_design(design)
    if not 0 <= nested_ipa < 1 << ipa_limit_bits:
        raise InputError(f"read nested IPA {nested_ipa:#x}, expected less than 2^{ipa_limit_bits}")
    state = state_at(source, at, design, ipa_limit_bits, granule)
    row = shadow_of(state, mmu)
    vttbr, vtcr = int(state.mmus[row, M_VTTBR]), int(state.mmus[row, M_VTCR])
    lines = [
        f"nested_mmu{row - 1}",
        f"  VTTBR_EL2 {vttbr:#018x}  {VTTBR_EL2.describe(vttbr)}",
        f"  VTCR_EL2  {vtcr:#018x}  {VTCR_EL2.describe(vtcr)}",
        "",
    ]
    first = address_chain(state, row, U64(nested_ipa), U64(nested_ipa))
    canonical_ipa = int(first.output)
    guest: list[Row] = []
    if state.mmus[row, M_ENABLED]:
        guest = guest_rows(state, row, nested_ipa)
        lines += [
            "guest stage 2: nested IPA to canonical IPA, in L1's memory",
            *row_lines(guest, "canonical"),
        ]
    else:
        lines.append("guest stage 2 off: nested IPA is canonical IPA")
    if first.fault != NONE:
        lines.append(f"  L1 would get: {Fault(int(first.fault), int(first.level))}")
    chain = address_chain(state, row, U64(nested_ipa), U64(canonical_ipa))
    if first.fault == NONE:
        lines += ["", "host", *host_lines(chain, canonical_ipa)]
    shadow = shadow_rows(state, row, nested_ipa)
    lines += ["", "shadow stage 2: nested IPA to PA, what the hardware walks", *row_lines(shadow, "PA")]
    lines.append(shadow_verdict(shadow, nested_ipa, chain, int(state.regs[R_PAGE_SHIFT])))
    data: Row = {
        "nested_ipa": nested_ipa,
        "mmu": row - 1,
        "vttbr": vttbr,
        "vtcr": vtcr,
        "guest": guest,
        "fault": None if first.fault == NONE else str(Fault(int(first.fault), int(first.level))),
        "canonical_ipa": canonical_ipa if first.fault == NONE else None,
        "pa": int(chain.pa) if first.fault == NONE and int(chain.size) else None,
        "shadow": shadow,
    }
    return Transcript(title=f"nested IPA {nested_ipa:#x} in {source.name}", lines=lines, data=data)
