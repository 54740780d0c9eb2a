/* The parts of the VMM that runs in L0's user space. Every line it prints has a pattern in formats/records.py. */
#ifndef VMM_H
#define VMM_H
#include <stdarg.h>
#include <linux/kvm.h>
#include "mailbox.h"

#define TRACING "/sys/kernel/tracing/"

struct vm {
	int kvm, fd, vcpu, second, vcpus;
	int current, all[MOST_VCPUS];
	struct kvm_vcpu_init init;
	char *ram;
	u64 ram_size, slot_flags, page;		/* page: bytes of a page of L0 */
	struct kvm_run *run;
	struct mailbox *mailbox;
};

extern struct vm vm;

/* vm.c: the machine, and L1 on its first vCPU */
void die(const char *format, ...);
int checked_ioctl(int fd, unsigned long request, void *argument, const char *what);
void start(const char *backing, int e2h0, int ipa_bits);
void set_slot(u64 size);
void load_second_vcpu(void);
void ask_l1(enum command command, int count, va_list words);
struct mailbox *l1(enum command command, int count, ...);
int run_vcpu(int vcpu, struct kvm_run *run, int stays);
struct kvm_run *map_run(int vcpu);
void set_register(int vcpu, u64 id, u64 value);

/* slots.c: memslots besides the first, dirty logs and rings */
#define MOST_SLOTS	8
void enable_logging(void);
void harvest_rings(void);
int slot_command(char **word, u64 (*number)(const char *));

/* vcpus.c: more than one, and where each stands */
int vcpu_command(char **word, u64 l2_code);
int continue_l2(u64 pc, const u64 *x);
void vcpu_to_l1(void);

/* memory.c: system calls on the memory behind a canonical range */
int change_memory(const char *what, u64 canonical_ipa, u64 size, const char *letters);
void mark_idle(u64 canonical_ipa, u64 pages);
void show_idle(u64 canonical_ipa, u64 pages);

/* reclaim.c: what the host does to the VMM's memory by itself */
int host_works(const char *what, u64 canonical_ipa, u64 size);

/* observe.c: what is printed besides */
u64 now(void);
void print_file(const char *path, const char *tag);
void append_to_file(const char *path, const char *text);
void dump_tables(const char *tag, int shadows_only);
void show_pagemap(u64 canonical_ipa, u64 pages);
u64 frame_word(int pagemap, u64 canonical_ipa);
#endif
