"""How well total severity scores agree: mean absolute error, R2 and the intraclass correlation."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.errors import InputError


def r_squared(reference: ArrayLike, predicted: ArrayLike) -> float | None:
    """Coefficient of determination: 1 - sum of squared errors / sum of squared deviations from the reference's mean.

    It is not the square of a correlation: a prediction that is off by a constant loses, and one that is worse than the
    reference's mean is below 0.

    Args:
        reference: one number a scan.
        predicted: the same scans in the same order.

    Returns:
        At most 1; None when all reference values are equal, or there is none.

    Raises:
        InputError: the lengths differ.
    """
    reference, predicted = _paired(reference, predicted)
    total = float(np.sum((reference - reference.mean()) ** 2)) if reference.size else 0.0
    return 1 - float(np.sum((predicted - reference) ** 2)) / total if total else None


def intraclass_correlation(ratings: NDArray[np.floating]) -> float | None:
    """ICC(2,1): two-way random effects, absolute agreement, single rating.

    Args:
        ratings: one row a scan and one column a rater, shape (n, k).

    Returns:
        At most 1; None with fewer than two scans or raters, or when nothing varies.

    Source: Shrout & Fleiss (1979), doi:10.1037/0033-2909.86.2.420: from the mean squares of the two-way analysis of
        variance without replication.
    """
    n, k = ratings.shape
    if n < 2 or k < 2:
        return None
    mean = ratings.mean()
    scan_means, rater_means = ratings.mean(axis=1), ratings.mean(axis=0)
    scans = k * float(np.sum((scan_means - mean) ** 2)) / (n - 1)  # BMS
    raters = n * float(np.sum((rater_means - mean) ** 2)) / (k - 1)  # JMS
    residuals = ratings - scan_means[:, np.newaxis] - rater_means + mean
    rest = float(np.sum(residuals**2)) / ((n - 1) * (k - 1))  # EMS
    spread = scans + (k - 1) * rest + k * (raters - rest) / n
    return (scans - rest) / spread if spread else None


def _paired(reference: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(reference, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if first.shape != second.shape:
        raise InputError(f"got {first.size} reference and {second.size} predicted values, expected pairs")
    return first, second
