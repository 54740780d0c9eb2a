# Histograms of chunk unmaps and of ranged TLB invalidations, not in the buffer; sourced by init after trace.sh.
cd /sys/kernel/tracing
echo 'f:rig/s2unmap kvm_pgtable_stage2_unmap pgt=$arg1 addr=$arg2:x64 size=$arg3:x64' >> dynamic_events
echo 'f:rig/tlbrange kvm_tlb_flush_vmid_range mmu=$arg1 addr=$arg2:x64 size=$arg3:x64' >> dynamic_events
echo 'hist:keys=pgt,size:sort=hitcount' > events/rig/s2unmap/trigger
echo 'hist:keys=mmu,size' > events/rig/tlbrange/trigger
