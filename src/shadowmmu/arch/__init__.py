"""The Arm architecture (VMSAv8-64): translation regimes, descriptors, walks, faults, TLBIs, TLBs.

Mirrors chapter D8 of the Arm ARM (DDI 0487). Everything is parametrised by the translation regime
decoded from its control register, never by exception level or granule. Walks take the memory as an
array of 8-byte words, so the room stands alone: it imports no other room and does not know that a
hypervisor exists.
"""
