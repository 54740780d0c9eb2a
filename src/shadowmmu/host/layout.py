"""What the words of the host's arrays mean: VMA columns, page-table words, registers.

``vmas``
    rows ``0 .. regs[R_VMAS]`` are the VMAs, sorted and disjoint; the second half of the array
    (from row ``len(vmas) // 2``) is the draft that a plan works on before it is committed.
``hpmd``
    one word per 2M of the region, then one word per 1G that is not 0 once a page middle directory
    hangs there (as a populated PUD entry in the kernel).
``hpte``
    one word per 4K page; it counts only while the page's ``hpmd`` word says ``PMD_TABLE``. Where contents
    are kept (``R_CONTENTS``) a second half follows: what KSM remembers of each page.

Sizes are those of the 4K granule here; ``host.geometry`` has those of the machine's.
"""

from __future__ import annotations

from typing import Final

from shadowmmu.compiled import I64, U64
from shadowmmu.machine.state import R_HOST

HVA_BASE: Final = U64(0x4000_0000_0000)
"""Host virtual address of the first byte of the VMM's memory: aligned to every size of any granule."""

ZERO: Final = U64(0)
ONE: Final = U64(1)
NO_ROWS: Final[int] = I64(0)
"""An empty plan. Not a plain 0: Numba compiles a function anew for each plain number passed to it."""
ONE_ROW: Final[int] = I64(1)
TWO_ROWS: Final[int] = I64(2)

# Columns of ``vmas``. Addresses are bytes; the end is exclusive.
V_START: Final = 0
V_END: Final = 1
V_FLAGS: Final = 2
V_ANON: Final = 3  # number of its anon_vma, 0 before the first anonymous page
VMA_COLUMNS: Final = 4

# VMA flags. The access bits are those of mmap's PROT_READ and PROT_WRITE.
VM_READ: Final = U64(1 << 0)
VM_WRITE: Final = U64(1 << 1)
VM_HUGEPAGE: Final = U64(1 << 2)
VM_NOHUGEPAGE: Final = U64(1 << 3)
VM_MERGEABLE: Final = U64(1 << 4)
VM_HUGETLB: Final = U64(1 << 5)
VM_NORESERVE: Final = U64(1 << 6)  # the VMM's first mapping has it, a later MAP_FIXED one does not
VM_ACCESS: Final = U64(VM_READ | VM_WRITE)

# Advice, as numbered by Linux.
MADV_MERGEABLE: Final = 12
MADV_HUGEPAGE: Final = 14
MADV_NOHUGEPAGE: Final = 15

# Words of ``hpte`` and of a huge ``hpmd``: address bits 47:12, and
E_READ: Final = U64(1 << 0)  # present and accessible (clear under PROT_NONE)
E_WRITE: Final = U64(1 << 1)
E_ZERO: Final = U64(1 << 2)  # the shared (huge) zero page
E_IDLE: Final = U64(1 << 3)  # the page idle flag of the page's folio
E_HUGE: Final = U64(1 << 4)  # hpmd only: a 2M leaf
E_PRESENT: Final = U64(1 << 5)  # always set in a mapped entry
E_FOLIO: Final = U64(1 << 6)  # hpte only: a page of a 2M folio whose leaf was split
E_KSM: Final = U64(1 << 7)  # hpte only: a page that KSM merged; its frame may be mapped at several addresses
E_HUGETLB: Final = U64(1 << 10)  # each entry of a hugetlb page
E_LEAVING: Final = U64(1 << 8)  # hpte only: its huge page was split in order to move; it moves next
E_SWAP: Final = U64(1 << 11)  # hpte only: a page on swap space; its address is the frame it will come back in
E_MERGED: Final = U64(1 << 9)  # hpte only: was merged by KSM, went to swap space, and was not written since
E_ACCESS: Final = U64(E_READ | E_WRITE)
E_NOT_ACCESS: Final = U64(~E_ACCESS)
E_NOT_IDLE: Final = U64(~E_IDLE)
E_NOT_SWAP: Final = U64(~E_SWAP)
E_NOT_MERGED: Final = U64(~E_MERGED)
E_NOT_HUGE: Final = U64(~E_HUGE)
E_ADDRESS: Final = U64(0x0000_FFFF_FFFF_F000)

# Words of ``hpmd`` that are no leaf: 0 is none, and
PMD_TABLE: Final = U64(1 << 8)  # 512 words of hpte stand below
PMD_DETACHED: Final = U64(1 << 9)  # the same, taken off for a collapse under way

# Registers.
R_PAGES: Final = R_HOST  # pages of the region
R_HUGES: Final = R_HOST + 1  # its 2M blocks, rounded up
R_VMAS: Final = R_HOST + 2  # rows of vmas in use
R_DRAFT: Final = R_HOST + 3  # first row of the draft
R_DRAFT_VMAS: Final = R_HOST + 4  # rows of the draft in use
R_DRAFT_CHANGED: Final = R_HOST + 5
R_NEXT_ANON: Final = R_HOST + 6  # next anon_vma number
R_ZERO_PAGE: Final = R_HOST + 7  # physical address of the zero page
R_HUGE_ZERO: Final = R_HOST + 8  # physical address of the huge zero page
R_RESULT: Final = R_HOST + 9  # errno the system call ends with after doing part of its work, else 0
R_RESUME: Final = R_HOST + 10  # address from which to plan the rest of a range, 0 if none is left
R_PLAN_BASE: Final = R_HOST + 11  # row of ``plan`` that plans begin at, 0 unless another is under way
R_CONTENTS: Final = R_HOST + 12  # 1: what the VMM and L2 store is kept, for merging and zero pages
R_MERGE_SCAN: Final = R_HOST + 13  # which of KSM's scans is under way, 0 to KSM_SCANS - 1
R_SWAP: Final = R_HOST + 14  # 1: there is swap space
R_HUGETLB: Final = R_HOST + 15  # bytes of a hugetlb page

EAGAIN: Final = 11
ENOMEM: Final = 12
EFAULT: Final = 14
EINVAL: Final = 22
