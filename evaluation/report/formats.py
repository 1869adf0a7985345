"""Numbers as text, the same in every table. Where a line may break is before the ±."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NONE = "–"

_NO_BREAK = "\u00a0"


def number(value: float | None, *, decimals: int = 3, signed: bool = False) -> str:
    """A number with so many decimals; a dash for None."""
    return NONE if value is None else f"{value:{'+' if signed else ''}.{decimals}f}"


def spread(numbers: Mapping[str, Any], *, decimals: int = 3, n: int | None = None) -> str:
    """Mean ± standard deviation of what `summary.summarise` gives.

    Args:
        numbers: the summary.
        decimals: of both.
        n: number of values that the reader expects, by default all; another number follows in square brackets.
    """
    text = number(numbers["mean"], decimals=decimals)
    if numbers["std"] is not None:
        text += f" ±{_NO_BREAK}{number(numbers['std'], decimals=decimals)}"
    is_whole = numbers["n_valid"] in (0, numbers["n"] if n is None else n)
    return text if is_whole else f"{text}{_NO_BREAK}[{numbers['n_valid']}]"


def interval(numbers: Mapping[str, Any]) -> str:
    """(low, high) of what holds `ci_low` and `ci_high`; a dash where there is no interval."""
    low, high = numbers["ci_low"], numbers["ci_high"]
    return NONE if low is None else f"({number(low)},{_NO_BREAK}{number(high)})"


def p_value(p: float | None) -> str:
    """Three decimals, or that it is below 0.001."""
    if p is None:
        return NONE
    return f"<{_NO_BREAK}0.001" if p < 0.001 else f"{p:.3f}"
