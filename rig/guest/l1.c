/*
 * A bare-metal L1: a hypervisor that executes one mailbox command for each store to the doorbell.
 *
 * It runs at virtual EL2 with stage 1 off, so every address is a canonical IPA. Its guest stage-2 tables
 * have the granule of VTCR_EL2 and one root page: levels 1 to 3 (39 bits of nested IPA) with 4K pages, 2 to 3
 * with larger ones. What builds the latter has a page of its own and a stack frame; an L0 of larger pages,
 * which needs it, cannot tell that page from the two of the image.
 */
#include "mailbox.h"

#define HCR_VM		(1UL << 0)
#define HCR_TGE		(1UL << 27)
#define HCR_RW		(1UL << 31)
#define HCR_E2H		(1UL << 34)
#define HCR_NESTED	(1UL << 42 | 1UL << 43 | 1UL << 45)	/* NV, NV1, NV2 */
#define HCRX_TCR2EN	(1UL << 14)
#define SCTLR_RES1	0x30d00800UL		/* stage 1 off, little endian */

#define write_reg(reg, v)	asm volatile("msr " #reg ", %0" :: "r"((u64)(v)) : "memory")
#define read_reg(reg)		({ u64 v_; asm volatile("mrs %0, " #reg : "=r"(v_)); v_; })
#define isb()			asm volatile("isb" ::: "memory")
#define dsb()			asm volatile("dsb sy" ::: "memory")

/* The arguments of a command: read once, before anything else is touched. */
struct call { u64 a0, a1, a2, a3, a4, a5, a6; };

/* l1.S knows the offsets. */
struct l2_context { u64 x[7], esr, far, hpfar, elr, pc; };

extern void l1_run(struct l2_context *);
extern char l2_code[], l2_code_end[];

/* Next free table page. Volatile: the order of L1's accesses to memory is what the model repeats. */
static volatile u64 pool = TABLE_POOL;
static struct l2_context context;

static u64 new_table(void)
{
	volatile u64 *table = (volatile u64 *)pool;

	pool = (u64)table + 4096;
	for (int i = 0; i < 512; i++)
		table[i] = 0;
	return (u64)table;
}

/* Write the leaf of nested_ipa at level; attributes 0 clears it, and then adds no tables. */
static void set_leaf(u64 root, u64 nested_ipa, u64 canonical_ipa, int level, u64 attributes)
{
	u64 table = root;

	for (int at = 1; ; at++) {
		volatile u64 *entry = (volatile u64 *)table + ((nested_ipa >> (12 + 9 * (3 - at))) & 511);

		if (at == level) {
			*entry = attributes ? (canonical_ipa | attributes | (level == 3 ? 3 : 1)) : 0;
			return;
		}
		if ((*entry & 3) != 3) {
			if (!attributes)
				return;
			*entry = new_table() | 3;
		}
		table = *entry & 0xfffffffff000UL;
	}
}

#define TG0		(3UL << 14)
#define LARGE		__attribute__((noinline, section(".large")))

/* Address bits inside a page of the tables that vtcr describes: 16K or 64K. */
static int large_shift(u64 vtcr)
{
	return (vtcr & TG0) == 2UL << 14 ? 14 : 16;
}

LARGE static u64 new_large_table(u64 vtcr)
{
	u64 size = 1UL << large_shift(vtcr), at = (pool + size - 1) & ~(size - 1);

	pool = at + size;
	for (u64 o = 0; o < size; o += 8)
		*(volatile u64 *)(at + o) = 0;
	return at;
}

/* Write the leaves of [nested_ipa, +size) as map() and unmap() do. */
LARGE static void fill_large(u64 root, u64 nested_ipa, u64 canonical_ipa, u64 size, u64 level, u64 attributes,
			     u64 window)
{
	u64 vtcr = read_reg(vtcr_el2);
	int shift = large_shift(vtcr), stride = shift - 3;
	u64 leaf = 1UL << (level == 3 ? shift : shift + stride), index = (1UL << stride) - 1;

	for (u64 o = 0; o < size; o += leaf) {
		u64 ipa = nested_ipa + o, table = root, value = (canonical_ipa + o % window) | attributes;
		volatile u64 *entry = (volatile u64 *)table + (ipa >> (shift + stride) & index);

		if (level == 3) {
			if ((*entry & 3) != 3) {
				if (!attributes)
					continue;
				*entry = new_large_table(vtcr) | 3;
			}
			table = *entry & 0xfffffffff000UL;
			entry = (volatile u64 *)table + (ipa >> shift & index);
		}
		*entry = attributes ? value | (level == 3 ? 3 : 1) : 0;
	}
}

static void invalidate(u64 kind, u64 v)
{
	dsb();
	switch (kind) {
	case TLBI_IPAS2E1IS:	asm volatile("tlbi ipas2e1is, %0" :: "r"(v)); break;
	case TLBI_IPAS2LE1IS:	asm volatile("tlbi ipas2le1is, %0" :: "r"(v)); break;
	case TLBI_RIPAS2E1IS:	asm volatile("sys #4, c8, c0, #2, %0" :: "r"(v)); break;
	case TLBI_RIPAS2LE1IS:	asm volatile("sys #4, c8, c0, #6, %0" :: "r"(v)); break;
	case TLBI_VMALLS12E1IS:	asm volatile("tlbi vmalls12e1is"); break;
	case TLBI_ALLE1IS:	asm volatile("tlbi alle1is"); break;
	case TLBI_VMALLE1IS:	asm volatile("tlbi vmalle1is"); break;
	case TLBI_IPAS2E1:	asm volatile("tlbi ipas2e1, %0" :: "r"(v)); break;
	case TLBI_VMALLS12E1:	asm volatile("tlbi vmalls12e1"); break;
	}
	dsb();
	isb();
}

/* A TLBI for L1's own EL2&0 regime, while HCR_EL2 is hcr: those with an E1 name are of it if TGE is set. */
static void invalidate_el2(u64 scope, u64 v, u64 hcr)
{
	write_reg(hcr_el2, hcr);
	isb();
	dsb();
	switch (scope) {
	case TLBI2_ALL:		asm volatile("tlbi alle2is"); break;
	case TLBI2_VA:		asm volatile("tlbi vae2is, %0" :: "r"(v)); break;
	case TLBI2_VAA:		asm volatile("tlbi vaae1is, %0" :: "r"(v)); break;
	case TLBI2_ASID:	asm volatile("tlbi aside1is, %0" :: "r"(v)); break;
	case TLBI2_RVA:		asm volatile("sys #4, c8, c2, #1, %0" :: "r"(v)); break;
	case TLBI2_RVAA:	asm volatile("sys #0, c8, c2, #3, %0" :: "r"(v)); break;
	}
	dsb();
}

/* Execute one AT and return PAR_EL1. */
static u64 translate(u64 operation, u64 va)
{
	isb();
	switch (operation) {
	case AT_S1E1R:	asm volatile("at s1e1r, %0" :: "r"(va)); break;
	case AT_S1E1W:	asm volatile("at s1e1w, %0" :: "r"(va)); break;
	case AT_S1E0R:	asm volatile("at s1e0r, %0" :: "r"(va)); break;
	case AT_S1E0W:	asm volatile("at s1e0w, %0" :: "r"(va)); break;
	case AT_S1E1RP:	asm volatile("at s1e1rp, %0" :: "r"(va)); break;
	case AT_S1E1WP:	asm volatile("at s1e1wp, %0" :: "r"(va)); break;
	case AT_S1E2R:	asm volatile("at s1e2r, %0" :: "r"(va)); break;
	case AT_S1E2W:	asm volatile("at s1e2w, %0" :: "r"(va)); break;
	case AT_S12E1R:	asm volatile("at s12e1r, %0" :: "r"(va)); break;
	case AT_S12E1W:	asm volatile("at s12e1w, %0" :: "r"(va)); break;
	case AT_S12E0R:	asm volatile("at s12e0r, %0" :: "r"(va)); break;
	case AT_S12E0W:	asm volatile("at s12e0w, %0" :: "r"(va)); break;
	case AT_S1E1A:	asm volatile("sys #0, c7, c9, #2, %0" :: "r"(va)); break;
	case AT_S1E2A:	asm volatile("sys #4, c7, c9, #2, %0" :: "r"(va)); break;
	}
	isb();
	return read_reg(par_el1);
}

/* Set a register of L2's stage 1. A VHE L1 reaches them by their EL12 names, an nVHE one by their own. */
static void set_stage1(u64 which, u64 v, u64 vhe)
{
	switch (which) {
	case S1_TTBR0:	if (vhe) write_reg(s3_5_c2_c0_0, v); else write_reg(ttbr0_el1, v); break;
	case S1_TTBR1:	if (vhe) write_reg(s3_5_c2_c0_1, v); else write_reg(ttbr1_el1, v); break;
	case S1_TCR:	if (vhe) write_reg(s3_5_c2_c0_2, v); else write_reg(tcr_el1, v); break;
	case S1_SCTLR:	if (vhe) write_reg(s3_5_c1_c0_0, v); else write_reg(sctlr_el1, v); break;
	case S1_MAIR:	if (vhe) write_reg(s3_5_c10_c2_0, v); else write_reg(mair_el1, v); break;
	case S1_TCR2:
		write_reg(s3_4_c1_c2_2, HCRX_TCR2EN);	/* HCRX_EL2: without it TCR2_EL1 has no effect */
		if (vhe) write_reg(s3_5_c2_c0_3, v); else write_reg(s3_0_c2_c0_3, v);
		break;
	case S1_PIR:	if (vhe) write_reg(s3_5_c10_c2_3, v); else write_reg(s3_0_c10_c2_3, v); break;
	case S1_PIRE0:	if (vhe) write_reg(s3_5_c10_c2_2, v); else write_reg(s3_0_c10_c2_2, v); break;
	case S1_PAN:	if (v) asm volatile("msr pan, #1"); else asm volatile("msr pan, #0"); break;
	}
	isb();
}

static void run_l2(volatile struct mailbox *m, const struct call *c)
{
	context.x[0] = c->a0;
	context.x[1] = c->a1;
	context.x[2] = c->a2;
	context.x[3] = c->a3;
	context.x[4] = c->a4;
	context.pc = c->a5;
	l1_run(&context);
	m->result[0] = context.esr;
	m->result[1] = context.far;
	m->result[2] = context.hpfar;
	m->result[3] = context.elr;
	m->result[4] = context.x[0];
	m->result[5] = context.x[2];
	m->result[6] = context.x[6];
}

/* (root, nested IPA, canonical IPA, size, level, attributes, window): the output wraps at the window. */
static void map(const struct call *c)
{
	u64 leaf = 1UL << (12 + 9 * (3 - c->a4)), window = c->a6 ? c->a6 : c->a3;

	for (u64 o = 0; o < c->a3; o += leaf)
		set_leaf(c->a0, c->a1 + o, c->a2 + o % window, c->a4, c->a5);
}

/* (root, nested IPA, size, level) */
static void unmap(const struct call *c)
{
	u64 leaf = 1UL << (12 + 9 * (3 - c->a3));

	for (u64 o = 0; o < c->a2; o += leaf)
		set_leaf(c->a0, c->a1 + o, 0, c->a3, 0);
}

static void info(volatile struct mailbox *m)
{
	m->result[0] = read_reg(CurrentEL);
	m->result[1] = read_reg(hcr_el2);
	m->result[2] = read_reg(id_aa64mmfr0_el1);
	m->result[3] = read_reg(id_aa64mmfr1_el1);
	m->result[4] = read_reg(id_aa64mmfr2_el1);
	m->result[5] = read_reg(s3_0_c0_c7_4);		/* ID_AA64MMFR4_EL1 */
	m->result[6] = read_reg(vtcr_el2);
	m->result[7] = read_reg(id_aa64isar0_el1);
}

void l1_main(void)
{
	volatile struct mailbox *m = (volatile struct mailbox *)MAILBOX;
	volatile u64 *doorbell = (volatile u64 *)DOORBELL;
	u64 hcr = HCR_RW | HCR_VM, vhe = 0;

	for (u64 i = 0; i < (u64)(l2_code_end - l2_code); i += 4)
		*(volatile unsigned *)(L2_CODE + i) = *(volatile unsigned *)(l2_code + i);
	if (read_reg(s3_0_c0_c7_4) >> 24 & 15)		/* E2H0 not implemented: E2H is 1 */
		vhe = HCR_E2H;
	hcr |= vhe;
	write_reg(hcr_el2, hcr);
	isb();
	set_stage1(S1_SCTLR, SCTLR_RES1, vhe);

	for (;;) {
		struct call c;
		u64 command;

		*doorbell = 0;
		dsb();
		command = m->command;
		c.a0 = m->argument[0];
		c.a1 = m->argument[1];
		c.a2 = m->argument[2];
		c.a3 = m->argument[3];
		c.a4 = m->argument[4];
		c.a5 = m->argument[5];
		c.a6 = m->argument[6];
		switch (command) {
		case CMD_SET_STAGE2: {			/* (root or 0, VMID, VTCR_EL2) */
			u64 root = c.a0 ? c.a0 : c.a2 & TG0 ? new_large_table(c.a2) : new_table();

			write_reg(vtcr_el2, c.a2);
			write_reg(vttbr_el2, root | (c.a1 << 48));
			isb();
			m->result[0] = root;
			m->result[1] = read_reg(vttbr_el2);
			m->result[2] = read_reg(vtcr_el2);
			break;
		}
		case CMD_VNCR:				/* (x0 to x4, pc, VNCR_EL2): L2 is a hypervisor */
			write_reg(s3_4_c2_c2_0, c.a6);
			write_reg(hcr_el2, hcr | HCR_NESTED);
			isb();
			/* fall through */
		case CMD_RUN:				/* (x0 to x4, pc) */
			run_l2(m, &c);
			write_reg(hcr_el2, hcr);
			isb();
			break;
		case CMD_TLBI_EL2:			/* (scope, value, HCR_EL2.TGE) */
			invalidate_el2(c.a0, c.a1, c.a2 ? hcr | HCR_TGE : hcr);
			write_reg(hcr_el2, hcr);
			isb();
			break;
		case CMD_TLBI:				/* (kind, value) */
			invalidate(c.a0, c.a1);
			break;
		case CMD_AT:				/* (operation, VA) */
			m->result[0] = translate(c.a0, c.a1);
			break;
		case CMD_STAGE1:			/* (register, value) */
			set_stage1(c.a0, c.a1, vhe);
			break;
		case CMD_MAP:
			if (read_reg(vtcr_el2) & TG0)
				fill_large(c.a0, c.a1, c.a2, c.a3, c.a4, c.a5, c.a6 ? c.a6 : c.a3);
			else
				map(&c);
			m->result[0] = pool;
			break;
		case CMD_UNMAP:
			if (read_reg(vtcr_el2) & TG0)
				fill_large(c.a0, c.a1, 0, c.a2, c.a3, 0, c.a2);
			else
				unmap(&c);
			break;
		case CMD_POKE:				/* (canonical IPA, value) */
			*(volatile u64 *)c.a0 = c.a1;
			break;
		case CMD_PEEK: {			/* (canonical IPA) */
			u64 value = *(volatile u64 *)c.a0;

			m->result[0] = value;
			break;
		}
		case CMD_VM:				/* (HCR_EL2.VM) */
			hcr = c.a0 ? hcr | HCR_VM : hcr & ~HCR_VM;
			write_reg(hcr_el2, hcr);
			isb();
			break;
		case CMD_INFO:
			info(m);
			break;
		}
		dsb();
	}
}
