"""How well two series of severity scores agree: linearly weighted kappa and its confidence interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from statsmodels.stats.inter_rater import cohens_kappa

from evaluation.errors import InputError

CATEGORIES = 6
LOWEST_BORDER_PERCENT = 1.0
HIGHER_BORDERS_PERCENT = (5.0, 25.0, 50.0, 75.0)
WORDS = ((0.20, "slight"), (0.40, "fair"), (0.60, "moderate"), (0.80, "good"))


@dataclass(frozen=True)
class Kappa:
    """A kappa with its large-sample standard error and 95 % confidence interval; None where undefined.

    The interval is kappa ± 1.96 standard errors, symmetric and not clipped.
    """

    kappa: float | None
    standard_error: float | None
    ci_low: float | None
    ci_high: float | None
    n: int

    @property
    def word(self) -> str | None:
        """The agreement in a word; None where kappa is undefined."""
        return agreement_word(self.kappa)


def linear_weighted_kappa(reference_scores: Sequence[int], predicted_scores: Sequence[int]) -> Kappa:
    """Cohen's kappa with weights 1 - |i - j| / 5 over the fixed categories 0 to 5.

    The categories stay six when a score does not occur, so that kappas of different data sets share their weights.

    Args:
        reference_scores: integers 0 to 5, one a lobe.
        predicted_scores: the same lobes in the same order.

    Returns:
        Kappa. All None if there is no pair, or if all pairs fall into one cell of the table, where chance agreement
        leaves nothing to explain. Kappa 0 without an interval if just one side gives every lobe the same score: any
        scores of the other side then have kappa 0, and the formula of the standard error degenerates to 0.

    Raises:
        InputError: the lengths differ, or a score is not an integer from 0 to 5.

    Source: Cohen (1968) for kappa; Fleiss, Cohen & Everitt (1969) for its standard error, which takes the pairs as
        independent: lobes of one scan are not quite, so the interval is somewhat too narrow.
    """
    reference = _checked_scores("reference_scores", reference_scores)
    predicted = _checked_scores("predicted_scores", predicted_scores)
    if len(reference) != len(predicted):
        raise InputError(f"got {len(reference)} reference and {len(predicted)} predicted scores, expected pairs")
    table = score_table(reference, predicted)
    n = len(reference)
    if np.count_nonzero(table) <= 1:
        return Kappa(kappa=None, standard_error=None, ci_low=None, ci_high=None, n=n)
    if min(np.count_nonzero(table.sum(axis=0)), np.count_nonzero(table.sum(axis=1))) == 1:
        return Kappa(kappa=0.0, standard_error=None, ci_low=None, ci_high=None, n=n)
    with np.errstate(invalid="ignore", divide="ignore"):  # of statistics that are not used here
        result = cohens_kappa(table, wt="linear")
    kappa = float(result.kappa)
    standard_error = float(np.sqrt(max(result.var_kappa, 0.0)))  # perfect agreement: 0 up to rounding
    half_width = float(norm.ppf(0.975)) * standard_error
    return Kappa(kappa, standard_error, ci_low=kappa - half_width, ci_high=kappa + half_width, n=n)


def agreement_word(kappa: float | None) -> str | None:
    """Name a kappa: up to 0.20 slight, 0.40 fair, 0.60 moderate, 0.80 good, above that excellent; None for None."""
    if kappa is None:
        return None
    return next((word for highest, word in WORDS if kappa <= highest), "excellent")


def score_table(reference_scores: ArrayLike, predicted_scores: ArrayLike) -> NDArray[np.int64]:
    """Count pairs of scores 0 to 5: a row for each reference score, a column for each predicted one, shape (6, 6)."""
    cells = np.asarray(reference_scores, dtype=np.int64) * CATEGORIES + np.asarray(predicted_scores, dtype=np.int64)
    return np.bincount(cells, minlength=CATEGORIES**2).reshape(CATEGORIES, CATEGORIES).astype(np.int64)


def kappa_of_tables(tables: NDArray[np.integer | np.floating]) -> NDArray[np.float64]:
    """Linearly weighted kappa of many tables of scores at once.

    Args:
        tables: counts of (reference, predicted) scores, (..., 6, 6).

    Returns:
        Kappa of each, NaN where a table is empty or has one filled cell, (...).
    """
    scores = np.arange(CATEGORIES)
    distance = np.abs(scores[:, np.newaxis] - scores)
    n = tables.sum(axis=(-2, -1))
    observed = n * (tables * distance).sum(axis=(-2, -1))
    by_chance = np.einsum("...i,ij,...j->...", tables.sum(axis=-1), distance, tables.sum(axis=-2))
    with np.errstate(invalid="ignore", divide="ignore"):
        # one filled cell off the diagonal: observed and chance are equal, yet chance leaves nothing to explain
        kappas = np.where((tables > 0).sum(axis=(-2, -1)) > 1, 1 - observed / by_chance, np.nan)
    return np.asarray(kappas, dtype=np.float64)


def scores_from_percentages(
    percentages: ArrayLike, *, lowest_border: float = LOWEST_BORDER_PERCENT
) -> NDArray[np.int64]:
    """Read severity scores off percentages of involvement.

    Args:
        percentages: numbers from 0 to 100.
        lowest_border: percentage from which on a lobe has score 1, at most 5. At 0 any lesion voxel gives score 1.

    Returns:
        Scores of the same shape: 0 below 1 %, then 1 from 1 %, 2 from 5 %, 3 from 25 %, 4 from 50 %, 5 from 75 %.

    Raises:
        InputError: a percentage is not a number from 0 to 100.
    """
    values = np.asarray(percentages, dtype=np.float64)
    if not np.all((values >= 0) & (values <= 100)):
        raise InputError(f"got percentages {values.tolist()}, expected numbers from 0 to 100")
    is_affected = values >= lowest_border if lowest_border > 0 else values > 0
    return np.where(is_affected, 1 + np.digitize(values, HIGHER_BORDERS_PERCENT), 0).astype(np.int64)


def _checked_scores(name: str, scores: Sequence[int]) -> NDArray[np.int64]:
    values = np.asarray(scores)
    if values.size == 0:
        return np.zeros(0, dtype=np.int64)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"{name}: got {values.dtype} of shape {values.shape}, expected a series of integers 0 to 5")
    if values.min() < 0 or values.max() >= CATEGORIES:
        raise InputError(f"{name}: got scores {values.min()} to {values.max()}, expected 0 to 5")
    return values.astype(np.int64)
