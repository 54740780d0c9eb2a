"""Memory attributes: of stage 1, of stage 2, and of both together, in MAIR's form.

An attribute is 8 bits as MAIR_ELx has them and PAR_EL1 reports them: ``0000dd00`` a Device type, else the
outer nibble over the inner one. Shareability is the two bits of descriptors: 0 non, 2 outer, 3 inner.
Source: Arm ARM D8.6 (memory region attributes, stage 2 combination, FEAT_S2FWB), D24.2.113 (MAIR_EL1);
pseudocode ``S2CombineS1MemAttrs``, ``S2ApplyFWBMemAttrs``, ``PAREncodeShareability``.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64, Word, inline

DEVICE_nGnRnE: Final = 0x00
DEVICE_nGnRE: Final = 0x04
DEVICE_nGRE: Final = 0x08
DEVICE_GRE: Final = 0x0C
NORMAL_NC: Final = 0x44
NORMAL_WT: Final = 0xBB
NORMAL_WB: Final = 0xFF
TAGGED: Final = 0xF0

NAMES: Final = {
    DEVICE_nGnRnE: "Device-nGnRnE",
    DEVICE_nGnRE: "Device-nGnRE",
    DEVICE_nGRE: "Device-nGRE",
    DEVICE_GRE: "Device-GRE",
    NORMAL_NC: "Normal Non-cacheable",
    NORMAL_WT: "Normal Write-Through",
    NORMAL_WB: "Normal Write-Back",
    TAGGED: "Normal Write-Back, tagged",
}

NON_SHAREABLE: Final = 0
OUTER_SHAREABLE: Final = 2
INNER_SHAREABLE: Final = 3

S2_NC: Final = 1
S2_WT: Final = 2
S2_WB: Final = 3
NIBBLE_NC: Final = 0x4
NIBBLE_WB: Final = 0xF

FWB_NORMAL: Final = 4
FWB_NC: Final = 5
FWB_WB: Final = 6
FWB_STAGE1: Final = 7
BYTE: Final = U64(0xFF)
THREE: Final = U64(3)


@inline
def mair_attribute(mair: Word, index: Word, tags: bool) -> int:
    """The attribute that AttrIndx names. Without FEAT_MTE2 tagged memory is Normal Write-Back."""
    attribute = I64((mair >> (index << THREE)) & BYTE)
    if attribute == TAGGED and not tags:
        return NORMAL_WB
    return attribute


@inline
def is_device(attribute: int) -> bool:
    """Whether the attribute is a Device type."""
    return attribute & 0xF0 == 0


@inline
def uncached(attribute: int) -> int:
    """What a data access sees with caching off (SCTLR_ELx.C, HCR_EL2.CD): Normal becomes Non-cacheable."""
    return attribute if is_device(attribute) else NORMAL_NC


@inline
def combine_half(nibble: int, stage2: int) -> int:
    """Inner or outer cacheability of both stages; the allocation hints are stage 1's.

    Non-cacheable beats Write-Through beats Write-Back. Source: ``S2CombineS1AttrHints``.
    """
    if nibble == NIBBLE_NC or stage2 == S2_NC:
        return NIBBLE_NC
    if stage2 == S2_WB:
        return nibble
    return nibble & 0b1011  # Write-Through: 00RW transient, 10RW not


@inline
def combine(attribute: int, memattr: int) -> int:
    """Attributes of both stages without FWB. ``memattr``: MemAttr[3:0] of the stage 2 leaf.

    A Device type at either stage wins, the stricter of two. Source: ``S2CombineS1MemAttrs``.
    """
    if memattr >> 2 == 0:
        device = memattr << 2
        if is_device(attribute):
            return min(attribute, device)
        return device
    if is_device(attribute):
        return attribute
    outer = combine_half(attribute >> 4, memattr >> 2)
    inner = combine_half(attribute & 0xF, memattr & 3)
    return outer << 4 | inner


@inline
def written_back(nibble: int) -> int:
    """A stage 1 nibble made Write-Back; what was not cacheable gets every allocation hint."""
    if nibble == NIBBLE_NC or nibble == 0:
        return NIBBLE_WB
    return nibble | 0b0100


@inline
def combine_fwb(attribute: int, memattr: int) -> int:
    """Attributes of both stages with FWB, MemAttr[2:0]. Source: ``S2ApplyFWBMemAttrs``."""
    code = memattr & 7
    if code < FWB_NORMAL:
        device = code << 2
        if is_device(attribute):
            return min(attribute, device)
        return device
    if code == FWB_NC:
        return uncached(attribute)
    if code == FWB_WB:
        if is_device(attribute):
            return NORMAL_WB
        return written_back(attribute >> 4) << 4 | written_back(attribute & 0xF)
    return attribute


@inline
def combine_stages(attribute: int, memattr: int, fwb: bool) -> int:
    """Attributes of both stages. Tagged memory is Write-Back in every respect, or it is not tagged.

    Source: ``S2CombineS1MemAttrs``, ``AArch64.S2MemTagType``.
    """
    first = NORMAL_WB if attribute == TAGGED else attribute
    both = combine_fwb(first, memattr) if fwb else combine(first, memattr)
    return TAGGED if attribute == TAGGED and both == NORMAL_WB else both


@inline
def combine_shareability(first: int, second: int) -> int:
    """The wider domain of both stages."""
    if first == OUTER_SHAREABLE or second == OUTER_SHAREABLE:
        return OUTER_SHAREABLE
    if first == INNER_SHAREABLE or second == INNER_SHAREABLE:
        return INNER_SHAREABLE
    return NON_SHAREABLE


@inline
def effective_shareability(attribute: int, shareability: int) -> int:
    """Device and Normal Non-cacheable memory is Outer Shareable, whatever the tables say.

    Source: Arm ARM D8.6.2; ``PAREncodeShareability``.
    """
    if is_device(attribute) or attribute == NORMAL_NC:
        return OUTER_SHAREABLE
    return shareability
