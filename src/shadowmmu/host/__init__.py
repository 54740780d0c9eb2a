"""The host's memory manager as the VMM's own process sees it: VMAs, page tables, and their notifiers.

One process, one anonymous private (or hugetlb) mapping at ``HVA_BASE``: the guest's RAM. Mirrors the
parts of Linux 7.3.4 ``mm/`` that move that RAM about: ``memory.c``, ``huge_memory.c``, ``vma.c``,
``mprotect.c``, ``madvise.c``, ``khugepaged.c``, ``page_idle.c``. Must not know guests or KVM: an
operation is a *plan* of steps, and the notifiers among them are the caller's to carry out.
"""
