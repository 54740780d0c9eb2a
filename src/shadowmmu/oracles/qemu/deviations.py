"""Where QEMU leaves the architecture, as data: the rule, what it does instead, and the same in ``arch``.

Each was held against the text or pseudocode of the Arm ARM and seen on a running QEMU. ``patches`` change
``shadowmmu.arch`` into a model that deviates likewise (``oracles.variants``); that is what lets a comparison
tell a known deviation from a mismatch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from shadowmmu.oracles.qemu.compare import Deviants
from shadowmmu.oracles.variants import Answers, Patch, variant_answers

Version: TypeAlias = tuple[int, int, int]

FIRST: Final = (0, 0, 0)
BEFORE_8: Final = (8, 0, 0)
NEVER: Final = (1 << 30, 0, 0)


@dataclass(frozen=True)
class Deviation:
    """One deviation of the QEMU versions from ``since`` on and before ``until``."""

    name: str
    what: str
    rule: str
    patches: tuple[Patch, ...]
    since: Version = FIRST
    until: Version = NEVER

    def concerns(self, version: Version) -> bool:
        """Whether this version of QEMU has it."""
        return self.since <= version < self.until


DEVIATIONS: Final = (
    Deviation(
        "ds_ps",
        "With DS=1 and an output size below 52 bits, descriptor bits 9:8 are not taken as OA[51:50]: no "
        "Address size fault.",
        "Arm ARM D8.3: with 52-bit descriptors bits 9:8 are OA[51:50] whatever (I)PS; AArch64.OAOutOfRange",
        (
            Patch(
                "regime",
                "    return (descriptor & ADDRESS_50) | (((descriptor >> DS_SHIFT) & DS_FIELD) << BIT_50)\n",
                "    top = (descriptor >> DS_SHIFT) & DS_FIELD if r.oa_bits == 52 else ZERO\n"
                "    return (descriptor & ADDRESS_50) | (top << BIT_50)\n",
            ),
        ),
    ),
    Deviation(
        "oa_res0",
        "The size check of a block looks at the RES0 bits below its base, not at the offset of the input.",
        "Arm ARM D8.2, AArch64.OAOutOfRange: the output address, offset included, is what must fit",
        (
            Patch(
                "stage2",
                "beyond_output(r, output_address(r, descriptor, level, ia))",
                "beyond_output(r, table_address(r, descriptor))",
            ),
        ),
    ),
    Deviation(
        "ptw_vm0",
        "HCR_EL2.PTW with stage 2 off makes AT S1E0x and S1E1x fault as if the tables were Device memory.",
        "Arm ARM HCR_EL2.PTW: the bit concerns what stage 2 says of memory; AArch64.S1Walk",
        (
            Patch(
                "translate",
                "    w = stage1_walk(mem, s1, s2, address, update)\n",
                "    alone = access.regime == 0 and not access.both_stages and not s2.enabled\n"
                "    if s2.ptw and alone and not beyond_output(s1.regime, s1.root):\n"
                "        return Output(PERMISSION, 0, 2, True, ZERO, ZERO, ZERO, ZERO, ZERO)\n"
                "    w = stage1_walk(mem, s1, s2, address, update)\n",
            ),
        ),
        since=BEFORE_8,
    ),
    Deviation(
        "ptw_vm0_first",
        "HCR_EL2.PTW with stage 2 off makes AT S1E0x and S1E1x fault as if the tables were Device memory, at "
        "the level of the first read.",
        "Arm ARM HCR_EL2.PTW: the bit concerns what stage 2 says of memory; AArch64.S1Walk",
        (
            Patch(
                "translate",
                "    w = stage1_walk(mem, s1, s2, address, update)\n",
                "    alone = access.regime == 0 and not access.both_stages and not s2.enabled\n"
                "    if s2.ptw and alone and not beyond_output(s1.regime, s1.root):\n"
                "        first = s1.regime.start_level\n"
                "        return Output(PERMISSION, first, 2, True, ZERO, ZERO, ZERO, ZERO, ZERO)\n"
                "    w = stage1_walk(mem, s1, s2, address, update)\n",
            ),
        ),
        until=BEFORE_8,
    ),
    Deviation(
        "ptw_level",
        "A fault for HCR_EL2.PTW is reported at level 0, after the access flag is set (which is allowed).",
        "Arm ARM D8.15: the level of a Permission fault is that of the stage-2 leaf; Unpredictable_AFUPDATE",
        (
            Patch(
                "translate",
                "        if s2.ptw and device_type(w.descriptor, s2.fwb):\n            allowed = False\n",
                "        if allowed and s2.ptw and device_type(w.descriptor, s2.fwb):\n"
                "            if update and s2.ha and w.descriptor & AF == ZERO:\n"
                "                write_descriptor(mem, w.word, w.descriptor | AF, s2.big_endian)\n"
                "            return Output(PERMISSION, 0, 2, walk, ipa, ZERO, w.descriptor, w.word, ZERO)\n",
            ),
        ),
    ),
    Deviation(
        "device_normal",
        "Device at one stage and Normal at the other: the low nibble of the Normal type (4, 0 or 8) makes "
        "the Device type stricter.",
        "S2CombineS1MemAttrs: a Device type combined with Normal memory stays what it is",
        (
            Patch(
                "attributes",
                "    if memattr >> 2 == 0:\n        device = memattr << 2\n",
                "    if is_device(attribute) or memattr >> 2 == 0:\n"
                "        first = attribute & 15\n"
                "        second = 4 if memattr & 3 == 1 else (memattr & 3) * 5\n"
                "        if memattr >> 2 == 0:\n"
                "            second = memattr << 2\n"
                "        elif memattr & 3 == 0:\n"
                "            second = 15\n"
                "        for strict in (0, 4, 8):\n"
                "            if first == strict or second == strict:\n"
                "                return strict\n"
                "        return 12\n"
                "    if memattr >> 2 == 0:\n        device = memattr << 2\n",
            ),
            Patch(  # with HCR_EL2.CD the Normal type of stage 2 is Non-cacheable here already
                "translate",
                "    memattr = memory_attribute(descriptor)\n",
                "    memattr = memory_attribute(descriptor)\n"
                "    if not s2.cacheable and not s2.fwb and memattr > 3:\n        memattr = 5\n",
            ),
        ),
    ),
    Deviation(
        "fwb_device",
        "FWB=1 and a Device type at stage 2: the Device type of stage 1 is ignored.",
        "S2ApplyFWBMemAttrs: the stricter of both Device types",
        (
            Patch(
                "attributes",
                "        device = code << 2\n        if is_device(attribute):\n"
                "            return min(attribute, device)\n        return device\n",
                "        return code << 2\n",
            ),
        ),
    ),
    Deviation(
        "fwb_reserved",
        "FWB=1 and MemAttr 4, or with bit 3 set: Device-nGnRnE; but 14 and 15: what stage 1 says.",
        "Arm ARM D8.6: MemAttr[3] is RES0 with FWB, so ignored; for 0b100 the choice is free",
        (
            Patch(
                "attributes",
                "    code = memattr & 7\n",
                "    code = memattr & 7\n"
                "    if memattr > 13:\n        return attribute\n"
                "    if memattr > 7 or code == 4:\n        return 0\n",
            ),
        ),
        since=BEFORE_8,
    ),
    Deviation(
        "fwb_reserved_device",
        "FWB=1 and MemAttr 4, or with bit 3 set: Device-nGnRnE.",
        "Arm ARM D8.6: MemAttr[3] is RES0 with FWB, so ignored; for 0b100 the choice is free",
        (
            Patch(
                "attributes",
                "    code = memattr & 7\n",
                "    code = memattr & 7\n    if memattr > 7 or code == 4:\n        return 0\n",
            ),
        ),
        until=BEFORE_8,
    ),
    Deviation(
        "fwb_cd",
        "FWB=1: HCR_EL2.CD has no effect.",
        "Arm ARM HCR_EL2.CD, AArch64.S2Translate: Normal memory becomes Non-cacheable with FWB too",
        (
            Patch(
                "translate",
                "    return attribute if s2.cacheable else a.uncached(attribute)\n",
                "    return attribute if s2.cacheable or s2.fwb else a.uncached(attribute)\n",
            ),
        ),
    ),
    Deviation(
        "memattr_reserved",
        "FWB=0 and MemAttr 4, 8 or 12 (reserved): mostly the attributes of stage 1. (A free choice.)",
        "Arm ARM D8.6, MemAttr[3:0]: reserved encodings",
        (
            Patch(
                "attributes",
                "    outer = combine_half(attribute >> 4, memattr >> 2)\n",
                "    if memattr == 8:\n"
                "        return combine_half(attribute >> 4, 2) << 4 | attribute & 15\n"
                "    if memattr & 3 == 0:\n        return attribute\n"
                "    outer = combine_half(attribute >> 4, memattr >> 2)\n",
            ),
        ),
        since=BEFORE_8,
    ),
    Deviation(
        "memattr_reserved_half",
        "FWB=0 and MemAttr 4, 8 or 12 (reserved): the reserved half is that of stage 1. (A free choice.)",
        "Arm ARM D8.6, MemAttr[3:0]: reserved encodings",
        (
            Patch(
                "attributes",
                "    outer = combine_half(attribute >> 4, memattr >> 2)\n",
                "    if memattr & 3 == 0:\n"
                "        return combine_half(attribute >> 4, memattr >> 2) << 4 | attribute & 15\n"
                "    outer = combine_half(attribute >> 4, memattr >> 2)\n",
            ),
        ),
        until=BEFORE_8,
    ),
    Deviation(
        "ndirty_dbm",
        "With permission indirection, hardware clears nDirty only where bit 51 (DBM, now PIIndex) is set.",
        "AArch64.S1Translate: with HA and HD a write clears bit 7 of the leaf",
        (
            Patch(
                "translate",
                "            descriptor &= ~N_DIRTY\n",
                "            if descriptor & DBM != ZERO:\n                descriptor &= ~N_DIRTY\n",
            ),
        ),
    ),
    Deviation(
        "at_ndirty",
        "With permission indirection, AT for a write ignores the nDirty bit.",
        "AArch64.S1CheckPermissions: a write to a page marked nDirty faults unless hardware manages it",
        (
            Patch(
                "translate",
                "        if not stage1_permits(allowed, access.kind, access.el, pan, s1.epan):\n",
                "        if access.at and s1.indirect:\n"
                "            leaf = w.descriptor & ~N_DIRTY\n"
                "            allowed = indirect_permissions(leaf, s1.pir, s1.pire0, s1.has_el0, s1.hd)\n"
                "        if not stage1_permits(allowed, access.kind, access.el, pan, s1.epan):\n",
            ),
        ),
    ),
    Deviation(
        "at_tge",
        "HCR_EL2.TGE=1 with E2H=0 does not turn stage 1 of EL1&0 off for AT; it hides HCR_EL2.PTW.",
        "Arm ARM HCR_EL2.TGE: SCTLR_EL1.M is treated as 0",
        (
            Patch(
                "controls",
                "        if hcr & (HCR_TGE | HCR_DC) != ZERO:\n",
                "        if hcr & HCR_DC != ZERO:\n",
            ),
            Patch(
                "controls",
                "        hcr & HCR_PTW != ZERO,\n",
                "        hcr & HCR_PTW != ZERO and hcr & HCR_TGE == ZERO,\n",
            ),
        ),
    ),
    Deviation(
        "sctlr_c",
        "SCTLR_ELx.C=0 does not make Normal memory Non-cacheable in PAR_EL1.",
        "AArch64.S1Translate, AArch64.S1DCacheEnabled",
        (
            Patch(
                "translate",
                "    return attribute if s1.cacheable else a.uncached(attribute)\n",
                "    return attribute\n",
            ),
        ),
    ),
    Deviation(
        "granule_reserved",
        "The reserved codes of TG0 and TG1 mean 4K. (No error: the choice is the machine's.)",
        "Arm ARM TCR_EL1.TG0: a reserved value behaves as an implemented one",
        (
            Patch(
                "regime",
                "        return SHIFT_16K\n    return SHIFT_64K\n",
                "        return SHIFT_16K\n    return SHIFT_64K if code == 1 else SHIFT_4K\n",
            ),
            Patch(
                "regime",
                "        return SHIFT_4K\n    return SHIFT_64K\n",
                "        return SHIFT_4K\n    return SHIFT_64K if code == 3 else SHIFT_4K\n",
            ),
        ),
    ),
    Deviation(
        "pan_wxn",
        "Where PAN (with EPAN) would hold a data access back, WXN is ignored for a fetch at EL1.",
        "AArch64.S1DirectBasePermissions: WXN looks at the page; PAN has no say in fetches",
        (
            Patch(
                "translate",
                "        if not stage1_permits(allowed, access.kind, access.el, pan, s1.epan):\n",
                "        fetch = access.el != 0 and access.kind == EXECUTE\n"
                "        if fetch and pan and s1.wxn and not s1.indirect:\n"
                "            counted = w.tables if s1.tables_count else ZERO\n"
                "            leaf = w.descriptor & ~DBM\n"  # dbm_fetch, which is in every version too
                "            free = direct_permissions(leaf, counted, s1.has_el0, s1.hd, False)\n"
                "            if free.ur or (s1.epan and free.ux):\n"
                "                allowed = free\n"
                "        if not stage1_permits(allowed, access.kind, access.el, pan, s1.epan):\n",
            ),
        ),
    ),
    Deviation(
        "dbm_fetch",
        "A clean page with DBM=1 counts as read-only for a fetch: neither WXN nor EL0's right to write it "
        "takes execution away.",
        "AArch64.S1DirectBasePermissions: with HD, a page with DBM=1 is writable",
        (
            Patch(
                "translate",
                "        allowed = leaf_permissions(s1, w.descriptor, w.tables)\n",
                "        leaf = w.descriptor\n"
                "        if access.kind == EXECUTE and not s1.indirect:\n"
                "            leaf &= ~DBM\n"
                "        allowed = leaf_permissions(s1, leaf, w.tables)\n",
            ),
        ),
    ),
    Deviation(
        "at_dirty",
        "AT for a write to a clean page with DBM=1, dirty state managed by hardware, reports a Permission "
        "fault.",
        "Arm ARM D8.5.2: such a page is writable; AT does not make it dirty",
        (
            Patch(
                "translate",
                "    upper = (va >> BIT_55) & ONE != ZERO\n",
                "    upper = (va >> BIT_55) & ONE != ZERO\n"
                "    if access.at:\n"
                "        machine = Implementation(machine.pa_bits, machine.features & ~U64(16))\n",
            ),
        ),
        since=(11, 0, 0),
    ),
    Deviation(
        "sh_raw",
        "Without stage 2, PAR_EL1.SH of Device and Normal Non-cacheable memory is what the descriptor says, "
        "and 0 with stage 1 off.",
        "Arm ARM D8.6.2, PAREncodeShareability: such memory is Outer Shareable",
        (
            Patch(
                "translate",
                "        a.effective_shareability(attribute, stage1_shareability(s1, first.descriptor)),\n",
                "        stage1_shareability(s1, first.descriptor),\n",
            ),
            Patch(
                "translate",
                "        return a.NON_SHAREABLE if s1.default_cacheable else a.OUTER_SHAREABLE\n",
                "        return a.NON_SHAREABLE\n",
            ),
        ),
        until=BEFORE_8,
    ),
    Deviation(
        "block_level",
        "A block is accepted at every level above the last.",
        "Arm ARM D8.3.2, AArch64.BlockDescSupported",
        (Patch("stage2", "    elif level < r.block_level:\n", "    elif level < -1:\n"),),
        until=BEFORE_8,
    ),
    Deviation(
        "small_root",
        "With 52-bit addresses a start table of less than 64 bytes may stand anywhere: BADDR keeps bits 5:4.",
        "Arm ARM D8.2.3: with 52-bit addresses the start table is aligned to 64 bytes at least",
        (
            Patch(
                "regime",
                "        base = (ttbr & ROOT_48) |",
                "        base = (ttbr & BASE) |",
            ),
            Patch("regime", "        if size_shift < 6:\n            size_shift = 6\n", ""),
        ),
        until=BEFORE_8,
    ),
    Deviation(
        "walk_level",
        "A stage-2 fault on a stage-1 walk is reported with the level of stage 1.",
        "Arm ARM D8.15: the level is that of the stage-2 walk",
        (
            Patch(
                "translate",
                "            return at\n        step = stage1_step(",
                "            return Output(at.fault, level, 2, True, at.ipa, ZERO, ZERO, at.word, ZERO)\n"
                "        step = stage1_step(",
            ),
            Patch(
                "translate",
                "                return back\n",
                "                kind = back.fault\n"
                "                return Output(kind, w.level, 2, True, back.ipa, ZERO, ZERO, ZERO, ZERO)\n",
            ),
        ),
        until=BEFORE_8,
    ),
    Deviation(
        "input_beyond_ps",
        "Stage 2: an input size above VTCR_EL2.PS, or a start level that needs a larger PS, faults at "
        "level 0.",
        "AArch64.S2InvalidSL, AArch64.S2InconsistentSL: PAMax, the machine's size, is what counts",
        (
            Patch(
                "controls",
                "    ha = vtcr & VTCR_HA != ZERO and has & FEAT_HAF != ZERO\n",
                "    oa, start, shift = geometry.oa_bits, geometry.start_level, geometry.page_shift\n"
                "    small = shift == 12 and start <= 0 and oa <= 42\n"
                "    small = small or (shift == 14 and start <= 1 and oa <= 40)\n"
                "    small = small or (shift == 16 and start <= 1 and oa <= 42)\n"
                "    legal = legal and geometry.ia_bits <= oa and not small\n"
                "    ha = vtcr & VTCR_HA != ZERO and has & FEAT_HAF != ZERO\n",
            ),
        ),
        until=BEFORE_8,
    ),
)


def known(version: Version) -> Iterator[Deviation]:
    """The deviations this version has."""
    return (deviation for deviation in DEVIATIONS if deviation.concerns(version))


def deviants(version: Version, attribute: bool = True) -> Deviants:
    """Models that deviate as this version does. Raises InputError where a patch no longer fits ``arch``.

    With ``attribute`` also with each deviation alone, to say which one explains a difference: a compilation
    each.
    """
    present = list(known(version))
    together = variant_answers("qemu", [patch for one in present for patch in one.patches])
    return Deviants(together, {one.name: partial(_alone, one) for one in present} if attribute else {})


def _alone(deviation: Deviation) -> Answers:
    return variant_answers(deviation.name, deviation.patches)
