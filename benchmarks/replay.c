/*
 * The loop of bench_replay.py in C, on the same arrays: pages only. It follows the product's pgtable and
 * reverse_table step by step, counters included, so that all arrays come out the same. Indices of registers,
 * columns and counters are given as -D by the script.
 *
 * Like the product it reads granule, start level and switches (FWB, range TLBI, logs, the judge, failing
 * allocations) from the machine's registers. With -DFIXED they are constants: a program for 4K, 40 bits, FWB,
 * range TLBI, no log and no judge.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t u64;
typedef int64_t i64;

typedef struct {
	u64 *mem, *frames, *free, *regs, *mmus, *rmap, *side;
	i64 *count;
} machine;

#define MMU(m, mmu, column) ((m)->mmus[(mmu) * COLUMNS + (column)])
#define FRAME(m, frame, column) ((m)->frames[(frame) * 4 + (column)])
#ifdef FIXED
#define PAGE_SHIFT(m) 12
#define STRIDE(m) 9
#define START(m, mmu) 1
#define ON(m, reg) ((reg) == R_FWB || (reg) == R_TLBIRANGE)
#define TOP_SHIFT(m) 18
#define TOP_ENTRIES(m) 1024
#else
#define PAGE_SHIFT(m) ((m)->regs[R_PAGE_SHIFT])
#define STRIDE(m) ((m)->regs[R_STRIDE])
#define START(m, mmu) ((int)MMU(m, mmu, M_START))
#define ON(m, reg) ((m)->regs[reg] != 0)
#define TOP_SHIFT(m) ((m)->rmap[RT_TOP_SHIFT])
#define TOP_ENTRIES(m) ((m)->rmap[RT_TOP_ENTRIES])
#endif
#define PAGE(m) (1ULL << PAGE_SHIFT(m))
#define ENTRIES(m) (1ULL << STRIDE(m))
#define LEVEL_SHIFT(m, level) (PAGE_SHIFT(m) + STRIDE(m) * (3 - (level)))
#define FRAME_OF(m, word) ((word) >> (PAGE_SHIFT(m) - 3))
#define TABLE(m, d) (((d) & 0x0000FFFFFFFFF000ULL & ~(PAGE(m) - 1)) >> 3)
#define CHAIN (1ULL << 63)
#define NODE ((1ULL << 36) - 1)
#define ONE_ENTRY (1ULL << 36)
#define SIZE(child) ((child) >> 61)
#define COUNT(child) ((child) >> 36 & ((1ULL << 25) - 1))
#define ENTRY ((1ULL << 49) - 1)
#define DESCRIPTOR ((1ULL << 33) - 1)
#define GENERATION ((1ULL << 16) - 1)
#define MANY (~0ULL)
#define APART __attribute__((noinline))
/* gcc takes a function that only hints at memory for one without effect, and drops calls of it. */
#define HINT inline __attribute__((always_inline))

/* What the product does when a switch is on; no run of this benchmark comes here. */
static APART void not_here(void)
{
	abort();
}

/* Shadow tables. */
static inline u64 find_entry(machine *m, u64 mmu, u64 ipa, int *level)
{
	int at = START(m, mmu), shift = LEVEL_SHIFT(m, at);
	u64 word = (MMU(m, mmu, M_ROOT) >> 3) + (ipa >> shift);

	for (;;) {
		u64 descriptor = m->mem[word];

		m->count[DESCRIPTORS_READ]++;
		if (at == 3 || (descriptor & 3) != 3)
			break;
		at++;
		shift -= STRIDE(m);
		word = TABLE(m, descriptor) + ((ipa >> shift) & (ENTRIES(m) - 1));
	}
	*level = at;
	return word;
}

static HINT void entry_ahead(machine *m, u64 mmu, u64 ipa)
{
	int at = START(m, mmu), shift = LEVEL_SHIFT(m, at);
	u64 word = (MMU(m, mmu, M_ROOT) >> 3) + (ipa >> shift);

	for (; at < 3; at++) {
		u64 descriptor = m->mem[word];

		if ((descriptor & 3) != 3)
			return;
		shift -= STRIDE(m);
		word = TABLE(m, descriptor) + ((ipa >> shift) & (ENTRIES(m) - 1));
	}
	__builtin_prefetch(m->mem + word, 0, 0);
	__builtin_prefetch(m->side + word, 0, 0);
}

static APART u64 take_frame(machine *m)
{
	u64 frame;

	if (m->regs[R_FREE_TOP]) {
		frame = m->free[--m->regs[R_FREE_TOP]];
		memset(m->mem + (frame << (PAGE_SHIFT(m) - 3)), 0, PAGE(m));
	} else {
		frame = m->regs[R_NEXT_FRAME]++;
	}
	m->count[TABLES_ALLOCATED]++;
	return frame;
}

static inline void give_frame(machine *m, u64 frame)
{
	FRAME(m, frame, OWNER) = 0;
	m->free[m->regs[R_FREE_TOP]++] = frame;
	m->count[TABLES_FREED]++;
}

static inline void flush_ipa(machine *m)
{
	if (ON(m, R_LOG_TLB))
		not_here();
	m->count[TLBI_IPA]++;
	m->count[TLBI_STAGE1]++;
	m->count[DSBS] += 3;
}

static inline void flush_page(machine *m)
{
	if (!ON(m, R_TLBIRANGE) || ON(m, R_LOG_TLB))
		not_here();
	m->count[TLBI_RANGE]++;
	m->count[TLBI_STAGE1]++;
	m->count[DSBS] += 3;
	m->count[TLBI_RANGE_SHADOW]++;
}

static inline void clean_cache(machine *m)
{
	if (!ON(m, R_FWB))
		not_here();
}

static inline u64 drop_entry(machine *m, u64 word)
{
	m->mem[word] = 0;
	m->count[DESCRIPTORS_WRITTEN]++;
	return --FRAME(m, FRAME_OF(m, word), REFS);
}

static inline void leaf_gone(machine *m, u64 mmu)
{
	MMU(m, mmu, M_LEAVES)--;
	if (!mmu)
		return;
	m->count[LEAVES_REMOVED]++;
	if (ON(m, R_GHOST_ON))
		not_here();
}

static APART void free_empty_tables(machine *m, u64 frame)
{
	while (FRAME(m, frame, REFS) == 1) {
		u64 parent = FRAME(m, frame, PARENT);

		if (!parent)
			return;
		flush_ipa(m);
		give_frame(m, frame);
		drop_entry(m, parent);
		frame = FRAME_OF(m, parent);
	}
}

/* Returns the input address of the leaf. */
static inline u64 clear_leaf(machine *m, u64 word)
{
	u64 frame = FRAME_OF(m, word), owner = FRAME(m, frame, OWNER);
	int level = owner >> 16 & 15;
	u64 ipa = FRAME(m, frame, BASE) + ((word - (frame << (PAGE_SHIFT(m) - 3))) << LEVEL_SHIFT(m, level));

	leaf_gone(m, owner & 0xFFFF);
	clean_cache(m);
	if (drop_entry(m, word) == 1)
		free_empty_tables(m, frame);
	return ipa;
}

static APART u64 add_table(machine *m, u64 mmu, u64 word, int level, u64 ipa)
{
	u64 frame = take_frame(m), descriptor;
	int shift = LEVEL_SHIFT(m, level - 1);

	FRAME(m, frame, REFS) = 1;
	FRAME(m, frame, OWNER) = KIND_TABLE | ((u64)level << 16) | mmu;
	FRAME(m, frame, PARENT) = word;
	FRAME(m, frame, BASE) = ipa >> shift << shift;
	descriptor = (frame << PAGE_SHIFT(m)) | 3;
	m->mem[word] = descriptor;
	FRAME(m, FRAME_OF(m, word), REFS)++;
	m->count[DESCRIPTORS_WRITTEN]++;
	return descriptor;
}

static inline u64 stage2_map(machine *m, u64 mmu, u64 ipa, u64 pa)
{
	int at = START(m, mmu), shift = LEVEL_SHIFT(m, at);
	u64 word = (MMU(m, mmu, M_ROOT) >> 3) + (ipa >> shift), new = pa | LEAF_BITS, old;

	for (; at < 3; at++) {
		u64 descriptor = m->mem[word];

		m->count[DESCRIPTORS_READ]++;
		if ((descriptor & 3) != 3)
			descriptor = add_table(m, mmu, word, at + 1, ipa);
		shift -= STRIDE(m);
		word = TABLE(m, descriptor) + ((ipa >> shift) & (ENTRIES(m) - 1));
	}
	old = m->mem[word];
	m->count[DESCRIPTORS_READ]++;
	if (old & 1) {
		if (((old ^ new) & ~PERMISSIONS) == 0)
			return 0;
		leaf_gone(m, mmu);
		drop_entry(m, word);
		flush_ipa(m);
	}
	clean_cache(m);
	m->mem[word] = new;
	FRAME(m, FRAME_OF(m, word), REFS)++;
	MMU(m, mmu, M_LEAVES)++;
	if (ON(m, R_LOG_TLB))
		not_here();
	m->count[DESCRIPTORS_WRITTEN]++;
	if (mmu)
		m->count[LEAVES_MAPPED]++;
	return word;
}

/* The record. */
static APART u64 take_node(machine *m, u64 words, int list)
{
	u64 node = m->rmap[list];

	if (node) {
		m->rmap[list] = m->rmap[node];
		memset(m->rmap + node, 0, words * 8);
	} else {
		node = m->rmap[RT_BUMP];
		m->rmap[RT_BUMP] += words;
	}
	m->rmap[RT_BYTES] += words * 8;
	m->count[NODES_ALLOCATED]++;
	return node;
}

static inline void give_node(machine *m, u64 node, u64 words, int list)
{
	m->rmap[node] = m->rmap[list];
	m->rmap[list] = node;
	m->rmap[RT_BYTES] -= words * 8;
	m->count[NODES_FREED]++;
}

static inline void free_leaf(machine *m, u64 child)
{
	u64 size = SIZE(child);

	if (size)
		give_node(m, child & NODE, 1ULL << size, RT_FREE_SMALL + size - 3);
	else
		give_node(m, child & NODE, ENTRIES(m), RT_FREE_LEAF);
}

static inline u64 chain_node(machine *m, u64 entry, u64 following)
{
	u64 node = take_node(m, 2, RT_FREE_CHAIN);

	m->rmap[node] = entry;
	m->rmap[node + 1] = following;
	m->rmap[RT_CHAINED]++;
	return node | CHAIN;
}

static APART u64 chained(machine *m, u64 named, u64 entry)
{
	if (!(named & CHAIN))
		named = chain_node(m, named, 0);
	return chain_node(m, entry, named);
}

static inline void link_entry(machine *m, u64 slot, u64 entry)
{
	u64 named = m->rmap[slot];

	m->rmap[slot] = named ? chained(m, named, entry) : entry;
}

static inline void put_item(machine *m, u64 child, u64 item)
{
	u64 node = child & NODE, at = node + COUNT(child), end = node + (1ULL << SIZE(child));

	while (m->rmap[at])
		if (++at == end)
			at = node;
	m->rmap[at] = item;
}

static inline u64 new_small_leaf(machine *m, u64 size)
{
	return take_node(m, 1ULL << size, RT_FREE_SMALL + size - 3) | size << 61;
}

static APART u64 promote(machine *m, u64 child)
{
	u64 node = child & NODE, size = SIZE(child), larger;

	if (size < LARGEST) {
		larger = new_small_leaf(m, size + 1);
		for (u64 at = node; at < node + (1ULL << size); at++) {
			put_item(m, larger, m->rmap[at]);
			larger += ONE_ENTRY;
		}
	} else {
		larger = take_node(m, ENTRIES(m), RT_FREE_LEAF) | COUNT(child) << 36;
		for (u64 at = node; at < node + (1ULL << size); at++)
			link_entry(m, (larger & NODE) + (m->rmap[at] >> 49), m->rmap[at] & ENTRY);
	}
	free_leaf(m, child);
	return larger;
}

/* The word that names the leaf over a page, or 0; none is looked for under a block. */
static inline u64 find_leaf(machine *m, u64 ipa, u64 blocks, u64 *index)
{
	u64 page = ipa >> PAGE_SHIFT(m), shift = TOP_SHIFT(m), heads = TOP_ENTRIES(m);
	u64 place = m->rmap[RT_ROOT] + 2 + (page >> shift);

	for (;;) {
		u64 child = m->rmap[place];

		if (!child || (blocks && m->rmap[place + heads]))
			return 0;
		heads = ENTRIES(m);
		shift -= STRIDE(m);
		*index = (page >> shift) & (heads - 1);
		if (!shift)
			return place;
		place = child + 2 + *index;
	}
}

static HINT void reverse_ahead(machine *m, u64 ipa)
{
	u64 index, place = find_leaf(m, ipa, 0, &index), child;

	if (!place)
		return;
	child = m->rmap[place];
	__builtin_prefetch(m->rmap + (child & NODE) + (SIZE(child) ? COUNT(child) : index), 0, 0);
}

static HINT void reverse_near(machine *m, u64 ipa)
{
	u64 index, place = find_leaf(m, ipa, 0, &index), named;

	if (!place || SIZE(m->rmap[place]))
		return;
	named = m->rmap[(m->rmap[place] & NODE) + index];
	if (!(named & CHAIN))
		__builtin_prefetch(m->mem + (named & DESCRIPTOR), 0, 0);
}

static APART void link_with_room(machine *m, u64 ipa, u64 entry)
{
	u64 up = m->rmap[RT_ROOT] + 2 + (ipa >> LEVEL_SHIFT(m, 1)), node = m->rmap[up], place, child;
	u64 index = (ipa >> PAGE_SHIFT(m)) & (ENTRIES(m) - 1);

	m->count[NODES_VISITED] += 2;
	if (!node) {
		node = take_node(m, 2 + 2 * ENTRIES(m), RT_FREE_NODE);
		m->rmap[node + 1] = m->rmap[RT_ROOT];
		m->rmap[up] = node;
		m->rmap[m->rmap[RT_ROOT]]++;
	}
	place = node + 2 + ((ipa >> LEVEL_SHIFT(m, 2)) & (ENTRIES(m) - 1));
	child = m->rmap[place];
	if (!child) {
		child = new_small_leaf(m, 3);
		m->rmap[node]++;
	} else if (SIZE(child)) {
		child = promote(m, child);
	}
	if (SIZE(child))
		put_item(m, child, (index << 49) | entry);
	else
		link_entry(m, (child & NODE) + index, entry);
	m->rmap[place] = child + ONE_ENTRY;
}

static inline void leaf_link(machine *m, u64 ipa, u64 entry)
{
	u64 index, place = find_leaf(m, ipa, 0, &index), child;

	if (!place) {
		link_with_room(m, ipa, entry);
		return;
	}
	child = m->rmap[place];
	if (!SIZE(child)) {
		if (m->rmap[(child & NODE) + index]) {
			link_with_room(m, ipa, entry);
			return;
		}
		m->rmap[(child & NODE) + index] = entry;
	} else if (COUNT(child) < 1ULL << SIZE(child)) {
		put_item(m, child, (index << 49) | entry);
	} else {
		link_with_room(m, ipa, entry);
		return;
	}
	m->rmap[place] = child + ONE_ENTRY;
	m->count[NODES_VISITED] += 3 - START(m, 0);
}

static APART void free_empty_leaf(machine *m, u64 parent, u64 place, u64 ipa)
{
	u64 up;

	free_leaf(m, m->rmap[place]);
	m->rmap[place] = 0;
	if (--m->rmap[parent])
		return;
	up = m->rmap[parent + 1];
	give_node(m, parent, 2 + 2 * ENTRIES(m), RT_FREE_NODE);
	m->rmap[up + 2 + (ipa >> LEVEL_SHIFT(m, 1))] = 0;
	m->rmap[up]--;
}

static inline void drop_leaf(machine *m, u64 parent, u64 place, u64 ipa)
{
	if (m->rmap[place] && !COUNT(m->rmap[place]))
		free_empty_leaf(m, parent, place, ipa);
}

static inline u64 entry_of(u64 word, u64 generation)
{
	return word | generation << 33;
}

static inline u64 owner(machine *m, u64 entry)
{
	u64 mmu = FRAME(m, FRAME_OF(m, entry & DESCRIPTOR), OWNER) & 0xFFFF;

	return (entry >> 33 & GENERATION) == MMU(m, mmu, M_GENERATION) ? mmu : 0;
}

static inline u64 chain_pop(machine *m, u64 node, u64 *following)
{
	u64 entry = m->rmap[node];

	*following = m->rmap[node + 1];
	give_node(m, node, 2, RT_FREE_CHAIN);
	m->rmap[RT_CHAINED]--;
	return entry;
}

static APART bool unlink_alias(machine *m, u64 slot, u64 entry)
{
	u64 before = 0, named = m->rmap[slot], following = 0;

	while (named & CHAIN && m->rmap[named & ~CHAIN] != entry) {
		m->count[NODES_VISITED]++;
		before = named & ~CHAIN;
		named = m->rmap[before + 1];
	}
	if (named & CHAIN)
		chain_pop(m, named & ~CHAIN, &following);
	else if (named != entry)
		return false;
	if (before)
		m->rmap[before + 1] = following;
	else
		m->rmap[slot] = following;
	return true;
}

static inline bool unlink_entry(machine *m, u64 slot, u64 entry)
{
	if (m->rmap[slot] != entry)
		return unlink_alias(m, slot, entry);
	m->rmap[slot] = 0;
	return true;
}

static inline bool leaf_unlink(machine *m, u64 ipa, u64 entry)
{
	u64 parent = m->rmap[m->rmap[RT_ROOT] + 2 + (ipa >> LEVEL_SHIFT(m, 1))], place, child, index;

	m->count[NODES_VISITED]++;
	if (!parent)
		return false;
	m->count[NODES_VISITED]++;
	place = parent + 2 + ((ipa >> LEVEL_SHIFT(m, 2)) & (ENTRIES(m) - 1));
	child = m->rmap[place];
	if (!child)
		return false;
	index = (ipa >> PAGE_SHIFT(m)) & (ENTRIES(m) - 1);
	if (SIZE(child)) {
		u64 at = child & NODE, end = at + (1ULL << SIZE(child));

		m->count[NODES_VISITED] += (1ULL << SIZE(child)) / 8;
		while (at < end && m->rmap[at] != ((index << 49) | entry))
			at++;
		if (at == end)
			return false;
		m->rmap[at] = 0;
	} else if (!unlink_entry(m, (child & NODE) + index, entry)) {
		return false;
	}
	m->rmap[place] = child - ONE_ENTRY;
	drop_leaf(m, parent, place, ipa);
	return true;
}

static APART void reverse_unlink(machine *m, u64 word)
{
	u64 recorded = m->side[word], entry;

	if (!recorded)
		return;
	m->side[word] = 0;
	entry = entry_of(word, recorded & GENERATION);
	if (leaf_unlink(m, recorded >> 24 << 12, entry)) {
		u64 mmu = owner(m, entry);

		if (mmu)
			MMU(m, mmu, M_RECORDED)--;
		else
			m->rmap[RT_STALE]--;
	}
}

static inline void reverse_record(machine *m, u64 mmu, u64 ipa, u64 word)
{
	if (MMU(m, mmu, M_BROKEN))
		return;
	if (ON(m, R_FAIL_ALLOCATION))
		not_here();
	if (m->rmap[RT_STALE] && m->side[word])
		reverse_unlink(m, word);
	leaf_link(m, ipa, entry_of(word, MMU(m, mmu, M_GENERATION)));
	m->side[word] = (ipa >> 12 << 24) | (3ULL << 16) | MMU(m, mmu, M_GENERATION);
	MMU(m, mmu, M_RECORDED)++;
}

static inline void flush_pending(machine *m)
{
	if (m->rmap[RT_FLUSH_END]) {
		flush_page(m);
		m->rmap[RT_FLUSH_END] = 0;
	}
}

static inline void clear_live(machine *m, u64 word, u64 mmu)
{
	u64 ipa;

	m->rmap[RT_GONE]++;
	MMU(m, mmu, M_RECORDED)--;
	ipa = clear_leaf(m, word);
	if (MMU(m, mmu, M_STAMP) != m->rmap[RT_STAMP]) {
		MMU(m, mmu, M_STAMP) = m->rmap[RT_STAMP];
		m->count[MMUS_VISITED]++;
	}
	if (!ON(m, R_TLBIRANGE) || !ON(m, R_FWB))
		not_here();
	if (m->rmap[RT_FLUSH_END] != ipa || m->rmap[RT_FLUSH_MMU] != mmu) {
		flush_pending(m);
		m->rmap[RT_FLUSH_MMU] = mmu;
		m->rmap[RT_FLUSH_START] = ipa;
	}
	m->rmap[RT_FLUSH_END] = ipa + PAGE(m);
}

static inline i64 clear_entry(machine *m, u64 entry)
{
	u64 mmu = owner(m, entry);

	if (!mmu) {
		m->rmap[RT_GONE]++;
		m->rmap[RT_STALE]--;
		return 0;
	}
	clear_live(m, entry & DESCRIPTOR, mmu);
	return 1;
}

/* Clears what a leaf names for one page. */
static inline i64 clear_page(machine *m, u64 place, u64 index)
{
	u64 child = m->rmap[place], before = m->rmap[RT_GONE], at = child & NODE, named;
	i64 removed = 0;

	if (SIZE(child)) {
		u64 end = at + (1ULL << SIZE(child));

		m->count[NODES_VISITED] += (1ULL << SIZE(child)) / 8;
		for (; at < end; at++) {
			u64 item = m->rmap[at];

			if (item && item >> 49 == index) {
				m->rmap[at] = 0;
				removed += clear_entry(m, item & ENTRY);
			}
		}
	} else {
		named = m->rmap[at + index];
		m->rmap[at + index] = 0;
		while (named & CHAIN) {
			u64 entry = chain_pop(m, named & ~CHAIN, &named);

			m->count[NODES_VISITED]++;
			removed += clear_entry(m, entry);
		}
		if (named)
			removed += clear_entry(m, named);
		m->count[NODES_VISITED]++;
	}
	m->rmap[place] = child - ((m->rmap[RT_GONE] - before) << 36);
	return removed;
}

/* Heads of blocks are read, as the product does; the trace maps none. */
static APART i64 unmap_range(machine *m, u64 ipa)
{
	u64 root = m->rmap[RT_ROOT], top = ipa >> LEVEL_SHIFT(m, 1), node, place;
	u64 middle = (ipa >> LEVEL_SHIFT(m, 2)) & (ENTRIES(m) - 1);
	i64 removed;

	m->count[NODES_VISITED]++;
	if (m->rmap[root + 2 + TOP_ENTRIES(m) + top])
		not_here();
	node = m->rmap[root + 2 + top];
	if (!node)
		return 0;
	m->count[NODES_VISITED]++;
	if (m->rmap[node + 2 + ENTRIES(m) + middle])
		not_here();
	place = node + 2 + middle;
	if (!m->rmap[place])
		return 0;
	removed = clear_page(m, place, (ipa >> PAGE_SHIFT(m)) & (ENTRIES(m) - 1));
	drop_leaf(m, node, place, ipa);
	flush_pending(m);
	return removed;
}

/* Where a small leaf has the only item of a page; 0: it has none. */
static inline u64 lone_item(machine *m, u64 child, u64 index)
{
	u64 at = child & NODE, end = at + (1ULL << SIZE(child)), items = 0, found = 0;

	for (; at < end; at++) {
		u64 item = m->rmap[at], hit = item && item >> 49 == index;

		items += hit;
		found += hit ? at : 0;
	}
	return items <= 1 ? found : MANY;
}

static inline i64 reverse_unmap(machine *m, u64 ipa)
{
	u64 index, place, child, slot, named;
	i64 removed;

	m->count[LOOKUPS]++;
	m->rmap[RT_STAMP]++;
	if (m->rmap[RT_BROKEN])
		not_here();
	place = find_leaf(m, ipa, m->rmap[RT_BLOCKS], &index);
	if (!place)
		return unmap_range(m, ipa);
	child = m->rmap[place];
	if (COUNT(child) <= 1)
		return unmap_range(m, ipa);
	slot = SIZE(child) ? lone_item(m, child, index) : (child & NODE) + index;
	if (slot == MANY || m->rmap[slot] & CHAIN)
		return unmap_range(m, ipa);
	named = slot ? m->rmap[slot] & ENTRY : 0;
	m->count[NODES_VISITED] += 3 - START(m, 0) + (SIZE(child) ? (1 << SIZE(child)) / 8 : 1);
	if (!named)
		return 0;
	m->rmap[slot] = 0;
	m->rmap[place] = child - ONE_ENTRY;
	removed = clear_entry(m, named);
	flush_pending(m);
	return removed;
}

static HINT void look_ahead(machine *m, const u64 *events, i64 i, i64 number)
{
	const u64 *event;

	if (i + 2 * AHEAD >= number)
		return;
	event = events + 3 * (i + 2 * AHEAD);
	if ((event[0] & 255) == 2)
		reverse_ahead(m, event[2]);
	event = events + 3 * (i + AHEAD);
	if ((event[0] & 255) == 2) {
		reverse_near(m, event[2]);
		return;
	}
	entry_ahead(m, event[0] >> 8, event[1]);
	if ((event[0] & 255) == 0)
		reverse_ahead(m, event[2]);
}

void replay(machine *m, const u64 *events, i64 number, i64 *did, i64 ahead)
{
	for (i64 i = 0; i < number; i++) {
		const u64 *event = events + 3 * i;
		u64 mmu = event[0] >> 8, word;
		int level;

		if (ahead)
			look_ahead(m, events, i, number);
		switch (event[0] & 255) {
		case 0:
			word = find_entry(m, mmu, event[1], &level);
			if (level == 3 && m->mem[word] & 1) {
				if (m->side[word] >> 24 == event[2] >> 12)
					break;
				reverse_unlink(m, word);
			}
			word = stage2_map(m, mmu, event[1], DATA + event[2]);
			if (word) {
				reverse_record(m, mmu, event[2], word);
				did[0]++;
			}
			break;
		case 1:
			word = find_entry(m, mmu, event[1], &level);
			did[1] += m->mem[word] & 1;
			break;
		case 2:
			did[2] += reverse_unmap(m, event[2]);
			break;
		default:
			word = find_entry(m, mmu, event[1], &level);
			if (level == 3 && m->mem[word] & 1) {
				reverse_unlink(m, word);
				clear_leaf(m, word);
				flush_page(m);
				did[3]++;
			}
		}
	}
}
