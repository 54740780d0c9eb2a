"""``walk --context``: one translation of given registers and memory, told in full.

The walk changes nothing. It shows the registers with the fields that are set, what they decode to, every
descriptor in the order the hardware reads them, the permissions, and what software sees: PAR_EL1 of an AT
instruction, the abort of an access.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from shadowmmu.arch import account as acc
from shadowmmu.arch import answer as ans
from shadowmmu.arch.attributes import NAMES as ATTRIBUTES
from shadowmmu.arch.attributes import NON_SHAREABLE, OUTER_SHAREABLE
from shadowmmu.arch.context import C_HCR_EL2, COLUMNS
from shadowmmu.arch.fault import Fault
from shadowmmu.arch.fields import Layout
from shadowmmu.arch.operation import NAMES as OPERATIONS
from shadowmmu.arch.registers import (
    ESR_EL2,
    HCR_EL2,
    HCRX_EL2,
    HPFAR_EL2,
    PAR_FAULT,
    PAR_SUCCESS,
    PSTATE,
    SCTLR_EL1,
    TCR2_EL1,
    TCR_EL1,
    TCR_EL2,
    TTBR_EL1,
    VTCR_EL2,
    VTTBR_EL2,
)
from shadowmmu.arch.stage1 import STAGE1_LEAF, STAGE1_TABLE
from shadowmmu.arch.stage2 import STAGE2_LEAF, STAGE2_TABLE
from shadowmmu.arch.trace import (
    LONGEST,
    T_DESCRIPTOR,
    T_FOR_WALK,
    T_INPUT,
    T_LEVEL,
    T_PA,
    T_PLACE,
    T_STAGE,
    TRACK,
)
from shadowmmu.compiled import U64, Words
from shadowmmu.errors import InputError
from shadowmmu.formats.context import TranslationContext
from shadowmmu.lab.results import Transcript

Row = dict[str, Any]

REGIMES: Final = ("EL1&0", "EL2&0", "EL2")
GRANULES: Final = {12: "4K", 14: "16K", 16: "64K"}
FORMATS: Final = ("48-bit", "52-bit (64K granule)", "52-bit (DS)")
SHAREABILITY: Final = {NON_SHAREABLE: "non-shareable", OUTER_SHAREABLE: "outer shareable"}
LAYOUTS: Final[dict[str, Layout]] = {
    "TTBR0_EL1": TTBR_EL1,
    "TTBR1_EL1": TTBR_EL1,
    "TCR_EL1": TCR_EL1,
    "SCTLR_EL1": SCTLR_EL1,
    "VTTBR_EL2": VTTBR_EL2,
    "VTCR_EL2": VTCR_EL2,
    "HCR_EL2": HCR_EL2,
    "TTBR0_EL2": TTBR_EL1,
    "TTBR1_EL2": TTBR_EL1,
    "SCTLR_EL2": SCTLR_EL1,
    "TCR2_EL1": TCR2_EL1,
    "TCR2_EL2": TCR2_EL1,
    "HCRX_EL2": HCRX_EL2,
    "PSTATE": PSTATE,
}
E2H: Final = int(HCR_EL2.mask("E2H"))


def operation_of(name: str) -> int:
    """The number of an operation by its name, blanks and case aside. Raises InputError."""
    wanted = "".join(name.lower().split()).removeprefix("at")
    for number, known in enumerate(OPERATIONS):
        if "".join(known.lower().split()).removeprefix("at") == wanted.removeprefix("at"):
            return number
    raise InputError(f"read operation '{name}', expected one of {', '.join(OPERATIONS)}")


def layout_of(register: str, row: Words) -> Layout | None:
    """The fields of a register; TCR_EL2 has two forms."""
    if register == "TCR_EL2":
        return TCR_EL1 if int(row[C_HCR_EL2]) & E2H else TCR_EL2
    return LAYOUTS.get(register)


def register_rows(row: Words) -> list[Row]:
    """Every register that is not 0, with its fields."""
    rows = []
    for column, name in enumerate(COLUMNS):
        value = int(row[column])
        layout = layout_of(name, row)
        if value:
            fields = layout.decode(value) if layout else {}
            text = layout.describe(value) if layout else ""
            rows.append({"register": name, "value": value, "fields": fields, "text": text})
    return rows


def regime_row(facts: list[int], at: int) -> Row:
    """A regime's numbers by name."""
    page_shift, _stride, start, ia_bits, oa_bits, wide, block_level = facts[at : at + 7]
    return {
        "granule": GRANULES[page_shift],
        "start_level": start,
        "input_bits": ia_bits,
        "output_bits": oa_bits,
        "format": FORMATS[wide],
        "blocks_from_level": block_level,
    }


def descriptor_text(stage: int, level: int, descriptor: int) -> tuple[Layout, str]:
    """The fields of a descriptor, and what it is."""
    leaf, table = (STAGE1_LEAF, STAGE1_TABLE) if stage == 1 else (STAGE2_LEAF, STAGE2_TABLE)
    if not descriptor & 1:
        return leaf, "invalid"
    if level < 3 and descriptor & 2:
        return table, f"table: {table.describe(descriptor & ~3)}"
    kind = "page" if level == 3 else "block"
    return leaf, f"{kind}: {leaf.describe(descriptor & ~3)}"


def step_row(step: list[int]) -> Row:
    """One descriptor read."""
    stage, level, descriptor = step[T_STAGE], step[T_LEVEL] - 1, step[T_DESCRIPTOR]
    layout, text = descriptor_text(stage, level, descriptor)
    return {
        "stage": stage,
        "level": level,
        "input": step[T_INPUT],
        "at": step[T_PLACE],
        "pa": step[T_PA],
        "for_stage1_walk": bool(step[T_FOR_WALK]),
        "descriptor": descriptor,
        "fields": layout.decode(descriptor),
        "text": text,
    }


def step_line(step: Row) -> str:
    """One descriptor read, as a line; reads on behalf of a stage-1 walk are set further in."""
    inset = "      " if step["for_stage1_walk"] else "  "
    place = f"{step['at']:#014x}"
    if step["stage"] == 1 and step["at"] != step["pa"]:
        place += f" (PA {step['pa']:#x})"
    head = f"{inset}stage {step['stage']} level {step['level']:2}  at {place}"
    return f"{head}  {step['descriptor']:#018x}  {step['text']}"


def fault_row(packed: int) -> Row | None:
    """The fault of an answer, or None."""
    if not packed:
        return None
    fault = Fault(packed & 0xFF, (packed >> 8 & 0xFF) - 1)
    stage = packed >> 16 & 0xFF
    return {
        "kind": str(fault),
        "level": fault.level,
        "stage": stage,
        "s1ptw": bool(packed >> 24),
        "fsc": fault.fsc,
    }


def outcome_lines(out: list[int], at: bool, fault: Row | None) -> list[str]:
    """What software sees."""
    lines = []
    if fault is not None:
        walk = " on a stage-1 walk" if fault["s1ptw"] else ""
        lines.append(f"  stage {fault['stage']} {fault['kind']}{walk}")
    else:
        lines.append(f"  output PA {out[ans.A_PA]:#x}")
    if out[ans.A_TARGET]:
        esr, hpfar = out[ans.A_ESR], out[ans.A_HPFAR]
        lines.append(f"  exception to EL{out[ans.A_TARGET]}")
        lines.append(f"    ESR   {esr:#018x}  {ESR_EL2.describe(esr)}")
        lines.append(f"    FAR   {out[ans.A_FAR]:#018x}")
        if hpfar:
            lines.append(f"    HPFAR {hpfar:#018x}  {HPFAR_EL2.describe(hpfar)}")
    elif at:
        par = out[ans.A_PAR]
        layout = PAR_FAULT if par & 1 else PAR_SUCCESS
        lines.append(f"  PAR_EL1 {par:#018x}  {layout.describe(par)}")
        if not par & 1:
            attribute = par >> 56
            kind = ATTRIBUTES.get(attribute, f"Normal, outer {attribute >> 4:#x}, inner {attribute & 15:#x}")
            shared = SHAREABILITY.get(par >> 7 & 3, "inner shareable")
            lines.append(f"    {kind}, {shared}")
    return lines


def regime_lines(facts: list[int]) -> list[str]:
    """What the registers decode to."""
    lines = [f"regime {REGIMES[facts[acc.F_REGIME]]}"]
    for stage, enabled, at in ((1, acc.F_ENABLED1, acc.F_REGIME1), (2, acc.F_ENABLED2, acc.F_REGIME2)):
        if not facts[enabled]:
            lines.append(f"  stage {stage}: off")
            continue
        r = regime_row(facts, at)
        lines.append(
            f"  stage {stage}: {r['granule']} granule, {r['input_bits']}-bit input from level "
            f"{r['start_level']}, {r['output_bits']}-bit output, descriptors {r['format']}"
        )
    return lines


def permission_line(facts: list[int]) -> str:
    """The permissions of the stage-1 leaf."""
    letters = "rwxrwx"
    allowed = [letter if facts[at] else "-" for at, letter in enumerate(letters)]
    return f"  stage 1 allows privileged {''.join(allowed[:3])}, EL0 {''.join(allowed[3:])}"


def translation_report(source: TranslationContext, va: int, operation_name: str, title: str) -> Transcript:
    """Explain ``operation_name`` on ``va`` under the registers and memory of ``source``.

    Raises InputError for an unknown operation. Changes no memory.
    """
    operation = operation_of(operation_name)
    steps = np.zeros((LONGEST, TRACK), np.uint64)
    counts, answer = np.zeros(acc.FACTS, np.int64), np.zeros(ans.ANSWER, np.uint64)
    n = acc.recount(source.memory, source.row, source.machine, operation, U64(va), steps, counts, answer)
    facts, out = counts.tolist(), answer.tolist()
    rows = [step_row(step) for step in steps[:n].tolist()]
    registers = register_rows(source.row)
    fault = fault_row(out[ans.A_FAULT])
    lines = [f"{r['register']:<10} {r['value']:#018x}  {r['text']}".rstrip() for r in registers]
    lines += ["", *regime_lines(facts), "", "descriptors read" if rows else "no descriptor read"]
    lines += [step_line(row) for row in rows]
    if facts[acc.P_KNOWN]:
        lines.append(permission_line(facts))
    lines += ["", OPERATIONS[operation], *outcome_lines(out, OPERATIONS[operation].startswith("AT"), fault)]
    data: Row = {
        "operation": OPERATIONS[operation],
        "va": va,
        "registers": registers,
        "regime": REGIMES[facts[acc.F_REGIME]],
        "stage1": regime_row(facts, acc.F_REGIME1) if facts[acc.F_ENABLED1] else None,
        "stage2": regime_row(facts, acc.F_REGIME2) if facts[acc.F_ENABLED2] else None,
        "steps": rows,
        "fault": fault,
        "pa": None if fault else out[ans.A_PA],
        "par": out[ans.A_PAR],
        "esr": out[ans.A_ESR],
        "far": out[ans.A_FAR],
        "hpfar": out[ans.A_HPFAR],
        "target_el": out[ans.A_TARGET],
    }
    return Transcript(title=title, lines=lines, data=data)
