/* Memslots besides the first, and the ways to log what the guest writes: bitmap, bitmap with CLEAR, ring. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include "vmm.h"

#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL		/* older headers; Linux 6.2 and 6.4 on */
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL		223
#endif
#ifndef KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
#define KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP	225
#endif
#ifndef KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE
#define KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE	228
#endif
#define RING_PAGE	64			/* arm64's KVM_DIRTY_LOG_PAGE_OFFSET: 0 in older headers */
#define MOST_DIRTY	64			/* pages listed; the total counts all */
#define MOST_RING	1024			/* the same of a ring */

/* What the script asks for before `start`. */
static u64 eager, manual, ring_entries, ring_bitmap;

static struct slot { u64 base, size, memory, flags; } slots[MOST_SLOTS];
static u64 harvested[MOST_VCPUS];		/* index of the next entry of each ring to be read */

static void enable(u64 capability, u64 value, const char *what)
{
	struct kvm_enable_cap cap = { .cap = capability, .args = { value } };

	checked_ioctl(vm.fd, KVM_ENABLE_CAP, &cap, what);
}

/* Capabilities that must be there before memslots and vCPUs are. */
void enable_logging(void)
{
	slots[0] = (struct slot){ RAM_BASE, vm.ram_size, 0, 0 };
	if (eager)
		enable(KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE, eager, "EAGER_SPLIT_CHUNK_SIZE");
	if (manual)
		enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, manual, "MANUAL_DIRTY_LOG_PROTECT2");
	if (ring_entries)
		enable(KVM_CAP_DIRTY_LOG_RING_ACQ_REL, ring_entries * sizeof(struct kvm_dirty_gfn), "DIRTY_LOG_RING");
	if (ring_bitmap)
		enable(KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 0, "DIRTY_LOG_RING_WITH_BITMAP");
}

static struct slot *slot_at(u64 n)
{
	if (n >= MOST_SLOTS)
		die("no slot %lu", n);
	return &slots[n];
}

/* Make, move, delete a memslot, or switch its log: a window onto memory behind the first one. */
static void set_memslot(u64 n, u64 base, u64 size, u64 memory, const char *letters)
{
	struct slot *slot = slot_at(n), old = *slot;
	struct kvm_userspace_memory_region region;
	u64 begun = now();

	/* A ring may still hold pages of a slot that goes: it keeps its place. */
	*slot = (struct slot){ size ? base : old.base, size, size ? memory - RAM_BASE : old.memory, 0 };
	slot->flags |= strchr(letters, 'd') ? KVM_MEM_LOG_DIRTY_PAGES : 0;
	slot->flags |= strchr(letters, 'r') ? KVM_MEM_READONLY : 0;
	region = (struct kvm_userspace_memory_region){
		.slot = n, .flags = slot->flags, .guest_phys_addr = base, .memory_size = size,
		.userspace_addr = (u64)vm.ram + slot->memory,
	};
	checked_ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region, "SET_USER_MEMORY_REGION");
	printf("memslot %lu ns=%lu\n", n, now() - begun);
}

void show_dirty_log(u64 n)
{
	struct slot *slot = slot_at(n);
	u64 pages = slot->size / vm.page, total = 0, *bitmap = calloc(1, pages / 8 + 8), begun = now();
	struct kvm_dirty_log log = { .slot = n, .dirty_bitmap = bitmap };

	checked_ioctl(vm.fd, KVM_GET_DIRTY_LOG, &log, "GET_DIRTY_LOG");
	printf("getlog ns=%lu\n", now() - begun);
	printf("dirty:");
	for (u64 i = 0; i < pages; i++)
		if (bitmap[i / 64] >> (i % 64) & 1 && ++total <= MOST_DIRTY)
			printf(" %#lx", slot->base + i * vm.page);
	printf(" total=%lu\n", total);
	free(bitmap);
}

/* KVM_CLEAR_DIRTY_LOG of pages first to first + count - 1 (the ioctl takes whole words and a mask); all if none is said. */
static void clear_dirty_log(u64 n, u64 first, u64 count)
{
	u64 pages = slot_at(n)->size / vm.page, start = first & ~63UL, end, *mask, begun = now();
	struct kvm_clear_dirty_log log = { .slot = n };

	count = count ? count : pages - first;
	end = (first + count + 63) & ~63UL;
	end = end < pages ? end : pages;
	mask = calloc(1, (end - start) / 8 + 8);
	for (u64 i = first; i < first + count; i++)
		mask[(i - start) / 64] |= 1UL << i % 64;
	log.first_page = start;
	log.num_pages = end - start;
	log.dirty_bitmap = mask;
	checked_ioctl(vm.fd, KVM_CLEAR_DIRTY_LOG, &log, "CLEAR_DIRTY_LOG");
	printf("clearlog ns=%lu\n", now() - begun);
	free(mask);
}

/* Read what every vCPU's ring holds, mark it as read, and have KVM take it out and protect the pages again. */
void harvest_rings(void)
{
	for (int i = 0; i < vm.vcpus && i < MOST_VCPUS; i++) {
		static struct kvm_dirty_gfn *rings[MOST_VCPUS];
		struct kvm_dirty_gfn *entry;
		u64 total = 0;

		if (!rings[i])
			rings[i] = mmap(0, ring_entries * sizeof(*entry), PROT_READ | PROT_WRITE, MAP_SHARED,
					vm.all[i], vm.page * RING_PAGE);
		if (rings[i] == MAP_FAILED)
			die("mmap ring");
		printf("ring %d:", i);
		for (;; harvested[i]++) {
			entry = &rings[i][harvested[i] % ring_entries];
			if (!(__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
				break;
			if (++total <= MOST_RING)
				printf(" %#lx", slots[entry->slot].base + (u64)entry->offset * vm.page);
			__atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		}
		printf(" total=%lu\n", total);
	}
	printf("reset r=%d\n", checked_ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0, "RESET_DIRTY_RINGS"));
}

/* Commands on memslots and logs; 0 if the word is none. */
int slot_command(char **word, u64 (*number)(const char *))
{
	const char *c = word[0];

	if (!strcmp(c, "eager"))
		eager = number(word[1]);
	else if (!strcmp(c, "manual"))
		manual = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
			 (number(word[1]) ? KVM_DIRTY_LOG_INITIALLY_SET : 0);
	else if (!strcmp(c, "ring")) {
		ring_entries = number(word[1]);
		ring_bitmap = !strcmp(word[2], "bitmap");
	} else if (!strcmp(c, "memslot"))
		set_memslot(number(word[1]), number(word[2]), number(word[3]), number(word[4]), word[5]);
	else if (!strcmp(c, "getlog"))
		show_dirty_log(number(word[1]));
	else if (!strcmp(c, "clearlog"))
		clear_dirty_log(number(word[1]), number(word[2]), number(word[3]));
	else if (!strcmp(c, "harvest"))
		harvest_rings();
	else
		return 0;
	return 1;
}
