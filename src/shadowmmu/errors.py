"""The errors a user meets, each with its exit code. Anything else is an internal error (1)."""

from __future__ import annotations


class InputError(Exception):
    """What was given cannot be used: exit code 4."""


class UndeterminedError(Exception):
    """The question could not be answered within its bounds: exit code 3."""
