"""System registers and instruction operands, field by field.

Source: Arm ARM DDI 0487, D24 (registers) and C5.5 (TLBI operands).
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.fields import Field, Layout

VTCR_EL2: Final = Layout(
    "VTCR_EL2",
    "Arm ARM D24.2.193",
    Field("T0SZ", 0, 6, "size of the input: 64 - T0SZ bits"),
    Field("SL0", 6, 2, "start level code"),
    Field("IRGN0", 8, 2, "inner cacheability of walks"),
    Field("ORGN0", 10, 2, "outer cacheability of walks"),
    Field("SH0", 12, 2, "shareability of walks"),
    Field("TG0", 14, 2, "granule", {0: "4K", 1: "64K", 2: "16K"}),
    Field("PS", 16, 3, "output size", {0: "32", 1: "36", 2: "40", 3: "42", 4: "44", 5: "48", 6: "52"}),
    Field("VS", 19, 1, "16-bit VMID"),
    Field("HA", 21, 1, "hardware update of the access flag"),
    Field("HD", 22, 1, "hardware update of the dirty state"),
    Field("RES1", 31, 1, "reads as one"),
    Field("DS", 32, 1, "52-bit addresses with 4K and 16K granules"),
    Field("SL2", 33, 1, "start level -1 with DS"),
)

VTTBR_EL2: Final = Layout(
    "VTTBR_EL2",
    "Arm ARM D24.2.194",
    Field("CnP", 0, 1, "common, not private"),
    Field("BADDR", 1, 47, "base of the start table, bits 47:1", address=True),
    Field("VMID", 48, 16, "tag of the VM's TLB entries"),
)

HCR_EL2: Final = Layout(
    "HCR_EL2",
    "Arm ARM D24.2.56",
    Field("VM", 0, 1, "stage 2 enabled"),
    Field("PTW", 2, 1, "walks through device memory fault"),
    Field("DC", 12, 1, "default cacheable: stage 1 off, stage 2 on"),
    Field("TGE", 27, 1, "trap general exceptions"),
    Field("CD", 32, 1, "stage 2 cacheability disabled"),
    Field("E2H", 34, 1, "EL2 hosts an operating system"),
    Field("NV", 42, 1, "nested virtualisation"),
    Field("NV1", 43, 1, "nested virtualisation, second set"),
    Field("NV2", 45, 1, "register accesses redirected to memory"),
    Field("FWB", 46, 1, "stage 2 memory type wins"),
)

ESR_EL2: Final = Layout(
    "ESR_EL2",
    "Arm ARM D24.2.41",
    Field("EC", 26, 6, "exception class", {0x20: "instruction abort", 0x24: "data abort"}),
    Field("IL", 25, 1, "32-bit instruction"),
    Field("ISV", 24, 1, "syndrome valid"),
    Field("SAS", 22, 2, "access size"),
    Field("SSE", 21, 1, "sign extended"),
    Field("SRT", 16, 5, "register transferred"),
    Field("SF", 15, 1, "64-bit register"),
    Field("AR", 14, 1, "acquire or release"),
    Field("FnV", 10, 1, "FAR not valid"),
    Field("EA", 9, 1, "external abort type"),
    Field("CM", 8, 1, "cache maintenance"),
    Field("S1PTW", 7, 1, "stage 2 fault on a stage 1 walk"),
    Field("WnR", 6, 1, "write, not read"),
    Field("FSC", 0, 6, "fault status code"),
)

HPFAR_EL2: Final = Layout(
    "HPFAR_EL2",
    "Arm ARM D24.2.57",
    Field("FIPA", 4, 44, "faulting IPA, bits 55:12"),
    Field("NS", 63, 1, "IPA is non-secure; KVM sets it as its own mark of validity"),
)

TLBI_IPAS2: Final = Layout(
    "TLBI IPAS2E1 operand",
    "Arm ARM C5.5",
    Field("IPA", 0, 36, "IPA, bits 47:12"),
    Field("IPA_HIGH", 36, 4, "IPA, bits 51:48, where addresses have 52 bits"),
    Field("TTL", 44, 4, "granule (bits 3:2) and level (bits 1:0) of the leaf"),
    Field("NS", 63, 1, "IPA space"),
)

TLBI_RIPAS2: Final = Layout(
    "TLBI RIPAS2E1 operand",
    "Arm ARM C5.5",
    Field("BaseADDR", 0, 37, "start, in granules"),
    Field("TTL", 37, 2, "level of the leaves"),
    Field("NUM", 39, 5, "range length"),
    Field("SCALE", 44, 2, "range scale"),
    Field("TG", 46, 2, "granule", {1: "4K", 2: "16K", 3: "64K"}),
)
