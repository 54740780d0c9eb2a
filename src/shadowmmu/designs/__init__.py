"""Ways to find what to unmap: one module a design, behind one interface, and the containers they need.

A design answers one question: *the host takes this canonical range away; what do I clear?* Mirrors, for
``sweep``, Linux 7.3.4 ``kvm_nested_s2_unmap``; the others name their source. Must not know who calls
and why. Designs that are wrong stay wrong on purpose: they are the negative controls, and say so.
"""
