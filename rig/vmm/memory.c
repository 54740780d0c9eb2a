/* What a script does to the VMM's own memory. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "vmm.h"

#ifndef MADV_COLLAPSE				/* older headers; Linux 6.1 on */
#define MADV_COLLAPSE	25
#endif
#define IDLE_BITMAP	"/sys/kernel/mm/page_idle/bitmap"
#define RET_INSTRUCTION	0xd65f03c0U

static const struct { const char *name; int advice; } advices[] = {
	{ "dontneed", MADV_DONTNEED }, { "hugepage", MADV_HUGEPAGE }, { "nohugepage", MADV_NOHUGEPAGE },
	{ "collapse", MADV_COLLAPSE }, { "mergeable", MADV_MERGEABLE }, { "pageout", MADV_PAGEOUT },
};

static int apply(const char *what, char *at, u64 canonical_ipa, u64 size, const char *letters)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;

	for (unsigned i = 0; i < sizeof(advices) / sizeof(advices[0]); i++)
		if (!strcmp(what, advices[i].name))
			return madvise(at, size, advices[i].advice);
	if (!strcmp(what, "munmap"))
		return munmap(at, size);
	if (!strcmp(what, "mmap"))
		return mmap(at, size, PROT_READ | PROT_WRITE, flags, -1, 0) == at ? 0 : -1;
	if (!strcmp(what, "mprotect"))
		return mprotect(at, size, (strchr(letters, 'r') ? PROT_READ : 0) |
					  (strchr(letters, 'w') ? PROT_WRITE : 0));
	for (u64 o = 0; o < size; o += vm.page) {
		if (!strcmp(what, "write"))
			*(volatile u64 *)(at + o) = canonical_ipa + o;
		else
			*(volatile unsigned *)(at + o) = RET_INSTRUCTION;
	}
	return 0;
}

/* 0 if there is no such command. */
int change_memory(const char *what, u64 canonical_ipa, u64 size, const char *letters)
{
	static const char others[] = " munmap mmap mprotect write ret ";
	char word[32];
	int known = 0, r;
	u64 begun;

	for (unsigned i = 0; i < sizeof(advices) / sizeof(advices[0]); i++)
		known |= !strcmp(what, advices[i].name);
	snprintf(word, sizeof(word), " %s ", what);
	if (!known && !strstr(others, word))
		return 0;
	begun = now();
	r = apply(what, vm.ram + (canonical_ipa - RAM_BASE), canonical_ipa, size, letters);
	printf("%s cipa=%#lx size=%#lx r=%d ns=%lu\n", what, canonical_ipa, size, r, now() - begun);
	return 1;
}

/* Go over the frames behind canonical pages in the bitmap of idle pages: set or show each one's bit. */
static void over_idle(u64 canonical_ipa, u64 pages, int set)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY), bitmap = open(IDLE_BITMAP, set ? O_WRONLY : O_RDONLY);

	for (u64 i = 0; i < pages; i++) {
		u64 at = canonical_ipa + i * vm.page, frame = frame_word(pagemap, at), bits;
		long r;

		if (!(frame >> 63))
			continue;
		frame &= (1UL << 55) - 1;
		bits = 1UL << (frame & 63);
		if (set) {
			r = pwrite(bitmap, &bits, 8, frame / 64 * 8);
			printf("idle set cipa=%#lx r=%ld\n", at, r);
		} else {
			r = pread(bitmap, &bits, 8, frame / 64 * 8);
			printf("idle get cipa=%#lx r=%ld idle=%lu\n", at, r, bits >> (frame & 63) & 1);
		}
	}
	close(pagemap);
	close(bitmap);
}

void mark_idle(u64 canonical_ipa, u64 pages)
{
	over_idle(canonical_ipa, pages, 1);
}

void show_idle(u64 canonical_ipa, u64 pages)
{
	over_idle(canonical_ipa, pages, 0);
}
