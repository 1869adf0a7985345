"""95 % confidence intervals by resampling: of a mean over scans, and of kappa with lobes or whole scans redrawn.

All are percentile intervals. Each call starts from the seed that is passed, so that an interval depends on its data and
the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from evaluation.agreement import CATEGORIES, kappa_of_tables

RESAMPLES = 10_000
LEVEL = 0.95

_LEAST_DEFINED = 0.9


class Interval(NamedTuple):
    """Lower and upper end; both None where there is no interval."""

    low: float | None
    high: float | None


NO_INTERVAL = Interval(None, None)


def mean_interval(values: Sequence[float], *, seed: int) -> Interval:
    """Interval of the mean of one value a scan, scans redrawn with replacement; none below two values."""
    if len(values) < 2:
        return NO_INTERVAL
    result = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(float(result.confidence_interval.low), float(result.confidence_interval.high))


def kappa_interval(tables: NDArray[np.integer], *, seed: int) -> Interval:
    """Interval of the kappa of all pairs, units redrawn with replacement.

    Args:
        tables: counts of (reference score, predicted score), shape (units, 6, 6). One unit a lobe gives the naive
            interval, which takes lobes as independent; one unit a scan gives the clustered one, which does not.
        seed: start of the random numbers.

    Returns:
        The interval; none below two units, if one side gives all lobes the same score (every resample then has kappa
        0), or if kappa is undefined in more than a tenth of the resamples (the others are left out).
    """
    units = len(tables)
    given = tables.sum(axis=0)
    if units < 2 or min(np.count_nonzero(given.sum(axis=axis)) for axis in (0, 1)) < 2:
        return NO_INTERVAL
    kinds, counts = np.unique(tables.reshape(units, -1), axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(units, counts / units, size=RESAMPLES)
    sums = draws.astype(np.float64) @ kinds.astype(np.float64)
    kappas = kappa_of_tables(sums.reshape(-1, CATEGORIES, CATEGORIES))
    defined = kappas[np.isfinite(kappas)]
    if defined.size < _LEAST_DEFINED * RESAMPLES:
        return NO_INTERVAL
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
