/*
 * The reader of scenario scripts: one command a line, its echo `> LINE`, then what it prints.
 *
 * docs/scenario-language.md is the language. The strict reader is the model's: this one takes what it is
 * given, so scripts go through the model's first.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "vmm.h"

#define MOST_WORDS	12
#define ESR_CLASS_HVC	0x16
#define WORDS(list)	(sizeof(list) / sizeof((list)[0]))

/* What the script keeps from line to line. */
static u64 vtcr = 0x80023559UL, root, l2_code = L2_CODE_NESTED;

/* What L1 has on a host of these pages unless the script says otherwise: one root table, levels 2 and 3. */
static const struct { const char *name; u64 page, vtcr; } granules[] = {
	{ "4K", 4096, 0x80023559UL }, { "16K", 16384, 0x8002b55cUL }, { "64K", 65536, 0x80027559UL },
};
static int vtcr_said;

static const char *const at_operations[] = {
	[AT_S1E1R] = "s1e1r", [AT_S1E1W] = "s1e1w", [AT_S1E0R] = "s1e0r", [AT_S1E0W] = "s1e0w",
	[AT_S1E1RP] = "s1e1rp", [AT_S1E1WP] = "s1e1wp", [AT_S1E2R] = "s1e2r", [AT_S1E2W] = "s1e2w",
	[AT_S12E1R] = "s12e1r", [AT_S12E1W] = "s12e1w", [AT_S12E0R] = "s12e0r", [AT_S12E0W] = "s12e0w",
	[AT_S1E1A] = "s1e1a", [AT_S1E2A] = "s1e2a",
};

static const char *const stage1_registers[] = {
	[S1_TTBR0] = "ttbr0", [S1_TTBR1] = "ttbr1", [S1_TCR] = "tcr", [S1_SCTLR] = "sctlr", [S1_MAIR] = "mair",
	[S1_TCR2] = "tcr2", [S1_PIR] = "pir", [S1_PIRE0] = "pire0", [S1_PAN] = "pan",
};

static const char *const el2_scopes[] = {
	[TLBI2_ALL] = "all", [TLBI2_VA] = "va", [TLBI2_VAA] = "vaa", [TLBI2_ASID] = "asid", [TLBI2_RVA] = "rva",
	[TLBI2_RVAA] = "rvaa",
};

static u64 number(const char *word)
{
	char *end;
	u64 v = strtoul(word, &end, 0);

	switch (*end) {
	case 'k': case 'K': return v << 10;
	case 'M': return v << 20;
	case 'G': return v << 30;
	}
	return v;
}

/* Descriptor bits of the letters: r and w permissions, no x execute never, a access flag clear, c contiguous. */
static u64 attributes(const char *letters)
{
	u64 bits = 0xfUL << 2 | 3UL << 8;	/* normal write-back, inner shareable */

	bits |= strchr(letters, 'r') ? 1UL << 6 : 0;
	bits |= strchr(letters, 'w') ? 1UL << 7 : 0;
	bits |= strchr(letters, 'x') ? 0 : 2UL << 53;
	bits |= strchr(letters, 'a') ? 0 : 1UL << 10;
	bits |= strchr(letters, 'c') ? 1UL << 52 : 0;
	return bits;
}

static int index_of(const char *const *list, int count, const char *word, const char *what)
{
	for (int i = 0; i < count; i++)
		if (!strcmp(list[i], word))
			return i;
	die("no %s %s", what, word);
	return -1;
}

static void set_root(char **word)
{
	struct mailbox *m = l1(CMD_SET_STAGE2, 3, !strcmp(word[1], "new") ? 0UL : number(word[1]),
			       number(word[2]), vtcr);

	root = m->result[0];
	printf("s2 root=%#lx vttbr=%#lx vtcr=%#lx\n", root, m->result[1], m->result[2]);
}

static void touch(char **word, int count)
{
	u64 va = number(word[2]), stride = number(word[3]), times = count > 4 ? number(word[4]) : 1;
	u64 operation = word[1][0] == 'w' ? 1 : word[1][0] == 'x' ? 2 : 0, begun = now();
	const u64 x[] = { va, stride, times, operation, va ^ 0x5a5aUL };
	struct mailbox *m = vm.mailbox;

	if (!continue_l2(l2_code, x))
		m = l1(CMD_RUN, 6, x[0], x[1], x[2], x[3], x[4], l2_code);

	printf("touch %s addr=%#lx stride=%#lx count=%lu : esr=%#lx far=%#lx hpfar=%#lx elr=%#lx left=%lu "
	       "sum=%#lx ns=%lu\n", word[1], va, stride, times, m->result[0], m->result[1], m->result[2],
	       m->result[3], m->result[5], m->result[6], now() - begun);
}

/* L2 is a hypervisor that reads or writes a register, which stands in the page of VNCR_EL2. */
static void access_register(char **word)
{
	u64 write = word[1][0] == 'w', va = number(word[2]), begun = now();
	struct mailbox *m = l1(CMD_VNCR, 7, 0UL, 0UL, 0UL, 0UL, va ^ 0x5a5aUL,
			       l2_code + (write ? L2_WRITE_REGISTER : L2_READ_REGISTER), va);

	printf("touch vncr-%s addr=%#lx stride=%#lx count=%lu : esr=%#lx far=%#lx hpfar=%#lx elr=%#lx left=%lu "
	       "sum=%#lx ns=%lu\n", word[1], va, 0UL, 1UL, m->result[0], m->result[1], m->result[2], m->result[3],
	       m->result[0] >> 26 != ESR_CLASS_HVC ? 1UL : 0UL, write ? 0UL : m->result[6], now() - begun);
}

static void set_stage1(char **word, int count)
{
	for (int i = 1; i < count; i++) {
		char *value = strchr(word[i], '=');

		if (!value)
			die("no value in %s", word[i]);
		*value++ = 0;
		l1(CMD_STAGE1, 2, (u64)index_of(stage1_registers, WORDS(stage1_registers), word[i], "register"),
		   number(value));
	}
}

/* The page size that the script is written for: a check of the running L0, and L1's own granule. */
static void check_granule(const char *name)
{
	for (unsigned i = 0; i < WORDS(granules); i++) {
		if (strcmp(granules[i].name, name))
			continue;
		if (granules[i].page != vm.page)
			die("granule %s: this kernel has pages of %lu", name, vm.page);
		if (!vtcr_said)
			vtcr = granules[i].vtcr;
		return;
	}
	die("no granule %s", name);
}

/* Bytes of a page of L1's tables. */
static u64 l1_page(void)
{
	u64 tg0 = vtcr >> 14 & 3;

	return tg0 == 0 ? 4096 : tg0 == 2 ? 16384 : 65536;
}

/* Commands of L1 and L2; 0 if the word is none. */
static int guest_command(char **word, int count)
{
	const char *c = word[0];
	u64 begun = now();

	if (!strcmp(c, "s2"))
		set_root(word);
	else if (!strcmp(c, "code")) {
		l2_code = count > 1 ? number(word[1]) : L2_CODE_NESTED;
		l1(CMD_MAP, 7, root, l2_code, L2_CODE, l1_page(), 3UL, attributes("rx"), 0UL);
	} else if (!strcmp(c, "map")) {
		struct mailbox *m = l1(CMD_MAP, 7, root, number(word[1]), number(word[2]), number(word[3]),
				       number(word[4]), attributes(word[5]), number(word[6]));

		printf("map pool=%#lx ns=%lu\n", m->result[0], now() - begun);
	} else if (!strcmp(c, "unmap"))
		l1(CMD_UNMAP, 4, root, number(word[1]), number(word[2]), number(word[3]));
	else if (!strcmp(c, "touch"))
		touch(word, count);
	else if (!strcmp(c, "vncr"))
		access_register(word);
	else if (!strcmp(c, "tlbi2") || !strcmp(c, "tlbi2-tge0"))
		l1(CMD_TLBI_EL2, 3, (u64)index_of(el2_scopes, WORDS(el2_scopes), word[1], "scope"), number(word[2]),
		   (u64)!strcmp(c, "tlbi2"));
	else if (!strcmp(c, "tlbi")) {
		l1(CMD_TLBI, 2, number(word[1]), number(word[2]));
		printf("tlbi kind=%s value=%s ns=%lu\n", word[1], word[2], now() - begun);
	} else if (!strcmp(c, "at"))
		printf("par %#lx\n", l1(CMD_AT, 2, (u64)index_of(at_operations, WORDS(at_operations), word[1],
				"AT"), number(word[2]))->result[0]);
	else if (!strcmp(c, "s1"))
		set_stage1(word, count);
	else if (!strcmp(c, "vm"))
		l1(CMD_VM, 1, number(word[1]));
	else if (!strcmp(c, "poke"))
		l1(CMD_POKE, 2, number(word[1]), number(word[2]));
	else if (!strcmp(c, "peek"))
		printf("peek %s = %#lx\n", word[1], l1(CMD_PEEK, 1, number(word[1]))->result[0]);
	else if (!strcmp(c, "load2"))
		load_second_vcpu();
	else if (!strcmp(c, "nop"))
		l1(CMD_NOP, 0);
	else
		return 0;
	return 1;
}

/* Commands of the VMM on its memslot and what it prints; 0 if the word is none. */
static int vmm_command(char **word, int count, char *line)
{
	const char *c = word[0];
	u64 begun = now();

	if (!strcmp(c, "log")) {
		vm.slot_flags = number(word[1]) ? KVM_MEM_LOG_DIRTY_PAGES : 0;
		set_slot(vm.ram_size);
		printf("log %s ns=%lu\n", word[1], now() - begun);
	} else if (!strcmp(c, "slot")) {
		set_slot(number(word[1]) ? vm.ram_size : 0);
		printf("slot %s ns=%lu\n", word[1], now() - begun);
	} else if (!strcmp(c, "dump"))
		dump_tables(word[1], count > 2);
	else if (!strcmp(c, "pagemap"))
		show_pagemap(number(word[1]), number(word[2]));
	else if (!strcmp(c, "idle"))
		mark_idle(number(word[1]), number(word[2]));
	else if (!strcmp(c, "idleget"))
		show_idle(number(word[1]), number(word[2]));
	else if (!strcmp(c, "mark"))
		append_to_file(TRACING "trace_marker", line + 5);
	else if (!strcmp(c, "w")) {
		char *text = strstr(line, word[1]) + strlen(word[1]);

		append_to_file(word[1], *text ? text + 1 : "");
	} else if (!strcmp(c, "cat"))
		print_file(word[1], "cat");
	else if (!strcmp(c, "trace")) {		/* printed, then emptied */
		print_file(TRACING "trace", word[1]);
		close(open(TRACING "trace", O_WRONLY | O_TRUNC));
		printf("--- end\n");
	} else
		return !strcmp(c, "echo");
	return 1;
}

static void execute(char **word, int count, char *line)
{
	const char *c = word[0];

	if (!strcmp(c, "mem"))
		vm.ram_size = number(word[1]);
	else if (!strcmp(c, "vcpus"))
		vm.vcpus = number(word[1]);
	else if (!strcmp(c, "start"))
		start(word[1], number(word[2]), number(word[3]));
	else if (!strcmp(c, "granule"))
		check_granule(word[1]);
	else if (!strcmp(c, "vtcr")) {
		vtcr = number(word[1]);
		vtcr_said = 1;
	} else if (!strcmp(c, "codeat"))
		l2_code = number(word[1]);
	else if (!slot_command(word, number) && !vcpu_command(word, l2_code) &&
		 !guest_command(word, count) && !vmm_command(word, count, line) &&
		 !host_works(c, number(word[1]), number(word[2])) &&
		 !change_memory(c, number(word[1]), number(word[2]), word[3]))
		die("no command %s", c);
}

int main(int argc, char **argv)
{
	char line[512], copy[512], *word[MOST_WORDS];

	if (argc > 1 && !freopen(argv[1], "r", stdin))
		die("open %s", argv[1]);
	vm.page = sysconf(_SC_PAGESIZE);
	setvbuf(stdout, 0, _IOFBF, 1 << 16);
	while (fgets(line, sizeof(line), stdin)) {
		int count = 0;

		line[strcspn(line, "\n")] = 0;
		strcpy(copy, line);
		for (char *w = strtok(line, " \t"); w && count < MOST_WORDS; w = strtok(0, " \t"))
			word[count++] = w;
		if (!count || word[0][0] == '#')
			continue;
		for (int i = count; i < MOST_WORDS; i++)
			word[i] = "0";
		printf("> %s\n", copy);
		fflush(stdout);
		if (!strcmp(word[0], "quit"))
			break;
		execute(word, count, copy);
		fflush(stdout);
	}
	printf("VMM done\n");
	fflush(stdout);
	return 0;
}
