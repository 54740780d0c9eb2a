"""shadowmmu: a laboratory for the shadow stage-2 MMUs of nested virtualisation on Arm.

The rooms (sub-packages) import in one direction only; see ``docs/architecture.md``.
"""

__version__ = "0.1.0"
