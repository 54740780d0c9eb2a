"""L0: what KVM/arm64 of Linux 7.3.4 does for a nested guest, one module per part of the kernel.

``slots`` and ``notifier`` mirror ``virt/kvm/kvm_main.c`` and ``mmu.c`` (memslots, MMU notifiers),
``pool`` and ``walk`` mirror ``nested.c`` (shadow MMUs, guest stage-2 walk), ``fault`` mirrors
``kvm_handle_guest_abort`` and ``user_mem_abort``, ``tlbi`` the emulation of L1's TLBIs, ``dirty`` dirty
logging. Must not know which design is plugged in: it calls ``designs.dispatch``.
"""
