"""The real kernel as an oracle: Linux with nested KVM under QEMU, a bare-metal L1, scripts in, answers out.

Mirrors no kernel file: it runs one. ``rig/`` of the repository has what runs inside and prepares the folder
this needs (``make rig``). Must not know how its answers are compared.
"""

from __future__ import annotations

from shadowmmu.oracles.rig.driver import PARANGE, Rig, RigRun, qemu_version
from shadowmmu.oracles.rig.locate import missing_parts, rig_folder, sources
from shadowmmu.oracles.rig.scripts import MODEL_ONLY, check_script, in_model, observed, traced

__all__ = [
    "MODEL_ONLY",
    "PARANGE",
    "Rig",
    "RigRun",
    "check_script",
    "in_model",
    "missing_parts",
    "observed",
    "qemu_version",
    "rig_folder",
    "sources",
    "traced",
]
