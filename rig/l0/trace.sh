# Function probes, all events into one buffer; sourced by init. Arguments by BTF name or register.
cd /sys/kernel/tracing
echo mono > trace_clock
echo 16384 > buffer_size_kb
probe() { echo "f:rig/$*" >> dynamic_events || echo "PROBE FAILED $*"; }
probe 's2map kvm_pgtable_stage2_map pgt=$arg1 vttbr=pgt->mmu->tlb_vttbr:x64 addr=$arg2:x64 size=$arg3:x64 phys=$arg4:x64 prot=$arg5:x64'
probe 's2relax kvm_pgtable_stage2_relax_perms pgt=$arg1 vttbr=pgt->mmu->tlb_vttbr:x64 addr=$arg2:x64 prot=$arg3:x64'
probe 'unmap_gfn kvm_unmap_gfn_range start=range->start:x64 end=range->end:x64 mayblock=range->may_block'
probe 'age_gfn kvm_age_gfn start=range->start:x64 end=range->end:x64'
probe 's2range kvm_stage2_unmap_range mmu=$arg1 pgt=mmu->pgt vttbr=mmu->tlb_vttbr:x64 addr=$arg2:x64 size=$arg3:x64'
probe 'wp_range kvm_stage2_wp_range mmu=$arg1 vttbr=mmu->tlb_vttbr:x64 start=$arg2:x64 end=$arg3:x64'
probe 's2split kvm_pgtable_stage2_split pgt=$arg1 addr=$arg2:x64 size=$arg3:x64'
probe 'walk_nested kvm_walk_nested_s2 gipa=$arg2:x64'
probe 'walk_nested_ret kvm_walk_nested_s2%return ret=$retval:s32'
probe 'inject_s2 kvm_inject_s2_fault esr=$arg2:x64'
# The pseudo-TLB of VNCR_EL2 (its members after an abort), and what of L1 stands in the fixmap.
probe 'vncr_abort kvm_handle_vncr_abort esr=vcpu->arch.fault.esr_el2:x64 far=vcpu->arch.fault.far_el2:x64'
probe 'vncr_tlb kvm_handle_vncr_abort%return gva=vcpu->arch.vncr_tlb->gva:x64 ipa=vcpu->arch.vncr_tlb->wr.pa:x64 hpa=vcpu->arch.vncr_tlb->hpa:x64 writable=vcpu->arch.vncr_tlb->hpa_writable valid=vcpu->arch.vncr_tlb->valid'
probe 'fixmap __set_fixmap idx=$arg1 phys=$arg2:x64 prot=$arg3:x64'
probe 'tlbi_el2 kvm_handle_s1e2_tlbi val=$arg3:x64'
echo 'comm == "vmm"' > events/rig/fixmap/filter
for event in rig kvm/kvm_guest_fault kvm/kvm_nested_eret kvm/kvm_inject_nested_exception; do
	echo 1 > "events/$event/enable"
done
