"""System registers and instruction operands, field by field.

Source: Arm ARM DDI 0487, D24 (registers) and C5.5 (TLBI operands).
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.fields import Field, Layout

_TG0: Final = {0: "4K", 1: "64K", 2: "16K"}
_TG1: Final = {1: "16K", 2: "4K", 3: "64K"}
_SIZES: Final = {0: "32", 1: "36", 2: "40", 3: "42", 4: "44", 5: "48", 6: "52"}
_SH: Final = {0: "non", 2: "outer", 3: "inner"}

TCR_EL1: Final = Layout(
    "TCR_EL1",
    "Arm ARM D24.2.181; the same layout holds TCR_EL2 where HCR_EL2.E2H is 1",
    Field("T0SZ", 0, 6, "size of the lower half: 64 - T0SZ bits"),
    Field("EPD0", 7, 1, "no walks of the lower half"),
    Field("IRGN0", 8, 2, "inner cacheability of walks, lower half"),
    Field("ORGN0", 10, 2, "outer cacheability of walks, lower half"),
    Field("SH0", 12, 2, "shareability of walks, lower half", _SH),
    Field("TG0", 14, 2, "granule of the lower half", _TG0),
    Field("T1SZ", 16, 6, "size of the upper half: 64 - T1SZ bits"),
    Field("A1", 22, 1, "TTBR1 holds the ASID"),
    Field("EPD1", 23, 1, "no walks of the upper half"),
    Field("IRGN1", 24, 2, "inner cacheability of walks, upper half"),
    Field("ORGN1", 26, 2, "outer cacheability of walks, upper half"),
    Field("SH1", 28, 2, "shareability of walks, upper half", _SH),
    Field("TG1", 30, 2, "granule of the upper half", _TG1),
    Field("IPS", 32, 3, "output size", _SIZES),
    Field("AS", 36, 1, "16-bit ASID"),
    Field("TBI0", 37, 1, "top byte ignored, lower half"),
    Field("TBI1", 38, 1, "top byte ignored, upper half"),
    Field("HA", 39, 1, "hardware update of the access flag"),
    Field("HD", 40, 1, "hardware update of the dirty state"),
    Field("HPD0", 41, 1, "no hierarchical permissions, lower half"),
    Field("HPD1", 42, 1, "no hierarchical permissions, upper half"),
    Field("TBID0", 51, 1, "top byte counts for fetches, lower half"),
    Field("TBID1", 52, 1, "top byte counts for fetches, upper half"),
    Field("NFD0", 53, 1, "no non-fault walks, lower half"),
    Field("NFD1", 54, 1, "no non-fault walks, upper half"),
    Field("E0PD0", 55, 1, "EL0 has no lower half"),
    Field("E0PD1", 56, 1, "EL0 has no upper half"),
    Field("DS", 59, 1, "52-bit addresses with 4K and 16K granules"),
)

TCR_EL2: Final = Layout(
    "TCR_EL2",
    "Arm ARM D24.2.182, where HCR_EL2.E2H is 0",
    Field("T0SZ", 0, 6, "size of the input: 64 - T0SZ bits"),
    Field("IRGN0", 8, 2, "inner cacheability of walks"),
    Field("ORGN0", 10, 2, "outer cacheability of walks"),
    Field("SH0", 12, 2, "shareability of walks", _SH),
    Field("TG0", 14, 2, "granule", _TG0),
    Field("PS", 16, 3, "output size", _SIZES),
    Field("TBI", 20, 1, "top byte ignored"),
    Field("HA", 21, 1, "hardware update of the access flag"),
    Field("HD", 22, 1, "hardware update of the dirty state"),
    Field("HPD", 24, 1, "no hierarchical permissions"),
    Field("TBID", 29, 1, "top byte counts for fetches"),
    Field("DS", 32, 1, "52-bit addresses with 4K and 16K granules"),
)

TCR2_EL1: Final = Layout(
    "TCR2_EL1",
    "Arm ARM D24.2.183",
    Field("PIE", 1, 1, "permissions are indices into PIR"),
)

SCTLR_EL1: Final = Layout(
    "SCTLR_EL1",
    "Arm ARM D24.2.155; SCTLR_EL2 has the same fields",
    Field("M", 0, 1, "stage 1 enabled"),
    Field("A", 1, 1, "alignment checked"),
    Field("C", 2, 1, "data accesses may be cached"),
    Field("I", 12, 1, "fetches may be cached"),
    Field("WXN", 19, 1, "writable implies not executable"),
    Field("SPAN", 23, 1, "exceptions leave PAN alone"),
    Field("EE", 25, 1, "stage 1 tables are big-endian"),
    Field("EPAN", 57, 1, "PAN covers what EL0 may only execute"),
)

TTBR_EL1: Final = Layout(
    "TTBR0_EL1",
    "Arm ARM D24.2.195; TTBR1_EL1 and the TTBRs of EL2 have the same fields",
    Field("CnP", 0, 1, "common, not private"),
    Field("BADDR", 1, 47, "base of the start table, bits 47:1; bits 5:2 are 51:48 in 52 bits", address=True),
    Field("ASID", 48, 16, "tag of the address space's TLB entries"),
)

PAR_SUCCESS: Final = Layout(
    "PAR_EL1",
    "Arm ARM D24.2.133, F == 0",
    Field("F", 0, 1, "the translation failed"),
    Field("SH", 7, 2, "shareability", _SH),
    Field("NS", 9, 1, "output in the non-secure space"),
    Field("RES1", 11, 1, "reads as one"),
    Field("PA", 12, 40, "output address, bits 51:12", address=True),
    Field("ATTR", 56, 8, "memory attributes, as MAIR has them"),
)

PAR_FAULT: Final = Layout(
    "PAR_EL1 of a fault",
    "Arm ARM D24.2.133, F == 1",
    Field("F", 0, 1, "the translation failed"),
    Field("FST", 1, 6, "fault status code"),
    Field("PTW", 8, 1, "stage 2 fault on a stage 1 walk"),
    Field("S", 9, 1, "stage 2"),
    Field("RES1", 11, 1, "reads as one"),
)

PSTATE: Final = Layout(
    "PSTATE",
    "Arm ARM D1.4, in the places of SPSR",
    Field("PAN", 22, 1, "EL1 has no access to EL0's memory"),
)

HCRX_EL2: Final = Layout(
    "HCRX_EL2",
    "Arm ARM D24.2.57",
    Field("FnXS", 3, 1, "TLBIs of EL1 act as their nXS forms"),
    Field("TCR2En", 14, 1, "TCR2_EL1 has effect"),
)

VTCR_EL2: Final = Layout(
    "VTCR_EL2",
    "Arm ARM D24.2.193",
    Field("T0SZ", 0, 6, "size of the input: 64 - T0SZ bits"),
    Field("SL0", 6, 2, "start level code"),
    Field("IRGN0", 8, 2, "inner cacheability of walks"),
    Field("ORGN0", 10, 2, "outer cacheability of walks"),
    Field("SH0", 12, 2, "shareability of walks", _SH),
    Field("TG0", 14, 2, "granule", _TG0),
    Field("PS", 16, 3, "output size", _SIZES),
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
    Field("FB", 9, 1, "TLBIs of EL1 reach the inner shareable domain"),
    Field("DC", 12, 1, "default cacheable: stage 1 off, stage 2 on"),
    Field("TGE", 27, 1, "trap general exceptions"),
    Field("CD", 32, 1, "stage 2 cacheability disabled"),
    Field("E2H", 34, 1, "EL2 hosts an operating system"),
    Field("TEA", 37, 1, "external aborts go to EL2"),
    Field("NV", 42, 1, "nested virtualisation"),
    Field("NV1", 43, 1, "nested virtualisation, second set"),
    Field("NV2", 45, 1, "register accesses redirected to memory"),
    Field("FWB", 46, 1, "stage 2 memory type wins"),
)

ESR_EL2: Final = Layout(
    "ESR_EL2",
    "Arm ARM D24.2.41; ESR_EL1 has the same fields",
    Field(
        "EC",
        26,
        6,
        "exception class",
        {
            0x20: "instruction abort",
            0x21: "instruction abort, same level",
            0x24: "data abort",
            0x25: "data abort, same level",
        },
    ),
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
