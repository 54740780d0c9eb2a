"""The counters: exact, machine-independent, the numbers a reviewer asks for.

Each is an index into the int64 array ``State.count``. One declaration: the index, its public name and
its meaning stand on neighbouring lines, and ``DECLARED`` is what every table, report and test reads.
"""

from __future__ import annotations

from typing import Final

NOTIFIERS: Final = 0
NOTIFIERS_BLOCKABLE: Final = 1
MMUS_VISITED: Final = 2
MMUS_VALID: Final = 3
CHUNKS: Final = 4
DESCRIPTORS_READ: Final = 5
DESCRIPTORS_WRITTEN: Final = 6
GUEST_DESCRIPTORS_READ: Final = 7
LEAVES_REMOVED: Final = 8
OVER_UNMAPPED_LEAVES: Final = 9
OVER_UNMAPPED_BYTES: Final = 10
REFAULTS_NOTIFIER: Final = 11
REFAULTS_GUEST: Final = 12
FIRST_TOUCHES: Final = 13
TLBI_RANGE: Final = 14
TLBI_IPA: Final = 15
TLBI_VMID: Final = 16
TLBI_STAGE1: Final = 17
DSBS: Final = 18
TABLES_ALLOCATED: Final = 19
TABLES_FREED: Final = 20
LOOKUPS: Final = 21
NODES_VISITED: Final = 22
NODES_ALLOCATED: Final = 23
NODES_FREED: Final = 24
LOCK_READ: Final = 25
LOCK_WRITE: Final = 26
LOCK_HELD: Final = 27
LOCK_LONGEST: Final = 28
TREE_LOCKS: Final = 29
RESCHEDULES: Final = 30
FAULTS_SHADOW: Final = 31
FAULTS_CANONICAL: Final = 32
FAULTS_BOUNCED: Final = 33
FAULTS_INJECTED: Final = 34
FALLBACK_MMU: Final = 35
FALLBACK_VM: Final = 36
BROKEN: Final = 37
RECYCLED: Final = 38
WIPES: Final = 39
TLBIS_TRAPPED: Final = 40
HOST_FAULTS: Final = 41
COPIES_ON_WRITE: Final = 42
LEAVES_MAPPED: Final = 43
LEAVES_RELAXED: Final = 44
MMIO_EXITS: Final = 45
UNKNOWN_ENTRIES: Final = 46
ALLOCATION_FAILURES: Final = 47
CHUNKS_SHADOW: Final = 48
TLBI_RANGE_SHADOW: Final = 49
GUEST_ABORTS: Final = 50
REFAULTS_AVOIDABLE: Final = 51
AT_TRAPPED: Final = 52
AT_SLOW: Final = 53
AT_REPLAYED: Final = 54
FALLBACK_FRAME: Final = 55
DESCRIPTORS_SCANNED: Final = 56
TLBI_VMID_SHADOW: Final = 57
CACHE_CLEANS: Final = 58
CACHE_BYTES: Final = 59
MMUS_LEAKED: Final = 60
FAULTS_OWN: Final = 61
VNCR_ABORTS: Final = 62
VNCR_FILLS: Final = 63
VNCR_INVALIDATIONS: Final = 64
VNCR_OVER: Final = 65

DECLARED: Final[dict[int, tuple[str, str]]] = {
    NOTIFIERS: ("notifiers", "notifier calls that reached the VM (one per memslot overlapped)"),
    NOTIFIERS_BLOCKABLE: ("notifiers_blockable", "of these, how many could sleep"),
    MMUS_VISITED: ("shadow_mmus_visited", "shadow MMUs whose tables or record a notifier looked into"),
    MMUS_VALID: ("shadow_mmus_valid", "shadow MMUs that were valid, summed over notifiers"),
    CHUNKS: ("chunks", "calls of the unmap walker, one per chunk of the largest block size"),
    DESCRIPTORS_READ: ("descriptors_read", "stage-2 descriptors L0 read in its own tables"),
    DESCRIPTORS_WRITTEN: ("descriptors_written", "stage-2 descriptors L0 wrote in its own tables"),
    GUEST_DESCRIPTORS_READ: ("guest_descriptors_read", "guest stage-2 descriptors L0 read in L1's memory"),
    LEAVES_REMOVED: ("leaves_removed", "valid shadow leaves cleared, whatever the reason"),
    OVER_UNMAPPED_LEAVES: ("over_unmapped_leaves", "shadow leaves a notifier cleared outside its range"),
    OVER_UNMAPPED_BYTES: ("over_unmapped_bytes", "bytes those leaves covered"),
    REFAULTS_NOTIFIER: ("refaults_caused", "shadow fills where the last leaf was cleared by a notifier"),
    REFAULTS_GUEST: ("refaults_after_guest", "shadow fills after L1's own invalidation or a recycling"),
    FIRST_TOUCHES: ("first_touches", "shadow fills of an address never filled before in its MMU"),
    TLBI_RANGE: ("tlbi_range", "range TLB invalidations (RIPAS2E1IS) issued by L0"),
    TLBI_IPA: ("tlbi_ipa", "TLB invalidations by IPA (IPAS2E1IS) issued by L0"),
    TLBI_VMID: ("tlbi_vmid", "whole-VMID invalidations (VMALLS12E1IS) issued by L0"),
    TLBI_STAGE1: ("tlbi_stage1", "stage-1 invalidations (VMALLE1IS) that follow a stage-2 one"),
    DSBS: ("dsbs", "DSB barriers around them"),
    TABLES_ALLOCATED: ("tables_allocated", "table frames taken"),
    TABLES_FREED: ("tables_freed", "table frames given back"),
    LOOKUPS: ("lookups", "queries of the reverse map"),
    NODES_VISITED: ("nodes_visited", "nodes (or words of a flat record) visited in the reverse map"),
    NODES_ALLOCATED: ("nodes_allocated", "nodes of the reverse map taken"),
    NODES_FREED: ("nodes_freed", "nodes of the reverse map given back"),
    LOCK_READ: ("lock_read", "mmu_lock taken for read"),
    LOCK_WRITE: ("lock_write", "mmu_lock taken for write"),
    LOCK_HELD: ("lock_held", "work units done under mmu_lock held for write"),
    LOCK_LONGEST: ("lock_longest", "work units of the longest uninterrupted hold"),
    TREE_LOCKS: ("tree_locks", "times a lock of the reverse map itself was taken"),
    RESCHEDULES: ("reschedules", "points where a blockable caller could lose mmu_lock"),
    FAULTS_SHADOW: ("faults_shadow", "stage-2 aborts taken while a shadow MMU was loaded"),
    FAULTS_CANONICAL: ("faults_canonical", "stage-2 aborts taken while the canonical MMU was loaded"),
    FAULTS_BOUNCED: ("faults_bounced", "fills given up because a notifier ran (retried by the guest)"),
    FAULTS_INJECTED: ("faults_injected", "stage-2 faults forwarded to L1"),
    FALLBACK_MMU: ("fallbacks_mmu", "precise unmaps that fell back to one whole shadow MMU"),
    FALLBACK_VM: ("fallbacks_vm", "precise unmaps that fell back to every shadow MMU"),
    BROKEN: ("broken", "times a design gave up its record of an MMU"),
    RECYCLED: ("recycled", "shadow MMUs taken from their former tenant"),
    WIPES: ("wipes", "whole shadow MMUs unmapped for another reason than a notifier"),
    TLBIS_TRAPPED: ("tlbis_trapped", "TLBIs executed by L1 and emulated"),
    HOST_FAULTS: ("host_faults", "page faults of the host's memory manager"),
    COPIES_ON_WRITE: ("copies_on_write", "of these, copies of a zero or shared page"),
    LEAVES_MAPPED: ("leaves_mapped", "shadow leaves written"),
    LEAVES_RELAXED: ("leaves_relaxed", "shadow leaves whose permissions were widened in place"),
    MMIO_EXITS: ("mmio_exits", "accesses that left for the VMM"),
    UNKNOWN_ENTRIES: ("unknown_entries", "record entries that lost their nested address"),
    ALLOCATION_FAILURES: ("allocation_failures", "allocations that failed"),
    CHUNKS_SHADOW: ("chunks_shadow", "chunks walked in shadow tables"),
    TLBI_RANGE_SHADOW: ("tlbi_range_shadow", "range TLB invalidations for a shadow's VMID"),
    GUEST_ABORTS: ("guest_aborts", "stage-2 aborts of any kind, MMIO included"),
    REFAULTS_AVOIDABLE: ("refaults_avoidable", "of the refaults caused, those of over-unmapped leaves"),
    AT_TRAPPED: ("at_trapped", "AT instructions executed by L1 and emulated, each replay too"),
    AT_SLOW: ("at_slow", "of these, how many walked the guest's tables in software"),
    AT_REPLAYED: ("at_replayed", "of these, how many L1 had to execute again"),
    FALLBACK_FRAME: ("fallbacks_frame", "canonical frames that lost every leaf to keep a record short"),
    DESCRIPTORS_SCANNED: ("descriptors_scanned", "shadow descriptors read only to see whether they must go"),
    TLBI_VMID_SHADOW: ("tlbi_vmid_shadow", "whole-VMID invalidations for a shadow's VMID"),
    CACHE_CLEANS: ("cache_cleans", "leaves whose memory was cleaned to the point of coherency (no S2FWB)"),
    CACHE_BYTES: ("cache_bytes_cleaned", "bytes of memory that were cleaned"),
    MMUS_LEAKED: ("mmus_leaked", "shadow MMUs still referenced when the VM ended: warned of, never freed"),
    FAULTS_OWN: ("faults_own", "aborts given to the exception level that was running: L2's own, or L1's"),
    VNCR_ABORTS: ("vncr_aborts", "aborts on the page that L1's VNCR_EL2 names"),
    VNCR_FILLS: ("vncr_fills", "VNCR pseudo-TLB entries filled"),
    VNCR_INVALIDATIONS: ("vncr_invalidations", "VNCR pseudo-TLB entries invalidated, whatever the reason"),
    VNCR_OVER: ("vncr_over", "of these, how many by a canonical range that the page lies outside of"),
}

COUNTERS: Final = len(DECLARED)
"""How many there are: the length of ``State.count``."""


def counter_names() -> list[str]:
    """Public names in index order."""
    return [DECLARED[index][0] for index in range(COUNTERS)]
