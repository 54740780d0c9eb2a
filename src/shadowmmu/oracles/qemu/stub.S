// Bare-metal query server for QEMU's "virt" machine. It runs at EL2 (or at EL3, on a machine with the
// secure extensions) with its own MMU off, and answers questions about the translation regimes below it.
//
//     aarch64-linux-gnu-as -march=armv8.5-a -o stub.o stub.S
//     aarch64-linux-gnu-objcopy -O binary -j .text stub.o stub.bin
//
// All words are 64-bit little-endian. The host writes, rings, and reads (driver.py has the same numbers):
//
//   mailbox   [0] number of queries  [1] contexts  [2] queries  [3] results  [4] end of RAM
//             [6] SCR_EL3 wanted (EL3 only)
//             [8..12] registers of the query loop while a lower EL runs
//             [16..] identification registers (written at start)
//   context   32 words: 0..20 system registers in the order of shadowmmu.arch.context.COLUMNS,
//             24 flags (below), 25 VBAR_EL1, 26 VA of the access code in the window page
//   query     VA, then operation (bits 7:0), TLBI first (bit 9), number of the context (bits 63:32)
//   result    PAR_EL1, or 0xEEEE << 48 | tag; ESR; FAR; HPFAR
//
// Bits 55:52 of PAR_EL1 are zero, so no PAR looks like a tag. Registers of the loop:
//   x19 mailbox  x20 contexts  x21 next query  x22 next result  x23 end of queries  x24 current context
//   x26 EL of the stub  x27 a store is being prepared

        .text
        .equ    MAILBOX, 0x40210000
        .equ    RAM, 0x40000000

        .equ    MB_QUERIES, 0
        .equ    MB_RESULTS, 24
        .equ    MB_RAM_END, 32
        .equ    MB_SCR, 48
        .equ    MB_SAVED, 64
        .equ    MB_ID, 128

        .equ    CX_FLAGS, 24 * 8
        .equ    CX_VBAR, 25 * 8
        .equ    CX_CODE, 26 * 8

        .equ    FLAG_EL2, 0             // the registers of the EL2 regime are written
        .equ    FLAG_PIE, 1             // TCR2, PIR, PIRE0 and HCRX exist
        .equ    FLAG_DIRTY, 2           // hardware writes dirty state: what AT says of a store is no proof

        .equ    TAG_OWN, 0x04           // the AT instruction itself took an exception
        .equ    TAG_EL2, 0x08           // the access took an exception to EL2
        .equ    TAG_EL1, 0x11           // the access, or its SVC when it was done, went to EL1
        .equ    TAG_DECLINED, 0x20      // a store that would have changed memory: not executed
        .equ    TAG_BAD, 0x21           // no such operation
        .equ    TAG_UNEXPECTED, 0x80    // any other vector

        .equ    EL1H, 0x3c5             // PSTATE with DAIF masked
        .equ    EL0T, 0x3c0
        .equ    PAN, 22
        .equ    SOFTWARE_STEP, 21

        .equ    CODE_LOAD, 0            // offsets in the access code
        .equ    CODE_STORE, 8
        .equ    CODE_ATOMIC, 16

        .macro  MOV32 register, value
        movz    \register, #((\value) & 0xffff)
        movk    \register, #(((\value) >> 16) & 0xffff), lsl #16
        .endm

_start: b       start
        .word   access_code - _start    // for the host: where the code of the window page is
        .balign 2048

// ---- Vectors of the stub's own EL

        .macro  UNEXPECTED number
        mov     x18, #(TAG_UNEXPECTED + \number)
        b       report_own
        .balign 128
        .endm
vectors:
        UNEXPECTED 0
        UNEXPECTED 1
        UNEXPECTED 2
        UNEXPECTED 3
        mov     x18, #TAG_OWN           // current EL, synchronous: registers of the loop are live
        b       report_own
        .balign 128
        UNEXPECTED 5
        UNEXPECTED 6
        UNEXPECTED 7
        b       lower_exception         // lower EL, synchronous
        .balign 128
        UNEXPECTED 9
        UNEXPECTED 10
        UNEXPECTED 11
        UNEXPECTED 12
        UNEXPECTED 13
        UNEXPECTED 14
        UNEXPECTED 15

// ---- Start: vectors, no traps, identification registers

        .macro  IDENTIFY slot, register
        mrs     x2, \register
        str     x2, [x19, #(MB_ID + 8 * \slot)]
        .endm

start:  msr     daifset, #15
        MOV32   x19, MAILBOX
        adr     x1, vectors
        msr     vbar_el2, x1
        mrs     x26, CurrentEL          // x26 says for good whether this is EL3
        lsr     x26, x26, #2
        cmp     x26, #3
        b.ne    1f
        msr     vbar_el3, x1
        ldr     x2, [x19, #MB_SCR]
        msr     scr_el3, x2
        msr     cptr_el3, xzr
1:      msr     cptr_el2, xzr
        msr     oslar_el1, xzr          // software step (fetches) needs the OS lock off
        mrs     x2, mdcr_el2
        orr     x2, x2, #(1 << 8)       // TDE: debug exceptions come to EL2
        msr     mdcr_el2, x2
        isb
        IDENTIFY 0, s3_0_c0_c7_0        // ID_AA64MMFR0_EL1 .. MMFR4
        IDENTIFY 1, s3_0_c0_c7_1
        IDENTIFY 2, s3_0_c0_c7_2
        IDENTIFY 3, s3_0_c0_c7_3
        IDENTIFY 4, s3_0_c0_c7_4
        IDENTIFY 5, s3_0_c0_c4_0        // ID_AA64PFR0_EL1
        IDENTIFY 6, s3_0_c0_c6_2        // ID_AA64ISAR2_EL1
        IDENTIFY 7, midr_el1
        str     x26, [x19, #(MB_ID + 64)]

// ---- The doorbell: say that we are idle, block for one byte (semihosting)

idle:   adr     x1, ready
        mov     w0, #3                  // SYS_WRITEC
        hlt     #0xf000
        mov     w0, #7                  // SYS_READC
        mov     x1, #0
        hlt     #0xf000
        MOV32   x19, MAILBOX
        ldp     x23, x20, [x19, #MB_QUERIES]
        ldp     x21, x22, [x19, #16]
        add     x23, x21, x23, lsl #4
        mov     x24, #-1                // no context is current
        mov     x27, #0                 // no peek is under way
        bl      invalidate

// ---- One query a turn

next:   cmp     x21, x23
        b.hs    idle
        ldp     x0, x1, [x21], #16
        lsr     x2, x1, #32
        cmp     x2, x24
        b.ne    load_context
serve:  tbz     x1, #9, 1f
        bl      invalidate
1:      and     x2, x1, #255
        cmp     x2, #((operations_end - operations) / 16)
        b.hs    unknown
        adr     x3, operations
        add     x3, x3, x2, lsl #4
        br      x3

report_par:
        isb
        mrs     x4, par_el1
        stp     x4, xzr, [x22], #32
        b       next

unknown:
        mov     x18, #TAG_BAD
        b       report_tag

// An exception of this EL: x18 has the tag. If a peek took it, the store will say what it is.
report_own:
        cbnz    x27, no_peek
        cmp     x26, #3
        b.eq    1f
        mrs     x4, esr_el2
        mrs     x5, far_el2
        b       2f
1:      mrs     x4, esr_el3
        mrs     x5, far_el3
2:      mrs     x6, hpfar_el2
        b       report
report_tag:
        mov     x4, #0
        mov     x5, #0
        mov     x6, #0
report: movz    x7, #0xEEEE, lsl #48    // x18 tag, x4 ESR, x5 FAR, x6 HPFAR
        orr     x7, x7, x18
        stp     x7, x4, [x22]
        stp     x5, x6, [x22, #16]
        add     x22, x22, #32
        b       next

// ---- A context becomes the current one: its registers, and no translation of an older one

load_context:
        mov     x24, x2
        add     x3, x20, x2, lsl #8
        ldp     x4, x5, [x3]
        msr     ttbr0_el1, x4
        msr     ttbr1_el1, x5
        ldp     x4, x5, [x3, #2 * 8]
        msr     tcr_el1, x4
        msr     sctlr_el1, x5
        ldp     x4, x5, [x3, #4 * 8]
        msr     mair_el1, x4
        msr     vttbr_el2, x5
        ldp     x4, x5, [x3, #6 * 8]
        msr     vtcr_el2, x4
        msr     hcr_el2, x5
        ldr     x6, [x3, #CX_FLAGS]
        tbz     x6, #FLAG_EL2, 1f
        isb                             // HCR_EL2.E2H decides what the next ones mean
        ldp     x4, x5, [x3, #8 * 8]
        msr     ttbr0_el2, x4
        msr     s3_4_c2_c0_1, x5        // TTBR1_EL2
        ldp     x4, x5, [x3, #10 * 8]
        msr     tcr_el2, x4
        msr     mair_el2, x5
        ldr     x4, [x3, #12 * 8]
        msr     sctlr_el2, x4
1:      tbz     x6, #FLAG_PIE, 2f
        ldp     x4, x5, [x3, #13 * 8]
        msr     s3_0_c2_c0_3, x4        // TCR2_EL1
        msr     s3_0_c10_c2_3, x5       // PIR_EL1
        ldp     x4, x5, [x3, #15 * 8]
        msr     s3_0_c10_c2_2, x4       // PIRE0_EL1
        msr     s3_4_c2_c0_3, x5        // TCR2_EL2
        ldp     x4, x5, [x3, #17 * 8]
        msr     s3_4_c10_c2_3, x4       // PIR_EL2
        msr     s3_4_c10_c2_2, x5       // PIRE0_EL2
        ldr     x4, [x3, #19 * 8]
        msr     s3_4_c1_c2_2, x4        // HCRX_EL2
2:      ldr     x4, [x3, #20 * 8]       // PSTATE.PAN, for AT S1E1RP and S1E1WP
        tbz     x4, #PAN, 3f
        .inst   0xd500419f              // msr pan, #1
        b       4f
3:      .inst   0xd500409f              // msr pan, #0
4:      isb
        adr     x30, serve
invalidate:
        dsb     sy
        tlbi    alle1
        tlbi    alle2
        dsb     sy
        isb
        ret

// ---- Operations, 16 bytes each, in the order of shadowmmu.arch.operation. x0 VA, x1 second query word

        .macro  TRANSLATE name
        at      \name, x0
        b       report_par
        nop
        nop
        .endm
        .macro  TRANSLATE_SYS operands:vararg
        sys     \operands
        b       report_par
        nop
        nop
        .endm
        .macro  ACCESS pstate, offset
        mov     x5, #\pstate
        mov     x6, #\offset
        b       access
        nop
        .endm
        .macro  STORE pstate, way
        mov     x5, #\pstate
        mov     x6, #CODE_STORE
        adr     x7, \way
        b       peek
        .endm
        .macro  FETCH pstate
        mov     x5, #(\pstate)
        b       fetch
        nop
        nop
        .endm
        .macro  NONE
        b       unknown
        nop
        nop
        nop
        .endm

        .balign 16
operations:
        TRANSLATE s1e1r                 // 0
        TRANSLATE s1e1w
        TRANSLATE s1e0r
        TRANSLATE s1e0w
        TRANSLATE s12e1r                // 4
        TRANSLATE s12e1w
        TRANSLATE s12e0r
        TRANSLATE s12e0w
        TRANSLATE s1e1rp                // 8
        TRANSLATE s1e1wp
        TRANSLATE s1e2r                 // 10
        TRANSLATE s1e2w
        ACCESS  EL1H, CODE_LOAD         // 12
        STORE   EL1H, peek_el1
        FETCH   EL1H
        ACCESS  EL0T, CODE_LOAD         // 15
        STORE   EL0T, peek_el0
        FETCH   EL0T
        ACCESS  EL1H, CODE_ATOMIC       // 18
        ACCESS  EL0T, CODE_ATOMIC
        NONE                            // 20..22: accesses from EL2
        NONE
        NONE
        TRANSLATE_SYS #0, c7, c9, #2, x0        // 23: AT S1E1A
        TRANSLATE_SYS #4, c7, c9, #2, x0        // 24: AT S1E2A
operations_end:

// A store writes back the byte that is there, so that it changes nothing but what the hardware updates.
// AT tells the PA: for a write, and where that is refused (a clean page may be) for a read. If both meet a
// Permission fault the store does too, unless it makes the page dirty: such a store is declined.
peek:   mov     x27, #1
        br      x7
peek_el1:
        at      s12e1w, x0
        isb
        mrs     x3, par_el1
        tbz     x3, #0, peeked
        at      s12e1r, x0
        b       peek_again
peek_el0:
        at      s12e0w, x0
        isb
        mrs     x3, par_el1
        tbz     x3, #0, peeked
        at      s12e0r, x0
peek_again:
        mov     x2, x3
        isb
        mrs     x3, par_el1
        tbz     x3, #0, peeked
        add     x4, x20, x24, lsl #8
        ldr     x4, [x4, #CX_FLAGS]
        tbz     x4, #FLAG_DIRTY, no_peek
        ubfx    x2, x2, #3, #4          // fault status 0b0011xx: Permission
        ubfx    x3, x3, #3, #4
        cmp     x2, #3
        ccmp    x3, #3, #0, eq
        b.ne    no_peek
        mov     x27, #0
        mov     x18, #TAG_DECLINED
        b       report_tag
peeked: mov     x27, #0
        and     x2, x3, #0x000ffffffffff000
        and     x3, x0, #0xfff
        orr     x2, x2, x3
        MOV32   x3, RAM
        cmp     x2, x3
        b.lo    no_peek                 // outside RAM there is nothing to preserve
        ldr     x3, [x19, #MB_RAM_END]
        cmp     x2, x3
        b.hs    no_peek
        ldrb    w25, [x2]
        b       access
no_peek:
        mov     x27, #0
        mov     w25, #0
        b       access

// A fetch goes to the VA itself, with software step: one instruction is executed at most.
fetch:  mov     x8, x0
        orr     x5, x5, #(1 << SOFTWARE_STEP)
        mov     x2, #1
        b       enter
// A load or store is made by the code in the window page.
access: add     x3, x20, x24, lsl #8
        ldr     x8, [x3, #CX_CODE]
        add     x8, x8, x6
        mov     x2, #0
// x5 PSTATE, x8 PC, x2 MDSCR_EL1, w25 the byte to store
enter:  cmp     x26, #3                 // real accesses are made from EL2 only
        b.eq    unknown
        add     x3, x20, x24, lsl #8
        ldr     x7, [x3, #CX_VBAR]
        msr     vbar_el1, x7
        ldr     x4, [x3, #20 * 8]
        and     x4, x4, #(1 << PAN)
        orr     x5, x5, x4
        msr     mdscr_el1, x2
        msr     spsr_el2, x5
        msr     elr_el2, x8
        msr     esr_el1, xzr
        msr     far_el1, xzr
        stp     x20, x21, [x19, #MB_SAVED]
        stp     x22, x23, [x19, #MB_SAVED + 16]
        str     x24, [x19, #MB_SAVED + 32]
        mov     x20, #0                 // whatever a fetch executes shall not find pointers here
        mov     x21, #0
        mov     x22, #0
        mov     x23, #0
        mov     x19, #0
        isb
        eret

// Copied by the host into the window page. Each access ends in SVC, taken to EL1.
        .balign 64
access_code:
        ldrb    w1, [x0]
        svc     #0
        strb    w25, [x0]
        svc     #0
        .inst   0x383f0001              // ldaddb wzr, w1, [x0]
        svc     #0

// Back from EL1 or EL0. The vectors of EL1 are all HVC: coming from there (or from a fault of fetching
// them, or a step at them) means that the exception of interest was taken to EL1.
lower_exception:
        MOV32   x19, MAILBOX
        ldp     x20, x21, [x19, #MB_SAVED]
        ldp     x22, x23, [x19, #MB_SAVED + 16]
        ldr     x24, [x19, #MB_SAVED + 32]
        mov     x26, #2                 // a fetch may have executed anything
        mov     x27, #0
        mrs     x4, esr_el2
        mrs     x5, far_el2
        mrs     x6, hpfar_el2
        mov     x18, #TAG_EL2
        add     x3, x20, x24, lsl #8
        ldr     x7, [x3, #CX_VBAR]
        mrs     x8, elr_el2
        sub     x8, x8, x7
        cmp     x8, #0x780
        b.hi    report
        mov     x18, #TAG_EL1
        mrs     x4, esr_el1
        mrs     x5, far_el1
        mov     x6, #0
        b       report

        .balign 8
ready:  .ascii  "R\0\0\0\0\0\0\0"
