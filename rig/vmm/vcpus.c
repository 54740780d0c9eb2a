/*
 * Several vCPUs: which one the script speaks to, and where each stands.
 *
 * A vCPU that stays in L2 runs in a thread of its own, below the reader of the script in priority: there is one CPU, so
 * whenever the reader has something to do the vCPU is scheduled out inside KVM_RUN, and keeps what KVM lets it keep.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "vmm.h"

#define TURN_US		30000			/* what a vCPU gets before the script goes on */
#define X(n)		(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | \
			 ((offsetof(struct kvm_regs, regs.regs) + 8 * (n)) / sizeof(__u32)))
#define PC		(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | \
			 (offsetof(struct kvm_regs, regs.pc) / sizeof(__u32)))

static struct place {
	struct kvm_run *run;
	pthread_t thread;
	int booted, in_l2, runs, waits, reset;
	u64 code;
} places[MOST_VCPUS];

/* Tell the reader of the trace who runs now, where no ERET and no exception does. */
static int told;

static void tell(const char *level)
{
	if (told)
		append_to_file(TRACING "trace_marker", level);
}

static struct place *here(void)
{
	return &places[vm.current];
}

static void wake(int signal)
{
}

static void *stay(void *which)
{
	struct place *p = which;

	if (run_vcpu(vm.all[p - places], p->run, 1))
		p->in_l2 = 0;			/* L1 took an exception instead */
	return 0;
}

/* Give the vCPU its turn; it stays in KVM_RUN. */
static void let_run(struct place *p)
{
	static const struct sched_param first = { .sched_priority = 1 }, last = { .sched_priority = 0 };
	static const struct sigaction interrupts = { .sa_handler = wake };	/* and KVM_RUN is not restarted */
	pthread_attr_t attributes;

	sigaction(SIGUSR1, &interrupts, 0);
	if (sched_setscheduler(0, SCHED_FIFO, &first))
		die("sched_setscheduler");
	pthread_attr_init(&attributes);
	pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
	pthread_attr_setschedpolicy(&attributes, SCHED_OTHER);
	pthread_attr_setschedparam(&attributes, &last);
	if (pthread_create(&p->thread, &attributes, stay, p))
		die("pthread_create");
	p->runs = 1;
	usleep(TURN_US);
}

/* Take the vCPU out of KVM_RUN. */
static void take_out(struct place *p)
{
	if (!p->runs)
		return;
	p->run->immediate_exit = 1;
	pthread_kill(p->thread, SIGUSR1);
	pthread_join(p->thread, 0);
	p->run->immediate_exit = 0;
	p->runs = p->waits = 0;
}

/* L2, where this vCPU stands in it, goes on at pc until L1 has seen it leave; 0 if it does not stand in L2. */
int continue_l2(u64 pc, const u64 *x)
{
	struct place *p = here();

	take_out(p);
	if (!p->in_l2)
		return 0;
	for (int i = 0; x && i < 5; i++)
		set_register(vm.vcpu, X(i), x[i]);
	set_register(vm.vcpu, PC, pc);
	p->in_l2 = 0;
	tell("(L2)");
	run_vcpu(vm.vcpu, vm.run, 0);
	return 1;
}

/* L1 stands at its mailbox on this vCPU: it boots, or L2 makes its HVC. */
void vcpu_to_l1(void)
{
	struct place *p = here();

	continue_l2(p->code + L2_HVC, 0);
	if (!p->booted && (vm.current || p->reset)) {
		set_register(vm.vcpu, X(0), vm.current);
		set_register(vm.vcpu, PC, RAM_BASE);
		tell("(L1)");
		run_vcpu(vm.vcpu, vm.run, 0);
	}
	p->booted = 1;
	tell("(L1)");
}

static void select_vcpu(int n)
{
	if (n >= vm.vcpus || n >= MOST_VCPUS)
		die("no vCPU %d", n);
	vm.current = n;
	vm.vcpu = vm.all[n];
	if (!here()->run)
		here()->run = n ? map_run(vm.vcpu) : vm.run;
	vm.run = here()->run;
}

static void ask(enum command command, int count, ...)
{
	va_list words;

	va_start(words, count);
	ask_l1(command, count, words);
	va_end(words);
}

/* Commands of vCPUs; 0 if the word is none. */
int vcpu_command(char **word, u64 l2_code)
{
	const char *c = word[0];
	struct place *p = here();

	if (!p->run)
		p->run = vm.run;
	if (!strcmp(c, "vcpu")) {
		told = 1;
		select_vcpu(atoi(word[1]));
	} else if (!strcmp(c, "enter")) {
		told = 1;
		ask(CMD_RUN, 6, 0UL, 0UL, 0UL, 0UL, 0UL, l2_code + L2_STAY);
		p->code = l2_code;
		p->in_l2 = 1;
		let_run(p);
	} else if (!strcmp(c, "exit"))
		take_out(p);
	else if (!strcmp(c, "resume")) {
		if (p->waits)
			take_out(p);
		if (p->in_l2 && !p->runs) {
			set_register(vm.vcpu, PC, p->code + L2_STAY);
			tell("(L2)");
			let_run(p);
		}
	} else if (!strcmp(c, "wfi")) {
		take_out(p);
		if (p->in_l2) {
			set_register(vm.vcpu, PC, p->code + L2_WFI);
			tell("(L2)");
			let_run(p);
			p->waits = 1;
		}
	} else if (!strcmp(c, "reset")) {
		struct kvm_vcpu_init init = vm.init;

		take_out(p);
		p->run->immediate_exit = 1;	/* so that the store to the doorbell ends before PC is set */
		ioctl(vm.vcpu, KVM_RUN, 0);
		p->run->immediate_exit = 0;
		checked_ioctl(vm.vcpu, KVM_ARM_VCPU_INIT, &init, "VCPU_INIT");
		p->booted = p->in_l2 = 0;
		p->reset = 1;
	} else
		return !strcmp(c, "preempt");	/* it is, whenever the script goes on */
	return 1;
}
