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
    """The border above which the shares of lobes, as scores, differ least from the given scores.

    The mean that the dRAM learns by is one of probabilities; what is above a fixed border is another share. Scores are
    all that this takes, so it is as weak a supervision as the rest. What counts is the mean absolute difference, as in
    linearly weighted kappa: Eq. 1 is nearly blind to lesion in lobes that have none, and would rather fill them than
    leave a severe one half empty.

    Args:
        maps: of validation cases, read one after another.
        borders: to choose from.
        otherwise: what to take where no lobe has a score; of equally good borders, the nearest to it is taken.
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
    found = scores_from_percentages(100 * np.array(shares))  # (lobes, borders)
    differences = np.abs(found - np.array(scores)[:, None]).sum(axis=0)
    best = [border for border, difference in zip(borders, differences, strict=True) if difference == differences.min()]
    return min(best, key=lambda border: abs(border - otherwise))
