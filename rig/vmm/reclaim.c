/* What the host does to the VMM's memory by itself: merging, collapsing, migrating; asked for by a script. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "vmm.h"

#define PAGE		4096UL
#define KSM		"/sys/kernel/mm/ksm/"
#define KHUGEPAGED	"/sys/kernel/mm/transparent_hugepage/khugepaged/"
#define SWAP_DISK	"/dev/ram0"
#define MPOL_MF_MOVE	2
#define KSM_SCANS	4	/* checksum, insertion, merge, and one that finds nothing left */
#define KHUGEPAGED_SCANS 2
#define QUIET_US	10000	/* much more than a scan that finds nothing to collapse */

static void set_file(const char *path, const char *text)
{
	int f = open(path, O_WRONLY);

	if (f < 0 || write(f, text, strlen(text)) < 0)
		die("write %s to %s", text, path);
	close(f);
}

static long number_in(const char *path)
{
	char text[32] = "";
	int f = open(path, O_RDONLY);

	if (f < 0 || read(f, text, sizeof(text) - 1) < 0)
		die("read %s", path);
	close(f);
	return atol(text);
}

/* Let a thread of the kernel go over all memory that was given to it, so many times. */
static void wait_for(const char *counter, long scans)
{
	long last = number_in(counter) + scans;

	for (int i = 0; number_in(counter) < last; i++) {
		if (i == 3000)
			die("no %ld more in %s", scans, counter);
		usleep(2000);
	}
}

/* Let a thread of the kernel come to its rest, after so many scans or more. */
static void wait_for_rest(const char *counter, long least)
{
	long scans;

	do {
		scans = number_in(counter);
		usleep(QUIET_US);
	} while (scans < least || number_in(counter) != scans);
}

static void merge(void)
{
	set_file(KSM "smart_scan", "0");	/* which leaves out pages that did not merge before, more scans each time */
	set_file(KSM "sleep_millisecs", "1");
	set_file(KSM "pages_to_scan", "100000");
	set_file(KSM "run", "1");
	wait_for(KSM "full_scans", KSM_SCANS);
	set_file(KSM "run", "0");
	printf("ksm shared=%ld sharing=%ld\n", number_in(KSM "pages_shared"), number_in(KSM "pages_sharing"));
}

static void collapse_all(void)
{
	long scans;

	set_file(KHUGEPAGED "alloc_sleep_millisecs", "1");
	set_file(KHUGEPAGED "pages_to_scan", "100000");
	set_file(KHUGEPAGED "scan_sleep_millisecs", "1");
	wait_for(KHUGEPAGED "full_scans", KHUGEPAGED_SCANS);
	scans = number_in(KHUGEPAGED "full_scans");
	set_file(KHUGEPAGED "scan_sleep_millisecs", "4000000000");	/* which wakes it once more */
	wait_for_rest(KHUGEPAGED "full_scans", scans + 1);
	printf("khugepaged collapsed=%ld\n", number_in(KHUGEPAGED "pages_collapsed"));
}

/* The node of a page, or with one to move it to, whether it went there; negative: an errno. */
static int page_node(u64 canonical_ipa, const int *target)
{
	void *page = vm.ram + (canonical_ipa - RAM_BASE);
	int status = -1;
	long r = syscall(SYS_move_pages, 0, 1UL, &page, target, &status, MPOL_MF_MOVE);

	return r ? -1000 : status;
}

/* Each page to the other of two nodes, unless it went there already with the huge page it is part of. */
static void migrate(u64 canonical_ipa, u64 size)
{
	u64 pages = size / PAGE, moved = 0;
	signed char *before = malloc(pages);

	for (u64 i = 0; i < pages; i++)
		before[i] = page_node(canonical_ipa + i * PAGE, 0);
	for (u64 i = 0; i < pages; i++) {
		int target = !before[i];

		if (before[i] < 0 || page_node(canonical_ipa + i * PAGE, 0) != before[i])
			continue;
		moved += page_node(canonical_ipa + i * PAGE, &target) == target;
	}
	printf("migrate cipa=%#lx size=%#lx moved=%lu\n", canonical_ipa, size, moved);
	free(before);
}

/* A RAM disk as swap space, or none; what was swapped out comes back then. A second time nothing happens. */
static void set_swap(int on)
{
	static unsigned header[PAGE / 4];
	static int is_on;
	u64 bytes;
	int f;

	if (on == is_on)
		return;
	is_on = on;
	if (!on) {
		if (swapoff(SWAP_DISK))
			die("swapoff");
		return;
	}
	f = open(SWAP_DISK, O_RDWR);
	if (f < 0)
		die("open %s", SWAP_DISK);
	checked_ioctl(f, BLKGETSIZE64, &bytes, "BLKGETSIZE64");
	header[256] = 1;			/* version */
	header[257] = bytes / PAGE - 1;		/* last page */
	memcpy((char *)header + PAGE - 10, "SWAPSPACE2", 10);
	if (write(f, header, PAGE) != PAGE || fsync(f) || close(f) || swapon(SWAP_DISK, 0))
		die("swap on %s", SWAP_DISK);
}

/* 0 if there is no such command. */
int host_works(const char *what, u64 canonical_ipa, u64 size)
{
	if (!strcmp(what, "ksm"))
		merge();
	else if (!strcmp(what, "khugepaged"))
		collapse_all();
	else if (!strcmp(what, "swap"))
		set_swap(canonical_ipa != 0);
	else if (!strcmp(what, "migrate"))
		migrate(canonical_ipa, size);
	else
		return 0;
	return 1;
}
