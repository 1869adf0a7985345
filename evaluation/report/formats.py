"""Numbers as text, the same in every table. Where a line may break is before the ±."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NONE = "–"

_NO_BREAK = "\u00a0"
_MINUS = "\u2212"


def number(value: float | None, *, decimals: int = 3, signed: bool = False) -> str:
    """A number with so many decimals and, where asked for, a sign unless it is 0; a dash for None."""
    if value is None:
        return NONE
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    return text.replace("-", _MINUS) if float(text) else text.lstrip("+-")


def counted(text: str, n: int) -> str:
    """A mean with the number of values behind it in square brackets."""
    return f"{text}{_NO_BREAK}[{n}]"


def spread(numbers: Mapping[str, Any], *, decimals: int = 3, n: int | None = None) -> str:
    """Mean ± standard deviation of what `summary.summarise` gives.

    Args:
        numbers: the summary.
        decimals: of both.
        n: number of values that the reader expects, by default all; another number follows the mean.
    """
    text = number(numbers["mean"], decimals=decimals)
    if numbers["n_valid"] not in (0, numbers["n"] if n is None else n):
        text = counted(text, numbers["n_valid"])
    return text if numbers["std"] is None else f"{text} ±{_NO_BREAK}{number(numbers['std'], decimals=decimals)}"


def interval(numbers: Mapping[str, Any]) -> str:
    """(low, high) of what holds `ci_low` and `ci_high`; a dash where there is no interval."""
    low, high = numbers["ci_low"], numbers["ci_high"]
    return NONE if low is None else f"({number(low)},{_NO_BREAK}{number(high)})"


def p_value(p: float | None) -> str:
    """Three decimals, or that it is below 0.001."""
    if p is None:
        return NONE
    return f"<{_NO_BREAK}0.001" if p < 0.001 else f"{p:.3f}"
