/*
 * L1 at virtual EL2 with its stage 1 off: entry, the switch to L2 and back, vectors; and L2's payload.
 *
 * The layout is part of what is compared with the model: entry and l1_run stand in the first page of L1's
 * image, vectors, payload, C code and data in the second (l1.ld checks it).
 */
	.section .text.start, "ax"
	.global _start
_start:
	ldr	x1, =0x40040000			/* STACK_TOP; x0: which vCPU this is */
	sub	x1, x1, x0, lsl #9
	mov	sp, x1
	adr	x2, vectors
	msr	vbar_el2, x2
	isb
	bl	l1_main
1:	b	1b

	.text
/* void l1_run(struct l2_context *c): enters L2 with x0 to x4, comes back at its next exception. */
	.balign 2048
	.global l1_run
l1_run:
	sub	sp, sp, #112
	stp	x19, x20, [sp]
	stp	x21, x22, [sp, #16]
	stp	x23, x24, [sp, #32]
	stp	x25, x26, [sp, #48]
	stp	x27, x28, [sp, #64]
	stp	x29, x30, [sp, #80]
	msr	tpidr_el2, x0
	ldr	x9, [x0, #88]			/* pc */
	msr	elr_el2, x9
	mov	x9, #0x3c5			/* EL1h, interrupts masked */
	msr	spsr_el2, x9
	isb
	ldp	x2, x3, [x0, #16]
	ldr	x4, [x0, #32]
	ldp	x0, x1, [x0]
	eret
	dsb	sy				/* no speculation past the ERET */
	isb

l2_exit:
	msr	tpidr_el1, x9
	mrs	x9, tpidr_el2
	stp	x0, x1, [x9]
	stp	x2, x3, [x9, #16]
	stp	x4, x5, [x9, #32]
	str	x6, [x9, #48]
	mrs	x1, esr_el2
	str	x1, [x9, #56]
	mrs	x1, far_el2
	str	x1, [x9, #64]
	mrs	x1, hpfar_el2
	str	x1, [x9, #72]
	mrs	x1, elr_el2
	str	x1, [x9, #80]
	ldp	x19, x20, [sp]
	ldp	x21, x22, [sp, #16]
	ldp	x23, x24, [sp, #32]
	ldp	x25, x26, [sp, #48]
	ldp	x27, x28, [sp, #64]
	ldp	x29, x30, [sp, #80]
	add	sp, sp, #112
	ret

l1_fault:				/* an exception of L1 itself: tell the VMM syndrome, PC and address */
	mrs	x1, esr_el2
	ldr	x2, =0x09000008			/* DOORBELL + 8 */
	str	x1, [x2]
	mrs	x1, elr_el2
	str	x1, [x2]
	mrs	x1, far_el2
	str	x1, [x2]
1:	b	1b

	.balign 2048
vectors:
	.rept 8					/* from the current exception level */
	.balign 128
	b	l1_fault
	.endr
	.rept 4					/* from a lower one; L2 is never in AArch32 */
	.balign 128
	b	l2_exit
	.endr

/*
 * L2: x0 address, x1 stride, x2 count, x3 operation (0 read, 1 write, 2 execute), x4 value to write.
 * x6 sums what was read; x2 counts down to 0. The model knows where the load, the store and the HVC stand.
 */
	.balign 64
	.global l2_code, l2_code_end
l2_code:
	mov	x6, #0
	cbz	x2, 9f
	mov	x7, x30
1:	cmp	x3, #1
	b.eq	2f
	b.hi	3f
	ldr	x5, [x0]
	add	x6, x6, x5
	b	4f
2:	str	x4, [x0]
	b	4f
3:	blr	x0
4:	add	x0, x0, x1
	subs	x2, x2, #1
	b.ne	1b
9:	hvc	#0
	b	9b
8:	b	8b				/* L2_STAY: L2 is left where it is */
	wfi					/* L2_WFI */
	b	8b
	mrs	x6, s3_4_c2_c1_0		/* L2_READ_REGISTER: VTTBR_EL2, by NV2 a load from the page of VNCR_EL2 */
	b	9b
	msr	s3_4_c2_c1_0, x4		/* L2_WRITE_REGISTER */
	b	9b
l2_code_end:
	.ltorg
