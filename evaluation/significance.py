"""Whether one method is better than another on the same scans: paired tests, corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata, wilcoxon

from evaluation.errors import InputError

_DECIMALS = 12  # beyond them, equal differences differ by the arithmetic alone, and would not count as ties


@dataclass(frozen=True)
class PairedTest:
    """Outcome of a Wilcoxon signed-rank test.

    Attributes:
        n: pairs handed in.
        n_nonzero: pairs that differ; only these enter the test.
        median_difference: median of first - second over all pairs; None without pairs.
        statistic: the smaller of the two rank sums; None if no pair differs.
        p: two-sided p-value; None if no pair differs.
        rank_biserial: effect size, -1 to 1: the share of the rank sum in favour of the first less that in favour of
            the second (matched-pairs rank-biserial correlation); None if no pair differs.
    """

    n: int
    n_nonzero: int
    median_difference: float | None
    statistic: float | None
    p: float | None
    rank_biserial: float | None = None


def wilcoxon_signed_rank(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Two-sided Wilcoxon signed-rank test of paired values; pairs without a difference are dropped.

    The p-value is exact up to 50 differing pairs without ties and up to 13 with ties, else the normal approximation
    with its correction for ties.

    Args:
        first: one value a scan.
        second: the other method's values for the same scans, in the same order.

    Raises:
        InputError: the lengths differ, or a value is not finite.

    Source: Wilcoxon (1945) for the test; Kerby (2014), doi:10.2466/11.IT.3.1, for the effect size.
    """
    if len(first) != len(second):
        raise InputError(f"got {len(first)} and {len(second)} values, expected one of each a scan")
    differences = np.round(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64), _DECIMALS)
    if not np.all(np.isfinite(differences)):
        raise InputError("got a value that is not finite; leave scans without a value out of both series")
    nonzero = differences[differences != 0]
    median = float(np.median(differences)) if differences.size else None
    if nonzero.size == 0:
        return PairedTest(n=differences.size, n_nonzero=0, median_difference=median, statistic=None, p=None)
    ranks = rankdata(np.abs(nonzero))
    # method="auto" is exact for few tied values from SciPy 1.15 on
    result = wilcoxon(nonzero, zero_method="wilcox", alternative="two-sided", method="auto")
    return PairedTest(
        n=differences.size,
        n_nonzero=nonzero.size,
        median_difference=median,
        statistic=float(result.statistic),
        p=float(result.pvalue),
        rank_biserial=float(np.sum(np.sign(nonzero) * ranks) / np.sum(ranks)),
    )


def bonferroni(p: float | None, *, comparisons: int) -> float | None:
    """The p-value times the number of comparisons, at most 1; None stays None.

    Raises:
        InputError: fewer than one comparison.
    """
    if comparisons < 1:
        raise InputError(f"got {comparisons} comparisons, expected at least 1")
    return None if p is None else min(1.0, p * comparisons)
