"""The tests of the engine stop and read machines with ``tests/kvm/kvm_lab.py``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "kvm"))
