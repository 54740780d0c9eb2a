/* What a script prints: page tables, host frames, the dirty log, files of the kernel. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "vmm.h"

#define KVM_DEBUG	"/sys/kernel/debug/kvm"

u64 now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000UL + t.tv_nsec;
}

/* Files of this VM are named without its folder. */
static const char *short_name(const char *path)
{
	return strncmp(path, KVM_DEBUG "/", sizeof(KVM_DEBUG)) ? path : strchr(path + sizeof(KVM_DEBUG), '/') + 1;
}

void print_file(const char *path, const char *tag)
{
	static char buffer[1 << 16];
	int fd = open(path, O_RDONLY);
	ssize_t n;

	printf("--- %s %s\n", tag, short_name(path));
	if (fd < 0) {
		printf("(cannot open: %s)\n", strerror(errno));
		return;
	}
	fflush(stdout);
	while ((n = read(fd, buffer, sizeof(buffer))) > 0)
		if (write(1, buffer, n) < 0)
			break;
	close(fd);
}

void append_to_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_APPEND);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		printf("WRITE FAILED %s <- %s: %s\n", path, text, strerror(errno));
	if (fd >= 0)
		close(fd);
}

void dump_tables(const char *tag, int shadows_only)
{
	char folder[300] = "", path[512];
	DIR *all = opendir(KVM_DEBUG);
	struct dirent *entry;

	while (all && (entry = readdir(all)))		/* PID-FD of the VM */
		if (strchr(entry->d_name, '-') && atoi(entry->d_name) == getpid())
			snprintf(folder, sizeof(folder), KVM_DEBUG "/%s", entry->d_name);
	if (all)
		closedir(all);
	if (!shadows_only) {
		snprintf(path, sizeof(path), "%s/stage2_page_tables", folder);
		print_file(path, tag);
	}
	for (int i = 0; i < 2 * vm.vcpus; i++) {
		snprintf(path, sizeof(path), "%s/nested/nested_mmu%d", folder, i);
		print_file(path, tag);
	}
	printf("--- end\n");
}

/* The word of /proc/self/pagemap of a canonical page: bit 63 present, bits 54:0 the frame. */
u64 frame_word(int pagemap, u64 canonical_ipa)
{
	u64 word = 0, hva = (u64)vm.ram + canonical_ipa - RAM_BASE;

	if (pread(pagemap, &word, 8, hva / vm.page * 8) != 8)
		die("pagemap");
	return word;
}

void show_pagemap(u64 canonical_ipa, u64 pages)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);

	for (u64 i = 0; i < pages; i++) {
		u64 at = canonical_ipa + i * vm.page, word = frame_word(fd, at);

		if (word >> 63)
			printf("pagemap cipa=%#lx hpa=%#lx\n", at, (word & ((1UL << 55) - 1)) * vm.page);
		else
			printf("pagemap cipa=%#lx none\n", at);
	}
	close(fd);
}
