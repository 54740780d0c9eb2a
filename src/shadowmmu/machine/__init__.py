"""The simulated hardware and what every room works on.

Physical memory as one flat ``uint64`` array (an address is an index), the allocator of table frames,
the content of guest pages, the counters, and the calls that stand for locks, allocations and
preemption points. Mirrors no kernel file. Must not know that KVM exists: the columns of the tables it
allocates are declared by the rooms that use them.
"""
