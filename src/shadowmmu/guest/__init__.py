"""L1 as a hypervisor, and L2: who writes guest stage-2 tables, and who uses them.

Models the rig's bare-metal L1 (stage 1 off): it builds tables in its own memory, through the canonical
stage 2 like any guest, and runs an L2 that reads, writes or executes along a stride. An access that
aborts goes to L0 (``kvm.fault``) as the architecture's exception would. Must not know L0's internals.
"""
