"""``reverse_table``: a page-table-shaped radix over canonical IPA. This project, 2026.

Idea: canonical IPA indexes a radix tree shaped like the page table itself. Where a leaf of that size would
stand, a word holds the *index of the shadow descriptor* and the *generation* of its MMU: an unmap reads the
words above and the subtree below its range and clears the descriptors they name, without walking any shadow
table. Two recorded leaves are disjoint or nested, because each is aligned in both spaces; so a slot for each
size class is exact: nothing splits, merges or spans. Aliases hang in a chain off the same word.
``side[descriptor]`` remembers the canonical address, so that a TLBI unlinks exactly; an unmap leaves it,
for what it says of a descriptor that is not recorded is never found. A wiped MMU gets a new generation and is
done: its entries are stale. A leaf node begins small and grows with what is in it.
Guarantees: exact under aliases within and across MMUs and for every mix of sizes. Ageing and write
protection use the same lookup and leave the record as it is. A stale entry is never acted on: the MMU that
owns its descriptor now has another generation. It goes when an unmap meets it or when its descriptor is
filled again, so there is at most one entry a descriptor; the footprint has it until then. When the
numbers run out, after 65,000 wipes, one pass over the record renumbers what lives.
Fails by memory beside the descriptors: ``side`` has a word for each of a shadow table, used or not, so a
table with one leaf costs 4 KiB there, as it does itself. A failed allocation marks the MMU broken, as does
the 33-millionth alias in one 2M, which nothing could count: its next unmap takes it whole and heals it.
Bytes a leaf: a word of 8 per canonical frame and 8 beside the descriptor; 17.5 measured, fills in order;
16 an alias and 16 more for the first. A page alone in its 2M has 64, eight of them 8 each, 64 of them 8,
65 of them, which need a full leaf, 63.
Locking, as a kernel would have it (the model runs one CPU at a time and only counts): fills hold mmu_lock for
read and run side by side. They read the words down from the root, and write (a) a child word that was 0, by
compare-and-swap of a whole zeroed node, whose loser gives its node back; (b) the record word, by
compare-and-swap from what they read there to their entry, or to a chain node in front of it, and again if
they lost; in a small leaf, an item into a place that was 0, the same way, or the next place if they lost (two
items of one page are two aliases, so nobody has to look for the other); (c) ``side`` of a descriptor, which
only the CPU that has just installed that leaf writes; (d) use counts, by atomic add, a count before what it
counts: the entries of a leaf are counted in the child word that names it, those of an MMU in its own row; no
word of the whole VM is written by every fill. No word moves and nothing is rebalanced, but for promotion. Who
finds a small leaf full freezes it: each word, a free one too, gets a bit (62) by compare-and-swap, after
which no fill changes it; copies the items into a zeroed larger leaf; and swaps the child word from the old
leaf to it, with the count as it is just then: a fill under way has its place in the count whichever leaf it
ends in. A fill whose compare-and-swap meets the bit freezes and copies as well, and the first swap of the
child word from one leaf to another wins; the losers give their copy back and go on under the new child word.
No item can be lost, as it is in a place before that place is frozen, or its own compare-and-swap fails and
starts again above; none comes twice, as one copy wins. The frozen leaf, which others may still read, is freed
by the next holder of the lock for write. A leaf that a fill replaces, and the stale entry of a descriptor
that it fills, are unlinked under the same lock: an item by compare-and-swap to 0, since no other CPU writes
that item but to freeze it (then it goes from the leaf that takes its place); of a chain that needs the word
locked by a bit; and an empty node has to stay until someone holds the lock for write (here it goes at once).
Everything that frees nodes, sorts a small leaf or clears words in passing (unmap, TLBI, wipe) holds mmu_lock
for write, so it excludes fills, and needs no lock of its own. The generation changes under it too. Where a
wipe or a TLBI of a large range gives the lock away with leaves still there that no record knows any more, L0
has to remember what is left of the range, and a notifier that comes between takes that whole
(``kvm/shadows.py``). An unmap does not give way in the middle of a range. Every order in which the steps of
fills can fall is tried in ``verify/parallel_fills.py``, on small leaves.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.arch.regime import Regime, level_shift
from shadowmmu.compiled import I64, U64, Word, apart, inline, kernel
from shadowmmu.designs.actions import act_on_whole_mmu
from shadowmmu.designs.interface import UNMAP
from shadowmmu.designs.reverse_ahead import leaf_near
from shadowmmu.designs.reverse_entries import (
    DESCRIPTOR,
    GENERATION,
    GENERATION_SHIFT,
    M_BROKEN,
    M_GENERATION,
    M_RECORDED,
    M_STAMP,
    OVER,
    count_gone,
    count_stale,
    entry_of,
    entry_owner,
    next_generation,
    set_broken,
    side_canonical,
    side_level,
    side_word,
)
from shadowmmu.designs.reverse_leaves import (
    COUNT_SHIFT,
    ENTRY,
    INDEX_SHIFT,
    LEAF_LEVEL,
    MANY,
    ONE_ENTRY,
    Leaf,
    count_small,
    drop_leaf,
    find_leaf,
    is_small,
    leaf_entries,
    leaf_link,
    leaf_names,
    leaf_node,
    leaf_slot,
    leaf_unlink,
    lone_word,
    small_end,
    sort_small,
    word_names,
)
from shadowmmu.designs.reverse_nodes import (
    CHAIN,
    RT_BLOCKS,
    RT_BROKEN,
    RT_BYTES,
    RT_FLUSH_END,
    RT_FLUSH_MMU,
    RT_FLUSH_START,
    RT_GENERATION,
    RT_GONE,
    RT_STALE,
    RT_STAMP,
    USED,
    chain_pop,
    child_slot,
    drop_empty_nodes,
    entry_index,
    find_node,
    link_entry,
    make_node,
    record_slot,
    reverse_init,
    unlink_entry,
)
from shadowmmu.designs.reverse_update import RENUMBER, update_entries
from shadowmmu.machine.calls import GFP_NOWAIT, allocation_fails
from shadowmmu.machine.counters import (
    BROKEN,
    FALLBACK_MMU,
    LOOKUPS,
    MMUS_VISITED,
    NODES_VISITED,
)
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import (
    CANONICAL,
    M_LEAVES,
    context_regime,
    input_size,
    shadow_mmus,
    shadow_valid,
)
from shadowmmu.pgtable.iterate import next_leaf
from shadowmmu.pgtable.tlb import defers_tlbi, flush_ipa, flush_range
from shadowmmu.pgtable.unmap import clear_leaf

ZERO: Final = U64(0)
ONE: Final = U64(1)


@kernel
def reverse_table_init(s: State) -> None:
    """An empty record; each shadow MMU gets a generation of its own."""
    reverse_init(s)
    s.rmap[RT_GENERATION] = OVER
    for mmu in range(1, shadow_mmus(s) + 1):
        next_generation(s, mmu)


@kernel
def reverse_record(s: State, mmu: int, canonical_ipa: Word, level: int, word: Word) -> None:
    """Remember that shadow descriptor ``word`` maps the ``level`` leaf at ``canonical_ipa``.

    O(levels), amortised over promotions. mmu_lock is held for read: see the module's *Locking*.
    """
    if s.mmus[mmu, M_BROKEN] != ZERO:
        return
    if allocation_fails(s, GFP_NOWAIT):
        set_broken(s, mmu, ONE)
        s.count[BROKEN] += 1
        return
    if s.rmap[RT_STALE] != ZERO and s.side[word] != ZERO:
        forget_former(s, word)
    r = context_regime(s, CANONICAL)
    generation = s.mmus[mmu, M_GENERATION]
    if level == LEAF_LEVEL:
        if not leaf_link(s, r, canonical_ipa, entry_of(word, generation)):
            set_broken(s, mmu, ONE)
            s.count[BROKEN] += 1
            return
    else:
        link_block(s, r, canonical_ipa, level, entry_of(word, generation))
    s.side[word] = side_word(canonical_ipa, level, generation)
    s.mmus[mmu, M_RECORDED] += ONE


@apart
def link_block(s: State, r: Regime, canonical_ipa: Word, level: int, entry: Word) -> None:
    """Put the entry of a block under its head. O(levels)."""
    node = make_node(s, r, canonical_ipa, level)
    slot = record_slot(s, r, node, level, entry_index(r, level, canonical_ipa))
    if s.rmap[slot] == ZERO:
        s.rmap[node + USED] += ONE
    link_entry(s, slot, entry)
    s.rmap[RT_BLOCKS] += ONE


@kernel
def unlink_block(s: State, r: Regime, canonical_ipa: Word, level: int, entry: Word) -> bool:
    """Take the entry of a block off its head; whether it was there. O(levels + aliases)."""
    node = find_node(s, r, canonical_ipa, level)
    if node == ZERO:
        return False
    slot = record_slot(s, r, node, level, entry_index(r, level, canonical_ipa))
    if not unlink_entry(s, slot, entry):
        return False
    s.rmap[RT_BLOCKS] -= ONE
    if s.rmap[slot] == ZERO:
        s.rmap[node + USED] -= ONE
        drop_empty_nodes(s, r, node, level, canonical_ipa)
    return True


@apart
def forget_former(s: State, word: Word) -> None:
    """Take off the record what is left of a life of descriptor ``word`` that a wipe ended."""
    reverse_unlink(s, word)


@kernel
def reverse_unlink(s: State, word: Word) -> None:
    """Take shadow descriptor ``word`` off the record, live or stale, if it is on it. O(levels + aliases)."""
    recorded = s.side[word]
    if recorded == ZERO:
        return
    s.side[word] = ZERO
    canonical_ipa = side_canonical(recorded)
    level = side_level(recorded)
    entry = entry_of(word, recorded & GENERATION)
    r = context_regime(s, CANONICAL)
    if level == LEAF_LEVEL:
        gone = leaf_unlink(s, r, canonical_ipa, entry)
    else:
        gone = unlink_block(s, r, canonical_ipa, level, entry)
    if gone:
        count_gone(s, entry_owner(s, entry))


@kernel
def reverse_forget(s: State, mmu: int, start: Word, end: Word) -> None:
    """Unlink every recorded leaf of nested [start, end), a leaf that sticks out included."""
    ipa = start
    while ipa < end:
        visit = next_leaf(s, mmu, ipa, end)
        if visit.word == ZERO:
            return
        reverse_unlink(s, visit.word)
        ipa = visit.after


@kernel
def reverse_forget_mmu(s: State, mmu: int) -> None:
    """A shadow MMU is about to be wiped: its entries are stale from now on. O(1).

    If broken, it stays so until ``reverse_settle``. Once in 65,000 times the numbers run out: O(entries).
    """
    s.rmap[RT_STALE] += s.mmus[mmu, M_RECORDED]
    s.mmus[mmu, M_RECORDED] = ZERO
    next_generation(s, mmu)
    if s.rmap[RT_GENERATION] == GENERATION:
        renumber(s)


@inline
def reverse_settle(s: State, mmu: int) -> None:
    """A shadow MMU was wiped: if nothing is left in it, its (empty) record is complete."""
    if s.mmus[mmu, M_LEAVES] == ZERO:
        set_broken(s, mmu, ZERO)


@apart
def renumber(s: State) -> None:
    """Give every MMU a small generation again, and its entries with it. O(nodes + entries)."""
    update_entries(s, ZERO, input_size(s, CANONICAL), RENUMBER)
    s.rmap[RT_GENERATION] = OVER
    for mmu in range(1, shadow_mmus(s) + 1):
        next_generation(s, mmu)


@inline
def flush_pending(s: State) -> None:
    """Invalidate the run of nested addresses gathered so far."""
    if s.rmap[RT_FLUSH_END] != ZERO:
        size = s.rmap[RT_FLUSH_END] - s.rmap[RT_FLUSH_START]
        flush_range(s, I64(s.rmap[RT_FLUSH_MMU]), s.rmap[RT_FLUSH_START], size)
        s.rmap[RT_FLUSH_END] = ZERO


@inline
def clear_entry(s: State, entry: Word) -> int:
    """An entry has gone: clear its shadow leaf, and gather the invalidation with its neighbours'; 1.

    0 if the entry was stale: there is nothing to clear.
    """
    owner = entry_owner(s, entry)
    if owner == CANONICAL:
        count_stale(s, ONE)
        return 0
    clear_live(s, entry & DESCRIPTOR, owner)
    return 1


@inline
def clear_live(s: State, descriptor: Word, owner: int) -> None:
    """Clear the shadow leaf of a live entry that has gone, of MMU ``owner``."""
    s.rmap[RT_GONE] += ONE
    s.mmus[owner, M_RECORDED] -= ONE
    leaf = clear_leaf(s, descriptor)
    if s.mmus[owner, M_STAMP] != s.rmap[RT_STAMP]:
        s.mmus[owner, M_STAMP] = s.rmap[RT_STAMP]
        s.count[MMUS_VISITED] += 1
    if not defers_tlbi(s):
        flush_ipa(s, owner, leaf.ipa)
        return
    mmu = U64(owner)
    if s.rmap[RT_FLUSH_END] != leaf.ipa or s.rmap[RT_FLUSH_MMU] != mmu:
        flush_pending(s)
        s.rmap[RT_FLUSH_MMU] = mmu
        s.rmap[RT_FLUSH_START] = leaf.ipa
    s.rmap[RT_FLUSH_END] = leaf.ipa + leaf.size


@apart
def clear_named(s: State, named: Word) -> int:
    """Clear every shadow leaf that a record word names, and free its chain; how many went."""
    removed = 0
    while named & CHAIN != ZERO:
        s.count[NODES_VISITED] += 1
        entry, named = chain_pop(s, named)
        removed += clear_entry(s, entry)
    if named != ZERO:
        removed += clear_entry(s, named)
    return removed


@apart
def clear_slot(s: State, node: Word, slot: Word) -> int:
    """Clear every shadow block the head at ``slot`` names, and empty it; how many went."""
    named = s.rmap[slot]
    before = s.rmap[RT_GONE]
    s.rmap[slot] = ZERO
    s.rmap[node + USED] -= ONE
    removed = clear_named(s, named)
    s.rmap[RT_BLOCKS] -= s.rmap[RT_GONE] - before
    return removed


@apart
def heal_broken(s: State, may_block: bool) -> int:
    """Unmap whole every MMU whose record is not complete; it is complete (and empty) afterwards."""
    removed = 0
    for mmu in range(1, shadow_mmus(s) + 1):
        if s.mmus[mmu, M_BROKEN] != ZERO and shadow_valid(s, mmu):
            s.count[FALLBACK_MMU] += 1
            s.count[MMUS_VISITED] += 1
            reverse_forget_mmu(s, mmu)
            removed += act_on_whole_mmu(s, mmu, may_block, UNMAP)
            reverse_settle(s, mmu)
    return removed


@apart
def clear_items(s: State, child: Word, first: Word, last: Word) -> int:
    """Clear what the items of a small leaf name for pages ``first`` to ``last``; how many leaves went."""
    count_small(s, child)
    if last > first:
        sort_small(s, child)  # neighbours one after the other share an invalidation
    removed = 0
    at = leaf_node(child)
    end = small_end(child)
    while at < end:
        item = s.rmap[at]
        index = item >> INDEX_SHIFT
        if item != ZERO and first <= index and index <= last:
            s.rmap[at] = ZERO
            removed += clear_entry(s, item & ENTRY)
        at += ONE
    return removed


@inline
def clear_words(s: State, child: Word, first: Word, last: Word) -> int:
    """Clear what the words of a full leaf name for pages ``first`` to ``last``; how many leaves went."""
    removed = 0
    stale = ZERO
    owner = CANONICAL
    life = ZERO  # a generation is one MMU's: entries that share it share the owner
    slot = leaf_slot(child, first)
    stop = leaf_slot(child, last)
    while slot <= stop:
        named = s.rmap[slot]
        if named != ZERO:
            s.rmap[slot] = ZERO
            if named & CHAIN != ZERO:
                removed += clear_named(s, named)
            else:
                if named >> GENERATION_SHIFT != life:
                    life = named >> GENERATION_SHIFT
                    owner = entry_owner(s, named)
                if owner == CANONICAL:
                    stale += ONE
                else:
                    clear_live(s, named & DESCRIPTOR, owner)
                    removed += 1
        slot += ONE
    count_stale(s, stale)
    s.count[NODES_VISITED] += I64(last - first) + 1
    return removed


@inline
def clear_leaf_words(s: State, r: Regime, place: Word, start: Word, end: Word) -> int:
    """Clear what the leaf at ``place`` names for canonical [start, end); how many shadow leaves went."""
    child = s.rmap[place]
    before = s.rmap[RT_GONE]
    first = entry_index(r, LEAF_LEVEL, start)
    last = entry_index(r, LEAF_LEVEL, end - ONE)
    if is_small(child):
        removed = clear_items(s, child, first, last)
    else:
        removed = clear_words(s, child, first, last)
    s.rmap[place] = child - ((s.rmap[RT_GONE] - before) << COUNT_SHIFT)
    return removed


@inline
def clear_lone(s: State, r: Regime, leaf: Leaf, at: Word) -> int:
    """Clear what the only entry of a page names, which is at ``at``, or 0; how many shadow leaves went."""
    s.count[NODES_VISITED] += LEAF_LEVEL - r.start_level
    if is_small(leaf.child):
        count_small(s, leaf.child)
    else:
        s.count[NODES_VISITED] += 1
    if at == ZERO:
        return 0
    entry = s.rmap[at] & ENTRY
    s.rmap[at] = ZERO
    s.rmap[leaf.place] = leaf.child - ONE_ENTRY
    removed = clear_entry(s, entry)
    flush_pending(s)
    return removed


@kernel
def reverse_unmap(s: State, start: Word, end: Word, may_block: bool) -> int:
    """Clear every shadow leaf over canonical [start, end); how many went.

    O(levels + words of the range + leaves cleared), whatever else is mapped.
    """
    s.count[LOOKUPS] += 1
    s.rmap[RT_STAMP] += ONE
    removed = 0
    if s.rmap[RT_BROKEN] != ZERO:
        removed = heal_broken(s, may_block)
    r = context_regime(s, CANONICAL)
    if end - start == ONE << U64(r.page_shift):
        leaf = find_leaf(s, start, s.rmap[RT_BLOCKS])
        if leaf.place != ZERO and leaf_entries(leaf.child) > ONE:
            at = lone_word(s, leaf)
            if at != MANY:
                return removed + clear_lone(s, r, leaf, at)
    return removed + unmap_range(s, r, start, end)


@apart
def unmap_range(s: State, r: Regime, start: Word, end: Word) -> int:
    """``reverse_unmap`` where every record is complete."""
    removed = 0
    ipa = start
    while ipa < end:
        level = r.start_level
        node = find_node(s, r, ipa, level)
        place = ZERO
        while True:
            s.count[NODES_VISITED] += 1
            index = entry_index(r, level, ipa)
            head = record_slot(s, r, node, level, index)
            if s.rmap[head] != ZERO:
                removed += clear_slot(s, node, head)
            place = child_slot(node, index)
            if level == LEAF_LEVEL - 1 or s.rmap[place] == ZERO:
                break
            node = s.rmap[place]
            level += 1
        shift = U64(level_shift(r, level))
        after = ((ipa >> shift) + ONE) << shift
        if s.rmap[place] != ZERO:
            leaf_near(s, s.rmap[place + ONE])
            removed += clear_leaf_words(s, r, place, ipa, after if after < end else end)
            drop_leaf(s, r, node, place, ipa)
        else:
            drop_empty_nodes(s, r, node, level, ipa)
        ipa = after
    flush_pending(s)
    return removed


@kernel
def reverse_covers(s: State, mmu: int, canonical_ipa: Word, level: int, word: Word) -> bool:
    """Whether a live entry names the descriptor of a leaf, or its MMU is known to be incomplete."""
    if s.mmus[mmu, M_BROKEN] != ZERO:
        return True
    if s.side[word] & GENERATION != s.mmus[mmu, M_GENERATION]:
        return False
    entry = entry_of(word, s.mmus[mmu, M_GENERATION])
    before = s.count[NODES_VISITED]
    r = context_regime(s, CANONICAL)
    found = False
    if level == LEAF_LEVEL:
        found = leaf_names(s, r, canonical_ipa, entry)
    else:
        node = find_node(s, r, canonical_ipa, level)
        if node != ZERO:
            slot = record_slot(s, r, node, level, entry_index(r, level, canonical_ipa))
            found = word_names(s, s.rmap[slot], entry)
    s.count[NODES_VISITED] = before
    return found


@kernel
def reverse_recorded(s: State) -> int:
    """Live entries. The stale ones, ``RT_STALE`` of them, are no part of the answer but of the footprint.

    O(MMUs): no sum is kept, to which every fill of the VM would have to add.
    """
    recorded = ZERO
    for mmu in range(1, shadow_mmus(s) + 1):
        recorded += s.mmus[mmu, M_RECORDED]
    return I64(recorded)


@kernel
def reverse_bytes(s: State) -> int:
    """Bytes of nodes and chains; ``side`` is counted by the caller, a word a descriptor."""
    return I64(s.rmap[RT_BYTES])
