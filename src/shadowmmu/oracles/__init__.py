"""Engines nobody here wrote, asked the same questions as the model: QEMU, Unicorn, the real kernel's rig.

Mirrors no kernel file. The real kernel's recorded answers (``data/kernel_runs``, read by ``formats``) are
the only oracle of this version; the live ones move in here. Must not know how their answers are compared.
"""
