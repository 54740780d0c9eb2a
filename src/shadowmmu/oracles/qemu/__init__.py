"""QEMU as a translation oracle: its page-table walks answer the questions that ``shadowmmu.arch`` answers.

A bare-metal stub (``stub.S``) runs at EL2 or EL3 of QEMU's ``virt`` machine, loads translation registers
and executes AT instructions or real loads, stores and fetches at EL1 and EL0. Guest RAM is shared memory,
so the model walks the very bytes that QEMU walked. ``compare`` runs both and lists where they differ;
``deviations`` says, as data, where QEMU is known to leave the architecture.
"""
