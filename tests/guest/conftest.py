"""The tests of the guest drive the same machine as those of L0: ``tests/kvm/kvm_lab.py``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "kvm"))
