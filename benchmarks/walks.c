/* The peer of shadowmmu.arch's walks: the same run-time parameters and the same checks, gcc -O2.
 *
 * Stage 2: input size, start table and every output against the output size, the end of memory, blocks by
 * level, three address formats, byte order, access flag, permissions with XNX and dirty state, PTW.
 * Stage 1: TBI, both halves' range, table bits, direct permissions, PAN, and each descriptor through stage 2.
 * Results: the output address, or bit 63 with the packed fault.
 */
#include <stddef.h>
#include <stdint.h>

typedef uint64_t u64;

struct regime {
	int64_t page_shift, stride, start_level, ia_bits, oa_bits, wide, block_level;
};

struct stage2 {
	int64_t enabled, refused;
	struct regime r;
	u64 root;
	int64_t ha, hd, xnx, fwb, ptw, big_endian;
};

struct stage1 {
	int64_t enabled, refused;
	struct regime r;
	u64 root;
	int64_t has_el0, upper, tbi, tables_count, ha, hd, wxn, epan, big_endian;
};

struct access {
	int64_t el, kind, pan, both_stages, pa_bits;
};

struct memory {
	const u64 *words;
	u64 size;
};

struct found {
	int64_t fault, level, stage, s1ptw;
	u64 output, descriptor, tables;
};

enum { NONE, ADDRESS_SIZE, TRANSLATION, ACCESS_FLAG, PERMISSION, EXTERNAL_WALK };
enum { READ, WRITE, EXECUTE };

#define BIT(n) (1ULL << (n))
#define MASK(n) (BIT(n) - 1)
#define FAILED BIT(63)

static inline struct found fail(int64_t fault, int64_t level, int64_t stage, int64_t s1ptw)
{
	return (struct found){ fault, level, stage, s1ptw, 0, 0, 0 };
}

static inline u64 load(const struct memory *m, u64 word, int64_t big_endian)
{
	u64 d = m->words[word];

	return big_endian ? __builtin_bswap64(d) : d;
}

static inline int64_t shift_of(const struct regime *r, int64_t level)
{
	return r->page_shift + r->stride * (3 - level);
}

static inline u64 address_in(const struct regime *r, u64 d)
{
	if (r->wide == 0)
		return d & 0x0000FFFFFFFFF000ULL;
	if (r->wide == 1)
		return (d & 0x0000FFFFFFFFF000ULL) | ((d >> 12 & 15) << 48);
	return (d & 0x0003FFFFFFFFF000ULL) | ((d >> 8 & 3) << 50);
}

static inline u64 output_of(const struct regime *r, u64 d, int64_t level, u64 ia)
{
	u64 inside = MASK(shift_of(r, level));

	return (address_in(r, d) & ~inside) | (ia & inside);
}

static inline int64_t leaf_fault(const struct regime *r, u64 d, int64_t level, u64 output)
{
	if (level == 3 ? !(d & 2) : level < r->block_level)
		return TRANSLATION;
	return output >> r->oa_bits ? ADDRESS_SIZE : NONE;
}

static inline int allowed2(const struct stage2 *s, u64 d, int64_t kind, int64_t el)
{
	u64 xn = d >> 53 & 3;

	if (kind == EXECUTE) {
		if (!s->xnx)
			return !(xn & 2);
		return el == 1 ? xn == 0 || xn == 3 : xn < 2;
	}
	if (kind == WRITE)
		return d & BIT(7) || (s->hd && d & BIT(51));
	return (d & BIT(6)) != 0;
}

static inline struct found walk2(const struct memory *m, const struct stage2 *s, u64 ipa, int64_t kind,
				 int64_t el, int64_t s1ptw)
{
	const struct regime *r = &s->r;
	int64_t level = r->start_level, shift, fault;
	u64 word, d, next, output;

	if (!s->enabled)
		return (struct found){ NONE, 0, 2, s1ptw, ipa, 0, 0 };
	if (s->refused || ipa >> r->ia_bits)
		return fail(TRANSLATION, 0, 2, s1ptw);
	if (s->root >> r->oa_bits)
		return fail(ADDRESS_SIZE, 0, 2, s1ptw);
	shift = shift_of(r, level);
	word = (s->root >> 3) + (ipa >> shift);
	for (;;) {
		if (word >= m->size)
			return fail(EXTERNAL_WALK, level, 2, s1ptw);
		d = load(m, word, s->big_endian);
		if (!(d & 1))
			return fail(TRANSLATION, level, 2, s1ptw);
		if (level == 3 || !(d & 2))
			break;
		next = address_in(r, d) & ~MASK(r->page_shift);
		if (next >> r->oa_bits)
			return fail(ADDRESS_SIZE, level, 2, s1ptw);
		level++;
		shift -= r->stride;
		word = (next >> 3) + (ipa >> shift & MASK(r->stride));
	}
	output = output_of(r, d, level, ipa);
	fault = leaf_fault(r, d, level, output);
	if (fault)
		return fail(fault, level, 2, s1ptw);
	if (!(d & BIT(10)) && !s->ha)
		return fail(ACCESS_FLAG, level, 2, s1ptw);
	if (!allowed2(s, d, kind, el))
		return fail(PERMISSION, level, 2, s1ptw);
	if (s1ptw && s->ptw && (s->fwb ? !(d & BIT(4)) : !(d & 0x30)))
		return fail(PERMISSION, level, 2, s1ptw);
	return (struct found){ NONE, level, 2, s1ptw, output, d, 0 };
}

static inline int allowed1(const struct stage1 *s, u64 d, u64 tables, const struct access *a)
{
	int pw, ur, uw, px, ux, uxn, pxn;

	if (!s->tables_count)
		tables = 0;
	pw = (!(d & BIT(7)) || (s->hd && d & BIT(51))) && !(tables & BIT(62));
	uxn = (d & BIT(54)) || (tables & BIT(60));
	if (!s->has_el0) {
		px = !uxn && !(s->wxn && pw);
		return a->kind == EXECUTE ? px : a->kind == WRITE ? pw : 1;
	}
	ur = (d & BIT(6)) && !(tables & BIT(61));
	uw = ur && pw;
	pxn = (d & BIT(53)) || (tables & BIT(59));
	px = !pxn && !uw && !(s->wxn && pw);
	ux = !uxn && !(s->wxn && uw);
	if (a->el == 0)
		return a->kind == EXECUTE ? ux : a->kind == WRITE ? uw : ur;
	if (a->kind == EXECUTE)
		return px;
	if (a->pan && (ur || (s->epan && ux)))
		return 0;
	return a->kind == WRITE ? pw : 1;
}

static inline struct found walk1(const struct memory *m, const struct stage1 *s, const struct stage2 *s2,
				 const struct access *a, u64 va)
{
	const struct regime *r = &s->r;
	int64_t level = r->start_level, shift, fault;
	u64 ia, above, entry, d, next, output, tables = 0;
	struct found at;

	if (s->tbi)
		va = s->upper ? va | 0xFFULL << 56 : va & MASK(56);
	if (!s->enabled) {
		if (va >> a->pa_bits)
			return fail(ADDRESS_SIZE, 0, 1, 0);
		return (struct found){ NONE, 0, 1, 0, va, 0, 0 };
	}
	above = va >> r->ia_bits;
	if (s->refused || above != (s->upper && s->has_el0 ? MASK(64 - r->ia_bits) : 0))
		return fail(TRANSLATION, 0, 1, 0);
	if (s->root >> r->oa_bits)
		return fail(ADDRESS_SIZE, 0, 1, 0);
	ia = va & MASK(r->ia_bits);
	shift = shift_of(r, level);
	entry = s->root + ((ia >> shift) << 3);
	for (;;) {
		at = walk2(m, s2, entry, READ, 1, 1);
		if (at.fault)
			return at;
		if (at.output >> 3 >= m->size)
			return fail(EXTERNAL_WALK, level, 1, 0);
		d = load(m, at.output >> 3, s->big_endian);
		if (!(d & 1))
			return fail(TRANSLATION, level, 1, 0);
		if (level == 3 || !(d & 2))
			break;
		next = address_in(r, d) & ~MASK(r->page_shift);
		if (next >> r->oa_bits)
			return fail(ADDRESS_SIZE, level, 1, 0);
		tables |= d;
		level++;
		shift -= r->stride;
		entry = next + ((ia >> shift & MASK(r->stride)) << 3);
	}
	output = output_of(r, d, level, ia);
	fault = leaf_fault(r, d, level, output);
	if (fault)
		return fail(fault, level, 1, 0);
	if (!(d & BIT(10)) && !s->ha)
		return fail(ACCESS_FLAG, level, 1, 0);
	if (!allowed1(s, d, tables, a))
		return fail(PERMISSION, level, 1, 0);
	return (struct found){ NONE, level, 1, 0, output, d, tables };
}

static inline u64 word_of(struct found f)
{
	if (!f.fault)
		return f.output;
	return FAILED | (u64)f.fault | (u64)(f.level + 1) << 8 | (u64)f.stage << 16 | (u64)f.s1ptw << 24;
}

void stage2_many(const u64 *words, u64 size, const struct stage2 *s2, int64_t kind, const u64 *in, size_t n,
		 u64 *out)
{
	struct memory m = { words, size };

	for (size_t i = 0; i < n; i++)
		out[i] = word_of(walk2(&m, s2, in[i], kind, 1, 0));
}

void translate_many(const u64 *words, u64 size, const struct stage1 *halves, const struct stage2 *s2,
		    const struct access *a, const u64 *in, size_t n, u64 *out)
{
	struct memory m = { words, size };
	struct found f;

	for (size_t i = 0; i < n; i++) {
		f = walk1(&m, &halves[in[i] >> 55 & 1], s2, a, in[i]);
		if (!f.fault && a->both_stages && s2->enabled)
			f = walk2(&m, s2, f.output, a->kind, a->el, 0);
		out[i] = word_of(f);
	}
}
