/*
 * The loop of bench_replay.py in C, on the same arrays: 4K granule, 40-bit input, pages only. It follows the
 * product's pgtable and reverse_table step by step, counters included, so that all arrays come out the same.
 * Indices of registers, columns and counters are given as -D by the script.
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef uint64_t u64;
typedef int64_t i64;

typedef struct {
	u64 *mem, *frames, *free, *regs, *mmus, *rmap, *side;
	i64 *count;
} machine;

#define MMU(m, mmu, column) ((m)->mmus[(mmu) * COLUMNS + (column)])
#define FRAME(m, frame, column) ((m)->frames[(frame) * 4 + (column)])
#define TABLE(d) (((d) & 0x0000FFFFFFFFF000ULL) >> 3)
#define CHAIN (1ULL << 63)
#define NODE ((1ULL << 56) - 1)
#define ENTRY ((1ULL << 49) - 1)
#define DESCRIPTOR ((1ULL << 33) - 1)
#define GENERATION ((1ULL << 16) - 1)

/* Shadow tables. */
static inline u64 find_entry(machine *m, u64 mmu, u64 ipa, int *level)
{
	u64 word = (MMU(m, mmu, M_ROOT) >> 3) + (ipa >> 30);
	int at = 1, shift = 30;

	for (;;) {
		u64 descriptor = m->mem[word];

		m->count[DESCRIPTORS_READ]++;
		if (at == 3 || (descriptor & 3) != 3)
			break;
		at++;
		shift -= 9;
		word = TABLE(descriptor) + ((ipa >> shift) & 511);
	}
	*level = at;
	return word;
}

static u64 take_frame(machine *m)
{
	u64 frame;

	if (m->regs[R_FREE_TOP]) {
		frame = m->free[--m->regs[R_FREE_TOP]];
		memset(m->mem + (frame << 9), 0, 4096);
	} else {
		frame = m->regs[R_NEXT_FRAME]++;
	}
	m->count[TABLES_ALLOCATED]++;
	return frame;
}

static void give_frame(machine *m, u64 frame)
{
	FRAME(m, frame, OWNER) = 0;
	m->free[m->regs[R_FREE_TOP]++] = frame;
	m->count[TABLES_FREED]++;
}

static inline void flush_ipa(machine *m)
{
	m->count[TLBI_IPA]++;
	m->count[TLBI_STAGE1]++;
	m->count[DSBS] += 3;
}

static inline void flush_page(machine *m)
{
	m->count[TLBI_RANGE]++;
	m->count[TLBI_STAGE1]++;
	m->count[DSBS] += 3;
	m->count[TLBI_RANGE_SHADOW]++;
}

static inline u64 drop_entry(machine *m, u64 word)
{
	m->mem[word] = 0;
	m->count[DESCRIPTORS_WRITTEN]++;
	return --FRAME(m, word >> 9, REFS);
}

static inline void leaf_gone(machine *m, u64 mmu)
{
	MMU(m, mmu, M_LEAVES)--;
	m->count[LEAVES_REMOVED]++;
}

static void clear_leaf(machine *m, u64 word)
{
	u64 frame = word >> 9;

	leaf_gone(m, FRAME(m, frame, OWNER) & 0xFFFF);
	if (drop_entry(m, word) != 1)
		return;
	while (FRAME(m, frame, REFS) == 1) {
		u64 parent = FRAME(m, frame, PARENT);

		if (!parent)
			return;
		flush_ipa(m);
		give_frame(m, frame);
		drop_entry(m, parent);
		frame = parent >> 9;
	}
}

static inline u64 stage2_map(machine *m, u64 mmu, u64 ipa, u64 pa)
{
	u64 word = (MMU(m, mmu, M_ROOT) >> 3) + (ipa >> 30), new = pa | LEAF_BITS, old;
	int shift = 30;

	for (int at = 1; at < 3; at++) {
		u64 descriptor = m->mem[word];

		m->count[DESCRIPTORS_READ]++;
		if ((descriptor & 3) != 3) {
			u64 frame = take_frame(m);

			FRAME(m, frame, REFS) = 1;
			FRAME(m, frame, OWNER) = KIND_TABLE | ((u64)(at + 1) << 16) | mmu;
			FRAME(m, frame, PARENT) = word;
			FRAME(m, frame, BASE) = ipa >> shift << shift;
			descriptor = (frame << 12) | 3;
			m->mem[word] = descriptor;
			FRAME(m, word >> 9, REFS)++;
			m->count[DESCRIPTORS_WRITTEN]++;
		}
		shift -= 9;
		word = TABLE(descriptor) + ((ipa >> shift) & 511);
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
	m->mem[word] = new;
	FRAME(m, word >> 9, REFS)++;
	MMU(m, mmu, M_LEAVES)++;
	m->count[DESCRIPTORS_WRITTEN]++;
	m->count[LEAVES_MAPPED]++;
	return word;
}

/* The record. */
static u64 take_node(machine *m, u64 words, int list)
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

static void give_node(machine *m, u64 node, u64 words, int list)
{
	m->rmap[node] = m->rmap[list];
	m->rmap[list] = node;
	m->rmap[RT_BYTES] -= words * 8;
	m->count[NODES_FREED]++;
}

static void free_leaf(machine *m, u64 child)
{
	u64 size = child >> 56;

	if (size)
		give_node(m, child & NODE, 1ULL << size, RT_FREE_SMALL + size - 3);
	else
		give_node(m, child, 514, RT_FREE_LEAF);
}

static u64 chain_node(machine *m, u64 entry, u64 following)
{
	u64 node = take_node(m, 2, RT_FREE_CHAIN);

	m->rmap[node] = entry;
	m->rmap[node + 1] = following;
	m->rmap[RT_CHAINED]++;
	return node | CHAIN;
}

static inline void link_entry(machine *m, u64 node, u64 slot, u64 entry)
{
	u64 named = m->rmap[slot];

	m->rmap[RT_ENTRIES]++;
	if (!named) {
		m->rmap[slot] = entry;
		m->rmap[node]++;
		return;
	}
	if (!(named & CHAIN))
		named = chain_node(m, named, 0);
	m->rmap[slot] = chain_node(m, entry, named);
}

static inline void put_item(machine *m, u64 child, u64 item)
{
	u64 node = child & NODE, used = m->rmap[node], at = node + 2 + used, end = node + (1ULL << (child >> 56));

	while (m->rmap[at])
		if (++at == end)
			at = node + 2;
	m->rmap[at] = item;
	m->rmap[node] = used + 1;
}

static u64 promote(machine *m, u64 place, u64 child)
{
	u64 node = child & NODE, parent = m->rmap[node + 1], size = child >> 56, larger;

	if (size < 6) {
		larger = take_node(m, 2ULL << size, RT_FREE_SMALL + size + 1 - 3);
		m->rmap[larger + 1] = parent;
		larger |= (size + 1) << 56;
		for (u64 at = node + 2; at < node + (1ULL << size); at++)
			put_item(m, larger, m->rmap[at]);
	} else {
		larger = take_node(m, 514, RT_FREE_LEAF);
		m->rmap[larger + 1] = parent;
		for (u64 at = node + 2; at < node + (1ULL << size); at++) {
			u64 item = m->rmap[at];

			link_entry(m, larger, larger + 2 + (item >> 49), item & ENTRY);
			m->rmap[RT_ENTRIES]--;
		}
	}
	m->rmap[place] = larger;
	free_leaf(m, child);
	return larger;
}

static inline u64 leaf_place(machine *m, u64 ipa)
{
	u64 node;

	m->count[NODES_VISITED]++;
	node = m->rmap[m->rmap[RT_ROOT] + 2 + (ipa >> 30)];
	if (!node)
		return 0;
	m->count[NODES_VISITED]++;
	return node + 2 + ((ipa >> 21) & 511);
}

static inline void leaf_link(machine *m, u64 ipa, u64 entry)
{
	u64 root = m->rmap[RT_ROOT], up = root + 2 + (ipa >> 30), node = m->rmap[up], place, child, index;

	m->count[NODES_VISITED] += 2;
	if (!node) {
		node = take_node(m, 1026, RT_FREE_NODE);
		m->rmap[node + 1] = root;
		m->rmap[up] = node;
		m->rmap[root]++;
	}
	place = node + 2 + ((ipa >> 21) & 511);
	child = m->rmap[place];
	index = (ipa >> 12) & 511;
	if (!child) {
		child = take_node(m, 8, RT_FREE_SMALL);
		m->rmap[child + 1] = node;
		child |= 3ULL << 56;
		m->rmap[place] = child;
		m->rmap[node]++;
	} else if (child >> 56 && m->rmap[child & NODE] == (1ULL << (child >> 56)) - 2) {
		child = promote(m, place, child);
	}
	if (child >> 56) {
		put_item(m, child, (index << 49) | entry);
		m->rmap[RT_ENTRIES]++;
	} else {
		link_entry(m, child, child + 2 + index, entry);
	}
}

static inline void drop_leaf(machine *m, u64 place, u64 ipa)
{
	u64 child = m->rmap[place], parent, up;

	if (!child || m->rmap[child & NODE])
		return;
	parent = m->rmap[(child & NODE) + 1];
	free_leaf(m, child);
	m->rmap[place] = 0;
	if (--m->rmap[parent])
		return;
	up = m->rmap[parent + 1];
	give_node(m, parent, 1026, RT_FREE_NODE);
	m->rmap[up + 2 + (ipa >> 30)] = 0;
	m->rmap[up]--;
}

static inline u64 entry_of(u64 word, u64 generation)
{
	return word | generation << 33;
}

static inline u64 owner(machine *m, u64 entry)
{
	u64 mmu = FRAME(m, (entry & DESCRIPTOR) >> 9, OWNER) & 0xFFFF;

	return (entry >> 33 & GENERATION) == MMU(m, mmu, M_GENERATION) ? mmu : 0;
}

static inline void count_gone(machine *m, u64 mmu)
{
	if (mmu)
		MMU(m, mmu, M_RECORDED)--;
	else
		m->rmap[RT_STALE]--;
}

static u64 chain_pop(machine *m, u64 node, u64 *following)
{
	u64 entry = m->rmap[node];

	*following = m->rmap[node + 1];
	give_node(m, node, 2, RT_FREE_CHAIN);
	m->rmap[RT_CHAINED]--;
	return entry;
}

static void unlink_entry(machine *m, u64 node, u64 slot, u64 entry)
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
		return;
	if (before)
		m->rmap[before + 1] = following;
	else
		m->rmap[slot] = following;
	m->rmap[RT_ENTRIES]--;
	if (!m->rmap[slot])
		m->rmap[node]--;
}

static inline void reverse_unlink(machine *m, u64 word)
{
	u64 recorded = m->side[word], ipa, place, child, index, before, entry;

	if (!recorded)
		return;
	m->side[word] = 0;
	entry = entry_of(word, recorded & GENERATION);
	before = m->rmap[RT_ENTRIES];
	ipa = recorded >> 24 << 12;
	index = (ipa >> 12) & 511;
	place = leaf_place(m, ipa);
	if (place && m->rmap[place]) {
		child = m->rmap[place];
		if (child >> 56) {
			u64 node = child & NODE, end = node + (1ULL << (child >> 56)), at = node + 2;

			m->count[NODES_VISITED] += (1ULL << (child >> 56)) / 8;
			while (at < end && m->rmap[at] != ((index << 49) | entry))
				at++;
			if (at < end) {
				m->rmap[at] = 0;
				m->rmap[node]--;
				m->rmap[RT_ENTRIES]--;
				drop_leaf(m, place, ipa);
			}
		} else {
			unlink_entry(m, child, child + 2 + index, entry);
			drop_leaf(m, place, ipa);
		}
	}
	if (m->rmap[RT_ENTRIES] != before)
		count_gone(m, owner(m, entry));
}

static inline void reverse_record(machine *m, u64 mmu, u64 ipa, u64 word)
{
	if (MMU(m, mmu, M_BROKEN) || m->regs[R_FAIL_ALLOCATION])
		return;
	if (m->rmap[RT_STALE] && m->side[word])
		reverse_unlink(m, word);
	leaf_link(m, ipa, entry_of(word, MMU(m, mmu, M_GENERATION)));
	m->side[word] = (ipa >> 12 << 24) | (3ULL << 16) | MMU(m, mmu, M_GENERATION);
	MMU(m, mmu, M_RECORDED)++;
}

static void flush_pending(machine *m)
{
	if (m->rmap[RT_FLUSH_END]) {
		flush_page(m);
		m->rmap[RT_FLUSH_END] = 0;
	}
}

static inline i64 clear_entry(machine *m, u64 entry)
{
	u64 mmu = owner(m, entry), word = entry & DESCRIPTOR, frame = word >> 9, ipa;

	m->rmap[RT_ENTRIES]--;
	count_gone(m, mmu);
	if (!mmu)
		return 0;
	ipa = FRAME(m, frame, BASE) + ((word & 511) << 12);
	clear_leaf(m, word);
	if (MMU(m, mmu, M_STAMP) != m->rmap[RT_STAMP]) {
		MMU(m, mmu, M_STAMP) = m->rmap[RT_STAMP];
		m->count[MMUS_VISITED]++;
	}
	if (m->rmap[RT_FLUSH_END] != ipa || m->rmap[RT_FLUSH_MMU] != mmu) {
		flush_pending(m);
		m->rmap[RT_FLUSH_MMU] = mmu;
		m->rmap[RT_FLUSH_START] = ipa;
	}
	m->rmap[RT_FLUSH_END] = ipa + 4096;
	return 1;
}

/* One page. Heads of blocks are read, as the product does; the trace maps none. */
static inline i64 reverse_unmap(machine *m, u64 ipa)
{
	u64 root = m->rmap[RT_ROOT], top = ipa >> 30, node, place, child, index = (ipa >> 12) & 511;
	i64 removed = 0;

	m->count[LOOKUPS]++;
	m->rmap[RT_STAMP]++;
	for (u64 mmu = 1; mmu <= m->regs[R_SHADOWS]; mmu++)
		if (MMU(m, mmu, M_BROKEN))
			return -1;
	m->count[NODES_VISITED]++;
	if (m->rmap[root + 2 + 1024 + top])
		return -1;
	node = m->rmap[root + 2 + top];
	if (!node)
		return 0;
	m->count[NODES_VISITED]++;
	if (m->rmap[node + 2 + 512 + ((ipa >> 21) & 511)])
		return -1;
	place = node + 2 + ((ipa >> 21) & 511);
	child = m->rmap[place];
	if (child >> 56) {
		u64 small = child & NODE;

		m->count[NODES_VISITED] += (1ULL << (child >> 56)) / 8;
		for (u64 at = small + 2; at < small + (1ULL << (child >> 56)); at++) {
			u64 item = m->rmap[at];

			if (item && item >> 49 == index) {
				m->rmap[at] = 0;
				m->rmap[small]--;
				removed += clear_entry(m, item & ENTRY);
			}
		}
	} else if (child) {
		u64 named = m->rmap[child + 2 + index];

		if (named) {
			m->rmap[child + 2 + index] = 0;
			while (named & CHAIN) {
				u64 entry = chain_pop(m, named & ~CHAIN, &named);

				m->count[NODES_VISITED]++;
				removed += clear_entry(m, entry);
			}
			if (named)
				removed += clear_entry(m, named);
			m->rmap[child]--;
		}
		m->count[NODES_VISITED]++;
	}
	if (child)
		drop_leaf(m, place, ipa);
	flush_pending(m);
	return removed;
}

void replay(machine *m, const u64 *events, i64 number, i64 *did)
{
	for (i64 i = 0; i < number; i++) {
		const u64 *event = events + 3 * i;
		u64 mmu = event[0] >> 8, word;
		int level;

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
