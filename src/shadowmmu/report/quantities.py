"""How quantities are written: sizes as 4K, counts in groups of three, times with three digits."""

from __future__ import annotations

_UNITS = ("", "K", "M", "G", "T", "P", "E")


def size(count: int) -> str:
    """A byte count, exact where it is a whole number of a unit, else with three digits.

    >>> size(4096), size(2 << 20), size(1 << 30), size(500), size(5000)
    ('4K', '2M', '1G', '500', '4.88K')
    """
    if count < 0:
        return "-" + size(-count)
    unit = 0
    value = float(count)
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{_digits(value)}{_UNITS[unit]}"


def count(value: int) -> str:
    """A count, thousands separated.

    >>> count(262144)
    '262,144'
    """
    return f"{value:,}"


def duration(nanoseconds: float) -> str:
    """A time with three digits and its unit.

    >>> duration(0), duration(740.0), duration(176e6), duration(12.5e9), duration(1e13)
    ('0 ns', '740 ns', '176 ms', '12.5 s', '10,000 s')
    """
    value = float(nanoseconds)
    for unit in ("ns", "us", "ms"):
        if value < 999.5:
            return f"{_digits(value)} {unit}"
        value /= 1000
    return f"{_digits(value)} s"


def hexadecimal(value: int) -> str:
    """An address or a descriptor.

    >>> hexadecimal(1 << 30)
    '0x40000000'
    """
    return f"{value:#x}"


def ratio(value: float) -> str:
    """A quotient with three digits.

    >>> ratio(16), ratio(2.5), ratio(0.0123)
    ('16', '2.5', '0.0123')
    """
    return _digits(value)


def _digits(value: float) -> str:
    """Three significant digits, all digits of larger whole parts, no trailing zeros."""
    if value >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return text if "e" in text else text.rstrip("0").rstrip(".") if "." in text else text
