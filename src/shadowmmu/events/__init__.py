"""Events: the one table that every executor runs and every source writes.

``schema`` declares the row and the kinds, ``words`` and ``scenario`` read the scenario language (the
one of the real-kernel rig, see ``docs/scenario-language.md``), ``script`` writes it, ``storm`` generates
notifier storms. This room must not know who executes its events, nor any model of the kernel.
"""
