"""Deliberate one-place faults of ``arch``: what the comparison with an oracle must catch.

A comparison that never fails proves nothing. Each mutant changes one rule of the architecture room the way a
slip of the pen would; ``hunt`` runs the same batches over all of them and reports which an oracle would have
told from the original. A mutant that survives names a hole in the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from shadowmmu.oracles.variants import Answers, Patch, variant_answers


@dataclass(frozen=True)
class Mutant:
    """One fault: what rule it breaks, and the change of source that does it."""

    name: str
    patch: Patch


def _mutant(name: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, Patch(module, old, new))


MUTANTS: Final = (
    _mutant(
        "a stage-1 translation fault one level down",
        "translate",
        "return Output(TRANSLATION, level, 1, False, entry, ZERO, descriptor, word, tables)",
        "return Output(TRANSLATION, min(level + 1, 3), 1, False, entry, ZERO, descriptor, word, tables)",
    ),
    _mutant(
        "a stage-2 translation fault one level up",
        "stage2",
        "return Stage2Walk(TRANSLATION, level, descriptor, word)",
        "return Stage2Walk(TRANSLATION, level - 1 if level > 0 else level, descriptor, word)",
    ),
    _mutant("S2AP read and write swapped", "stage2", 'mask("S2AP_R")', 'mask("S2AP_W")'),
    _mutant(
        "stage-1 start level off by one", "regime", "(ia_bits - 1 - page_shift)", "(ia_bits - page_shift)"
    ),
    _mutant("stage-2 start level of 4K off by one", "regime", "3 if code == 3 else 2 - code", "3 - code"),
    _mutant(
        "APTable read-only ignored",
        "stage1",
        "writable = writable and tables & AP_TABLE_READ_ONLY == ZERO",
        "writable = writable and True",
    ),
    _mutant(
        "APTable EL0 ignored",
        "stage1",
        "ur = descriptor & AP1 != ZERO and tables & AP_TABLE_NO_EL0 == ZERO",
        "ur = descriptor & AP1 != ZERO",
    ),
    _mutant("PXNTable ignored", "stage1", "(descriptor & PXN) | (tables & PXN_TABLE)", "(descriptor & PXN)"),
    _mutant("UXNTable ignored", "stage1", "(descriptor & UXN) | (tables & UXN_TABLE)", "(descriptor & UXN)"),
    _mutant(
        "EL0-writable pages executable at EL1", "stage1", "px = not pxn and not uw and", "px = not pxn and"
    ),
    _mutant("WXN leaves EL0 alone", "stage1", "ux = not uxn and not (wxn and uw)", "ux = not uxn"),
    _mutant("PAN looks at what EL1 may read", "stage1", "if pan and (p.ur or", "if pan and (p.pr or"),
    _mutant("EPAN has no effect", "stage1", "(epan and p.ux)", "(epan and False)"),
    _mutant("EPD ignored", "controls", "        half.epd or not legal,", "        not legal,"),
    _mutant(
        "E0PD ignored",
        "translate",
        "outside_range(va, s1) or (s1.e0pd and access.el == 0)",
        "outside_range(va, s1)",
    ),
    _mutant("HPD ignored", "controls", "        not (hpd or indirect),", "        not indirect,"),
    _mutant(
        "TBI of the other half",
        "controls",
        'UPPER_TBI: Final = TCR_EL1.mask("TBI1")',
        'UPPER_TBI: Final = TCR_EL1.mask("TBI0")',
    ),
    _mutant(
        "access flag of stage 1 never checked", "translate", "== ZERO and not s1.ha:", "== ZERO and False:"
    ),
    _mutant(
        "access flag of stage 2 never checked", "translate", "== ZERO and not s2.ha:", "== ZERO and False:"
    ),
    _mutant(
        "output size of a leaf unchecked",
        "stage2",
        "return ADDRESS_SIZE if beyond_output(",
        "return ADDRESS_SIZE if False and beyond_output(",
    ),
    _mutant(
        "output size of the start table unchecked",
        "translate",
        "    if beyond_output(r, s1.root):\n",
        "    if False:\n",
    ),
    _mutant("output size code 3 read as 40", "regime", "        return 42\n", "        return 40\n"),
    _mutant(
        "concatenation limited to eight tables",
        "regime",
        "MAX_CONCATENATED: Final = 4",
        "MAX_CONCATENATED: Final = 3",
    ),
    _mutant(
        "level 1 blocks with the 16K granule",
        "regime",
        "return 1 if wide == OA52_DS else 2",
        "return 1",
    ),
    _mutant(
        "64K 52-bit addresses taken from bits 11:8",
        "regime",
        "LPA_SHIFT: Final = U64(12)",
        "LPA_SHIFT: Final = U64(8)",
    ),
    _mutant(
        "52-bit root without its high bits",
        "regime",
        "ROOT_HIGH_SHIFT: Final = U64(2)",
        "ROOT_HIGH_SHIFT: Final = U64(63)",
    ),
    _mutant(
        "XNX encodings 01 and 11 swapped",
        "stage2",
        "return executable_el1(descriptor) if el == 1 else executable_el0(descriptor)",
        "return executable_el0(descriptor) if el == 1 else executable_el1(descriptor)",
    ),
    _mutant(
        "a stage-1 walk needs no read permission at stage 2",
        "translate",
        "    if walk:\n        if dirties:",
        "    if walk:\n        allowed = True\n        if dirties:",
    ),
    _mutant(
        "FWB: which types are Device is inverted",
        "stage2",
        "        return memattr & 4 == 0\n",
        "        return memattr & 4 != 0\n",
    ),
    _mutant("PAR without the PTW bit", "answer", "        par |= PAR_PTW\n", "        par |= ZERO\n"),
    _mutant(
        "stage 2 attributes: Write-Through beats Non-cacheable",
        "attributes",
        "if nibble == NIBBLE_NC or stage2 == S2_NC:",
        "if nibble == NIBBLE_NC:",
    ),
    _mutant(
        "FWB: Write-Back does not override",
        "attributes",
        "    if code == FWB_WB:\n",
        "    if code == 99:\n",
    ),
    _mutant(
        "shareability of stage 1 alone",
        "translate",
        "    shareability = combined_shareability(s2, shareability, second.descriptor)\n",
        "",
    ),
    _mutant(
        "HCR_EL2.DC does not turn stage 2 on",
        "controls",
        "hcr & (HCR_VM | HCR_DC) != ZERO",
        "hcr & HCR_VM != ZERO",
    ),
    _mutant(
        "a faulting access still marks its stage-1 leaf dirty",
        "translate",
        "            if back.fault != NONE:\n",
        "            if False:\n",
    ),
    _mutant(
        "dirty state of stage 2 not written",
        "translate",
        "            descriptor |= S2AP_W\n",
        "            descriptor |= ZERO\n",
    ),
    _mutant(
        "permission index without bit 51", "stage1", "INDEX_1: Final = U64(0b0010)", "INDEX_1: Final = U64(0)"
    ),
    _mutant(
        "EL2 regime: AP[1] has a say",
        "stage1",
        "Permissions(True, writable, not uxn",
        "Permissions(True, writable and descriptor & AP1 != ZERO, not uxn",
    ),
)
"""Each breaks one rule; together they touch every module of the translation."""


@dataclass(frozen=True)
class Hunt:
    """What became of the mutants: caught by how many queries, or alive (0).

    ``baseline``: queries on which the oracle differs from the original too; they catch nobody.
    """

    caught: dict[str, int]
    baseline: int = 0

    @property
    def survivors(self) -> tuple[str, ...]:
        """Mutants that no query told from the original."""
        return tuple(name for name, queries in self.caught.items() if not queries)


def hunt(
    disagreements: Callable[[Answers], int],
    oracle_patches: Iterable[Patch],
    mutants: Iterable[Mutant] = MUTANTS,
    progress: Callable[[str], None] = lambda line: None,
) -> Hunt:
    """Load each mutant, with the oracle's own known deviations, and count what the oracle answers otherwise.

    ``disagreements`` runs a model over batches the oracle has answered. Each mutant costs a compilation.
    Raises InputError where a mutant no longer fits the source.
    """
    known = tuple(oracle_patches)
    baseline = disagreements(variant_answers("original", known))
    caught = {}
    for mutant in mutants:
        found = disagreements(variant_answers("mutant", (mutant.patch, *known)))
        caught[mutant.name] = max(found - baseline, 0)
        progress(f"{mutant.name}: {caught[mutant.name] or 'ALIVE'}")
    return Hunt(caught, baseline)
