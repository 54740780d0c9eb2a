/* The VM: its first memslot at RAM_BASE, a GICv3 nobody uses, vCPUs with EL2 of which the first runs L1. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "vmm.h"

#ifndef KVM_CAP_ARM_EL2				/* older headers; Linux 6.16 on */
#define KVM_CAP_ARM_EL2		240
#define KVM_CAP_ARM_EL2_E2H0	241
#endif
#define FEATURE_EL2		7
#define FEATURE_EL2_E2H0	8
#define DISTRIBUTOR		0x08000000UL
#define REDISTRIBUTORS		0x080a0000UL
#define MOST_L1_FAULTS		3

asm(".section .rodata\n.global l1_image\nl1_image: .incbin \"l1.bin\"\n.global l1_image_end\nl1_image_end:\n"
    ".previous");
extern char l1_image[], l1_image_end[];

struct vm vm = { .vcpus = 1, .ram_size = 64UL << 20 };

void die(const char *format, ...)
{
	va_list words;

	va_start(words, format);
	printf("DIE ");
	vprintf(format, words);
	printf(" errno=%d (%s)\n", errno, strerror(errno));
	va_end(words);
	fflush(stdout);
	exit(1);
}

int checked_ioctl(int fd, unsigned long request, void *argument, const char *what)
{
	int r = ioctl(fd, request, argument);

	if (r < 0)
		die("%s", what);
	return r;
}

void set_slot(u64 size)
{
	struct kvm_userspace_memory_region region = {
		.flags = vm.slot_flags, .guest_phys_addr = RAM_BASE, .memory_size = size,
		.userspace_addr = (u64)vm.ram,
	};

	checked_ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region, "SET_USER_MEMORY_REGION");
}

/* One exit of KVM_RUN that was MMIO; 1 when it was the doorbell. */
static int mmio(struct kvm_run *run)
{
	static int faults;
	u64 at = run->mmio.phys_addr;

	if (at == DOORBELL)
		return 1;
	if (at == DOORBELL + 8) {
		printf("L1EXC addr=%lx data=%llx\n", at, *(__u64 *)run->mmio.data);
		if (++faults == MOST_L1_FAULTS)
			die("L1 took an exception (syndrome, PC and address above)");
		return 0;
	}
	printf("MMIO addr=%#lx len=%d write=%d\n", at, run->mmio.len, run->mmio.is_write);
	if (!run->mmio.is_write)
		memset(run->mmio.data, 0, sizeof(run->mmio.data));
	return 0;
}

/* Run a vCPU until L1 asks for the next command: 1; or until a signal if it "stays": 0. */
int run_vcpu(int vcpu, struct kvm_run *run, int stays)
{
	for (;;) {
		if (ioctl(vcpu, KVM_RUN, 0) < 0) {
			if (errno == EINTR && stays)
				return 0;
			if (errno == EINTR)
				continue;
			if (errno != EFAULT)
				die("KVM_RUN exit_reason=%d", run->exit_reason);
			/* A store to memory that mprotect made read-only: the language says what the VMM does. */
			append_to_file(TRACING "trace_marker", "efault: mprotect all rw");
			printf("EFAULT mprotect-all-rw r=%d\n",
			       mprotect(vm.ram, vm.ram_size, PROT_READ | PROT_WRITE));
			continue;
		}
		if (run->exit_reason == KVM_EXIT_DIRTY_RING_FULL) {
			printf("RINGFULL\n");
			harvest_rings();
			continue;
		}
		if (run->exit_reason != KVM_EXIT_MMIO)
			die("exit_reason %d", run->exit_reason);
		if (mmio(run))
			return 1;
	}
}

static void run_l1(void)
{
	run_vcpu(vm.vcpu, vm.run, 0);
}

/* L1's next command on this vCPU, which stands at its mailbox then. */
void ask_l1(enum command command, int count, va_list words)
{
	struct mailbox *m = vm.mailbox;

	vcpu_to_l1();
	memset(m, 0, sizeof(*m));
	m->command = command;
	for (int i = 0; i < count; i++)
		m->argument[i] = va_arg(words, u64);
	__sync_synchronize();
}

struct mailbox *l1(enum command command, int count, ...)
{
	va_list words;

	va_start(words, count);
	ask_l1(command, count, words);
	va_end(words);
	run_l1();
	return vm.mailbox;
}

/* mmap's flags for hugetlb pages of a backing; 0 if it has none. */
static int hugetlb_flags(const char *backing)
{
	long page = getpagesize();
	int bits = 0;

	if (!strcmp(backing, "huge"))
		return MAP_HUGETLB;
	if (!strcmp(backing, "huge-pud"))
		bits = 30;
	if (!strcmp(backing, "huge-cont-pte"))
		bits = page == 4096 ? 16 : 21;
	if (!strcmp(backing, "huge-cont-pmd"))
		bits = page == 4096 ? 25 : page == 16384 ? 30 : 34;
	return bits ? MAP_HUGETLB | bits << MAP_HUGE_SHIFT : 0;
}

static void make_memory(const char *backing)
{
	u64 alignment = 1UL << 30;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	char *p = mmap(0, vm.ram_size + alignment, PROT_NONE, flags, -1, 0);

	if (p == MAP_FAILED)
		die("reserve");
	p = (char *)(((u64)p + alignment - 1) & ~(alignment - 1));
	flags |= hugetlb_flags(backing);
	vm.ram = mmap(p, vm.ram_size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, -1, 0);
	if (vm.ram == MAP_FAILED)
		die("mmap ram");
	if (!strcmp(backing, "thp"))
		madvise(vm.ram, vm.ram_size, MADV_HUGEPAGE);
	else if (!strcmp(backing, "base"))
		madvise(vm.ram, vm.ram_size, MADV_NOHUGEPAGE);
	vm.mailbox = (struct mailbox *)(vm.ram + (MAILBOX - RAM_BASE));
}

static void make_vcpus(int e2h0)
{
	struct kvm_vcpu_init init = { 0 };

	checked_ioctl(vm.fd, KVM_ARM_PREFERRED_TARGET, &init, "PREFERRED_TARGET");
	init.features[0] |= 1u << KVM_ARM_VCPU_PSCI_0_2 | 1u << FEATURE_EL2;
	if (e2h0)
		init.features[0] |= 1u << FEATURE_EL2_E2H0;
	vm.init = init;
	for (int i = 0; i < vm.vcpus; i++) {
		struct kvm_vcpu_init copy = init;
		int vcpu = ioctl(vm.fd, KVM_CREATE_VCPU, i);

		if (vcpu < 0)
			die("CREATE_VCPU %d", i);
		checked_ioctl(vcpu, KVM_ARM_VCPU_INIT, &copy, "VCPU_INIT");
		if (i < MOST_VCPUS)
			vm.all[i] = vcpu;
		if (i == 0)
			vm.vcpu = vcpu;
		if (i == 1)
			vm.second = vcpu;
	}
}

static void set_gic(int gic, int group, u64 attribute, void *value)
{
	struct kvm_device_attr a = { .group = group, .attr = attribute, .addr = (u64)value };

	checked_ioctl(gic, KVM_SET_DEVICE_ATTR, &a, "SET_DEVICE_ATTR");
}

static void make_gic(void)
{
	struct kvm_create_device device = { .type = KVM_DEV_TYPE_ARM_VGIC_V3 };
	u64 distributor = DISTRIBUTOR, interrupts = 64, redistributors = REDISTRIBUTORS | (u64)vm.vcpus << 52;

	checked_ioctl(vm.fd, KVM_CREATE_DEVICE, &device, "CREATE_DEVICE vgic-v3");
	set_gic(device.fd, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &interrupts);
	set_gic(device.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &distributor);
	set_gic(device.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, &redistributors);
	set_gic(device.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0);
}

#define CORE(field)	(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | \
			 (offsetof(struct kvm_regs, field) / sizeof(__u32)))
#define PSTATE_EL1H	0x3c5UL			/* interrupts masked */

void set_register(int vcpu, u64 id, u64 value)
{
	struct kvm_one_reg reg = { .id = id, .addr = (u64)&value };

	checked_ioctl(vcpu, KVM_SET_ONE_REG, &reg, "SET_ONE_REG");
}

static u64 get_register(int vcpu, u64 id)
{
	u64 value;
	struct kvm_one_reg reg = { .id = id, .addr = (u64)&value };

	checked_ioctl(vcpu, KVM_GET_ONE_REG, &reg, "GET_ONE_REG");
	return value;
}

struct kvm_run *map_run(int vcpu)
{
	struct kvm_run *run = mmap(0, checked_ioctl(vm.kvm, KVM_GET_VCPU_MMAP_SIZE, 0, "GET_VCPU_MMAP_SIZE"),
				   PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);

	if (run == MAP_FAILED)
		die("mmap run");
	return run;
}

/*
 * The second vCPU stands before L2's first instruction, with the first one's stage 2: loaded, and put again because
 * its thread is wanted elsewhere (as by a signal) before the vCPU could enter.
 */
void load_second_vcpu(void)
{
	static const u64 registers[] = {
		ARM64_SYS_REG(3, 4, 1, 1, 0),		/* HCR_EL2 */
		ARM64_SYS_REG(3, 4, 2, 1, 2),		/* VTCR_EL2 */
		ARM64_SYS_REG(3, 4, 2, 1, 0),		/* VTTBR_EL2 */
	};
	struct kvm_run *run;
	int r;

	if (vm.vcpus < 2)
		die("one vCPU only");
	run = map_run(vm.second);
	for (unsigned i = 0; i < sizeof(registers) / sizeof(registers[0]); i++)
		set_register(vm.second, registers[i], get_register(vm.vcpu, registers[i]));
	set_register(vm.second, CORE(regs.pstate), PSTATE_EL1H);
	run->immediate_exit = 1;
	ioctl(vm.second, KVM_RUN, 0);			/* a vCPU's first load keeps the context of its creation */
	r = ioctl(vm.second, KVM_RUN, 0);
	printf("load2 r=%d errno=%d\n", r, r < 0 ? errno : 0);
}

void start(const char *backing, int e2h0, int ipa_bits)
{
	struct mailbox *m;

	vm.kvm = open("/dev/kvm", O_RDWR);
	if (vm.kvm < 0)
		die("open /dev/kvm");
	printf("cap ARM_EL2=%d ARM_EL2_E2H0=%d VM_IPA_SIZE=%d\n",
	       ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_EL2),
	       ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_EL2_E2H0),
	       ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_VM_IPA_SIZE));
	vm.fd = ioctl(vm.kvm, KVM_CREATE_VM, (unsigned long)ipa_bits);
	if (vm.fd < 0)
		die("CREATE_VM");
	make_memory(backing);
	enable_logging();
	set_slot(vm.ram_size);
	/* What L1 needs for larger pages stands in its third 4K: there is no such page with an L0 of 4K pages. */
	memcpy(vm.ram, l1_image, vm.page == 4096 ? 8192 : l1_image_end - l1_image);
	make_vcpus(e2h0);
	make_gic();
	vm.run = map_run(vm.vcpu);
	set_register(vm.vcpu, CORE(regs.pc), RAM_BASE);
	run_l1();
	m = l1(CMD_INFO, 0);
	printf("L1 CurrentEL=%lu hcr=%#lx mmfr0=%#lx mmfr1=%#lx mmfr2=%#lx mmfr4=%#lx isar0=%#lx\n",
	       m->result[0] >> 2, m->result[1], m->result[2], m->result[3], m->result[4], m->result[5],
	       m->result[7]);
}
