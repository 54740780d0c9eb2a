"""The judge: invariants checked on a machine at rest, and what a violation means.

Holds the rules of upstream.md's appendix A that this version checks. Works on a ``State`` and its ghost
record, never on a design's own; must not know the command line.
"""
