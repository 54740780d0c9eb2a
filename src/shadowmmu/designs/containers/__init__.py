"""The data structures that designs are made of, as kernels over one growable ``uint64`` array.

``pool`` hands out nodes of fixed sizes inside that array, ``maple`` is a maple tree with the node
geometry of Linux' ``lib/maple_tree.c`` (ranges of the whole 64-bit key space), ``rbtree`` a red-black
tree as ``lib/rbtree.c``. Every node a kernel enters is counted, so that designs can be compared without
a clock. Must not know what the keys mean, who holds which lock, or which design is asking.
"""
