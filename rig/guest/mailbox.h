/* What the VMM and the bare-metal L1 share: L1's memory map and the mailbox. */
#ifndef MAILBOX_H
#define MAILBOX_H
typedef unsigned long u64;

/* L1's memory, by canonical IPA. The model knows the same map (guest/layout.py). */
#define RAM_BASE	0x40000000UL		/* L1's image: entry and world switch */
#define STACK_TOP	(RAM_BASE + 0x40000UL)
#define L2_CODE		(RAM_BASE + 0x50000UL)	/* one page: L2's payload */
#define MAILBOX		(RAM_BASE + 0x60000UL)
#define TABLE_POOL	(RAM_BASE + 0x100000UL)	/* L1's stage-2 tables, one page after the other */
#define L2_HVC		0x3cUL			/* where in its page: its last HVC, its endless loop, its WFI */
#define L2_STAY		0x44UL
#define L2_WFI		0x48UL
#define L2_READ_REGISTER	0x50UL		/* one access of a register of EL2, then the HVC */
#define L2_WRITE_REGISTER	0x58UL
#define MOST_VCPUS	8			/* that have room for L1's stack */
#define DOORBELL	0x09000000UL		/* no memslot: a store here leaves to the VMM */

#define L2_CODE_NESTED	0x10000UL		/* nested IPA of L2's payload unless a script says otherwise */

/* Numbers of MAILBOX commands. Arguments and results stand with the code in l1.c. */
enum command {
	CMD_NOP, CMD_SET_STAGE2, CMD_RUN, CMD_TLBI, CMD_MAP, CMD_UNMAP,
	CMD_POKE, CMD_PEEK, CMD_INFO, CMD_VM, CMD_AT, CMD_STAGE1,
	CMD_VNCR, CMD_TLBI_EL2,
};

/* Operand KIND of the script's `tlbi`. */
enum tlbi {
	TLBI_IPAS2E1IS, TLBI_IPAS2LE1IS, TLBI_RIPAS2E1IS, TLBI_RIPAS2LE1IS,
	TLBI_VMALLS12E1IS, TLBI_ALLE1IS, TLBI_VMALLE1IS, TLBI_IPAS2E1, TLBI_VMALLS12E1,
};

/* Operand SCOPE of the script's `tlbi2`. */
enum tlbi_el2 {
	TLBI2_ALL, TLBI2_VA, TLBI2_VAA, TLBI2_ASID, TLBI2_RVA, TLBI2_RVAA,
};

/* Operand OP of the script's `at`. */
enum at {
	AT_S1E1R, AT_S1E1W, AT_S1E0R, AT_S1E0W, AT_S1E1RP, AT_S1E1WP,
	AT_S1E2R, AT_S1E2W, AT_S12E1R, AT_S12E1W, AT_S12E0R, AT_S12E0W,
	AT_S1E1A, AT_S1E2A,
};

/* Registers that the script's `s1` sets, for L2 but for PAN, which is L1's own. */
enum stage1 {
	S1_TTBR0, S1_TTBR1, S1_TCR, S1_SCTLR, S1_MAIR, S1_TCR2, S1_PIR, S1_PIRE0, S1_PAN,
};

struct mailbox {
	u64 command;
	u64 argument[8];
	u64 result[10];
};
#endif
