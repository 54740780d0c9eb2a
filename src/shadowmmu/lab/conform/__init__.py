"""L0 held against the real kernel: recorded runs replayed, live runs generated, compared and shrunk.

``rows`` puts what the kernel and the model did into the same words, ``compare`` finds the first difference of
a run, ``generate`` makes scripts, ``live`` runs them on the rig and shrinks what differs. Must not know the
command line.
"""
