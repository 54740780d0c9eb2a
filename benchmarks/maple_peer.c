/*
 * The peer of bench_reverse.py: the kernel's own maple tree, built in user space, doing what a reverse map does.
 *
 * This file is only the driver; lib/maple_tree.c comes from a kernel tree (benchmarks/README.md says how to
 * build it). Nodes come from a free list and are freed at the end of each operation: no lock, no RCU grace
 * period, no slab. Each of the three favours the tree.
 *
 * Usage: maple_peer FILE [both]. FILE holds uint64 words: N, Q, S, R, B, then N keys, N values, Q single keys to
 * erase, S more in ascending order, R starts of ranges of 512 keys, B of 2^18. With "both", a second tree maps the
 * values back to the keys, and what goes from one tree goes from the other. Prints lines "name value":
 * nanoseconds an operation in thread CPU time, bytes an entry, and how many entries each step met.
 */
#include "shared.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include "linux/init.h"
#include <linux/slab.h>

typedef unsigned long word;

void peer_rcu(struct rcu_head *head);
static void peer_free(void *node);
static void peer_later(void *node);

#define rcu_cb peer_rcu
#undef kfree_rcu
#define kfree_rcu(node, member) peer_later(node)
#include "../../../lib/maple_tree.c"

#define NODE 256UL
#define POOL (16UL << 30)
#define HUGE (2UL << 20)

static char *pool_next;
static void *free_nodes;
static long live;
static void *later[1 << 20];
static long waiting;

static void *peer_alloc(void)
{
	void *node = free_nodes;

	live++;
	if (node) {
		free_nodes = *(void **)node;
		return node;
	}
	if (!pool_next) {
		char *pool = mmap(NULL, POOL, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (pool == MAP_FAILED)
			exit(3);
		pool_next = (char *)(((word)pool + HUGE - 1) & ~(HUGE - 1));
		madvise(pool_next, POOL - HUGE, MADV_HUGEPAGE);
	}
	node = pool_next;
	pool_next += NODE;
	return node;
}

static void peer_free(void *node)
{
	live--;
	*(void **)node = free_nodes;
	free_nodes = node;
}

static void peer_later(void *node)
{
	if (waiting == sizeof(later) / sizeof(later[0]))
		exit(4);
	later[waiting++] = node;
}

static inline void operation_ends(void)
{
	while (waiting)
		peer_free(later[--waiting]);
}

void peer_rcu(struct rcu_head *head)
{
	peer_later(container_of(head, struct maple_node, rcu));
}

/* What maple_tree.c asks of the slab. */
int nr_allocated, preempt_count, test_verbose;

struct kmem_cache *__kmem_cache_create_args(const char *name, unsigned int size,
					    struct kmem_cache_args *args, unsigned int flags)
{
	static struct kmem_cache cache;

	return &cache;
}

void *kmem_cache_alloc_lru(struct kmem_cache *cache, struct list_lru *lru, int flags)
{
	return peer_alloc();
}

void kfree(void *node)
{
	peer_free(node);
}

void kmem_cache_free(struct kmem_cache *cache, void *node)
{
	peer_free(node);
}

void kmem_cache_free_bulk(struct kmem_cache *cache, size_t number, void **nodes)
{
	while (number)
		peer_free(nodes[--number]);
}

bool kmem_cache_alloc_bulk(struct kmem_cache *cache, gfp_t flags, size_t number, void **nodes)
{
	for (size_t i = 0; i < number; i++)
		nodes[i] = peer_alloc();
	return true;
}

struct slab_sheaf *kmem_cache_prefill_sheaf(struct kmem_cache *cache, gfp_t flags, unsigned int size)
{
	static struct slab_sheaf *only;

	if (!only) {
		only = calloc(1, sizeof(*only) + 256 * sizeof(void *));
		only->capacity = 256;
	}
	only->cache = cache;
	while (only->size < size)
		only->objects[only->size++] = peer_alloc();
	return only;
}

int kmem_cache_refill_sheaf(struct kmem_cache *cache, gfp_t flags, struct slab_sheaf **sheaf, unsigned int size)
{
	while ((*sheaf)->size < size)
		(*sheaf)->objects[(*sheaf)->size++] = peer_alloc();
	return 0;
}

void kmem_cache_return_sheaf(struct kmem_cache *cache, gfp_t flags, struct slab_sheaf *sheaf)
{
	while (sheaf->size)
		peer_free(sheaf->objects[--sheaf->size]);
}

void *kmem_cache_alloc_from_sheaf(struct kmem_cache *cache, gfp_t flags, struct slab_sheaf *sheaf)
{
	return sheaf->objects[--sheaf->size];
}

/* The measurement. */
static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static word *words(FILE *file, word number)
{
	word *into = malloc(number * sizeof(word) + 8);

	if (fread(into, sizeof(word), number, file) != number)
		exit(2);
	return into;
}

static DEFINE_MTREE(tree);
static DEFINE_MTREE(back);
static bool both;

static void insert(struct maple_tree *into, word key, word value)
{
	if (mtree_insert(into, key, xa_mk_value(value), GFP_KERNEL))
		exit(5);
	operation_ends();
}

/* Erase a key; whether it was there. */
static word erase(word key)
{
	void *entry = mtree_erase(&tree, key);

	if (entry && both)
		mtree_erase(&back, xa_to_value(entry));
	operation_ends();
	return entry != NULL;
}

/* Look at every entry of a range, then erase the range. */
static word take(word first, word last)
{
	MA_STATE(mas, &tree, first, first);
	void *entry;
	word met = 0;

	mas_for_each(&mas, entry, last) {
		met++;
		if (both) {
			mtree_erase(&back, xa_to_value(entry));
			operation_ends();
		}
	}
	mas_set_range(&mas, first, last);
	mas_store_gfp(&mas, NULL, GFP_KERNEL);
	operation_ends();
	return met;
}

static void removals(const char *name, word *starts, word number, word pages)
{
	double start = now();
	word met = 0;

	for (word i = 0; i < number; i++)
		met += pages == 1 ? erase(starts[i]) : take(starts[i], starts[i] + pages - 1);
	printf("%s %.1f\n%s_met %lu\n", name, number ? (now() - start) / number : 0.0, name, met);
}

int main(int argc, char **argv)
{
	FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
	word *head, *key, *value, *part;
	double start;

	if (!file)
		return 2;
	both = argc > 2;
	head = words(file, 5);
	key = words(file, head[0]);
	value = words(file, head[0]);
	maple_tree_init();
	mt_init_flags(&tree, 0);
	mt_init_flags(&back, 0);
	start = now();
	for (word i = 0; i < head[0]; i++) {
		insert(&tree, key[i], value[i]);
		if (both)
			insert(&back, value[i], key[i]);
	}
	printf("insert %.1f\nbytes %.2f\n", (now() - start) / head[0], (double)live * NODE / head[0]);
	for (int i = 1; i < 5; i++) {
		static const char *const names[] = { "", "erase_4k", "erase_4k in order", "erase_2m", "erase_1g" };
		static const word pages[] = { 0, 1, 1, 512, 1UL << 18 };

		part = words(file, head[i]);
		removals(names[i], part, head[i], pages[i]);
		free(part);
	}
	return 0;
}
