"""Where lesion begins on a map: the border above which the share of each lobe agrees best with its score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.agreement import scores_from_percentages

Map = tuple[NDArray[np.floating[Any]], NDArray[np.uint8], Mapping[int, int]]
"""Values of a scan (z, y, x), its lobe labels, and the scores by label of the lobes that have one."""

PROBABILITY_BORDERS = tuple(round(0.05 * k, 2) for k in range(1, 20))
MARGIN_BORDERS = tuple(round(0.05 * k, 2) for k in range(-18, 19))


def best_border(maps: Iterable[Map], borders: tuple[float, ...], otherwise: float) -> float:
    """The border above which the shares of lobes, as scores, agree with the given scores; the usual one if it does.

    The mean that the dRAM learns by is one of probabilities; what is above a fixed border is another share. Scores are
    all that this takes, so it is as weak a supervision as the rest. What counts is the mean absolute difference, as in
    linearly weighted kappa: Eq. 1 is nearly blind to lesion in lobes that have none, and would rather fill them than
    leave a severe one half empty. Scores of some dozen lobes tell near borders apart by chance only: of all that are
    within one standard error of the best, the nearest to the usual one is taken.

    Args:
        maps: of validation cases, read one after another.
        borders: to choose from.
        otherwise: the usual border, taken where no lobe has a score.
    """
    shares, scores = [], []
    for values, lobes, scores_by_label in maps:
        for label, score in scores_by_label.items():
            own = values[lobes == label]
            if own.size:
                shares.append([float((own > border).mean()) for border in borders])
                scores.append(score)
    if not scores:
        return otherwise
    found = scores_from_percentages(100 * np.array(shares))
    good = _as_good_as_the_best(np.abs(found - np.array(scores)[:, None]))
    candidates = [border for border, is_good in zip(borders, good, strict=True) if is_good]
    return min(candidates, key=lambda border: abs(border - otherwise))


def _as_good_as_the_best(differences: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which borders, of (lobes, borders), do not differ from the best by more than the standard error of doing so."""
    worse = differences - differences[:, [differences.sum(axis=0).argmin()]]
    good: NDArray[np.bool_] = worse.mean(axis=0) <= worse.std(axis=0) / np.sqrt(len(worse))
    return good
