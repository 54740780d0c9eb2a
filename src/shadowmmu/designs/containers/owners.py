"""``owners``: the containers as Python objects that own and grow their memory.

For people who import a container on its own. Kernels use the functions of ``maple`` and ``rbtree``
directly; a call through these classes costs a Python call and a few conversions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from shadowmmu.compiled import U64, Word
from shadowmmu.designs.containers import interval_tree, maple, rbtree
from shadowmmu.designs.containers.checks import interval_check, maple_check, rb_check
from shadowmmu.designs.containers.pool import Pool
from shadowmmu.machine.counters import NODES_VISITED

__all__ = ["Interval", "IntervalTree", "MapleTree", "Mapping", "RangeEntry", "RedBlackTree"]

LAST_KEY: Final = (1 << 64) - 1


class RangeEntry(NamedTuple):
    """A range of a ``MapleTree``, both ends inclusive, and its value."""

    first: int
    last: int
    value: int


class Interval(NamedTuple):
    """An interval of an ``IntervalTree``, both ends inclusive, its value, and its node to remove it by."""

    first: int
    last: int
    value: int
    node: int


class Mapping(NamedTuple):
    """A node of a ``RedBlackTree``."""

    key: int
    value: int
    size: int


def _key(key: int) -> Word:
    if not 0 <= key <= LAST_KEY:
        raise ValueError(f"key {key} is not in 0 .. 2**64 - 1")
    return U64(key)


def _cursor(here: maple.MapleCursor) -> maple.MapleCursor:
    """A cursor that came out of compiled code, fit to go in again: its words have become ints."""
    return maple.MapleCursor(*map(U64, here))


class MapleTree:
    """Ranges of 64-bit keys, both ends inclusive, mapped to values from 1 to 2**64 - 1.

    ``pool`` lets several containers share one array. ``MemoryError`` when the pool has a limit and it is
    reached; the tree is then unchanged.

    >>> tree = MapleTree()
    >>> tree.store(0x1000, 0x2FFF, 7)
    >>> tree.store(0x1800, 0x1BFF, 9)
    >>> [(hex(first), hex(last), value) for first, last, value in tree]
    [('0x1000', '0x17ff', 7), ('0x1800', '0x1bff', 9), ('0x1c00', '0x2fff', 7)]
    >>> tree.erase(0x1810)
    RangeEntry(first=6144, last=7167, value=9)
    >>> 0x1810 in tree, tree[0x1000], len(tree)
    (False, 7, 2)
    """

    def __init__(self, fanout: int = 16, pool: Pool | None = None) -> None:
        """An empty tree whose inner nodes have ``fanout`` slots: 16 or 10. O(1)."""
        if fanout not in (int(maple.SLOTS), int(maple.ARANGE_SLOTS)):
            raise ValueError(f"an inner node has 16 or 10 slots, not {fanout}")
        self.pool = Pool() if pool is None else pool
        self.pool.reserve(maple.MAPLE_RESERVE_WORDS)
        self._tree = U64(maple.maple_create(self.pool.words, U64(fanout)))
        if not self._tree:
            raise MemoryError("no room for a tree in the pool")

    def store(self, first: int, last: int, value: int) -> None:
        """Map ``[first, last]`` to ``value``, 0 to erase the range; trims what it overlaps. O(log n)."""
        low, high = _key(first), _key(last)
        if first > last:
            raise ValueError(f"range [{first:#x}, {last:#x}] ends before it starts")
        self.pool.reserve(maple.MAPLE_RESERVE_WORDS)
        words, count = self.pool.words, self.pool.count
        if not maple.maple_store(words, count, self._tree, low, high, _key(value)):
            raise MemoryError("no room for the nodes of this store")

    def find(self, index: int, limit: int = LAST_KEY) -> RangeEntry | None:
        """First entry that overlaps ``[index, limit]``. O(log n)."""
        words, count = self.pool.words, self.pool.count
        entry = maple.maple_find(words, count, self._tree, _key(index), _key(limit))
        return RangeEntry(*map(int, entry)) if entry.value else None

    def erase(self, index: int) -> RangeEntry | None:
        """Remove the whole entry that covers ``index`` and return it. O(log n)."""
        self.pool.reserve(maple.MAPLE_RESERVE_WORDS)
        words, count = self.pool.words, self.pool.count
        entry = RangeEntry(*map(int, maple.maple_erase(words, count, self._tree, _key(index))))
        if entry.value:
            return entry
        if entry.first <= entry.last:
            raise MemoryError("no room for the nodes of this erasure")
        return None

    def clear(self) -> None:
        """Remove every entry. O(n)."""
        maple.maple_destroy(self.pool.words, self.pool.count, self._tree)

    def __getitem__(self, index: int) -> int:
        value = int(maple.maple_load(self.pool.words, self.pool.count, self._tree, _key(index)))
        if not value:
            raise KeyError(index)
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self.store(index, index, value)

    def __delitem__(self, index: int) -> None:
        if self.erase(index) is None:
            raise KeyError(index)

    def __contains__(self, index: int) -> bool:
        return bool(maple.maple_load(self.pool.words, self.pool.count, self._tree, _key(index)))

    def find_back(self, index: int, limit: int = 0) -> RangeEntry | None:
        """Last entry that overlaps ``[limit, index]``. O(log n)."""
        words, count = self.pool.words, self.pool.count
        here = maple.maple_seek_back(words, count, self._tree, _key(index), _key(limit))
        return RangeEntry(*map(int, here[:3])) if here.value else None

    def entries(self, index: int = 0, limit: int = LAST_KEY) -> Iterator[RangeEntry]:
        """Entries that overlap ``[index, limit]`` in key order; the tree may not change meanwhile.

        O(log n) for each leaf passed; inside a leaf no node is entered again.
        """
        words, count, end = self.pool.words, self.pool.count, _key(limit)
        here = maple.maple_seek(words, count, self._tree, _key(index), end)
        while here.value:
            yield RangeEntry(*map(int, here[:3]))
            here = maple.maple_next(words, count, self._tree, _cursor(here), end)

    def entries_back(self, index: int = LAST_KEY, limit: int = 0) -> Iterator[RangeEntry]:
        """Entries that overlap ``[limit, index]``, greatest first; otherwise as ``entries``."""
        words, count, end = self.pool.words, self.pool.count, _key(limit)
        here = maple.maple_seek_back(words, count, self._tree, _key(index), end)
        while here.value:
            yield RangeEntry(*map(int, here[:3]))
            here = maple.maple_prev(words, count, self._tree, _cursor(here), end)

    def __iter__(self) -> Iterator[RangeEntry]:
        """All entries in key order; the tree may not change meanwhile."""
        return self.entries()

    def __len__(self) -> int:
        return int(maple.maple_entries(self.pool.words, self._tree))

    @property
    def height(self) -> int:
        """Levels of nodes, 0 when empty."""
        return int(maple.maple_height(self.pool.words, self._tree))

    @property
    def bytes(self) -> int:
        """Bytes of the nodes in use, 256 each."""
        return int(maple.maple_bytes(self.pool.words, self._tree))

    @property
    def visited(self) -> int:
        """Nodes entered so far by all operations on this pool."""
        return int(self.pool.count[NODES_VISITED])

    def check(self) -> None:
        """Assert every invariant (``maple_check``). O(n)."""
        maple_check(self.pool.words, self._tree)


class RedBlackTree:
    """Mappings (value, size) under unique 64-bit keys, in key order.

    ``pool`` lets several containers share one array. ``MemoryError`` when the pool has a limit and it is
    reached; the tree is then unchanged.

    >>> tree = RedBlackTree()
    >>> tree.insert(0x3000, 0x8000, 0x1000), tree.insert(0x1000, 0x9000, 0x1000)
    (True, True)
    >>> tree.insert(0x3000, 0xA000, 0x1000)  # the first one wins
    False
    >>> tree[0x3000]
    Mapping(key=12288, value=32768, size=4096)
    >>> [hex(mapping.key) for mapping in tree]
    ['0x1000', '0x3000']
    """

    def __init__(self, pool: Pool | None = None) -> None:
        """An empty tree. O(1)."""
        self.pool = Pool() if pool is None else pool
        self.pool.reserve(rbtree.RB_RESERVE_WORDS)
        self._tree = U64(rbtree.rb_create(self.pool.words))
        if not self._tree:
            raise MemoryError("no room for a tree in the pool")

    def insert(self, key: int, value: int, size: int) -> bool:
        """Insert a mapping; False, and no change, if the key is there already. O(log n)."""
        self.pool.reserve(rbtree.RB_RESERVE_WORDS)
        words, count = self.pool.words, self.pool.count
        outcome = rbtree.rb_insert(words, count, self._tree, _key(key), _key(value), _key(size))
        if outcome == rbtree.NO_MEMORY:
            raise MemoryError("no room for a node")
        return bool(outcome == rbtree.INSERTED)

    def _mapping(self, node: Word) -> Mapping | None:
        if not node:
            return None
        base = int(node) + int(rbtree.N_KEY)
        return Mapping(*(int(word) for word in self.pool.words[base : base + 3]))

    def _find(self, key: int) -> Word:
        return U64(rbtree.rb_find(self.pool.words, self.pool.count, self._tree, _key(key)))

    def first(self) -> Mapping | None:
        """Mapping with the least key. O(log n)."""
        return self._mapping(rbtree.rb_first(self.pool.words, self.pool.count, self._tree))

    def last(self) -> Mapping | None:
        """Mapping with the greatest key. O(log n)."""
        return self._mapping(rbtree.rb_last(self.pool.words, self.pool.count, self._tree))

    def lower_bound(self, key: int) -> Mapping | None:
        """Mapping with the least key that is not below ``key``. O(log n)."""
        words, count = self.pool.words, self.pool.count
        return self._mapping(rbtree.rb_lower_bound(words, count, self._tree, _key(key)))

    def clear(self) -> None:
        """Remove every mapping. O(n)."""
        rbtree.rb_destroy(self.pool.words, self.pool.count, self._tree)

    def __getitem__(self, key: int) -> Mapping:
        mapping = self._mapping(self._find(key))
        if mapping is None:
            raise KeyError(key)
        return mapping

    def __delitem__(self, key: int) -> None:
        node = self._find(key)
        if not node:
            raise KeyError(key)
        rbtree.rb_erase(self.pool.words, self.pool.count, self._tree, node)

    def __contains__(self, key: int) -> bool:
        return bool(self._find(key))

    def __iter__(self) -> Iterator[Mapping]:
        """Mappings in key order; the tree may not change meanwhile."""
        node = U64(rbtree.rb_first(self.pool.words, self.pool.count, self._tree))
        while (mapping := self._mapping(node)) is not None:
            yield mapping
            node = U64(rbtree.rb_next(self.pool.words, self.pool.count, node))

    def __len__(self) -> int:
        return int(rbtree.rb_entries(self.pool.words, self._tree))

    @property
    def bytes(self) -> int:
        """Bytes of the nodes in use, 64 each."""
        return int(rbtree.rb_bytes(self.pool.words, self._tree))

    @property
    def visited(self) -> int:
        """Nodes entered so far by all operations on this pool."""
        return int(self.pool.count[NODES_VISITED])

    def check(self) -> None:
        """Assert every invariant (``rb_check``). O(n)."""
        rb_check(self.pool.words, self._tree)


class IntervalTree:
    """Intervals of 64-bit keys, which may overlap and repeat, by what overlaps a range.

    ``pool`` lets several containers share one array. ``MemoryError`` when the pool has a limit and it is
    reached; the tree is then unchanged.

    >>> tree = IntervalTree()
    >>> block, page = tree.insert(0x200000, 0x3FFFFF, 1), tree.insert(0x201000, 0x201FFF, 2)
    >>> [found.value for found in tree.overlaps(0x201800, 0x202000)]
    [1, 2]
    >>> tree.remove(block)
    >>> [found.value for found in tree.overlaps(0, 0x300000)], len(tree)
    ([2], 1)
    """

    def __init__(self, pool: Pool | None = None) -> None:
        """An empty tree. O(1)."""
        self.pool = Pool() if pool is None else pool
        self.pool.reserve(rbtree.RB_RESERVE_WORDS)
        self._tree = U64(rbtree.rb_create(self.pool.words))
        if not self._tree:
            raise MemoryError("no room for a tree in the pool")
        self._nodes: set[int] = set()

    def insert(self, first: int, last: int, value: int = 0) -> int:
        """Insert [``first``, ``last``]; its node, good until it is removed. O(log n)."""
        low, high, kept = _key(first), _key(last), _key(value)
        if first > last:
            raise ValueError(f"range [{first:#x}, {last:#x}] ends before it starts")
        self.pool.reserve(rbtree.RB_RESERVE_WORDS)
        words, count = self.pool.words, self.pool.count
        node = int(interval_tree.interval_insert(words, count, self._tree, low, high, kept))
        if not node:
            raise MemoryError("no room for a node")
        self._nodes.add(node)
        return node

    def remove(self, node: int) -> None:
        """Remove the interval that ``insert`` gave this node. O(log n). Raises KeyError for any other."""
        self._nodes.remove(node)
        interval_tree.interval_remove(self.pool.words, self.pool.count, self._tree, U64(node))

    def overlaps(self, first: int = 0, last: int = LAST_KEY) -> Iterator[Interval]:
        """Intervals that overlap [``first``, ``last``] in order of their first key; O(log n) each.

        The tree may not change meanwhile.
        """
        words, count, low, high = self.pool.words, self.pool.count, _key(first), _key(last)
        node = U64(interval_tree.interval_first(words, count, self._tree, low, high))
        while node:
            base = int(node) + int(rbtree.N_KEY)
            low_end, high_end, value = (int(word) for word in words[base : base + 3])
            yield Interval(low_end, high_end, value, int(node))
            node = U64(interval_tree.interval_next(words, count, node, low, high))

    def __iter__(self) -> Iterator[Interval]:
        """All intervals in order of their first key."""
        return self.overlaps()

    def clear(self) -> None:
        """Remove every interval. O(n)."""
        self._nodes.clear()
        rbtree.rb_destroy(self.pool.words, self.pool.count, self._tree)

    def __len__(self) -> int:
        return int(rbtree.rb_entries(self.pool.words, self._tree))

    @property
    def bytes(self) -> int:
        """Bytes of the nodes in use, 64 each."""
        return int(rbtree.rb_bytes(self.pool.words, self._tree))

    @property
    def visited(self) -> int:
        """Nodes entered so far by all operations on this pool."""
        return int(self.pool.count[NODES_VISITED])

    def check(self) -> None:
        """Assert every invariant (``interval_check``). O(n)."""
        interval_check(self.pool.words, self._tree)
