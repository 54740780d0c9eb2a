"""The stage-2 page-table library: map with break-before-make, unmap, protect, age.

Mirrors Linux 7.3.4 ``arch/arm64/kvm/hyp/pgtable.c`` and the chunk loop ``stage2_apply_range`` of
``arch/arm64/kvm/mmu.c``. Works on any MMU of the machine by its index; must not know whose tables they
are, nor why a leaf goes.
"""
