"""The one error of this room: a text that is not what its format says, and on which line."""

from __future__ import annotations

from shadowmmu.errors import InputError


class FormatError(InputError):
    """A text that cannot be read: where, what was read, and what was expected there.

    ``line_number`` counts from 1; 0 means the text as a whole.
    """

    def __init__(self, path: str, line_number: int, read: str, expected: str) -> None:
        self.path = path
        self.line_number = line_number
        self.read = read
        self.expected = expected
        super().__init__(f"{path}:{line_number}: read {read!r}, expected {expected}")
