"""hugetlb pages: one entry or many, all put in, made writable and taken away together.

Sizes are those of arm64 (``hugetlbpage.c`` of Linux 7.3.4): a PMD leaf (2M), a PUD leaf (1G, 4K granule
only), and contiguous runs of 16 PTEs (64K) or of 16 PMD leaves (32M). A run's frames lie side by side and it
is kept as the kernel keeps it, entry by entry; a 1G leaf is kept as 512 words too.
"""

from __future__ import annotations

from shadowmmu.compiled import I64, U64, Word, kernel
from shadowmmu.host.geometry import giga_size, huge_size, hugetlb_size, page_shift, page_size
from shadowmmu.host.layout import E_HUGE, E_HUGETLB, E_PRESENT, E_READ, E_WRITE, ONE, PMD_TABLE
from shadowmmu.host.tables import block_index, fresh_frames, giga_index, page_index
from shadowmmu.machine.counters import HOST_FAULTS
from shadowmmu.machine.state import State


@kernel
def fill_hugetlb(s: State, hva: Word, writable: bool) -> None:
    """Map the hugetlb page at ``hva`` to fresh frames. Mirrors the end of ``hugetlb_no_page``.

    O(entries). A page middle directory hangs over it, unless it is a PUD leaf.
    """
    s.count[HOST_FAULTS] += 1
    size = hugetlb_size(s)
    word = fresh_frames(s, U64(size >> page_shift(s))) | E_READ | E_HUGETLB | E_PRESENT
    if writable:
        word |= E_WRITE
    if size < giga_size(s):
        s.hpmd[giga_index(s, hva)] = ONE
    if size < huge_size(s):
        s.hpmd[block_index(s, hva)] = PMD_TABLE
        first = page_index(s, hva)
        for page in range(first, first + I64(size >> page_shift(s))):
            s.hpte[page] = word
            word += page_size(s)
        return
    first = block_index(s, hva)
    for block in range(first, first + I64(size // huge_size(s))):
        s.hpmd[block] = word | E_HUGE
        word += huge_size(s)


@kernel
def write_hugetlb(s: State, hva: Word) -> None:
    """Let the hugetlb page at ``hva`` be written: it is this process's alone (``hugetlb_wp``). O(entries)."""
    s.count[HOST_FAULTS] += 1
    size = hugetlb_size(s)
    if size < huge_size(s):
        first = page_index(s, hva)
        for page in range(first, first + I64(size >> page_shift(s))):
            s.hpte[page] |= E_WRITE
        return
    first = block_index(s, hva)
    for block in range(first, first + I64(size // huge_size(s))):
        s.hpmd[block] |= E_WRITE
